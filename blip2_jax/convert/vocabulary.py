"""Comparison of tokenizers with token tables, and tables with spare rows.

A token id beyond the table has no embedding: XLA reads another row or NaN in its place.
A table may have more rows than the tokenizer has tokens, because rows are often padded
to a round number.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from blip2_jax.convert.files.checkpoint_files import LazyArrays
from blip2_jax.data.text.tokenizer_files import LAVIS_PREFIX
from blip2_jax.data.text.tokenizers import LanguageTokenizer, QFormerTokenizer
from blip2_jax.models.presets import Blip2Config
from blip2_jax.models.sizes import LanguageModelConfig

Arrays = Mapping[str, np.ndarray]
# Axis of the tokens in parameters whose last rows may be spare. The Q-Former's table is
# not listed, because its last row is [DEC].
TOKEN_AXES = {
    "language_model/embeddings/token": 0,
    "language_model/head/kernel": 1,
}
# Those of the Q-Former, whose last row is that of [DEC].
LAST_ROW_TABLES = ("qformer/embeddings/word", "qformer/head/bias")
# Deviation of new rows from the mean of the others, in deviations of these.
NEW_ROW_NOISE = 0.1


def check_vocabulary(
    tokenizer: QFormerTokenizer | LanguageTokenizer, config: Blip2Config
) -> None:
    """Check that a tokenizer's ids are rows of the table that it is for.

    Args:
      tokenizer: of the Q-Former or of the language model.
      config: sizes of the model.

    Raises:
      ValueError: they do not fit; the message has both sizes.
    """
    if isinstance(tokenizer, QFormerTokenizer):
        name, rows = "Q-Former", config.qformer.vocab_size
    else:
        assert config.language_model is not None
        name, rows = "language model", config.language_model.vocab_size
        _check_ends(tokenizer, config.language_model)
    part = name.lower().replace("-", "").replace(" ", "_")
    advice = f", or train a model with {part}.vocab_size {tokenizer.vocab_size}"
    check_rows(name, tokenizer.vocab_size, rows, advice)


def _check_ends(tokenizer: LanguageTokenizer, config: LanguageModelConfig) -> None:
    """Check that tokenizer and model begin and end texts with the same tokens.

    Raises:
      ValueError: they do not; the message has both tokens.
    """
    if config.end_id is None:
        return
    begins_with_end = config.start_id == config.end_id
    advice = f", such as {LAVIS_PREFIX}FOLDER of a Vicuna" if begins_with_end else ""
    ours = {"bos_id": config.start_id, "eos_id": config.end_id}
    theirs = {"bos_id": tokenizer.bos_id, "eos_id": tokenizer.eos_id}
    for name, token_id in theirs.items():
        if token_id != ours[name]:
            raise ValueError(
                f"{name} of the language model is {ours[name]}, but that of its "
                f"tokenizer is {token_id}: choose the tokenizer of this model{advice}, "
                f"or set language_model.{name} to {token_id}"
            )


def check_rows(name: str, tokens: int, rows: int, advice: str = "") -> None:
    """Check that a tokenizer has no more tokens than a table has rows.

    Args:
      name: of the part that has the table, for the message.
      tokens: number of the tokenizer's tokens.
      rows: number of rows of the table of embeddings.
      advice: end of the message.

    Raises:
      ValueError: there are more tokens; the message has both numbers.
    """
    if tokens > rows:
        raise ValueError(
            f"the tokenizer of the {name} has {tokens:,} tokens, its table of "
            f"embeddings {rows:,} rows: choose the tokenizer of this model{advice}"
        )


def arrays_at_vocabulary(arrays: Arrays, config: Blip2Config) -> Arrays:
    """Return parameters by path without the spare rows of longer token tables.

    Args:
      arrays: parameters of a checkpoint.
      config: sizes of the model that reads them.

    Returns:
      `arrays` itself if no table is longer than the model's.
    """
    if config.language_model is None:
        return arrays
    rows = config.language_model.vocab_size
    longer = {
        path: rows
        for path, axis in TOKEN_AXES.items()
        if path in arrays and shape_of(arrays, path)[axis : axis + 1] > (rows,)
    }
    return CutTables(arrays, longer) if longer else arrays


def shape_of(arrays: Arrays, path: str) -> tuple[int, ...]:
    """Return the shape of a parameter, without reading it where that is possible."""
    return arrays.shape(path) if hasattr(arrays, "shape") else arrays[path].shape


class CutTables(LazyArrays):
    """Parameters by path, with token tables cut to the model's number of rows.

    Attributes:
      notes: lines for the user on how the arrays were changed.
    """

    def __init__(self, arrays: Arrays, rows: Mapping[str, int]) -> None:
        super().__init__(arrays)
        self._arrays, self._rows = arrays, rows
        cuts = (
            f"{path} has {shape_of(arrays, path)[TOKEN_AXES[path]]:,} rows; the first "
            f"{count:,} are read"
            for path, count in rows.items()
        )
        self.notes = (*getattr(arrays, "notes", ()), *cuts)

    def __getitem__(self, path: str) -> np.ndarray:
        array = self._arrays[path]
        if path not in self._rows:
            return array
        return array[(slice(None),) * TOKEN_AXES[path] + (slice(self._rows[path]),)]

    def shape(self, path: str) -> tuple[int, ...]:
        """Return the shape of a parameter."""
        shape = list(shape_of(self._arrays, path))
        if path in self._rows:
            shape[TOKEN_AXES[path]] = self._rows[path]
        return tuple(shape)

    def origin(self, path: str) -> Any:
        """Return the origin of a parameter; of a cut table only the file.

        The digest in a manifest is that of the whole table.
        """
        origin = getattr(self._arrays, "origin", lambda path: "memory")(path)
        if path in self._rows and isinstance(origin, Mapping):
            return origin["source"]
        return origin


class GrownTables(LazyArrays):
    """Parameters by path, with rows for new tokens in some tables.

    A new row is the mean of the others plus `NEW_ROW_NOISE` of their deviation, so that
    a new token is neither likely nor unlikely at first. In the Q-Former's tables [DEC]
    stays the last row.

    Attributes:
      notes: lines for the user on how the arrays were changed.
    """

    def __init__(self, arrays: Arrays, rows: Mapping[str, int]) -> None:
        super().__init__(arrays)
        self._arrays, self._rows = arrays, rows
        growth = (
            f"{path} has {shape_of(arrays, path)[TOKEN_AXES.get(path, 0)]:,} rows; new "
            f"ones are drawn near their mean, up to {count:,}"
            for path, count in rows.items()
        )
        self.notes = (*getattr(arrays, "notes", ()), *growth)

    def __getitem__(self, path: str) -> np.ndarray:
        array = self._arrays[path]
        if path not in self._rows:
            return array
        axis = TOKEN_AXES.get(path, 0)
        kept = int(path in LAST_ROW_TABLES)
        table = np.moveaxis(np.asarray(array), axis, 0)
        return np.moveaxis(_with_new_rows(table, self._rows[path], kept), 0, axis)


def _with_new_rows(table: np.ndarray, count: int, kept: int) -> np.ndarray:
    """Insert rows before the last `kept` until there are `count`.

    The result is float32, the same at every call.
    """
    old = table.astype(np.float32)
    words, last = old[: len(old) - kept], old[len(old) - kept :]
    shape = (count - len(old), *old.shape[1:])
    noise = np.random.default_rng(0).normal(size=shape).astype(np.float32)
    new = words.mean(axis=0) + NEW_ROW_NOISE * words.std(axis=0) * noise
    return np.concatenate([words, new, last])
