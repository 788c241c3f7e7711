"""Recognition of the layout of an annotation file."""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import pathlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import pyarrow as pa

from blip2_jax.data.sources.array_records import SUFFIX as ARRAY_RECORDS
from blip2_jax.data.sources.arrow_table import (
    ArrowSource,
    ParquetSource,
    encoded_columns,
)
from blip2_jax.data.sources.columns import Columns, find_columns
from blip2_jax.data.sources.csv_table import CsvSource
from blip2_jax.data.sources.image_directory import find_image_directory, is_file
from blip2_jax.data.sources.json_table import (
    LINES_SUFFIXES,
    CaptionsByFileSource,
    JsonSource,
    has_lines,
)
from blip2_jax.data.sources.split_names import choose_split, same_split, split_of
from blip2_jax.data.sources.table_source import Table, TableSource, file_name
from blip2_jax.data.sources.url_list import (
    UrlListSource,
    is_parallel_lists,
    is_url_list,
    likely_names,
)
from blip2_jax.data.sources.visual_genome import (
    VisualGenomeSource,
    is_visual_genome,
    likely_image_names,
)
from blip2_jax.parallel.files import read_json, read_text
from blip2_jax.parallel.paths import as_path, glob_paths

TEXT_SUFFIXES = (".csv", ".tsv", ".txt")
TABLE_SUFFIXES = (*TEXT_SUFFIXES, ".json", *LINES_SUFFIXES)
SUFFIXES = (*TABLE_SUFFIXES, ".parquet", ".tar", ARRAY_RECORDS)
# Title, kind of the source and place of the images, by suffix.
SHARDS = {
    ".tar": ("tars", "tars", "in the tars"),
    ARRAY_RECORDS: ("ArrayRecord", "array_record", "in the files"),
}
_NAMES_TRIED = 20  # images that are looked for

GivenColumns = Mapping[str, str | Sequence[str]]


@dataclasses.dataclass(frozen=True)
class Request:
    """What the user says about a data set; see `layouts.detect_layout`."""

    images: str = ""
    columns: GivenColumns = dataclasses.field(default_factory=dict)
    split: str = ""
    default_split: str = ""

    def without_split(self) -> Request:
        """Return the request after its split was chosen."""
        return dataclasses.replace(self, split="", default_split="")


@dataclasses.dataclass(frozen=True)
class CompleteSpec:
    """The spec of a source.

    Attributes:
      title: name of the layout.
      spec: the spec.
      images: where the images are.
    """

    title: str
    spec: dict[str, Any]
    images: str


@dataclasses.dataclass(frozen=True)
class Match:
    """A layout that matches a path.

    Attributes:
      title: name of the layout.
      path: the file, folder or pattern.
      complete: chooses the split, finds the images and makes the spec.
    """

    title: str
    path: str
    complete: Callable[[Request], CompleteSpec]

    def __str__(self) -> str:
        """Format as "captions.csv (CSV)"."""
        return f"{pathlib.Path(self.path).name} ({self.title})"


def match_file(path: str, columns: GivenColumns) -> Match:
    """Recognise the layout of a file.

    Args:
      path: the file, or a glob pattern of Parquet or ArrayRecord files or tars.
      columns: names of columns by field.

    Raises:
      FileNotFoundError: no file matches.
      ValueError: the file has no known layout; the message says what was looked for.
    """
    suffix = pathlib.Path(path).suffix.lower()
    if not glob_paths(path):
        raise FileNotFoundError(f"{path} does not exist")
    if suffix == ".parquet":
        return match_arrow(path, ParquetSource, columns)
    if suffix in SHARDS:
        return match_shards(path)
    if suffix == ".json" and not has_lines(path, read_text(path)):
        return _match_json(path, read_json(path), columns)
    if suffix in TEXT_SUFFIXES and is_url_list(path):
        return _match_images_by_name(UrlListSource, path, likely_names(path))
    if suffix in TABLE_SUFFIXES:
        is_json = suffix in (".json", *LINES_SUFFIXES)
        return _match_table(path, JsonSource if is_json else CsvSource, columns)
    raise ValueError(
        f"{path} is no folder and has none of the suffixes {', '.join(SUFFIXES)}"
    )


def match_shards(path: str) -> Match:
    """Recognise files that hold images and texts, by a path or pattern."""
    title, kind, where = SHARDS[pathlib.Path(path).suffix.lower()]

    def complete(request: Request) -> CompleteSpec:
        check_no_split(path, request)
        return CompleteSpec(title, {"kind": kind, "paths": path}, where)

    return Match(title, path, complete)


def match_arrow(path: str, source: type[ArrowSource], columns: GivenColumns) -> Match:
    """Recognise the columns of a table in one of Arrow's formats."""
    files = source.open_files(path)
    encoded = encoded_columns(files.schema)
    found = find_columns(files.schema.names, columns, path, encoded)

    def complete(request: Request) -> CompleteSpec:
        spec = {"kind": source.kind, "path": path, "columns": found.as_options()}
        values = _distinct(files.read([found.split])[0]) if found.split else []
        spec |= split_option(path, found.split, values, request)
        if found.image in encoded:
            return CompleteSpec(source.title, spec, "in the table")
        first = files.read([found.image])[0].slice(0, _NAMES_TRIED).to_pylist()
        names = [str(name) for name in first if name not in (None, "")]
        directory = files.directory / "*"  # a file there
        return _with_images(source.title, spec, names, directory, request)

    return Match(source.title, path, complete)


def _distinct(column: pa.ChunkedArray) -> list[Any]:
    """Return the distinct values of a column, or [] if they cannot name splits."""
    try:
        return column.unique().to_pylist()
    except pa.ArrowException:  # of lists and objects
        return []


def _match_json(path: str, content: Any, columns: GivenColumns) -> Match:
    """Recognise the layout of a JSON file by its structure."""
    if is_visual_genome(content) and not _is_there(content[0].get("image")):
        names = likely_image_names(content[:_NAMES_TRIED])
        return _match_images_by_name(VisualGenomeSource, path, names)
    if is_parallel_lists(content):
        return _match_images_by_name(UrlListSource, path, likely_names(path))
    if not isinstance(content, dict):
        return _match_table(path, JsonSource, columns)
    first = {
        key: value[0]
        for key, value in content.items()
        if isinstance(value, list) and value and isinstance(value[0], dict)
    }
    if "caption" in first.get("annotations", ()) and "images" in first:
        return _match_annotations("COCO", path, content["images"])
    if "sentences" in first.get("images", ()):
        return _match_annotations("Karpathy", path, content["images"])
    if "question_id" in first.get("questions", ()):
        raise ValueError(
            f"{path} holds questions of the VQA challenge; answers and images are "
            "elsewhere: configure a source of kind 'vqa'"
        )
    if content and all(map(_is_text, itertools.islice(content.values(), 100))):
        return _match_table(path, CaptionsByFileSource, columns)
    if len(first) == 1:
        return _match_table(path, JsonSource, columns)
    raise ValueError(
        f"{path} has none of the known layouts of JSON: COCO captions (images and "
        "annotations with a caption), Karpathy (images with sentences), captions by "
        "file, lists image_urls and captions (SBU), regions of Visual Genome, or a "
        "list of objects"
    )


def _is_there(image: Any) -> bool:
    """Return True if a row's image is a path of an existing file."""
    return isinstance(image, str) and is_file(as_path(image))


def _match_images_by_name(
    source: type[VisualGenomeSource] | type[UrlListSource],
    path: str,
    names: Sequence[str],
) -> Match:
    """Make the match of a layout whose images have names of its own.

    Args:
      source: class of the source.
      path: the file.
      names: names of which images have some.
    """

    def complete(request: Request) -> CompleteSpec:
        check_no_split(path, request)
        if not names:
            raise ValueError(f"none of the first rows of {path} names an image")
        directory = find_image_directory(names, as_path(path), request.images)
        spec = {"kind": source.kind, "path": path, "images": directory.path}
        return CompleteSpec(source.title, spec, directory.path)

    return Match(source.title, path, complete)


def _is_text(value: Any) -> bool:
    """Return True for a caption or a list of captions."""
    elements = value if isinstance(value, list) else [value]
    return bool(elements) and all(isinstance(element, str) for element in elements)


def _match_table(path: str, source: type[TableSource], columns: GivenColumns) -> Match:
    """Recognise the columns of a table in a text file."""
    table = source.read_table(path)
    found = find_columns(table.names, columns, path)

    def complete(request: Request) -> CompleteSpec:
        names, splits = sample_table(table, found)
        spec = {"kind": source.kind, "path": path, "columns": found.as_options()}
        spec |= split_option(path, found.split, splits, request)
        return _with_images(source.title, spec, names, as_path(path), request)

    return Match(source.title, path, complete)


def sample_table(table: Table, columns: Columns) -> tuple[list[str], list[Any]]:
    """Return the names of a table's first images, and all values of its splits."""
    names: dict[str, None] = {}
    splits: dict[Any, None] = {}
    for row in table.readable_rows():
        if columns.split:
            splits[str(row.get(columns.split) or "")] = None
        if len(names) < _NAMES_TRIED:
            with contextlib.suppress(ValueError):  # the source counts the row as broken
                names[file_name(row, columns)] = None
        elif not columns.split:
            break
    return list(names), [split for split in splits if split]


def _match_annotations(title: str, path: str, images: Sequence[Any]) -> Match:
    """Make the match of a COCO or Karpathy file from its list of images."""
    images = [image for image in images if isinstance(image, dict)]

    def complete(request: Request) -> CompleteSpec:
        spec: dict[str, Any] = {"kind": "annotations", "path": path}
        values = [image.get("split") for image in images]
        column = "split" if any(values) else ""
        spec |= split_option(path, column, values, request)
        names = [
            "/".join(filter(None, [str(image.get("filepath") or ""), _name_of(image)]))
            for image in images[:_NAMES_TRIED]
        ]
        return _with_images(title, spec, names, as_path(path), request)

    return Match(title, path, complete)


def _name_of(image: Mapping[str, Any]) -> str:
    return str(image.get("file_name") or image.get("filename") or "")


def split_option(
    path: str, column: str, values: Iterable[Any], request: Request
) -> dict[str, list[str]]:
    """Return the option `splits` of a table, {} for all rows.

    Raises:
      ValueError: the wanted split does not exist, or there are several and no default.
    """
    if not column:
        check_no_split(path, request)
        return {}
    # Values of other types are malformed rows; they may not even have a hash.
    existing = list(dict.fromkeys(v for v in values if isinstance(v, str)))
    distinct = {split_of(value) or value for value in existing}
    if len(distinct) < 2 and not request.split:
        return {}
    split = choose_split(existing, request.split, request.default_split, path)
    if split == "restval":  # wanted by itself; "train" includes it
        return {"splits": [split]}
    return {"splits": [value for value in existing if same_split(value, split)]}


def check_no_split(path: str, request: Request) -> None:
    """Check that no split is wanted of data without splits, but that in their name.

    Raises:
      ValueError: a split is wanted.
    """
    name = pathlib.Path(path).name
    if request.split and not same_split(name, request.split):
        raise ValueError(f"{path} has no splits, so it cannot have {request.split!r}")


def _with_images(
    title: str,
    spec: dict[str, Any],
    names: Sequence[str],
    path: pathlib.Path,
    request: Request,
) -> CompleteSpec:
    """Add the image directory to a spec.

    Raises:
      FileNotFoundError: the images are not found.
      ValueError: no row names an image.
    """
    if not names:
        raise ValueError(f"no row of {spec['path']} names an image")
    directory = find_image_directory(names, path, request.images)
    spec["images"] = directory.path
    if directory.image_name != "{}":
        spec["image_name"] = directory.image_name
    where = directory.path
    if directory.found < len(names):
        where += f" (has {directory.found} of the first {len(names)})"
    return CompleteSpec(title, spec, where)
