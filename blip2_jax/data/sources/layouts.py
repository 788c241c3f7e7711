"""Recognition of the layout in which captions and images are kept.

layout = detect_layout("my_photos/")
print(layout)               # one line: kind, columns, records, image directory
config.data.train = (layout.spec,)
"""

from __future__ import annotations

import dataclasses
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from blip2_jax.data import hub
from blip2_jax.data.sources.base import BrokenSample, ImageKind, Source
from blip2_jax.data.sources.checked_rows import RecordsSource
from blip2_jax.data.sources.layout_files import CompleteSpec, Request, match_file
from blip2_jax.data.sources.layout_folders import match_folder
from blip2_jax.data.sources.reading import read_features, read_pixels, read_record
from blip2_jax.data.sources.registry import build_source
from blip2_jax.parallel.paths import as_path

_SAMPLED = 1000  # records that are checked of a source that does not hold them
_IMAGES_TRIED = 20


@dataclasses.dataclass(frozen=True)
class Layout:
    """The layout of a data set.

    Attributes:
      spec: complete spec of the source, for `config.data.train`.
      title: name of the layout.
      columns: the columns that are used, "" if the layout has none.
      records: number of images, malformed rows included.
      captions: number of captions of the checked records.
      questions: number of questions of the checked records.
      checked: number of checked records, from the first.
      broken: defects of the checked records.
      left_out: elements of the files that are not records, by reason (see `Source`).
      images: where the images are.
    """

    spec: dict[str, Any]
    title: str
    columns: str
    records: int
    captions: int
    questions: int
    checked: int
    broken: tuple[str, ...]
    left_out: Mapping[str, int]
    images: str

    def __str__(self) -> str:
        """Describe the layout in one line."""
        path = self.spec.get("path", self.spec.get("paths"))
        counts = [f"{self.records} images"]
        counts += [f"{self.captions} captions"] if self.captions else []
        counts += [f"{self.questions} questions"] if self.questions else []
        if self.checked < self.records:
            counts[1:] = [f"{' and '.join(counts[1:])} in the first {self.checked}"]
        if self.broken:
            counts.append(f"{len(self.broken)} broken ({self.broken[0]})")
        counts += [f"{n} {reason} left out" for reason, n in self.left_out.items()]
        parts = [f"{path}: {self.title}", ", ".join(counts)]
        parts += [f"columns: {self.columns}"] if self.columns else []
        if splits := self.spec.get("splits"):
            parts.append(f"splits: {', '.join(splits)}")
        return "; ".join([*parts, f"images: {self.images}"])


def detect_layout(
    path: str | pathlib.Path,
    *,
    images: str = "",
    columns: Mapping[str, str | Sequence[str]] | None = None,
    split: str = "",
    default_split: str = "",
) -> Layout:
    """Detect the layout of a data set and check that it can be read.

    Args:
      path: a file of annotations, a folder, or a glob pattern of Parquet files or tars;
        also on a store ("s3://BUCKET/KEY", see `parallel.paths`) or of the Hugging Face
        hub ("hf://datasets/ORG/NAME", see `data.hub`).
      images: the image directory; "": search for it near the annotations.
      columns: names of columns by field (see `columns.USUAL_NAMES`); other fields are
        found by their usual names.
      split: the split to take ("train", "validation", "test"), from names of files,
        from a column, or by the layout; "": all.
      default_split: the split to take if there are several and `split` is "".

    Raises:
      FileNotFoundError: the path does not exist, or no image is where it should be; the
        message names the first path tried.
      ValueError: no layout matches, or several do; the message names them, and what was
        looked for.
    """
    path, images = hub.data_path(path), images and hub.data_path(images)
    request = Request(images, dict((columns or {}).items()), split, default_split)
    found = _recognise(path, request)
    source = build_source(found.spec)
    counts = _count_texts(source)
    if not counts["captions"] and not counts["questions"]:
        raise ValueError(
            f"{path} has no captions or questions{_first(counts['broken'])}"
        )
    _check_images(source, found.images)
    return Layout(
        spec={key: _cached_name(value) for key, value in found.spec.items()},
        title=found.title,
        columns=str(getattr(source, "columns", "")),
        records=len(source),
        left_out=source.left_out,
        images=found.images,
        **counts,
    )


def _cached_name(value: Any) -> Any:
    """Replace paths in the cache of the hub by names, which a run can store."""
    if isinstance(value, str):
        return hub.cached_name(value)
    return [_cached_name(item) for item in value] if isinstance(value, list) else value


def _recognise(path: str, request: Request) -> CompleteSpec:
    """Recognise the layout of a file, a folder or a pattern."""
    if as_path(path).is_dir():
        match, request = match_folder(as_path(path), request)
    else:
        match = match_file(path, request.columns)
    return match.complete(request)


def _count_texts(source: Source) -> dict[str, Any]:
    """Count the texts and broken records of a source: some fields of `Layout`."""
    checked = len(source)
    if not isinstance(source, RecordsSource):  # reading all may take minutes
        checked = min(checked, _SAMPLED)
    captions = questions = 0
    broken: list[str] = []
    for index in range(checked):
        try:
            record = read_record(source, index)
        except BrokenSample as error:
            broken.append(str(error))
            continue
        captions += len(record.captions)
        questions += len(record.questions)
    return {
        "captions": captions,
        "questions": questions,
        "checked": checked,
        "broken": tuple(broken),
    }


def _check_images(source: Source, images: str) -> None:
    """Check that one of the first images, or their features, can be loaded.

    Raises:
      FileNotFoundError: none can; the message describes the first.
    """
    problems = []
    has_features = source.image_kind is ImageKind.FEATURES
    read: Callable[[Source, int, str], Any]
    read = read_features if has_features else read_pixels
    for index in range(len(source)):
        try:
            read(source, index, "")
        except BrokenSample as error:
            problems.append(str(error))
        else:
            return
        if len(problems) == _IMAGES_TRIED:
            break
    raise FileNotFoundError(
        f"none of the first {len(problems)} images of {source.name} can be read in "
        f"{images}; the first: {problems[0]}"
    )


def _first(problems: Sequence[str]) -> str:
    return f"; the first problem: {problems[0]}" if problems else ""
