"""Several images in a prompt, conversations, examples: each equal to single use."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from blip2_jax.data.text.prompts import QUESTION_PROMPT, dialogue, generation_prompts
from blip2_jax.inference.dialogue import as_turns, question_prompts
from blip2_jax.inference.generator import Blip2Generator, prefill_language_model
from blip2_jax.inference.inputs import as_images
from blip2_jax.models.blip2 import init_params
from blip2_jax.models.blip2_stage2 import Blip2Stage2
from tests.inference.test_model import (
    bert_tokenizer,
    photos,
    stage1,
    stage2,
    word_tokenizer,
)
from tests.support import golden_stage2
from tests.support.tolerances import assert_values

NAMES = ("stage2_opt_a", "stage2_t5_a")
SHORT = {"num_beams": 2, "max_new_tokens": 4}
QUESTIONS = ["what is it?", "where is the red cat?"]


@functools.cache
def asking_qformer():
    """A fresh model whose Q-Former reads questions."""
    config = golden_stage2.config("stage2_opt_a")
    model = Blip2Stage2(config, question_in_qformer=True)
    params = jax.jit(lambda key: init_params(model, key))(jax.random.key(0))
    return Blip2Generator(
        model,
        params,
        qformer_tokenizer=bert_tokenizer(),
        language_tokenizer=word_tokenizer("stage2_opt_a"),
    )


def test_a_dialogue_in_words():
    turns = [("what is it?", "a dog."), ("how old?", " two")]
    assert dialogue(turns, "why?", QUESTION_PROMPT) == (
        "Question: what is it? Answer: a dog. Question: how old? Answer: two. "
        "Question: why? Answer:"
    )
    assert dialogue((), "why?", QUESTION_PROMPT) == "Question: why? Answer:"


def test_what_is_asked():
    found = question_prompts(["What?", "Why?"], [("a?", "b")], [("x?", "y")], "{} =")
    assert found.prompts == ["x? = y. a? = b. what? =", "x? = y. a? = b. why? ="]
    assert found.qformer_questions == [["x?", "what?"], ["x?", "why?"]]
    found = question_prompts("what?", [[("a?", "b")], []], [], "{} =")
    assert found.prompts == ["a? = b. what? =", "what? ="]
    assert as_turns(()) == [[]]
    for wrong in (["a?"], [("a?", 3)], [[("a?", "b", "c")]]):
        with pytest.raises(TypeError, match=r"history is pairs \(question, answer\)"):
            as_turns(wrong)


@pytest.mark.parametrize("name", NAMES)
def test_images_of_a_row_stand_one_after_the_other(name):
    """The queries of each, as if it were alone, then the prompt."""
    model = stage2(name)
    size = model.model.config.vision.image_size
    images = as_images(photos(4), size)
    ids, mask = generation_prompts(word_tokenizer(name), ["what is", "where is the"])
    bound = model.model.bind({"params": model.params})
    single = bound.encode_queries(bound.encode_image(images))
    joined = jnp.concatenate([single[:2], single[2:]], axis=1)
    expected, _ = bound.prefill(joined, ids, mask)
    rows = np.stack([images[:2], images[2:]], axis=1)
    found, _ = prefill_language_model(model.model, model.params, rows, ids, mask)
    assert_values(found, expected)
    swapped, _ = prefill_language_model(
        model.model, model.params, rows[:, ::-1], ids, mask
    )
    assert np.abs(swapped - found).max() > 1e-4


@pytest.mark.parametrize(
    "name", [NAMES[0], pytest.param(NAMES[1], marks=pytest.mark.slow)]
)
def test_a_row_of_several_images_does_not_depend_on_its_neighbours(name):
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
    of_one = model.answer([[images[0]], [images[1]]], QUESTIONS, **SHORT)
    assert of_one == model.answer(images[:2], QUESTIONS, **SHORT)


def test_a_conversation_is_its_turns_asked_alone():
    model, image = stage2(), photos(1)[0]
    answers = model.converse(image, QUESTIONS, **SHORT)
    first = model.answer(image, QUESTIONS[0], **SHORT)
    assert answers[:1] == first
    prompt = dialogue([(QUESTIONS[0], first[0])], QUESTIONS[1], QUESTION_PROMPT)
    told = model.generate(image, prompt, length_penalty=-1.0, **SHORT)
    assert answers[1:] == told
    history = [[(QUESTIONS[0], first[0])], []]
    both = model.answer(
        [image, image], [QUESTIONS[1], QUESTIONS[0]], history=history, **SHORT
    )
    assert both == [answers[1], answers[0]]


@pytest.mark.parametrize("make", [stage2, asking_qformer])
def test_examples_stand_before_the_question(make):
    model, images = make(), photos(3)
    shown = [(images[0], "what?", "a cat"), (images[1], "who?", "a man")]
    found = model.answer(images[2], QUESTIONS, examples=shown, **SHORT)
    turns = [("what?", "a cat"), ("who?", "a man")]
    if make is stage2:
        prompts = [dialogue(turns, question, QUESTION_PROMPT) for question in QUESTIONS]
        expected = model.generate([images] * 2, prompts, length_penalty=-1.0, **SHORT)
        assert found == expected
    for row, question in enumerate(QUESTIONS):
        alone = model.answer(images[2], question, examples=shown, **SHORT)
        assert alone == found[row : row + 1]


def test_each_image_is_read_with_its_own_question():
    """Of examples the Q-Former reads their questions, not the row's."""
    model = asking_qformer()
    bound = model.model.bind({"params": model.params})
    images = as_images(photos(2), model.model.config.vision.image_size)
    ids, mask = model.qformer_tokenizer.encode(["what cat?", "where is it?"], 8)
    single = bound.encode_queries(bound.encode_image(images), ids, mask)
    text, seen = generation_prompts(word_tokenizer("stage2_opt_a"), ["what"])
    expected, _ = bound.prefill(single.reshape(1, -1, single.shape[-1]), text, seen)
    found, _ = prefill_language_model(
        model.model, model.params, images[None], text, seen, (ids[None], mask[None])
    )
    assert_values(found, expected)


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
def test_errors_say_what_was_given(call, message):
    with pytest.raises(ValueError, match=message):
        call(photos(2))
