"""The stage-2 loss against the original: loss, gradients, options."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from blip2_jax.convert.tables import name_table
from blip2_jax.losses.stage2 import Stage2Options, stage2_loss
from blip2_jax.models.blip2 import init_params
from blip2_jax.models.blip2_stage2 import Blip2Stage2
from blip2_jax.models.presets import Blip2Config
from blip2_jax.models.sizes import FeaturesConfig, OPTConfig, QFormerConfig
from tests.support import golden_stage2 as golden
from tests.support.tolerances import assert_gradients, assert_values


@functools.partial(jax.jit, static_argnums=0)
def loss_and_gradients(model, params, batch):
    loss = lambda params: stage2_loss(model, params, batch, None)
    (_, metrics), gradients = jax.value_and_grad(loss, has_aux=True)(params)
    return metrics, gradients


@pytest.mark.parametrize(("name", "case_name"), golden.CASES)
def test_loss_and_gradients(name, case_name):
    case = golden.load_case(name, case_name)
    # The last case runs the other way through the stacks, with rematerialisation.
    other = {"scan": False, "remat": "full"} if "empty" in case_name else {}
    metrics, gradients = loss_and_gradients(
        golden.model(name, **other), golden.params(name), golden.batch_of(case)
    )
    assert_values(metrics["loss"], case["loss"])
    assert metrics["loss_lm"] == metrics["loss"]
    ours = name_table.to_source(jax.device_get(gradients), golden.rules(name))
    expected = golden.load_gradients(name, case_name)
    assert len(expected) > 90
    for key, gradient in expected.items():
        assert_gradients(ours[key], gradient, key)


@functools.cache
def tiny():
    config = Blip2Config(
        FeaturesConfig(3, 8),
        QFormerConfig(16, 2, 2, 16, num_queries=4, vocab_size=20, max_positions=16),
        OPTConfig(12, 2, 2, 16, vocab_size=20, max_positions=32, dropout=0.5),
    )
    model = Blip2Stage2(config)
    return model, jax.jit(lambda key: init_params(model, key))(jax.random.key(0))


def batch():
    ids = jax.random.randint(jax.random.key(1), (4, 5), 3, 20)
    lengths = jnp.array([5, 2, 3, 4])
    mask = jnp.arange(5) < lengths[:, None]
    features = jax.random.normal(jax.random.key(2), (4, 3, 8))
    return {
        "features": features,
        "text_ids": ids,
        "text_mask": mask,
        "target_mask": mask,
    }


DEFAULT = Stage2Options()


def loss(batch, options=DEFAULT, key=None):
    return jitted_loss(*tiny(), batch, key, options)


@functools.partial(jax.jit, static_argnums=(0, 4))
def jitted_loss(model, params, batch, key, options):
    return stage2_loss(model, params, batch, key, options)[0]


def only(row):
    """Return the batch with targets in one row only."""
    mask = batch()["target_mask"] & (jnp.arange(4) == row)[:, None]
    return batch() | {"target_mask": mask}


def test_mean_is_over_the_tokens_of_the_whole_batch():
    each = [loss(only(row)) for row in range(4)]
    weighted = np.average(each, weights=[5, 2, 3, 4])
    np.testing.assert_allclose(loss(batch()), weighted, rtol=1e-5)
    per_shard = loss(batch(), Stage2Options(num_shards=4))
    np.testing.assert_allclose(per_shard, np.mean(each), rtol=1e-5)
    assert abs(per_shard - weighted) > 1e-4


def test_padding_and_masked_targets_have_no_weight():
    changed = batch()
    pads = ~changed["text_mask"]
    changed["text_ids"] = jnp.where(pads, 7, changed["text_ids"])
    np.testing.assert_allclose(loss(batch()), loss(changed), rtol=1e-6)
    changed["target_mask"] = changed["target_mask"].at[:, 0].set(False)
    assert abs(loss(batch()) - loss(changed)) > 1e-4


def test_a_drawn_answer_is_in_expectation_the_weighted_answers():
    """Rows 0 and 1 answer one question, given by 7 and 3 of ten annotators."""
    texts = Stage2Options(mean_over="texts")
    sums = [float(loss(only(row), texts)) for row in range(4)]
    tokens = [float(loss(only(row))) for row in range(4)]
    np.testing.assert_allclose(sums, np.multiply(tokens, [5, 2, 3, 4]), rtol=1e-5)
    draws = [
        float(
            loss(
                batch()
                | {
                    "target_mask": batch()["target_mask"]
                    & (jnp.isin(jnp.arange(4), jnp.array([row, 2])))[:, None]
                },
                texts,
            )
        )
        for row in (0, 1)
    ]
    expected = (0.7 * sums[0] + 0.3 * sums[1] + sums[2]) / 2
    np.testing.assert_allclose(np.dot([0.7, 0.3], draws), expected, rtol=1e-5)
    with pytest.raises(ValueError, match="mean_over is 'rows'; it must be tokens"):
        Stage2Options(mean_over="rows")


def test_dropout_of_the_frozen_language_model_is_an_option():
    key, frozen = jax.random.key(3), Stage2Options(frozen_dropout=True)
    still, queries_only, both = (
        loss(batch()),
        loss(batch(), DEFAULT, key),
        loss(batch(), frozen, key),
    )
    assert abs(queries_only - still) > 1e-5
    assert abs(both - queries_only) > 1e-5
    assert both == loss(batch(), frozen, key)


def test_training_sees_some_of_the_image_tokens():
    """Training reads two of three tokens, which depend on the key; evaluation all."""
    some, key = Stage2Options(image_tokens=2), jax.random.key(3)
    assert loss(batch(), some) == loss(batch())
    assert loss(batch(), some, key) == loss(batch(), some, key)
    assert abs(loss(batch(), some, key) - loss(batch(), DEFAULT, key)) > 1e-6
    # Tokens have no positions: any two of three equal ones give the same loss.
    same = batch() | {"features": jnp.repeat(batch()["features"][:, :1], 3, axis=1)}
    near = abs(loss(same, some, key) - loss(same, DEFAULT, key))
    assert near < 1e-5 and loss(same, some, key) > 0


def test_bfloat16_is_near_float32():
    model, params = tiny()
    narrow = model.clone(dtype=jnp.bfloat16)
    value = jitted_loss(narrow, params, batch(), None, DEFAULT)
    assert value.dtype == jnp.float32
    np.testing.assert_allclose(value, loss(batch()), rtol=2e-2)
