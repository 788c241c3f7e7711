"""Tokenizers of the Q-Former, of language models and of CLIP; cleaning of texts.

The wrappers use the backend of fast tokenizers without its padding and truncation
state, so that many threads can share a tokenizer.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Sequence
from typing import Any, Literal, overload

import numpy as np
from jaxtyping import Bool, Int32
from numpy import ndarray as Array

from blip2_jax.data.text.bert_casing import keeps_case
from blip2_jax.data.text.chat import PROMPT_TEMPLATES, ChatTemplate, Prompt
from blip2_jax.data.text.tokenizer_files import open_tokenizer

Family = Literal["decoder_only", "encoder_decoder"]

SENTENCEPIECE_SPACE = "\u2581"
_MAX_WORDS = 50
_PUNCTUATION = re.compile(r"[.!\"()*#:;~]")


def clean_caption(caption: str, prompt: str = "", *, keep_case: bool = False) -> str:
    """Clean a caption as the original: lower case, no punctuation, at most 50 words.

    The prompt is prepended unchanged and does not count as words. `keep_case` leaves
    capital letters as they are, for tokenizers that distinguish them.
    """
    text = _PUNCTUATION.sub(" ", caption if keep_case else caption.lower())
    text = re.sub(r"\s{2,}", " ", text).rstrip("\n").strip(" ")
    return prompt + " ".join(text.split(" ")[:_MAX_WORDS])


def clean_question(question: str, *, keep_case: bool = False) -> str:
    """Clean a question as the original: no punctuation but `?`, at most 50 words.

    `keep_case` is as in `clean_caption`.
    """
    text = question if keep_case else question.lower()
    text = _PUNCTUATION.sub("", text).rstrip(" ")
    return " ".join(text.split(" ")[:_MAX_WORDS])


def pad_rows(
    rows: Sequence[Sequence[int]], length: int, pad_id: int, left: bool = False
) -> tuple[Int32[Array, "B T"], Bool[Array, "B T"]]:
    """Pad rows of ids to `length`; also return the mask of tokens."""
    ids = np.full((len(rows), length), pad_id, np.int32)
    mask = np.zeros((len(rows), length), bool)
    for index, row in enumerate(rows):
        if len(row) > length:
            raise ValueError(f"a row of {len(row)} tokens is longer than {length}")
        columns = slice(length - len(row), length) if left else slice(0, len(row))
        ids[index, columns] = row
        mask[index, columns] = True
    return ids, mask


class _FastTokenizer:
    """A fast tokenizer of transformers, reduced to plain encoding and decoding."""

    def __init__(self, tokenizer: Any, padding: str = "pad_token_id"):
        self._backend = tokenizer.backend_tokenizer
        self._backend.no_padding()
        self._backend.no_truncation()
        self._special_ids = frozenset(tokenizer.all_special_ids)
        self.pad_id: int = _required(tokenizer, padding)

    def encode_words(self, text: str) -> list[int]:
        """Encode a text without special tokens."""
        return self._backend.encode(text, add_special_tokens=False).ids

    def decode(self, ids: Sequence[int] | Array) -> str:
        """Decode ids without special tokens, and strip outer spaces."""
        size = self._backend.get_vocab_size()
        plain = [int(i) for i in ids if i not in self._special_ids and i < size]
        return self._backend.decode(plain).strip()


class QFormerTokenizer(_FastTokenizer):
    """BERT's tokenizer with the additional token [DEC], which starts generated texts.

    Attributes:
      pad_id: id of the padding.
      cls_id: id of [CLS].
      sep_id: id of [SEP].
      start_id: id of [DEC].
      end_id: id of [SEP], which ends generated texts.
      keeps_case: it distinguishes capital letters, as that of a cased BERT.
      vocab_size: size of BERT's vocabulary and [DEC]; later ids do not count.
    """

    def __init__(self, tokenizer: Any):
        """Wrap a tokenizer of transformers."""
        super().__init__(tokenizer)
        self.keeps_case = keeps_case(tokenizer)
        self.cls_id: int = _required(tokenizer, "cls_token_id")
        self.sep_id: int = _required(tokenizer, "sep_token_id")
        # Hugging Face's tokenizers of BLIP-2 include [DEC].
        dec_id = tokenizer.get_vocab().get("[DEC]")
        self.start_id = len(tokenizer) if dec_id is None else dec_id
        self.end_id = self.sep_id
        self.vocab_size = self.start_id + 1

    def encode(
        self, texts: Sequence[str], length: int
    ) -> tuple[Int32[Array, "B T"], Bool[Array, "B T"]]:
        """Encode [CLS] text [SEP], truncated and padded; return ids and mask."""
        rows = [
            [self.cls_id, *self.encode_words(text)[: length - 2], self.sep_id]
            for text in texts
        ]
        return pad_rows(rows, length, self.pad_id)


class LanguageTokenizer(_FastTokenizer):
    """The tokenizer of a frozen language model and its conventions.

    Attributes:
      family: "decoder_only" or "encoder_decoder" (the tokenizer puts its end token
        after every text).
      bos_id: id of the first token of every text; None if there is none, as for
        encoder-decoders.
      end_id: id of the token that ends a generated text: the end token, or a newline if
        the end token also begins the texts, as OPT's. SentencePiece has no token of a
        newline alone: the texts of InstructBLIP's Vicuna begin and end with the same.
        With a chat template, the token that ends a turn.
      eos_id: what `end_id` is without a template.
      template: the chat template that prompts are written with; None for none.
      separator: what joins a prompt and a text: a space, or nothing if the tokenizer
        itself begins every text with a space.
      blank_ids: ids of T5's sentinels <extra_id_0>, <extra_id_1>, ...; empty if the
        tokenizer has none.
      pad_id: padding token.
      vocab_size: number of tokens.
    """

    def __init__(self, tokenizer: Any, prompt_template: str = "plain"):
        """Wrap a tokenizer of transformers and detect its family.

        Args:
          tokenizer: the tokenizer.
          prompt_template: see `load_tokenizer`.

        Raises:
          ValueError: it is no language model's, or lacks a template that is asked for.
        """
        bos_id, eos_id = tokenizer.bos_token_id, tokenizer.eos_token_id
        # Padding is masked: without a token of its own, any token serves.
        has_padding = tokenizer.pad_token_id is not None or eos_id is None
        super().__init__(tokenizer, "pad_token_id" if has_padding else "eos_token_id")
        example = tokenizer("a")["input_ids"]
        self.vocab_size = len(tokenizer)
        self.blank_ids = self._blank_ids()
        begins = bos_id is not None and example[:1] == [bos_id]
        self.bos_id: int | None = bos_id if begins else None
        self.separator = "" if self._begins_with_space() else " "
        self.family: Family = "decoder_only"
        if begins and (eos_id is None or (eos_id == bos_id and self.separator)):
            self.end_id = self._newline_id(tokenizer)
        elif eos_id is not None:
            self.end_id = eos_id
            if not begins and example[-1:] == [eos_id]:
                self.family = "encoder_decoder"
        else:
            raise ValueError(
                "the tokenizer of a language model must have an end token, or put its "
                f"begin token before a text, but it encodes 'a' as {example}"
            )
        self.eos_id = self.end_id
        self.template: ChatTemplate | None = None
        if prompt_template == "chat":
            self._use_template(ChatTemplate(tokenizer))

    def _use_template(self, template: ChatTemplate) -> None:
        """Write prompts with a chat template from now on."""
        if self.family != "decoder_only":
            raise ValueError(
                "chat templates are for decoder-only models: prompt_template must be "
                "plain"
            )
        self.template = template
        end_of_turn = template.end_of_turn()
        self.end_id = self.eos_id if end_of_turn is None else end_of_turn

    def prompt_ids(self, prompt: Prompt) -> list[int]:
        """Encode what precedes a text of a decoder-only model.

        This is BOS, if there is one, and the prompt, or the template around the prompt,
        which writes BOS itself.
        """
        if self.template is not None:
            return self.encode_words(self.template.opening(prompt))
        begin = [] if self.bos_id is None else [self.bos_id]
        return [*begin, *self.encode_words(str(prompt).strip())]

    def text_ids(self, prompt: Prompt, text: str) -> list[int]:
        """Encode a text that follows a prompt, without the end token.

        Without a template a space precedes it, unless the prompt is empty.
        """
        if self.template is None:
            separator = self.separator if str(prompt) else ""
            return self.encode_words(separator + text.strip())
        start = self.prompt_ids(prompt)
        ids = self.encode_words(self.template.complete(prompt, text))
        if ids[: len(start)] != start:  # the text changes tokens before it
            return self.encode_words(text.strip())
        rest = ids[len(start) :]
        return rest[: rest.index(self.end_id)] if self.end_id in rest else rest

    def _begins_with_space(self) -> bool:
        """Return True if the tokenizer puts a space before a text, as Llama 2's."""
        text = "a"
        if self._backend.normalizer is not None:
            text = self._backend.normalizer.normalize_str(text)
        if self._backend.pre_tokenizer is not None:
            text = self._backend.pre_tokenizer.pre_tokenize_str(text)[0][0]
        return text.startswith(SENTENCEPIECE_SPACE)

    def _blank_ids(self) -> list[int]:
        """List the ids of the sentinels."""
        sentinels = (f"<extra_id_{number}>" for number in itertools.count())
        ids = map(self._backend.token_to_id, sentinels)
        return list(itertools.takewhile(lambda token_id: token_id is not None, ids))

    def _newline_id(self, tokenizer: Any) -> int:
        """Return the id of the newline, which must be one token."""
        ids = self.encode_words("\n")
        if len(ids) != 1 or ids[0] == tokenizer.unk_token_id:
            raise ValueError(
                f"the newline must be one known token, but its ids are {ids}"
            )
        return ids[0]


class ClipTokenizer(_FastTokenizer):
    """CLIP's tokenizer: begin token, words in lower case, end token.

    Attributes:
      start_id: id of the begin token.
      end_id: id of the end token, which is the padding too: the text ends at the first.
      vocab_size: number of tokens.
    """

    def __init__(self, tokenizer: Any):
        """Wrap a tokenizer of transformers."""
        super().__init__(tokenizer)
        self.start_id: int = _required(tokenizer, "bos_token_id")
        self.end_id: int = _required(tokenizer, "eos_token_id")
        self.vocab_size = len(tokenizer)

    def encode(self, text: str, limit: int) -> list[int]:
        """Encode a text of at most `limit` ids; the end of a longer one is left out."""
        words = self.encode_words(text)[: limit - 2]
        return [self.start_id, *words, self.end_id]


@overload
def load_tokenizer(
    spec: str, *, language_model: Literal[True], prompt_template: str = "plain"
) -> LanguageTokenizer: ...
@overload
def load_tokenizer(
    spec: str, *, language_model: Literal[False]
) -> QFormerTokenizer: ...
@overload
def load_tokenizer(
    spec: str, *, language_model: bool, prompt_template: str = "plain"
) -> LanguageTokenizer | QFormerTokenizer: ...
def load_tokenizer(
    spec: str, *, language_model: bool, prompt_template: str = "plain"
) -> LanguageTokenizer | QFormerTokenizer:
    """Load a tokenizer.

    Args:
      spec: a directory with a vocabulary, a name of the hub (`data.hub`), or
        "shapes:bert", "shapes:opt" or "shapes:t5", which are part of this package; with
        the tokens that are added to it (`tokenizer_files.with_tokens`). Of a Llama,
        "lavis:" before it lets texts begin with the end token.
      language_model: return a `LanguageTokenizer` instead of a `QFormerTokenizer`.
      prompt_template: how a language model's prompts are written: "plain", or "chat",
        with the chat template of the tokenizer.

    Raises:
      FileNotFoundError, ValueError: see `open_tokenizer`; or the template cannot be
        used.
    """
    if prompt_template not in PROMPT_TEMPLATES:
        raise ValueError(
            f"prompt_template is {prompt_template!r}; it must be one of "
            f"{', '.join(PROMPT_TEMPLATES)}"
        )
    tokenizer = open_tokenizer(spec, language_model)
    if not language_model:
        return QFormerTokenizer(tokenizer)
    try:
        return LanguageTokenizer(tokenizer, prompt_template)
    except ValueError as error:
        raise ValueError(f"tokenizer {spec}: {error}") from error


def load_clip_tokenizer(spec: str) -> ClipTokenizer:
    """Load CLIP's tokenizer; see `load_tokenizer`."""
    return ClipTokenizer(open_tokenizer(spec, language_model=False))


def _required(tokenizer: Any, name: str) -> int:
    """Return a token id of a tokenizer, which must have it."""
    value = getattr(tokenizer, name)
    if value is None:
        raise ValueError(f"the tokenizer has no {name.removesuffix('_id')}")
    return value
