"""The stream is a pure function of seed and step; broken samples are replaced."""

import itertools
import json
import os
import pathlib
import subprocess
import sys
import time

import ml_collections
import numpy as np
import pytest

from blip2_jax.data.broken_samples import TooManyBrokenSamples
from blip2_jax.data.data_config import data_config
from blip2_jax.data.examples import TextFormat
from blip2_jax.data.order import RngPurpose, position_rng
from blip2_jax.data.pipeline import training_batches
from blip2_jax.data.sources.base import Question, Record
from tests.support.generated_data import (
    bert_directory,
    encoded,
    language_directory,
    picture,
    tar_members,
    tars_spec,
    write_tar,
)

ROOT = pathlib.Path(__file__).parents[2]


@pytest.fixture
def options(tmp_path):
    return {
        "train": [tars_spec(tmp_path)],
        "image": {"size": 24},
        "tokenizer": {"qformer": bert_directory(tmp_path / "bert")},
        "max_text_length": 12,
    }


def with_language_model(options, tmp_path, name, **changes):
    directory = language_directory(tmp_path / "language", name)
    return {**options, "tokenizer": {"language_model": directory}, **changes}


def take(options, task_format="image_text", count=4, batch_size=6, **arguments):
    stream = training_batches(
        options, task_format, batch_size=batch_size, **{"seed": 1, **arguments}
    )
    try:
        return list(itertools.islice(stream, count))
    finally:
        stream.close()


def assert_same(first, second):
    assert len(first) == len(second)
    for one, other in zip(first, second, strict=True):
        assert one.keys() == other.keys()
        for name, value in one.items():
            np.testing.assert_array_equal(value, other[name], err_msg=name)


def test_a_stage1_batch(options):
    batch = take(options, count=1)[0]
    shapes = {
        name: (value.shape, value.dtype.name)
        for name, value in batch.items()
        if not name.startswith("_")
    }
    assert shapes == {
        "image": ((6, 24, 24, 3), "uint8"),
        "text_ids": ((6, 12), "int32"),
        "text_mask": ((6, 12), "bool"),
        "image_id": ((6,), "int32"),
        "position": ((6,), "int64"),
    }
    assert len(batch["_key"]) == len(batch["_text"]) == 6


def test_an_epoch_shows_every_image_once_and_captions_in_turn(options):
    batches = take(options, count=20, batch_size=10)
    ids = np.concatenate([batch["image_id"] for batch in batches])
    for epoch in ids.reshape(10, 20):
        assert sorted(epoch) == list(range(20))
    texts = {text for batch in batches for text in batch["_text"]}
    assert len(texts) == 40  # both captions of each image


def test_the_stream_does_not_depend_on_workers(options):
    alone = take(options)
    assert_same(alone, take({**options, "workers": 1}))
    assert_same(alone, take({**options, "workers": 2, "prefetch": 1}))


def test_a_restart_continues_the_same_stream(options):
    assert_same(take(options, count=6)[4:], take(options, count=2, start_step=4))


LOADS = """
import multiprocessing, sys, time
from blip2_jax.data.pipeline import training_batches
if __name__ == "__main__":
    source = {"kind": "shapes", "split": "train", "size": 100}
    options = {"train": [source], "tokenizer": {"qformer": "shapes:bert"}, "workers": 1}
    stream = training_batches(options, "image_text", seed=0, batch_size=2)
    next(stream)
    print(*(child.pid for child in multiprocessing.active_children()), flush=True)
    time.sleep(600)
"""


def test_workers_end_if_the_run_is_killed(tmp_path):
    (tmp_path / "loads.py").write_text(LOADS)
    run = subprocess.Popen(
        [sys.executable, str(tmp_path / "loads.py")],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    try:
        assert run.stdout is not None
        workers = [int(pid) for pid in run.stdout.readline().split()]
    finally:
        run.kill()
        run.wait()
    assert len(workers) == 1
    deadline = time.monotonic() + 30
    while any(pathlib.Path(f"/proc/{pid}/exe").exists() for pid in workers):
        assert time.monotonic() < deadline, "a worker outlives its run"
        time.sleep(0.1)


def test_processes_split_the_global_batch(options):
    whole = take(options)
    shares = ([0, 1], [2, 3], [4, 5])
    parts = [take(options, own_rows=rows) for rows in shares]
    for step, batch in enumerate(whole):
        for name in ("image", "text_ids", "position"):
            rows = np.concatenate([part[step][name] for part in parts])
            np.testing.assert_array_equal(rows, batch[name])
    apart = take({**options, "workers": 1}, own_rows=[1, 4])
    np.testing.assert_array_equal(apart[1]["image"], whole[1]["image"][[1, 4]])


def test_seeds_and_epochs_differ(options):
    first, other = take(options, count=1)[0], take(options, count=1, seed=2)[0]
    assert first["image_id"].tolist() != other["image_id"].tolist()
    batches = take(options, count=2, batch_size=20)
    images = [
        dict(zip(b["image_id"].tolist(), b["image"], strict=True)) for b in batches
    ]
    assert all((images[0][i] != images[1][i]).any() for i in range(20))


def test_decoder_batches(options, tmp_path):
    options = with_language_model(
        options, tmp_path, "stage2_opt_a", prompt="a photo of"
    )
    batch = take(options, "decoder", count=1)[0]
    np.testing.assert_array_equal(batch["text_ids"][:, :4], [[2, 5, 6, 7]] * 6)
    assert not batch["target_mask"][:, :4].any() and batch["target_mask"].any(1).all()
    assert (batch["text_ids"][batch["text_mask"]] == 4).sum() == 6  # all ends
    alone = take(options, "text_decoder", count=1)[0]
    assert "image" not in alone
    np.testing.assert_array_equal(alone["text_ids"], batch["text_ids"])
    # The first token is a target if a context precedes it.
    np.testing.assert_array_equal(
        alone["target_mask"][:, 1:], batch["target_mask"][:, 1:]
    )


@pytest.mark.parametrize(
    "golden, task_format, count",
    [("stage2_opt_a", "text_decoder", 2), ("stage2_t5_a", "text_encoder_decoder", 1)],
)
def test_documents_begin_with_another_caption(
    options, tmp_path, golden, task_format, count
):
    options = with_language_model(
        options,
        tmp_path,
        golden,
        max_text_length=40,
        prefix_split="none",
        context_share=1.0,
        texts_per_document=count,
    )
    formats = TextFormat(data_config(options), task_format)
    record = Record("key", 0, captions=("a cat", "the dog"))
    drawn = [formats.draw(record, np.random.default_rng(n)) for n in range(20)]
    assert {text.context for text in drawn} == {"a cat", "the dog"}
    for text in drawn:
        said = [each.target for each in (text, *text.more)]
        assert len(said) == count and text.context not in said
    first = formats.arrays(drawn)["input_ids" if count == 1 else "text_ids"][0]
    context = formats.tokenizer.encode_words(drawn[0].context)
    assert first[: len(context)].tolist() == context


def test_a_record_with_only_questions_has_no_context(options, tmp_path):
    options = with_language_model(options, tmp_path, "stage2_opt_a", context_share=1.0)
    formats = TextFormat(data_config(options), "text_decoder")
    record = Record("key", 0, questions=(Question("a cat ?", ("yes",), "1"),))
    drawn = formats.draw(record, np.random.default_rng(0))
    assert (drawn.context, drawn.target) == ("", "yes")


def test_encoder_decoder_documents_have_a_random_number_of_texts(options):
    options |= {
        "tokenizer": {"language_model": "shapes:t5"},
        "texts_per_document": 3,
    }
    formats = TextFormat(data_config(options), "text_encoder_decoder")
    record = Record("key", 0, captions=("a red ring",))
    rng = np.random.default_rng(0)
    drawn = [formats.draw(record, rng) for _ in range(30)]
    assert {1 + len(text.more) for text in drawn} == {1, 2, 3}
    blanks = formats.tokenizer.blank_ids
    for text, ids in zip(drawn, formats.arrays(drawn)["input_ids"], strict=True):
        count = len(text.pairs)
        marks = [token for token in ids if token in blanks]
        assert marks == (blanks[:count] if count > 1 else [])


def test_more_texts_than_sentinels_are_refused(options):
    options |= {
        "tokenizer": {"language_model": "shapes:t5"},
        "texts_per_document": 9,
    }
    with pytest.raises(ValueError, match=r"9 texts in a document .* tokenizer has 8"):
        TextFormat(data_config(options), "text_encoder_decoder")


def test_an_example_with_an_image_has_one_text(options, tmp_path):
    options = with_language_model(
        options, tmp_path, "stage2_t5_a", texts_per_document=2
    )
    with pytest.raises(ValueError, match="texts_per_document is 2, but must be 1"):
        TextFormat(data_config(options), "encoder_decoder")


@pytest.mark.parametrize("split, prefixes", [("auto", True), ("none", False)])
def test_encoder_decoder_batches(options, tmp_path, split, prefixes):
    options = with_language_model(options, tmp_path, "stage2_t5_a", prefix_split=split)
    batches = take(options, "encoder_decoder")
    inputs = np.concatenate([batch["input_mask"].sum(1) for batch in batches])
    targets = np.concatenate([batch["target_mask"].sum(1) for batch in batches])
    assert (inputs.max() > 1) == prefixes and inputs.min() == 1
    assert targets.min() >= 2  # a word and the end token
    names = {"input_ids", "input_mask", "target_ids", "target_mask"}
    assert names <= batches[0].keys()
    assert "image" not in take(options, "text_encoder_decoder", count=1)[0]


def annotated(folder, rows):
    """Write annotations with an image each and return the source spec."""
    for n in range(len(rows)):
        (folder / f"{n}.png").write_bytes(encoded(picture(n)))
    (folder / "rows.json").write_text(json.dumps(rows))
    path = str(folder / "rows.json")
    return {"kind": "annotations", "path": path, "images": str(folder)}


def test_questions_are_mixed_in(tmp_path, options):
    rows = [
        {
            "image": f"{n}.png",
            "caption": f"caption {n}",
            "question": f"what {n}?",
            "answer": "red",
        }
        for n in range(4)
    ]
    source = annotated(tmp_path, rows)
    options = with_language_model(
        options, tmp_path, "stage2_opt_a", train=[source], question_share=0.3
    )
    texts = [t for b in take(options, "decoder", 20, 10) for t in b["_text"]]
    questions = [text for text in texts if text.startswith("Question: what ")]
    assert all(text.endswith("? Answer: red") for text in questions)
    assert 0.2 < len(questions) / len(texts) < 0.4


@pytest.mark.parametrize("family", ["decoder", "encoder_decoder"])
def test_question_formats_include_the_qformers_question(tmp_path, options, family):
    rows = [
        {"image": "0.png", "question": "What is it (there)?", "answer": "red"},
        {"image": "1.png", "caption": "a thing"},
    ]
    source = annotated(tmp_path, rows)
    bert = options["tokenizer"]["qformer"]
    golden = "stage2_opt_a" if family == "decoder" else "stage2_t5_a"
    options = with_language_model(options, tmp_path, golden, train=[source])
    with pytest.raises(ValueError, match=r"question_\w+ needs data\.tokenizer.qformer"):
        take(options, f"question_{family}")
    options["tokenizer"]["qformer"] = bert
    batch = take(options, f"question_{family}", 1, 4)[0]
    plain = take(options, family, 1, 4)[0]
    formats = TextFormat(
        data_config({**options, "tokenizer": {"qformer": bert}}), "image_text"
    )
    expected = formats.tokenizer.encode(["what is it there?"], 12)[0][0]
    for row, text in enumerate(batch["_text"]):
        if "what is it there?" in text:
            np.testing.assert_array_equal(batch["question_ids"][row], expected)
        assert batch["question_mask"][row].any() == ("what is" in text)
    assert 0 < batch["question_mask"].any(axis=1).sum() < 4
    for name, value in plain.items():
        np.testing.assert_array_equal(value, batch[name], err_msg=name)


def test_answers_are_drawn_by_frequency(options, tmp_path):
    """Each of the ten annotators' answers is equally likely."""
    options = with_language_model(options, tmp_path, "stage2_opt_a")
    answers = ("red",) * 7 + ("green",) * 2 + ("blue",)
    record = Record("key", 0, questions=(Question("which colour?", answers),))
    formats = TextFormat(data_config(options), "decoder")
    drawn = [
        formats.draw(record, position_rng(0, position, RngPurpose.TEXT)).target
        for position in range(3000)
    ]
    for answer, weight in (("red", 0.7), ("green", 0.2), ("blue", 0.1)):
        assert drawn.count(answer) / 3000 == pytest.approx(weight, abs=0.03)


def test_a_broken_sample_is_replaced_by_the_next_of_its_source(tmp_path, options):
    members = tar_members(range(20))
    del members["00003.jpg"]
    members["00007.jpg"] = b"no image"
    members["00009.txt"] = b""
    members["00009.json"] = b'{"captions": ["..."]}'
    write_tar(tmp_path / "00000.tar", members)
    source = {**options["train"][0], "paths": str(tmp_path / "00000.tar")}
    options = {**options, "train": [source], "max_broken_share": 0.5}
    stream = training_batches(options, "image_text", seed=1, batch_size=20)
    batches = list(itertools.islice(stream, 3))
    stream.close()
    # In three epochs each occurs three times, and again as a substitute.
    assert set(stream.broken_stats.counts) == {
        "missing image",
        "not an image",
        "empty caption",
    }
    assert 9 <= stream.broken_stats.counts.total() <= 15
    assert "3 missing image (00000/00003, 00000/00003" in str(stream.broken_stats)
    for batch in batches:
        ids = batch["image_id"].tolist()
        assert len(ids) == 20 and not {3, 7, 9} & set(ids)
    assert_same(batches, take({**options, "workers": 2}, count=3, batch_size=20))


def test_too_many_broken_samples_stop_the_run(tmp_path, options):
    members = tar_members(range(20))
    for key in ("00003", "00004", "00005"):
        members[f"{key}.jpg"] = b""
    write_tar(tmp_path / "00000.tar", members)
    source = {**options["train"][0], "paths": str(tmp_path / "00000.tar")}
    with pytest.raises(
        TooManyBrokenSamples, match=r"limit is a share of 0\.01.*empty image"
    ):
        take({**options, "train": [source]}, count=20)
    for key in range(20):
        members[f"{key:05d}.jpg"] = b""
    write_tar(tmp_path / "00000.tar", members)
    for workers in (0, 1):
        everything = {**options, "train": [source], "max_broken_share": 1.0}
        with pytest.raises(TooManyBrokenSamples, match="100 empty image file"):
            take({**everything, "workers": workers}, count=1)


def test_a_weighted_mixture(tmp_path, options):
    write_tar(tmp_path / "b.tar", tar_members(range(50, 55)))
    first = {**options["train"][0], "weight": 3}
    second = {**first, "paths": str(tmp_path / "b.tar"), "weight": 1}
    batches = take({**options, "train": [first, second]}, count=10, batch_size=8)
    ids = np.concatenate([batch["image_id"] for batch in batches])
    assert (ids >= 20).sum() == 20 and ids.max() == 24  # a quarter; ids are unique
    with pytest.raises(ValueError, match="all sources need a weight, or none"):
        take({**options, "train": [first, options["train"][0]]})


def test_features_replace_images(tmp_path, options):
    (tmp_path / "features").mkdir()
    array = np.random.default_rng(0).normal(size=(6, 4, 8)).astype(np.float16)
    np.save(tmp_path / "features" / "features.npy", array)
    keys = [f"00000/{n:05d}" for n in range(6)]
    (tmp_path / "features" / "keys.json").write_text(json.dumps(keys))
    source = {
        "kind": "features",
        "path": str(tmp_path / "features"),
        "texts": options["train"][0],
    }
    for workers in (0, 1):
        changed = {**options, "train": [source], "workers": workers}
        batch = take(changed, count=1)[0]
        assert "image" not in batch and batch["features"].dtype == np.float16
        np.testing.assert_array_equal(batch["features"], array[batch["image_id"]])
    with pytest.raises(ValueError, match="must all hold pixels or all"):
        take({**options, "train": [source, options["train"][0]]})


def test_configurations_are_checked(options, tmp_path):
    config = ml_collections.ConfigDict(
        {**options, "train": tuple(options["train"])}
    ).lock()
    assert data_config(config).image.size == 24
    with pytest.raises(ValueError, match="data has no key 'prefetches'"):
        data_config({**options, "prefetches": 3})
    with pytest.raises(ValueError, match=r"data\.image has no key 'sise'"):
        data_config({**options, "image": {"sise": 3}})
    with pytest.raises(ValueError, match=r"question_share must be in 0 .. 1, not 2"):
        data_config({**options, "question_share": 2})
    with pytest.raises(ValueError, match=r"needs data\.tokenizer\.language_model"):
        take(options, "decoder")
    t5 = with_language_model(options, tmp_path, "stage2_t5_a")
    with pytest.raises(
        ValueError, match="is for encoder_decoder, not for format decoder"
    ):
        take(t5, "decoder")
    with pytest.raises(ValueError, match="data configuration has no source"):
        take({**options, "train": []})
