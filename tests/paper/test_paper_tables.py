"""Every row of the paper's tables 2 to 6 builds, and reads the benchmarks' layouts."""

import importlib
import json

import numpy as np
import pytest
from PIL import Image

from blip2_jax.data.evaluation_data import EvaluationSet
from blip2_jax.evaluation.eval_config import (
    TASKS,
    default_evaluation,
    keys_that_are_set,
)
from blip2_jax.generation.decoding_config import ANSWER_DEFAULTS
from blip2_jax.paper import paper_tables

PEOPLE = [{"answer": "red", "answer_id": 1}] * 10
VQA_FILES = (
    "vqav2/v2_{}_mscoco_val2014_{}.json",
    "vqav2/v2_{}_mscoco_test-dev2015_{}.json",
    "vqav2/v2_{}_mscoco_test2015_{}.json",
    "okvqa/{}_mscoco_val2014_{}.json",
)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """One image of each benchmark, in its own layout."""
    root = tmp_path_factory.mktemp("data")

    def write(name, content):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(json.dumps(content))

    def picture(name):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.full((9, 9, 3), 200, np.uint8)).save(root / name)

    question = {"image_id": 42, "question": "What color?", "question_id": 420}
    answer = {"question_id": 420, "answer_type": "other", "answers": PEOPLE}
    for name in VQA_FILES:
        write(name.format("OpenEnded", "questions"), {"questions": [question]})
        answers = name.format("x", "annotations").replace("x_", "")
        write(answers, {"annotations": [answer]})
    gqa = {"imageId": "n42", "question": "Is it red?", "answer": "yes"}
    gqa["types"] = {"structural": "verify"}
    write("gqa/testdev_balanced_questions.json", {"20": gqa})
    nocaps = {"id": 42, "file_name": "a.jpg", "domain": "near-domain"}
    write(
        "nocaps/nocaps_val_4500_captions.json",
        {"images": [nocaps], "annotations": [{"image_id": 42, "caption": "red"}] * 10},
    )
    coco = "val2014/COCO_val2014_000000000042.jpg"
    write("annotations/coco_karpathy_test.json", [{"image": coco, "caption": ["red"]}])
    write("annotations/flickr30k_test.json", [{"image": "a.jpg", "caption": ["red"]}])
    for name in (
        f"coco/images/{coco}",
        "coco/images/test2015/COCO_test2015_000000000042.jpg",
        "gqa/images/n42.jpg",
        "nocaps/images/a.jpg",
        "flickr30k/images/a.jpg",
    ):
        picture(name)
    return root


@pytest.mark.parametrize(("table", "row"), paper_tables.all_rows())
def test_each_row_builds_and_reads_its_benchmark(table, row, data):
    build = importlib.import_module(f"blip2_jax.configs.eval.{table}").get_config
    config = build(f"{row},data={data},weights=W")
    assert set(config) == set(default_evaluation()) and config.is_locked
    assert config.task in TASKS and config.title and config.paper
    assert config.model.startswith(("W/blip2_", "runs/"))
    ANSWER_DEFAULTS.replace(**keys_that_are_set(config.decoding))  # known settings
    data_set = EvaluationSet(config.data, 9)
    (record,) = data_set.records
    assert data_set.image(0) is not None and not data_set.broken_images
    if config.task == "vqa":
        (question,) = record.questions
        assert (question.answers == ()) == ("test" in row)
        if row.startswith("gqa"):
            assert (question.kind, question.question_id) == ("verify", "20")
        assert config.decoding.num_beams == 5 and config.decoding.length_penalty == -1
    else:
        assert set(record.captions) == {"red"}
    assert record.part == ("near-domain" if row.startswith("nocaps") else "")


def test_the_paper_asks_each_family_in_its_words():
    build = importlib.import_module("blip2_jax.configs.eval.vqa_zeroshot").get_config
    assert build("gqa,opt2.7b").question_prompt == "Question: {} Answer:"
    assert build("gqa,flant5xl").question_prompt == "Question: {} Short answer:"
    assert build("gqa,flant5xl").result_format == "gqa"
    assert build("okvqa,flant5xxl").paper.to_dict() == {"vqa_accuracy": 45.9}
    assert build("okvqa,flant5xxl").lemmatise and not build("gqa,flant5xl").lemmatise
    captions = importlib.import_module("blip2_jax.configs.eval.captioning").get_config
    paper_says = captions("nocaps,flant5xl").paper
    assert paper_says["cider"] == 121.6 and paper_says["spice_in-domain"] == 16.3


@pytest.mark.parametrize(
    ("row", "message"),
    [
        (
            "vqav2,opt2.7b",
            "no row 'vqav2,opt2.7b' in vqa_zeroshot; there are vqav2_val",
        ),
        ("gqa,opt2.7b,home=/x", "no path home; there are data, weights, runs"),
    ],
)
def test_a_wrong_row_raises_an_error_with_the_known_rows(row, message):
    with pytest.raises(ValueError, match=message):
        paper_tables.parse_row("vqa_zeroshot", row)
