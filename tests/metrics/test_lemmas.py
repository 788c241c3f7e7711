"""Lemmas of answers, and the message without spaCy."""

import importlib.util

import pytest

from blip2_jax.metrics import lemmas


def test_the_message_without_spacy_says_what_to_install(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert "spacy is not installed (`pip install spacy`" in lemmas.missing()


@pytest.mark.skipif(bool(lemmas.missing()), reason="spaCy or its model is missing")
def test_nouns_and_verbs_become_lemmas():
    assert lemmas.lemmatise(["dogs", "running"]) == ["dog", "run"]
