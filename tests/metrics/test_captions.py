"""Caption metrics with and without Java."""

import shutil

import pytest

from blip2_jax.metrics import captions as caption_metrics
from blip2_jax.metrics.captions import PYTHON_METRICS, caption_scores
from blip2_jax.metrics.java import split_with_java
from blip2_jax.metrics.ptb_tokenizer import split_words

REFERENCES = {
    1: ["a dog runs on the grass .", "a brown dog is running"],
    2: ["two men play football", "Men in red shirts play a game."],
    3: ["a girl climbs stairs", "a child in a pink dress climbs the steps"],
}


@pytest.mark.parametrize(
    ("caption", "words"),
    [
        ("A dog's ball, isn't it?", "a dog 's ball is n't it"),
        ("two t-shirts ; 3.5 km - 1,000 men ...", "two t-shirts 3.5 km 1,000 men"),
        ('"cannot" go (up) & down', "can not go -lrb- up -rrb- & down"),
        ("they're at 7:30 a.m. in the u.s.", "they 're at 7:30 a.m. in the u.s."),
        ("", ""),
    ],
)
def test_words(caption, words):
    assert split_words(caption) == words


@pytest.mark.skipif(shutil.which("java") is None, reason="Java is not installed")
def test_words_are_the_official_ones():
    captions = {
        0: [
            "A dog 's ball, isn't it?",
            "they've got 2 t-shirts; don't they!",
            "a girl (in red) & a boy",
            "A man - a tall one -- waits ...",
            "it's 7:30, and 1,000 people cannot sleep",
        ]
    }
    official = split_with_java(captions)
    assert caption_metrics._split_with_python(captions) == official


def test_perfect_captions():
    captions = {key: each[0] for key, each in REFERENCES.items()}
    result = caption_scores(
        captions, REFERENCES, metrics=PYTHON_METRICS, tokenizer="python"
    )
    assert result.scores["bleu_4"] == pytest.approx(100, abs=1e-3)
    assert result.scores["rouge_l"] == pytest.approx(100)
    assert result.scores["cider"] > 400
    assert not result.skipped


def test_wrong_captions():
    captions = dict.fromkeys(REFERENCES, "blue")
    result = caption_scores(
        captions, REFERENCES, metrics=("cider",), tokenizer="python"
    )
    assert result.scores == {"cider": 0}


def test_without_java_it_says_what_is_missing(monkeypatch):
    monkeypatch.setattr(shutil, "which", lambda _: None)
    captions = {key: each[1] for key, each in REFERENCES.items()}
    result = caption_scores(captions, REFERENCES)
    assert result.tokenizer == "python"
    assert set(result.skipped) == {"meteor", "spice"}
    assert "Java" in result.notice()
    with pytest.raises(RuntimeError, match="Java"):
        caption_scores(captions, REFERENCES, tokenizer="java")


def test_errors():
    with pytest.raises(ValueError, match="1 images have no references, first 9"):
        caption_scores({9: "a"}, REFERENCES)
    with pytest.raises(ValueError, match="no captions"):
        caption_scores({}, REFERENCES)
    with pytest.raises(ValueError, match="wups"):
        caption_scores({1: "a"}, REFERENCES, metrics=("wups",))
