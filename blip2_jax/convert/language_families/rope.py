"""Rotary positions of a decoder-only model as transformers declares them."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from blip2_jax.models.sizes import LlamaConfig

ORIGINAL, ATTENTION = "original_max_position_embeddings", "attention_factor"
# Our field by the setting of each kind of scaling.
SCALINGS: dict[str, dict[str, str]] = {
    "default": {},
    "linear": {"factor": "rope_factor"},
    "dynamic": {"factor": "rope_factor"},
    "llama3": {
        "factor": "rope_factor",
        "low_freq_factor": "rope_low_factor",
        "high_freq_factor": "rope_high_factor",
        ORIGINAL: "rope_original_positions",
    },
    "yarn": {
        "factor": "rope_factor",
        "beta_slow": "rope_low_factor",
        "beta_fast": "rope_high_factor",
        ORIGINAL: "rope_original_positions",
        ATTENTION: "rope_attention_factor",
        "truncate": "rope_truncate",
    },
    "longrope": {
        "factor": "rope_factor",
        ORIGINAL: "rope_original_positions",
        ATTENTION: "rope_attention_factor",
        "short_factor": "rope_short_factors",
        "long_factor": "rope_long_factors",
    },
}
# Settings of `rope_parameters` beside those of the scaling.
ROPE_SETTINGS = {"rope_type", "type", "rope_theta", "partial_rotary_factor"}
# From which YaRN's attention factor is computed.
MSCALES = ("mscale", "mscale_all_dim")
# Our fields, none of which an array shows.
INVISIBLE = (
    "rope_theta",
    "rope_scaling",
    *dict.fromkeys(field for fields in SCALINGS.values() for field in fields.values()),
)


def read_rope(theirs: Any) -> dict[str, Any]:
    """Return our fields of the rotary positions.

    Raises:
      ValueError: this package does not have the variant.
    """
    declared: Mapping[str, Any] = theirs.rope_parameters or {}
    kind = declared.get("rope_type", "default")
    if kind not in SCALINGS:
        raise ValueError(
            f"rope_scaling is of type {kind!r}; supported are {', '.join(SCALINGS)}"
        )
    fields = SCALINGS[kind]
    known = {*fields, *ROPE_SETTINGS, *(MSCALES if kind == "yarn" else ())}
    if unknown := declared.keys() - known:
        raise ValueError(
            f"rope_scaling of type {kind!r} has the settings "
            f"{', '.join(sorted(unknown))}, which this package does not know"
        )
    complete = _with_defaults(kind, declared, theirs.max_position_embeddings)
    if missing := fields.keys() - complete.keys():
        raise ValueError(
            f"rope_scaling of type {kind!r} lacks {', '.join(sorted(missing))}"
        )
    return {
        "rope_theta": declared["rope_theta"],
        "rope_scaling": "none" if kind == "default" else kind,
        **{ours: complete[name] for name, ours in fields.items()},
    }


def _with_defaults(
    kind: str, declared: Mapping[str, Any], positions: int
) -> dict[str, Any]:
    """Add the settings that a scaling computes where they are not declared."""
    values = {name: value for name, value in declared.items() if value is not None}
    if kind not in ("yarn", "longrope"):
        return values
    original = values.setdefault(ORIGINAL, positions)
    factor = values.setdefault("factor", positions / original)
    if kind == "longrope":
        growth = math.log(max(factor, 1)) / math.log(original)
        values.setdefault(ATTENTION, math.sqrt(1 + growth))
        return values
    values.setdefault("truncate", True)
    for name, default in (("beta_slow", 1), ("beta_fast", 32)):
        values[name] = values.get(name) or default
    if all(values.get(name) for name in MSCALES):
        above, below = (_yarn_attention(factor, values[name]) for name in MSCALES)
        values.setdefault(ATTENTION, above / below)
    values.setdefault(ATTENTION, _yarn_attention(factor))
    return values


def _yarn_attention(factor: float, weight: float = 1.0) -> float:
    """Return YaRN's factor of cosine and sine (Peng et al. 2023, equation 15)."""
    return 0.1 * weight * math.log(factor) + 1 if factor > 1 else 1.0


def write_rope(ours: LlamaConfig) -> dict[str, Any]:
    """Return transformers' settings of the rotary positions."""
    kind = "default" if ours.rope_scaling == "none" else ours.rope_scaling
    values = {name: getattr(ours, field) for name, field in SCALINGS[kind].items()}
    plain = {
        name: list(value) if isinstance(value, tuple) else value
        for name, value in values.items()
    }
    return {
        "rope_theta": ours.rope_theta,
        "rope_scaling": {"rope_type": kind, **plain},
    }
