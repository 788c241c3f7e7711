"""Attention equals its definition; decoding and cached attention equal attention."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from blip2_jax.nn.attention import attention, cached_attention, decode_attention
from blip2_jax.nn.kv_cache import by_head, decode_masks, write_slots

B, T, S, H, K = 2, 3, 5, 4, 8


def normal(seed, *shape, dtype=jnp.float32):
    return jax.random.normal(jax.random.key(seed), shape, dtype)


def test_equals_definition():
    q, k, v = normal(0, B, T, H, K), normal(1, B, S, H, K), normal(2, B, S, H, K)
    mask = jnp.array([[1, 1, 1, 1, 1], [1, 1, 0, 0, 1]], bool)[:, None, None]
    bias = normal(3, 1, H, T, S)
    out = attention(q, k, v, mask=mask, bias=bias, scale=0.3)
    scores = np.einsum("bthk,bshk->bhts", q, k) * 0.3 + np.asarray(bias)
    weights = np.exp(scores) * np.asarray(mask)
    weights /= weights.sum(-1, keepdims=True)
    expected = np.einsum("bhts,bshk->bthk", weights, v)
    np.testing.assert_allclose(out, expected, atol=2e-6)


def test_fully_masked_row_is_finite():
    q, k = normal(0, B, T, H, K), normal(1, B, S, H, K)
    mask = jnp.zeros((B, 1, 1, S), bool)
    run = lambda q: attention(q, k, k, mask=mask).sum()
    assert np.isfinite(run(q))
    assert np.isfinite(jax.grad(run)(q)).all()


def test_bf16_scores_and_gradients_stay_in_their_dtypes():
    q, k = (normal(s, B, T, H, K, dtype=jnp.bfloat16) for s in (0, 1))
    out = attention(q, k, k)
    assert out.dtype == jnp.bfloat16
    jaxpr = str(jax.make_jaxpr(jax.grad(lambda q: attention(q, k, k).sum()))(q))
    dots = [line for line in jaxpr.splitlines() if "dot_general" in line]
    assert any(line.split(":")[1].startswith("f32") for line in dots)  # the scores
    backward = [line for line in dots if line.split(":")[1].startswith("bf16")]
    assert len(backward) >= 3


@pytest.mark.parametrize("beams", [1, 3])
def test_decode_attention_equals_attention_over_the_joined_sequence(beams):
    length, time = 4, 2
    k0, v0 = normal(1, B, S, H, K), normal(2, B, S, H, K)
    prefix_mask = jnp.array([[1, 1, 1, 1, 1], [0, 0, 1, 1, 1]], bool)
    keys = values = jnp.zeros((B, H, beams * length, K))
    for t in range(time):
        keys = write_slots(keys, normal(10 + t, B, beams, H, K), jnp.int32(t))
        values = write_slots(values, normal(20 + t, B, beams, H, K), jnp.int32(t))
    q = normal(3, B, beams, H, K)
    slot = np.arange(beams * length)
    own = slot[None] % beams == np.arange(beams)[:, None]
    own = jnp.asarray(own & (slot // beams <= time))
    visible = jnp.broadcast_to(own, (B, *own.shape))
    step_masks = decode_masks(jnp.int32(time), prefix_mask, visible)
    new = tuple(normal(10 * n + time, B, beams, H, K) for n in (1, 2))
    out = decode_attention(
        q, new, by_head((k0, v0)), prefix_mask, (keys, values), step_masks.earlier
    )
    for w in range(beams):
        steps = range(time + 1)
        k1 = jnp.stack([normal(10 + t, B, beams, H, K)[:, w] for t in steps], 1)
        v1 = jnp.stack([normal(20 + t, B, beams, H, K)[:, w] for t in steps], 1)
        mask = jnp.concatenate([prefix_mask, jnp.ones((B, time + 1), bool)], 1)
        expected = attention(
            q[:, w : w + 1],
            jnp.concatenate([k0, k1], 1),
            jnp.concatenate([v0, v1], 1),
            mask=mask[:, None, None],
        )
        np.testing.assert_allclose(out[:, w : w + 1], expected, atol=1e-5)


def test_cached_attention_equals_attention():
    query, key, value = (normal(s, B, n, H, K) for s, n in ((1, 3), (2, S), (3, S)))
    mask = jnp.array([[1, 1, 1, 1, 1], [0, 0, 1, 1, 1]], bool)
    out = cached_attention(query, *by_head((key, value)), mask, scale=0.3)
    expected = attention(query, key, value, mask=mask[:, None, None], scale=0.3)
    np.testing.assert_allclose(out, expected, atol=1e-6)
