"""Length buckets: equal in all processes, and only padding is removed."""

import itertools

import numpy as np
import pytest

from blip2_jax.data.data_config import data_config
from blip2_jax.data.length_buckets import LengthBuckets
from blip2_jax.data.pipeline import training_batches
from blip2_jax.data.rows import TrainingRows
from tests.support.generated_data import bert_directory, encoded, picture, write_tar

BUCKETS = (8, 10, 12, 16)
OPTIONS = {
    "train": ({"kind": "shapes", "split": "train", "size": 512},),
    "image": {"size": 8},
    "max_text_length": 16,
    "length_buckets": BUCKETS,
}
FAMILIES = {
    "image_text": {"qformer": "shapes:bert"},
    "decoder": {"language_model": "shapes:opt"},
    "encoder_decoder": {"language_model": "shapes:t5"},
}
STEPS = 12


def options(task_format, **changes):
    return {**OPTIONS, "tokenizer": FAMILIES[task_format], **changes}


def take(options, task_format="image_text", count=STEPS, batch_size=2, **arguments):
    stream = training_batches(
        options, task_format, seed=0, batch_size=batch_size, **arguments
    )
    try:
        return list(itertools.islice(stream, count))
    finally:
        stream.close()


def token_arrays(batch):
    return {n: a for n, a in batch.items() if n.endswith(("_ids", "_mask"))}


def widths(batches, name="text_ids"):
    return [batch[name].shape[1] for batch in batches]


@pytest.mark.parametrize("task_format", FAMILIES)
def test_a_batch_has_the_smallest_bucket_that_holds_its_longest_text(task_format):
    whole = take(options(task_format, length_buckets=()), task_format)
    bucketed = take(options(task_format), task_format)
    seen = set()
    for full, batch in zip(whole, bucketed, strict=True):
        arrays = token_arrays(full)
        longest = max(a.sum(1).max() for n, a in arrays.items() if n.endswith("_mask"))
        width = min(bucket for bucket in BUCKETS if bucket >= longest)
        seen.add(width)
        for name, array in arrays.items():
            assert array.shape[1] == 16
            np.testing.assert_array_equal(batch[name], array[:, :width], err_msg=name)
        np.testing.assert_array_equal(batch["image"], full["image"])
    assert len(seen) > 2


def test_targets_have_their_own_maximum():
    data_options = options("encoder_decoder", max_target_length=9)
    pairs = {
        (batch["input_ids"].shape[1], batch["target_ids"].shape[1])
        for batch in take(data_options, "encoder_decoder", count=30)
    }
    assert {target for _, target in pairs} == {8, 9}
    assert len(pairs) <= len(BUCKETS)


def test_processes_workers_and_restarts_agree():
    whole = take(options("image_text"), batch_size=4)
    for own in ((0, 1), (2, 3)):
        part = take(options("image_text"), batch_size=4, own_rows=own)
        assert widths(part) == widths(whole)
    assert len(set(widths(whole))) > 1
    again = take(options("image_text"), batch_size=4, start_step=5, count=STEPS - 5)
    in_worker = take(options("image_text", workers=1), batch_size=4)
    for before, now in ((whole[5:], again), (whole, in_worker)):
        for one, other in zip(before, now, strict=True):
            np.testing.assert_array_equal(one["text_ids"], other["text_ids"])


@pytest.fixture
def half_broken(tmp_path):
    """Twenty images: those with short captions are broken."""
    members = {}
    for number in range(20):
        short = number % 2
        image = b"" if short else encoded(picture(number), "JPEG")
        caption = "a cat" if short else "a cat " * 5
        members |= {f"{number}.jpg": image, f"{number}.txt": caption.encode()}
    write_tar(tmp_path / "0.tar", members)
    source = {
        "kind": "tars",
        "paths": str(tmp_path / "0.tar"),
        "index_directory": str(tmp_path),
    }
    tokenizer = {"qformer": bert_directory(tmp_path / "bert")}
    return options("image_text", train=(source,), tokenizer=tokenizer) | {
        "length_buckets": (4, 12, 16),
        "max_broken_share": 1.0,
    }


def test_a_substitute_is_truncated_to_the_common_bucket(half_broken):
    parts = [take(half_broken, own_rows=[row]) for row in range(2)]
    assert widths(parts[0]) == widths(parts[1])
    full = take({**half_broken, "length_buckets": ()})
    cut = 0
    for step, batch in enumerate(full):
        ids = np.concatenate([part[step]["text_ids"] for part in parts])
        np.testing.assert_array_equal(ids, batch["text_ids"][:, : ids.shape[1]])
        texts = [text for part in parts for text in part[step]["_text"]]
        assert batch["_text"] == texts
        assert (batch["text_mask"].sum(1) == 12).all()  # long captions
        cut += ids.shape[1] == 4
    assert 0 < cut < STEPS


def test_texts_are_read_only_until_the_last_bucket_is_needed():
    config = data_config(options("image_text"))
    rows = TrainingRows(config, "image_text", seed=0)
    read = []
    text = rows.text
    rows.text = lambda position: read.append(position) or text(position)
    assert LengthBuckets(rows, BUCKETS, 256).at(3) == 16
    assert 0 < len(read) < 32 and read[0] == 3 * 256
    assert LengthBuckets(rows, (16,), 256).at(3) is None and len(read) < 32


@pytest.mark.parametrize(
    "buckets", [(12, 8, 16), (8, 8, 16), (0, 16), (8, 12), (8, 24)]
)
def test_invalid_buckets_are_refused(buckets):
    with pytest.raises(ValueError, match=r"length_buckets .* ascend .* with 16, "):
        data_config(options("image_text", length_buckets=buckets))
