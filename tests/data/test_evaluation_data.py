"""Evaluation data: every record once, in order, without augmentation."""

import numpy as np
import pytest

from blip2_jax.data.evaluation_data import EvaluationSet, evaluation_batches
from blip2_jax.data.images import decode_image, evaluation_image
from tests.support.generated_data import (
    bert_directory,
    encoded,
    picture,
    tar_members,
    tars_spec,
    write_tar,
)


@pytest.fixture
def spec(tmp_path):
    return tars_spec(tmp_path, 10)


def test_batches_are_in_order_and_padded(spec):
    data = EvaluationSet([{**spec, "weight": 2.0}], image_size=16)
    batches = list(data.image_batches(4))
    assert [batch["image"].shape for batch in batches] == [(4, 16, 16, 3)] * 3
    valid = np.concatenate([batch["valid"] for batch in batches])
    assert valid.tolist() == [True] * 10 + [False] * 2
    indices = np.concatenate([batch["index"] for batch in batches])
    assert indices[valid].tolist() == list(range(10))
    pixels = decode_image(encoded(picture(5), "JPEG"), "")
    expected = evaluation_image(pixels, 16)
    np.testing.assert_array_equal(batches[1]["image"][1], expected)
    assert data.records[5].original_id == 1005


def test_processes_split_the_batches(spec):
    data = EvaluationSet([spec], image_size=16)
    whole = list(data.image_batches(4))
    parts = [list(data.image_batches(4, i, 2)) for i in range(2)]
    for number, batch in enumerate(whole):
        for name in batch:
            rows = np.concatenate([part[number][name] for part in parts])
            np.testing.assert_array_equal(rows, batch[name])


def test_max_examples(spec):
    assert len(EvaluationSet([spec], 16, max_examples=3).records) == 3


def test_broken_images_are_not_valid(tmp_path, spec):
    members = tar_members(range(5))
    members["00002.jpg"] = b"x"
    members["00003.json"] = b"{"
    write_tar(tmp_path / "00000.tar", members)
    spec = {**spec, "paths": str(tmp_path / "00000.tar")}
    data = EvaluationSet([spec], 16, max_broken_share=0.5)
    assert [record.key[-1] for record in data.records] == ["0", "1", "2", "4"]
    batch = next(data.image_batches(4))
    assert batch["valid"].tolist() == [True, True, False, True]
    assert data.broken_stats.counts == {"broken json": 1, "not an image": 1}


def test_token_batches(tmp_path, spec):
    options = {
        "train": [spec],
        "image": {"size": 16},
        "tokenizer": {"qformer": bert_directory(tmp_path / "bert")},
        "max_text_length": 8,
    }
    data = EvaluationSet([spec], 16)
    batches = list(evaluation_batches(options, data, "image_text", 4))
    assert [batch["text_ids"].shape for batch in batches] == [(4, 8)] * 3
    assert batches[2]["valid"].tolist() == [True, True, False, False]
    assert batches[0]["_text"][0] == "a red thing, number 0"  # the first caption
    images = np.concatenate([batch["image"] for batch in data.image_batches(4)])
    np.testing.assert_array_equal(
        np.concatenate([batch["image"] for batch in batches]), images
    )
