"""Decoders for tests: any function of a beam's tokens, behind the `Decoder` protocol.

The caches hold token ids instead of keys and values; a step puts a beam's past back
together from `visible` and hands it to the function. Wrong ancestors give wrong
pasts, so these decoders test the bookkeeping of the caches too.
"""

import jax
import jax.numpy as jnp
import numpy as np

from blip2_jax.generation import Decoder

PAD, EOS = 0, 1


def history_decoder(next_logits, *, eos_id=EOS, pad_id=PAD):
    """`next_logits(rows, history[B,W,N], time)` -> [B,W,V]; -1 behind `time`.

    The prefix is `rows`, whatever the function needs to know of each row.
    """

    def init_generated(rows, beams, steps):
        return jnp.full((rows.shape[0], beams * steps), -1, jnp.int32)

    def decode_step(ids, time, rows, generated, visible):
        batch, beams = ids.shape
        slots = generated.reshape(batch, -1, beams).at[:, time].set(ids)
        seen = visible.reshape(batch, beams, *slots.shape[1:])
        at_most_one = seen.sum(axis=3).max() <= 1
        history = jnp.max(jnp.where(seen, slots[:, None], -1), axis=3)
        history = jnp.where(at_most_one, history, -2)
        return next_logits(rows, history, time), slots.reshape(batch, -1)

    return Decoder(init_generated, decode_step, eos_id, pad_id)


def random_language(vocab=13, steps=16, seed=0, eos_bias=0.0):
    """A smooth random function of the ordered past: (next_logits, first_logits)."""
    rng = np.random.default_rng(seed)
    tokens = jnp.asarray(rng.normal(size=(steps, vocab, 24)), jnp.float32)
    row_table = jnp.asarray(rng.normal(size=(64, 24)), jnp.float32)
    head = jnp.asarray(rng.normal(size=(24, vocab)), jnp.float32)
    bias = jnp.zeros(vocab).at[EOS].set(eos_bias)

    def score(hidden):
        with jax.default_matmul_precision("highest"):
            return jnp.tanh(hidden) @ head * 0.7 + bias

    def next_logits(rows, history, time):
        ids = history[..., None, None]
        steps_here = tokens[: history.shape[-1]]
        chosen = jnp.take_along_axis(steps_here[None, None], ids, axis=3)[..., 0, :]
        chosen = jnp.where(history[..., None] >= 0, chosen, 0.0)
        return score(row_table[rows][:, None] + chosen.sum(axis=2))

    def first_logits(rows):
        return score(row_table[rows])

    return next_logits, first_logits
