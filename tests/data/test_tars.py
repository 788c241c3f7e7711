"""Members of tars are read and counted, those left out by reason."""

import io
import json
import tarfile

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from blip2_jax.data.mixture import build_mixture
from blip2_jax.data.pipeline import training_batches
from blip2_jax.data.sources.base import BrokenSample
from blip2_jax.data.sources.layouts import detect_layout
from blip2_jax.data.sources.registry import build_source
from tests.support.generated_data import (
    bert_directory,
    encoded,
    picture,
    tar_members,
    write_tar,
)

IMAGE = encoded(picture(0), "JPEG")


def tars(tmp_path, name="x.tar"):
    return {
        "kind": "tars",
        "paths": str(tmp_path / name),
        "index_directory": str(tmp_path / "index"),
    }


def add(tar, name, data=b"", **attributes):
    info = tarfile.TarInfo(name)
    info.size = len(data)
    for attribute, value in attributes.items():
        setattr(info, attribute, value)
    tar.addfile(info, io.BytesIO(data))


@pytest.mark.parametrize("mode, name", [("gz", "gzip"), ("bz2", "bzip2"), ("xz", "xz")])
def test_a_compressed_tar_is_refused(tmp_path, mode, name):
    with tarfile.open(tmp_path / "x.tar", f"w:{mode}") as tar:
        add(tar, "0.jpg", IMAGE)
        add(tar, "0.txt", b"a red picture")
    with pytest.raises(ValueError, match=rf"x\.tar is compressed \({name}\)"):
        build_source(tars(tmp_path))


def test_members_that_belong_to_no_record_are_counted(tmp_path, caplog):
    with tarfile.open(tmp_path / "x.tar", "w") as tar:
        add(tar, "folder", type=tarfile.DIRTYPE)
        add(tar, "folder/0.jpg", IMAGE)
        add(tar, "folder/0.txt", b"first")
        add(tar, "folder/0.txt", b"second")
        add(tar, "folder/readme.md", b"text")
        add(tar, "1.jpg", type=tarfile.SYMTYPE, linkname="folder/0.jpg")
        add(tar, "2.jpg", type=tarfile.LNKTYPE, linkname="folder/0.jpg")
        add(tar, "3.jpg", type=tarfile.FIFOTYPE)
        add(tar, "4.jpg", type=tarfile.CHRTYPE)
    left_out = {"repeated member": 1, "other suffix": 1, "link": 2, "device or pipe": 2}
    for _ in range(2):  # scanned, then from the stored index
        source = build_source(tars(tmp_path))
        assert source.keys() == ["x/folder/0"] and source.left_out == left_out
        assert source.record(0).captions == ("second",)
    blank = {"kind": "wrong_images", "pictures": "blank", "of": tars(tmp_path)}
    assert build_source(blank).left_out == left_out
    with caplog.at_level("WARNING"):
        build_mixture([tars(tmp_path)])
    assert "x.tar leaves out 1 repeated member, 1 other suffix, 2 link, " in caplog.text


def test_joined_tars_are_noticed(tmp_path):
    """A reader stops at the end mark of the first."""
    write_tar(tmp_path / "x.tar", tar_members(range(2)))
    first = (tmp_path / "x.tar").read_bytes()
    (tmp_path / "x.tar").write_bytes(first + first)
    source = build_source(tars(tmp_path))
    ((reason, count),) = source.left_out.items()
    assert len(source) == 2 and "joined tars" in reason
    assert 0 < count <= len(first)


@pytest.mark.parametrize("cut", [600, 1500])
def test_a_cut_or_damaged_tar_is_named(tmp_path, cut):
    write_tar(tmp_path / "x.tar", tar_members(range(3)))
    content = (tmp_path / "x.tar").read_bytes()
    (tmp_path / "x.tar").write_bytes(content[:cut])
    with pytest.raises(ValueError, match=r"x\.tar is not a readable tar: \w+"):
        build_source(tars(tmp_path))
    with tarfile.open(fileobj=io.BytesIO(content)) as tar:
        header = tar.getmembers()[3].offset
    broken = content[:header] + b"?" * 512 + content[header + 512 :]
    (tmp_path / "x.tar").write_bytes(broken)
    with pytest.raises(ValueError, match=f"damaged header at byte {header}"):
        build_source(tars(tmp_path))


def test_names_that_are_not_utf8_are_read(tmp_path):
    path = tmp_path / "x.tar"
    form = tarfile.GNU_FORMAT
    with tarfile.open(path, "w", format=form, encoding="latin-1") as tar:
        for name in ("caf\xe9", "caf\xe8"):
            add(tar, f"{name}.jpg", IMAGE)
            add(tar, f"{name}.txt", name.encode())
    source = build_source(tars(tmp_path))
    assert source.keys() == ["x/caf\\xe9", "x/caf\\xe8"] and not source.left_out
    assert source.record(1).captions == ("caf\xe8",)
    assert source.load_image(0).shape == (30, 40, 3)
    path.unlink()
    with tarfile.open(path, "w", format=tarfile.PAX_FORMAT) as tar:
        add(tar, "\u732b.txt", b"a cat")
    assert build_source(tars(tmp_path)).keys() == ["x/\u732b"]


def test_a_tar_that_is_cut_later_has_broken_samples(tmp_path):
    write_tar(tmp_path / "x.tar", tar_members(range(3)))
    source = build_source(tars(tmp_path))
    content = (tmp_path / "x.tar").read_bytes()
    (tmp_path / "x.tar").write_bytes(content[:1500])
    with pytest.raises(BrokenSample, match=r"truncated tar: x/00002 \(0 of \d+ bytes"):
        source.load_image(2)


def img2dataset_members(key, caption, status, image=IMAGE, text=None):
    """Members of a record as img2dataset writes them."""
    facts = {"caption": caption, "url": "http://x", "key": key, "status": status}
    facts |= {"error_message": None, "width": 40, "exif": "{}", "sha256": "0" * 64}
    members = {} if image is None else {f"{key}.jpg": image}
    if text is not None:
        members[f"{key}.txt"] = text.encode()
    return members | {f"{key}.json": json.dumps(facts).encode()}


def test_records_of_img2dataset_without_image_or_caption_are_counted(
    tmp_path, monkeypatch
):
    """Beside each tar lie a table of the same rows and a file of statistics."""
    members = {}
    for number in range(20):
        key, text = f"00000{number:04d}", f"a thing, number {number}"
        members |= img2dataset_members(key, text, "success", text=text)
    failed = "failed_to_download"
    members |= img2dataset_members("000000020", "gone", failed, None, "gone")
    members |= img2dataset_members("000000021", None, "success")
    members |= img2dataset_members("000000022", None, "success", text="")
    members |= img2dataset_members("000000023", "", "success", text=" ")
    members |= img2dataset_members("000000024", None, "success", text="of the text")
    write_tar(tmp_path / "00000.tar", members)
    table = pa.table({"url": ["http://x"], "caption": ["a"], "key": ["000000000"]})
    pq.write_table(table, tmp_path / "00000.parquet")
    (tmp_path / "00000_stats.json").write_text('{"count": 24, "successes": 23}')

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    layout = detect_layout(tmp_path)
    assert layout.spec["kind"] == "tars" and layout.records == 25
    spec = {**layout.spec, "index_directory": str(tmp_path / "index")}
    source = build_source(spec)
    assert not source.left_out and source.record(24).captions == ("of the text",)
    with pytest.raises(BrokenSample, match="missing image: 00000/000000020"):
        source.check_image(20)
    options = {
        "train": [spec],
        "image": {"size": 16},
        "tokenizer": {"qformer": bert_directory(tmp_path / "bert")},
        "max_broken_share": 1.0,
    }
    batches = training_batches(options, "image_text", seed=0, batch_size=25)
    batch = next(batches)
    batches.close()
    broken = {"missing image": 1, "no text": 1, "empty caption": 2}
    assert batches.broken_stats.counts == broken
    assert len(batch["_key"]) == 25
