"""What this package makes of every setting in a Hugging Face configuration.

Each configuration class has one `Settings` table. A setting is read (`used`), accepted
with one value only (`fixed`), or listed with the reason why it does not change the
model (`without_effect`). Any other setting is refused, because a model that ignores it
may compute something else than its folder declares.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

GENERATION = "a default of `generate` in transformers; here an argument of each call"
EXECUTION = "how transformers runs or stores the model"
RECORD = "a record of where the model comes from"
INITIAL = "initial values before training"
STAGE = "the arrays of the folder decide this"
LABELS = "for classifiers, which BLIP-2 does not contain"

# Settings that transformers writes for every class.
COMMON: dict[str, tuple[str, ...]] = {
    GENERATION: (
        "bad_words_ids",
        "begin_suppress_tokens",
        "diversity_penalty",
        "do_sample",
        "early_stopping",
        "encoder_no_repeat_ngram_size",
        "exponential_decay_length_penalty",
        "forced_bos_token_id",
        "forced_eos_token_id",
        "length_penalty",
        "max_length",
        "min_length",
        "no_repeat_ngram_size",
        "num_beam_groups",
        "num_beams",
        "num_return_sequences",
        "remove_invalid_values",
        "repetition_penalty",
        "sep_token_id",
        "suppress_tokens",
        "task_specific_params",
        "temperature",
        "top_k",
        "top_p",
        "typical_p",
    ),
    EXECUTION: (
        "_attn_implementation",
        "_attn_implementation_autoset",
        "attn_implementation",
        "chunk_size_feed_forward",
        "dtype",
        "gradient_checkpointing",
        "output_attentions",
        "output_hidden_states",
        "output_past",
        "output_scores",
        "return_dict",
        "return_dict_in_generate",
        "tf_legacy_loss",
        "torch_dtype",
        "torchscript",
        "use_bfloat16",
        "use_cache",
        "use_return_dict",
    ),
    RECORD: (
        "_commit_hash",
        "_name_or_path",
        "architectures",
        "finetuning_task",
        "model_type",
        "name_or_path",
        "prefix",
        "tokenizer_class",
        "transformers_version",
    ),
    LABELS: ("classifier_dropout", "id2label", "label2id", "problem_type"),
    INITIAL: ("init_std", "initializer_factor", "initializer_range"),
}
# Values of settings of every class that leave the model as it is.
COMMON_FIXED: dict[str, tuple[Any, ...]] = {
    "add_cross_attention": (False,),
    "auto_map": ({},),
    "cross_attention_hidden_size": (),
    "is_decoder": (False,),
    "pruned_heads": ({},),
    "tie_encoder_decoder": (False,),
}


@dataclasses.dataclass(frozen=True)
class Settings:
    """How the settings of one configuration class are treated.

    Attributes:
      used: settings that the sizes of the model are read from.
      fixed: the supported values of settings that this package does not vary.
      without_effect: settings that do not change the model, and the reason.
    """

    used: Sequence[str]
    fixed: Mapping[str, tuple[Any, ...]]
    without_effect: Mapping[str, str]

    def problem(self, declared: Mapping[str, Any]) -> str:
        """Describe the first setting that this package does not follow; "" if none.

        Args:
          declared: settings as the file declares them; null counts as not declared.
        """
        fixed = {**COMMON_FIXED, **self.fixed}
        for name, value in declared.items():
            if value is None or name in self.used:
                continue
            if name in fixed:
                if not any(_same(value, supported) for supported in fixed[name]):
                    allowed = " or ".join(map(repr, fixed[name])) or "null"
                    return f"{name} is {value!r}; only {allowed} is supported"
            elif name not in self.reasons():
                return (
                    f"{name} is {value!r}, a setting that this package does not know; "
                    "remove it if the model does not depend on it"
                )
        return ""

    def reasons(self) -> dict[str, str]:
        """Return all settings without effect, with the reason."""
        common = {name: reason for reason, names in COMMON.items() for name in names}
        return {**common, **self.without_effect}


def _same(value: Any, supported: Any) -> bool:
    """Compare by value and type: False is not 0."""
    if isinstance(value, bool) or isinstance(supported, bool):
        return value is supported
    return value == supported


BLIP2 = Settings(
    used=(
        "vision_config",
        "qformer_config",
        "text_config",
        "num_query_tokens",
        "image_text_hidden_size",
        "model_type",
    ),
    fixed={},
    without_effect={
        "image_token_index": "marks the queries' places in transformers' prompts",
        "image_token_id": "marks the queries' places in transformers' prompts",
        "is_encoder_decoder": "follows from `text_config.model_type`",
        "use_decoder_only_language_model": "follows from `text_config.model_type`",
        "tie_word_embeddings": "the one in `text_config` counts",
        "bos_token_id": "the one in `text_config` counts",
        "eos_token_id": "the one in `text_config` counts",
        "pad_token_id": "the one in `text_config` counts",
        "decoder_start_token_id": "the one in `text_config` counts",
    },
)
VISION = Settings(
    used=(
        "hidden_size",
        "num_hidden_layers",
        "num_attention_heads",
        "intermediate_size",
        "image_size",
        "patch_size",
        "hidden_act",
        "layer_norm_eps",
    ),
    fixed={
        "attention_dropout": (0,),
        "dropout": (0,),
        "model_type": ("blip_2_vision_model",),
        "num_channels": (3,),
        "qkv_bias": (True,),
    },
    without_effect={
        "projection_dim": "for a projection that BLIP-2 does not contain",
        "is_encoder_decoder": "the image encoder has no decoder",
        "tie_word_embeddings": "the image encoder has no token table",
        "bos_token_id": "the image encoder reads no tokens",
        "eos_token_id": "the image encoder reads no tokens",
        "pad_token_id": "the image encoder reads no tokens",
        "decoder_start_token_id": "the image encoder reads no tokens",
    },
)
QFORMER = Settings(
    used=(
        "vocab_size",
        "hidden_size",
        "num_hidden_layers",
        "num_attention_heads",
        "intermediate_size",
        "hidden_act",
        "hidden_dropout_prob",
        "attention_probs_dropout_prob",
        "max_position_embeddings",
        "layer_norm_eps",
        "cross_attention_frequency",
    ),
    fixed={
        "model_type": ("blip_2_qformer",),
        "position_embedding_type": ("absolute",),
    },
    without_effect={
        "encoder_hidden_size": "always `vision_config.hidden_size`",
        "use_qformer_text_input": STAGE,
        "is_encoder_decoder": "the Q-Former is one stack of blocks",
        "tie_word_embeddings": "transformers' Q-Former has no head",
        "bos_token_id": "the tokenizer's counts",
        "eos_token_id": "the tokenizer's counts",
        "pad_token_id": "the tokenizer's counts",
        "decoder_start_token_id": "the tokenizer's counts",
    },
)
OPT = Settings(
    used=(
        "model_type",
        "vocab_size",
        "hidden_size",
        "num_hidden_layers",
        "num_attention_heads",
        "ffn_dim",
        "max_position_embeddings",
        "word_embed_proj_dim",
        "do_layer_norm_before",
        "dropout",
        "pad_token_id",
        "bos_token_id",
        "tie_word_embeddings",
    ),
    fixed={
        "_remove_final_layer_norm": (False,),
        "activation_dropout": (0,),
        "activation_function": ("relu",),
        "attention_dropout": (0,),
        "enable_bias": (True,),
        "is_encoder_decoder": (False,),
        "layer_norm_elementwise_affine": (True,),
        "layerdrop": (0,),
    },
    without_effect={
        "eos_token_id": "texts end with a newline, as in the original",
        "decoder_start_token_id": "for encoder-decoders",
    },
)
T5 = Settings(
    used=(
        "model_type",
        "vocab_size",
        "d_model",
        "hidden_size",
        "num_layers",
        "num_hidden_layers",
        "num_decoder_layers",
        "num_heads",
        "num_attention_heads",
        "d_ff",
        "d_kv",
        "head_dim",
        "feed_forward_proj",
        "dense_act_fn",
        "is_gated_act",
        "relative_attention_num_buckets",
        "relative_attention_max_distance",
        "layer_norm_epsilon",
        "dropout_rate",
        "tie_word_embeddings",
        "scale_decoder_outputs",
        "pad_token_id",
        "eos_token_id",
        "decoder_start_token_id",
    ),
    fixed={"is_encoder_decoder": (True,)},
    without_effect={
        "bos_token_id": "T5's texts have no first token",
        "n_positions": "T5 has no table of positions",
    },
)
SECTIONS: dict[str, Settings] = {
    "": BLIP2,
    "vision_config": VISION,
    "qformer_config": QFORMER,
}
# Title: table, as docs/conversion.md lists them.
TABLES = {
    "`Blip2Config`": BLIP2,
    "`Blip2VisionConfig`": VISION,
    "`Blip2QFormerConfig`": QFORMER,
    "`OPTConfig`": OPT,
    "`T5Config`, `MT5Config`": T5,
}

_PROCESSOR = "how transformers runs its image processor"
# `BlipImageProcessor`, in `preprocessor_config.json` or `processor_config.json`. The
# mean and the deviation are CLIP's.
IMAGE_PROCESSOR = Settings(
    used=("size",),
    fixed={
        "crop_size": (),
        "do_center_crop": (False,),
        "do_convert_rgb": (True,),
        "do_normalize": (True,),
        "do_pad": (False,),
        "do_rescale": (True,),
        "do_resize": (True,),
        "image_mean": ([0.48145466, 0.4578275, 0.40821073],),
        "image_std": ([0.26862954, 0.26130258, 0.27577711],),
        "pad_size": (),
        "resample": (3,),  # bicubic
        "rescale_factor": (1 / 255,),
    },
    without_effect={
        "data_format": _PROCESSOR,
        "default_to_square": _PROCESSOR,
        "device": _PROCESSOR,
        "disable_grouping": _PROCESSOR,
        "feature_extractor_type": RECORD,
        "image_processor_type": RECORD,
        "image_seq_length": _PROCESSOR,
        "input_data_format": _PROCESSOR,
        "num_query_tokens": "the one in `config.json` counts",
        "processor_class": RECORD,
        "return_tensors": _PROCESSOR,
        "size_divisor": _PROCESSOR,
    },
)
