"""The `--bert` option: the BERT that a Q-Former starts from, with its sizes."""

from __future__ import annotations

import argparse

from ml_collections import ConfigDict


def add_bert_option(parser: argparse.ArgumentParser) -> None:
    """Add `--bert`."""
    parser.add_argument_group("start of the Q-Former").add_argument(
        "--bert",
        metavar="PATH",
        help="folder or hub name of a BERT in any language: initial values, sizes and "
        "tokenizer of the Q-Former (docs/training.md)",
    )


def set_bert_option(arguments: argparse.Namespace, config: ConfigDict) -> None:
    """Set the BERT that a command line names, if it names one.

    A run that starts from another (`init.from_run`) takes the sizes and the tokenizer.
    A tokenizer that the command line names by its key is kept.

    Args:
      arguments: command line with the option of `add_bert_option`.
      config: configuration, locked.

    Raises:
      SourceError: see `bert_sizes`.
    """
    if arguments.bert is None:
        return
    from blip2_jax.configs.common import set_bert
    from blip2_jax.convert.bert_folder import SIZES, bert_sizes
    from blip2_jax.convert.files.checkpoint_files import CheckpointFiles

    sizes = bert_sizes(CheckpointFiles(arguments.bert))
    option = "--config.data.tokenizer.qformer="
    own = any(override.startswith(option) for override in arguments.overrides)
    tokenizer = config.data.tokenizer.qformer if own else arguments.bert
    with config.unlocked():
        set_bert(config, {name: getattr(sizes, name) for name in SIZES}, arguments.bert)
        config.data.tokenizer.qformer = tokenizer
