"""Digests, server files, lemmas, progress: what stands around the scores."""

import dataclasses
import importlib.util

import jax.numpy as jnp
import numpy as np
import pytest

from blip2_jax.data.sources.base import Question, Record
from blip2_jax.evaluation import results
from blip2_jax.evaluation.record import digest_of_parameters, digest_of_records
from blip2_jax.metrics import lemmas
from blip2_jax.parallel import progress

RECORD = Record("a.jpg", 3, ("a cat",), (Question("what?", ("cat",), 7, "other"),), 42)


def test_the_digest_of_a_model_is_that_of_its_values_and_types():
    params = {"a": {"x": jnp.arange(4.0)}, "b": jnp.ones((2, 2), jnp.bfloat16)}
    found = digest_of_parameters(params)
    turned = {"b": np.asarray(params["b"]), "a": {"x": np.arange(4, dtype=np.float32)}}
    assert digest_of_parameters(turned) == found and len(found) == 64
    for other in (
        params | {"b": jnp.ones((2, 2))},
        params | {"b": jnp.ones((4, 1), jnp.bfloat16)},
        {"a": {"y": params["a"]["x"]}, "b": params["b"]},
        params | {"a": {"x": jnp.arange(4.0).at[2].add(1e-6)}},
    ):
        assert digest_of_parameters(other) != found


def test_the_digest_of_data_is_that_of_its_texts():
    found = digest_of_records([RECORD])
    assert digest_of_records([dataclasses.replace(RECORD, image_id=9)]) == found
    changed = dataclasses.replace(RECORD.questions[0], answers=("dog",))
    for other in (
        dataclasses.replace(RECORD, captions=("a dog",)),
        dataclasses.replace(RECORD, questions=(changed,)),
        dataclasses.replace(RECORD, part="near-domain"),
    ):
        assert digest_of_records([other]) != found


def test_files_for_the_servers():
    named = dataclasses.replace(RECORD, key="val2014/COCO_val2014_000000000042.jpg")
    told = [
        RECORD,
        dataclasses.replace(named, original_id=None),
        dataclasses.replace(RECORD, original_id=None),
    ]
    captions = results.caption_results((record, "a cat") for record in told)
    assert [each["image_id"] for each in captions] == [42, 42, 3]
    assert results.answer_results([(7, "cat")], "vqa") == [
        {"question_id": 7, "answer": "cat"}
    ]
    assert results.answer_results([("07", "cat")], "gqa") == [
        {"questionId": "07", "prediction": "cat"}
    ]
    with pytest.raises(ValueError, match="'coco': there are vqa, gqa"):
        results.answer_results([], "coco")


def test_without_spacy_it_says_what_to_install(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert "spacy is not installed (`pip install spacy`" in lemmas.lacking()


@pytest.mark.skipif(bool(lemmas.lacking()), reason="spaCy or its model is missing")
def test_nouns_and_verbs_become_lemmas():
    class Writer:
        def answer(self, images=None, questions=(), **settings):
            return ["dogs", "running"]

    assert lemmas.Lemmatised(Writer()).answer() == ["dog", "run"]


def test_a_log_gets_a_line_now_and_then(capsys):
    assert list(progress.track_progress(range(3), "re-ranking", quiet_s=0)) == [0, 1, 2]
    said = capsys.readouterr().err.splitlines()
    assert [line.split(",")[0] for line in said] == [
        "re-ranking: 1 of 3",
        "re-ranking: 2 of 3",
    ]
    list(progress.track_progress(range(3), "re-ranking"))
    assert capsys.readouterr().err == ""
