"""Real photos and captions, if the test data is available."""

import itertools
import tarfile

import numpy as np
import pytest
from PIL import Image

from blip2_jax.configs import daquar_vqa
from blip2_jax.configs.eval import daquar_vqa as daquar_exam
from blip2_jax.data.evaluation_data import EvaluationSet
from blip2_jax.data.images import evaluation_image, fast_bicubic
from blip2_jax.data.pipeline import training_batches
from blip2_jax.data.sources.registry import build_source


@pytest.fixture
def data(testdata):
    return testdata / "data"


def tars(data, tmp_path, name):
    return {
        "kind": "tars",
        "paths": str(data / name),
        "index_directory": str(tmp_path / "index"),
    }


def test_flickr8k_from_tars(data, tmp_path, testdata):
    spec = tars(data, tmp_path, "flickr8k/val-*.tar")
    source = build_source(spec)
    assert len(source) == 1000
    assert all(len(source.record(index).captions) == 5 for index in range(0, 1000, 50))
    options = {
        "train": [spec],
        "tokenizer": {"qformer": str(testdata / "tokenizers/bert-base-uncased")},
    }
    stream = training_batches(options, "image_text", seed=0, batch_size=16)
    batches = list(itertools.islice(stream, 3))
    stream.close()
    assert batches[0]["image"].shape == (16, 224, 224, 3)
    assert not stream.broken_stats.counts
    assert all((batch["text_ids"][:, 0] == 101).all() for batch in batches)


def test_flickr8k_from_annotations(data, tmp_path):
    with tarfile.open(data / "flickr8k" / "val-00000.tar") as tar:
        for name in ("000000000.jpg", "000000001.jpg"):
            tar.extract(name, tmp_path, filter="data")
    (tmp_path / "000000000.jpg").rename(tmp_path / "1022454332_6af2c1449a.jpg")
    lavis = build_source(
        {
            "kind": "annotations",
            "images": str(tmp_path),
            "path": str(data / "flickr8k" / "lavis_flickr8k_val.json"),
        }
    )
    karpathy = build_source(
        {
            "kind": "annotations",
            "images": str(tmp_path),
            "splits": ["val"],
            "path": str(data / "flickr8k" / "dataset_flickr8k.json"),
        }
    )
    assert len(lavis) == len(karpathy) == 1000
    assert lavis.record(0).captions == karpathy.record(0).captions
    assert lavis.record(0).original_id == karpathy.record(0).original_id == 16
    in_tar = build_source(tars(data, tmp_path, "flickr8k/val-00000.tar")).load_image(0)
    np.testing.assert_array_equal(lavis.load_image(0), in_tar)


def test_coco_evaluation_images_equal_pillow(data, tmp_path):
    spec = tars(data, tmp_path, "coco_mini/val-*.tar")
    evaluation = EvaluationSet([spec], image_size=224, max_examples=8)
    batch = next(evaluation.image_batches(8))
    with tarfile.open(data / "coco_mini" / "val-00000.tar") as tar:
        for row, record in enumerate(evaluation.records):
            file = tar.extractfile(f"{record.key.split('/')[1]}.jpg")
            image = Image.open(file).convert("RGB")
            expected = image.resize((224, 224), Image.Resampling.BICUBIC)
            np.testing.assert_array_equal(batch["image"][row], expected)


def test_opencv_decodes_and_resamples_like_pillow(data, tmp_path):
    """Equal pixels after decoding, nearly equal pixels after resampling."""
    source = build_source(tars(data, tmp_path, "coco_mini/val-*.tar"))
    apart = []
    for index in range(40):
        pixels = source.load_image(index, at_least=224)
        np.testing.assert_array_equal(pixels, source.load_image(index))
        for size in (48, 96, 160, 224):
            exact = evaluation_image(pixels, size).astype(int)
            apart.append(np.abs(fast_bicubic(pixels, size) - exact).mean())
    assert np.mean(apart) < 0.7 and np.max(apart) < 2


def test_daquar_questions(data, tmp_path):
    source = build_source(
        {
            "kind": "vqa",
            "questions": str(
                data / "daquar_vqa" / "OpenEnded_daquar_test_questions.json"
            ),
            "annotations": str(data / "daquar_vqa" / "daquar_test_annotations.json"),
            "images": tars(data, tmp_path, "daquar_vqa/test-*.tar"),
            "image_name": "test-00000/{:09d}",
            "answer": "multiple_choice_answer",
        }
    )
    questions = [q for i in range(len(source)) for q in source.record(i).questions]
    assert len(questions) == 5673 and questions[0].answers == ("garbage bin",)
    assert source.load_image(0).shape[2] == 3


def test_daquar_has_a_validation_part(data):
    """The parts of the training photos and the test photos are disjoint."""
    path = daquar_vqa.parse_paths(f"data={data / 'daquar_vqa'}")
    tenth, rest, test = (
        build_source(daquar_vqa.questions(path, split, part, features=False))
        for split, part in (("train", "tenth"), ("train", "rest"), ("test", "all"))
    )
    tenth_keys, rest_keys = set(tenth.keys()), set(rest.keys())
    assert (len(tenth_keys), len(rest_keys), len(test)) == (80, 714, 653)
    assert not tenth_keys & rest_keys
    counted = [
        sum(len(source.record(index).questions) for index in range(len(source)))
        for source in (tenth, rest, test)
    ]
    assert counted == [746, daquar_vqa.QUESTIONS, 5673]
    joined = "book, scissor, papers, tape dispenser"
    assert any(q.answers == (joined,) for q in tenth.record(0).questions)
    assert tenth.load_image(0).shape[2] == 3


def test_daquar_without_images():
    argument = "blank,data=D,features=F,vqa=runs/x"
    config = daquar_exam.get_config(argument)
    (wrong,) = config.data
    assert (wrong["kind"], wrong["pictures"]) == ("wrong_images", "blank")
    assert config.out == "runs/x/evaluation_vqa_blank.json"
    plain = daquar_exam.get_config("data=D,features=F,vqa=runs/x")
    assert (dict(plain.data[0]), plain.out) == (dict(wrong["of"]), "")
    with pytest.raises(ValueError, match=r"grey= after .* a NAME of data, features"):
        daquar_exam.get_config("grey,vqa=runs/x")
