"""Questions behind earlier turns of a conversation, and behind examples."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Shaped
from numpy import ndarray as Array

from blip2_jax.data.text.prompts import dialogue
from blip2_jax.data.text.tokenizers import clean_question
from blip2_jax.inference import inputs

Turn = tuple[str, str]  # a question and its answer


class Asked(NamedTuple):
    """What a row is asked with.

    Attributes:
      prompts: of the language model.
      questions: that the Q-Former reads: of the examples' images, then the row's own.
    """

    prompts: list[str]
    questions: list[list[str]]


def ask(
    questions: str | Sequence[str],
    history: Any,
    examples: Sequence[Turn],
    template: str,
) -> Asked:
    """Prompts of questions.

    Args:
      questions: one for all rows, or one a row.
      history: see `as_turns`.
      examples: turns about other images, which stand before all else.
      template: of a question.

    Raises:
      TypeError, ValueError: no questions, no turns, or unequal numbers of both.
    """
    asked = [clean_question(q) for q in inputs.as_texts(questions, "questions")]
    asked, turns = inputs.align(questions=asked, history=as_turns(history))
    before = [(clean_question(question), answer) for question, answer in examples]
    prompts, read = [], []
    for question, row in zip(asked, turns, strict=True):
        told = [(clean_question(earlier), answer) for earlier, answer in row]
        prompts.append(dialogue([*before, *told], question, template))
        read.append([*(shown for shown, _ in before), question])
    return Asked(prompts, read)


def as_turns(history: Any) -> list[list[Turn]]:
    """Turns of a conversation: one for all rows, or one a row.

    Args:
      history: pairs (question, answer), or a list of such lists.

    Raises:
      TypeError: something else.
    """
    listed = list(history)
    shared = all(_is_turn(turn) for turn in listed)
    rows = [listed] if shared else [list(row) for row in listed]
    for turn in (turn for row in rows for turn in row):
        if not _is_turn(turn):
            raise TypeError(
                "history is pairs (question, answer), or a list of them a row, not "
                f"{turn!r}"
            )
    return [[(question, answer) for question, answer in row] for row in rows]


def _is_turn(given: Any) -> bool:
    is_pair = isinstance(given, list | tuple) and len(given) == 2
    return is_pair and all(isinstance(text, str) for text in given)


def behind(
    examples: Shaped[Array, "K ..."], images: Shaped[Array, "B ..."]
) -> Shaped[Array, "B N ..."]:
    """Each row's image (or images, [B, M, ...]) behind those of the examples."""
    if images.ndim == examples.ndim:
        images = images[:, None]
    shared = np.broadcast_to(examples, (len(images), *examples.shape))
    return np.concatenate([shared, images], axis=1)
