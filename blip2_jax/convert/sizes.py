"""Sizes of a model: from a Hugging Face configuration, or from shapes of arrays."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np

from blip2_jax.convert.files.checkpoint_files import CheckpointFiles, SourceError
from blip2_jax.models.presets import (
    PRESETS,
    RELEASED,
    Blip2Config,
    LanguageModelConfig,
    OPTConfig,
    QFormerConfig,
    T5Config,
    ViTConfig,
)

ACTIVATIONS = ("gelu", "quick_gelu", "gelu_new")


def huggingface_sizes(source: CheckpointFiles) -> Blip2Config:
    """What the `config.json` of a Hugging Face BLIP-2 folder says.

    Raises:
      SourceError: no such file, or a model that this package does not have.
    """
    if source.config.get("model_type") != "blip-2":
        given = source.config.get("model_type", "no config.json")
        raise SourceError(
            f"{source.path}: a folder of Hugging Face's BLIP-2 has a config.json with "
            f'model_type "blip-2", this one {given}'
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
    """The sizes of transformers' `OPTConfig` or `T5Config`.

    Raises:
      SourceError: another family, or a variant that this package does not have.
    """
    makers: dict[str, Callable[[Any], LanguageModelConfig]] = {
        "opt": _opt_sizes,
        "t5": _t5_sizes,
    }
    if theirs.model_type not in makers:
        raise SourceError(
            f"the language model is {theirs.model_type!r}; there are opt and t5"
        )
    return makers[theirs.model_type](theirs)


def _opt_sizes(theirs: Any) -> OPTConfig:
    _need(theirs, activation_function="relu", enable_bias=True)
    _need(theirs, layer_norm_elementwise_affine=True, _remove_final_layer_norm=False)
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
    _need(theirs, is_gated_act=True)
    # T5-v1.1 has a head of its own; later versions of transformers tie it in name
    # and say in another field what that once implied.
    scaled = getattr(theirs, "scale_decoder_outputs", theirs.tie_word_embeddings)
    if scaled:
        raise SourceError("the language model is the first T5; v1.1 and Flan are known")
    return T5Config(
        theirs.d_model,
        theirs.num_layers,
        theirs.num_heads,
        theirs.d_ff,
        head_width=theirs.d_kv,
        decoder_depth=_unless(theirs.num_decoder_layers, theirs.num_layers),
        vocab_size=theirs.vocab_size,
        activation=_activation(theirs.dense_act_fn, "text_config.dense_act_fn"),
        relative_buckets=theirs.relative_attention_num_buckets,
        relative_max_distance=theirs.relative_attention_max_distance,
        layer_norm_eps=theirs.layer_norm_epsilon,
        dropout=theirs.dropout_rate,
        pad_id=theirs.pad_token_id,
        eos_id=_first(theirs.eos_token_id),
        decoder_start_id=theirs.decoder_start_token_id or 0,
    )


def _has_key_bias(source: CheckpointFiles, vision: Any) -> bool:
    """Their joined bias has room for one; the released models leave it zero."""
    for layer in range(vision.num_hidden_layers):
        name = f"vision_model.encoder.layers.{layer}.self_attn.qkv.bias"
        if name in source and np.any(np.split(source[name], 3)[1]):
            return True
    return False


def released_sizes(source: CheckpointFiles) -> Blip2Config:
    """Which released model a LAVIS file is, told by shapes of its arrays.

    Raises:
      SourceError: none; then sizes must be given.
    """
    for name in RELEASED:
        wanted = _fingerprint(PRESETS[name])
        if all(
            source.shape(key) == shape if key in source else key not in _DECISIVE
            for key, shape in wanted.items()
        ) and not any(key in source for key in _DECISIVE if key not in wanted):
            return PRESETS[name]
    raise SourceError(
        f"{source.path} has the sizes of no released model "
        f"({', '.join(RELEASED)}): give them (--sizes)"
    )


# Arrays that a file has if and only if its model does.
_DECISIVE = ("opt_proj.weight", "t5_proj.weight", "itm_head.weight")


def _fingerprint(config: Blip2Config) -> dict[str, tuple[int, ...]]:
    """Shapes of a few arrays that tell released models apart."""
    vision, qformer = config.vision, config.qformer
    assert isinstance(vision, ViTConfig)
    cross = "Qformer.bert.encoder.layer.0.crossattention.self.key.weight"
    positions = (vision.num_tokens, vision.width)
    shapes: dict[str, tuple[int, ...]] = {
        "query_tokens": (1, qformer.num_queries, qformer.width),
        cross: (qformer.width, vision.width),
        "visual_encoder.pos_embed": (1, *positions),
        "visual_encoder.positional_embedding": positions,
    }
    language_model = config.language_model
    if language_model is None:
        return shapes | {"itm_head.weight": (2, qformer.width)}
    family = "opt" if isinstance(language_model, OPTConfig) else "t5"
    shape = (language_model.embedding_width, qformer.width)
    return shapes | {f"{family}_proj.weight": shape}


def at_image_size(config: Blip2Config, image_size: int) -> Blip2Config:
    """The model for another image size.

    Raises:
      SourceError: the model has no image encoder, or patches do not fill the size.
    """
    vision = config.vision
    if not isinstance(vision, ViTConfig):
        raise SourceError("this model reads features: it has no image size")
    if image_size % vision.patch_size:
        raise SourceError(
            f"an image size is a multiple of {vision.patch_size}, not {image_size}"
        )
    vision = dataclasses.replace(vision, image_size=image_size)
    return dataclasses.replace(config, vision=vision)


def _activation(name: str, where: str) -> str:
    if name not in ACTIVATIONS:
        raise SourceError(f"{where} is {name!r}; there are {', '.join(ACTIVATIONS)}")
    return name


def _need(theirs: Any, **expected: Any) -> None:
    for name, value in expected.items():
        given = getattr(theirs, name, value)
        if given != value:
            raise SourceError(
                f"the language model has {name}={given!r}; only {value!r} is known"
            )


def _unless(value: Any, usual: Any) -> Any:
    return None if value == usual else value


def _first(value: Any) -> int:
    return value[0] if isinstance(value, list) else value
