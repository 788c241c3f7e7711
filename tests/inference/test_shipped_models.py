"""The trained models of the package describe pictures that they were not trained on."""

import numpy as np
import pytest

import blip2_jax
from blip2_jax.convert.files.checkpoint_files import SourceError
from blip2_jax.data.shapes.captions import parse_caption
from blip2_jax.evaluation import shapes_exam
from blip2_jax.inference.example_images import FIRST_SCENE, example_scene

EXAM = shapes_exam.make_exam("heldout", 32, start=FIRST_SCENE)


def test_captions_and_answers():
    model = blip2_jax.load("shapes")
    assert model.origin == "shapes (shipped)"
    assert shapes_exam.caption_exam(model, EXAM).attributes > 0.6
    assert shapes_exam.answer_exam(model, EXAM).accuracy > 0.75


def test_example_pictures_are_scenes_of_the_world():
    model = blip2_jax.load("shapes")
    captions = model.caption([f"shapes:{number}" for number in range(8)])
    right = [
        parse_caption(caption).names(example_scene(number))
        for number, caption in enumerate(captions)
    ]
    assert np.mean(right) > 0.5


def test_stage1_matches_and_ranks():
    model = blip2_jax.load("shapes_stage1")
    scores = model.match(EXAM.images, EXAM.captions, pairs="all")
    best = scores.itc.argmax(axis=1)
    assert (best == np.arange(len(EXAM.images))).mean() > 0.8


def test_files_come_before_names(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "shapes").mkdir()
    with pytest.raises(SourceError):
        blip2_jax.load("shapes")
    with pytest.raises(FileNotFoundError, match="models of the package are shapes, "):
        blip2_jax.load("shape")
    with pytest.raises(SourceError, match="--vision does not apply"):
        blip2_jax.load("shapes_stage1", vision="a.pth")
