"""Generation behind images and prompts against the original, id for id.

From the stored images, through image tower, Q-Former and language model.
"""

import functools

import jax
import numpy as np
import pytest

from blip2_jax.data.text.prompts import generation_prompts
from blip2_jax.generation import original
from blip2_jax.generation.programs import (
    read_stage2,
    start_history,
    write_stage2,
)
from tests.support import golden_language
from tests.support.tolerances import assert_ids

TAGS = {
    name: list(golden_language.load_generated(name)[1])
    for name in golden_language.NAMES
}
# OPT-350m's layout differs before and after decoding only: the rest of it is slow.
SLOW = {
    "greedy_min8",
    "greedy_max7",
    "greedy_prompt",
    "beam5_lp-1",
    "beam5_lp0",
    "beam5_lp1_min8",
    "vqa_beam5",
    "vqa_greedy",
}
CASES = [
    pytest.param(
        name,
        tag,
        marks=[pytest.mark.slow] * (name == "stage2_opt350_a" and tag in SLOW),
    )
    for name, tags in TAGS.items()
    for tag in tags
]


def decoding_config(name, arguments):
    """The recorded arguments of transformers' `generate` as ours."""
    passed_as_new = "max_new_tokens" in arguments
    return original(
        arguments["max_new_tokens" if passed_as_new else "max_length"],
        arguments["min_length"],
        new_tokens=passed_as_new,
        **{
            key: arguments[key]
            for key in (
                "num_beams",
                "length_penalty",
                "repetition_penalty",
                "num_return_sequences",
            )
            if key in arguments
        },
    )


def prompts_of(call):
    samples = call["samples"]
    if "text_input" in samples:
        template = call["kwargs"]["prompt"]
        return [template.format(question) for question in samples["text_input"]]
    return [samples.get("prompt", "")] * 4


@functools.partial(jax.jit, static_argnums=0)
def read(name, params, images, ids, mask):
    return read_stage2(golden_language.model(name), params, images, ids, mask)


@functools.partial(jax.jit, static_argnums=(0, 4, 5))
def write(name, params, read, history, config, eos_id):
    model = golden_language.model(name)
    return write_stage2(model, params, read, config, eos_id=eos_id, history=history)


def generate(name, images, prompts, config):
    tokenizer = golden_language.tokenizer(name)
    params = golden_language.params(name)
    ids, mask = generation_prompts(tokenizer, prompts)
    language_model = golden_language.model(name).config.language_model
    history = start_history(language_model, ids, mask, config.convention)
    start = read(name, params, images, ids, mask)
    return write(name, params, start, history, config, tokenizer.end_id)


@pytest.mark.parametrize(("name", "tag"), CASES)
def test_ids_and_scores_equal_the_original(name, tag):
    golden, calls = golden_language.load_generated(name)
    config = decoding_config(name, calls[tag]["generate_kwargs"])
    images = golden["image"].transpose(0, 2, 3, 1)
    found = generate(name, images, prompts_of(calls[tag]), config)
    new = golden[tag][:, 1:]  # behind the start token
    ids = np.asarray(found.ids).reshape(len(new), -1)
    assert_ids(ids[:, : new.shape[1]], new)
    assert found.lengths.max() <= new.shape[1]
    if tag + "_scores" in golden:
        scores = np.asarray(found.scores).reshape(-1)
        np.testing.assert_allclose(
            scores, golden[tag + "_scores"], rtol=1e-4, atol=1e-5
        )


@pytest.mark.parametrize("name", golden_language.NAMES)
def test_rows_with_unequal_prompts_do_not_depend_on_each_other(name):
    golden, calls = golden_language.load_generated(name)
    images = golden["image"].transpose(0, 2, 3, 1)
    prompts = prompts_of(calls["vqa_beam5"])
    assert len({len(prompt.split()) for prompt in prompts}) > 1
    config = original(8, num_beams=3)
    together = generate(name, images, prompts, config)
    for row in range(4):
        alone = generate(name, images[row : row + 1], prompts[row : row + 1], config)
        np.testing.assert_array_equal(alone.ids[0], together.ids[row])
        np.testing.assert_allclose(alone.scores[0], together.scores[row], rtol=1e-4)
