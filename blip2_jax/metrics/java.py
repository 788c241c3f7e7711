"""Exchange of captions with pycocoevalcap's Java programs, row by row.

The programs read and write a caption per line and know no names. A caption that holds a
line break would shift all that follow, so that they are scored against other images.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator, Sequence
from typing import Any

from blip2_jax.metrics.quiet_programs import quiet_programs

Captions = dict[Any, list[str]]

_LAST = "lastcaption"  # a word that the tokenizer leaves as it is
_METEOR_SEPARATOR = "|||"


def one_line(caption: str) -> str:
    r"""Replace line breaks by spaces, as the official code does with "\n" alone."""
    return " ".join(caption.splitlines())


def split_with_java(captions: Captions) -> Captions:
    """Split captions into words with Stanford's PTBTokenizer.

    Args:
      captions: by image.

    Returns:
      The captions as words with spaces between them, by image.

    Raises:
      RuntimeError: the tokenizer fails, or does not return a line per caption.
    """
    from pycocoevalcap.tokenizer.ptbtokenizer import PTBTokenizer

    keys = list(captions)
    rows: dict[int, list[dict[str, str]]] = {
        number: [{"caption": one_line(caption)} for caption in captions[key]]
        for number, key in enumerate(keys)
    }
    rows[len(keys)] = [{"caption": _LAST}]
    with java_errors("the PTBTokenizer"):
        split = PTBTokenizer().tokenize(rows)
        if split.get(len(keys)) != [_LAST]:
            raise ValueError("it did not return a line for every caption")
    return {
        key: split.get(number, []) if captions[key] else []
        for number, key in enumerate(keys)
    }


def meteor_captions(captions: Captions) -> Captions:
    """Remove METEOR's separator of captions from captions."""
    return {
        key: [text.replace(_METEOR_SEPARATOR, " ") for text in texts]
        for key, texts in captions.items()
    }


def check_scores(scores: Sequence[float], count: int) -> None:
    """Check that there are `count` finite scores.

    Raises:
      ValueError: the number differs, or a score is not finite.
    """
    if len(scores) != count:
        raise ValueError(f"{len(scores)} scores for {count} captions")
    if not all(map(math.isfinite, scores)):
        raise ValueError("a score is not a finite number")


@contextlib.contextmanager
def java_errors(program: str) -> Iterator[None]:
    """Raise a RuntimeError that names the program for every error of the block.

    What the program writes to the terminal is shown after an error only.
    """
    try:
        with quiet_programs():
            yield
    except Exception as error:
        raise RuntimeError(
            f"{program} (a Java program of pycocoevalcap) failed: "
            f"{type(error).__name__} {error}"
        ) from error
