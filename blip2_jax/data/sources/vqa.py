"""Questions and answers in the layout of the VQA challenge."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, Literal, NamedTuple

from jaxtyping import Float, UInt8
from numpy import ndarray as Array

from blip2_jax.data.sources.base import (
    BrokenSample,
    ImageKind,
    Question,
    Record,
    Source,
)
from blip2_jax.data.sources.files import ImageFiles, read_text_file
from blip2_jax.data.sources.registry import build_source


class VqaSource(Source):
    """One record an image, with all of its questions.

    Args:
      questions: `OpenEnded_..._questions.json`.
      annotations: `..._annotations.json`; "" for questions without answers.
      images: a directory, or the spec of another source that holds the images (or
        their features) under keys.
      image_name: what an image is called there, as a format of its id:
        "COCO_val2014_{:012d}.jpg", or "test-00000/{:09d}" for a tar's keys.
      answer: "answers" offers every annotator's answer, so that one is drawn;
        "multiple_choice_answer" only the agreed one.
      remap: see `ImageFiles`.

    Raises:
      FileNotFoundError: a file or directory is missing.
      ValueError: the files are not in this layout.
    """

    def __init__(
        self,
        questions: str,
        images: str | Mapping[str, Any],
        image_name: str,
        annotations: str = "",
        answer: Literal["answers", "multiple_choice_answer"] = "answers",
        remap: Mapping[str, str] | None = None,
    ):
        self.name = f"vqa:{questions}"
        answers = _answers(annotations, answer) if annotations else {}
        self._records = _records(questions, answers, image_name)
        self._files: ImageFiles | None = None
        self._images: Source | None = None
        if isinstance(images, str):
            self._files = ImageFiles(images, remap)
        else:
            self._images = build_source(images)
            self.image_kind: ImageKind = self._images.image_kind
            self._rows = {key: row for row, key in enumerate(self._images.keys())}

    def __len__(self) -> int:
        return len(self._records)

    def record(self, index: int) -> Record:
        return self._records[index]

    def load_image(
        self, index: int, at_least: int = 0
    ) -> UInt8[Array, "height width 3"]:
        if self._files is not None:
            return self._files.load(self._records[index].key, at_least)
        source, row = self._held(index)
        return source.load_image(row, at_least)

    def load_features(self, index: int) -> Float[Array, "P D"]:
        source, row = self._held(index)
        return source.load_features(row)

    def _held(self, index: int) -> tuple[Source, int]:
        key = self._records[index].key
        if self._images is None or key not in self._rows:
            raise BrokenSample("missing image", key)
        return self._images, self._rows[key]


class _Answers(NamedTuple):
    given: tuple[str, ...] = ()
    kind: str = ""


def _answers(path: str, field: str) -> dict[int | str, _Answers]:
    if field not in ("answers", "multiple_choice_answer"):
        raise ValueError(f"answer {field!r}: answers or multiple_choice_answer")
    answers = {}
    for row in _rows(path, "annotations"):
        agreed = field == "multiple_choice_answer"
        given = [row[field]] if agreed else [item["answer"] for item in row[field]]
        kind = row.get("answer_type", "")
        answers[row["question_id"]] = _Answers(tuple(given), kind)
    return answers


def _records(
    path: str, answers: Mapping[int | str, _Answers], image_name: str
) -> list[Record]:
    images: dict[int, list[Question]] = {}
    for row in _rows(path, "questions"):
        question_id = row["question_id"]
        given, kind = answers.get(question_id, _Answers())
        question = Question(row["question"], given, question_id, kind)
        images.setdefault(row["image_id"], []).append(question)
    return [
        Record(image_name.format(image), index, (), tuple(questions), image)
        for index, (image, questions) in enumerate(images.items())
    ]


def _rows(path: str, field: str) -> list[dict[str, Any]]:
    content = json.loads(read_text_file(path))
    if not isinstance(content, dict) or field not in content:
        raise ValueError(f"{path} has no {field!r}: not the layout of VQA files")
    return content[field]
