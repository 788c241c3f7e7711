"""Nouns and verbs of answers as their lemmas, as the original scores OK-VQA."""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from typing import Any

_MODEL = "en_core_web_sm"
_CHANGED = ("NOUN", "VERB")


def lacking() -> str:
    """What has to be installed first; "" where nothing is."""
    for name in ("spacy", _MODEL):
        if importlib.util.find_spec(name) is None:
            return (
                f"answers were not lemmatised: {name} is not installed (`pip install "
                f"spacy`, `python -m spacy download {_MODEL}`)"
            )
    return ""


class Lemmatised:
    """A model whose answers are lemmatised; see `stage2.Writer`.

    Raises:
      ImportError: spaCy or its English model is missing, see `lacking`.
    """

    def __init__(self, writer: Any):
        import spacy

        self._writer, self._language = writer, spacy.load(_MODEL)

    def caption(self, images: Any = None, **settings: Any) -> list[str]:
        """As the model captions."""
        return self._writer.caption(images, **settings)

    def answer(
        self, images: Any = None, questions: Sequence[str] = (), **settings: Any
    ) -> list[str]:
        """The model's answers, nouns and verbs as lemmas."""
        answers = self._writer.answer(images, questions, **settings)
        return [
            " ".join(
                word.lemma_ if word.pos_ in _CHANGED else word.text for word in words
            )
            for words in self._language.pipe(answers)
        ]
