"""The paper's two stages of pre-training (sections 3.4 and 4), as configurations.

`configs/stage1_*.py` and `configs/stage2_*.py` start from these and name their models
and batch sizes. Annotations, images and weights (as LAVIS and Hugging Face publish
them) are expected where the functions say; the command line can say otherwise
(`--config.data.train[0].path=...`).
"""

from __future__ import annotations

from typing import Any

from ml_collections import ConfigDict

from blip2_jax.training.config import default_config


def stage1() -> ConfigDict:
    """250,000 steps from BERT-base; sizes and batch are the caller's. Unlocked."""
    config = default_config("stage1").unlock()
    config.steps = 250_000
    config.init.from_weights = ("weights/bert-base-uncased",)
    # The paper gives no last rate for this stage; the original code has 1e-5.
    config.optimizer.final_learning_rate = 1e-5
    _shared(config)
    config.data.tokenizer.qformer = "weights/bert-base-uncased"
    return config


def stage2() -> ConfigDict:
    """80,000 steps from a stage-1 run; sizes and batch are the caller's. Unlocked."""
    config = default_config("stage2").unlock()
    config.steps = 80_000
    config.init.from_run = "runs/stage1_vitg"
    config.optimizer.final_learning_rate = 5e-5
    _shared(config)
    return config


def _shared(config: ConfigDict) -> None:
    """AdamW (0.9, 0.98), 2,000 steps of warm-up to 1e-4, 224 pixels, 129 M images."""
    config.optimizer.learning_rate = 1e-4
    config.optimizer.warmup_steps = 2000
    config.optimizer.weight_decay = 0.05
    config.optimizer.b1, config.optimizer.b2 = 0.9, 0.98
    config.data.image.size = 224
    # No `length_buckets`: of so many captions one nearly always fills the length.
    config.data.train = (
        annotation_json("coco_karpathy_train.json", "data/coco/images"),
        annotation_json("vg_caption.json", "data/vg/images"),
        {"kind": "tars", "paths": "data/cc3m/*.tar"},
        {"kind": "tars", "paths": "data/cc12m/*.tar"},
        {"kind": "tars", "paths": "data/sbu/*.tar"},
        {"kind": "tars", "paths": "data/laion115m/*.tar"},
    )
    config.evaluation.every = 5000
    config.evaluation.sources = (
        annotation_json("coco_karpathy_val.json", "data/coco/images"),
    )
    config.evaluation.max_examples = 1000
    config.compilation_cache = "runs/compiled"


def annotation_json(name: str, images: str) -> dict[str, Any]:
    """A source of annotation JSON beside a folder of images."""
    return {"kind": "annotations", "path": f"data/annotations/{name}", "images": images}
