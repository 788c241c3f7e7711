"""Rows of token tables for the tokens of `config.data.added_tokens`.

The tables of a source (a run, a file) may lack the rows. They are then added near the
mean of the others. A table is trained as a whole: its old rows change too.
"""

from __future__ import annotations

from collections.abc import Mapping

from ml_collections import ConfigDict

from blip2_jax.convert.vocabulary import (
    LAST_ROW_TABLES,
    TOKEN_AXES,
    GrownTables,
    shape_of,
)
from blip2_jax.data.data_config import tokenizer_spec
from blip2_jax.data.text.tokenizer_files import split_spec
from blip2_jax.data.text.tokenizers import load_tokenizer
from blip2_jax.nn import trees
from blip2_jax.nn.trees import flatten
from blip2_jax.training.frozen import Arrays
from blip2_jax.training.tasks import Task, model_config
from blip2_jax.training.train_config import ConfigError

# Parameters with a row or column for each token, by the tokenizer that they are for.
TABLES = {"qformer": LAST_ROW_TABLES, "language_model": tuple(TOKEN_AXES)}


def count_added(config: ConfigDict, role: str) -> int:
    """Return the number of tokens that a run adds to a tokenizer.

    Args:
      config: of the run.
      role: "qformer" or "language_model".
    """
    return len(split_spec(tokenizer_spec(config.data, role))[1])


def fit_tables(config: ConfigDict) -> None:
    """Give the sizes of a configuration a row for each token that it adds.

    Sizes that have the rows stay as they are.

    Args:
      config: configuration of a new run, locked.

    Raises:
      FileNotFoundError, ValueError: a tokenizer cannot be loaded with the tokens.
    """
    for role in TABLES:
        if not (config.data.tokenizer[role] and count_added(config, role)):
            continue
        spec = tokenizer_spec(config.data, role)
        tokenizer = load_tokenizer(spec, language_model=role == "language_model")
        sizes = getattr(model_config(config.model), role)
        if sizes is None or sizes.vocab_size >= tokenizer.vocab_size:
            continue
        overrides = config.model.overrides.to_dict()
        overrides[role] = {
            **overrides.get(role, {}),
            "vocab_size": tokenizer.vocab_size,
        }
        with config.unlocked():
            config.model.overrides = ConfigDict(overrides)


def check_trained(config: ConfigDict, task: Task) -> None:
    """Check that no table with rows of new tokens is frozen.

    Raises:
      ConfigError: one is; its new rows would stay as they were drawn.
    """
    shapes = flatten(task.parameter_shapes())
    for role in task.tokenizers:
        if not count_added(config, role):
            continue
        for path in TABLES[role]:
            if path in shapes and trees.matches(config.frozen, path):
                raise ConfigError(
                    f"config.frozen freezes {path}, so that the rows of "
                    f"data.added_tokens.{role} would stay as they are drawn: exclude "
                    f"it, e.g. by the pattern '^{path.split('/')[0]}/"
                    r"(?!embeddings/token$|head/)'"
                )


def with_rows(config: ConfigDict, sources: Mapping[str, Arrays]) -> dict[str, Arrays]:
    """Return the sources of a new run, with rows for the tokens that it adds.

    Only tables that lack rows grow, and by no more rows than there are new tokens.
    """
    sizes = model_config(config.model)
    language_model = sizes.language_model
    rows = {"qformer": sizes.qformer.vocab_size}
    if language_model is not None:
        rows["language_model"] = language_model.vocab_size
    limits = {
        path: (count, count_added(config, role))
        for role, count in rows.items()
        for path in TABLES[role]
    }
    return {name: _grown(arrays, limits) for name, arrays in sources.items()}


def _grown(arrays: Arrays, limits: Mapping[str, tuple[int, int]]) -> Arrays:
    """Return parameters with longer tables, or themselves if none has to grow."""
    longer = {
        path: rows
        for path, (rows, added) in limits.items()
        if added and path in arrays and 0 < rows - _rows(arrays, path) <= added
    }
    return GrownTables(arrays, longer) if longer else arrays


def _rows(arrays: Arrays, path: str) -> int:
    return shape_of(arrays, path)[TOKEN_AXES.get(path, 0)]
