"""Fingerprints of sources: every kind of changed data is noticed, a copy is not."""

import json
import os
import shutil
import tarfile

import numpy as np
import pytest

from blip2_jax.data.sources import content_digest
from blip2_jax.data.sources.content_digest import evenly_spaced
from blip2_jax.data.sources.registry import build_source

COUNT = 40
ROWS = [{"image": f"{i}.jpg", "caption": [f"text {i}", "b"]} for i in range(COUNT)]


def write_annotations(folder, rows=ROWS):
    (folder / "images").mkdir(exist_ok=True)
    for i in range(COUNT):
        (folder / "images" / f"{i}.jpg").write_bytes(bytes([i]) * 2000)
    (folder / "a.json").write_text(json.dumps(rows))
    return {
        "kind": "annotations",
        "path": str(folder / "a.json"),
        "images": str(folder / "images"),
    }


def content(spec):
    return build_source(spec).fingerprint()["content"]


def changed_parts(before, after):
    assert before.keys() == after.keys()
    return {part for part in before if before[part] != after[part]}


def other_caption():
    return [*ROWS[:-1], {"image": ROWS[-1]["image"], "caption": "x"}]


def other_split_of_texts():
    return [{"image": ROWS[0]["image"], "caption": ["text 0", "", "b"]}, *ROWS[1:]]


@pytest.mark.parametrize(
    "rows",
    [
        other_caption(),
        [*ROWS[:3], *reversed(ROWS[3:])],
        [*ROWS[:5], ROWS[6], ROWS[5], *ROWS[7:]],
        other_split_of_texts(),
        [ROWS[0] | {"image_id": 7}, *ROWS[1:]],
        [{"image": 3}, *ROWS[1:]],
    ],
    ids=["caption", "order", "two swapped", "captions", "id", "malformed"],
)
def test_other_texts_or_another_order_are_noticed(tmp_path, rows):
    before = content(write_annotations(tmp_path))
    after = content(write_annotations(tmp_path, rows))
    assert "texts and their order" in changed_parts(before, after)


def test_the_layout_of_a_file_does_not_matter(tmp_path):
    spec = write_annotations(tmp_path)
    before = content(spec)
    (tmp_path / "a.json").write_text(json.dumps(ROWS, indent=3))
    assert content(spec) == before


@pytest.mark.parametrize("change", ["replace all", "same size", "delete", "pipe"])
def test_other_image_files_are_noticed(tmp_path, change):
    spec = write_annotations(tmp_path)
    before = content(spec)
    paths = sorted((tmp_path / "images").iterdir())
    for path in paths if change == "replace all" else paths[:1]:
        data = path.read_bytes()
        path.unlink()
        if change == "replace all":
            path.write_bytes(data + b"x")
        elif change == "same size":
            path.write_bytes(data[::-1][:-1] + b"x")
        elif change == "pipe":
            os.mkfifo(path)
    assert changed_parts(before, content(spec)) & {
        "image file sizes",
        "image file contents (sample)",
    }


def test_a_copy_differs_in_times_only(tmp_path):
    spec = write_annotations(tmp_path)
    before = content(spec)
    copy = shutil.copytree(
        tmp_path / "images", tmp_path / "copy", copy_function=shutil.copyfile
    )
    assert changed_parts(before, content(spec | {"images": str(copy)})) == {
        "image file times"
    }


def test_large_sets_of_images_are_sampled(tmp_path, monkeypatch):
    spec = write_annotations(tmp_path)
    monkeypatch.setattr(content_digest, "MAX_READ", 8)
    before = content(spec)
    for path in (tmp_path / "images").iterdir():  # all replaced, of the same size
        path.write_bytes(os.urandom(2000))
    assert "image file contents (sample)" in changed_parts(before, content(spec))
    indices = evenly_spaced(10**9, 1000)
    assert len(set(indices)) == 1000 and max(indices) < 10**9
    assert evenly_spaced(3, 1000) == [0, 1, 2]


def test_sources_of_sources_notice_what_is_below_them(tmp_path):
    rows = [
        {"image": f"{i}.jpg", "question": "what?", "answer": str(i)} for i in range(9)
    ]
    spec = write_annotations(tmp_path, rows)
    outer = [
        {"kind": "per_question", "of": spec},
        {"kind": "wrong_images", "of": spec},
    ]
    before = [content(each) for each in outer]
    write_annotations(tmp_path, rows[::-1])
    for each, old in zip(outer, before, strict=True):
        assert "texts and their order" in changed_parts(old, content(each))


def test_features_and_their_texts(tmp_path):
    spec = write_annotations(tmp_path)
    folder = tmp_path / "features"
    folder.mkdir()
    array = np.random.default_rng(0).normal(size=(COUNT, 2, 3)).astype(np.float32)
    np.save(folder / "features.npy", array)
    keys = [row["image"] for row in ROWS]
    (folder / "keys.json").write_text(json.dumps(keys))
    features = {"kind": "features", "path": str(folder), "texts": spec}
    before = content(features)
    np.save(folder / "features.npy", -array)
    assert "features (sample)" in changed_parts(before, content(features))
    np.save(folder / "features.npy", array)
    (folder / "keys.json").write_text(json.dumps(keys[::-1]))
    assert "keys and their order" in changed_parts(before, content(features))
    (folder / "keys.json").write_text(json.dumps(keys))
    write_annotations(tmp_path, other_caption())
    assert "texts and their order" in changed_parts(before, content(features))


def test_tars(tmp_path):
    def write(texts):
        with tarfile.open(tmp_path / "a.tar", "w") as tar:
            for i, text in enumerate(texts):
                for name, data in ((f"{i}.jpg", b"image"), (f"{i}.txt", text)):
                    (tmp_path / name).write_bytes(data)
                    tar.add(tmp_path / name, name)

    spec = {
        "kind": "tars",
        "paths": str(tmp_path / "a.tar"),
        "index_directory": str(tmp_path / "cache"),
    }
    write([b"one", b"two"])
    before = content(spec)
    write([b"one", b"six"])
    assert "members (sample)" in changed_parts(before, content(spec))
    write([b"one", b"seven"])
    assert "members and their order" in changed_parts(before, content(spec))
