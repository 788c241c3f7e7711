"""Public models over the golden weights, with stand-in tokenizers, and images."""

import functools

import numpy as np
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from blip2_jax.data.text.tokenizers import QFormerTokenizer
from blip2_jax.inference.generator import Blip2Generator
from blip2_jax.inference.retriever import Blip2Retriever
from tests.support import golden_language, golden_stage1, golden_stage2
from tests.support.goldens import GOLDENS


def bert_tokenizer() -> QFormerTokenizer:
    words = (GOLDENS / "stage1_a" / "vocab.txt").read_text().splitlines()
    ids = {word: index for index, word in enumerate(words)}
    backend = Tokenizer(models.WordPiece(ids, unk_token="[UNK]"))
    backend.normalizer = normalizers.BertNormalizer()
    backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    special = {f"{name}_token": f"[{name.upper()}]" for name in ("pad", "cls", "sep")}
    return QFormerTokenizer(
        PreTrainedTokenizerFast(tokenizer_object=backend, **special)
    )


@functools.cache
def stage1(batch_size=32) -> Blip2Retriever:
    return Blip2Retriever(
        golden_stage1.model(),
        golden_stage1.params(),
        qformer_tokenizer=bert_tokenizer(),
        batch_size=batch_size,
    )


@functools.cache
def stage2(name="stage2_opt_a", **kwargs) -> Blip2Generator:
    return Blip2Generator(
        golden_stage2.model(name),
        golden_stage2.params(name),
        language_tokenizer=golden_language.tokenizer(name),
        **kwargs,
    )


def photos(count=4) -> list[np.ndarray]:
    rng = np.random.default_rng(0)
    return list(rng.integers(0, 256, (count, 40, 30, 3), dtype=np.uint8))
