"""`prepare` writes any source; the files read as a source are equal to it."""

import concurrent.futures
import dataclasses
import io
import json
import os
import pathlib
import pickle
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from PIL import Image

from blip2_jax.cli import main as console
from blip2_jax.data.prepare.job import PrepareJob, PrepareOptions
from blip2_jax.data.prepare.manifest import write_manifest
from blip2_jax.data.record_files import write_records
from blip2_jax.data.sources.base import BrokenSample
from blip2_jax.data.sources.layouts import detect_layout
from blip2_jax.data.sources.registry import build_source
from blip2_jax.parallel.shard_jobs import OtherSettings, run_shards
from tests.support.generated_data import captions, encoded, picture, tars_spec

ROOT = pathlib.Path(__file__).parents[2]


def prepare(spec, output, **options):
    """Run the job in this process; return its manifest."""
    job = PrepareJob(spec, output, PrepareOptions(**options))
    run_shards(job)
    return write_manifest(job)


def prepared_source(output):
    """Return the source that is detected in a prepared folder."""
    spec = detect_layout(output).spec
    if spec["kind"] == "tars":
        spec["index_directory"] = str(output / "index")
    return build_source(spec)


def bytes_of(output):
    """Return the bytes of all files in a prepared folder, by name."""
    return {path.name: path.read_bytes() for path in output.iterdir() if path.is_file()}


def questions_spec(folder):
    """Write LAVIS' layout with captions, questions and images in several formats."""
    kinds = ("JPEG", "PNG", "WEBP", "GIF")
    rows = []
    for number, kind in enumerate(kinds):
        name = f"photos {number}.{kind.lower()}"
        (folder / name).write_bytes(encoded(picture(number), kind))
        rows.append({"image": name, "caption": captions(number), "image_id": number})
        if number:
            question = {"question": "wha\u2028t?", "answer": ["a", "\u00e9"]}
            rows.append({"image": name, **question, "question_id": 7 * number})
    path = folder / "rows.json"
    path.write_text(json.dumps(rows))
    return {"kind": "annotations", "path": str(path), "images": str(folder)}


def shapes_spec(folder):
    return {"kind": "shapes", "split": "train", "size": 8, "texts": "both"}


@pytest.mark.parametrize("format_", ["arrayrecord", "tars"])
@pytest.mark.parametrize("write", [questions_spec, tars_spec, shapes_spec])
def test_prepared_files_hold_the_same_records_and_pixels(tmp_path, write, format_):
    spec = write(tmp_path)
    source = build_source(spec)
    manifest = prepare(spec, tmp_path / "out", format=format_, shard_size=3)
    assert manifest["kept"] == len(source) and not manifest["dropped"]
    prepared = prepared_source(tmp_path / "out")
    assert len(prepared) == prepared.num_images == len(source)
    for index in range(len(source)):
        record, written = source.record(index), prepared.record(index)
        if format_ == "tars":  # names of members are numbers
            written = dataclasses.replace(written, key=record.key)
        assert written == record
        np.testing.assert_array_equal(
            prepared.load_image(index), source.load_image(index)
        )
        original = source.encoded_image(index)
        if original is not None and not original.startswith(b"GIF"):
            assert prepared.encoded_image(index) == original


@pytest.fixture
def damaged(tmp_path):
    """Write a source with one image of each defect; return its spec."""
    files = {
        "good.jpg": encoded(picture(0, 60, 60), "JPEG"),
        "again.jpg": encoded(picture(0, 60, 60), "JPEG"),
        "cut.jpg": encoded(picture(1, 200, 200), "JPEG")[:900],
        "text.jpg": b"not an image",
        "small.png": encoded(picture(2, 60, 20)),
        "long.png": encoded(picture(3, 200, 60)),
        "silent.jpg": encoded(picture(4, 60, 60), "JPEG"),
    }
    for name, data in files.items():
        (tmp_path / name).write_bytes(data)
    rows = [{"image": name, "caption": "a thing"} for name in files]
    rows[-1]["caption"] = " "
    rows += [{"image": "gone.jpg", "caption": "x"}, {"image": "a.jpg", "caption": 5}]
    (tmp_path / "rows.json").write_text(json.dumps(rows))
    path = str(tmp_path / "rows.json")
    return {"kind": "annotations", "path": path, "images": str(tmp_path)}


def test_every_dropped_record_is_listed_with_its_cause(tmp_path, damaged):
    out = tmp_path / "out"
    options = {"min_size": 30, "max_aspect": 3.0, "drop_duplicates": True}
    manifest = prepare(damaged, out, **options)
    lines = [json.loads(line) for line in (out / "dropped.jsonl").open()]
    assert [(line["record"], line["key"], line["cause"]) for line in lines] == [
        (1, "again.jpg", "duplicate image"),
        (2, "cut.jpg", "truncated image"),
        (3, "text.jpg", "not an image"),
        (4, "small.png", "image too small"),
        (5, "long.png", "image too long"),
        (6, "silent.jpg", "no caption"),
        (7, "gone.jpg", "missing image"),
        (8, f"{damaged['path']} row 9", "malformed row"),
    ]
    assert lines[4]["detail"] == "200x60"
    assert manifest["kept"] == manifest["captions"] == 1
    assert manifest["dropped"] == dict.fromkeys(
        sorted(line["cause"] for line in lines), 1
    )
    assert json.loads((out / "manifest.json").read_text()) == manifest
    assert prepare(damaged, tmp_path / "keep")["kept"] == 4  # by default


def test_a_file_without_any_record_is_read(tmp_path, damaged):
    for format_ in ("arrayrecord", "tars"):
        out = tmp_path / format_
        manifest = prepare(damaged, out, format=format_, shard_size=1)
        assert len(manifest["shards"]) == 9
        assert len(prepared_source(out)) == manifest["kept"] == 4


def test_larger_images_are_resized_and_others_keep_their_bytes(tmp_path):
    sizes = [(100, 50), (50, 125), (40, 300), (300, 40), (41, 41), (20, 30)]
    rows = []
    for number, size in enumerate(sizes):
        name = f"{number}.jpg"
        (tmp_path / name).write_bytes(encoded(picture(number, *size), "JPEG"))
        rows.append({"image": name, "caption": "x"})
    (tmp_path / "rows.json").write_text(json.dumps(rows))
    spec = {
        "kind": "annotations",
        "path": str(tmp_path / "rows.json"),
        "images": str(tmp_path),
    }
    source = build_source(spec)
    manifest = prepare(spec, tmp_path / "out", resize=40)
    assert manifest["resized"] == 3
    prepared = prepared_source(tmp_path / "out")
    shapes = [prepared.load_image(index).shape[:2] for index in range(6)]
    assert shapes == [(40, 80), (100, 40), (300, 40), (40, 300), (40, 40), (30, 20)]
    for index in (2, 3, 5):
        assert prepared.encoded_image(index) == source.encoded_image(index)
    whole = Image.fromarray(source.load_image(0)).resize((80, 40), Image.BICUBIC)
    error = np.abs(np.asarray(whole, int) - prepared.load_image(0)).mean()
    assert error < 2  # of a JPEG of quality 95
    image = Image.open(io.BytesIO(prepared.encoded_image(0)))
    assert image.format == "JPEG"
    prepare(spec, tmp_path / "low", resize=40, quality=20)
    smaller = prepared_source(tmp_path / "low").encoded_image(0)
    assert len(smaller) < len(prepared.encoded_image(0))


@pytest.mark.parametrize("format_", ["arrayrecord", "tars"])
def test_a_killed_run_is_continued_to_the_same_bytes(tmp_path, format_):
    spec = {"kind": "shapes", "split": "train", "size": 400}
    options = [f"--data={json.dumps(spec)}", "--shard_size=20", f"--format={format_}"]
    options += ["--resize=16", "--processes=1"]
    killed, whole = tmp_path / "killed", tmp_path / "whole"
    run = subprocess.Popen(
        [sys.executable, "-m", "blip2_jax.cli.prepare", *options, f"--out={killed}"],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    try:
        deadline = time.monotonic() + 60
        while not list(killed.glob("data-00002-*.report.json")):
            assert time.monotonic() < deadline and run.poll() is None
            time.sleep(0.002)
        run.send_signal(signal.SIGKILL)
    finally:
        run.kill()
        run.wait()
    done = len(list(killed.glob("*.report.json")))
    assert 3 <= done < 20 and not (killed / "manifest.json").exists()
    times = {path.name: path.stat().st_mtime_ns for path in killed.glob("data-*")}
    for output in (killed, whole):
        arguments = ["prepare", *options, f"--out={output}"]
        assert console.main([*arguments, "--debug"]) == 0
    visible = lambda files: {n: d for n, d in files.items() if not n.startswith(".")}
    assert visible(bytes_of(killed)) == bytes_of(whole)
    kept = [name for name in times if name.endswith(".report.json")]
    assert all((killed / name).stat().st_mtime_ns == times[name] for name in kept)


def test_parts_and_processes_write_the_same_bytes(tmp_path, capsys):
    spec = tars_spec(tmp_path)
    for name, options in (
        ("whole", [[]]),
        ("parts", [["--shard=1/2"], ["--shard=0/2", "--processes=2"]]),
    ):
        for part in options:
            arguments = ["prepare", f"--data={json.dumps(spec)}", "--shard_size=6"]
            arguments += [f"--out={tmp_path / name}", *part]
            assert console.main(arguments) == 0
            if part == ["--shard=1/2"]:
                assert not (tmp_path / name / "manifest.json").exists()
                assert "the other parts are not finished" in capsys.readouterr().out
    assert bytes_of(tmp_path / "parts") == bytes_of(tmp_path / "whole")
    summary = "20 images (0 resized), 40 captions, 4 files"
    assert summary in capsys.readouterr().out


def test_other_settings_and_other_data_are_refused(tmp_path, damaged):
    prepare(damaged, tmp_path / "out")
    with pytest.raises(OtherSettings, match="resize is 20, was 0"):
        prepare(damaged, tmp_path / "out", resize=20)
    rows = pathlib.Path(damaged["path"])
    rows.write_text(rows.read_text().replace("a thing", "another"))
    with pytest.raises(OtherSettings, match="texts and their order"):
        prepare(damaged, tmp_path / "out")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ([], "--data is missing"),
        (["--data=[{}, {}]"], "--data names 2 sources"),
        (["--data=[{}]", "--quality=0"], "quality must be in 1 .. 100, not 0"),
        (["--data=[{}]", "--max_aspect=0.5"], "max_aspect must be 0 or at least 1"),
        (["--data=[{}]", "--resize=-1"], "resize must not be negative"),
        (["--data=[{}]", "--shard_size=0"], "shard_size must be at least 1"),
    ],
)
def test_wrong_options(tmp_path, capsys, options, message):
    assert console.main(["prepare", f"--out={tmp_path / 'out'}", *options]) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_sources_that_cannot_be_written(tmp_path):
    shapes = {"kind": "shapes", "split": "train", "size": 4}
    for spec, message in (
        ({**shapes, "images": False}, "has no images to write"),
        (
            {"kind": "per_question", "of": {**shapes, "texts": "questions"}},
            "records of .* share images",
        ),
    ):
        with pytest.raises(ValueError, match=message):
            prepare(spec, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_threads_and_copies_read_the_same(tmp_path):
    prepare(tars_spec(tmp_path), tmp_path / "out", shard_size=7)
    source = prepared_source(tmp_path / "out")
    expected = [(source.record(n), source.encoded_image(n)) for n in range(20)]
    copy = pickle.loads(pickle.dumps(source))

    def read(number):
        index = number * 7 % 20
        return (copy.record(index), copy.encoded_image(index)) == expected[index]

    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        assert all(pool.map(read, range(400)))


def test_damaged_files_are_named(tmp_path):
    spec = {"kind": "shapes", "split": "train", "size": 4}
    prepare(spec, tmp_path / "out")
    (path,) = (tmp_path / "out").glob("*.arrayrecord")
    prepared = {"kind": "array_record", "paths": str(path)}
    data = path.read_bytes()
    for broken in (data[: len(data) // 2], b"", b"x" * 5000):
        path.write_bytes(broken)
        with pytest.raises(ValueError, match=f"{path.name} is not a whole ArrayRecord"):
            build_source(prepared)
    first = data.index(b"IHDR")
    path.write_bytes(data[:first] + b"\0" * 4 + data[first + 4 :])
    source = build_source(prepared)
    with pytest.raises(BrokenSample, match=rf"unreadable record: {path.name} record 1"):
        source.record(0)
    assert source.record(1).captions
    write_records(path, [b"", b"\xff" * 9])
    message = f"{path.name} holds no records of .*prepare.*: the record has 0 bytes"
    with pytest.raises(ValueError, match=message):
        build_source(prepared)
