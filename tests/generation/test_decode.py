"""Greedy decoding and sampling."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from blip2_jax.generation import DecodingConfig, decode, lavis_defaults
from blip2_jax.generation.decode import keep_top_k, keep_top_k_then_p, keep_top_p
from blip2_jax.generation.decoder import penalize_repetition
from blip2_jax.generation.decoding_plan import split_config
from blip2_jax.generation.lavis_defaults import blip_defaults
from tests.support.history_decoder import EOS, PAD, history_decoder, random_language


def run(language, rows, config, seeds=None):
    next_logits, first_logits = language
    decoder = history_decoder(next_logits)

    @functools.partial(jax.jit, static_argnums=2)
    def program(rows, keys, config):
        return decode(decoder, first_logits(rows), rows, config, keys=keys)

    keys = None if seeds is None else jax.vmap(jax.random.key)(jnp.asarray(seeds))
    return jax.device_get(program(jnp.asarray(rows), keys, config))


def test_greedy_takes_the_most_likely_token_each_time():
    steps = 8
    next_logits, first_logits = language = random_language(13, steps, 1, eos_bias=1.0)
    decoded = run(language, range(6), DecodingConfig(max_new_tokens=steps))
    for row in range(6):
        past, logits = [], first_logits(jnp.array([row]))[0]
        while len(past) < steps and EOS not in past:
            past.append(int(jnp.argmax(logits)))
            history = np.full((1, 1, steps), -1, np.int32)
            history[0, 0, : len(past)] = past
            logits = next_logits(jnp.array([row]), jnp.asarray(history), 0)[0, 0]
        assert decoded.lengths[row, 0] == len(past)
        expected = past + [PAD] * (steps - len(past))
        np.testing.assert_array_equal(decoded.ids[row, 0], expected)


def test_sampling_with_one_likely_token_equals_greedy():
    language = random_language(13, 8, 2, eos_bias=1.0)
    greedy = run(language, range(6), DecodingConfig(max_new_tokens=8))
    for narrow in ({"top_k": 1}, {"top_p": 1e-6}, {"temperature": 1e-4}):
        config = DecodingConfig(max_new_tokens=8, sample=True, **narrow)
        samples = run(language, range(6), config, seeds=range(6))
        np.testing.assert_array_equal(samples.ids, greedy.ids)


def test_samples_depend_only_on_the_row_and_its_key():
    language = random_language(13, 8, 3)
    config = DecodingConfig(
        max_new_tokens=8, sample=True, top_p=0.9, num_return_sequences=3
    )
    together = run(language, range(6), config, seeds=range(10, 16))
    alone = run(language, [4], config, seeds=[14])
    np.testing.assert_array_equal(alone.ids[0], together.ids[4])
    assert len({tuple(ids) for ids in together.ids[0]}) > 1
    other = run(language, [4], config, seeds=[15])
    assert (other.ids != alone.ids).any()


@pytest.mark.parametrize("top_k, candidates", [(5, 8), (8, 8), (60, 64)])
def test_top_k_then_top_p_sorts_the_candidates_only(top_k, candidates):
    logits = 3 * jax.random.normal(jax.random.key(0), (40, 50))
    expected = keep_top_p(keep_top_k(logits, top_k), 0.9)
    actual = keep_top_k_then_p(logits, top_k, 0.1, candidates)
    np.testing.assert_array_equal(actual, expected)
    assert (np.isfinite(actual).sum(axis=1) < min(top_k, 50)).any()


def test_the_original_convention_counts_the_whole_prompt():
    """Scores are divided by the length with all tokens of the prompt."""
    config = DecodingConfig(num_beams=2, max_new_tokens=3, convention="original")
    one, four = (split_config(config, prompt_tokens=n)[1] for n in (1, 4))
    np.testing.assert_array_equal(four.divisors[1:], one.divisors[1:] + 3)
    np.testing.assert_array_equal(four.stop_divisors, one.stop_divisors + 3)
    config = config.replace(convention="transformers5")
    one, four = (split_config(config, prompt_tokens=n)[1] for n in (1, 4))
    np.testing.assert_array_equal(four.divisors, one.divisors)


def test_lengths_of_blip_count_the_prompt():
    config = blip_defaults(4, sample=True)
    assert (config.max_new_tokens, config.min_new_tokens) == (16, 1)
    assert blip_defaults(7, sample=False).min_new_tokens == 0
    with pytest.raises(ValueError, match=r"20 tokens, .* leaves none"):
        blip_defaults(20, sample=False)


def test_first_tokens_follow_the_nucleus_distribution():
    language = random_language(9, 1, 4)
    config = DecodingConfig(
        max_new_tokens=1, sample=True, top_p=0.7, num_return_sequences=4000
    )
    decoded = run(language, [0], config, seeds=[0])
    probabilities = np.asarray(jax.nn.softmax(language[1](jnp.array([0]))[0]))
    order = np.argsort(-probabilities)
    kept = order[: np.searchsorted(np.cumsum(probabilities[order]), 0.7) + 1]
    counts = np.bincount(decoded.ids.ravel(), minlength=9) / 4000
    assert set(np.flatnonzero(counts)) == set(kept)
    expected = probabilities[kept] / probabilities[kept].sum()
    np.testing.assert_allclose(counts[kept], expected, atol=0.03)


def test_processors_on_literal_scores():
    scores = jnp.array([[[2.0, -2.0, 1.0, -1.0]]])
    penalized = penalize_repetition(scores, jnp.array([[[0, 1, 1, -1, 9]]]), 2.0)
    np.testing.assert_array_equal(penalized, [[[1.0, -4.0, 1.0, -1.0]]])
    np.testing.assert_array_equal(
        jnp.isfinite(keep_top_k(scores, 2)), [[[True, False, True, False]]]
    )
    logits = jnp.log(jnp.array([0.5, 0.3, 0.15, 0.05]))
    for top_p, count in ((0.4, 1), (0.6, 2), (0.9, 3), (0.97, 4)):
        assert jnp.isfinite(keep_top_p(logits, top_p)).sum() == count


def test_wrong_settings():
    with pytest.raises(ValueError, match="num_return_sequences=3: expected 1 to"):
        DecodingConfig(num_return_sequences=3)
    with pytest.raises(ValueError, match="min_new_tokens=9"):
        DecodingConfig(min_new_tokens=9, max_new_tokens=8)
    with pytest.raises(ValueError, match="convention='hf'"):
        DecodingConfig(convention="hf")
    with pytest.raises(ValueError, match="needs keys"):
        run(random_language(), [0], DecodingConfig(sample=True))


def test_lavis_defaults():
    assert (
        lavis_defaults("generate", "opt").max_new_tokens == 29
    )  # the start token counts
    assert lavis_defaults("generate", "t5").max_new_tokens == 30
    coco = lavis_defaults("coco", "opt")
    assert (coco.min_new_tokens, coco.repetition_penalty, coco.length_penalty) == (
        7,
        1.15,
        0.0,
    )
    assert lavis_defaults("answer", "t5").length_penalty == -1
    assert lavis_defaults("answer", "opt").length_penalty == 0
    vicuna = lavis_defaults("answer", "instructblip_vicuna")
    assert (vicuna.max_new_tokens, vicuna.length_penalty) == (9, 0)
    vicuna = lavis_defaults("generate", "instructblip_vicuna")
    assert (vicuna.max_new_tokens, vicuna.length_penalty) == (255, 1)
    assert vicuna.repetition_penalty == 1.5
    with pytest.raises(ValueError, match="no decoding 'answer' for 'qformer'"):
        lavis_defaults("answer", "qformer")


@pytest.mark.parametrize("name", ["temperature", "repetition_penalty"])
def test_divisors_are_no_smaller_than_float32_can_divide_by(name):
    with pytest.raises(ValueError, match=f"{name}=1e-46: expected at least 1e-06"):
        DecodingConfig(**{name: 1e-46})
    DecodingConfig(**{name: 1e-6})
