"""The tiny stage-2 models whose numbers the original implementation computed."""

import functools
import json

import jax.numpy as jnp
import numpy as np
from conftest import GOLDENS
from safetensors.numpy import load_file
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from blip2_jax.convert import lavis, names
from blip2_jax.convert.lavis_stage2 import stage2_rules
from blip2_jax.data.text import LanguageTokenizer
from blip2_jax.models.blip2_stage2 import Blip2Stage2
from blip2_jax.presets import (
    Blip2Config,
    OPTConfig,
    QFormerConfig,
    T5Config,
    ViTConfig,
)

NAMES = ("stage2_opt_a", "stage2_opt350_a", "stage2_t5_a")


def config(name: str) -> Blip2Config:
    """Sizes of a golden model."""
    raw = json.loads((GOLDENS / name / "config.json").read_text())["config"]
    vit, qformer, llm = raw["vit"], raw["qformer"], raw["llm"]
    return Blip2Config(
        ViTConfig(
            vit["width"], vit["depth"], vit["heads"],
            int(vit["width"] * vit["mlp_ratio"]), raw["img"], vit["patch"],
        ),
        QFormerConfig(
            qformer["hidden"], qformer["layers"], qformer["heads"],
            qformer["intermediate"], num_queries=raw["n_query"],
            vocab_size=raw["bert_vocab"], max_positions=qformer["max_position"],
        ),
        _opt(llm) if raw["kind"] == "opt" else _t5(llm),
    )  # fmt: skip


def _opt(llm) -> OPTConfig:
    return OPTConfig(
        llm["hidden_size"], llm["num_hidden_layers"], llm["num_attention_heads"],
        llm["ffn_dim"], llm["vocab_size"], llm["max_position_embeddings"],
        embed_width=llm["word_embed_proj_dim"],
        pre_norm=llm["do_layer_norm_before"],
    )  # fmt: skip


def _t5(llm) -> T5Config:
    return T5Config(
        llm["d_model"], llm["num_layers"], llm["num_heads"], llm["d_ff"],
        head_width=llm["d_kv"], vocab_size=llm["vocab_size"],
        relative_buckets=llm["relative_attention_num_buckets"],
        relative_max_distance=llm["relative_attention_max_distance"],
    )  # fmt: skip


def model(name: str) -> Blip2Stage2:
    """A golden model in fp32."""
    return Blip2Stage2(config(name), jnp.float32)


@functools.cache
def params(name: str):
    """The golden weights as our tree."""
    source = load_file(GOLDENS / name / "weights.safetensors")
    return names.to_ours_complete(
        source, stage2_rules(config(name)), ignore=[lavis.POSITION_IDS]
    )


@functools.cache
def tokenizer(name: str) -> LanguageTokenizer:
    """The stand-in tokenizer of the golden models: it splits at spaces."""
    words = json.loads((GOLDENS / name / "llm_vocab.json").read_text())
    return LanguageTokenizer(
        word_tokenizer(words, encoder_decoder=isinstance(words, list) and "t5" in name)
    )


def word_tokenizer(words, encoder_decoder: bool) -> PreTrainedTokenizerFast:
    """A transformers tokenizer over whole words, framed as T5's or as OPT's."""
    ids = {word: index for index, word in enumerate(words)}
    backend = Tokenizer(models.WordLevel(ids, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.Split(" ", "removed")
    end = "</s>"
    backend.post_processor = processors.TemplateProcessing(
        single="$A </s>" if encoder_decoder else "</s> $A",
        special_tokens=[(end, ids[end])],
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, pad_token="<pad>", unk_token="<unk>",
        bos_token=end, eos_token=end,
    )  # fmt: skip


def load_generated(name: str) -> tuple[dict[str, np.ndarray], dict]:
    """The arrays of `generate.npz`, and the calls that made them."""
    meta = json.loads((GOLDENS / name / "generate_meta.json").read_text())
    with np.load(GOLDENS / name / "generate.npz") as arrays:
        return dict(arrays), meta
