"""Step-by-step decoding, to be compared with full forward passes."""

import jax
import jax.numpy as jnp
import numpy as np


def histories(ids, ancestors):
    """Return each beam's tokens up to each time; beams fork as `ancestors` says."""
    batch, beams, steps = ids.shape
    out = np.zeros((batch, beams, steps), np.int64)
    for b in range(batch):
        for w in range(beams):
            for t in range(steps):
                out[b, w, t] = ids[b, ancestors[b, w, t], t]
    return out


def fork(batch, beams, steps, seed=0):
    """Draw ancestors at random for each time: `[time][b, w, t]` for t <= time."""
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


def run_steps(bind, prefix, ids, forks):
    """Return logits `[time][B, W, V]` of `decode_step`, through the shared caches.

    `bind()` returns the language model bound to its parameters.
    """
    batch, beams, steps = ids.shape
    generated = bind().init_generated(prefix, beams, steps)
    step = jax.jit(lambda *args: bind().decode_step(*args))
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
