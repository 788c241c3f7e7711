"""Scanned groups of the Q-Former's blocks: numbers of the unrolled form."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from blip2_jax.models.qformer.qformer import QFormer
from blip2_jax.nn.low_rank import with_low_rank
from tests.models.test_qformer import CONFIG, IDS, IMAGE, MASK, QUERIES

DEEP = dataclasses.replace(CONFIG, width=8, mlp_dim=8, depth=4, dropout=0.3)
TOKENS = QUERIES[:, :8]
CAPTIONS = (IDS + 1) % 20


def whole_passes(module, key):
    """Run the passes whose blocks all compute all positions."""
    image = module.image_keys_values(IMAGE)
    queries, cache = module.query_pass(TOKENS, image, key=key)
    return queries, module.generate_pass(CAPTIONS, MASK, cache, key=key)


def partial_passes(module, key):
    """Run the passes whose last block computes some positions only.

    The multimodal pass shares one image between both rows.
    """
    image = module.image_keys_values(IMAGE)
    first, second = (
        jax.tree.map(lambda leaf, row=row: leaf[row : row + 1], image) for row in (0, 1)
    )
    return (
        module.text_pass(IDS, MASK, first_only=True, key=key),
        module.multimodal_pass(
            TOKENS, IDS, MASK, first, second, queries_only=True, key=key
        ),
        module.joint_pass(TOKENS, IDS, CAPTIONS, MASK, image, key=key),
    )


PASSES = (whole_passes, partial_passes)


def parameters(config):
    model = QFormer(config)
    shapes = jax.eval_shape(
        lambda: model.init(jax.random.key(0), None, method=partial_passes)
    )
    rng = np.random.default_rng(0)
    draw = lambda leaf: jnp.asarray(rng.normal(size=leaf.shape, scale=0.3), leaf.dtype)
    return jax.tree.map(draw, shapes)


@pytest.fixture(scope="module")
def params():
    return parameters(DEEP)


def loss_of(model, method, key=None):
    """Return a loss of a pass's outputs, and the outputs."""

    def loss(params):
        outputs = method(model.bind(params), key)
        wide = [x.astype(jnp.float32) for x in jax.tree.leaves(outputs)]
        return sum(jnp.sin(x).sum() for x in wide), outputs

    return loss


def scans(function, *args):
    """Return the lengths of the scans that a function runs, forward."""
    equations = jax.make_jaxpr(function)(*args).eqns
    return [e.params["length"] for e in equations if e.primitive.name == "scan"]


def assert_equal_to_unrolled(model, params, method, key=None, wrap=lambda loss: loss):
    """Compare outputs and gradients by the tolerances of one definition of a step."""
    unrolled, scanned = (
        jax.jit(jax.value_and_grad(wrap(loss_of(form, method, key)), has_aux=True))(
            params
        )
        for form in (model, model.clone(scan=True))
    )

    def gradient_close(a, b):
        atol = 1e-4 * float(jnp.abs(a).max()) + 2e-6
        np.testing.assert_allclose(b, a, rtol=0, atol=atol)

    close = lambda a, b: np.testing.assert_allclose(b, a, rtol=1e-4, atol=1e-5)
    jax.tree.map(close, unrolled[0], scanned[0])
    jax.tree.map(gradient_close, unrolled[1], scanned[1])


@pytest.mark.parametrize(
    ("method", "remat", "seed"),
    [
        (whole_passes, "none", 1),
        (partial_passes, "full", 1),
        pytest.param(whole_passes, "full", 1, marks=pytest.mark.slow),
        pytest.param(whole_passes, "none", None, marks=pytest.mark.slow),
        pytest.param(partial_passes, "none", 1, marks=pytest.mark.slow),
        pytest.param(partial_passes, "full", None, marks=pytest.mark.slow),
        pytest.param(partial_passes, "dots", 1, marks=pytest.mark.slow),
    ],
)
def test_passes_equal_the_unrolled_ones(method, remat, seed):
    """Outputs and gradients are equal; so are the elements that dropout drops."""
    config = DEEP
    if method is partial_passes:  # two groups beside the last block
        config = dataclasses.replace(DEEP, depth=3, cross_attention_every=1)
    key = None if seed is None else jax.random.key(seed)
    model = QFormer(config, remat=remat)
    assert_equal_to_unrolled(model, parameters(config), method, key)


@pytest.mark.parametrize(
    ("depth", "every", "first_only", "expected"),
    [
        (2, 2, False, []),  # one group
        (4, 2, True, []),  # one group beside the last block
        (4, 2, False, [2]),
        (6, 2, True, [2]),
        (3, 1, True, [2]),
        (7, 3, False, [2]),
    ],
)
def test_the_last_block_is_not_scanned_where_it_computes_less(
    depth, every, first_only, expected
):
    config = dataclasses.replace(DEEP, depth=depth, cross_attention_every=every)
    model = QFormer(config, scan=True)
    text = lambda module: module.text_pass(IDS, MASK, first_only=first_only)
    params = jax.eval_shape(lambda: model.init(jax.random.key(0), method=text))
    assert scans(lambda params: text(model.bind(params)), params) == expected


def with_matrices(params, layers):
    """Add matrices of LoRA to the output of self-attention in some layers."""
    rng = np.random.default_rng(0)
    draw = lambda *shape: jnp.asarray(rng.normal(size=shape), jnp.float32)
    tree = jax.tree.map(lambda leaf: leaf, params)
    for layer in layers:
        dense = tree["params"][f"layer_{layer}"]["attention"]["output"]
        dense |= {"lora_a": draw(8, 2), "lora_b": draw(2, 8)}
    return tree


def test_lora_in_all_layers_is_scanned_and_in_one_is_not(params):
    text = lambda module, key: module.text_pass(IDS, MASK, key=key)
    model = QFormer(DEEP)
    loss = loss_of(model.clone(scan=True), text)
    everywhere = with_matrices(params, range(4))
    assert scans(loss, everywhere) == [2]
    assert scans(loss, with_matrices(params, [0])) == []
    wrap = lambda loss: with_low_rank(loss, 0.5)
    assert_equal_to_unrolled(model, everywhere, text, wrap=wrap)


def test_matrices_are_stacked_in_the_compute_dtype(params):
    """No array of the program is an fp32 copy of the matrices of several layers."""
    model = QFormer(DEEP, jnp.bfloat16, scan=True)
    text = lambda module, key: module.text_pass(IDS, MASK, key=key)
    jaxpr = jax.make_jaxpr(loss_of(model, text))(params)
    (scan,) = [e for e in jaxpr.eqns if e.primitive.name == "scan"]
    matrices = [x.aval for x in scan.invars if x.aval.shape == (2, 8, 8)]
    assert len(matrices) == 2 * 6  # of two blocks; the text needs no other branch
    assert {x.dtype for x in matrices} == {jnp.dtype(jnp.bfloat16)}
