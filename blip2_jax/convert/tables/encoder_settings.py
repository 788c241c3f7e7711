"""What this package makes of every setting of SigLIP and DINOv2.

See `huggingface_settings`, which has the rules and the settings of every class.
"""

from __future__ import annotations

import dataclasses
from typing import Any

from blip2_jax.convert.tables.capfilt_settings import NO_TEXT, NO_TOKENS
from blip2_jax.convert.tables.huggingface_settings import (
    IMAGE_PROCESSOR,
    INITIAL,
    Settings,
)
from blip2_jax.models.sizes import IMAGE_STATISTICS

NOT_READ = "the text encoder and the heads are not read"
TRAINING = "for training by its authors"
BACKBONE = "for backbones of detectors"
RESIZING = "images are resized as for BLIP-2, to the encoder's size"
_SIZES = (
    "hidden_size",
    "num_hidden_layers",
    "num_attention_heads",
    "image_size",
    "patch_size",
    "hidden_act",
    "layer_norm_eps",
)

SIGLIP = Settings(
    used=("vision_config", "model_type"),
    fixed={"is_encoder_decoder": (False,)},
    without_effect={
        "text_config": NOT_READ,
        "tie_word_embeddings": NOT_READ,
        "bos_token_id": NO_TOKENS,
        "eos_token_id": NO_TOKENS,
        "pad_token_id": NO_TOKENS,
        "decoder_start_token_id": NO_TOKENS,
    },
)
SIGLIP_VISION = Settings(
    used=(*_SIZES, "intermediate_size"),
    fixed={"model_type": ("siglip_vision_model",), "num_channels": (3,)},
    without_effect={
        "attention_dropout": TRAINING,
        "vision_use_head": NOT_READ,
        "projection_dim": NOT_READ,
        **NO_TEXT,
    },
)
DINOV2 = Settings(
    used=(*_SIZES, "mlp_ratio", "use_swiglu_ffn"),
    fixed={"model_type": ("dinov2",), "num_channels": (3,), "qkv_bias": (True,)},
    without_effect={
        "attention_probs_dropout_prob": TRAINING,
        "drop_path_rate": TRAINING,
        "hidden_dropout_prob": TRAINING,
        "use_mask_token": TRAINING,
        "layerscale_value": INITIAL,
        **dict.fromkeys(
            (
                *("_out_features", "_out_indices", "apply_layernorm", "out_features"),
                *("out_indices", "reshape_hidden_states", "stage_names"),
            ),
            BACKBONE,
        ),
        **NO_TEXT,
    },
)
DINOV2_WITH_REGISTERS = dataclasses.replace(
    DINOV2,
    used=(*DINOV2.used, "num_register_tokens"),
    fixed={**DINOV2.fixed, "model_type": ("dinov2_with_registers",)},
)
# Title: table, as docs/conversion.md lists them.
TABLES = {
    "`SiglipConfig`": SIGLIP,
    "`SiglipVisionConfig`": SIGLIP_VISION,
    "`Dinov2Config`": DINOV2,
    "`Dinov2WithRegistersConfig`": DINOV2_WITH_REGISTERS,
}


def image_processor(statistics: str) -> Settings:
    """Return the table of an image processor with a mean and a deviation.

    Args:
      statistics: key of `IMAGE_STATISTICS`.
    """
    mean, deviation = IMAGE_STATISTICS[statistics]
    names = ("do_normalize", "do_rescale", "rescale_factor")
    fixed: dict[str, tuple[Any, ...]] = {
        name: IMAGE_PROCESSOR.fixed[name] for name in names
    }
    fixed |= {"image_mean": (list(mean),), "image_std": (list(deviation),)}
    others = {*IMAGE_PROCESSOR.used, *IMAGE_PROCESSOR.fixed} - fixed.keys()
    return Settings(
        used=(),
        fixed=fixed,
        without_effect={
            **IMAGE_PROCESSOR.without_effect,
            **dict.fromkeys(others, RESIZING),
        },
    )
