"""One malformed row never ends a run: it is a broken sample with file and row."""

import itertools
import json
import os
import socket

import pytest

from blip2_jax.data.broken_samples import TooManyBrokenSamples
from blip2_jax.data.evaluation_data import EvaluationSet
from blip2_jax.data.pipeline import training_batches
from blip2_jax.data.sources.base import BrokenSample, Record, Source
from blip2_jax.data.sources.reading import read_pixels, read_record, readable_records
from blip2_jax.data.sources.registry import build_source
from tests.support.generated_data import bert_directory, encoded, picture, write_tar

GOOD = {"image": "0.jpg", "caption": "a red thing"}
MALFORMED = {
    "caption null": {"image": "0.jpg", "caption": None},
    "caption [null]": {"image": "0.jpg", "caption": [None]},
    "caption 5": {"image": "0.jpg", "caption": 5},
    "caption [5]": {"image": "0.jpg", "caption": ["a thing", 5]},
    "caption object": {"image": "0.jpg", "caption": {"raw": "a thing"}},
    "half a surrogate pair": {"image": "0.jpg", "caption": "\ud83d red"},
    "image null": {"image": None, "caption": "a thing"},
    "image missing": {"caption": "a thing"},
    "image 5": {"image": 5, "caption": "a thing"},
    "image with NUL": {"image": "a\0.jpg", "caption": "a thing"},
    "image empty": {"image": "", "caption": "a thing"},
    "image list": {"image": ["0.jpg"], "caption": "a thing"},
    "id of no type": {"image": "0.jpg", "caption": "a thing", "image_id": [1]},
    "question null": {"image": "0.jpg", "question": None, "answer": "x"},
    "answer 5": {"image": "0.jpg", "question": "what?", "answer": 5},
    "answers [null]": {"image": "0.jpg", "question": "what?", "answer": [None]},
    "null": None,
    "number": 5,
    "list": ["0.jpg", "a thing"],
}


@pytest.fixture
def photos(tmp_path):
    folder = tmp_path / "photos"
    folder.mkdir()
    for number in range(20):
        (folder / f"{number}.jpg").write_bytes(encoded(picture(number), "JPEG"))
    return folder


def annotations(path, content, photos):
    text = "\n".join(content) if path.suffix == ".jsonl" else json.dumps(content)
    path.write_text(text)
    return {"kind": "annotations", "path": str(path), "images": str(photos)}


def broken_of(source):
    """Return the broken samples of a source by index."""
    broken = {}
    for index in range(len(source)):
        try:
            read_record(source, index)
        except BrokenSample as error:
            broken[index] = error
    return broken


@pytest.mark.parametrize("row", MALFORMED.values(), ids=MALFORMED)
def test_a_malformed_row_is_a_broken_sample(tmp_path, photos, row):
    rows = [GOOD, row, {"image": "1.jpg", "caption": ["one", "two"]}]
    lines = list(map(json.dumps, rows))
    for spec, place in (
        (annotations(tmp_path / "a.json", rows, photos), "a.json row 2"),
        (annotations(tmp_path / "a.jsonl", lines, photos), "a.jsonl line 2"),
    ):
        source = build_source(spec)
        (error,) = broken_of(source).values()
        assert error.cause == "malformed row" and error.key.endswith(place)
        assert error.detail
        assert len(source) == 3 and len(source.keys()) == 3
        texts = [source.record(index).captions for index in (0, 2)]
        assert texts == [("a red thing",), ("one", "two")]


def test_a_line_that_is_not_json_is_a_broken_sample(tmp_path, photos):
    lines = [json.dumps(GOOD), '{"image": "1.jpg", "capt', json.dumps(GOOD)]
    source = build_source(annotations(tmp_path / "a.jsonl", lines, photos))
    ((index, error),) = broken_of(source).items()
    assert index == 1 and error.place.endswith("line 2 (the line is not valid JSON: "
        "Unterminated string starting at: line 1 column 20 (char 19))")  # fmt: skip
    assert source.record(0).captions == ("a red thing",) * 2


def test_karpathy_and_coco_rows(tmp_path, photos):
    sentences = [{"raw": "a thing"}]
    image = {"filename": "0.jpg", "split": "train", "sentences": sentences}
    bad = [
        {**image, "sentences": None},
        {**image, "sentences": [{"raw": 5}]},
        {**image, "filename": None},
        {"filename": "0.jpg", "sentences": sentences},
        None,
    ]
    content = {"images": [image, *bad, {**image, "split": "val"}]}
    spec = annotations(tmp_path / "k.json", content, photos) | {"splits": ["train"]}
    source = build_source(spec)
    assert sorted(broken_of(source)) == [1, 2, 3, 4, 5] and len(source) == 6

    good = {"image_id": 5, "caption": "a thing"}
    bad = [
        {"image_id": 99, "caption": "absent"},
        {"image_id": "5", "caption": "another type"},
        {"image_id": 5, "bbox": [0, 0, 1, 1]},
        {"image_id": [5], "caption": "x"},
    ]
    images = [{"id": 5, "file_name": "0.jpg"}, {"id": 6}]
    content = {"images": images, "annotations": [good, *bad]}
    source = build_source(annotations(tmp_path / "c.json", content, photos))
    broken = broken_of(source)
    assert source.record(0).captions == ("a thing",)
    assert [error.key.rsplit("/", 1)[1] for error in broken.values()] == [
        "c.json image 2",
        *(f"c.json annotation {number}" for number in range(2, 6)),
    ]
    assert broken[2].detail == "no image has the id 99"


@pytest.mark.parametrize(
    "annotation, reason",
    [
        ({"image_id": 99, "caption": "y"}, "no image has the id 99"),
        ({"image_id": "5", "caption": "x"}, "no image has the id '5'"),
        ({"image_id": 5, "bbox": [0, 0, 1, 1]}, "no key 'caption'"),
    ],
)
def test_a_file_without_a_usable_row_is_an_error(tmp_path, photos, annotation, reason):
    images = [{"id": 5, "file_name": "0.jpg"}]
    content = {"images": images, "annotations": [annotation] * 2}
    spec = annotations(tmp_path / "a.json", content, photos)
    with pytest.raises(ValueError, match=rf"a\.json has none of .*{reason}"):
        build_source(spec)


def test_vqa_rows(tmp_path, photos):
    question = {"question_id": 1, "image_id": 0, "question": "what?"}
    questions = [question, {**question, "question": None}, {"question_id": 2}, None]
    questions += [{**question, "image_id": None}, {**question, "question_id": 3}]
    answers = [{"question_id": 1, "answers": [{"answer": "a"}]}]
    answers += [{"question_id": 3, "answers": [{"answer": None}]}, None]
    answers += [{"question_id": 77, "answers": [{"answer": "b"}]}]
    (tmp_path / "q.json").write_text(json.dumps({"questions": questions}))
    (tmp_path / "a.json").write_text(json.dumps({"annotations": answers}))
    spec = {
        "kind": "vqa",
        "questions": str(tmp_path / "q.json"),
        "annotations": str(tmp_path / "a.json"),
        "images": str(photos),
        "image_name": "{}.jpg",
    }
    source = build_source(spec)
    assert [q.answers for q in source.record(0).questions] == [("a",), ()]
    assert sorted(broken_of(source)) == [1, 2, 3, 4]
    assert source.left_out == {"answers to unknown questions": 1}
    each = build_source({"kind": "per_question", "of": spec})
    assert len(each) == 6 and len(broken_of(each)) == 4
    for row in answers[:2]:
        row["question_id"] = str(row["question_id"])
    (tmp_path / "a.json").write_text(json.dumps({"annotations": answers[:2]}))
    with pytest.raises(ValueError, match=r"a\.json answers none .* is '1', .* 1"):
        build_source(spec)


@pytest.mark.parametrize("workers", [0, 1])
def test_a_run_goes_on_past_malformed_rows(tmp_path, photos, workers):
    """Rows of all kinds of defects are replaced and counted, up to the limit."""
    rows = [{"image": f"{n}.jpg", "caption": f"a red thing {n}"} for n in range(20)]
    bad = list(MALFORMED.values())
    options = {
        "train": [annotations(tmp_path / "a.json", rows + bad, photos)],
        "image": {"size": 16},
        "tokenizer": {"qformer": bert_directory(tmp_path / "bert")},
        "max_text_length": 8,
        "max_broken_share": 1.0,
        "workers": workers,
    }
    stream = training_batches(options, "image_text", seed=0, batch_size=13)
    batches = list(itertools.islice(stream, 3))
    stream.close()
    keys = {key for batch in batches for key in batch["_key"]}
    assert keys <= {f"{n}.jpg" for n in range(20)}
    assert stream.broken_stats.counts["malformed row"] >= len(bad)
    assert "a.json row " in str(stream.broken_stats)
    if not workers:
        stream = training_batches(
            {**options, "max_broken_share": 0.01}, "image_text", seed=0, batch_size=13
        )
        with pytest.raises(
            TooManyBrokenSamples, match=r"malformed row \(.*a\.json row"
        ):
            list(itertools.islice(stream, 3))
        stream.close()


def test_members_of_tars_are_checked(tmp_path):
    members = {}
    contents = [b'{"caption": [null]}', b'{"captions": 5}', b'{"caption": "\\ud83d"}']
    contents += [b'{"caption": "x", "image_id": [1]}', b"[[]]", b"5", b"\xff{}"]
    for number, content in enumerate([*contents, b'{"caption": "fine"}']):
        members[f"{number}.jpg"] = encoded(picture(number), "JPEG")
        members[f"{number}.json"] = content
    write_tar(tmp_path / "x.tar", members)
    index = str(tmp_path / "index")
    spec = {"kind": "tars", "paths": str(tmp_path / "x.tar"), "index_directory": index}
    source = build_source(spec)
    assert sorted(broken_of(source)) == list(range(len(contents)))
    assert source.record(len(contents)).captions == ("fine",)


class FailingSource(Source):
    """A source that fails with exceptions nobody expects."""

    ERRORS = (KeyError("x"), TypeError("y"), ZeroDivisionError(), MemoryError())

    def __len__(self):
        return len(self.ERRORS) + 2

    def record(self, index):
        if index < len(self.ERRORS):
            raise self.ERRORS[index]
        return Record("key", index, (None,) if index == len(self.ERRORS) else ("a",))

    def load_image(self, index, at_least=0):
        raise AssertionError("nobody expects this")


def test_any_exception_of_a_source_is_a_broken_sample():
    source = FailingSource()
    assert sorted(broken_of(source)) == list(range(5))
    assert source.keys() == ["", "", "", "", "key", "key"]
    with pytest.raises(BrokenSample, match=r"unreadable image: key \(AssertionError"):
        read_pixels(source, 5, "key")


def test_broken_records_are_counted_where_others_are_collected(caplog):
    with caplog.at_level("WARNING"):
        (record,) = readable_records(FailingSource())
    assert record.captions == ("a",)
    assert "source: broken and left out: 5 unreadable record (source" in caplog.text


def test_what_is_no_regular_file_is_a_broken_sample(tmp_path, photos):
    """Neither a pipe without a writer nor an endless device is read."""
    os.mkfifo(photos / "pipe.jpg")
    (photos / "device.jpg").symlink_to("/dev/zero")
    (photos / "folder.jpg").mkdir()
    (photos / "loop.jpg").symlink_to("loop.jpg")
    (photos / "nothing.jpg").symlink_to("nowhere.jpg")
    names = ["pipe", "device", "folder", "loop", "nothing", "socket"]
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(photos / "socket.jpg"))
        rows = [{"image": f"{name}.jpg", "caption": "x"} for name in names]
        rows.append({"image": "0.jpg/inside", "caption": "x"})
        spec = annotations(tmp_path / "a.json", rows, photos)
        data = EvaluationSet([spec], 16, max_broken_share=1.0)
        assert [data.image(index) for index in range(7)] == [None] * 7
    assert data.broken_stats.counts == {
        "image is no regular file": 4,
        "missing image": 2,
        "unreadable image": 1,
    }
