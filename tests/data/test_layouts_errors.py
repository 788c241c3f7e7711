"""Errors say what was looked for; broken rows are counted with their line."""

import contextlib
import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from blip2_jax.data.broken_samples import TooManyBrokenSamples
from blip2_jax.data.pipeline import training_batches
from blip2_jax.data.sources.base import BrokenSample
from blip2_jax.data.sources.layouts import detect_layout
from blip2_jax.data.sources.registry import build_source
from tests.support.generated_data import bert_directory
from tests.support.layouts import (
    IMAGES,
    NAMES,
    image_structs,
    write_csv,
    write_images,
    write_parquet,
    write_saved_dataset,
    write_text_files,
)


def test_nothing_or_several_layouts(tmp_path):
    with pytest.raises(FileNotFoundError, match="nowhere does not exist"):
        detect_layout(tmp_path / "nowhere")
    (tmp_path / "notes.md").write_text("x")
    with pytest.raises(ValueError, match=r"notes\.md is no folder and has none of"):
        detect_layout(tmp_path / "notes.md")
    with pytest.raises(
        ValueError,
        match=r"no known layout; looked for: metadata\.jsonl or metadata\.csv",
    ):
        detect_layout(tmp_path)
    (tmp_path / "config.json").write_text('{"a": 1}')
    with pytest.raises(ValueError, match=r"Not usable: .*config\.json has none of the"):
        detect_layout(tmp_path)
    write_csv(tmp_path)
    detect_layout(tmp_path)
    (tmp_path / "more.json").write_text(json.dumps({NAMES[0]: "x"}))
    with pytest.raises(
        ValueError,
        match=r"layouts: captions\.txt \(CSV\), more\.json \(captions by file\)",
    ):
        detect_layout(tmp_path)


def test_text_beside_images_and_a_table_are_two_layouts(tmp_path):
    write_text_files(tmp_path)
    (tmp_path / "a.jsonl").write_text(json.dumps({"image": NAMES[0], "text": "x"}))
    with pytest.raises(ValueError, match=r"a\.jsonl \(JSON objects\), .*\.txt files"):
        detect_layout(tmp_path)


def test_a_wrong_image_directory_names_the_first_path(tmp_path):
    path = write_csv(tmp_path / "data") / "captions.txt"
    empty = tmp_path / "empty"
    empty.mkdir()
    first = f"the first path tried is '{empty}/0000.png'"
    with pytest.raises(FileNotFoundError, match=first):
        detect_layout(path, images=str(empty))
    (tmp_path / "data" / "Images").rename(tmp_path / "elsewhere")
    first = f"the first path tried is '{tmp_path}/data/0000.png'; name the directory"
    with pytest.raises(FileNotFoundError, match=first):
        detect_layout(path)
    assert detect_layout(path, images=str(tmp_path / "elsewhere")).records == 5
    spec = {"kind": "csv", "path": str(path), "images": str(empty)}
    with pytest.raises(BrokenSample, match=f"missing image: .*{empty}/0000.png"):
        build_source(spec).load_image(0)
    tokenizer = {"qformer": bert_directory(tmp_path / "bert")}
    options = {"train": (spec,), "image": {"size": 28}, "tokenizer": tokenizer}
    with (
        contextlib.closing(
            training_batches(options, "image_text", seed=0, batch_size=2)
        ) as stream,
        pytest.raises(TooManyBrokenSamples, match=rf"missing image \(.*{empty}/000\d"),
    ):
        next(stream)


CSV = """image,caption
0000.png,a red thing
0001.png
0002.png,one,two
,nameless
0003.png,"a ""quoted"", thing"

0004.png,"x" y
"""
LINES = "\n".join(
    [
        '{"image": "0000.png", "caption": "a\u2028b"}',
        '{"image": "0001.png", "caption": 5}',
        '{"image": "0002.png", "caption": ',
        "[1]",
        '{"image": null, "caption": "x"}',
        '{"image": "0003.png", "caption": ["x", null]}',
        '{"image": "0004.png", "caption": null}',
    ]
)


@pytest.mark.parametrize(
    ("name", "content", "lines"),
    [("a.csv", CSV, [3, 4, 5, 8]), ("a.jsonl", LINES, [2, 3, 4, 5, 6])],
)
def test_malformed_rows_are_counted_with_their_line(tmp_path, name, content, lines):
    write_images(tmp_path)
    (tmp_path / name).write_text(content)
    layout = detect_layout(tmp_path / name)
    assert len(layout.broken) == len(lines)
    for problem, line in zip(layout.broken, lines, strict=True):
        assert f"{name} line {line} " in problem, problem
    assert f"{len(lines)} broken (malformed row: " in str(layout)
    tokenizer = {"qformer": bert_directory(tmp_path / "bert")}
    options = {"train": (layout.spec,), "image": {"size": 28}, "tokenizer": tokenizer}
    stream = training_batches(
        {**options, "max_broken_share": 1.0}, "image_text", seed=0, batch_size=8
    )
    next(stream)
    assert stream.broken_stats.counts["malformed row"]
    stream.close()


def test_good_rows_keep_their_values(tmp_path):
    write_images(tmp_path)
    (tmp_path / "a.csv").write_bytes(b"\xef\xbb\xbf" + CSV.encode())  # as Excel writes
    source = build_source(detect_layout(tmp_path / "a.csv").spec)
    records = [source.record(index).captions for index in (0, 4)]
    assert records == [("a red thing",), ('a "quoted", thing',)]
    (tmp_path / "a.jsonl").write_text(LINES, encoding="utf-8")
    source = build_source(detect_layout(tmp_path / "a.jsonl").spec)
    assert source.record(0).captions == ("a\u2028b",)
    assert source.record(6).captions == ()


def test_no_usable_row_and_other_encodings(tmp_path):
    write_images(tmp_path)
    (tmp_path / "a.csv").write_text("image,caption\nx\ny,1,2\n")
    with pytest.raises(ValueError, match=r"no row of .*a\.csv names an image"):
        detect_layout(tmp_path / "a.csv")
    (tmp_path / "b.csv").write_bytes(
        "image,caption\n0000.png,caf\u00e9\n".encode("latin1")
    )
    with pytest.raises(ValueError, match=r"b\.csv is not in UTF-8: line 2, byte"):
        detect_layout(tmp_path / "b.csv")
    (tmp_path / "c.csv").write_text("image,image\n")
    with pytest.raises(ValueError, match=r"header of .*c\.csv"):
        detect_layout(tmp_path / "c.csv")
    (tmp_path / "d.json").write_text('[{"image": "0000.png", ')
    with pytest.raises(ValueError, match=r"d\.json is not valid JSON"):
        detect_layout(tmp_path / "d.json")
    (tmp_path / "e.csv").write_text("0000.png,a cat\n0001.png,a dog\n")
    with pytest.raises(ValueError, match=r"no column of images: it has .0000\.png"):
        detect_layout(tmp_path / "e.csv")
    (tmp_path / "f.csv").write_text("")
    with pytest.raises(
        ValueError, match=r"f\.csv has no column of images: it has none"
    ):
        detect_layout(tmp_path / "f.csv")


def test_equal_names_in_captions_by_file_are_all_kept(tmp_path):
    write_images(tmp_path)
    text = f'{{"{NAMES[0]}": "a", "{NAMES[1]}": ["b"], "{NAMES[0]}": "c"}}'
    (tmp_path / "a.json").write_text(text)
    source = build_source(detect_layout(tmp_path / "a.json").spec)
    assert [source.record(n).captions for n in range(2)] == [("a", "c"), ("b",)]


def test_questions_of_the_vqa_challenge_name_their_kind(tmp_path):
    content = {"questions": [{"question_id": 1, "image_id": 2, "question": "x?"}]}
    (tmp_path / "q.json").write_text(json.dumps(content))
    with pytest.raises(ValueError, match="configure a source of kind 'vqa'"):
        detect_layout(tmp_path / "q.json")


def test_text_files_that_lack_a_partner_are_counted(tmp_path):
    write_text_files(tmp_path)
    (tmp_path / NAMES[1]).with_suffix(".txt").unlink()
    (tmp_path / "readme.txt").write_text("x")
    (tmp_path / NAMES[2]).with_suffix(".txt").write_bytes(b"caf\xe9")
    layout = detect_layout(tmp_path)
    assert layout.left_out == {"text files without an image": 1}
    assert "1 text files without an image left out" in str(layout)
    causes = [problem.partition(":")[0] for problem in layout.broken]
    assert causes == ["missing text file", "unreadable text file"]


def test_damaged_parquet_files_are_named(tmp_path):
    folder = write_parquet(tmp_path / "data") / "data"
    first, second = sorted(folder.iterdir())
    second.write_bytes(second.read_bytes()[:-10])
    with pytest.raises(
        ValueError, match=rf"{second.name} is not a readable Parquet file"
    ):
        detect_layout(folder / "*.parquet")
    pq.write_table(pa.table({"image": image_structs()}), second)
    with pytest.raises(ValueError, match=rf"{second.name} has no column 'caption'"):
        detect_layout(str(folder / "*.parquet"))
    data = bytearray(first.read_bytes())
    position = data.find(IMAGES[1][40:80])  # inside the second image
    data[position - 40 : position + 400] = bytes(440)
    first.write_bytes(data)
    source = build_source({"kind": "parquet", "path": str(first)})
    with pytest.raises(BrokenSample, match=rf"{first.name} row 2"):
        source.load_image(1)


def test_images_that_are_absent_from_a_table(tmp_path):
    images = image_structs()
    images[1] = {"bytes": None, "path": "gone.png"}
    images[2] = {"bytes": None, "path": NAMES[2]}
    images[3] = None
    images[4]["bytes"] = b"no image"
    write_images(tmp_path)
    pq.write_table(
        pa.table({"image": images, "text": list("abcde")}), tmp_path / "x.parquet"
    )
    source = build_source(detect_layout(tmp_path / "x.parquet").spec)
    assert source.load_image(2).shape == (30, 40, 3)
    for index, cause in ((1, "missing image"), (3, "missing image"), (4, "not an im")):
        with pytest.raises(BrokenSample, match=cause):
            source.load_image(index)


def test_damaged_saved_datasets_are_named(tmp_path):
    pytest.importorskip("datasets")
    folder = write_saved_dataset(tmp_path / "data")
    with pytest.raises(ValueError, match="holds the splits test, train; choose"):
        detect_layout(folder)
    assert detect_layout(folder, split="test").records == 1
    train = folder / "train"
    shard = sorted(train.glob("*.arrow"))[1]
    shard.write_bytes(shard.read_bytes()[:100])
    with pytest.raises(ValueError, match=rf"{shard.name} is not a readable Arrow file"):
        detect_layout(train)
    shard.unlink()
    with pytest.raises(FileNotFoundError, match=rf"{shard.name} does not exist"):
        detect_layout(train)
    (train / "state.json").write_text("{}")
    with pytest.raises(ValueError, match=r"state\.json does not list"):
        detect_layout(train)
