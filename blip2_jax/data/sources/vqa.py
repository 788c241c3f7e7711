"""Questions and answers in the layout of the VQA challenge, or of GQA."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, Literal, NamedTuple, get_args

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

ByImage = dict[int | str, list[Question]]
Part = Literal["all", "tenth", "rest"]


class VqaSource(Source):
    """One record an image, with all of its questions.

    Args:
      questions: `OpenEnded_..._questions.json`, or GQA's `..._questions.json`, which
        has the answers (and the "structural" type, for scores apart) in it.
      annotations: `..._annotations.json`; "" for questions without answers, and GQA.
      images: a directory, or the spec of another source that holds the images (or
        their features) under keys.
      image_name: what an image is called there, as a format of its id:
        "COCO_val2014_{:012d}.jpg", "{}.jpg" for GQA, or "test-00000/{:09d}" for a
        tar's keys.
      answer: "answers" offers every annotator's answer, so that one is drawn;
        "multiple_choice_answer" only the agreed one.
      remap: see `ImageFiles`.
      part: "all" images; or one "tenth" of them, or the "rest": a validation part
        where the data set has none.
      block: images that stay together then, neighbours in the order of their ids (of
        one film, or one room): the tenth is every tenth block, the first included.

    Raises:
      FileNotFoundError: a file or directory is missing.
      ValueError: the files are not in this layout, or there is no such part.
    """

    def __init__(
        self,
        questions: str,
        images: str | Mapping[str, Any],
        image_name: str,
        annotations: str = "",
        answer: Literal["answers", "multiple_choice_answer"] = "answers",
        remap: Mapping[str, str] | None = None,
        part: Part = "all",
        block: int = 1,
    ):
        self.name = f"vqa:{questions}" + (f" ({part})" if part != "all" else "")
        answers = _answers(annotations, answer) if annotations else {}
        asked = _part(_by_image(questions, answers), part, block)
        self._records = [
            Record(image_name.format(image), index, (), tuple(about), image)
            for index, (image, about) in enumerate(asked.items())
        ]
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
    for row in _rows(json.loads(read_text_file(path)), path, "annotations"):
        agreed = field == "multiple_choice_answer"
        given = [row[field]] if agreed else [item["answer"] for item in row[field]]
        kind = row.get("answer_type", "")
        answers[row["question_id"]] = _Answers(tuple(given), kind)
    return answers


def _by_image(path: str, answers: Mapping[int | str, _Answers]) -> ByImage:
    """The questions about each image, in the order of the file."""
    content = json.loads(read_text_file(path))
    if _is_gqa(content):
        asked = [_gqa_question(name, row) for name, row in content.items()]
    else:
        asked = [
            (row["image_id"], _question(row, answers))
            for row in _rows(content, path, "questions")
        ]
    images: ByImage = {}
    for image, question in asked:
        images.setdefault(image, []).append(question)
    return images


def _part(asked: ByImage, part: Part, block: int) -> ByImage:
    """The images of a part; see `VqaSource`."""
    if part not in get_args(Part) or block < 1:
        raise ValueError(
            f"part {part!r} in blocks of {block}: all, tenth or rest, in blocks of 1 "
            "or more"
        )
    if part == "all":
        return asked
    ids: list[Any] = list(asked)  # all numbers or all strings
    held_out = {
        image for place, image in enumerate(sorted(ids)) if place // block % 10 == 0
    }
    return {
        image: about
        for image, about in asked.items()
        if (image in held_out) == (part == "tenth")
    }


def _question(
    row: Mapping[str, Any], answers: Mapping[int | str, _Answers]
) -> Question:
    given, kind = answers.get(row["question_id"], _Answers())
    return Question(row["question"], given, row["question_id"], kind)


def _is_gqa(content: Any) -> bool:
    """Whether these are questions by their ids, each with its image."""
    first = next(iter(content.values()), None) if isinstance(content, dict) else None
    return isinstance(first, dict) and "imageId" in first


def _gqa_question(name: str, row: Mapping[str, Any]) -> tuple[str, Question]:
    given = (row["answer"],) if "answer" in row else ()
    kind = row.get("types", {}).get("structural", "")
    return row["imageId"], Question(row["question"], given, name, kind or "")


def _rows(content: Any, path: str, field: str) -> list[dict[str, Any]]:
    if not isinstance(content, dict) or field not in content:
        raise ValueError(f"{path} has no {field!r}: not the layout of VQA files")
    return content[field]
