"""Lemmas of the nouns and verbs of answers, as the original scores OK-VQA."""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence

_MODEL = "en_core_web_sm"
_LEMMATISED = ("NOUN", "VERB")


def missing() -> str:
    """Say which package must be installed first; "" if none is missing."""
    for name in ("spacy", _MODEL):
        if importlib.util.find_spec(name) is None:
            return (
                f"answers were not lemmatised: {name} is not installed (`pip install "
                f"spacy`, `python -m spacy download {_MODEL}`)"
            )
    return ""


def lemmatise(answers: Sequence[str]) -> list[str]:
    """Replace the nouns and verbs of answers by their lemmas.

    Raises:
      ImportError: spaCy or its English model is missing (see `missing`).
    """
    import spacy

    language = spacy.load(_MODEL)
    return [
        " ".join(
            word.lemma_ if word.pos_ in _LEMMATISED else word.text for word in words
        )
        for words in language.pipe(answers)
    ]
