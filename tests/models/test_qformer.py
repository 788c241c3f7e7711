"""The Q-Former's passes agree; decoding equals teacher forcing."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from blip2_jax.models.qformer.qformer import QFormer
from blip2_jax.models.sizes import QFormerConfig
from blip2_jax.nn.folded_norm import Normed
from blip2_jax.nn.kv_cache import init_generated

B, P, D, T = 2, 5, 12, 6
CONFIG = QFormerConfig(
    width=16,
    depth=2,
    heads=2,
    mlp_dim=24,
    num_queries=3,
    vocab_size=20,
    max_positions=16,
)
MODEL = QFormer(CONFIG)
IDS = jax.random.randint(jax.random.key(1), (B, T), 0, 20)
MASK = jnp.array([[1] * T, [1] * 4 + [0] * 2], bool)
QUERIES = jax.random.normal(jax.random.key(2), (3, 16))
IMAGE = Normed(
    jax.random.normal(jax.random.key(3), (B, P, D)),
    1 + 0.1 * jax.random.normal(jax.random.key(4), (D,)),
    0.1 * jax.random.normal(jax.random.key(5), (D,)),
)


def everything(module, key=None):
    """Run all passes over one small input."""
    image = module.image_keys_values(IMAGE)
    queries, cache = module.query_pass(QUERIES, image, key=key)
    generated = module.generate_pass(IDS, MASK, cache, key=key)
    return {
        "cache": cache,
        "queries": queries,
        "text": module.text_pass(IDS, MASK, key=key),
        "multimodal": module.multimodal_pass(QUERIES, IDS, MASK, image, key=key),
        "logits": module.lm_logits(generated),
        "maps": module.attention_maps(QUERIES, image),
    }


@pytest.fixture(scope="module")
def params():
    return jax.jit(lambda: MODEL.init(jax.random.key(0), method=everything))()


@pytest.fixture(scope="module")
def outputs(params):
    return jax.jit(lambda p: everything(MODEL.bind(p)))(params)


def test_shapes(outputs):
    assert outputs["queries"].shape == (B, 3, 16)
    assert outputs["multimodal"].shape == (B, 3 + T, 16)
    assert outputs["logits"].shape == (B, T, 20)
    assert [k.shape for k, _ in outputs["cache"]] == [(B, 3, 2, 8)] * 2


def test_attention_maps_are_probabilities_over_the_image(outputs):
    (weights,) = outputs["maps"]  # one block of two reads the image
    assert weights.shape == (B, 2, 3, P)
    np.testing.assert_allclose(weights.sum(-1), 1, atol=1e-6)


def test_padding_changes_nothing(params, outputs):
    def run(params):
        ids = IDS.at[1, 4:].set(7)
        bound = MODEL.bind(params)
        image = bound.image_keys_values(IMAGE)
        text = bound.text_pass(ids, MASK)
        return text, bound.multimodal_pass(QUERIES, ids, MASK, image)

    text, multimodal = jax.jit(run)(params)
    np.testing.assert_allclose(text[1, :4], outputs["text"][1, :4], atol=1e-6)
    np.testing.assert_allclose(
        multimodal[:, :7], outputs["multimodal"][:, :7], atol=1e-6
    )


def test_first_only_and_queries_only_return_the_same_positions(params, outputs):
    def run(params):
        bound = MODEL.bind(params)
        image = bound.image_keys_values(IMAGE)
        first = bound.text_pass(IDS, MASK, first_only=True)
        queries = bound.multimodal_pass(QUERIES, IDS, MASK, image, queries_only=True)
        return first, queries

    first, queries = jax.jit(run)(params)
    assert (first.shape, queries.shape) == ((B, 1, 16), (B, 3, 16))
    np.testing.assert_allclose(first, outputs["text"][:, :1], atol=1e-6)
    np.testing.assert_allclose(queries, outputs["multimodal"][:, :3], atol=1e-6)


def test_joint_pass_equals_three_passes(params):
    """Outputs and gradients are equal; no span attends to padding or another text."""
    captions = (IDS + 1) % 20

    def joint(module):
        return module.joint_pass(
            QUERIES, IDS, captions, MASK, module.image_keys_values(IMAGE)
        )

    def separate(module):
        queries, cache = module.query_pass(QUERIES, module.image_keys_values(IMAGE))
        text = module.text_pass(IDS, MASK, first_only=True)
        return queries, text[:, 0], module.generate_pass(captions, MASK, cache)

    def run(method):
        def loss(params):
            outputs = method(MODEL.bind(params))
            return sum(jnp.sin(x).sum() for x in outputs), outputs

        return jax.jit(jax.grad(loss, has_aux=True))(params)

    close = lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=2e-5)
    jax.tree.map(close, run(joint), run(separate))


def test_remat_policies_change_no_numbers(params):
    """Values and gradients with dropout are equal; fewer residuals are kept."""

    def run(remat):
        model = QFormer(dataclasses.replace(CONFIG, dropout=0.5), remat=remat)

        def read(module):
            image = module.image_keys_values(IMAGE)
            return module.joint_pass(
                QUERIES, IDS, IDS, MASK, image, key=jax.random.key(6)
            )

        def loss(params):
            return sum(jnp.sin(x).sum() for x in read(model.bind(params)))

        residuals = jax.eval_shape(lambda params: jax.vjp(loss, params)[1], params)
        size = sum(leaf.size for leaf in jax.tree.leaves(residuals))
        return jax.jit(jax.value_and_grad(loss))(params), size

    (whole, most), *others = map(run, ("none", "dots", "full"))
    close = lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)
    for again, size in others:
        jax.tree.map(close, whole, again)
        assert size < most
        most = size


def test_decoding_equals_teacher_forcing(params, outputs):
    """Two beams with equal words: each step's logits equal the full pass."""

    def run(params):
        bound = MODEL.bind(params)
        steps = T - 1
        logits, prefix = bound.prefill(IDS[:, :1], outputs["cache"])
        generated, steps_logits = init_generated(prefix, 2, steps), [logits]
        own = jnp.arange(2 * steps)[None] % 2 == jnp.arange(2)[:, None]
        for time in range(steps):
            visible = own & (jnp.arange(2 * steps)[None] // 2 <= time)
            visible = jnp.broadcast_to(visible, (B, *visible.shape))
            ids = jnp.stack([IDS[:, time + 1]] * 2, axis=1)
            logits, generated = bound.decode_step(
                ids, jnp.int32(time), prefix, generated, visible
            )
            np.testing.assert_equal(logits.shape, (B, 2, 20))
            steps_logits.append(logits[:, 1])
        return jnp.stack(steps_logits, axis=1)

    decoded = jax.jit(run)(params)
    np.testing.assert_allclose(decoded[0], outputs["logits"][0], atol=2e-5)
    np.testing.assert_allclose(decoded[1, :4], outputs["logits"][1, :4], atol=2e-5)


def test_dropout_needs_a_key_and_depends_on_it(params, outputs):
    run = jax.jit(lambda p, key: everything(MODEL.bind(p), key)["queries"])
    one, two = run(params, jax.random.key(0)), run(params, jax.random.key(1))
    assert not np.allclose(one, two)
    assert not np.allclose(one, outputs["queries"])
