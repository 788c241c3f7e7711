"""Beam search, compared with exhaustive search and recomputed scores."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from blip2_jax.generation import DecodingConfig, decode, visible_slots
from tests.support.history_decoder import EOS, PAD, history_decoder, random_language


def run(language, rows, config, history=None):
    next_logits, first_logits = language
    decoder = history_decoder(next_logits)

    @functools.partial(jax.jit, static_argnums=1)
    def program(rows, config):
        return decode(decoder, first_logits(rows), rows, config, history=history)

    return jax.device_get(program(jnp.asarray(rows), config))


@functools.cache
def scorer(language, steps):
    """Make a function that computes the log-probability of a whole sequence."""
    next_logits, first_logits = language

    @jax.jit
    def token_log_probs(row, ids):
        ids = ids[None, None]
        logits = [first_logits(row[None])[0]]
        for time in range(1, steps):
            past = jnp.where(jnp.arange(steps) < time, ids, -1)
            logits.append(next_logits(row[None], past, time)[0, 0])
        log_probs = jax.nn.log_softmax(jnp.stack(logits))
        return jnp.take_along_axis(log_probs, ids[0, 0, :, None], axis=1)[:, 0]

    def total(row, ids):
        padded = np.zeros(steps, np.int32)
        padded[: len(ids)] = ids
        return token_log_probs(jnp.int32(row), padded)[: len(ids)].sum()

    return total


def test_visible_slots_follow_the_ancestors():
    ancestors = jnp.array([[[0, 0, 0], [0, 1, 1]]])
    expected = [[1, 0, 1, 0, 0, 0], [1, 0, 0, 1, 0, 0]]
    np.testing.assert_array_equal(
        visible_slots(ancestors, jnp.int32(1))[0], np.array(expected, bool)
    )


def test_wide_beams_find_the_most_likely_sequence():
    """With as many beams as sequences, beam search must be exhaustive."""
    vocab, steps = 5, 3
    language = random_language(vocab, steps, seed=3)
    config = DecodingConfig(
        num_beams=vocab ** (steps - 1),
        max_new_tokens=steps,
        length_penalty=0.0,
        early_stopping="never",
    )
    decoded = run(language, [0, 1, 2], config)
    for row in range(3):
        totals = {}
        for ids in itertools.product(range(vocab), repeat=steps):
            cut = ids[: ids.index(EOS) + 1] if EOS in ids else ids
            if cut not in totals:
                totals[cut] = scorer(language, steps)(row, cut)
        best = max(totals, key=totals.get)
        length = decoded.lengths[row, 0]
        assert tuple(decoded.ids[row, 0, :length]) == best
        np.testing.assert_allclose(decoded.scores[row, 0], totals[best], rtol=1e-5)


@pytest.mark.parametrize("convention", ["transformers5", "original"])
@pytest.mark.parametrize("length_penalty", [-1.0, 0.0, 1.0, 2.0])
def test_scores_are_those_of_the_returned_sequences(convention, length_penalty):
    steps = 8
    language = random_language(13, steps, seed=5, eos_bias=1.0)
    config = DecodingConfig(
        num_beams=4,
        num_return_sequences=4,
        max_new_tokens=steps,
        length_penalty=length_penalty,
        convention=convention,
    )
    decoded = run(language, range(6), config)
    assert (np.diff(decoded.scores, axis=1) <= 0).all()
    for row, rank in itertools.product(range(6), range(4)):
        ids = decoded.ids[row, rank, : decoded.lengths[row, rank]].tolist()
        assert len(ids) == steps or ids[-1] == EOS
        assert (decoded.ids[row, rank, len(ids) :] == PAD).all()
        total = scorer(language, steps)(row, ids)
        counts_start = ids[-1] != EOS and convention == "original"
        length = len(ids) + (1 if counts_start else 0)
        np.testing.assert_allclose(
            decoded.scores[row, rank], total / length**length_penalty, rtol=1e-5
        )


@pytest.mark.parametrize("convention", ["transformers5", "original"])
def test_a_row_does_not_depend_on_its_neighbours(convention):
    language = random_language(13, 10, seed=7, eos_bias=0.5)
    config = DecodingConfig(num_beams=3, max_new_tokens=10, convention=convention)
    together = run(language, range(8), config)
    assert len(set(together.lengths[:, 0])) > 1
    for row in range(8):
        alone = run(language, [row], config)
        np.testing.assert_array_equal(alone.ids[0], together.ids[row])
        np.testing.assert_allclose(alone.scores[0], together.scores[row], rtol=1e-5)


def test_minimum_length_and_repetition_penalty():
    language = random_language(13, 8, seed=9, eos_bias=3.0)
    plain = run(language, range(6), DecodingConfig(num_beams=3, max_new_tokens=8))
    assert plain.lengths.min() < 5
    config = DecodingConfig(num_beams=3, max_new_tokens=8, min_new_tokens=4)
    longer = run(language, range(6), config)
    assert longer.lengths.min() >= 5  # 4 tokens and the end

    config = DecodingConfig(
        num_beams=3, max_new_tokens=8, min_new_tokens=7, repetition_penalty=100.0
    )
    banned = jnp.tile(jnp.array([[5, -1, 6]]), (6, 1))
    varied = run(language, range(6), config, history=banned)
    for ids in varied.ids[:, 0]:
        assert len(set(ids)) == len(ids)
        assert not {5, 6} & set(ids)


def test_early_stopping_gives_lower_or_equal_scores():
    language = random_language(13, 12, seed=11, eos_bias=1.5)
    shared = {"num_beams": 4, "max_new_tokens": 12, "length_penalty": 2.0}
    early = run(language, range(16), DecodingConfig(**shared, early_stopping=True))
    never = run(language, range(16), DecodingConfig(**shared, early_stopping="never"))
    assert (never.scores[:, 0] >= early.scores[:, 0]).all()
    assert (never.scores[:, 0] > early.scores[:, 0]).any()
