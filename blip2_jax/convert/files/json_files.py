"""JSON files of a folder that hold one object."""

from __future__ import annotations

import pathlib
from typing import Any

from blip2_jax.convert.files.errors import SourceError
from blip2_jax.parallel.files import FileFormatError, read_json


def read_json_object(path: pathlib.Path) -> dict[str, Any]:
    """Read a JSON file that holds one object, with or without a byte order mark.

    Raises:
      SourceError: the file is cut off, is no JSON or holds no object.
      OSError: the file cannot be read.
    """
    try:
        content = read_json(path)
    except FileFormatError as error:
        raise SourceError(str(error)) from error
    if not isinstance(content, dict):
        kind = type(content).__name__
        raise SourceError(f"{path} holds a JSON {kind}; expected an object {{...}}")
    return content
