"""Time steps of stage 2: `python -m benchmarks.stage2_step --lavis PATH`.

Beside the original: the Q-Former in its real size in front of a frozen language model
of OPT-125m's and of T5-base's size, on precomputed features of a ViT-g, fp32, a batch
of 8: OPT reads 32 tokens; T5's encoder reads 16 beside the queries and its decoder
writes 16. Without dropout both must report the same losses. The original leaves its
frozen language model in training mode, ours drops nothing there: the speed is compared
with dropout 0.1 as each does it. With OPT also beside KerasHub (`--keras_python`).
"""

from __future__ import annotations

import dataclasses
import functools
import sys
from typing import Any

from benchmarks import harness, weight_peers
from benchmarks.stage1_step import ROWS, TINY_QFORMER, TINY_VISIONS, VISIONS, steps
from blip2_jax.models import presets
from blip2_jax.models.sizes import OPTConfig, T5Config

TOKENS = {"opt": {"text": 32}, "t5": {"text": 16, "target": 16}}
LANGUAGE: dict[str, OPTConfig | T5Config] = {
    "opt": presets.OPT_125M,
    "t5": presets.FLAN_T5_BASE,
}
TINY_LANGUAGE: dict[str, OPTConfig | T5Config] = {
    "opt": OPTConfig(32, 2, 2, 64, vocab_size=100),
    "t5": T5Config(32, 2, 2, 64, head_width=16, vocab_size=100),
}
SIZES = {"opt": "OPT-125m", "t5": "T5-base"}
PEERS = {"opt": (weight_peers.KERAS,)}  # in addition to the original


def main() -> int:
    """Time one language model after the other."""
    parser = harness.arguments(__doc__ or "", rounds=5)
    parser.add_argument("--language", choices=LANGUAGE, action="append")
    options = parser.parse_args()
    for name in options.language or LANGUAGE:
        batch_settings = {"rows": ROWS, **TOKENS[name]}
        sizes = functools.partial(sizes_of, name, options.tiny)
        peers = weight_peers.given(options, PEERS.get(name, ()))
        versions, body = steps(options, sizes, batch_settings, peers)
        about = f"{versions}; fp32, batch {ROWS}, {options.threads} threads."
        harness.report(options, title(name), about, body)
    return 0


def title(name: str) -> str:
    """Return the heading of the section."""
    return f"Stage 2, a language model of {SIZES[name]}'s size"


def sizes_of(name: str, tiny: bool, dropout: float) -> dict[str, Any]:
    """Return the sizes of the model as JSON values."""
    qformer = TINY_QFORMER if tiny else presets.QFORMER_BASE
    language = (TINY_LANGUAGE if tiny else LANGUAGE)[name]
    config = presets.Blip2Config(
        (TINY_VISIONS if tiny else VISIONS)["features"],
        dataclasses.replace(qformer, dropout=dropout),
        dataclasses.replace(language, dropout=dropout),
    )
    return presets.to_plain(config)


if __name__ == "__main__":
    sys.exit(main())
