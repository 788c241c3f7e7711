"""Questions and answers in the layout of the VQA challenge or of GQA."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
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
from blip2_jax.data.sources.checked_rows import (
    RecordsSource,
    check_usable,
    parse_rows,
    take_id,
    take_mapping,
    take_name,
    take_text,
    take_texts,
)
from blip2_jax.data.sources.content_digest import Digests
from blip2_jax.data.sources.files import ImageFiles
from blip2_jax.data.sources.registry import build_source
from blip2_jax.parallel.files import read_json

ByImage = dict[int | str, list[Question]]
Part = Literal["all", "tenth", "rest"]


class VqaSource(RecordsSource):
    """One record per image, with all of its questions; malformed questions follow.

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
        all_images, broken = _group_by_image(_questions(questions, answers))
        left_out = _check_answers(all_images, answers, annotations)
        by_image = _select_part(all_images, part, block)
        records: list[Record | BrokenSample] = [
            Record(image_name.format(image), index, (), tuple(image_questions), image)
            for index, (image, image_questions) in enumerate(by_image.items())
        ]
        super().__init__([*records, *broken])
        self.left_out = left_out
        self._images: Source | None = None
        if isinstance(images, str):
            self._files = ImageFiles(images, remap)
        else:
            self._images = build_source(images)
            self.image_kind: ImageKind = self._images.image_kind
            self.feature_origin = self._images.feature_origin
            self._rows = {key: row for row, key in enumerate(self._images.keys())}
            self.left_out = {**self._images.left_out, **left_out}

    def load_image(
        self, index: int, at_least: int = 0
    ) -> UInt8[Array, "height width 3"]:
        """Load the image of a record; see `Source`."""
        if self._images is None:
            return super().load_image(index, at_least)
        source, row = self._image_row(index)
        return source.load_image(row, at_least)

    def encoded_image(self, index: int) -> bytes | None:
        """Read the image of a record; see `Source`."""
        if self._images is None:
            return super().encoded_image(index)
        source, row = self._image_row(index)
        return source.encoded_image(row)

    def check_image(self, index: int) -> None:
        """Check that the image is there; see `Source`."""
        super().check_image(index)
        if self._images is not None:
            source, row = self._image_row(index)
            source.check_image(row)

    def content(self) -> Digests:
        """Return digests of all texts and of the images; see `Source`."""
        images = {} if self._images is None else self._images.content()
        return super().content() | {f"images: {k}": v for k, v in images.items()}

    def load_features(self, index: int, crop: int = 0) -> Float[Array, "P D"]:
        """Load the features of a record; see `Source`."""
        source, row = self._image_row(index)
        return source.load_features(row, crop)

    def _image_row(self, index: int) -> tuple[Source, int]:
        """Return the source of a record's image and the index in it."""
        key = self.record(index).key
        if self._images is None or key not in self._rows:
            raise BrokenSample("missing image", key)
        return self._images, self._rows[key]


class _Answers(NamedTuple):
    """The answers of a question and its kind."""

    texts: tuple[str, ...] = ()
    kind: str = ""


def _answers(path: str, field: str) -> dict[int | str | None, _Answers]:
    """Read the answers of an annotations file by question id.

    A malformed row leaves its question without answers, which counts there.
    """
    if field not in ("answers", "multiple_choice_answer"):
        raise ValueError(
            f"answer must be answers or multiple_choice_answer, not {field!r}"
        )

    def parse(item: Any) -> tuple[int | str | None, _Answers]:
        row = take_mapping(item)
        if field == "answers":
            texts = [take_mapping(each)["answer"] for each in row["answers"]]
        else:
            texts = [row[field]]
        kind = take_text(row.get("answer_type") or "", "answer_type")
        question_id = take_id(row["question_id"], "question_id")
        return question_id, _Answers(take_texts(texts, field), kind)

    content = _list_under(read_json(path), path, "annotations")
    rows = parse_rows(path, enumerate(content, 1), parse, "annotation")
    check_usable(rows, f"{path} is not a VQA file")
    return dict(row for row in rows if not isinstance(row, BrokenSample))


def _questions(
    path: str, answers: Mapping[int | str | None, _Answers]
) -> list[tuple[int | str, Question] | BrokenSample]:
    """Read the questions of a file, each with its image id."""
    content = read_json(path)
    if _is_gqa(content):
        items = enumerate(content.items(), 1)
        rows = parse_rows(path, items, lambda item: _gqa_question(*item), "question")
    else:
        listed = enumerate(_list_under(content, path, "questions"), 1)
        rows = parse_rows(path, listed, lambda row: _question(row, answers), "question")
    check_usable(rows, f"{path} is not a VQA file")
    return rows


def _group_by_image(
    rows: Iterable[tuple[int | str, Question] | BrokenSample],
) -> tuple[ByImage, list[BrokenSample]]:
    """Group questions by image, in the order of the file; also return broken ones."""
    images: ByImage = {}
    broken = []
    for row in rows:
        if isinstance(row, BrokenSample):
            broken.append(row)
        else:
            images.setdefault(row[0], []).append(row[1])
    return images, broken


def _check_answers(
    by_image: ByImage, answers: Mapping[int | str | None, _Answers], path: str
) -> dict[str, int]:
    """Count the answers to questions that are not asked.

    Raises:
      ValueError: there are answers, but none of them is to one of the questions.
    """
    asked = {q.question_id for questions in by_image.values() for q in questions}
    unknown = sum(question_id not in asked for question_id in answers)
    if answers and unknown == len(answers):
        raise ValueError(
            f"{path} answers none of the questions: its first question_id is "
            f"{next(iter(answers))!r}, that of the questions {next(iter(asked))!r}"
        )
    return {"answers to unknown questions": unknown} if unknown else {}


def _select_part(by_image: ByImage, part: Part, block: int) -> ByImage:
    """Select the images of a part; see `VqaSource`."""
    if part not in get_args(Part) or block < 1:
        raise ValueError(
            f"part must be all, tenth or rest and block at least 1, not {part!r} and "
            f"{block}"
        )
    if part == "all":
        return by_image
    ids: list[Any] = list(by_image)
    if len({isinstance(image, str) for image in ids}) > 1:
        raise ValueError(
            f"part {part!r} needs image ids of one type, but some are numbers and "
            "some are texts"
        )
    tenth = {image for i, image in enumerate(sorted(ids)) if i // block % 10 == 0}
    return {
        image: questions
        for image, questions in by_image.items()
        if (image in tenth) == (part == "tenth")
    }


def _question(
    item: Any, answers: Mapping[int | str | None, _Answers]
) -> tuple[int | str, Question]:
    """Convert a question of the VQA layout; also return its image id."""
    row = take_mapping(item)
    question_id = take_id(row["question_id"], "question_id")
    texts, kind = answers.get(question_id, _Answers())
    question = Question(
        take_text(row["question"], "question"), texts, question_id, kind
    )
    return _image_id(row["image_id"], "image_id"), question


def _is_gqa(content: Any) -> bool:
    """Return True for GQA's layout: questions by id, each with its image id."""
    first = next(iter(content.values()), None) if isinstance(content, dict) else None
    return isinstance(first, dict) and "imageId" in first


def _gqa_question(name: str, item: Any) -> tuple[int | str, Question]:
    """Convert a question of GQA's layout; also return its image id."""
    row = take_mapping(item)
    answers = take_texts((row["answer"],), "answer") if "answer" in row else ()
    kind = (row.get("types") or {}).get("structural") or ""
    question = Question(
        take_text(row["question"], "question"),
        answers,
        take_text(name, "question id"),
        take_text(kind, "types.structural"),
    )
    return _image_id(row["imageId"], "imageId"), question


def _image_id(value: Any, field: str) -> int | str:
    """Return the id of an image, which must be there.

    Raises:
      ValueError: it is null or of another type.
    """
    image_id = take_id(value, field)
    if image_id is None or image_id == "":
        raise ValueError(f"{field} is empty")
    return take_name(image_id, field) if isinstance(image_id, str) else image_id


def _list_under(content: Any, path: str, field: str) -> list[Any]:
    """Return the list under a key of a VQA file."""
    if not isinstance(content, dict) or not isinstance(content.get(field), list):
        raise ValueError(f"{path} has no list {field!r}, so it is not a VQA file")
    return content[field]
