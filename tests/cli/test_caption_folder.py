"""`blip2-jax caption --images`: files about many images."""

import csv
import json
import os
import signal
import subprocess
import sys
import tarfile
import time

import pytest

import blip2_jax
from blip2_jax.cli.caption import main
from blip2_jax.cli.options import QUANTIZATIONS
from blip2_jax.data.sources.tars import TarsSource
from blip2_jax.nn.quantized import SCHEMES
from tests.support.processes import ROOT

COUNT = 10
SHORT = ("--num_beams", "1", "--max_new_tokens", "8", "--batch_size", "4")


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    """Pictures in two folders, and three files that are none."""
    folder = tmp_path_factory.mktemp("photos")
    (folder / "more").mkdir()
    for index in range(COUNT):
        name = f"more/{index}.png" if index % 2 else f"{index}.bmp"
        blip2_jax.example_image(index).save(folder / name)
    (folder / "3.jpg").write_bytes((folder / "more/1.png").read_bytes()[:500])
    (folder / "empty.jpg").touch()
    (folder / "more/2.gif").write_text("no picture")
    return folder


@pytest.fixture(scope="module")
def expected(photos):
    """The captions of the readable pictures, by name, in order."""
    names = [f"{index}.bmp" for index in range(0, COUNT, 2)]
    names += [f"more/{index}.png" for index in range(1, COUNT, 2)]
    model = blip2_jax.load("shapes", batch_size=4)
    paths = [str(photos / name) for name in names]
    captions = model.caption(paths, num_beams=1, max_new_tokens=8)
    return dict(zip(names, captions, strict=True))


def caption(photos, output, *options):
    arguments = ["--model", "shapes", "--images", str(photos), "--out", str(output)]
    return main([*arguments, *SHORT, *map(str, options)])


def json_rows(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_a_folder_becomes_json_lines_and_unreadable_files_are_listed(
    photos, expected, tmp_path, capsys
):
    output = tmp_path / "captions.jsonl"
    assert caption(photos, output, "--shard_size", 5) == 0
    rows = [{"image": name, "caption": text} for name, text in expected.items()]
    assert json_rows(output) == rows
    captured = capsys.readouterr()
    assert captured.out == f"{output}: 10 of 13 images\n"
    assert "1 empty image file" in captured.err
    broken = json_rows(tmp_path / "captions.jsonl.broken.jsonl")
    assert [(entry["image"], entry["reason"]) for entry in broken] == [
        ("3.jpg", "truncated image"),
        ("empty.jpg", "empty image file"),
        ("more/2.gif", "not an image"),
    ]
    assert sorted(os.listdir(tmp_path)) == [
        "captions.jsonl",
        "captions.jsonl.broken.jsonl",
        "captions.jsonl.report.json",
    ]
    before = output.stat()
    assert caption(photos, output) == 0  # finished: nothing is done
    assert output.stat() == before
    assert caption(photos, output, "--prompt", "a") == 1
    assert "other settings" in capsys.readouterr().err


def test_every_quantization_can_be_chosen():
    """The command repeats the names, because importing them takes seconds."""
    assert set(QUANTIZATIONS) == set(SCHEMES)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--model", "shapez"], "no file or folder 'shapez'"),
        (["--images", "{photos}/none"], "none"),
        (["--out", "{out}.xml"], ".xml selects no format"),
    ],
)
def test_a_mistake_leaves_nothing(photos, tmp_path, capsys, options, message):
    output = tmp_path / "captions.jsonl"
    places = {"photos": photos, "out": tmp_path / "captions"}
    changed = [option.format(**places) for option in options]
    assert caption(photos, output, *changed) != 0
    assert message in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_text_files_beside_pictures_and_tars(photos, expected, tmp_path, capsys):
    folder, texts, tars = tmp_path / "in", tmp_path / "texts", tmp_path / "tars"
    folder.mkdir()
    names = [*expected][:4]
    for name in names:
        (folder / name).write_bytes((photos / name).read_bytes())
    pattern = folder / "*.bmp"
    assert caption(pattern, texts, "--shard_size", 3) == 0
    assert {path.name: path.read_text() for path in texts.iterdir()} == {
        f"{name[:-4]}.txt": f"{expected[name]}\n" for name in names
    }
    assert caption(folder, tars, "--format", "tars", "--shard_size", 3) == 0
    source = TarsSource(str(tars / "*.tar"), str(tmp_path / "index"))
    assert [source.record(index).captions for index in range(len(source))] == [
        (expected[name],) for name in names
    ]
    with tarfile.open(tars / "000000.tar") as tar:
        member = tar.extractfile("000000001.json")
        assert json.load(member)["image"] == names[1]
    again = tmp_path / "again.csv"
    assert caption(tars / "*.tar", again) == 0
    with again.open(newline="") as file:
        rows = list(csv.reader(file))
    assert rows[0] == ["image", "caption"]
    assert [text for _, text in rows[1:]] == [expected[name] for name in names]
    capsys.readouterr()
    (folder / "0.txt").write_text("a caption of the user")
    assert caption(folder, folder) == 1
    assert "would replace it" in capsys.readouterr().err
    assert (folder / "0.txt").read_text() == "a caption of the user"


def test_questions_and_scores(photos, tmp_path):
    pattern, questions = photos / "[02].bmp", ["how many things?", 'is it "red"?']
    output = tmp_path / "answers.csv"
    assert caption(pattern, output, "--question", *questions) == 0
    model = blip2_jax.load("shapes", batch_size=4)
    images = [str(photos / "0.bmp"), str(photos / "2.bmp")]
    with output.open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [(row["image"], row["question"]) for row in rows] == [
        (name, question) for name in ("0.bmp", "2.bmp") for question in questions
    ]
    assert [row["answer"] for row in rows] == model.answer(
        images,
        questions * 2,
        image_of=[0, 0, 1, 1],
        num_beams=1,
        max_new_tokens=8,
    )
    output, texts = tmp_path / "scores.jsonl", ["a red circle", "a star"]
    arguments = ["--model", "shapes_stage1", "--images", str(pattern)]
    arguments += ["--out", str(output), "--batch_size", "4", "--text", *texts]
    assert main(arguments) == 0
    scores = blip2_jax.load("shapes_stage1").match(images, texts, pairs="all")
    rows = json_rows(output)
    assert [row["text"] for row in rows] == texts * 2
    for name in ("itc", "itm"):
        values = getattr(scores, name).ravel()
        assert [row[name] for row in rows] == pytest.approx(values, abs=2e-4)


@pytest.mark.slow
def test_a_killed_job_gives_the_same_bytes(photos, tmp_path):
    """Also with other batches and processes, and with samples."""
    undisturbed, killed = tmp_path / "whole.jsonl", tmp_path / "killed.jsonl"
    options = ("--sample", "--top_p", "0.9", "--shard_size", "3")
    assert caption(photos, undisturbed, *options) == 0
    command = [sys.executable, "-m", "blip2_jax.cli.main", "caption"]
    command += ["--model", "shapes", "--images", str(photos), "--out", str(killed)]
    process = subprocess.Popen(
        [*command, *SHORT, *options],
        stderr=subprocess.DEVNULL,
        start_new_session=True,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
    )
    parts = tmp_path / "killed.jsonl.parts"
    end = time.monotonic() + 120
    while not list(parts.glob("*.jsonl.report.json")):
        assert process.poll() is None and time.monotonic() < end
        time.sleep(0.01)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    assert not killed.exists()
    assert caption(photos, killed, *options, "--batch_size", 2, "--shard", "0/2") == 0
    assert not killed.exists()
    assert caption(photos, killed, *options, "--processes", 2) == 0
    assert killed.read_bytes() == undisturbed.read_bytes()
    broken = ".jsonl.broken.jsonl"
    assert (tmp_path / f"killed{broken}").read_bytes() == (
        tmp_path / f"whole{broken}"
    ).read_bytes()
    assert not parts.exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--out", ""), "--out is missing"),
        (("--out", "a.csv", "--together"), "--together is for --image"),
        (("--out", "out", "--question", "why?"), "txt holds captions"),
        (("--out", "a.csv", "--shard", "2/2"), "0 to 1"),
        (("--out", "a.csv", "--processes", "0"), "at least 1"),
        (("--out", "a.csv", "--images", "x.tar", "--format", "txt"), "are tars"),
    ],
)
def test_wrong_options(options, message, tmp_path, capsys):
    arguments = ["--model", "shapes", "--images", str(tmp_path), *options]
    assert main(arguments) == 2
    assert message in capsys.readouterr().err
