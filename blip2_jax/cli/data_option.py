"""The `--data` option: a data set by its path, in any layout, or by its JSON spec."""

from __future__ import annotations

import argparse
import sys
from typing import Any

from blip2_jax.cli.errors import UsageError
from blip2_jax.parallel.files import FileFormatError, parse_json, read_json
from blip2_jax.parallel.paths import as_path

_MAX_SPECS_BYTES = 1 << 20  # larger JSON files are annotations
_DETAILS = ("images", "columns", "split")


def add_data_options(parser: argparse.ArgumentParser, purpose: str) -> None:
    """Add `--data` and the options that complete a path.

    Args:
      parser: parser of a command.
      purpose: what the data are for, e.g. "training data".
    """
    group = parser.add_argument_group("data")
    group.add_argument(
        "--data",
        metavar="PATH",
        help=f"{purpose}: a file or folder of images and captions, whose layout is "
        "detected (docs/layouts.md), or source specs as JSON or in a JSON file",
    )
    group.add_argument(
        "--images", metavar="DIR", help="directory of the images, if it is not found"
    )
    group.add_argument(
        "--columns",
        metavar="FIELD=NAME,...",
        help="columns that have no usual name, e.g. image=Datei,caption=Satz",
    )
    group.add_argument(
        "--split", metavar="NAME", help="train, validation or test, if PATH has several"
    )


def read_data_option(
    arguments: argparse.Namespace, default_split: str = ""
) -> tuple[dict[str, Any], ...] | None:
    """Return the source specs that a command line names, None if it names none.

    The detected layout is printed to stderr in one line.

    Args:
      arguments: command line with the options of `add_data_options`.
      default_split: see `detect_layout`.

    Raises:
      UsageError: an option does not go with `--data`.
      ValueError, FileNotFoundError: see `detect_layout`.
    """
    details = [name for name in _DETAILS if getattr(arguments, name) is not None]
    specs = None if arguments.data is None else _specs(arguments.data)
    if details and (arguments.data is None or specs is not None):
        raise UsageError(f"--{details[0]} needs --data with the path of a data set")
    if arguments.data is None or specs is not None:
        return specs
    from blip2_jax.data.sources.layouts import detect_layout

    layout = detect_layout(
        arguments.data,
        images=arguments.images or "",
        columns=_columns(arguments.columns or ""),
        split=arguments.split or "",
        default_split=default_split,
    )
    print(f"data: {layout}", file=sys.stderr)
    return (layout.spec,)


def _specs(text: str) -> tuple[dict[str, Any], ...] | None:
    """Return the source specs of a text or file of JSON; None for a path of data.

    Raises:
      FileFormatError: the text is not JSON.
    """
    if text.lstrip()[:1] in ("{", "["):
        content = parse_json(text, "--data")
        return tuple(content) if isinstance(content, list) else (content,)
    path = as_path(text)
    if path.suffix != ".json" or not path.is_file():
        return None
    if path.stat().st_size > _MAX_SPECS_BYTES:
        return None
    try:
        content = read_json(path)
    except FileFormatError:
        return None  # lines of JSON, or an error that detection describes
    specs = content if isinstance(content, list) else [content]
    if specs and all(isinstance(spec, dict) and "kind" in spec for spec in specs):
        return tuple(specs)
    return None


def _columns(text: str) -> dict[str, str]:
    """Parse "FIELD=NAME,FIELD=NAME".

    Raises:
      UsageError: an equals sign is missing.
    """
    pairs = [part.partition("=") for part in text.split(",") if part]
    for field, equals, name in pairs:
        if not (equals and name):
            raise UsageError(f"--columns is FIELD=NAME,..., not {field!r}")
    return {field.strip(): name.strip() for field, _, name in pairs}
