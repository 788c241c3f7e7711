"""Reading and writing of JSON and `.npy` files with errors that name the file."""

from __future__ import annotations

import json
import os
import pathlib
import pickle
import zipfile
from typing import Any, Literal

import numpy as np

Path = str | pathlib.Path


class FileFormatError(ValueError):
    """The content of a file is not what its format demands; the message names it."""


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
      FileFormatError: it is empty, truncated or not JSON.
      OSError: it cannot be read.
    """
    return parse_json(pathlib.Path(path).read_bytes(), path)


def read_json_lines(path: Path) -> list[Any]:
    """Read a file with one JSON value per line; blank lines are ignored.

    Raises:
      FileFormatError: a line is not JSON; the message has its number.
      OSError: the file cannot be read.
    """
    # `splitlines` would also split at characters that a JSON string may contain.
    lines = pathlib.Path(path).read_bytes().split(b"\n")
    return [
        parse_json(line, f"{path}, line {number}")
        for number, line in enumerate(lines, 1)
        if line.strip()
    ]


def read_array(path: Path, mmap_mode: Literal["r"] | None = None) -> np.ndarray:
    """Read a `.npy` file; arrays of Python objects are refused.

    Args:
      path: path of the file.
      mmap_mode: "r" maps the file into memory; None reads it.

    Raises:
      FileFormatError: the file is empty, truncated or not a `.npy` file.
      OSError: it cannot be read.
    """
    try:
        array = np.load(path, mmap_mode=mmap_mode, allow_pickle=False)
    except OSError as error:
        if error.errno is not None:
            raise
        raise FileFormatError(f"{path} is not a .npy file: {error}") from None
    except (ValueError, EOFError, pickle.UnpicklingError, zipfile.BadZipFile) as error:
        raise FileFormatError(f"{path} is not a whole .npy file: {error}") from None
    if not isinstance(array, np.ndarray):
        raise FileFormatError(f"{path} holds several arrays; a .npy file is expected")
    return array


def write_atomically(path: pathlib.Path, text: str) -> None:
    """Write a text file that is complete under its name, also after a power cut."""
    temporary = path.with_name(f"{path.name}.tmp")
    with temporary.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)
