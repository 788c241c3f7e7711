"""The shapes tokenizers: one token a word, no loss, reproducible from code."""

import json

import pytest

from blip2_jax.data.shapes import vocabularies
from blip2_jax.data.shapes.captions import captions
from blip2_jax.data.shapes.questions import questions
from blip2_jax.data.text.tokenizer_files import SHAPES_TOKENIZERS
from blip2_jax.data.text.tokenizers import load_tokenizer
from blip2_jax.models import presets

NAMES = ("bert", "opt", "t5")


def load(name):
    return load_tokenizer(f"shapes:{name}", language_model=name != "bert")


@pytest.mark.parametrize("name", NAMES)
def test_captions_round_trip_and_fit(name):
    tokenizer = load(name)
    for index in range(200):
        for text in captions("train", index, 2):
            ids = tokenizer.encode_words(text)
            assert len(ids) <= 26
            assert tokenizer.decode(ids).replace(" ,", ",") == text


@pytest.mark.parametrize("name", ("opt", "t5"))
def test_prompted_questions_round_trip(name):
    tokenizer = load(name)
    for index in range(100):
        for question in questions("heldout", index):
            text = f"Question: {question.text} Short answer: {question.answer}"
            ids = tokenizer.encode_words(text)
            assert len(ids) <= 25
            assert tokenizer.decode(ids) == text


def test_unknown_words_are_split_without_loss():
    for name in NAMES:
        tokenizer = load(name)
        assert tokenizer.decode(tokenizer.encode_words("zebra")) == "zebra"


@pytest.mark.parametrize("name", NAMES)
def test_presets_have_the_vocabulary_sizes(name):
    config = presets.preset("shapes" if name == "bert" else f"shapes_{name}")
    part = config.qformer if name == "bert" else config.language_model
    assert load(name).vocab_size == part.vocab_size


@pytest.mark.parametrize("name", NAMES)
def test_shipped_directories_are_reproducible(name, tmp_path):
    vocabularies.save_all(tmp_path)
    made, shipped = (
        json.loads((directory / name / "tokenizer.json").read_text())
        for directory in (tmp_path, SHAPES_TOKENIZERS)
    )
    assert made == shipped
