"""Captions by URL, as CC3M, CC12M and SBU are released, and the downloaded images."""

from __future__ import annotations

import itertools
import os
import pathlib
import zlib
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

from blip2_jax.data.sources.base import BrokenSample
from blip2_jax.data.sources.checked_rows import (
    RecordsSource,
    Row,
    group_by_image,
    parse_rows,
    take_text,
)
from blip2_jax.data.sources.files import ImageFiles
from blip2_jax.parallel.files import FileFormatError, read_json, read_text, text_lines
from blip2_jax.parallel.paths import as_path, is_remote

# Names that downloaders give to images. The first two are those of LAVIS' scripts for
# CC3M and CC12M and of the script that they follow, the last one that of LAVIS' SBU.
IMAGE_NAMES = ("{row}_{crc32}.jpg", "{row}_{crc32}", "{name}")
_SCHEMES = ("http://", "https://")
_ROWS_FOR_NAMES = 10_000


class UrlRow(NamedTuple):
    """A row of a list.

    Attributes:
      number: number of the row, from 0.
      url: URL of the image.
      caption: its caption.
    """

    number: int
    url: str
    caption: str

    def image_name(self, form: str) -> str:
        """Return the name of the downloaded file; see `UrlListSource`."""
        return form.format(
            row=self.number,
            crc32=zlib.crc32(self.url.encode()),
            name=self.url.partition("?")[0].rpartition("/")[2],
        )


class UrlListSource(RecordsSource):
    """Images with captions from a list of URLs; nothing is downloaded.

    Rows whose image is not there are left out, because many of the URLs are dead.

    Args:
      path: a TSV file without a header, with a URL and a caption in each line (CC3M,
        CC12M), or SBU's JSON of `image_urls` and `captions`.
      images: the directory of the downloaded images.
      image_name: format of their names from `row` (of the list, from 0), `crc32` (of
        the URL) and `name` (the last part of the URL); "": the one of `IMAGE_NAMES`
        that most of the first rows have.

    Raises:
      FileNotFoundError: the file or the directory does not exist, or no image is there.
      ValueError: the file has another format, or the format of names is invalid.
    """

    kind = "url_list"
    title = "list of URLs"

    def __init__(self, path: str, images: str, image_name: str = ""):
        self.name = f"{self.kind}:{path}"
        self._files = ImageFiles(images)
        rows = read_url_list(path)
        there = _file_names(images)
        form = image_name or _most_frequent_form(rows, there)
        _check_form(form)
        records = [
            Row(name, (row.caption,)) if isinstance(row, UrlRow) else row
            for row in rows
            if (name := _name_of(row, form)) in there or isinstance(row, BrokenSample)
        ]
        if missing := len(rows) - len(records):
            self.left_out = {"images that were not downloaded": missing}
        if all(isinstance(record, BrokenSample) for record in records):
            first = next(filter(None, (_name_of(row, form) for row in rows)), form)
            raise FileNotFoundError(
                f"no image of {path} is in {images}: the first would be {first!r}"
            )
        super().__init__(group_by_image(records))


def read_url_list(path: str) -> list[UrlRow | BrokenSample]:
    """Read the rows of a list; those without a URL and a caption are broken.

    Raises:
      FileFormatError: the file is no list of URLs.
    """
    if path.endswith(".json"):
        return _read_parallel_lists(path)
    lines = [line for line in enumerate(text_lines(read_text(path)), 1) if line[1]]
    column = next((c for _, line in lines if (c := url_column(line)) >= 0), None)
    if column is None:
        raise FileFormatError(
            f"{path} is no list of URLs: no line holds a URL and a caption, with a tab "
            "between them"
        )

    def parse(item: tuple[int, str]) -> UrlRow:
        number, line = item
        if url_column(line) != column:
            raise ValueError("the line does not hold a URL and a caption")
        cells = line.split("\t")
        return UrlRow(number, cells[column].strip(), cells[1 - column].strip())

    numbered = ((number, (number - 1, line)) for number, line in lines)
    return parse_rows(path, numbered, parse, "line")


def url_column(line: str) -> int:
    """Return the column of a line that holds the URL, 0 or 1; -1 if none does."""
    cells = line.split("\t")
    if len(cells) != 2:
        return -1
    found = [n for n in range(2) if cells[n].lower().startswith(_SCHEMES)]
    return found[0] if len(found) == 1 else -1


def is_url_list(path: str) -> bool:
    """Return True if the first line of a text file holds a URL and a caption."""
    lines = text_lines(read_text(path))
    return url_column(next(filter(None, lines), "")) >= 0


def is_parallel_lists(content: Any) -> bool:
    """Return True if the content of a JSON file has the layout of SBU's."""
    return isinstance(content, dict) and {"image_urls", "captions"} <= content.keys()


def _read_parallel_lists(path: str) -> list[UrlRow | BrokenSample]:
    content = read_json(path)
    if not is_parallel_lists(content):
        raise FileFormatError(f"{path} has no lists image_urls and captions")
    urls, captions = content["image_urls"], content["captions"]
    if not isinstance(urls, list) or not isinstance(captions, list):
        raise FileFormatError(f"image_urls and captions of {path} are no lists")
    if len(urls) != len(captions):
        raise FileFormatError(
            f"{path} has {len(urls)} image_urls, but {len(captions)} captions"
        )

    def parse(item: tuple[int, Any, Any]) -> UrlRow:
        number, url, caption = item
        return UrlRow(number, take_text(url, "url"), take_text(caption, "caption"))

    pairs = enumerate(zip(urls, captions, strict=True))
    items = ((number + 1, (number, *pair)) for number, pair in pairs)
    return parse_rows(path, items, parse, "row")


def _check_form(form: str) -> None:
    """Check a format of names.

    Raises:
      ValueError: it is none.
    """
    try:
        UrlRow(0, "", "").image_name(form)
    except (KeyError, IndexError, ValueError) as error:
        raise ValueError(
            f"image_name {form!r} is no format of row, crc32 and name: {error}"
        ) from None


def _name_of(row: UrlRow | BrokenSample, form: str) -> str:
    """Return the name of a row's image; "" for a broken row."""
    return row.image_name(form) if isinstance(row, UrlRow) else ""


def _most_frequent_form(rows: Sequence[UrlRow | BrokenSample], there: set[str]) -> str:
    """Return the format of names that most of the first rows' images have."""
    first = [row for row in rows[:_ROWS_FOR_NAMES] if isinstance(row, UrlRow)]
    count = lambda form: sum(row.image_name(form) in there for row in first)
    return max(IMAGE_NAMES, key=count)  # the first of equals


def likely_names(path: str, most: int = 200) -> list[str]:
    """Return the names that the images of the first rows may have."""
    rows = (row for row in read_url_list(path) if isinstance(row, UrlRow))
    first = list(itertools.islice(rows, most))
    return [row.image_name(form) for form in IMAGE_NAMES for row in first]


def _file_names(directory: str) -> set[str]:
    """Return the names of all files in a directory, relative to it, with "/"."""
    return set(_walk(directory))


def _walk(directory: str) -> Iterator[str]:
    root = as_path(directory)
    if is_remote(root):
        yield from (path.relative_to(root).as_posix() for path in root.rglob("*"))
        return
    for folder, _, names in os.walk(root):
        relative = pathlib.Path(folder).relative_to(root).as_posix()
        prefix = "" if relative == "." else f"{relative}/"
        yield from (prefix + name for name in names)
