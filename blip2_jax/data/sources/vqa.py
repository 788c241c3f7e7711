"""Questions and answers in the layout of the VQA challenge or of GQA."""

from __future__ import annotations

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
from blip2_jax.data.sources.files import ImageFiles, read_annotations
from blip2_jax.data.sources.registry import build_source

ByImage = dict[int | str, list[Question]]
Part = Literal["all", "tenth", "rest"]


class VqaSource(Source):
    """One record per image, with all of its questions.

    Args:
      questions: path of `OpenEnded_..._questions.json`, or of GQA's
        `..._questions.json`, which includes the answers and question types.
      images: a directory, or the spec of a source with the images or their features.
      image_name: format of an image's name or key there from its id:
        "COCO_val2014_{:012d}.jpg", "{}.jpg" for GQA, "test-00000/{:09d}" for tars.
      annotations: path of `..._annotations.json`; "" for GQA, or without answers.
      answer: "answers" takes every annotator's answer, of which one is drawn,
        "multiple_choice_answer" only the agreed one.
      remap: see `ImageFiles`.
      part: "all" images, a "tenth" of them, or the "rest", for data sets without a
        validation split.
      block: number of images, neighbours in the order of their ids (of one film or
        room), that stay in the same part: the tenth is blocks 0, 10, 20, ...

    Raises:
      FileNotFoundError: a file or directory does not exist.
      ValueError: a file has another layout, or the part does not exist.
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
        by_image = _select_part(_by_image(questions, answers), part, block)
        self._records = [
            Record(image_name.format(image), index, (), tuple(image_questions), image)
            for index, (image, image_questions) in enumerate(by_image.items())
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
        """Return the texts of a record; see `Source`."""
        return self._records[index]

    def load_image(
        self, index: int, at_least: int = 0
    ) -> UInt8[Array, "height width 3"]:
        """Load the image of a record; see `Source`."""
        if self._files is not None:
            return self._files.load(self._records[index].key, at_least)
        source, row = self._image_row(index)
        return source.load_image(row, at_least)

    def load_features(self, index: int) -> Float[Array, "P D"]:
        """Load the features of a record; see `Source`."""
        source, row = self._image_row(index)
        return source.load_features(row)

    def _image_row(self, index: int) -> tuple[Source, int]:
        """Return the source of a record's image and the index in it."""
        key = self._records[index].key
        if self._images is None or key not in self._rows:
            raise BrokenSample("missing image", key)
        return self._images, self._rows[key]


class _Answers(NamedTuple):
    """The answers of a question and its kind."""

    texts: tuple[str, ...] = ()
    kind: str = ""


def _answers(path: str, field: str) -> dict[int | str, _Answers]:
    """Read the answers of an annotations file by question id."""
    if field not in ("answers", "multiple_choice_answer"):
        raise ValueError(
            f"answer must be answers or multiple_choice_answer, not {field!r}"
        )
    answers = {}
    for row in _rows(read_annotations(path), path, "annotations"):
        agreed = field == "multiple_choice_answer"
        texts = [row[field]] if agreed else [item["answer"] for item in row[field]]
        kind = row.get("answer_type", "")
        answers[row["question_id"]] = _Answers(tuple(texts), kind)
    return answers


def _by_image(path: str, answers: Mapping[int | str, _Answers]) -> ByImage:
    """Group the questions of a file by image, in the order of the file."""
    content = read_annotations(path)
    if _is_gqa(content):
        questions = [_gqa_question(name, row) for name, row in content.items()]
    else:
        questions = [
            (row["image_id"], _question(row, answers))
            for row in _rows(content, path, "questions")
        ]
    images: ByImage = {}
    for image, question in questions:
        images.setdefault(image, []).append(question)
    return images


def _select_part(by_image: ByImage, part: Part, block: int) -> ByImage:
    """Select the images of a part; see `VqaSource`."""
    if part not in get_args(Part) or block < 1:
        raise ValueError(
            f"part must be all, tenth or rest and block at least 1, not {part!r} and "
            f"{block}"
        )
    if part == "all":
        return by_image
    ids: list[Any] = list(by_image)  # all numbers or all strings
    tenth = {image for i, image in enumerate(sorted(ids)) if i // block % 10 == 0}
    return {
        image: questions
        for image, questions in by_image.items()
        if (image in tenth) == (part == "tenth")
    }


def _question(
    row: Mapping[str, Any], answers: Mapping[int | str, _Answers]
) -> Question:
    """Convert a question of the VQA layout."""
    texts, kind = answers.get(row["question_id"], _Answers())
    return Question(row["question"], texts, row["question_id"], kind)


def _is_gqa(content: Any) -> bool:
    """Return True for GQA's layout: questions by id, each with its image id."""
    first = next(iter(content.values()), None) if isinstance(content, dict) else None
    return isinstance(first, dict) and "imageId" in first


def _gqa_question(name: str, row: Mapping[str, Any]) -> tuple[str, Question]:
    """Convert a question of GQA's layout; also return its image id."""
    answers = (row["answer"],) if "answer" in row else ()
    kind = row.get("types", {}).get("structural", "")
    return row["imageId"], Question(row["question"], answers, name, kind or "")


def _rows(content: Any, path: str, field: str) -> list[dict[str, Any]]:
    """Return the list under a key of a VQA file."""
    if not isinstance(content, dict) or field not in content:
        raise ValueError(f"{path} has no key {field!r}, so it is not a VQA file")
    return content[field]
