"""Runs a decoder step by step and compares it with full forward passes."""

import jax
import jax.numpy as jnp
import numpy as np


def histories(ids, ancestors):
    """Each beam's tokens up to each time: beams fork as `ancestors` says."""
    batch, beams, steps = ids.shape
    out = np.zeros((batch, beams, steps), np.int64)
    for b in range(batch):
        for w in range(beams):
            for t in range(steps):
                out[b, w, t] = ids[b, ancestors[b, w, t], t]
    return out


def fork(batch, beams, steps, seed=0):
    """Random ancestors for each time: `[time][b, w, t]` for t <= time."""
    rng = np.random.default_rng(seed)
    now = np.zeros((batch, beams, steps), np.int64)
    out = []
    for time in range(steps):
        if time:
            parents = rng.integers(beams, size=(batch, beams))
            now = np.take_along_axis(now, parents[..., None], axis=1)
        now = now.copy()
        now[:, :, time] = np.arange(beams)
        out.append(now)
    return out


def run_steps(apply, prefix, ids, forks):
    """Logits `[time][B, W, V]` of `decode_step`, through the shared caches."""
    batch, beams, steps = ids.shape
    generated = apply(prefix, beams, steps, method="init_generated")
    step = jax.jit(lambda *args: apply(*args, method="decode_step"))
    out = []
    for time in range(steps):
        own = forks[time][..., None] == np.arange(beams)
        own = own & (np.arange(steps)[:, None] <= time)
        visible = jnp.asarray(own.reshape(batch, beams, beams * steps))
        logits, generated = step(
            jnp.asarray(ids[:, :, time]), jnp.int32(time), prefix, generated, visible
        )
        out.append(np.asarray(logits))
    return out


def read_apart(apply, embeds, mask):
    """`prefill` as a CPU runs it, of weights taken apart."""
    weights = apply(method="weights_apart")
    return apply(embeds, mask, weights, method="prefill")
