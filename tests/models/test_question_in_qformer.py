"""VQA fine-tuning: the Q-Former reads the question together with the queries."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from blip2_jax.inference.language_programs import prefill_language_model
from blip2_jax.models.blip2 import init_params
from blip2_jax.models.blip2_stage1 import Blip2Stage1
from blip2_jax.models.blip2_stage2 import Blip2Stage2
from blip2_jax.models.presets import Blip2Config
from blip2_jax.models.sizes import FeaturesConfig, OPTConfig, T5Config
from blip2_jax.nn.trees import flatten, unflatten
from tests.support import decoding_steps as decoding
from tests.support import golden_stage1
from tests.support.tolerances import assert_values

LANGUAGE = {
    "opt": OPTConfig(16, 2, 2, 24, vocab_size=30, max_positions=40),
    "t5": T5Config(16, 2, 2, 24, head_width=8, vocab_size=30),
}
FEATURES = jax.random.normal(jax.random.key(3), (3, 5, 12))
IDS = jnp.array([[2, 7, 9, 11, 3], [2, 8, 3, 0, 0], [2, 5, 6, 3, 0]])
MASK = IDS != 0


@functools.cache
def stage1():
    """Return a model with the golden Q-Former's sizes and new parameters."""
    config = Blip2Config(FeaturesConfig(5, 12), golden_stage1.config().qformer)
    model = Blip2Stage1(config)
    return model, jax.jit(lambda key: init_params(model, key))(jax.random.key(0))


@functools.cache
def stage2(family, question_in_qformer):
    """Return stage 1's Q-Former, with its parameters, before a language model."""
    first, first_params = stage1()
    config = Blip2Config(first.config.vision, first.config.qformer, LANGUAGE[family])
    model = Blip2Stage2(config, question_in_qformer=question_in_qformer)
    own = flatten(jax.jit(lambda key: init_params(model, key))(jax.random.key(1)))
    first_params = flatten(first_params)
    return model, unflatten({path: first_params.get(path, own[path]) for path in own})


def bind(model, params):
    return model.bind({"params": params})


def queries(question_in_qformer, *question, rows=slice(None)):
    bound = bind(*stage2("opt", question_in_qformer))
    return bound.encode_queries(FEATURES[rows], *question)


def test_queries_equal_stage_1s_multimodal_pass():
    bound = bind(*stage1())
    image = bound.image_keys_values(FEATURES)
    expected = bound.qformer.multimodal_pass(
        bound.query_tokens, IDS, MASK, image, queries_only=True
    )
    assert_values(queries(True, IDS, MASK), expected)


def test_without_the_option_the_model_is_stage_2():
    bound = bind(*stage1())
    image = bound.image_keys_values(FEATURES)
    expected, _ = bound.qformer.query_pass(bound.query_tokens, image)
    np.testing.assert_array_equal(queries(False), expected)
    _, without = stage2("opt", False)
    _, with_text = stage2("opt", True)
    assert flatten(without).keys() < flatten(with_text).keys()
    assert "qformer/layer_1/text_mlp/up/kernel" in flatten(with_text)


def test_no_question_equals_the_query_pass():
    expected = queries(False)
    np.testing.assert_array_equal(queries(True), expected)
    assert_values(queries(True, IDS, jnp.zeros_like(MASK)), expected)
    assert np.abs(queries(True, IDS, MASK) - expected).max() > 1e-2


def test_rows_do_not_depend_on_neighbours_or_padding():
    together = queries(True, IDS, MASK)
    for row, length in enumerate(MASK.sum(axis=1)):
        one = slice(row, row + 1)
        alone = queries(True, IDS[one, :length], MASK[one, :length], rows=one)
        assert_values(alone, together[one])


def test_a_batch_without_questions_is_refused():
    batch = {"features": FEATURES, "text_ids": IDS, "text_mask": MASK}
    with pytest.raises(ValueError, match="the batch has no question_ids"):
        bind(*stage2("opt", True)).training_logits(batch)


@pytest.mark.parametrize("family", LANGUAGE)
def test_cached_decoding_equals_the_full_pass(family):
    """Logits after every token of an answer, read one by one and all at once."""
    model, params = stage2(family, True)
    prompt = jnp.array([[2, 14, 15, 16]] * 3)  # of equal length: padded on no side
    answer = np.random.default_rng(0).integers(3, 29, (3, 1, 4))
    prompt_mask, answer_mask = jnp.ones(prompt.shape, bool), jnp.ones((3, 4), bool)
    first, prefix = prefill_language_model(
        model, params, FEATURES, prompt, prompt_mask, (IDS, MASK)
    )
    one_by_one = decoding.run_steps(
        lambda: bind(model, params).language_model,
        prefix,
        answer,
        decoding.fork(3, 1, 4),
    )
    batch = {"features": FEATURES, "question_ids": IDS, "question_mask": MASK}
    if family == "opt":
        text = jnp.concatenate([prompt, answer[:, 0]], axis=1)
        mask = jnp.ones(text.shape, bool)
        batch |= {"text_ids": text, "text_mask": mask, "target_mask": mask}
    else:
        batch |= {"input_ids": prompt, "input_mask": prompt_mask}
        batch |= {"target_ids": jnp.asarray(answer[:, 0]), "target_mask": answer_mask}
    logits, _, _ = bind(model, params).training_logits(batch)
    expected = np.swapaxes(logits[:, -4:], 0, 1)
    for logits_now, expected_now in zip(
        (first, *one_by_one[:-1]), expected, strict=True
    ):
        assert_values(logits_now.reshape(3, -1), expected_now)
    batch["question_mask"] = MASK.at[0].set(False)
    other, _, _ = bind(model, params).training_logits(batch)
    assert np.abs(other[0] - logits[0]).max() > 1e-4
    np.testing.assert_allclose(other[1:], logits[1:], atol=1e-6)
