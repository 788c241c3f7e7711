"""Settings and lengths share compiled programs, and what is kept is bounded."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from blip2_jax.generation.decoding_config import DecodingConfig
from blip2_jax.generation.decoding_plan import split_config
from blip2_jax.inference import decoding_program, inputs, programs
from tests.support.public_models import photos, stage1, stage2

MODELS = {"generator": stage2, "retriever": stage1}


def test_lengths_have_two_steps_for_each_power_of_two():
    lengths = [inputs.padded_length(length) for length in range(1, 129)]
    assert sorted(set(lengths)) == [8, 16, 24, 32, 48, 64, 96, 128]
    assert all(length <= padded for length, padded in enumerate(lengths, 1))


@pytest.mark.parametrize("kind", MODELS)
def test_values_of_settings_compile_nothing(kind):
    program, call = decoding_program._decode_plan, MODELS[kind]().caption
    shared = {"num_beams": 2, "repetition_penalty": 1.1}
    call(photos(1), max_new_tokens=3, **shared)
    sampled = {"sample": True, "top_p": 0.5, "top_k": 3}
    call(photos(1), max_new_tokens=3, **sampled)
    before = program.compiled._cache_size()
    for number in range(4):
        tokens = {"max_new_tokens": 4 + number, "min_new_tokens": number % 3}
        penalties = {"repetition_penalty": 1.2 + number / 10}
        more = {
            "early_stopping": (False, True, "never", False)[number],
            "length_penalty": number - 1.5,
            "num_return_sequences": 1 + number % 2,
        }
        call(photos(1), **shared | tokens | penalties | more)
        values = {"temperature": 0.5 + number, "top_p": 0.6 + number / 10}
        call(photos(1), **sampled | tokens | values | {"top_k": 4 + number})
    assert program.compiled._cache_size() == before


def test_plans_contain_only_what_applies():
    plan = split_config(DecodingConfig(num_beams=3, temperature=2.0, top_k=4))[0]
    assert plan == split_config(DecodingConfig(num_beams=3))[0]
    greedy = split_config(DecodingConfig(convention="original", top_p=0.5))[0]
    assert greedy == split_config(DecodingConfig())[0]


def test_divisors_are_powers_of_the_length():
    config = DecodingConfig(
        num_beams=2, length_penalty=0.7, max_new_tokens=5, convention="original"
    )
    _, values = split_config(config, 8)
    lengths = np.arange(1, 10)
    np.testing.assert_allclose(values.divisors[1:], lengths**0.7, rtol=1e-7)
    np.testing.assert_array_equal(values.stop_divisors, values.divisors[1:])
    _, values = split_config(config.replace(early_stopping="never"), 8)
    np.testing.assert_allclose(values.stop_divisors, 6**0.7, rtol=1e-7)


@pytest.mark.parametrize("settings", [{"num_beams": 3}, {"repetition_penalty": 1.3}])
def test_results_do_not_depend_on_the_slots(settings):
    """The limit is a value: 5 tokens in 8 slots are the first 5 of 8."""
    model = stage2()
    five = model.caption(photos(2), max_new_tokens=5, num_beams=1)
    eight = model.caption(photos(2), max_new_tokens=8, num_beams=1)
    assert all(b.startswith(a) for a, b in zip(five, eight, strict=True))
    config = DecodingConfig(max_new_tokens=5, **settings)
    images, prompts = inputs.as_images(photos(2), 56), model._prompt_arrays(["", ""])
    padded = model._decode_batch(images, prompts, config)
    assert padded.ids.shape == (2, 1, 5)
    assert padded.lengths.max() <= 5


def test_programs_are_bounded(monkeypatch):
    monkeypatch.setattr(programs, "MAX_PROGRAMS", 3)

    @programs.compile_function(static=("power",))
    def raise_to(x, power):
        return x**power

    for power in range(20):
        assert raise_to(jnp.float32(2), power=power) == 2**power
        assert raise_to.compiled._cache_size() <= 4
    assert isinstance(raise_to(jnp.ones(2), 2), jax.Array)


def test_a_prompt_that_fits_in_the_positions_is_accepted():
    """Padding of prompts and token slots takes no positions: 64 are enough for 64."""
    model = stage2()
    queries = model.model.config.qformer.num_queries
    prompt = " ".join(["cat"] * 30)
    length = int(model._prompt_arrays([prompt])[1].sum())
    rest = 64 - queries - length
    assert inputs.padded_length(length) + inputs.padded_length(rest) > 64 - queries
    assert model.caption(photos(1), prompt, num_beams=1, max_new_tokens=rest)
    with pytest.raises(ValueError, match="take 65 positions; this OPT has 64"):
        model.caption(photos(1), prompt, num_beams=1, max_new_tokens=rest + 1)
