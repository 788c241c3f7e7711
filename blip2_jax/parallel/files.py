"""Reading and writing of text, JSON and `.npy` files with errors that name the file.

All text is UTF-8; a byte order mark at the start, which editors on Windows write, is
dropped. Lines end where the format of the file says: `str.splitlines` also splits at
characters such as U+2028, U+0085 and vertical tab, which JSON strings and vocabularies
may contain.
"""

from __future__ import annotations

import codecs
import json
import os
import pathlib
import pickle
import re
import zipfile
from collections.abc import Iterator
from typing import Any, Literal

import numpy as np

from blip2_jax.parallel.paths import AnyPath, as_path
from blip2_jax.parallel.store_cache import local_copy
from blip2_jax.parallel.store_path import StorePath

Path = AnyPath

# UTF-32 first: its little-endian mark begins with that of UTF-16.
_OTHER_MARKS = {
    codecs.BOM_UTF32_LE: "UTF-32",
    codecs.BOM_UTF32_BE: "UTF-32",
    codecs.BOM_UTF16_LE: "UTF-16",
    codecs.BOM_UTF16_BE: "UTF-16",
}
_LINE_END = re.compile(r"\r\n|\n|\r")


class FileFormatError(ValueError):
    """The content of a file is not what its format demands; the message names it."""


def read_text(path: Path) -> str:
    """Read a text file in UTF-8, without its byte order mark.

    Returns:
      The text, with the line ends of the file.

    Raises:
      FileFormatError: the file is not in UTF-8; the message has the line and the byte.
      OSError: it does not exist, is no regular file, or cannot be read.
    """
    path = as_path(path)
    # A named pipe would block for ever.
    if not isinstance(path, StorePath) and path.exists() and not path.is_file():
        raise FileNotFoundError(f"{str(path)!r} is not a regular file")
    return decode_text(path.read_bytes(), path)


def decode_text(data: bytes, name: object) -> str:
    """Decode the content of a text file; see `read_text`.

    Args:
      data: the content.
      name: where it comes from, for the error.

    Raises:
      FileFormatError: the content is not in UTF-8.
    """
    for mark, encoding in _OTHER_MARKS.items():
        if data.startswith(mark):
            raise FileFormatError(
                f"{name} is in {encoding} (its byte order mark, line 1, byte 1); "
                f"convert it: iconv -f {encoding} -t UTF-8"
            )
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise FileFormatError(
            f"{name} is not in UTF-8: {_place(data, error.start)} is "
            f"0x{data[error.start]:02x}; convert it, e.g. iconv -f LATIN1 -t UTF-8"
        ) from None
    if (position := data.find(b"\0")) >= 0:
        raise FileFormatError(
            f"{name} is not in UTF-8: {_place(data, position)} is 0x00, as in UTF-16 "
            "without a byte order mark"
        )
    return text


def _place(data: bytes, position: int) -> str:
    """Describe a position by line and byte, both counted from 1."""
    line = data.count(b"\n", 0, position) + 1
    return f"line {line}, byte {position + 1}"


def split_lines(text: str) -> list[str]:
    r"""Split a text at "\n" only, as vocabularies are; the last line may lack it."""
    lines = text.split("\n")
    return lines[:-1] if not lines[-1] else lines


def text_lines(text: str) -> list[str]:
    r"""Split a text at "\n", "\r\n" and "\r", as text and JSON-lines files are."""
    return _LINE_END.split(text)


def parse_json(text: str | bytes, name: object) -> Any:
    """Parse JSON.

    Args:
      text: the JSON.
      name: where it comes from (a path, or a path and a line), for the error.

    Raises:
      FileFormatError: the text is not JSON in UTF-8.
    """
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        state = "is empty" if not text.strip() else f"is not valid JSON: {error}"
        raise FileFormatError(f"{name} {state}") from None


def read_json(path: Path) -> Any:
    """Read a JSON file.

    Raises:
      FileFormatError: it is empty, truncated, not JSON or not in UTF-8.
      OSError: it cannot be read.
    """
    return parse_json(read_text(path), path)


def json_lines(text: str) -> Iterator[tuple[int, str]]:
    """Yield number, from 1, and text of every line of a JSON-lines file.

    Blank lines are left out.
    """
    # A string in JSON holds no line end unescaped.
    for number, line in enumerate(text_lines(text), 1):
        if line.strip(" \t"):
            yield number, line


def read_json_lines(path: Path) -> list[Any]:
    """Read a file with one JSON value per line; blank lines are ignored.

    Raises:
      FileFormatError: a line is not JSON; the message has its number.
      OSError: the file cannot be read.
    """
    return [
        parse_json(line, f"{path}, line {number}")
        for number, line in json_lines(read_text(path))
    ]


def read_array(path: Path, mmap_mode: Literal["r"] | None = None) -> np.ndarray:
    """Read a `.npy` file; arrays of Python objects are refused.

    Args:
      path: path of the file.
      mmap_mode: "r" maps the file into memory; None reads it. A file on a store is
        copied to the user's cache first.

    Raises:
      FileFormatError: the file is empty, truncated or not a `.npy` file.
      OSError: it cannot be read.
    """
    try:
        array = np.load(local_copy(path), mmap_mode=mmap_mode, allow_pickle=False)
    except OSError as error:
        if error.errno is not None:
            raise
        raise FileFormatError(f"{path} is not a .npy file: {error}") from None
    except (ValueError, EOFError, pickle.UnpicklingError, zipfile.BadZipFile) as error:
        raise FileFormatError(f"{path} is not a whole .npy file: {error}") from None
    if not isinstance(array, np.ndarray):
        raise FileFormatError(f"{path} holds several arrays; a .npy file is expected")
    return array


def create_text(path: pathlib.Path, text: str) -> None:
    """Write a text file that must not exist yet.

    Raises:
      FileExistsError: it exists; of several processes one succeeds.
    """
    if isinstance(path, StorePath):
        path.create(text.encode())
        return
    with path.open("x", encoding="utf-8") as file:
        file.write(text)


def write_atomically(path: pathlib.Path, text: str) -> None:
    """Write a text file that is complete under its name, also after a power cut."""
    if isinstance(path, StorePath):  # objects are always whole
        path.write_text(text)
        return
    temporary = path.with_name(f"{path.name}.tmp")
    with temporary.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)
