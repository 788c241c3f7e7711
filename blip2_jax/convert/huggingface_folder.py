"""Hugging Face's BLIP-2 folders: their name table, their sizes, and how to open them.

`Blip2ForConditionalGeneration` is stage 2. `Blip2ForImageTextRetrieval` is stage 1
without the language-model head and without the temperature. Most names are LAVIS's,
renamed. transformers joins the biases of queries, keys and values of the image encoder
in one vector; the keys' part is zero in the released models, which have no key bias.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable
from typing import Any

import numpy as np

from blip2_jax.convert.converted_arrays import ConvertedArrays, Part, part_at_size
from blip2_jax.convert.files.checkpoint_files import CheckpointFiles, SourceError
from blip2_jax.convert.model_source import TEXT_BRANCH, ModelSource, expected_shapes
from blip2_jax.convert.tables.lavis import (
    qformer_text_rules,
    shared_rules,
    stage2_rules,
)
from blip2_jax.convert.tables.name_table import Arrays, Rule, Transform, linear, split
from blip2_jax.convert.tables.towers import tie_missing_t5_head
from blip2_jax.models.presets import (
    Blip2Config,
    LanguageModelConfig,
    OPTConfig,
    QFormerConfig,
    T5Config,
    ViTConfig,
)

BUFFERS = (r".*position_ids",)  # patterns of arrays that hold no parameter
ACTIVATIONS = ("gelu", "quick_gelu", "gelu_new")
# A folder with one of these files has a tokenizer.
VOCABULARY_FILES = ("tokenizer.json", "vocab.txt", "vocab.json", "spiece.model")

# Patterns of the parameters that `Blip2ForImageTextRetrieval` lacks.
RETRIEVAL_LACKS = (r"qformer/head/.*", r"temperature")

# (LAVIS's, transformers'): replaced in this order, anywhere in a name.
RENAMES = (
    ("visual_encoder.cls_token", "vision_model.embeddings.class_embedding"),
    ("visual_encoder.pos_embed", "vision_model.embeddings.position_embedding"),
    ("visual_encoder.patch_embed.proj", "vision_model.embeddings.patch_embedding"),
    ("visual_encoder.blocks.", "vision_model.encoder.layers."),
    (".attn.", ".self_attn."),
    (".self_attn.proj.", ".self_attn.projection."),
    (".norm1.", ".layer_norm1."),
    (".norm2.", ".layer_norm2."),
    ("ln_vision.", "vision_model.post_layernorm."),
    ("Qformer.bert.embeddings.LayerNorm.", "qformer.layernorm."),
    ("Qformer.bert.embeddings.", "embeddings."),
    ("Qformer.bert.", "qformer."),
    ("attention.self.", "attention.attention."),
    ("vision_proj.", "vision_projection."),
    ("text_proj.", "text_projection."),
    ("opt_proj.", "language_projection."),
    ("t5_proj.", "language_projection."),
    ("opt_model.", "language_model."),
    ("t5_model.", "language_model."),
)


def open_huggingface(
    source: CheckpointFiles,
    config: Blip2Config | None = None,
    *,
    extra: tuple[Part, ...] = (),
) -> ModelSource:
    """Open a Hugging Face folder as a model, its tokenizer included.

    Args:
      source: the files of the folder.
      config: sizes; None reads its `config.json`.
      extra: further parts, such as a text branch.

    Raises:
      SourceError: weights and sizes do not fit, or this package has no such model.
    """
    config = config or huggingface_sizes(source)
    arrays = ConvertedArrays([huggingface_part(source, config), *extra])
    absent = RETRIEVAL_LACKS if config.language_model is None else ()
    arrays.check(expected_shapes(config), absent, TEXT_BRANCH if extra else ())
    has_tokenizer = any((source.path / name).exists() for name in VOCABULARY_FILES)
    tokenizer = source.spec if has_tokenizer else ""
    return ModelSource(
        config,
        arrays,
        "huggingface",
        absent=tuple(
            pattern
            for pattern in absent
            if not any(re.fullmatch(pattern, path) for path in arrays)
        ),
        precision=arrays.precision,
        qformer_tokenizer=tokenizer if config.language_model is None else "",
        language_tokenizer=tokenizer if config.language_model else "",
    )


def huggingface_part(source: CheckpointFiles, config: Blip2Config) -> Part:
    """Return the folder with its table; positions fit the image size of `config`."""
    rules = tie_missing_t5_head(huggingface_rules(config), source)
    return part_at_size(source, rules, config.vision, BUFFERS)


def huggingface_rules(config: Blip2Config) -> list[Rule]:
    """Return the table of a complete model, of stage 2 if it has a language model.

    Raises:
      ValueError: transformers has no such image encoder.
    """
    vision = config.vision
    if not isinstance(vision, ViTConfig) or vision.pre_norm or not vision.patch_bias:
        raise ValueError("transformers has BLIP-2 with EVA-CLIP's image encoder only")
    lavis_rules = stage2_rules if config.language_model else _retrieval_rules
    rules = [
        renamed_rule(rule) for rule in lavis_rules(config) if not _is_qkv_bias(rule)
    ]
    return [_qkv_bias_rule(vision), *rules]


def _retrieval_rules(config: Blip2Config) -> list[Rule]:
    """Return LAVIS's rules of the parameters in `Blip2ForImageTextRetrieval`."""
    text = [
        dataclasses.replace(rule, aliases=())
        for rule in qformer_text_rules(config.qformer)
        if not rule.targets[0].startswith("qformer/head/")
    ]
    return [
        *shared_rules(config),
        *text,
        *linear("vision_proj", "vision_projection"),
        *linear("text_proj", "text_projection"),
        *linear("itm_head", "itm_head"),
    ]


QKV_BIAS = "visual_encoder/blocks/attention/{}/bias"


def _is_qkv_bias(rule: Rule) -> bool:
    return rule.targets in ((QKV_BIAS.format("query"),), (QKV_BIAS.format("value"),))


def _qkv_bias_rule(vision: ViTConfig) -> Rule:
    parts = ("query", "key", "value") if vision.key_bias else ("query", "value")
    layers: dict[str, Any] = {"layers": range(vision.depth), "stack": True}
    return Rule(
        "vision_model.encoder.layers.{}.self_attn.qkv.bias",
        tuple(QKV_BIAS.format(part) for part in parts),
        split(3, transpose=False) if vision.key_bias else JOINED_BIAS,
        **layers,
    )


def renamed_rule(rule: Rule) -> Rule:
    """Return a rule of LAVIS's table with transformers' names."""
    (source,) = rule.sources
    aliases = tuple(_rename(alias) for alias in rule.aliases)
    return dataclasses.replace(rule, source=_rename(source), aliases=aliases)


def _rename(name: str) -> str:
    for lavis, huggingface in RENAMES:
        name = name.replace(lavis, huggingface)
    return name


def _cut_bias(arrays: Arrays) -> Arrays:
    """Split [query, key, value] biases and drop the keys'."""
    (joined,) = arrays
    width = joined.shape[0] // 3
    return joined[:width], joined[2 * width :]


def _join_bias(arrays: Arrays) -> Arrays:
    """Join query and value biases with zeros for the keys."""
    query, value = arrays
    library = query.__array_namespace__()
    return (library.concat([query, library.zeros_like(query), value]),)


JOINED_BIAS = Transform(_cut_bias, _join_bias)


def huggingface_sizes(source: CheckpointFiles) -> Blip2Config:
    """Read the sizes from the `config.json` of a Hugging Face BLIP-2 folder.

    Raises:
      SourceError: there is no such file, or this package has no such model.
    """
    if source.config.get("model_type") != "blip-2":
        model_type = source.config.get("model_type")
        content = f"model_type {model_type!r}" if source.config else "no config.json"
        raise SourceError(
            f"{source.name}: a folder of Hugging Face's BLIP-2 has a config.json with "
            f"model_type 'blip-2'; this folder has {content}"
        )
    from transformers import Blip2Config as TheirConfig

    theirs: Any = TheirConfig.from_dict(source.config)
    vision, qformer = theirs.vision_config, theirs.qformer_config
    retrieval = "itm_head.weight" in source
    return Blip2Config(
        vision=ViTConfig(
            width=vision.hidden_size,
            depth=vision.num_hidden_layers,
            heads=vision.num_attention_heads,
            mlp_dim=vision.intermediate_size,
            image_size=vision.image_size,
            patch_size=vision.patch_size,
            activation=_activation(vision.hidden_act, "vision_config.hidden_act"),
            layer_norm_eps=vision.layer_norm_eps,
            key_bias=_has_key_bias(source, vision),
        ),
        qformer=QFormerConfig(
            width=qformer.hidden_size,
            depth=qformer.num_hidden_layers,
            heads=qformer.num_attention_heads,
            mlp_dim=qformer.intermediate_size,
            cross_attention_every=qformer.cross_attention_frequency,
            num_queries=theirs.num_query_tokens,
            vocab_size=qformer.vocab_size,
            max_positions=qformer.max_position_embeddings,
            projection_dim=theirs.image_text_hidden_size,
            layer_norm_eps=qformer.layer_norm_eps,
            dropout=qformer.hidden_dropout_prob,
        ),
        language_model=None if retrieval else language_sizes(theirs.text_config),
        ln_vision_eps=vision.layer_norm_eps,
    )


def language_sizes(theirs: Any) -> LanguageModelConfig:
    """Convert transformers' `OPTConfig` or `T5Config`.

    Raises:
      SourceError: this package does not have the family or the variant.
    """
    makers: dict[str, Callable[[Any], LanguageModelConfig]] = {
        "opt": _opt_sizes,
        "t5": _t5_sizes,
    }
    if theirs.model_type not in makers:
        raise SourceError(
            f"the language model is {theirs.model_type!r}; supported are opt and t5"
        )
    return makers[theirs.model_type](theirs)


def _opt_sizes(theirs: Any) -> OPTConfig:
    _require(theirs, activation_function="relu", enable_bias=True)
    _require(theirs, layer_norm_elementwise_affine=True, _remove_final_layer_norm=False)
    embed = theirs.word_embed_proj_dim
    return OPTConfig(
        theirs.hidden_size,
        theirs.num_hidden_layers,
        theirs.num_attention_heads,
        theirs.ffn_dim,
        vocab_size=theirs.vocab_size,
        max_positions=theirs.max_position_embeddings,
        embed_width=None if embed == theirs.hidden_size else embed,
        pre_norm=theirs.do_layer_norm_before,
        dropout=theirs.dropout,
        pad_id=theirs.pad_token_id,
        bos_id=theirs.bos_token_id,
    )


def _t5_sizes(theirs: Any) -> T5Config:
    _require(theirs, is_gated_act=True)
    # T5-v1.1 does not tie its head. Newer versions of transformers tie it in name only
    # and mark the first T5 by `scale_decoder_outputs`.
    scaled = getattr(theirs, "scale_decoder_outputs", theirs.tie_word_embeddings)
    if scaled:
        raise SourceError(
            "the language model is the first T5; only v1.1 and Flan-T5 are supported"
        )
    same_depth = theirs.num_decoder_layers == theirs.num_layers
    end_ids = theirs.eos_token_id  # an id or a list of ids
    return T5Config(
        theirs.d_model,
        theirs.num_layers,
        theirs.num_heads,
        theirs.d_ff,
        head_width=theirs.d_kv,
        decoder_depth=None if same_depth else theirs.num_decoder_layers,
        vocab_size=theirs.vocab_size,
        activation=_activation(theirs.dense_act_fn, "text_config.dense_act_fn"),
        relative_buckets=theirs.relative_attention_num_buckets,
        relative_max_distance=theirs.relative_attention_max_distance,
        layer_norm_eps=theirs.layer_norm_epsilon,
        dropout=theirs.dropout_rate,
        pad_id=theirs.pad_token_id,
        eos_id=end_ids[0] if isinstance(end_ids, list) else end_ids,
        decoder_start_id=theirs.decoder_start_token_id or 0,
    )


def _has_key_bias(source: CheckpointFiles, vision: Any) -> bool:
    """Return True if the joined bias of any layer is not zero for the keys.

    The released models have no key bias and store zeros.
    """
    for layer in range(vision.num_hidden_layers):
        name = f"vision_model.encoder.layers.{layer}.self_attn.qkv.bias"
        if name in source and np.any(np.split(source[name], 3)[1]):
            return True
    return False


def _activation(name: str, key: str) -> str:
    if name not in ACTIVATIONS:
        raise SourceError(f"{key} is {name!r}; supported are {', '.join(ACTIVATIONS)}")
    return name


def _require(theirs: Any, **supported: Any) -> None:
    for name, value in supported.items():
        actual = getattr(theirs, name, value)
        if actual != value:
            raise SourceError(
                f"the language model has {name}={actual!r}; only {value!r} is supported"
            )
