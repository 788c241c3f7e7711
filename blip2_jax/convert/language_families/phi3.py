"""Phi-3 and Phi-4: transformers' `Phi3ForCausalLM`."""

from __future__ import annotations

import dataclasses
from typing import Any

from blip2_jax.convert.language_families import llama
from blip2_jax.convert.language_families.rope import ORIGINAL
from blip2_jax.convert.tables.phi3 import SETTINGS, phi3_rules
from blip2_jax.models.sizes import Phi3Config


def read(theirs: Any) -> Phi3Config:
    """Convert transformers' `Phi3Config`.

    Raises:
      ValueError: this package does not have the variant.
    """
    share = theirs.rope_parameters.get("partial_rotary_factor", 1.0)
    return Phi3Config(**llama.common_fields(theirs), rotary_share=share)


def write(ours: Phi3Config, rows: int, end_id: int) -> dict[str, Any]:
    """Return transformers' settings.

    Raises:
      ValueError: the class does not have them.
    """
    kind, _, biases = llama.class_of(ours)
    own_width = ours.heads * ours.head_width != ours.width
    if kind != "llama" or any(biases.values()) or own_width:
        raise ValueError("transformers' Phi-3 has no such biases, norms or widths")
    return {
        **llama.common_settings(ours, rows, end_id),
        "model_type": "phi3",
        "architectures": ["Phi3ForCausalLM"],
        "partial_rotary_factor": ours.rotary_share,
        ORIGINAL: ours.rope_original_positions,
    }


FAMILY = dataclasses.replace(
    llama.FAMILY,
    title=Phi3Config.title,
    pattern=r"model\.layers\.0\.self_attn\.qkv_proj\.",
    rules=phi3_rules,
    settings=SETTINGS,
    config_classes={"phi3": "Phi3Config"},
    read=read,
    write=write,
    invisible=(*llama.FAMILY.invisible, "rotary_share"),
)
