"""TFDS data sets in ArrayRecord files, without TensorFlow."""

import gzip
import pathlib
import pickle
import shutil

import pytest

from blip2_jax.data.sources.registry import build_source

FIXTURES = pathlib.Path(__file__).parent / "fixtures"


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory):
    """Copy the fixture and unpack its shard."""
    directory = tmp_path_factory.mktemp("tfds")
    shutil.copytree(FIXTURES, directory, dirs_exist_ok=True)
    for path in directory.rglob("*.gz"):
        path.with_suffix("").write_bytes(gzip.decompress(path.read_bytes()))
        path.unlink()
    return directory


def test_records(data_dir):
    spec = {"kind": "tfds", "name": "tiny_captions", "split": "train"}
    source = build_source({**spec, "data_dir": str(data_dir)})
    assert len(source) == 4
    record = source.record(1)
    assert record.captions == ("A green disc.", "a round green thing on white")
    assert (record.key, record.image_id, record.original_id) == ("101", 1, 101)
    pixels = source.load_image(1)
    assert pixels.shape == (32, 48, 3) and pixels[16, 22].tolist() == [0, 128, 0]
    copy = pickle.loads(pickle.dumps(source))
    assert copy.record(3).captions[0] == "A yellow disc."
    part = build_source({**spec, "data_dir": str(data_dir), "split": "train[1:3]"})
    assert [part.record(i).key for i in range(len(part))] == ["101", "102"]


def test_errors_are_named(data_dir):
    directory = str(data_dir / "tiny_captions" / "1.0.0")
    spec = {"kind": "tfds", "name": directory, "split": "train"}
    assert len(build_source(spec)) == 4
    with pytest.raises(ValueError, match="no feature 'text'"):
        build_source({**spec, "captions": "text"})
    with pytest.raises(ValueError, match="Unknown split"):
        build_source({**spec, "split": "validation"})
    with pytest.raises(FileNotFoundError, match="coco_captions"):
        build_source({**spec, "name": "coco_captions", "data_dir": str(data_dir)})
    with pytest.raises(FileNotFoundError, match="nowhere"):
        build_source({**spec, "name": str(data_dir / "nowhere")})
