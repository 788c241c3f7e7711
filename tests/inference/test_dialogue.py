"""Rows of several images, conversations and in-context examples."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from blip2_jax.data.text.prompts import (
    QUESTION_PROMPT,
    dialogue_prompt,
    generation_prompts,
)
from blip2_jax.inference.dialogue import as_turns, question_prompts
from blip2_jax.inference.generator import Blip2Generator
from blip2_jax.inference.inputs import as_images
from blip2_jax.inference.language_programs import prefill_language_model
from blip2_jax.models.blip2 import init_params
from blip2_jax.models.blip2_stage2 import Blip2Stage2
from tests.support import golden_stage2
from tests.support.golden_language import tokenizer as word_tokenizer
from tests.support.public_models import bert_tokenizer, photos, stage1, stage2
from tests.support.tolerances import assert_values

NAMES = ("stage2_opt_a", "stage2_t5_a")
SHORT = {"num_beams": 2, "max_new_tokens": 4}
QUESTIONS = ["what is it?", "where is the red cat?"]


@functools.cache
def question_model():
    """Make a model whose Q-Former reads questions, with new parameters."""
    config = golden_stage2.config("stage2_opt_a")
    model = Blip2Stage2(config, question_in_qformer=True)
    params = jax.jit(lambda key: init_params(model, key))(jax.random.key(0))
    return Blip2Generator(
        model,
        params,
        qformer_tokenizer=bert_tokenizer(),
        language_tokenizer=word_tokenizer("stage2_opt_a"),
    )


def test_dialogue_prompt():
    turns = [("what is it?", "a dog."), ("how old?", " two")]
    assert str(dialogue_prompt(turns, "why?", QUESTION_PROMPT)) == (
        "Question: what is it? Answer: a dog. Question: how old? Answer: two. "
        "Question: why? Answer:"
    )
    alone = dialogue_prompt((), "why?", QUESTION_PROMPT)
    assert str(alone) == "Question: why? Answer:"


def test_question_prompts():
    texts = question_prompts(["What?", "Why?"], [("a?", "b")], [("x?", "y")], "{} =")
    written = ["x? = y. a? = b. what? =", "x? = y. a? = b. why? ="]
    assert list(map(str, texts.prompts)) == written
    assert texts.qformer_questions == [["x?", "what?"], ["x?", "why?"]]
    texts = question_prompts("what?", [[("a?", "b")], []], [], "{} =")
    assert list(map(str, texts.prompts)) == ["a? = b. what? =", "what? ="]
    assert as_turns(()) == [[]]
    for wrong in (["a?"], [("a?", 3)], [[("a?", "b", "c")]]):
        with pytest.raises(TypeError, match=r"history is pairs \(question, answer\)"):
            as_turns(wrong)


@pytest.mark.parametrize("name", NAMES)
def test_queries_of_several_images_are_concatenated(name):
    model = stage2(name)
    size = model.model.config.vision.image_size
    images = as_images(photos(4), size)
    ids, mask = generation_prompts(word_tokenizer(name), ["what is", "where is the"])
    bound = model.model.bind({"params": model.params})
    single = bound.encode_queries(bound.encode_image(images))
    concatenated = jnp.concatenate([single[:2], single[2:]], axis=1)
    expected, _ = bound.prefill(concatenated, ids, mask)
    rows = np.stack([images[:2], images[2:]], axis=1)
    logits, _ = prefill_language_model(model.model, model.params, rows, ids, mask)
    assert_values(logits, expected)
    swapped, _ = prefill_language_model(
        model.model, model.params, rows[:, ::-1], ids, mask
    )
    assert np.abs(swapped - logits).max() > 1e-4


@pytest.mark.parametrize(
    "name", [NAMES[0], pytest.param(NAMES[1], marks=pytest.mark.slow)]
)
def test_rows_of_several_images_are_independent(name):
    model, images = stage2(name), photos(4)
    rows = [images[:2], images[2:]]
    together = model.answer(rows, QUESTIONS, **SHORT)
    assert together == model.answer(
        np.stack([np.stack(row) for row in rows]), QUESTIONS, **SHORT
    )
    alone = [
        model.answer([row], question, **SHORT)[0]
        for row, question in zip(rows, QUESTIONS, strict=True)
    ]
    assert together == alone
    lists_of_one = model.answer([[images[0]], [images[1]]], QUESTIONS, **SHORT)
    assert lists_of_one == model.answer(images[:2], QUESTIONS, **SHORT)


def test_conversation_equals_single_prompts():
    model, image = stage2(), photos(1)[0]
    answers = model.converse(image, QUESTIONS, **SHORT)
    first = model.answer(image, QUESTIONS[0], **SHORT)
    assert answers[:1] == first
    prompt = dialogue_prompt([(QUESTIONS[0], first[0])], QUESTIONS[1], QUESTION_PROMPT)
    second = model.generate(image, str(prompt), length_penalty=-1.0, **SHORT)
    assert answers[1:] == second
    history = [[(QUESTIONS[0], first[0])], []]
    both = model.answer(
        [image, image], [QUESTIONS[1], QUESTIONS[0]], history=history, **SHORT
    )
    assert both == [answers[1], answers[0]]


@pytest.mark.parametrize("make", [stage2, question_model])
def test_examples_precede_the_question(make):
    model, images = make(), photos(3)
    examples = [(images[0], "what?", "a cat"), (images[1], "who?", "a man")]
    answers = model.answer(images[2], QUESTIONS, examples=examples, **SHORT)
    turns = [("what?", "a cat"), ("who?", "a man")]
    if make is stage2:
        prompts = [
            str(dialogue_prompt(turns, question, QUESTION_PROMPT))
            for question in QUESTIONS
        ]
        expected = model.generate([images] * 2, prompts, length_penalty=-1.0, **SHORT)
        assert answers == expected
    for row, question in enumerate(QUESTIONS):
        alone = model.answer(images[2], question, examples=examples, **SHORT)
        assert alone == answers[row : row + 1]


def test_qformer_reads_each_image_with_its_own_question():
    model = question_model()
    bound = model.model.bind({"params": model.params})
    images = as_images(photos(2), model.model.config.vision.image_size)
    ids, mask = model.qformer_tokenizer.encode(["what cat?", "where is it?"], 8)
    single = bound.encode_queries(bound.encode_image(images), ids, mask)
    prompt = generation_prompts(word_tokenizer("stage2_opt_a"), ["what"])
    expected, _ = bound.prefill(single.reshape(1, -1, single.shape[-1]), *prompt)
    question = (ids[None], mask[None])
    logits, _ = prefill_language_model(
        model.model, model.params, images[None], *prompt, question
    )
    assert_values(logits, expected)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda images: stage1().caption([images]), "several images in one row are"),
        (lambda images: stage1().match([images], "a cat"), "several images in one row"),
        (
            lambda images: stage2().generate([images, images[:1]], "what"),
            "the same number of images, got 2, 1",
        ),
        (
            lambda images: stage2().answer(images, "why", history=[[], [], []]),
            "2 images, 3 prompts",
        ),
    ],
)
def test_errors(call, message):
    with pytest.raises(ValueError, match=message):
        call(photos(2))
