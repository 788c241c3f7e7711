"""Decoders for tests, made from any function of a beam's tokens.

Their caches hold token ids instead of keys and values. Each step reconstructs a beam's
past from `visible` and passes it to the function, so wrong ancestors or slots give
wrong logits.
"""

import jax
import jax.numpy as jnp
import numpy as np

from blip2_jax.generation import Decoder

PAD, EOS = 0, 1


def history_decoder(next_logits, *, eos_id=EOS, pad_id=PAD):
    """Make a `Decoder` whose prefix is an array of row numbers.

    Args:
      next_logits: function (rows [B], history [B,W,N], time) -> logits [B,W,V];
        `history` is -1 after `time`.
      eos_id: token that ends a sequence.
      pad_id: padding token.
    """

    def init_generated(rows, beams, steps):
        return jnp.full((rows.shape[0], beams * steps), -1, jnp.int32)

    def decode_step(ids, time, rows, generated, visible):
        batch, beams = ids.shape
        slots = generated.reshape(batch, -1, beams).at[:, time].set(ids)
        visible = visible.reshape(batch, beams, *slots.shape[1:])
        history = jnp.max(jnp.where(visible, slots[:, None], -1), axis=3)
        # A beam has one ancestor at each time; more would be an error.
        is_valid = visible.sum(axis=3).max() <= 1
        history = jnp.where(is_valid, history, -2)
        return next_logits(rows, history, time), slots.reshape(batch, -1)

    return Decoder(init_generated, decode_step, eos_id, pad_id)


def random_language(vocab=13, steps=16, seed=0, eos_bias=0.0):
    """Return (next_logits, first_logits): smooth functions of the ordered past."""
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
        table = tokens[: history.shape[-1]][None, None]
        vectors = jnp.take_along_axis(table, ids, axis=3)[..., 0, :]
        vectors = jnp.where(history[..., None] >= 0, vectors, 0.0)
        return score(row_table[rows][:, None] + vectors.sum(axis=2))

    def first_logits(rows):
        return score(row_table[rows])

    return next_logits, first_logits
