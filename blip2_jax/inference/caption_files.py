"""Files with the rows of many images: JSON lines, CSV, text files or tars."""

from __future__ import annotations

import abc
import contextlib
import csv
import io
import json
import pathlib
from collections.abc import Iterator, Sequence
from typing import IO

from blip2_jax.data.sources.reading import as_tar_image
from blip2_jax.data.tar_writer import TarWriter, open_tar_writer
from blip2_jax.inference.image_batches import LoadedImage
from blip2_jax.inference.image_requests import Row
from blip2_jax.inference.image_sets import ImageSet

_CHECKED = 4096  # names at a time
# Name of a format and the suffix of a shard's file.
FORMATS = {"jsonl": "jsonl", "csv": "csv", "txt": "jsonl", "tars": "tar"}


class RowWriter(abc.ABC):
    """Writer of the rows of a shard."""

    @abc.abstractmethod
    def write(self, image: LoadedImage, rows: Sequence[Row]) -> None:
        """Write the rows about an image."""


class _JsonLines(RowWriter):
    """A JSON object for each row."""

    def __init__(self, file: IO[bytes], columns: Sequence[str]):
        self._file, self._columns = file, ("image", *columns)

    def write(self, image: LoadedImage, rows: Sequence[Row]) -> None:
        for row in rows:
            content = dict(zip(self._columns, (image.name, *row), strict=True))
            self._file.write(_json_line(content))


class _Csv(RowWriter):
    """A line for each row; the header is written when shards are joined."""

    def __init__(self, file: IO[bytes]):
        self._file = file

    def write(self, image: LoadedImage, rows: Sequence[Row]) -> None:
        for row in rows:
            self._file.write(csv_line((image.name, *row)))


class _TextFiles(RowWriter):
    """A text file for each image, with a line for each caption.

    A process that is killed may leave half of a file: its shard is written again.
    """

    def __init__(self, folder: pathlib.Path, lines: RowWriter):
        self._folder, self._lines = folder, lines

    def write(self, image: LoadedImage, rows: Sequence[Row]) -> None:
        path = self._folder / text_name(image.name)
        path.parent.mkdir(parents=True, exist_ok=True)
        lines = (" ".join(caption.split()) for (caption,) in rows)
        path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
        self._lines.write(image, rows)


class _Tar(RowWriter):
    """Images with their captions, as training reads them."""

    def __init__(self, tar: TarWriter):
        self._tar = tar

    def write(self, image: LoadedImage, rows: Sequence[Row]) -> None:
        content = {"captions": [caption for (caption,) in rows], "image": image.name}
        encoded = as_tar_image(image.data, image.name)
        self._tar.write(f"{image.number:09d}", encoded, content)


@contextlib.contextmanager
def open_writer(
    form: str, path: pathlib.Path, columns: Sequence[str], folder: pathlib.Path
) -> Iterator[RowWriter]:
    """Open the writer of a shard.

    Args:
      form: a name of `FORMATS`.
      path: file of the shard.
      columns: names of the values of a row.
      folder: of the text files.
    """
    if form == "tars":
        with open_tar_writer(path) as tar:
            yield _Tar(tar)
        return
    with path.open("wb") as file:
        if form == "csv":
            yield _Csv(file)
        elif form == "txt":
            yield _TextFiles(folder, _JsonLines(file, columns))
        else:
            yield _JsonLines(file, columns)


def text_name(image: str) -> str:
    """Return the name of the text file beside an image."""
    return str(pathlib.PurePosixPath(image).with_suffix(".txt"))


def check_text_files(images: ImageSet, folder: pathlib.Path) -> None:
    """Check that the text file of each image is its own and new.

    Raises:
      FileExistsError: an image has a text file.
      ValueError: two images differ in their suffixes only.
    """
    files = folder.rglob("*.txt") if folder.exists() else ()
    existing = {file.relative_to(folder).as_posix() for file in files}
    texts: set[str] = set()
    for start in range(0, len(images), _CHECKED):
        for image in images.names(start, min(start + _CHECKED, len(images))):
            text = text_name(image)
            if text in existing:
                raise FileExistsError(
                    f"{folder / text} exists; captions would replace it: name another "
                    "--out"
                )
            if text in texts:
                raise ValueError(
                    f"several images have the text file {text} (one is {image}): write "
                    ".jsonl or .csv"
                )
            texts.add(text)


def csv_line(values: Sequence[object]) -> bytes:
    """Return a line of a CSV file."""
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerow(values)
    return text.getvalue().encode("utf-8", "backslashreplace")


def json_lines(rows: Sequence[object]) -> bytes:
    """Return a JSON-lines file."""
    return b"".join(map(_json_line, rows))


def _json_line(content: object) -> bytes:
    # Bytes of a file name that are not UTF-8 are escaped, as JSON escapes them.
    text = json.dumps(content, ensure_ascii=False)
    return f"{text}\n".encode("utf-8", "backslashreplace")
