"""Captions and questions in JSON files, images in a directory.

Four layouts are recognised by their structure:

- LAVIS: `[{"image": path, "caption": str or [str, ...], "image_id": ...}, ...]`,
  one row per caption or per image; or rows with "question" and "answer" instead;
- the same objects, one per line (`.jsonl`);
- Karpathy: `{"images": [{"filename", "filepath"?, "split", "sentences": [{"raw"}]}]}`;
- COCO: `{"images": [{"id", "file_name"}], "annotations": [{"image_id", "caption"}]}`;
  NoCaps adds each image's "domain".

All rows of an image become one record: an epoch shows every image once, with one of its
captions.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from jaxtyping import UInt8
from numpy import ndarray as Array

from blip2_jax.data.sources.base import Question, Record, Source
from blip2_jax.data.sources.files import ImageFiles, read_annotations

# (image name, original id, captions, questions, part of the data set)
_Row = tuple[str, int | str | None, list[str], list[Question], str]


class AnnotationsSource(Source):
    """Images with captions or questions from JSON files.

    Args:
      path: path of a JSON file, or a list of paths.
      images: the directory to which image names are relative.
      splits: splits of the Karpathy layout to take; (): all. The paper's COCO training
        set is ("train", "restval").
      remap: see `ImageFiles`.

    Raises:
      FileNotFoundError: a file or the directory does not exist.
      ValueError: a file has none of the layouts.
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
        self._records = _group(rows)

    def __len__(self) -> int:
        return len(self._records)

    def record(self, index: int) -> Record:
        """Return the texts of a record; see `Source`."""
        return self._records[index]

    def load_image(
        self, index: int, at_least: int = 0
    ) -> UInt8[Array, "height width 3"]:
        """Load the image of a record; see `Source`."""
        return self._files.load(self._records[index].key, at_least)


def _read(path: str, splits: Sequence[str]) -> Iterator[_Row]:
    """Read the rows of a file in any of the layouts."""
    content = read_annotations(path)
    try:
        if isinstance(content, list):
            return iter([_lavis_row(row) for row in content])
        if "annotations" in content:
            return iter(_coco_rows(content))
        return iter(list(_karpathy_rows(content, splits)))
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(
            f"{path} has none of the known layouts (LAVIS, Karpathy, COCO): "
            f"{type(error).__name__} {error}"
        ) from None


def _lavis_row(row: Mapping[str, Any]) -> _Row:
    """Convert a row of the LAVIS layout."""
    captions = row.get("caption", [])
    questions = []
    if "question" in row:
        answers = row.get("answer", [])
        answers = (answers,) if isinstance(answers, str) else tuple(answers)
        questions.append(Question(row["question"], answers, row.get("question_id")))
    if isinstance(captions, str):
        captions = [captions]
    original = row.get("image_id", row.get("img_id"))  # "img_id" in NoCaps
    return row["image"], original, list(captions), questions, row.get("domain", "")


def _karpathy_rows(content: Mapping[str, Any], splits: Sequence[str]) -> Iterable[_Row]:
    """Yield the rows of a file in the Karpathy layout."""
    for image in content["images"]:
        if not splits or image["split"] in splits:
            folder = image.get("filepath", "")
            name = f"{folder}/{image['filename']}" if folder else image["filename"]
            original = image.get("cocoid", image.get("imgid"))
            yield name, original, [s["raw"] for s in image["sentences"]], [], ""


def _coco_rows(content: Mapping[str, Any]) -> Iterable[_Row]:
    """Yield the rows of a file in the COCO layout."""
    captions: dict[int, list[str]] = {image["id"]: [] for image in content["images"]}
    for annotation in content["annotations"]:
        captions[annotation["image_id"]].append(annotation["caption"])
    for image in content["images"]:
        own = captions[image["id"]]
        yield image["file_name"], image["id"], own, [], image.get("domain", "")


def _group(rows: Iterable[_Row]) -> list[Record]:
    """Make one record per image, in the order of first appearance."""
    images: dict[str, _Row] = {}
    for name, original, captions, questions, part in rows:
        _, _, all_captions, all_questions, _ = images.setdefault(
            name, (name, original, [], [], part)
        )
        all_captions += captions
        all_questions += questions
    return [
        Record(name, index, tuple(captions), tuple(questions), original, part=part)
        for index, (name, original, captions, questions, part) in enumerate(
            images.values()
        )
    ]
