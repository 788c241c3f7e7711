"""Stand-in tokenizers and recorded results of the original's stage-2 generation."""

import functools
import json

import numpy as np
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from blip2_jax.data.text.tokenizers import LanguageTokenizer
from tests.support.golden_stage2 import NAMES, model, params
from tests.support.goldens import GOLDENS

__all__ = ["NAMES", "load_generated", "model", "params", "tokenizer"]


@functools.cache
def tokenizer(name: str) -> LanguageTokenizer:
    """Return the tokenizer of a golden model, which splits texts at spaces."""
    words = json.loads((GOLDENS / name / "llm_vocab.json").read_text())
    return LanguageTokenizer(word_tokenizer(words, encoder_decoder="t5" in name))


def word_tokenizer(words, encoder_decoder: bool) -> PreTrainedTokenizerFast:
    """Build a tokenizer of whole words with the special tokens of T5 or OPT."""
    ids = {word: index for index, word in enumerate(words)}
    backend = Tokenizer(models.WordLevel(ids, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.Split(" ", "removed")
    end = "</s>"
    backend.post_processor = processors.TemplateProcessing(
        single="$A </s>" if encoder_decoder else "</s> $A",
        special_tokens=[(end, ids[end])],
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        pad_token="<pad>",
        unk_token="<unk>",
        bos_token=end,
        eos_token=end,
    )


def load_generated(name: str) -> tuple[dict[str, np.ndarray], dict]:
    """Load the arrays of `generate.npz` and the calls that produced them."""
    meta = json.loads((GOLDENS / name / "generate_meta.json").read_text())
    with np.load(GOLDENS / name / "generate.npz") as arrays:
        return dict(arrays), meta
