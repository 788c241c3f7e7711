"""Tokenizers of transformers: where their files are, and how they are opened.

A *spec* names a tokenizer: a directory, a name of the hub or "shapes:bert", and on
further lines the tokens that are added to its vocabulary (`with_tokens`).
"""

from __future__ import annotations

import pathlib
from collections.abc import Sequence
from typing import Any

from blip2_jax.data import hub
from blip2_jax.data.text.bert_casing import check_casing, undeclared_casing
from blip2_jax.data.text.vocabulary_files import vocabulary_size

SHAPES_TOKENIZERS = pathlib.Path(__file__).parents[1] / "shapes" / "tokenizers"

_VOCABULARY_FILES = (
    ("tokenizer.json",),
    ("vocab.txt",),
    ("vocab.json", "merges.txt"),
    ("spiece.model",),
    ("tokenizer.model",),
)


def with_tokens(spec: str, tokens: Sequence[str]) -> str:
    """Return the spec of a tokenizer with further tokens, which hold no spaces."""
    return "\n".join([spec, *tokens])


def split_spec(spec: str) -> tuple[str, list[str]]:
    """Return the directory or name in a spec, and the added tokens."""
    base, *tokens = spec.split("\n")
    return base, tokens


def open_tokenizer(spec: str, **options: Any) -> Any:
    """Open a tokenizer of transformers.

    Args:
      spec: see the module's docstring.
      options: of `AutoTokenizer.from_pretrained`.

    Raises:
      FileNotFoundError: the directory or a vocabulary in it does not exist.
      ValueError: a file cannot be read as its format demands, needs code of its own,
        which is never run, the loaded tokenizer lacks words of the directory's
        vocabulary, or an added token is a word of it.
    """
    from transformers import AutoTokenizer  # slow to import

    base, tokens = split_spec(spec)
    directory = tokenizer_directory(base)
    expected = vocabulary_size(directory)
    options |= undeclared_casing(directory)
    try:
        tokenizer = AutoTokenizer.from_pretrained(
            str(directory), local_files_only=True, trust_remote_code=False, **options
        )
    except Exception as error:  # the Rust library raises plain `Exception`
        message = " ".join(str(error).split())
        raise ValueError(
            f"the tokenizer in {directory} cannot be loaded: {message}"
        ) from error
    if len(tokenizer) < expected:
        raise ValueError(
            f"the vocabulary in {directory} has {expected} words, but only "
            f"{len(tokenizer)} were loaded"
        )
    check_casing(tokenizer, directory)
    _add_tokens(tokenizer, tokens, base)
    return tokenizer


def _add_tokens(tokenizer: Any, tokens: Sequence[str], base: str) -> None:
    """Append tokens to a vocabulary.

    Raises:
      ValueError: one of them is in the vocabulary, or [DEC], which comes last.
    """
    words = tokenizer.get_vocab()
    if tokens and "[DEC]" in words:
        raise ValueError(
            f"{base} holds [DEC], which comes behind all other tokens: add tokens to "
            "the tokenizer of the BERT itself"
        )
    known = [token for token in tokens if token in words]
    if known:
        raise ValueError(
            f"{known[0]!r} is a token of {base} already: name only tokens that it lacks"
        )
    tokenizer.add_tokens(list(tokens))


def save_tokenizer(spec: str, directory: pathlib.Path) -> None:
    """Write a tokenizer with its added tokens to a directory."""
    open_tokenizer(spec).save_pretrained(directory)


def tokenizer_directory(spec: str) -> pathlib.Path:
    """Return the directory of a tokenizer's files, fetched if they are of the hub.

    Args:
      spec: without added tokens.

    Raises:
      FileNotFoundError: the directory or a vocabulary in it does not exist.
      HubError: the files cannot be fetched.
    """
    if spec.startswith("shapes:"):
        directory = SHAPES_TOKENIZERS / spec.removeprefix("shapes:")
    else:
        directory = hub.local_path(spec, *hub.TOKENIZER_FILES)
    if not directory.is_dir():
        raise FileNotFoundError(
            f"tokenizer {spec!r}: the directory {directory} does not exist; a name of "
            "the hub has the form ORG/NAME"
        )
    for names in _VOCABULARY_FILES:
        if all((directory / name).is_file() for name in names):
            return directory
    expected = ", or ".join(" with ".join(names) for names in _VOCABULARY_FILES)
    raise FileNotFoundError(f"tokenizer {spec!r} has no vocabulary ({expected})")
