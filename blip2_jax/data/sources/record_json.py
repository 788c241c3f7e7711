"""The texts and ids of a record as a JSON object, in the files that `prepare` writes.

    {"key": "0001.jpg", "captions": ["a cat"], "image_id": 1,
     "blip2_jax": {"questions": [{"question": "what?", "answers": ["a cat"]}]}}

Empty fields are left out. The names of the first three are those that img2dataset's
tars use. Fields that only this package knows stand under its name, because other tools
may give theirs another meaning.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from blip2_jax.data.sources.base import Question, Record
from blip2_jax.data.sources.checked_rows import (
    take_id,
    take_mapping,
    take_text,
    take_texts,
)

OWN_FIELDS = "blip2_jax"


def record_to_json(record: Record) -> dict[str, Any]:
    """Return the texts and ids of a record as a JSON object."""
    own = {
        "questions": [_question_to_json(question) for question in record.questions],
        "description": record.description,
        "part": record.part,
    }
    fields = {
        "key": record.key,
        "captions": list(record.captions),
        "image_id": record.original_id,
        OWN_FIELDS: _without_empty(own),
    }
    return _without_empty(fields)


def record_from_json(content: Any, key: str, image_id: int) -> Record:
    """Return the record that a JSON object describes.

    Args:
      content: the object; "caption" may stand for "captions".
      key: key of the record.
      image_id: index of its image in the source.

    Raises:
      ValueError: the content is no object, or a field has a wrong type.
      KeyError: a question has no text.
    """
    fields = take_mapping(content)
    own = take_mapping(fields.get(OWN_FIELDS, {}))
    captions = fields.get("captions") or fields.get("caption") or ()
    return Record(
        key,
        image_id,
        take_texts(captions, "captions"),
        tuple(_question_from_json(item) for item in own.get("questions", ())),
        take_id(fields.get("image_id"), "image_id"),
        take_text(own.get("description", ""), "description"),
        take_text(own.get("part", ""), "part"),
    )


def _question_to_json(question: Question) -> dict[str, Any]:
    fields = {
        "question": question.text,
        "answers": list(question.answers),
        "question_id": question.question_id,
        "kind": question.kind,
    }
    return {"question": question.text, **_without_empty(fields)}


def _question_from_json(item: Any) -> Question:
    fields = take_mapping(item)
    return Question(
        take_text(fields["question"], "question"),
        take_texts(fields.get("answers", ()), "answers"),
        take_id(fields.get("question_id"), "question_id"),
        take_text(fields.get("kind", ""), "kind"),
    )


def _without_empty(fields: Mapping[str, Any]) -> dict[str, Any]:
    """Leave out fields without content; 0 is an id."""
    return {name: v for name, v in fields.items() if v not in ("", None, [], {})}
