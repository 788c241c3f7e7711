"""Byte-level BPE vocabularies, as OPT's, learned from the texts of data sources."""

from __future__ import annotations

import pathlib
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers

from blip2_jax.data.sources.reading import readable_records
from blip2_jax.data.sources.registry import build_source
from blip2_jax.data.text.prompts import QUESTION_PROMPT
from blip2_jax.data.text.tokenizers import clean_caption, clean_question

_MARKS = ("<s>", "<pad>", "</s>", "<unk>")  # ids 0 to 3, as in OPT
SPECIAL_TOKENS = {
    "bos_token": "</s>",
    "eos_token": "</s>",
    "unk_token": "</s>",
    "pad_token": "<pad>",
}


def train_byte_level_bpe(corpus: Iterable[str], size: int = 30000) -> Tokenizer:
    """Train a byte-level BPE tokenizer that puts `</s>` before every text.

    Args:
      corpus: texts; pairs that occur only once may be merged.
      size: the largest vocabulary, the 256 bytes and 4 special tokens included.
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
    bos = ("</s>", _MARKS.index("</s>"))
    tokenizer.post_processor = processors.TemplateProcessing(
        single="</s> $A", pair="</s> $A </s> $B:1", special_tokens=[bos]
    )
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


def save_tokenizer(
    tokenizer: Tokenizer,
    directory: pathlib.Path,
    special_tokens: Mapping[str, str] = SPECIAL_TOKENS,
) -> None:
    """Write a tokenizer as a directory that transformers loads.

    Args:
      tokenizer: the tokenizer.
      directory: the directory to write.
      special_tokens: arguments of `PreTrainedTokenizerFast`, e.g. "bos_token".
    """
    from transformers import PreTrainedTokenizerFast

    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        clean_up_tokenization_spaces=False,
        model_max_length=512,
        **special_tokens,
    ).save_pretrained(directory)


def training_texts(specs: Iterable[Mapping[str, Any]]) -> Iterator[str]:
    """Yield the cleaned captions and the prompted questions with each of their answers.

    Records that cannot be read are left out; a warning counts them.

    Args:
      specs: source specs (see `sources.registry`).
    """
    for source in map(build_source, specs):
        for record in readable_records(source):
            # Without and with the leading space that a caption behind a prompt has.
            for caption in map(clean_caption, record.captions):
                yield from (caption, f" {caption}")
            for question in record.questions:
                prompt = QUESTION_PROMPT.format(clean_question(question.text))
                yield from (f"{prompt} {answer}" for answer in question.answers)
