"""Digests of models and data, and ids of examples."""

import dataclasses

import jax.numpy as jnp
import numpy as np

from blip2_jax.data.sources.base import Question, Record
from blip2_jax.evaluation.examples import dataset_id
from blip2_jax.evaluation.record import params_digest, records_digest

RECORD = Record("a.jpg", 3, ("a cat",), (Question("what?", ("cat",), 7, "other"),), 42)


def test_the_digest_of_a_model_is_that_of_its_values_and_types():
    params = {"a": {"x": jnp.arange(4.0)}, "b": jnp.ones((2, 2), jnp.bfloat16)}
    expected = params_digest(params)
    reordered = {
        "b": np.asarray(params["b"]),
        "a": {"x": np.arange(4, dtype=np.float32)},
    }
    assert params_digest(reordered) == expected and len(expected) == 64
    for other in (
        params | {"b": jnp.ones((2, 2))},
        params | {"b": jnp.ones((4, 1), jnp.bfloat16)},
        {"a": {"y": params["a"]["x"]}, "b": params["b"]},
        params | {"a": {"x": jnp.arange(4.0).at[2].add(1e-6)}},
    ):
        assert params_digest(other) != expected


def test_the_digest_of_data_is_that_of_its_texts():
    expected = records_digest([RECORD])
    assert records_digest([dataclasses.replace(RECORD, image_id=9)]) == expected
    changed = dataclasses.replace(RECORD.questions[0], answers=("dog",))
    for other in (
        dataclasses.replace(RECORD, captions=("a dog",)),
        dataclasses.replace(RECORD, questions=(changed,)),
        dataclasses.replace(RECORD, part="near-domain"),
    ):
        assert records_digest([other]) != expected


def test_ids_are_those_of_the_data_set():
    named = dataclasses.replace(RECORD, key="val2014/COCO_val2014_000000000042.jpg")
    records = [
        RECORD,
        dataclasses.replace(named, original_id=None),
        dataclasses.replace(RECORD, original_id=None),
    ]
    assert [dataset_id(record) for record in records] == [42, 42, 3]
