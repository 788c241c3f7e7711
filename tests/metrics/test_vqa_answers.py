"""Answer normalisation against the original's."""

import json

import pytest

from blip2_jax.metrics.vqa_answers import normalise_answer, plain_words, strip_marks


@pytest.mark.parametrize(
    ("function", "name"),
    [
        (strip_marks, "vqa_punct"),
        (plain_words, "vqa_digit_article"),
        (normalise_answer, "vqa_both"),
    ],
)
def test_as_the_original(goldens, function, name):
    cases = json.loads((goldens / "misc" / "processors.json").read_text())[name]
    assert {text: function(text) for text in cases} == cases


def test_a_contraction_that_lacks_one_of_two_apostrophes():
    assert normalise_answer("It couldn'tve") == "it couldn't've"
    assert normalise_answer("twas couldnt've") == "'twas couldn't've"
