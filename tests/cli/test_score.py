"""`blip2-jax score` and `blip2-jax rank`: tables and JSON lines."""

import json

import numpy as np
import pytest

import blip2_jax
from blip2_jax.cli import rank, score

QUESTION = "what color is the circle?"
COLORS = ["red", "green", "blue"]


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    """Three pictures and a file that is none."""
    folder = tmp_path_factory.mktemp("photos")
    for index in range(3):
        blip2_jax.example_image(index).save(folder / f"{index}.png")
    (folder / "bad.png").write_text("no picture")
    return folder


def json_rows(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_scores_are_those_of_the_model(photos, tmp_path, capsys):
    names, texts = [f"{index}.png" for index in range(3)], ["a red circle", "two stars"]
    (tmp_path / "texts.txt").write_text("a red circle\n\n two stars\r\n")
    options = ["--model=shapes_stage1", f"--images={photos}", "--batch_size=2"]
    options += [f"--text_file={tmp_path / 'texts.txt'}", "--prompt=a picture of"]
    assert score.main([*options, f"--out={tmp_path / 'out.jsonl'}"]) == 0
    captured = capsys.readouterr()
    assert captured.out == f"{tmp_path / 'out.jsonl'}: 6 rows\n"
    assert "left out: " in captured.err and "bad.png" in captured.err
    expected = blip2_jax.load("shapes_stage1", batch_size=2).score(
        [str(photos / image) for image in names],
        texts * 3,
        "a picture of",
        image_of=[0, 0, 1, 1, 2, 2],
    )
    rows = json_rows(tmp_path / "out.jsonl")
    pairs = [(image, text) for image in names for text in texts]
    assert [(row["image"], row["text"]) for row in rows] == pairs
    for key, values in (
        ("log_prob", expected.log_probs),
        ("mean_log_prob", expected.mean_log_probs),
        ("tokens", expected.lengths),
    ):
        np.testing.assert_allclose([row[key] for row in rows], values, atol=1e-4)


def test_a_ranking_is_printed_as_a_table(capsys):
    options = ["--model=shapes", "--image", "shapes:0", "shapes:1", "--length_penalty"]
    options += ["1", f"--question={QUESTION}", "--top=2", "--text", *COLORS]
    assert rank.main(options) == 0
    header, *lines = capsys.readouterr().out.splitlines()
    assert header.split() == ["rank", "score", "image", "text"]
    expected = blip2_jax.load("shapes").rank(
        ["shapes:0", "shapes:1"], COLORS, questions=QUESTION, length_penalty=1
    )
    assert [line.split() for line in lines] == [
        [str(place), f"{ranked.score:.4f}", f"shapes:{index}", ranked.text]
        for index, ranking in enumerate(expected)
        for place, ranked in enumerate(ranking[:2], 1)
    ]
    assert {line.index("shapes:") for line in lines} == {header.index("image")}


def test_a_ranking_is_written_as_json_lines(photos, tmp_path, capsys):
    out = tmp_path / "out.jsonl"
    options = ["--model=shapes_stage1", "--images", str(photos / "1.png")]
    assert rank.main([*options, f"--out={out}", "--text", *COLORS]) == 0
    (ranking,) = blip2_jax.load("shapes_stage1").rank(str(photos / "1.png"), COLORS)
    rows = [(row["rank"], row["text"], row["candidate"]) for row in json_rows(out)]
    assert rows == [(place, r.text, r.candidate) for place, r in enumerate(ranking, 1)]
    assert capsys.readouterr().out == f"{out}: 3 rows\n"


def test_without_a_readable_image_nothing_is_written(tmp_path, capsys):
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "bad.png").write_text("no picture")
    options = ["--model=shapes_stage1", f"--images={tmp_path / 'in'}", "--text=a"]
    assert score.main([*options, f"--out={tmp_path / 'out.jsonl'}"]) == 1
    assert score.main(options) == 1
    assert "bad.png" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["in"]
