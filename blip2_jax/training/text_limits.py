"""Checks that the texts of a run fit its model, before anything compiles."""

from __future__ import annotations

from ml_collections import ConfigDict

from blip2_jax.convert.vocabulary import check_vocabulary
from blip2_jax.data.data_config import tokenizer_spec
from blip2_jax.data.text.tokenizer_files import split_spec
from blip2_jax.data.text.tokenizers import (
    LanguageTokenizer,
    QFormerTokenizer,
    load_tokenizer,
)
from blip2_jax.training import new_tokens
from blip2_jax.training.tasks import Task, model_config
from blip2_jax.training.train_config import ConfigError

_SPARE_SHARE = 0.1  # of the rows of a table


def check_texts(config: ConfigDict, task: Task) -> None:
    """Check tokenizers against token tables, and text lengths against positions.

    Args:
      config: configuration of the run.
      task: of the run.

    Raises:
      ConfigError: ids or positions exceed a table; the message has both sizes.
    """
    sizes = model_config(config.model)
    for role in task.tokenizers:
        if not (spec := tokenizer_spec(config.data, role)):
            continue  # the data pipeline says which tokenizer is missing
        tokenizer = load_tokenizer(
            spec,
            language_model=role == "language_model",
            prompt_template=config.data.get("prompt_template", "plain"),
        )
        try:
            check_vocabulary(tokenizer, sizes)
            _check_template(tokenizer, config)
            if role == "qformer" and config.init.from_weights:
                _check_spare_rows(tokenizer.vocab_size, sizes.qformer.vocab_size)
        except ValueError as error:
            name = split_spec(spec)[0]
            raise ConfigError(f"data.tokenizer.{role}={name}: {error}") from error
    new_tokens.check_trained(config, task)
    _check_positions(config, task)


def _check_template(
    tokenizer: QFormerTokenizer | LanguageTokenizer, config: ConfigDict
) -> None:
    """Raise a ValueError if a chat template leaves no room for a text."""
    if not isinstance(tokenizer, LanguageTokenizer) or tokenizer.template is None:
        return
    template, length = len(tokenizer.prompt_ids("")), config.data.max_text_length
    if template + 2 > length:  # one word and its end
        raise ValueError(
            f"the chat template alone has {template} tokens, and "
            f"data.max_text_length is {length}"
        )


def _check_spare_rows(tokens: int, rows: int) -> None:
    """Check that a table is that of the tokenizer, not one of another BERT.

    Raises:
      ValueError: more rows lack a token than those that round a size up.
    """
    if rows - tokens > _SPARE_SHARE * rows:
        raise ValueError(
            f"it has {tokens:,} tokens with [DEC], but the table that the Q-Former "
            f"starts from {rows:,} rows: choose the tokenizer of this BERT"
        )


def _check_positions(config: ConfigDict, task: Task) -> None:
    """Raise a ConfigError if a text can be longer than a table of positions."""
    sizes, length = model_config(config.model), config.data.max_text_length
    if task.name != "contrast" and "qformer" in task.tokenizers:
        limit = sizes.qformer.max_positions
        if length > limit:
            raise ConfigError(
                f"data.max_text_length is {length}, but the Q-Former has {limit} "
                "positions"
            )
    language_model = sizes.language_model
    if "language_model" not in task.tokenizers or language_model is None:
        return
    if (positions := language_model.position_limit) is not None:
        queries = 0 if task.name == "language_model" else sizes.num_visual_tokens
        if queries + length > positions:
            raise ConfigError(
                f"{queries} queries and data.max_text_length {length} take "
                f"{queries + length} positions, but this {language_model.title} has "
                f"{positions}"
            )
