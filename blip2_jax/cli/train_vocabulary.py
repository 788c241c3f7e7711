"""Train a byte-level BPE vocabulary, as OPT's, on the texts of a data set.

    blip2-jax train_vocabulary --out tokenizers/flickr8k 'data/flickr8k/train-*.tar'
    blip2-jax train_vocabulary --out tokenizers/daquar --config daquar_text --size 2048
    blip2-jax train_vocabulary --out DIR --shapes

The first two write a tokenizer directory for `config.data.tokenizer.language_model`. A
small language model that is pre-trained on captions, or on questions and answers (those
of `config.data.train`), needs only the words of these texts. The third writes the three
tokenizers of the shapes world, which are part of the package.
"""

from __future__ import annotations

import argparse
import pathlib
import sys
from collections.abc import Mapping, Sequence
from typing import Any

from blip2_jax.cli.config_options import load_config
from blip2_jax.cli.errors import UsageError
from blip2_jax.cli.options import CommandParser, run_command


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit code."""
    return run_command(make_parser(), run, argv)


def make_parser() -> CommandParser:
    """Make the parser of the command line."""
    parser = CommandParser("train_vocabulary", __doc__)
    parser.add_argument(
        "paths",
        nargs="*",
        metavar="TAR",
        help="paths or patterns of tars; without --out, the first is the directory",
    )
    parser.add_argument(
        "--out", type=pathlib.Path, metavar="DIR", help="directory to write"
    )
    parser.add_argument(
        "--config", metavar="NAME[:ARGUMENT]", help="a configuration instead of tars"
    )
    parser.add_argument(
        "--shapes", action="store_true", help="write the shapes world's tokenizers"
    )
    parser.add_argument(
        "--size", type=int, default=4096, metavar="N", help="vocabulary size"
    )
    return parser


def run(arguments: argparse.Namespace) -> int:
    """Train and write the vocabulary; returns the exit code."""
    from blip2_jax.data.data_config import data_config
    from blip2_jax.data.shapes import vocabularies
    from blip2_jax.data.text.bpe import (
        save_tokenizer,
        train_byte_level_bpe,
        training_texts,
    )

    tars, out = arguments.paths, arguments.out
    if out is None:
        if not tars:
            raise UsageError("--out is missing, e.g. --out tokenizers/mine")
        out, tars = pathlib.Path(tars[0]), tars[1:]
    if bool(tars) + bool(arguments.config) + arguments.shapes != 1:
        raise UsageError("expected one of: tars, --config, --shapes")
    if arguments.shapes:
        vocabularies.save_all(out)
        return 0
    sources: Sequence[Mapping[str, Any]] = [{"kind": "tars", "paths": tars}]
    if arguments.config:
        sources = data_config(load_config(arguments.config).data).train
    tokenizer = train_byte_level_bpe(training_texts(sources), arguments.size)
    save_tokenizer(tokenizer, out)
    print(f"wrote {out}: {tokenizer.get_vocab_size()} tokens")
    return 0


if __name__ == "__main__":
    sys.exit(main())
