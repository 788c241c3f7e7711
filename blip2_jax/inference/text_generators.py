"""Texts in, texts out: a model's decoder together with its tokenizer.

A writer turns prompts into rows of ids, runs the two compiled programs of
`programs.py` and reads the result back. Both kinds look alike from outside.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Protocol

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Int, Key, PyTree, Shaped
from numpy import ndarray as Array

from blip2_jax.data.text.prompts import generation_prompts, question_rows
from blip2_jax.data.text.tokenizers import LanguageTokenizer, QFormerTokenizer
from blip2_jax.generation import programs
from blip2_jax.generation.decoder import Decoded
from blip2_jax.generation.decoding_config import DecodingConfig
from blip2_jax.inference.inputs import chunks, padded
from blip2_jax.models.blip2 import Blip2Base
from blip2_jax.models.blip2_stage1 import Blip2Stage1
from blip2_jax.models.blip2_stage2 import Blip2Stage2
from blip2_jax.models.presets import OPTConfig
from blip2_jax.parallel import hosts, sharding

PROMPT_STEP = 8  # prompts are padded to multiples of so many tokens

_encode_image = jax.jit(programs.encode_image, static_argnums=0)
_read_stage1 = jax.jit(programs.read_stage1, static_argnums=0)
_read_stage2 = jax.jit(programs.read_stage2, static_argnums=0)
_write_stage1 = jax.jit(
    programs.write_stage1, static_argnums=(0, 3), static_argnames=("eos_id", "pad_id")
)
_write_stage2 = jax.jit(
    programs.write_stage2, static_argnums=(0, 3), static_argnames="eos_id"
)
_weights_apart = jax.jit(programs.unstacked_weights, static_argnums=0)

Rows = tuple[Shaped[Array, "B ..."], ...]
# What the Q-Former reads: of each row one question, or one for each of its images.
Questions = Sequence[Sequence[str]]


class TextGenerator(Protocol):
    """What `Blip2` needs to write texts about images."""

    def rows(self, prompts: Sequence[str], questions: Questions | None) -> Rows:
        """Token arrays, a row for each prompt (and question)."""
        ...

    def write(
        self,
        images: Shaped[Array, "B ..."],
        rows: Rows,
        config: DecodingConfig,
        keys: Key[jax.Array, " B"] | None,
    ) -> Decoded:
        """New tokens for images (or features) and rows."""
        ...

    def encode(self, images: Shaped[Array, "B ..."]) -> jax.Array:
        """Features of images, which `write` takes in their place."""
        ...

    def text(self, ids: Shaped[Array, " N"]) -> str:
        """What tokens say."""
        ...


class _Encoding:
    """What both writers do alike."""

    _model: Blip2Base
    _params: PyTree

    def encode(self, images: Shaped[Array, "B ..."]) -> jax.Array:
        """See `TextGenerator`."""
        images = sharding.place_rows_like(self._params, images)
        return _encode_image(self._model, self._params, images)


class QFormerGenerator(_Encoding):
    """A stage-1 model: the Q-Former writes captions itself."""

    def __init__(self, model: Blip2Stage1, params: PyTree, tokenizer: QFormerTokenizer):
        self._model, self._params, self._tokenizer = model, params, tokenizer

    def rows(self, prompts: Sequence[str], questions: Questions | None) -> Rows:
        """[DEC] and the prompt, which must be as long for all rows.

        Raises:
          ValueError: prompts of unequal numbers of tokens.
        """
        del questions  # a stage-1 model is asked none
        tokenizer = self._tokenizer
        start = [[tokenizer.start_id, *tokenizer.encode_words(p)] for p in prompts]
        if len({len(row) for row in start}) > 1:
            raise ValueError(
                "a stage-1 model takes prompts of equal length only: give one for all"
            )
        return (np.array(start, np.int32),)

    def write(
        self,
        images: Shaped[Array, "B ..."],
        rows: Rows,
        config: DecodingConfig,
        keys: Key[jax.Array, " B"] | None,
    ) -> Decoded:
        """See `TextGenerator`.

        Raises:
          ValueError: prompt and new tokens exceed the Q-Former's positions.
        """
        (start,) = rows
        most = self._model.config.qformer.max_positions
        if start.shape[1] + config.max_new_tokens > most:
            raise ValueError(
                f"{start.shape[1]} prompt tokens and max_new_tokens="
                f"{config.max_new_tokens} exceed this Q-Former's {most} positions"
            )
        images, start = sharding.place_rows_like(self._params, (images, start))
        read = _read_stage1(self._model, self._params, images, start)
        return _write_stage1(
            self._model,
            self._params,
            read,
            config,
            history=start,
            keys=keys,
            eos_id=self._tokenizer.end_id,
            pad_id=self._tokenizer.pad_id,
        )

    def text(self, ids: Shaped[Array, " N"]) -> str:
        """What tokens say."""
        return self._tokenizer.decode(ids)


class LanguageModelGenerator(_Encoding):
    """A stage-2 model: its language model writes."""

    def __init__(
        self,
        model: Blip2Stage2,
        params: PyTree,
        tokenizer: LanguageTokenizer,
        qformer_tokenizer: QFormerTokenizer | None = None,
    ):
        """Check that tokenizer and model go together.

        Args:
          qformer_tokenizer: for models whose Q-Former reads the question.

        Raises:
          ValueError: the tokenizer is of the other family, or has more words.
        """
        language_model = model.config.language_model
        assert language_model is not None
        decoder_only = isinstance(language_model, OPTConfig)
        family = "decoder_only" if decoder_only else "encoder_decoder"
        if tokenizer.family != family:
            raise ValueError(
                f"a {family} model with a tokenizer for {tokenizer.family}"
            )
        if tokenizer.vocab_size > language_model.vocab_size:
            raise ValueError(
                f"the tokenizer has {tokenizer.vocab_size} words, the language model "
                f"{language_model.vocab_size}"
            )
        self._model, self._params, self._tokenizer = model, params, tokenizer
        self._qformer_tokenizer = qformer_tokenizer

    def rows(self, prompts: Sequence[str], questions: Questions | None) -> Rows:
        """Prompt ids and mask, and those of the questions where the model reads them.

        Prompts that are no questions leave the Q-Former to its queries.

        Raises:
          ValueError: no tokenizer of the Q-Former where it is needed.
        """
        _, mask = generation_prompts(self._tokenizer, prompts)
        length = -(-mask.shape[1] // PROMPT_STEP) * PROMPT_STEP
        rows = generation_prompts(self._tokenizer, prompts, length)
        if not self._model.question_in_qformer:
            return rows
        if self._qformer_tokenizer is None:
            raise ValueError(
                "this model's Q-Former reads the question: it needs a qformer_tokenizer"
            )
        asked = [
            question for row in questions or [[""]] * len(prompts) for question in row
        ]
        longest = max(len(self._qformer_tokenizer.encode_words(q)) for q in asked)
        length = -(-(longest + 2) // PROMPT_STEP) * PROMPT_STEP
        found = question_rows(self._qformer_tokenizer, asked, length)
        each = (part.reshape(len(prompts), -1, length) for part in found)
        return (*rows, *(part[:, 0] if part.shape[1] == 1 else part for part in each))

    def write(
        self,
        images: Shaped[Array, "B ..."],
        rows: Rows,
        config: DecodingConfig,
        keys: Key[jax.Array, " B"] | None,
    ) -> Decoded:
        """See `TextGenerator`.

        Raises:
          ValueError: queries, prompt and new tokens exceed OPT's positions.
        """
        images, (ids, mask, *question) = sharding.place_rows_like(
            self._params, (images, rows)
        )
        language_model = self._model.config.language_model
        assert language_model is not None
        history = programs.start_history(language_model, ids, mask, config.convention)
        read = _read_stage2(
            self._model,
            self._params,
            images,
            ids,
            mask,
            tuple(question),
            self._weights,
        )
        return _write_stage2(
            self._model,
            self._params,
            read,
            config,
            history=history,
            keys=keys,
            eos_id=self._tokenizer.end_id,
            weights=self._weights,
        )

    @functools.cached_property
    def _weights(self) -> PyTree:
        """The language model's weights in a second form, where that is worth it."""
        if not programs.are_worth_a_copy(self._params):
            return None
        return _weights_apart(self._model, self._params)

    def text(self, ids: Shaped[Array, " N"]) -> str:
        """What tokens say."""
        return self._tokenizer.decode(ids)


def write_texts(
    writer: TextGenerator,
    images: Shaped[Array, "B ..."],
    rows: Rows,
    image_of: Int[Array, " B"],
    config: DecodingConfig,
    *,
    seed: int,
    batch_size: int,
) -> list[list[str]]:
    """Texts about images, `num_return_sequences` for each row, best first.

    Args:
      writer: the model.
      images: or features; each is encoded once.
      rows: from `writer.rows`.
      image_of: the place in `images` of each row's.
      config: static settings.
      seed: of sampling; a row's draws depend on it and on the row's number.
      batch_size: rows of the largest compiled program.
    """
    if len(image_of) > len(images) and images.ndim == 4 and images.dtype == np.uint8:
        images = _encoded(writer, images, batch_size)
    texts = []
    for where, size in chunks(len(image_of), batch_size):
        part = padded(images[image_of[where]], size)
        part_rows = [padded(array[where], size) for array in rows]
        keys = _row_keys(seed, where.start, size) if config.sample else None
        found = hosts.to_host(writer.write(part, tuple(part_rows), config, keys))
        for row in range(where.stop - where.start):
            pairs = zip(found.ids[row], found.lengths[row], strict=True)
            texts.append([writer.text(ids[:length]) for ids, length in pairs])
    return texts


def _encoded(
    writer: TextGenerator, images: Shaped[Array, "n ..."], batch_size: int
) -> Float[Array, "n P D"]:
    """Features of images that several rows share."""
    parts = []
    for where, size in chunks(len(images), batch_size):
        features = hosts.to_host(writer.encode(padded(images[where], size)))
        parts.append(features[: where.stop - where.start])
    return np.concatenate(parts)


def _row_keys(seed: int, start: int, count: int) -> Key[jax.Array, " b"]:
    """A key for each row of the whole call, whatever the batches."""
    rows = jnp.arange(start, start + count)
    return jax.vmap(jax.random.fold_in, (None, 0))(jax.random.key(seed), rows)
