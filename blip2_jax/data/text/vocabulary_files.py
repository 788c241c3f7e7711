"""Vocabulary files of tokenizers, checked before a tokenizer library reads them.

The libraries take a byte order mark for a part of the first word, and name neither file
nor place if a file is in another encoding than UTF-8.
"""

from __future__ import annotations

import codecs
import pathlib
from typing import Any

from blip2_jax.parallel.files import (
    FileFormatError,
    parse_json,
    read_text,
    split_lines,
)

_TEXT_FILES = ("tokenizer.json", "vocab.txt", "vocab.json", "merges.txt")


def vocabulary_size(directory: pathlib.Path) -> int:
    """Check the vocabulary files in a directory, and count the words.

    Returns:
      The number of words; 1 if they cannot be counted.

    Raises:
      FileFormatError: a file is not UTF-8, begins with a byte order mark or is no
        vocabulary; the message names it.
    """
    texts = {
        name: _read(directory / name)
        for name in _TEXT_FILES
        if (directory / name).is_file()
    }
    if "tokenizer.json" in texts:
        path = directory / "tokenizer.json"
        content = parse_json(texts["tokenizer.json"], path)
        model = content.get("model") if isinstance(content, dict) else None
        return _count(model.get("vocab") if isinstance(model, dict) else None, path)
    if "vocab.txt" in texts:  # words may be U+2028 and other line separators
        return len(split_lines(texts["vocab.txt"]))
    if "vocab.json" in texts:
        path = directory / "vocab.json"
        return _count(parse_json(texts["vocab.json"], path), path)
    return 1


def _read(path: pathlib.Path) -> str:
    """Read a file that must not begin with a byte order mark."""
    text = read_text(path)
    with path.open("rb") as file:
        if file.read(len(codecs.BOM_UTF8)) == codecs.BOM_UTF8:
            raise FileFormatError(
                f"{path} begins with a byte order mark, which tokenizers take for a "
                "part of the first word: save it as UTF-8 without the mark"
            )
    return text


def _count(words: Any, path: pathlib.Path) -> int:
    """Count the words of a vocabulary in JSON."""
    if not isinstance(words, dict | list):
        raise FileFormatError(f"{path} holds no vocabulary")
    return len(words)
