"""Weight decay and learning rates by parameter path; Adam and Muon updates."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from blip2_jax.nn.trees import flatten
from blip2_jax.training.optimizer import layer_rates, make_optimizer

OPTIONS = {
    "name": "adamw",
    "b1": 0.9,
    "b2": 0.98,
    "eps": 1e-8,
    "weight_decay": 0.05,
    "clip": 0.0,
    "layer_decay": 1.0,
    "rate_factors": (),
    "original_decay": False,
}


def tower(depth=3, width=4):
    block = {
        "attention": {"query": {"kernel": (width, width), "bias": (width,)}},
        "mlp_norm": {"scale": (width,), "bias": (width,)},
    }
    stacked = jax.tree.map(
        lambda shape: jnp.ones((depth, *shape)),
        block,
        is_leaf=lambda leaf: isinstance(leaf, tuple),
    )
    return {
        "visual_encoder": {
            "class_token": jnp.ones(width),
            "position_embedding": jnp.ones((5, width)),
            "patch_embedding": {
                "kernel": jnp.ones((6, width)),
                "bias": jnp.ones(width),
            },
            "blocks": stacked,
            "final_norm": {"scale": jnp.ones(width)},
        },
        "ln_vision": {"scale": jnp.ones(width)},
        "query_tokens": jnp.ones((2, width)),
        "temperature": jnp.ones(()),
    }


def update(params, gradients, steps=1, **options):
    """Return the parameters after some steps with learning rate 1."""
    optimizer = make_optimizer(OPTIONS | options, lambda step: 1.0, params)
    state = optimizer.init(params)
    for _ in range(steps):
        updates, state = optimizer.update(gradients, state, params)
        params = optax.apply_updates(params, updates)
    return flatten(params)


def zeros(params):
    return jax.tree.map(jnp.zeros_like, params)


def decayed(**options):
    """Return the paths of parameters that shrink under a zero gradient."""
    params = tower()
    after = update(params, zeros(params), **options)
    return {path for path, leaf in after.items() if np.all(leaf < 1)}


def test_decay_goes_by_name_not_by_rank():
    assert decayed() == {
        "visual_encoder/class_token",
        "visual_encoder/position_embedding",
        "visual_encoder/patch_embedding/kernel",
        "visual_encoder/blocks/attention/query/kernel",
        "query_tokens",
    }


def test_the_original_decays_its_temperature():
    assert decayed(original_decay=True) == decayed() | {"temperature"}


def test_zero_decay_leaves_parameters():
    assert not decayed(weight_decay=0.0)


def test_adam_follows_its_formula():
    params = {"head": {"kernel": jnp.full((2, 2), 0.5)}}
    gradient = {"head": {"kernel": jnp.array([[1.0, -2.0], [0.5, 3.0]])}}
    after = update(params, gradient)["head/kernel"]
    # The first bias-corrected Adam step is the gradient's sign.
    expected = 0.5 - np.sign(gradient["head"]["kernel"]) - 0.05 * 0.5
    np.testing.assert_allclose(after, expected, rtol=1e-5)


def test_layer_rates_equal_the_originals(goldens):
    """The original computes these factors, but does not apply them."""
    name = "stage1_a/optim_groups_unfrozen_layerdecay0.95.json"
    expected = {}
    for group in json.loads((goldens / name).read_text()):
        for parameter in group["params"]:
            expected[parameter] = group["lr_scale"]
    ours = flatten(layer_rates(tower(depth=3), 0.95))
    query = ours["visual_encoder/blocks/attention/query/kernel"]
    assert query.shape == (3, 1, 1)
    for layer in range(3):
        theirs = expected[f"visual_encoder.blocks.{layer}.attn.qkv.weight"]
        np.testing.assert_allclose(query[layer, 0, 0], theirs, rtol=1e-6)
    assert expected["visual_encoder.cls_token"] == pytest.approx(
        float(ours["visual_encoder/class_token"])
    )
    assert ours["query_tokens"] == expected["query_tokens"] == 1
    assert ours["visual_encoder/final_norm/scale"] == 1  # behind the last block


def test_layer_rates_are_applied():
    params = tower(depth=3)
    ones = jax.tree.map(jnp.ones_like, params)
    after = update(params, ones, layer_decay=0.5, weight_decay=0.0)
    bias = after["visual_encoder/blocks/attention/query/bias"]
    np.testing.assert_allclose(1 - bias[:, 0], [0.125, 0.25, 0.5], rtol=1e-4)
    token = after["visual_encoder/class_token"]
    np.testing.assert_allclose(1 - token, 0.0625, rtol=1e-4)
    np.testing.assert_allclose(1 - after["query_tokens"], 1.0, rtol=1e-4)


def test_clip_bounds_the_global_norm():
    params = {"kernel": jnp.zeros((2, 2))}
    optimizer = make_optimizer(OPTIONS | {"clip": 1.0}, lambda step: 1.0, params)
    state = optimizer.init(params)
    _, state = optimizer.update({"kernel": jnp.full((2, 2), 50.0)}, state, params)
    moments = [leaf for leaf in jax.tree.leaves(state) if leaf.shape == (2, 2)]
    np.testing.assert_allclose(moments[0], 0.1 * 0.5, rtol=1e-5)


def test_muon_orthogonalises_the_matrices_of_blocks_and_nothing_else():
    params = tower(depth=2, width=8)
    keys = iter(jax.random.split(jax.random.key(0), 99))
    gradients = jax.tree.map(lambda p: jax.random.normal(next(keys), p.shape), params)
    muon = update(params, gradients, name="muon", weight_decay=0.0)
    adam = update(params, gradients, name="adamw", weight_decay=0.0)
    matrix = "visual_encoder/blocks/attention/query/kernel"
    for path, before in flatten(params).items():
        if path != matrix:
            np.testing.assert_array_equal(muon[path], adam[path], err_msg=path)
            continue
        for layer in range(2):
            change = (before - muon[path])[layer]
            values = np.linalg.svd(change, compute_uv=False)
            assert values.max() / values.min() < 2.5, "about orthogonal"
            np.testing.assert_allclose(change.std(), 0.2, rtol=0.25)


def test_rates_of_paths():
    params, path = tower(), "visual_encoder/blocks/attention/query/kernel"
    ones = jax.tree.map(jnp.ones_like, params)
    plain = update(params, ones)
    slow = update(params, ones, rate_factors=((".*/query/kernel", 0.25),))
    for name, before in flatten(params).items():
        factor = 0.25 if name == path else 1.0
        np.testing.assert_allclose(
            before - slow[name], factor * (before - plain[name]), rtol=1e-5
        )
    with pytest.raises(ValueError, match="'query' matches no parameter"):
        update(params, ones, rate_factors=(("query", 0.25),))
