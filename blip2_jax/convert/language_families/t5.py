"""T5-v1.1, FlanT5, mT5 and mT0 as transformers' T5 and mT5 declare them."""

from __future__ import annotations

from typing import Any

from blip2_jax.convert.language_families.family import LanguageFamily
from blip2_jax.convert.tables import huggingface_settings as settings
from blip2_jax.convert.tables.towers import t5_rules, tie_missing_t5_head
from blip2_jax.models.sizes import T5Config

# Of older versions of transformers; never used.
OLD_BIAS = (
    r"decoder\.block\.0\.layer\.1\.EncDecAttention\.relative_attention_bias\.weight"
)


def read(theirs: Any) -> T5Config:
    """Convert transformers' `T5Config` or `MT5Config`.

    Raises:
      ValueError: it is the first T5, or its feed-forward is not gated.
    """
    if not theirs.is_gated_act:
        raise ValueError(
            f"feed_forward_proj is {theirs.feed_forward_proj!r}; only the gated ones "
            "of T5-v1.1 and Flan-T5 are supported, such as 'gated-gelu'"
        )
    # T5-v1.1 does not tie its head. Newer versions of transformers tie it in name only
    # and mark the first T5 by `scale_decoder_outputs`. mT5 is always v1.1.
    scaled = getattr(theirs, "scale_decoder_outputs", theirs.tie_word_embeddings)
    if scaled and theirs.model_type != "mt5":
        raise ValueError(
            "the language model is the first T5 (tie_word_embeddings is not false); "
            "only v1.1 and Flan-T5 are supported"
        )
    # Folders that transformers 5 writes may lack it; T5 starts with its padding.
    start = getattr(theirs, "decoder_start_token_id", None)
    same_depth = theirs.num_decoder_layers == theirs.num_layers
    end_ids = theirs.eos_token_id  # an id or a list of ids
    if isinstance(end_ids, list) and len(end_ids) != 1:
        raise ValueError(f"eos_token_id is {end_ids}; expected one id")
    return T5Config(
        width=theirs.d_model,
        depth=theirs.num_layers,
        heads=theirs.num_heads,
        mlp_dim=theirs.d_ff,
        head_width=theirs.d_kv,
        decoder_depth=None if same_depth else theirs.num_decoder_layers,
        vocab_size=theirs.vocab_size,
        activation=theirs.dense_act_fn,
        relative_buckets=theirs.relative_attention_num_buckets,
        relative_max_distance=theirs.relative_attention_max_distance,
        layer_norm_eps=theirs.layer_norm_epsilon,
        dropout=theirs.dropout_rate,
        pad_id=theirs.pad_token_id,
        eos_id=end_ids[0] if isinstance(end_ids, list) else end_ids,
        decoder_start_id=theirs.pad_token_id if start is None else start,
    )


def write(ours: T5Config, rows: int, end_id: int) -> dict[str, Any]:
    """Return transformers' settings, those of T5 for mT5 too, which computes the same.

    The end token is that of the sizes.
    """
    return {
        "model_type": "t5",
        "architectures": ["T5ForConditionalGeneration"],
        "vocab_size": rows,
        "d_model": ours.width,
        "num_layers": ours.depth,
        "num_decoder_layers": ours.decoder_depth or ours.depth,
        "num_heads": ours.heads,
        "d_ff": ours.mlp_dim,
        "d_kv": ours.head_width,
        "feed_forward_proj": "gated-gelu",
        "dense_act_fn": ours.activation,
        "relative_attention_num_buckets": ours.relative_buckets,
        "relative_attention_max_distance": ours.relative_max_distance,
        "layer_norm_epsilon": ours.layer_norm_eps,
        "dropout_rate": ours.dropout,
        "tie_word_embeddings": False,
        "pad_token_id": ours.pad_id,
        "bos_token_id": ours.eos_id,
        "eos_token_id": ours.eos_id,
        "decoder_start_token_id": ours.decoder_start_id,
        "is_encoder_decoder": True,
    }


_FIRST_BLOCK = "encoder.block.0.layer"
FAMILY = LanguageFamily(
    title="T5",
    pattern=r"encoder\.block\.0\.layer\.0\.SelfAttention\.q\.",
    rules=t5_rules,
    settings={"t5": settings.T5, "mt5": settings.T5},
    config_classes={"t5": "T5Config", "mt5": "MT5Config"},
    arrays={
        "vocab_size": ("shared.weight", 0),
        "d_model": ("shared.weight", 1),
        "d_ff": (f"{_FIRST_BLOCK}.1.DenseReluDense.wo.weight", 1),
        "relative_attention_num_buckets": (
            f"{_FIRST_BLOCK}.0.SelfAttention.relative_attention_bias.weight",
            0,
        ),
    },
    layers={
        "num_layers": r"encoder\.block\.(\d+)\.",
        "num_decoder_layers": r"decoder\.block\.(\d+)\.",
    },
    read=read,
    write=write,
    adapt=tie_missing_t5_head,
    leftovers=(OLD_BIAS,),
    # Not the activation: BLIP-2 computes FlanT5 with another one than it declares.
    invisible=("layer_norm_eps", "relative_max_distance"),
)
