"""Learn a vocabulary as OPT's is (byte-level BPE) from the captions of a data set.

    python -m blip2_jax.data.bpe OUT 'data/flickr8k/train-*.tar' --size 4096

writes a tokenizer directory for `config.data.tokenizer.language_model`. A small
language model that is pre-trained on captions needs no more than their words.
"""

from __future__ import annotations

import argparse
import pathlib
from collections.abc import Iterable, Iterator

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers

from blip2_jax.data.sources.base import BrokenSample
from blip2_jax.data.sources.tars import TarsSource
from blip2_jax.data.text import clean_caption

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


def captions(paths: list[str]) -> Iterator[str]:
    """The cleaned captions of tars; a record that cannot be read is left out."""
    source = TarsSource(paths)
    for index in range(len(source)):
        try:
            record = source.record(index)
        except BrokenSample:
            continue
        # With and without the space that a prompt before it would need.
        for caption in map(clean_caption, record.captions):
            yield from (caption, f" {caption}")


def main() -> None:
    """Parse and write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("out", type=pathlib.Path, help="directory to write")
    parser.add_argument("tars", nargs="+", help="paths or patterns")
    parser.add_argument("--size", type=int, default=4096, help="pieces at most")
    arguments = parser.parse_args()
    save(byte_level_bpe(captions(arguments.tars), arguments.size), arguments.out)


if __name__ == "__main__":
    main()
