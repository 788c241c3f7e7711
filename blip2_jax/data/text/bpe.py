"""Learn a vocabulary as OPT's is (byte-level BPE) from the texts of a data set.

    python -m blip2_jax.data.text.bpe OUT 'data/flickr8k/train-*.tar' --size 4096
    python -m blip2_jax.data.text.bpe OUT --config configs/daquar_text.py --size 2048

writes a tokenizer directory for `config.data.tokenizer.language_model`. A small
language model that is pre-trained on captions, or on questions and answers (those of
`config.data.train`), needs no more than their words.
"""

from __future__ import annotations

import argparse
import pathlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers

from blip2_jax.cli.options import configuration
from blip2_jax.data.data_config import data_config
from blip2_jax.data.sources.base import BrokenSample
from blip2_jax.data.sources.registry import build_source
from blip2_jax.data.text.prompts import QUESTION_PROMPT
from blip2_jax.data.text.tokenizers import clean_caption, clean_question

_MARKS = ("<s>", "<pad>", "</s>", "<unk>")  # ids 0 to 3, as in OPT
SPECIAL = {
    "bos_token": "</s>",
    "eos_token": "</s>",
    "unk_token": "</s>",
    "pad_token": "<pad>",
}


def byte_level_bpe(corpus: Iterable[str], size: int = 30000) -> Tokenizer:
    """Byte-level BPE; `</s>` begins a text; the newline is one token.

    Args:
      corpus: texts; pieces that occur once may be merged.
      size: the most pieces there may be, the 256 bytes and 4 marks included.
    """
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    trainer = trainers.BpeTrainer(
        vocab_size=size,
        special_tokens=list(_MARKS),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        min_frequency=1,
        show_progress=False,
    )
    tokenizer.train_from_iterator(corpus, trainer)
    begin = ("</s>", _MARKS.index("</s>"))
    tokenizer.post_processor = processors.TemplateProcessing(
        single="</s> $A", pair="</s> $A </s> $B:1", special_tokens=[begin]
    )
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


def save(tokenizer: Tokenizer, directory: pathlib.Path) -> None:
    """Write a tokenizer as a directory that transformers loads."""
    from transformers import PreTrainedTokenizerFast

    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        clean_up_tokenization_spaces=False,
        model_max_length=512,
        **SPECIAL,
    ).save_pretrained(directory)


def texts(specs: Iterable[Mapping[str, Any]]) -> Iterator[str]:
    """Cleaned captions, and questions with each answer as a model is asked them.

    A record that cannot be read is left out.

    Args:
      specs: of the sources.
    """
    for source in map(build_source, specs):
        for index in range(len(source)):
            try:
                record = source.record(index)
            except BrokenSample:
                continue
            # With and without the space that a prompt before it would need.
            for caption in map(clean_caption, record.captions):
                yield from (caption, f" {caption}")
            for question in record.questions:
                asked = QUESTION_PROMPT.format(clean_question(question.text))
                yield from (f"{asked} {answer}" for answer in question.answers)


def main() -> None:
    """Parse and write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("out", type=pathlib.Path, help="directory to write")
    parser.add_argument("tars", nargs="*", help="paths or patterns")
    parser.add_argument("--config", help="an experiment, in place of tars")
    parser.add_argument("--size", type=int, default=4096, help="pieces at most")
    arguments = parser.parse_args()
    if bool(arguments.tars) == bool(arguments.config):
        parser.error("name either tars or a --config")
    sources: Sequence[Mapping[str, Any]] = [{"kind": "tars", "paths": arguments.tars}]
    if arguments.config:
        sources = data_config(configuration(arguments.config).data).train
    save(byte_level_bpe(texts(sources), arguments.size), arguments.out)


if __name__ == "__main__":
    main()
