"""Time re-ranking by ITM: `python -m benchmarks.reranking --lavis PATH`.

Beside the original: the real-size Q-Former at the resolution of the retrieval models
(364 px: 677 x 1408 features), fp32; every image meets 16 texts of 35 tokens. Ours
projects an image's keys and values once (`Stage1Scorer`), the original with every pair
(`compute_itm` over repeated features, as its `compute_sim_matrix` calls it).
"""

from __future__ import annotations

import contextlib
import sys
from typing import Any

import numpy as np

from benchmarks import harness
from benchmarks.stage1_step import TINY_QFORMER, TINY_VISIONS
from blip2_jax.models import presets
from blip2_jax.models.sizes import FeaturesConfig

IMAGES, TEXTS, LENGTH = 2, 16, 35
HEAD = ("", "ms a pair", "ratio", "peak GB")
TITLE = "Re-ranking by the matching head"


def main() -> int:
    """Time both contestants."""
    parser = harness.arguments(__doc__ or "", rounds=5)
    options = parser.parse_args()
    settings = {
        "sizes": sizes(options.tiny),
        "count": IMAGES,
        "texts": TEXTS,
        "text": LENGTH,
    }
    with contextlib.ExitStack() as stack:
        workers = [
            stack.enter_context(worker)
            for worker in harness.pair(options, "reranking", settings)
        ]
        versions = ", ".join(worker.ask("versions") for worker in workers)
        times = harness.take_turns(workers, "rerank", options.rounds)
        scores = [np.array(worker.ask("scores")) for worker in workers]
        slowest = times[workers[-1].name]
        rows = [
            [
                worker.name,
                f"{1e3 * times[worker.name] / (IMAGES * TEXTS):.1f}",
                f"{slowest / times[worker.name]:.2f}",
                f"{worker.peak():.2f}",
            ]
            for worker in workers
        ]
    apart = np.abs(scores[0] - scores[-1]).max()
    about = (
        f"{versions}; fp32, {IMAGES} images x {TEXTS} texts, "
        f"{options.threads} threads. "
        f"Largest difference of a logit: {apart:.1e}."
    )
    harness.report(options, TITLE, about, harness.table(HEAD, rows))
    return 0


def sizes(tiny: bool) -> dict[str, Any]:
    """Return the sizes of the model as JSON values."""
    if tiny:
        config = presets.Blip2Config(TINY_VISIONS["features"], TINY_QFORMER)
    else:
        vision = presets.preset("coco").vision
        features = FeaturesConfig(vision.num_tokens, vision.width)
        config = presets.Blip2Config(features, presets.QFORMER_BASE)
    return presets.to_plain(config)


if __name__ == "__main__":
    sys.exit(main())
