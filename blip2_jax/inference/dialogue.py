"""Prompts and images of questions that follow earlier turns or in-context examples."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Shaped
from numpy import ndarray as Array

from blip2_jax.data.text.chat import Conversation
from blip2_jax.data.text.prompts import QUESTION_PROMPT, dialogue_prompt
from blip2_jax.data.text.tokenizers import clean_question
from blip2_jax.inference import inputs

Turn = tuple[str, str]  # a question and its answer
_MARK = "\0"  # stands for a question; no template contains it


class QuestionPrompts(NamedTuple):
    """Texts for one question per row.

    Attributes:
      prompts: prompts of the language model.
      qformer_questions: questions for the Q-Former: one per example image, then the
        row's own.
    """

    prompts: list[Conversation]
    qformer_questions: list[list[str]]


def question_prompts(
    questions: str | Sequence[str],
    history: Any,
    example_turns: Sequence[Turn],
    template: str,
) -> QuestionPrompts:
    """Build the prompts of questions.

    Args:
      questions: one for all rows, or one per row.
      history: see `as_turns`.
      example_turns: turns about other images; they precede the history of every row.
      template: template of a question.

    Raises:
      TypeError: a question is not a string, or `history` has another form.
      ValueError: there are no questions, their number differs from `history`'s, or the
        template has no place for the question.
    """
    check_template(template)
    questions = [clean_question(q) for q in inputs.as_texts(questions, "questions")]
    questions, turns = inputs.align(questions=questions, history=as_turns(history))
    examples = _clean_turns(example_turns)
    example_questions = [question for question, _ in examples]
    prompts, qformer_questions = [], []
    for question, row in zip(questions, turns, strict=True):
        prompts.append(
            dialogue_prompt([*examples, *_clean_turns(row)], question, template)
        )
        qformer_questions.append([*example_questions, question])
    return QuestionPrompts(prompts, qformer_questions)


def check_template(template: str) -> None:
    """Check that a template of questions has one place, `{}`, for the question.

    Raises:
      ValueError: it has none, or another one.
    """
    try:
        filled = template.format(_MARK)
    except (LookupError, ValueError, AttributeError):
        filled = ""
    if _MARK not in filled:
        raise ValueError(
            f"question_prompt={template!r}: expected a text with {{}} in place of the "
            f"question, such as {QUESTION_PROMPT!r}"
        )


def _clean_turns(turns: Sequence[Turn]) -> list[Turn]:
    return [(clean_question(question), answer) for question, answer in turns]


def as_turns(history: Any) -> list[list[Turn]]:
    """Convert a history to one list of turns for all rows, or one list per row.

    Args:
      history: (question, answer) pairs, or a list of such lists.

    Raises:
      TypeError: `history` has another form.
    """
    items = list(history or ())
    is_shared = all(_is_turn(item) for item in items)
    rows = [items] if is_shared else [_as_list(row) for row in items]
    for turn in (turn for row in rows for turn in row):
        if not _is_turn(turn):
            raise TypeError(
                "history is pairs (question, answer), or one list of them per row, not "
                f"{turn!r}"
            )
    return [[(question, answer) for question, answer in row] for row in rows]


def _as_list(row: Any) -> list[Any]:
    return list(row) if isinstance(row, list | tuple) else [row]


def split_examples(examples: Any) -> tuple[list[Any], list[Turn]]:
    """Split in-context examples into their images and their turns.

    Args:
      examples: (image or features, question, answer) each.

    Raises:
      TypeError: an example has another form.
    """
    examples = list(examples or ())
    for example in examples:
        is_triple = isinstance(example, list | tuple) and len(example) == 3
        if not is_triple or not _is_turn(example[1:]):
            raise TypeError(
                "examples are triples (image or features, question, answer), not "
                f"{type(example).__name__}: {example!r:.80}"
            )
    return [image for image, *_ in examples], [(q, a) for _, q, a in examples]


def _is_turn(value: Any) -> bool:
    is_pair = isinstance(value, list | tuple) and len(value) == 2
    return is_pair and all(isinstance(text, str) for text in value)


def prepend_images(
    examples: Shaped[Array, "examples ..."], images: Shaped[Array, "B ..."]
) -> Shaped[Array, "B images ..."]:
    """Put the example images before each row's image or images ([B, images, ...])."""
    if images.ndim == examples.ndim:
        images = images[:, None]
    repeated = np.broadcast_to(examples, (len(images), *examples.shape))
    return np.concatenate([repeated, images], axis=1)
