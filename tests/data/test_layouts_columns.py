"""Columns, questions and splits are found by usual names, or given by name."""

import csv
import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from blip2_jax.data.sources.base import Question
from blip2_jax.data.sources.columns import find_columns
from blip2_jax.data.sources.layouts import detect_layout
from blip2_jax.data.sources.registry import build_source
from blip2_jax.data.sources.split_names import split_of
from tests.support.layouts import NAMES, image_structs, write_images


def write_csv(path, header, rows):
    with path.open("w", newline="") as file:
        csv.writer(file).writerows([header, *rows])
    return path


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (["image", "caption"], ("image", ("caption",))),
        (["Image Path", "Text"], ("Image Path", ("Text",))),
        (["img-path", "SENTENCES", "x"], ("img-path", ("SENTENCES",))),
        (["text", "filename", "image_id"], ("filename", ("text",))),
        (["image", "caption_0", "caption_1"], ("image", ("caption_0", "caption_1"))),
        (["filepath", "title"], ("filepath", ("title",))),
    ],
)
def test_usual_names_are_found(names, expected):
    columns = find_columns(names, None, "table")
    assert (columns.image, columns.caption) == expected


def test_given_names_come_first():
    given = {"image": "Datei", "caption": ["de", "en"]}
    names = ["Datei", "de", "en", "image", "caption"]
    columns = find_columns(names, given, "table")
    assert (columns.image, columns.caption) == ("Datei", ("de", "en"))
    assert find_columns(names, columns.as_options(), "table") == columns
    with pytest.raises(ValueError, match="table has no column 'fr'; it has 'Datei'"):
        find_columns(names, {"caption": "fr"}, "table")
    with pytest.raises(ValueError, match="columns of table has no key 'text'"):
        find_columns(names, {"text": "de"}, "table")
    with pytest.raises(
        ValueError, match=r"t has no column of images: it has 'a', 'caption'; looked"
    ):
        find_columns(["a", "caption"], None, "t")
    with pytest.raises(ValueError, match="t has no column of captions: it has 'image'"):
        find_columns(["image"], None, "t")


def test_the_index_column_of_pandas_is_no_field(tmp_path):
    write_images(tmp_path)
    rows = [(n, name, f"text {n}", "") for n, name in enumerate(NAMES)]
    path = write_csv(tmp_path / "a.csv", ("", "filename", "caption", "image_id"), rows)
    layout = detect_layout(path)
    assert (layout.captions, layout.questions) == (5, 0)
    record = build_source(layout.spec).record(1)
    assert (record.captions, record.questions) == (("text 1",), ())
    assert (record.original_id, record.part) == (None, "")


QUESTIONS = [
    (0, "what is it?", ["a thing", "thing"]),
    (0, "which colour?", ["red"]),
    (1, "how many?", ["one"]),
]


def write_question_csv(folder):
    rows = [
        (NAMES[n], 10 + k, text, json.dumps(answers))
        for k, (n, text, answers) in enumerate(QUESTIONS)
    ]
    header = ("image", "question_id", "question", "answers")
    return write_csv(folder / "vqa.csv", header, rows)


def write_question_lines(folder):
    lines = [
        json.dumps(
            {
                "img": NAMES[n],
                "qid": 10 + k,
                "question": text,
                "answers": [{"answer": answer, "answer_id": 1} for answer in answers],
            }
        )
        for k, (n, text, answers) in enumerate(QUESTIONS)
    ]
    (folder / "vqa.jsonl").write_text("\n".join(lines))
    return folder / "vqa.jsonl"


def write_question_parquet(folder):
    images = image_structs()
    table = {
        "image": [images[n] for n, _, _ in QUESTIONS],
        "image_id": [n for n, _, _ in QUESTIONS],
        "question_id": [10 + k for k in range(3)],
        "question": [text for _, text, _ in QUESTIONS],
        "answers": [[{"answer": a} for a in answers] for _, _, answers in QUESTIONS],
        "multiple_choice_answer": ["x"] * 3,
    }
    pq.write_table(pa.table(table), folder / "vqa.parquet")
    return folder / "vqa.parquet"


@pytest.mark.parametrize(
    "write", [write_question_csv, write_question_lines, write_question_parquet]
)
def test_questions_are_read_in_every_kind_of_table(tmp_path, write):
    write_images(tmp_path)
    layout = detect_layout(write(tmp_path))
    assert (layout.records, layout.captions, layout.questions) == (2, 0, 3)
    source = build_source(layout.spec)
    first, second = source.record(0).questions
    id_type = type(first.question_id)  # a CSV file has no numbers
    expected = [
        Question(text, tuple(answers), id_type(10 + k))
        for k, (_, text, answers) in enumerate(QUESTIONS)
    ]
    assert [first, second, *source.record(1).questions] == expected
    assert source.load_image(1).shape == (30, 40, 3)


def test_a_column_of_splits_selects_rows(tmp_path):
    write_images(tmp_path)
    splits = ["train", "restval", "val", "test", "train"]
    rows = [(name, "x", split) for name, split in zip(NAMES, splits, strict=True)]
    table = write_csv(tmp_path / "all.csv", ("image", "caption", "split"), rows)
    pq.write_table(
        pa.table({"image": image_structs(), "caption": ["x"] * 5, "split": splits}),
        tmp_path / "all.parquet",
    )
    for path in (table, tmp_path / "all.parquet"):
        training = detect_layout(path, default_split="train")
        assert training.spec["splits"] == ["train", "restval"]
        assert training.records == 3 and "splits: train, restval" in str(training)
        assert detect_layout(path, split="restval").records == 1
        validation = detect_layout(path, split="validation")
        assert validation.spec["splits"] == ["val"]
        with pytest.raises(
            ValueError, match="splits restval, test, train, val; choose"
        ):
            detect_layout(path)
        with pytest.raises(ValueError, match="val, not 'other'"):
            detect_layout(path, split="other")


def test_names_of_files_and_folders_select_a_split(tmp_path):
    write_images(tmp_path / "images")
    for split, count in (("train", 3), ("val", 2)):
        rows = [(name, "x") for name in NAMES[:count]]
        write_csv(tmp_path / f"{split}.csv", ("image", "caption"), rows)
    assert detect_layout(tmp_path, default_split="train").records == 3
    assert detect_layout(tmp_path, split="validation").records == 2
    with pytest.raises(ValueError, match="holds the splits train, validation; choose"):
        detect_layout(tmp_path)
    with pytest.raises(ValueError, match=r"train\.csv has no splits.* 'test'"):
        detect_layout(tmp_path / "train.csv", split="test")
    nested = tmp_path / "nested"
    for split in ("train", "test"):
        write_images(nested / split)
        write_csv(nested / split / "metadata.csv", ("file_name", "text"), rows)
    assert detect_layout(nested, split="test").spec["path"] == str(nested / "test")


def test_splits_of_names():
    names = ["captions_train2017.json", "val.csv", "train-00000-of-00002.parquet"]
    assert [split_of(name) for name in names] == ["train", "validation", "train"]
    assert split_of("captions.txt") == split_of("train_and_test.csv") == ""
    assert split_of("contest.csv") == split_of("trainer.json") == ""
