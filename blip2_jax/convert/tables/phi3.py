"""Names and settings of Phi-3 and Phi-4 in transformers: `Phi3ForCausalLM`."""

from __future__ import annotations

from typing import Any

from blip2_jax.convert.tables.huggingface_settings import EXECUTION, Settings
from blip2_jax.convert.tables.llama import ENCODER_DECODER, FIXED, USED, shared_rules
from blip2_jax.convert.tables.name_table import Rule, split
from blip2_jax.models.sizes import Phi3Config


def phi3_rules(config: Phi3Config, source: str = "", target: str = "") -> list[Rule]:
    """Return the table of a model; `tables.towers` describes the arguments.

    One matrix holds queries, keys and values, another the gate and what it multiplies.
    """
    layers: dict[str, Any] = {"layers": range(config.depth), "stack": True}
    theirs, ours = f"{source}model.layers.{{}}", f"{target}blocks"
    heads = (config.heads, config.kv_heads, config.kv_heads)
    return [
        *shared_rules(config, source, target),
        Rule(
            f"{theirs}.self_attn.qkv_proj.weight",
            tuple(
                f"{ours}/attention/{name}/kernel" for name in ("query", "key", "value")
            ),
            split([count * config.head_width for count in heads], transpose=True),
            **layers,
        ),
        Rule(
            f"{theirs}.mlp.gate_up_proj.weight",
            (f"{ours}/mlp/gate/kernel", f"{ours}/mlp/up/kernel"),
            split(2, transpose=True),
            **layers,
        ),
    ]


ROTATION = ("original_max_position_embeddings", "partial_rotary_factor")
PHI3 = Settings(
    used=(*USED, *ROTATION, "sliding_window"),
    fixed={
        **{name: values for name, values in FIXED.items() if name not in ROTATION},
        "attention_bias": (False,),
        "embd_pdrop": (0,),
        "lm_head_bias": (False,),
        "mlp_bias": (False,),
        "resid_pdrop": (0,),
    },
    without_effect={
        **ENCODER_DECODER,
        "full_attn_mod": EXECUTION,
        "interpolate_factor": EXECUTION,
    },
)
SETTINGS = {"phi3": PHI3}
# Title: table, as docs/conversion.md lists them.
TABLES = {"`Phi3Config`": PHI3}
