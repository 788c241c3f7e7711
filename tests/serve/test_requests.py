"""Requests to a trained model: joined results are those of the model alone."""

import numpy as np
import pytest

import blip2_jax
from blip2_jax.serve.batching import Engine
from blip2_jax.serve.requests import (
    AnswerRequest,
    CallRequest,
    CaptionRequest,
    FeaturesRequest,
    MatchRequest,
    RankRequest,
    image_pixels,
)

GREEDY = {"num_beams": 1, "max_new_tokens": 8}
SAMPLES = {"sample": True, "max_new_tokens": 8}


@pytest.fixture(scope="module")
def generator():
    return blip2_jax.load("shapes")


@pytest.fixture(scope="module")
def retriever():
    return blip2_jax.load("shapes_stage1")


@pytest.fixture(scope="module")
def images(generator):
    return [image_pixels(generator, f"shapes:{n}") for n in range(4)]


def run_joined(model, requests):
    """Run requests, which must have one key, through an engine as one batch."""
    assert len({request.join_key(model) for request in requests}) == 1
    reports = []
    with Engine(
        model, max_batch=len(requests), max_wait=600.0, observer=reports.append
    ) as engine:
        futures = [engine.submit(request) for request in requests]
        results = [future.result(600) for future in futures]
    assert [(report.size, report.failed) for report in reports] == [(len(requests), 0)]
    return results


def test_captions(generator, images):
    requests = [CaptionRequest((image,), settings=GREEDY) for image in images]
    expected = generator.caption(np.stack(images), **GREEDY)
    assert run_joined(generator, requests) == [[text] for text in expected]


def test_samples_depend_on_the_number_of_the_request_only(generator, images):
    requests = [
        CaptionRequest((images[0],), "a", settings=SAMPLES, seed=5, sample_id=n)
        for n in (3, 2**32 - 1)
    ]
    joined = run_joined(generator, requests)
    assert joined == [run_joined(generator, [request])[0] for request in requests]


def test_answers_with_earlier_turns(generator, images):
    turns = (("how many shapes are there?", "two"),)
    requests = [
        AnswerRequest(
            (images[0],), "what color is the square?", turns, settings=GREEDY
        ),
        AnswerRequest(
            (images[1],), "what color is the circle?", turns, settings=GREEDY
        ),
    ]
    expected = generator.answer(
        np.stack(images[:2]),
        [request.question for request in requests],
        history=turns,
        **GREEDY,
    )
    assert run_joined(generator, requests) == [[text] for text in expected]


def test_what_needs_another_program_has_another_key(generator, images):
    image, two = (images[0],), tuple(images[:2])
    requests = [
        CaptionRequest(image),
        CaptionRequest(two),
        CaptionRequest(image, settings=GREEDY),
        CaptionRequest(image, "a " * 20),
        CaptionRequest(image, settings=SAMPLES, seed=1),
        CaptionRequest(image, settings=SAMPLES, seed=2),
        AnswerRequest(image, "what is it?"),
    ]
    keys = {(type(r), r.join_key(generator)) for r in requests}
    assert len(keys) == len(requests)
    # The seed matters to samples only, and the image never.
    same = CaptionRequest((images[1],), settings=GREEDY, seed=7)
    assert same.join_key(generator) == requests[2].join_key(generator)


def test_matches(retriever, images):
    texts = ("a red circle", "a blue square")
    pairs = [MatchRequest(images[n], (text,)) for n, text in enumerate(texts)]
    expected = retriever.match(np.stack(images[:2]), texts)
    for index, match in enumerate(run_joined(retriever, pairs)):
        np.testing.assert_allclose(match.itm, expected.itm[[index]], atol=1e-5)
        np.testing.assert_allclose(match.itc, expected.itc[[index]], atol=1e-5)
    several = [MatchRequest(image, texts) for image in images[:2]]
    expected = retriever.match(np.stack(images[:2]), texts, pairs="all")
    for index, match in enumerate(run_joined(retriever, several)):
        np.testing.assert_allclose(match.itm, expected.itm[index], atol=1e-5)


def test_rankings(generator, images):
    requests = [
        RankRequest((images[0],), ("red", "blue", "green"), "what color is it?"),
        RankRequest((images[1],), ("blue", "green", "red"), "what color is that?"),
    ]
    for request, ranked in zip(requests, run_joined(generator, requests), strict=True):
        (expected,) = generator.rank(
            request.images[0], request.candidates, questions=request.question
        )
        assert [text.text for text in ranked] == [text.text for text in expected]
    captions = RankRequest((images[0],), ("a red circle", "a blue square"))
    assert len(run_joined(generator, [captions])[0]) == 2


def test_features_end_after_the_last_token(retriever, images):
    texts = ["a circle", "a red circle above"]
    requests = [FeaturesRequest(text=text) for text in texts]
    for text, row in zip(texts, run_joined(retriever, requests), strict=True):
        expected = retriever.features(texts=text, mode="text")["text_embeds_proj"][0]
        np.testing.assert_allclose(row["text_embeds_proj"], expected, atol=1e-5)
    (row,) = run_joined(retriever, [FeaturesRequest(images[0])])
    assert row["image_embeds_proj"].ndim == 2
    pair = FeaturesRequest(images[0], "a circle")
    assert run_joined(retriever, [pair])[0]["multimodal_embeds"].ndim == 2


def test_a_call_gets_the_model(generator):
    assert run_joined(generator, [CallRequest(lambda model: model)]) == [generator]


def test_what_a_model_cannot_do_is_refused_at_once(generator, retriever, images):
    with Engine(generator) as engine:
        for request, message in (
            (MatchRequest(images[0], ("a",)), "stage-1"),
            (FeaturesRequest(text="a"), "stage-1"),
            (CaptionRequest((images[0][:8],)), "images of 64 x 64"),
            (AnswerRequest((images[0],), "\ud800"), "surrogate"),
        ):
            with pytest.raises(ValueError, match=message):
                engine.submit(request)
    with pytest.raises(ValueError, match="language model"):
        AnswerRequest((images[0],), "what?").join_key(retriever)


def test_sizes_of_prompts(generator, retriever):
    size = generator.prompt_size("a photo of")
    longer = generator.prompt_size(question="what?", history=[("is it?", "no")])
    assert size.shape == (8, 8) and 0 < size.tokens <= 8
    assert longer.tokens > size.tokens
    assert retriever.prompt_size("").tokens == 1  # [DEC]
    assert generator.count_tokens("a red circle") >= 3
