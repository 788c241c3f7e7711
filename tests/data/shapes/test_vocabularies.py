"""The shipped tokenizers: one token a word, nothing lost, made by the package."""

import json

import pytest

from blip2_jax.data.shapes import vocabularies
from blip2_jax.data.shapes.captions import captions
from blip2_jax.data.shapes.questions import questions
from blip2_jax.data.text.tokenizers import load_tokenizer
from blip2_jax.models import presets

NAMES = ("bert", "opt", "t5")


def load(name):
    return load_tokenizer(f"shapes:{name}", language_model=name != "bert")


@pytest.mark.parametrize("name", NAMES)
def test_captions_come_back_and_fit(name):
    tokenizer = load(name)
    for index in range(200):
        for text in captions("train", index, 2):
            ids = tokenizer.encode_words(text)
            assert len(ids) <= 26
            assert tokenizer.decode(ids).replace(" ,", ",") == text


@pytest.mark.parametrize("name", ("opt", "t5"))
def test_prompted_questions_come_back(name):
    tokenizer = load(name)
    for index in range(100):
        for question in questions("heldout", index):
            text = f"Question: {question.text} Short answer: {question.answer}"
            ids = tokenizer.encode_words(text)
            assert len(ids) <= 25
            assert tokenizer.decode(ids) == text


def test_other_words_fall_to_pieces():
    for name in NAMES:
        tokenizer = load(name)
        assert tokenizer.decode(tokenizer.encode_words("zebra")) == "zebra"


@pytest.mark.parametrize("name", NAMES)
def test_the_presets_know_the_sizes(name):
    config = presets.preset("shapes" if name == "bert" else f"shapes_{name}")
    part = config.qformer if name == "bert" else config.language_model
    assert load(name).vocab_size == part.vocab_size


@pytest.mark.parametrize("name", NAMES)
def test_the_directories_are_what_the_package_makes(name, tmp_path):
    vocabularies.save(tmp_path)
    made, shipped = (
        json.loads((directory / name / "tokenizer.json").read_text())
        for directory in (tmp_path, vocabularies.DIRECTORY)
    )
    assert made == shipped
