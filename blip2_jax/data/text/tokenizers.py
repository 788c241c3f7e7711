"""Tokenizers of the Q-Former and of language models; cleaning of texts.

The wrappers use the fast tokenizers' own encoder without its padding or truncation
state, so one tokenizer may serve many threads.
"""

from __future__ import annotations

import itertools
import json
import pathlib
import re
from collections.abc import Sequence
from typing import Any, Literal, overload

import numpy as np
from jaxtyping import Bool, Int32
from numpy import ndarray as Array

SHAPES_TOKENIZERS = pathlib.Path(__file__).parents[1] / "shapes" / "tokenizers"
Family = Literal["decoder_only", "encoder_decoder"]

_MAX_WORDS = 50
_CAPTION_MARKS = re.compile(r"[.!\"()*#:;~]")
_VOCABULARY_FILES = (
    ("tokenizer.json",),
    ("vocab.txt",),
    ("vocab.json", "merges.txt"),
    ("spiece.model",),
)


def clean_caption(caption: str, prompt: str = "") -> str:
    """The original's caption processor: lower case, no marks, at most 50 words.

    The prompt is put before the result as it is and does not count as words.
    """
    text = _CAPTION_MARKS.sub(" ", caption.lower())
    text = re.sub(r"\s{2,}", " ", text).rstrip("\n").strip(" ")
    return prompt + " ".join(text.split(" ")[:_MAX_WORDS])


def clean_question(question: str) -> str:
    """The original's question processor: marks vanish, `?` stays, at most 50 words."""
    text = _CAPTION_MARKS.sub("", question.lower()).rstrip(" ")
    return " ".join(text.split(" ")[:_MAX_WORDS])


def pad_rows(
    rows: Sequence[Sequence[int]], length: int, pad_id: int, left: bool = False
) -> tuple[Int32[Array, "B T"], Bool[Array, "B T"]]:
    """Rows of ids padded to `length`, and where they hold tokens."""
    ids = np.full((len(rows), length), pad_id, np.int32)
    mask = np.zeros((len(rows), length), bool)
    for index, row in enumerate(rows):
        if len(row) > length:
            raise ValueError(f"a row of {len(row)} tokens does not fit in {length}")
        place = slice(length - len(row), length) if left else slice(0, len(row))
        ids[index, place] = row
        mask[index, place] = True
    return ids, mask


class _FastTokenizer:
    """A transformers fast tokenizer reduced to plain encode and decode."""

    def __init__(self, tokenizer: Any):
        self._backend = tokenizer.backend_tokenizer
        self._backend.no_padding()
        self._backend.no_truncation()
        self._special_ids = frozenset(tokenizer.all_special_ids)
        self.pad_id: int = _required(tokenizer, "pad_token_id")

    def encode_words(self, text: str) -> list[int]:
        """Token ids without any special token before or after."""
        return self._backend.encode(text, add_special_tokens=False).ids

    def decode(self, ids: Sequence[int] | Array) -> str:
        """Text of ids, special tokens left out, stripped of outer spaces."""
        size = self._backend.get_vocab_size()
        plain = [int(i) for i in ids if i not in self._special_ids and i < size]
        return self._backend.decode(plain).strip()


class QFormerTokenizer(_FastTokenizer):
    """BERT's tokenizer with [DEC], the start of a generated text, as one more id.

    Attributes: pad_id, cls_id, sep_id, start_id ([DEC]), end_id ([SEP]) and
    vocab_size (BERT's and one; what stands behind [DEC] does not count).
    """

    def __init__(self, tokenizer: Any):
        super().__init__(tokenizer)
        self.cls_id: int = _required(tokenizer, "cls_token_id")
        self.sep_id: int = _required(tokenizer, "sep_token_id")
        # Hugging Face's tokenizers of BLIP-2 have [DEC] already.
        known = tokenizer.get_vocab().get("[DEC]")
        self.start_id = len(tokenizer) if known is None else known
        self.end_id = self.sep_id
        self.vocab_size = self.start_id + 1

    def encode(
        self, texts: Sequence[str], length: int
    ) -> tuple[Int32[Array, "B T"], Bool[Array, "B T"]]:
        """[CLS] text [SEP], cut and padded to `length`; mask is True on tokens."""
        rows = [
            [self.cls_id, *self.encode_words(text)[: length - 2], self.sep_id]
            for text in texts
        ]
        return pad_rows(rows, length, self.pad_id)


class LanguageTokenizer(_FastTokenizer):
    """The tokenizer of a frozen language model and its conventions.

    Attributes:
      family: "decoder_only" (texts begin with `bos_id` and end with a newline) or
        "encoder_decoder" (texts end with the end-of-sequence token).
      bos_id: first token of every text, None for encoder-decoders.
      end_id: the token that ends a generated text.
      blank_ids: of <extra_id_0>, <extra_id_1>, ..., T5's marks of what is left out;
        empty for tokenizers that have none.
      pad_id: padding token.
      vocab_size: number of tokens.
    """

    def __init__(self, tokenizer: Any):
        super().__init__(tokenizer)
        framed = tokenizer("a")["input_ids"]
        self.vocab_size = len(tokenizer)
        self.bos_id: int | None = None
        self.blank_ids = self._blank_ids()
        if framed[0] == tokenizer.bos_token_id:
            self.family: Family = "decoder_only"
            self.bos_id = framed[0]
            self.end_id = self._newline_id(tokenizer)
        elif framed[-1] == tokenizer.eos_token_id:
            self.family = "encoder_decoder"
            self.end_id = framed[-1]
        else:
            raise ValueError(
                "a language model's tokenizer must put its begin token before a text "
                "(decoder-only) or its end token after it (encoder-decoder); "
                f"'a' became {framed}"
            )

    def _blank_ids(self) -> list[int]:
        marks = (f"<extra_id_{number}>" for number in itertools.count())
        found = map(self._backend.token_to_id, marks)
        return list(itertools.takewhile(lambda token: token is not None, found))

    def _newline_id(self, tokenizer: Any) -> int:
        ids = self.encode_words("\n")
        if len(ids) != 1 or ids[0] == tokenizer.unk_token_id:
            raise ValueError(f"the newline must be one known token, not {ids}")
        return ids[0]


@overload
def load_tokenizer(
    spec: str, *, language_model: Literal[True]
) -> LanguageTokenizer: ...
@overload
def load_tokenizer(
    spec: str, *, language_model: Literal[False]
) -> QFormerTokenizer: ...
@overload
def load_tokenizer(
    spec: str, *, language_model: bool
) -> LanguageTokenizer | QFormerTokenizer: ...
def load_tokenizer(
    spec: str, *, language_model: bool
) -> LanguageTokenizer | QFormerTokenizer:
    """Load a tokenizer.

    Args:
      spec: a directory with a vocabulary, or "shapes:bert", "shapes:opt",
        "shapes:t5", which are part of this package.
      language_model: give a `LanguageTokenizer`, not a `QFormerTokenizer`.

    Raises:
      FileNotFoundError: no such directory, or no vocabulary in it.
      ValueError: the loaded tokenizer is not the directory's vocabulary.
    """
    from transformers import AutoTokenizer  # slow to import, not needed by sources

    directory = tokenizer_directory(spec)
    tokenizer = AutoTokenizer.from_pretrained(str(directory), local_files_only=True)
    expected = _vocabulary_size(directory)
    if len(tokenizer) < expected:
        raise ValueError(
            f"{directory}: {expected} words in the vocabulary, {len(tokenizer)} loaded"
        )
    return (LanguageTokenizer if language_model else QFormerTokenizer)(tokenizer)


def tokenizer_directory(spec: str) -> pathlib.Path:
    """Where the files of a tokenizer lie.

    Raises:
      FileNotFoundError: no such directory, or no vocabulary in it.
    """
    directory = pathlib.Path(spec)
    if spec.startswith("shapes:"):
        directory = SHAPES_TOKENIZERS / spec.removeprefix("shapes:")
    if not directory.is_dir():
        raise FileNotFoundError(f"tokenizer {spec!r}: no directory {directory}")
    for names in _VOCABULARY_FILES:
        if all((directory / name).is_file() for name in names):
            return directory
    wanted = ", or ".join(" with ".join(names) for names in _VOCABULARY_FILES)
    raise FileNotFoundError(f"tokenizer {directory}: no vocabulary there ({wanted})")


def _vocabulary_size(directory: pathlib.Path) -> int:
    """Words that the directory's own files promise; 1 where they cannot be counted."""
    if (directory / "tokenizer.json").is_file():
        vocabulary = json.loads((directory / "tokenizer.json").read_text())
        return len(vocabulary["model"]["vocab"])
    if (directory / "vocab.txt").is_file():
        return len((directory / "vocab.txt").read_text().splitlines())
    if (directory / "vocab.json").is_file():
        return len(json.loads((directory / "vocab.json").read_text()))
    return 1


def _required(tokenizer: Any, name: str) -> int:
    value = getattr(tokenizer, name)
    if value is None:
        raise ValueError(f"the tokenizer has no {name.removesuffix('_id')}")
    return value
