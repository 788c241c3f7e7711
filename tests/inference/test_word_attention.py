"""Maps of words: the gradient is that of the score, and it falls on the right thing."""

import jax
import numpy as np
import pytest

import blip2_jax
from blip2_jax.data.shapes.captions import captions
from blip2_jax.data.shapes.render import render
from blip2_jax.data.shapes.world import scene
from blip2_jax.inference import word_attention
from tests.support.public_models import photos, stage2

FIRST = 22_000
SCENES = 12


@pytest.fixture(scope="module")
def retriever():
    return blip2_jax.load("shapes_stage1")


@pytest.fixture(scope="module")
def generator():
    return blip2_jax.load("shapes")


def predicted(model, image, text, prompt="", question=None):
    """Return the log-probability of each token of a text, as the maps see them."""
    prompts, questions = model._prompts_of(
        prompt if question is None else None, question, ""
    )
    prompt_arrays = model._prompt_arrays(prompts, questions)
    target = model._target_arrays(prompt_arrays, prompts[0], text)

    @jax.jit
    def log_probs(params, images, arrays):
        bound = model.model.bind({"params": params})
        features, gates = bound.encode_image(images), bound.attention_gates()
        return word_attention._log_probs(bound, features, arrays, gates)[0]

    values = log_probs(model.params, model._image_arrays(image, None), target.arrays)
    count = len(model._text_ids(prompts, [text])[0])
    return np.asarray(values)[target.first : target.first + count]


@pytest.mark.parametrize("kind", ["stage1", "opt", "t5"])
def test_the_probabilities_are_those_of_score(kind, retriever, generator):
    if kind == "t5":
        model, image = stage2("stage2_t5_a"), photos(1)[0]
        text, question = "a cat on a mat", "what is it?"
        actual = predicted(model, image, text, question=question)
        expected = model.score(image, text, questions=question)
    else:
        model = retriever if kind == "stage1" else generator
        image, text = blip2_jax.example_image(1), "a small red star"
        actual = predicted(model, image, text, prompt="there is")
        expected = model.score(image, text, "there is")
    np.testing.assert_allclose(actual, expected.token_log_probs[0], atol=2e-4)


def quarters_found(model):
    """Return, for each word of a thing, whether its map is largest at the thing."""
    hits = []
    for index in range(FIRST, FIRST + 2 * SCENES, 2):
        world = scene("heldout", index)
        text = captions("heldout", index, 1)[0].replace(",", "")
        words, maps = model.word_attention(render(world), text)
        assert words == text.split()
        assert (maps >= 0).all()
        at = {thing.triple: thing for thing in world.things}
        for start in range(len(words) - 2):
            thing = at.get(tuple(words[start : start + 3]))
            if thing is None:
                continue
            for values in maps[start + 1 : start + 3]:  # colour and shape
                row, column = np.unravel_index(values.argmax(), values.shape)
                half = len(values) // 2
                hits.append((row // half, column // half) == (thing.row, thing.column))
    return hits


def test_maps_of_colours_and_shapes_fall_on_the_thing(retriever):
    hits = quarters_found(retriever)
    assert len(hits) > 40
    assert np.mean(hits) > 0.7  # chance: 0.25


def test_without_a_text_the_model_writes_one(generator):
    image = blip2_jax.example_image(0)
    words, maps = generator.word_attention(image)
    assert words == generator.caption(image)[0].split()
    assert maps.shape == (len(words), 2, 2)
    with pytest.raises(ValueError, match="one image, not 2"):
        generator.word_attention([image, image])
    with pytest.raises(ValueError, match="no words"):
        generator.word_attention(image, "")


def test_tokens_of_a_word_belong_together():
    pieces = {1: "a", 2: " sta", 3: "r", 4: " !"}
    join = lambda ids: "".join(pieces[int(i)] for i in ids).strip()
    words, owners = word_attention.group_tokens(join, [1, 2, 3, 4])
    assert words == ["a", "star", "!"]
    assert owners == [0, 1, 1, 2]
