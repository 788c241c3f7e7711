"""Images as files, and tars of records that are read again."""

import io
import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from blip2_jax.data.sources.base import BrokenSample
from blip2_jax.data.sources.reading import read_encoded
from blip2_jax.data.sources.registry import build_source
from blip2_jax.data.tar_writer import open_tar_writer
from tests.support.generated_data import encoded, picture, tars_spec


def test_written_tars_are_read_and_have_equal_bytes(tmp_path):
    source = build_source(tars_spec(tmp_path, 6))
    for name in ("a.tar", "b.tar"):
        with open_tar_writer(tmp_path / name) as tar:
            for index in range(len(source)):
                image = read_encoded(source, index, str(index))
                texts = {"captions": [f"é {index}"], "image_id": index}
                tar.write(f"{index:09d}", image, texts)
    assert (tmp_path / "a.tar").read_bytes() == (tmp_path / "b.tar").read_bytes()
    written = build_source(
        {
            "kind": "tars",
            "paths": str(tmp_path / "a.tar"),
            "index_directory": str(tmp_path / "index"),
        }
    )
    assert written.keys() == [f"a/{index:09d}" for index in range(6)]
    for index in range(6):
        assert written.record(index).captions == (f"é {index}",)
        assert written.record(index).original_id == index
        assert written.encoded_image(index) == source.encoded_image(index)


FILES = {
    "a.jpg": encoded(picture(0), "JPEG"),
    "b.png": encoded(picture(1), "PNG"),
    "c.webp": encoded(picture(2), "WEBP"),
    "d.gif": encoded(picture(3), "GIF"),
}


@pytest.fixture(params=["annotations", "parquet", "split"])
def source(request, tmp_path):
    """Return a source of one image per file."""
    for name, data in FILES.items():
        (tmp_path / name).write_bytes(data)
    rows = [{"image": name, "caption": name} for name in FILES]
    (tmp_path / "rows.json").write_text(json.dumps(rows))
    spec = {
        "kind": "annotations",
        "path": str(tmp_path / "rows.json"),
        "images": str(tmp_path),
    }
    if request.param == "parquet":
        table = {"image": list(FILES.values()), "caption": list(FILES)}
        pq.write_table(pa.table(table), tmp_path / "rows.parquet")
        spec = {"kind": "parquet", "path": str(tmp_path / "rows.parquet")}
    if request.param == "split":
        (tmp_path / "e.jpg").write_bytes(FILES["a.jpg"])
        rows.append({"image": "e.jpg", "caption": "held out"})
        (tmp_path / "rows.json").write_text(json.dumps(rows))
        spec = {"kind": "split", "of": spec, "part": "train", "share": 0.2}
    return build_source(spec)


def test_files_are_copied_or_become_pngs(source):
    assert len(source) == 4
    for index in range(4):
        (name,) = source.record(index).captions
        image = read_encoded(source, index, name)
        if name == "d.gif":
            assert image.suffix == "png"
            shown = Image.open(io.BytesIO(image.data))
            np.testing.assert_array_equal(shown, source.load_image(index))
        elif name in FILES:
            assert image.data == FILES[name]
            assert image.suffix == name.rpartition(".")[2]


def test_generated_and_missing_images(tmp_path):
    shapes = build_source({"kind": "shapes", "split": "train", "size": 4})
    assert shapes.encoded_image(0) is None
    assert read_encoded(shapes, 0, "0").suffix == "png"
    (tmp_path / "rows.json").write_text('[{"image": "gone.jpg", "caption": "a"}]')
    missing = build_source(
        {
            "kind": "annotations",
            "path": str(tmp_path / "rows.json"),
            "images": str(tmp_path),
        }
    )
    with pytest.raises(BrokenSample, match="missing image"):
        read_encoded(missing, 0, "gone.jpg")
