"""Train a byte-level BPE vocabulary, as OPT's, on the texts of a data set.

    python -m blip2_jax.cli.train_vocabulary OUT 'data/flickr8k/train-*.tar' --size 4096
    python -m blip2_jax.cli.train_vocabulary OUT --config configs/daquar_text.py
    python -m blip2_jax.cli.train_vocabulary OUT --shapes

The first two write a tokenizer directory for `config.data.tokenizer.language_model`. A
small language model that is pre-trained on captions, or on questions and answers (those
of `config.data.train`), needs only the words of these texts. The third writes the three
tokenizers of the shapes world, which are part of the package.
"""

from __future__ import annotations

import argparse
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

from blip2_jax.cli.options import configuration
from blip2_jax.data.data_config import data_config
from blip2_jax.data.shapes import vocabularies
from blip2_jax.data.text.bpe import save_tokenizer, train_byte_level_bpe, training_texts


def main(arguments: Sequence[str] | None = None) -> None:
    """Train and write the vocabulary that the command line describes."""
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("out", type=pathlib.Path, help="directory to write")
    parser.add_argument("tars", nargs="*", help="paths or glob patterns of tars")
    parser.add_argument("--config", help="an experiment file, in place of tars")
    parser.add_argument(
        "--shapes", action="store_true", help="the shapes world's tokenizers"
    )
    parser.add_argument("--size", type=int, default=4096, help="largest vocabulary")
    args = parser.parse_args(arguments)
    if bool(args.tars) + bool(args.config) + args.shapes != 1:
        parser.error("give one of: tars, --config, --shapes")
    if args.shapes:
        vocabularies.save_all(args.out)
        return
    specs: Sequence[Mapping[str, Any]] = [{"kind": "tars", "paths": args.tars}]
    if args.config:
        specs = data_config(configuration(args.config).data).train
    save_tokenizer(train_byte_level_bpe(training_texts(specs), args.size), args.out)


if __name__ == "__main__":
    main()
