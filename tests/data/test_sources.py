"""Sources read all documented layouts; errors name the defect."""

import json
import pickle

import numpy as np
import pytest

from blip2_jax.data.sources import registry
from blip2_jax.data.sources.base import BrokenSample, ImageKind
from blip2_jax.data.sources.registry import build_source
from tests.support.generated_data import (
    captions,
    encoded,
    picture,
    tar_members,
    tars_spec,
    write_tar,
)


@pytest.fixture
def photos(tmp_path):
    folder = tmp_path / "photos"
    (folder / "val2014").mkdir(parents=True)
    for number in range(3):
        path = folder / "val2014" / f"{number}.jpg"
        path.write_bytes(encoded(picture(number), "JPEG"))
    return folder


def annotations(tmp_path, content, photos, **options):
    path = tmp_path / "annotations.json"
    path.write_text(json.dumps(content))
    return build_source(
        {"kind": "annotations", "path": str(path), "images": str(photos), **options}
    )


def test_lavis_rows_of_one_image_are_one_record(tmp_path, photos):
    rows = [
        {"image": "val2014/0.jpg", "caption": "first", "image_id": "coco_0"},
        {"image": "val2014/1.jpg", "caption": ["one", "two"], "image_id": "coco_1"},
        {"image": "val2014/0.jpg", "caption": "second", "image_id": "coco_0"},
    ]
    source = annotations(tmp_path, rows, photos)
    assert len(source) == source.num_images == 2
    record = source.record(0)
    assert record.captions == ("first", "second")
    assert (record.key, record.image_id, record.original_id) == (
        "val2014/0.jpg",
        0,
        "coco_0",
    )
    assert source.record(1).captions == ("one", "two")
    assert source.load_image(1).shape == (30, 40, 3)


def test_lavis_questions_and_json_lines(tmp_path, photos):
    rows = [
        {
            "image": "val2014/0.jpg",
            "question": "what?",
            "answer": ["a", "b"],
            "question_id": 7,
        },
        {"image": "val2014/0.jpg", "caption": "told"},
    ]
    path = tmp_path / "rows.jsonl"
    path.write_text("\n".join(json.dumps(row) for row in rows) + "\n")
    source = build_source(
        {"kind": "annotations", "path": str(path), "images": str(photos)}
    )
    question = source.record(0).questions[0]
    assert (question.text, question.answers, question.question_id) == (
        "what?",
        ("a", "b"),
        7,
    )
    assert source.record(0).captions == ("told",)


def test_karpathy_splits(tmp_path, photos):
    images = [
        {
            "filepath": "val2014",
            "filename": f"{n}.jpg",
            "split": split,
            "cocoid": n,
            "sentences": [{"raw": text} for text in captions(n)],
        }
        for n, split in enumerate(["train", "restval", "val"])
    ]
    source = annotations(
        tmp_path, {"images": images}, photos, splits=["train", "restval"]
    )
    assert [source.record(i).original_id for i in range(len(source))] == [0, 1]
    assert source.record(1).captions == tuple(captions(1))
    assert source.load_image(1).shape == (30, 40, 3)


def test_coco_captions(tmp_path, photos):
    content = {
        "images": [{"id": 5, "file_name": "val2014/0.jpg"}],
        "annotations": [{"image_id": 5, "caption": text} for text in ("x", "y")],
    }
    source = annotations(tmp_path, content, photos)
    assert source.record(0).captions == ("x", "y")
    assert source.record(0).original_id == 5


def test_foreign_absolute_paths_are_remapped(tmp_path, photos):
    rows = [{"image": "/export/home/vg/0.jpg", "caption": "x"}]
    source = annotations(tmp_path, rows, photos, remap={"/export/home/vg/": "val2014/"})
    assert source.load_image(0).shape == (30, 40, 3)
    with pytest.raises(BrokenSample) as caught:
        annotations(tmp_path, rows, photos).load_image(0)
    assert caught.value.cause == "missing image"
    assert caught.value.key == "/export/home/vg/0.jpg"


def test_unknown_layouts_and_missing_files_are_named(tmp_path, photos):
    with pytest.raises(ValueError, match=r"annotations\.json has none of the known"):
        annotations(tmp_path, [{"picture": "x"}], photos)
    with pytest.raises(ValueError, match="none of the known"):
        annotations(tmp_path, {"data": []}, photos)
    with pytest.raises(FileNotFoundError, match="nowhere"):
        annotations(tmp_path, [], tmp_path / "nowhere")
    with pytest.raises(ValueError, match="none of the known"):
        annotations(tmp_path, 5, photos)
    (tmp_path / "broken.json").write_text("[{")
    with pytest.raises(ValueError, match="is not valid JSON"):
        build_source(
            {
                "kind": "annotations",
                "path": str(tmp_path / "broken.json"),
                "images": str(photos),
            }
        )


def test_tars_are_indexed_once(tmp_path):
    spec = tars_spec(tmp_path)
    source = build_source(spec)
    assert len(source) == 20
    record = source.record(12)
    assert record.key == "00001/00002" and record.captions == tuple(captions(12))
    assert (record.image_id, record.original_id) == (12, 1012)
    assert source.keys()[12] == record.key
    expected = build_source(spec).load_image(12)
    np.testing.assert_array_equal(source.load_image(12), expected)
    indices = sorted((tmp_path / "index").glob("*/index-*/*"))
    assert len(indices) == 3
    times = [path.stat().st_mtime_ns for path in indices]
    build_source(spec)
    assert [path.stat().st_mtime_ns for path in indices] == times
    write_tar(tmp_path / "00001.tar", tar_members(range(3)))  # the file has changed
    assert len(build_source(spec)) == 13
    copy = pickle.loads(pickle.dumps(source))
    assert copy.record(3) == source.record(3)


def test_tars_with_other_members(tmp_path):
    image = encoded(picture(1))
    write_tar(
        tmp_path / "x.tar",
        {
            "./a/0.png": image,
            "./a/0.txt": b"in a folder",
            "1.webp": encoded(picture(2), "WEBP"),
            "1.json": b'{"caption": "one"}',
            "2.PNG": image,
            "2.json": b'["kept", "two"]',
            "3.png": image,
            "3.json": b"{",
            "4.png": image,
            "5.txt": b"text alone",
            "readme.md": b"",
        },
    )
    source = build_source(
        {
            "kind": "tars",
            "paths": str(tmp_path / "x.tar"),
            "index_directory": str(tmp_path),
        }
    )
    assert source.keys() == [f"x/{k}" for k in ("a/0", "1", "2", "3", "4", "5")]
    texts = [source.record(i).captions for i in (0, 1, 2, 4, 5)]
    assert texts == [("in a folder",), ("one",), ("kept", "two"), (), ("text alone",)]
    with pytest.raises(BrokenSample, match="broken json: x/3"):
        source.record(3)
    with pytest.raises(BrokenSample, match="missing image: x/5"):
        source.load_image(5)
    assert source.load_image(1).shape == (30, 40, 3)


def test_tar_errors_are_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="no tar matches"):
        build_source({"kind": "tars", "paths": str(tmp_path / "*.tar")})
    (tmp_path / "x.tar").write_bytes(b"no tar at all" * 100)
    with pytest.raises(ValueError, match="is not a readable tar"):
        build_source(
            {
                "kind": "tars",
                "paths": str(tmp_path / "x.tar"),
                "index_directory": str(tmp_path),
            }
        )


def write_features(directory, keys, shape=(4, 8)):
    directory.mkdir()
    array = np.random.default_rng(0).normal(size=(len(keys), *shape))
    np.save(directory / "features.npy", array.astype(np.float16))
    (directory / "keys.json").write_text(json.dumps(keys))
    return array.astype(np.float16)


def test_features_are_joined_with_texts_by_key(tmp_path):
    texts = tars_spec(tmp_path)
    keys = ["00001/00003", "00000/00001", "99999/00000"]
    array = write_features(tmp_path / "features", keys)
    source = build_source(
        {"kind": "features", "path": str(tmp_path / "features"), "texts": texts}
    )
    assert source.image_kind is ImageKind.FEATURES and len(source) == 3
    assert source.record(0).captions == tuple(captions(13))
    assert source.record(1).image_id == 1 and source.num_images == 20
    assert source.left_out == {"records without features": 18}
    with pytest.raises(BrokenSample, match="no text for features: 99999/00000"):
        source.record(2)
    np.testing.assert_array_equal(source.load_features(1), array[1])
    copy = pickle.loads(pickle.dumps(source))
    assert copy.load_features(0).dtype == np.float16


def test_feature_errors_are_named(tmp_path):
    texts = tars_spec(tmp_path)
    write_features(tmp_path / "features", ["a/b"])
    spec = {"kind": "features", "path": str(tmp_path / "features")}
    with pytest.raises(ValueError, match=r"no key of .*'a/b'.*'00000/00000'"):
        build_source({**spec, "texts": texts})
    assert build_source(spec).record(0).captions == ()
    (tmp_path / "features" / "keys.json").write_text("[]")
    with pytest.raises(ValueError, match="0 keys for 1 features"):
        build_source(spec)
    with pytest.raises(FileNotFoundError, match=r"features\.npy"):
        build_source({**spec, "path": str(tmp_path)})


def test_vqa_files(tmp_path, photos):
    questions = [
        {"question_id": q, "image_id": q % 2, "question": f"what {q}?"}
        for q in range(4)
    ]
    answers = [
        {
            "question_id": q,
            "image_id": q % 2,
            "multiple_choice_answer": "both",
            "answers": [{"answer": "a"}, {"answer": "b"}],
        }
        for q in range(4)
    ]
    (tmp_path / "q.json").write_text(json.dumps({"questions": questions}))
    (tmp_path / "a.json").write_text(json.dumps({"annotations": answers}))
    spec = {
        "kind": "vqa",
        "questions": str(tmp_path / "q.json"),
        "images": str(photos),
        "annotations": str(tmp_path / "a.json"),
        "image_name": "val2014/{}.jpg",
    }
    source = build_source(spec)
    assert len(source) == 2
    assert [q.text for q in source.record(1).questions] == ["what 1?", "what 3?"]
    assert source.record(1).questions[0].answers == ("a", "b")
    assert source.load_image(1).shape == (30, 40, 3)
    each = build_source({"kind": "per_question", "of": spec})
    assert [len(each), each.num_images] == [4, 2]
    records = [each.record(row) for row in range(4)]
    assert [r.questions[0].text for r in records] == [
        "what 0?",
        "what 2?",
        "what 1?",
        "what 3?",
    ]
    assert [r.image_id for r in records] == [0, 0, 1, 1]
    np.testing.assert_array_equal(each.load_image(2), source.load_image(1))
    agreed = build_source({**spec, "answer": "multiple_choice_answer"})
    assert agreed.record(0).questions[0].answers == ("both",)
    in_tars = {"images": tars_spec(tmp_path), "image_name": "00000/{:05d}"}
    assert build_source({**spec, **in_tars}).load_image(1).shape == (30, 40, 3)


def vqa_spec(folder, images, ids, **options):
    """Write a VQA data set with one question per image."""
    questions = [{"question_id": i, "image_id": i, "question": f"{i}?"} for i in ids]
    (folder / "q.json").write_text(json.dumps({"questions": questions}))
    return {
        "kind": "vqa",
        "questions": str(folder / "q.json"),
        "images": images,
        **options,
    }


def test_a_tenth_of_a_vqa_set_is_held_out_in_blocks(tmp_path, photos):
    """Parts depend on ids, not on the order of the file, and are disjoint."""
    ids = [*range(25, 50), *range(25)]
    spec = vqa_spec(tmp_path, str(photos), ids, image_name="{}", block=2)
    tenth, rest = (build_source({**spec, "part": part}) for part in ("tenth", "rest"))
    held_out = [0, 1, 20, 21, 40, 41]
    assert sorted(map(int, tenth.keys())) == held_out
    expected = [number for number in ids if number not in held_out]
    assert list(map(int, rest.keys())) == expected
    assert [rest.record(n).image_id for n in range(44)] == list(range(44))
    assert len(build_source(spec)) == 50
    with pytest.raises(
        ValueError, match=r"part must be all, tenth or rest .* not 'half' and 2"
    ):
        build_source({**spec, "part": "half"})


def test_wrong_images_are_shuffled_or_blank(tmp_path):
    np.save(tmp_path / "features.npy", np.arange(1, 31.0).reshape(5, 2, 3))
    (tmp_path / "keys.json").write_text(json.dumps([*"01234"]))
    images = {"kind": "features", "path": str(tmp_path)}
    right = vqa_spec(tmp_path, images, range(5), image_name="{}")
    source = build_source(right)
    wrong = {"kind": "wrong_images", "of": right}
    blank, shuffled = (
        build_source({**wrong, "pictures": kind}) for kind in ("blank", "shuffled")
    )
    for index in range(5):
        assert blank.record(index) == shuffled.record(index) == source.record(index)
        other = source.load_features((index + 2) % 5)
        np.testing.assert_array_equal(shuffled.load_features(index), other)
        assert blank.load_features(index).shape == (2, 3)
        assert not blank.load_features(index).any()
    assert shuffled.keys() == source.keys() and shuffled.num_images == 5
    each = build_source({"kind": "per_question", "of": {**wrong, "pictures": "blank"}})
    assert not each.load_features(4).any() and len(each) == 5
    with pytest.raises(ValueError, match="blank or shuffled, not 'right'"):
        build_source({**wrong, "pictures": "right"})


def test_wrong_images_of_pixels(tmp_path):
    spec = tars_spec(tmp_path, count=4)
    shuffled = build_source({"kind": "wrong_images", "of": spec})
    right = build_source(spec)
    np.testing.assert_array_equal(shuffled.load_image(3), right.load_image(1))


def test_registry_errors_are_named():
    with pytest.raises(ValueError, match="unknown source kind 'tar'; there are anno"):
        build_source({"kind": "tar"})
    with pytest.raises(ValueError, match="no key 'path'; its keys are paths, index"):
        build_source({"kind": "tars", "path": "x"})
    with pytest.raises(ValueError, match="needs the key 'paths'"):
        build_source({"kind": "tars"})


def test_former_kinds_are_aliases():
    questions = {"kind": "shapes", "split": "train", "size": 8, "texts": "questions"}
    for former, kind in registry.ALIASES.items():
        old, new = ({"kind": name, "of": questions} for name in (former, kind))
        assert build_source(old).fingerprint() == build_source(new).fingerprint()
