"""Captions and questions in JSON files, images in a directory.

Four layouts are recognised by their structure:

- LAVIS: `[{"image": path, "caption": str or [str, ...], "image_id": ...}, ...]`,
  one row per caption or per image; or rows with "question" and "answer" instead;
- the same objects, one per line (`.jsonl`);
- Karpathy: `{"images": [{"filename", "filepath"?, "split", "sentences": [{"raw"}]}]}`;
- COCO: `{"images": [{"id", "file_name"}], "annotations": [{"image_id", "caption"}]}`;
  NoCaps adds each image's "domain".

All rows of an image become one record: an epoch shows every image once, with one of its
captions. A malformed row is a broken sample with file and row number.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from blip2_jax.data.sources.base import BrokenSample, Question
from blip2_jax.data.sources.checked_rows import (
    RecordsSource,
    Row,
    check_usable,
    group_by_image,
    parse_rows,
    take_id,
    take_mapping,
    take_name,
    take_text,
    take_texts,
)
from blip2_jax.data.sources.files import ImageFiles
from blip2_jax.parallel.files import json_lines, parse_json, read_json, read_text

_Rows = list[Row | BrokenSample]


class AnnotationsSource(RecordsSource):
    """Images with captions or questions from JSON files.

    Args:
      path: path of a JSON file, or a list of paths.
      images: the directory to which image names are relative.
      splits: splits of the Karpathy layout to take; (): all. The paper's COCO training
        set is ("train", "restval").
      remap: see `ImageFiles`.

    Raises:
      FileNotFoundError: a file or the directory does not exist.
      ValueError: a file has none of the layouts, or no usable row.
    """

    def __init__(
        self,
        path: str | Sequence[str],
        images: str,
        splits: Sequence[str] = (),
        remap: Mapping[str, str] | None = None,
    ):
        paths = [path] if isinstance(path, str) else list(path)
        self.name = "annotations:" + ",".join(paths)
        self._files = ImageFiles(images, remap)
        rows = (row for name in paths for row in _read(name, splits))
        super().__init__(group_by_image(rows))


def _read(path: str, splits: Sequence[str]) -> _Rows:
    """Read the rows of a file in any of the layouts."""
    unknown = f"{path} has none of the known layouts (LAVIS, Karpathy, COCO)"
    if path.endswith(".jsonl"):
        lines = json_lines(read_text(path))
        rows = parse_rows(
            path, lines, lambda line: _lavis_row(parse_json(line, "the line")), "line"
        )
    else:
        content = read_json(path)
        if isinstance(content, list):
            rows = parse_rows(path, enumerate(content, 1), _lavis_row, "row")
        elif not _has_list(content, "images"):
            raise ValueError(f'{unknown}: neither a list nor an object with "images"')
        elif _has_list(content, "annotations"):
            return _coco_rows(path, content, unknown)
        else:
            rows = _karpathy_rows(path, content["images"], splits)
    check_usable(rows, unknown)
    return rows


def _has_list(content: Any, key: str) -> bool:
    """Return True if `content` is an object with a list under `key`."""
    return isinstance(content, dict) and isinstance(content.get(key), list)


def _lavis_row(item: Any) -> Row:
    """Convert a row of the LAVIS layout."""
    row = take_mapping(item)
    questions: tuple[Question, ...] = ()
    if "question" in row:
        question_id = take_id(row.get("question_id"), "question_id")
        answers = take_texts(row.get("answer", ()), "answer")
        text = take_text(row["question"], "question")
        questions = (Question(text, answers, question_id),)
    return Row(
        take_name(row["image"]),
        take_texts(row.get("caption", ()), "caption"),
        questions,
        take_id(row.get("image_id", row.get("img_id")), "image_id"),  # NoCaps: img_id
        take_text(row.get("domain") or "", "domain"),
    )


def _karpathy_rows(path: str, images: list[Any], splits: Sequence[str]) -> _Rows:
    """Convert the images of some splits of a file in the Karpathy layout."""

    def is_taken(image: Any) -> bool:  # or malformed, which `parse` says
        return not isinstance(image, dict) or image.get("split", None) in (
            None,
            *splits,
        )

    def parse(item: Any) -> Row:
        image = take_mapping(item)
        if splits:
            take_text(image["split"], "split")
        return _karpathy_row(image)

    numbered: Iterable[tuple[int, Any]] = enumerate(images, 1)
    if splits:
        numbered = [(number, image) for number, image in numbered if is_taken(image)]
    return parse_rows(path, numbered, parse, "image")


def _karpathy_row(image: Mapping[str, Any]) -> Row:
    """Convert an image of the Karpathy layout."""
    folder = take_text(image.get("filepath", ""), "filepath")
    name = take_name(image["filename"], "filename")
    captions = [take_mapping(sentence)["raw"] for sentence in image["sentences"]]
    return Row(
        f"{folder}/{name}" if folder else name,
        take_texts(captions, "sentences"),
        original_id=take_id(image.get("cocoid", image.get("imgid")), "cocoid"),
    )


def _coco_rows(path: str, content: Mapping[str, Any], unknown: str) -> _Rows:
    """Convert a file in the COCO layout; broken annotations follow the images.

    An annotation of an image that the file lacks is broken.
    """
    images = parse_rows(path, enumerate(content["images"], 1), _coco_image, "image")
    check_usable(images, unknown)
    captions: dict[int | str | None, list[str]] = {
        row.original_id: [] for row in images if isinstance(row, Row)
    }

    def add_caption(item: Any) -> None:
        annotation = take_mapping(item)
        image = take_id(annotation["image_id"], "image_id")
        caption = take_text(annotation["caption"], "caption")
        if image not in captions:
            raise ValueError(f"no image has the id {image!r}")
        captions[image].append(caption)

    annotations = enumerate(content["annotations"], 1)
    added = parse_rows(path, annotations, add_caption, "annotation")
    check_usable(added, unknown)
    rows: _Rows = [
        Row(row.image, tuple(captions[row.original_id]), (), row.original_id, row.part)
        if isinstance(row, Row)
        else row
        for row in images
    ]
    return rows + [row for row in added if isinstance(row, BrokenSample)]


def _coco_image(item: Any) -> Row:
    """Convert an image of the COCO layout, without its captions."""
    image = take_mapping(item)
    domain = take_text(image.get("domain") or "", "domain")
    original = take_id(image["id"], "id")
    return Row(take_name(image["file_name"], "file_name"), (), (), original, domain)
