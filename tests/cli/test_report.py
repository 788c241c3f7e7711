"""`blip2-jax report` on records and their examples."""

import json

import numpy as np
import pytest
from PIL import Image

from blip2_jax.cli.report import main
from blip2_jax.evaluation.examples import write_examples

WORDS = ("what color is it?", "how many dogs?", "what color are they?")


def picture(folder, name, shade):
    Image.fromarray(np.full((20, 30, 3), shade, np.uint8)).save(folder / name)


@pytest.fixture
def folder(tmp_path):
    """Four images with captions and questions, as a source of annotations."""
    rows = [
        {"image": f"{n}.png", "caption": [f"caption {n}"], "question": "what color?"}
        for n in range(4)
    ]
    for number in range(4):
        picture(tmp_path, f"{number}.png", 60 * number)
    (tmp_path / "all.json").write_text(json.dumps(rows))
    return tmp_path


def write(folder, name, task, examples, scores, *, data="d" * 64, paper=None):
    spec = {"kind": "annotations", "path": str(folder / "all.json")}
    record = {
        "task": task,
        "title": name,
        "scores": scores,
        "notice": "",
        "broken": {},
        "intervals": {key: [value - 1, value + 1] for key, value in scores.items()},
        "digests": {"model": "m" * 64, "data": data},
        "device": "1 cpu",
        "processes": 1,
        "seconds": 2.5,
        "date": "2026-01-01",
        "settings": {"data": [spec | {"images": str(folder)}], "paper": paper or {}},
    }
    (folder / f"{name}.json").write_text(json.dumps(record))
    write_examples(folder / f"{name}.examples.jsonl", examples)
    return str(folder / f"{name}.json")


def questions(right):
    return [
        {
            "unit": "question",
            "id": number,
            "key": f"{number % 4}.png",
            "question": WORDS[number % 3],
            "said": "<red>" if number in right else "no",
            "references": ["<red>"] * 9 + ["pink"],
            "scores": {"vqa_accuracy": 100.0 * (number in right)},
        }
        for number in range(12)
    ]


def report(folder, *records, more=()):
    assert main([*records, "--out", str(folder / "out" / "r"), *more]) == 0
    out = folder / "out"
    return (out / "r.md").read_text(), (out / "r.html").read_text()


def test_answers_of_two_models_side_by_side(folder, capsys):
    left = write(
        folder,
        "left",
        "vqa",
        questions(range(4)),
        {"vqa_accuracy": 33.33},
        paper={"vqa_accuracy": 54.3},
    )
    right = write(folder, "right", "vqa", questions(range(8)), {"vqa_accuracy": 66.67})
    text, page = report(folder, left, right, more=("--count", "2"))
    assert text in capsys.readouterr().out
    row = "| vqa_accuracy | 33.33 [32.33, 34.33] | 66.67 [65.67, 67.67] | 54.3 |"
    assert row in text
    assert "| vqa_accuracy | +33.33 [" in text  # right minus left, paired by example
    assert "| what color | 8 | 37.5 | 62.5 |" in text
    assert "| how many | 4 | 25.0 | 75.0 |" in text
    assert page.count("<div class=card>") == 4  # two best, two worst
    assert page.count("data:image/jpeg;base64,") == 4
    assert "&lt;red&gt; (9)" in page and "<red>" not in page
    assert "pink</li>" in page


def test_equal_names_differ_and_other_data_is_not_compared(folder):
    first = write(folder, "a", "vqa", questions(()), {"vqa_accuracy": 0.0})
    scores = {"vqa_accuracy": 0.0}
    other = write(folder, "b", "vqa", questions(()), scores, data="e" * 9)
    text, _ = report(folder, first, other, first)
    assert text.count("## vqa: 12 questions") == 2
    assert f"a ({first})" in text
    fewer = write(folder, "c", "vqa", questions(())[:5], {"vqa_accuracy": 0.0})
    text, _ = report(folder, first, fewer)
    assert "No paired differences: vqa_accuracy was measured on 12 and on 5" in text


def test_retrieval_results_are_shown(folder):
    image = {
        "unit": "image",
        "id": 0,
        "key": "0.png",
        "ranks": {"itc": 3, "itm": 0},
        "found": [{"text": "mine", "right": True}, {"text": "not", "right": False}],
    }
    text = {
        "unit": "text",
        "id": 0,
        "owner": 0,
        "said": "mine",
        "ranks": {"itm": 1},
        "found": [{"key": "3.png", "right": False}, {"key": "0.png", "right": True}],
    }
    texts = [text | {"ranks": {"itc": 9, "itm": n}, "id": n} for n in range(2)]
    examples = [image, image | {"id": 1}, *texts]
    _, page = report(folder, write(folder, "s", "retrieval", examples, {}))
    assert "<li class=right>mine</li>" in page and "<li class=wrong>not</li>" in page
    assert page.count("<figure class=right>") == page.count("<figure class=wrong>") == 2
    assert "itc 4, itm 1" in page


def test_a_report_without_images(folder, capsys):
    record = write(folder, "left", "vqa", questions(range(4)), {"vqa_accuracy": 33.3})
    (folder / "all.json").unlink()
    _, page = report(folder, record)
    assert "no images of vqa: 12 questions" in capsys.readouterr().out
    assert "<img" not in page and "0.png" in page


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "no file"),
        ("{", "is not valid JSON"),
        ("[]", "is no record"),
        (
            '{"title": "t", "scores": {}, "digests": {}}',
            "it lacks task, notice, broken",
        ),
    ],
)
def test_a_file_that_is_no_record(folder, content, message, capsys):
    path = folder / "x.json"
    if content is not None:
        path.write_text(content)
        path.with_suffix(".examples.jsonl").write_text("")
    assert main([str(path), "--out", str(folder / "out")]) == 1
    error = capsys.readouterr().err
    assert error.startswith("error: ") and message in error
    assert error.count("\n") == 1
