"""Files of captions and answers as the benchmarks' servers take them."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any

from blip2_jax.data.sources.base import Record

RESULT_FORMATS = ("vqa", "gqa")

# LAVIS's files of COCO name pictures and leave out ids; the name holds it.
_COCO_NAME = re.compile(r"COCO_\w+_0*(\d+)\.\w+$")


def caption_results(captions: Iterable[tuple[Record, str]]) -> list[dict[str, Any]]:
    """The list that the COCO and NoCaps caption servers take."""
    return [
        {"image_id": original_id(record), "caption": caption}
        for record, caption in captions
    ]


def answer_results(
    answers: Iterable[tuple[int | str, str]], result_format: str
) -> list[dict[str, Any]]:
    """The list that a server takes.

    Args:
      answers: pairs of question id and answer.
      result_format: "vqa" (VQAv2, OK-VQA) or "gqa".

    Raises:
      ValueError: another format.
    """
    if result_format == "vqa":
        return [{"question_id": key, "answer": answer} for key, answer in answers]
    if result_format == "gqa":
        return [{"questionId": str(key), "prediction": text} for key, text in answers]
    known = ", ".join(RESULT_FORMATS)
    raise ValueError(f"result_format {result_format!r}: there are {known}")


def original_id(record: Record) -> int | str:
    """The data set's own id of an image; its place where it has none."""
    if record.original_id is not None:
        return record.original_id
    named = _COCO_NAME.search(record.key)
    return int(named[1]) if named else record.image_id
