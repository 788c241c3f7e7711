"""The stage-2 model equals the original; parameter names and shapes at full size."""

import functools
import json
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from blip2_jax.convert.tables import lavis, name_table
from blip2_jax.convert.tables.lavis import stage2_rules
from blip2_jax.models.blip2 import init_params
from blip2_jax.models.blip2_stage2 import Blip2Stage2
from blip2_jax.models.language.input_sequence import (
    queries_in_text,
    queries_then_text,
)
from blip2_jax.models.presets import PRESETS, RELEASED, Blip2Config, preset
from blip2_jax.models.sizes import FeaturesConfig
from blip2_jax.nn import trees
from tests.support import golden_stage2 as golden
from tests.support.goldens import GOLDENS
from tests.support.tolerances import assert_values

STAGE2 = [name for name in RELEASED if PRESETS[name].language_model]


def intermediates(model, batch):
    """Compute the intermediates that the goldens record, and all logits."""
    image = model.encode_image(batch["image"])
    query_output = model.encode_queries(image)
    queries = model.project(query_output)
    language = model.language_model
    out = {
        "image_embeds": model.ln_vision(image).applied(),
        "query_output": query_output,
        "proj": queries,
    }
    decoder_only = "text_ids" in batch
    prompt = "text" if decoder_only else "input"
    inputs, mask = queries_then_text(
        queries, language.embed(batch[f"{prompt}_ids"]), batch[f"{prompt}_mask"]
    )
    out |= {"inputs_embeds": inputs, "attention_mask": mask}
    if decoder_only:
        return out | {"logits": language.logits(language.hidden(inputs, mask))}
    logits, _, _ = language.training_logits(queries, batch)
    encoded = language.encode(inputs, mask)
    return out | {"encoder_last_hidden": encoded, "logits": logits}


@functools.partial(jax.jit, static_argnums=0)
def apply_intermediates(model, params, batch):
    return intermediates(model.bind({"params": params}), batch)


@pytest.mark.parametrize(("name", "case_name"), golden.CASES)
def test_intermediates(name, case_name):
    case = golden.load_case(name, case_name)
    out = apply_intermediates(
        golden.model(name), golden.params(name), golden.batch_of(case)
    )
    for key, value in out.items():
        assert_values(value, case[key], key)


@functools.cache
def shapes(model):
    return jax.eval_shape(lambda key: init_params(model, key), jax.random.key(0))


@pytest.mark.parametrize("name", STAGE2)
def test_full_size_keys_and_shapes(name):
    config = preset(name)
    tree = shapes(Blip2Stage2(config))
    source = jax.eval_shape(
        lambda tree: name_table.to_source(tree, stage2_rules(config)), tree
    )
    keys = json.loads((GOLDENS / f"keys_{name}.json").read_text())
    ours = {key: list(array.shape) for key, array in source.items()}
    assert ours == {k: v for k, v in keys.items() if k != lavis.POSITION_IDS}


@pytest.mark.parametrize("name", STAGE2)
def test_full_size_parameter_counts(name):
    summary = json.loads((GOLDENS / "keys_summary.json").read_text())[name]
    tree = trees.flatten(shapes(Blip2Stage2(preset(name))))
    count = {path: math.prod(array.shape) for path, array in tree.items()}
    assert sum(count.values()) == summary["params"]
    towers = ("language_model/",)
    if summary["trainable"] < 5e8:  # the image tower is frozen too
        towers = (*towers, "visual_encoder/")
    trainable = sum(n for path, n in count.items() if not path.startswith(towers))
    assert trainable == summary["trainable"]


def test_no_text_branch_without_questions():
    config = golden.config("stage2_opt_a")
    paths = trees.flatten(shapes(Blip2Stage2(config)))
    assert not [path for path in paths if "text_mlp" in path or "word" in path]
    paths = trees.flatten(shapes(Blip2Stage2(config, question_in_qformer=True)))
    assert "qformer/embeddings/word" in paths
    assert "qformer/layer_0/text_mlp/up/kernel" in paths


def tiny(**kwargs):
    language_model = golden.config("stage2_t5_a").language_model
    qformer = golden.config("stage2_t5_a").qformer
    config = Blip2Config(FeaturesConfig(5, 24), qformer, language_model)
    model = Blip2Stage2(config, **kwargs)
    return model, init_params(model, jax.random.key(0))


def test_question_reaches_the_queries():
    model, params = tiny(question_in_qformer=True)
    bound = model.bind({"params": params})
    encode = lambda ids, mask: bound.encode_queries(jnp.ones((2, 5, 24)), ids, mask)
    ids, mask = jnp.arange(6).reshape(2, 3), jnp.ones((2, 3), bool)
    out = encode(ids, mask)
    assert out.shape == (2, model.config.qformer.num_queries, 32)
    assert np.abs(out - encode(ids + 1, mask)).max() > 1e-4
    padded = mask.at[:, 2].set(False)
    np.testing.assert_allclose(
        encode(ids, padded), encode(ids.at[:, 2].set(9), padded), atol=1e-6
    )


def test_question_must_fit_the_model():
    model, params = tiny()
    ids, mask = jnp.ones((1, 3), jnp.int32), jnp.ones((1, 3), bool)
    with pytest.raises(ValueError, match="question_in_qformer is False"):
        model.bind({"params": params}).encode_queries(jnp.ones((1, 5, 24)), ids, mask)


def test_needs_a_language_model():
    model = Blip2Stage2(preset("pretrain"))
    with pytest.raises(ValueError, match=r"needs config\.language_model"):
        shapes(model)


def test_queries_stand_behind_the_given_number_of_columns():
    text, mask = np.arange(10.0).reshape(2, 5, 1), np.ones((2, 5), bool)
    mask[0, :2] = False
    queries = -1 - np.arange(4.0).reshape(2, 2, 1)
    inputs, seen = queries_in_text(queries, text, mask, jnp.array([3, 0]))
    assert inputs[..., 0].tolist() == [[0, 1, 2, -1, -2, 3, 4], [-3, -4, *range(5, 10)]]
    assert seen.tolist() == [[False] * 2 + [True] * 5, [True] * 7]
