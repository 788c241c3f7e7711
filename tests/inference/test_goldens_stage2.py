"""Generation from images and prompts, token for token equal to the original's.

Stored images run through image encoder, Q-Former and language model.
"""

import numpy as np
import pytest

from blip2_jax.data.text.prompts import generation_prompts
from blip2_jax.generation import from_lavis_lengths
from blip2_jax.inference.decoding_program import decode_tokens
from blip2_jax.inference.language_programs import (
    prefill_language_model,
    repetition_history,
)
from tests.support import golden_language
from tests.support.tolerances import assert_ids

TAGS = {
    name: list(golden_language.load_generated(name)[1])
    for name in golden_language.NAMES
}
# OPT-350m differs only in the layers around the blocks, so most of its cases are slow.
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


def decoding_config(arguments):
    """Convert the recorded arguments of transformers' `generate`."""
    new_tokens = "max_new_tokens" in arguments
    names = (
        "num_beams",
        "length_penalty",
        "repetition_penalty",
        "num_return_sequences",
    )
    return from_lavis_lengths(
        arguments["max_new_tokens" if new_tokens else "max_length"],
        arguments["min_length"],
        new_tokens=new_tokens,
        **{name: arguments[name] for name in names if name in arguments},
    )


def prompts_of(call):
    samples = call["samples"]
    if "text_input" in samples:
        template = call["kwargs"]["prompt"]
        return [template.format(question) for question in samples["text_input"]]
    return [samples.get("prompt", "")] * 4


def generate(name, images, prompts, config):
    tokenizer = golden_language.tokenizer(name)
    model, params = golden_language.model(name), golden_language.params(name)
    ids, mask = generation_prompts(tokenizer, prompts)
    history = repetition_history(
        model.config.language_model, ids, mask, config.convention
    )
    logits, prefix = prefill_language_model(model, params, images, ids, mask)
    return decode_tokens(
        model,
        "language_model",
        params,
        logits,
        prefix,
        config,
        eos_id=tokenizer.end_id,
        pad_id=model.config.language_model.pad_id,
        history=history,
    )


@pytest.mark.parametrize(("name", "tag"), CASES)
def test_ids_and_scores_equal_the_original(name, tag):
    golden, calls = golden_language.load_generated(name)
    config = decoding_config(calls[tag]["generate_kwargs"])
    images = golden["image"].transpose(0, 2, 3, 1)
    decoded = generate(name, images, prompts_of(calls[tag]), config)
    new = golden[tag][:, 1:]  # without the start token
    ids = np.asarray(decoded.ids).reshape(len(new), -1)
    assert_ids(ids[:, : new.shape[1]], new)
    assert decoded.lengths.max() <= new.shape[1]
    if tag + "_scores" in golden:
        scores = np.asarray(decoded.scores).reshape(-1)
        np.testing.assert_allclose(
            scores, golden[tag + "_scores"], rtol=1e-4, atol=1e-5
        )


@pytest.mark.parametrize("name", ["stage2_opt_a", "stage2_t5_a"])
def test_rows_with_unequal_prompts_do_not_depend_on_each_other(name):
    golden, calls = golden_language.load_generated(name)
    images = golden["image"].transpose(0, 2, 3, 1)
    prompts = prompts_of(calls["vqa_beam5"])
    lengths = [len(prompt.split()) for prompt in prompts]
    shortest, longest = np.argmin(lengths), np.argmax(lengths)
    assert lengths[shortest] < lengths[longest]
    config = from_lavis_lengths(8, num_beams=3)
    together = generate(name, images, prompts, config)
    for row in (shortest, longest):
        alone = generate(name, images[row : row + 1], prompts[row : row + 1], config)
        np.testing.assert_array_equal(alone.ids[0], together.ids[row])
        np.testing.assert_allclose(alone.scores[0], together.scores[row], rtol=1e-4)
