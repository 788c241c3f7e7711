"""Configurations of both stages in tiny sizes: `tiny_experiment.py:stage1|opt|t5`."""

from ml_collections import ConfigDict

from blip2_jax.training.train_config import default_config

SIZES = {
    "vision": {
        "kind": "vit",
        "width": 32,
        "depth": 1,
        "heads": 2,
        "mlp_dim": 64,
        "image_size": 32,
        "patch_size": 16,
    },
    "qformer": {
        "width": 32,
        "depth": 2,
        "heads": 2,
        "mlp_dim": 64,
        "num_queries": 4,
        "vocab_size": 200,
        "projection_dim": 16,
    },
}
LANGUAGE = {
    "opt": {"kind": "opt", "width": 32, "depth": 1, "heads": 2, "mlp_dim": 64},
    "t5": {
        "kind": "t5",
        "width": 32,
        "depth": 1,
        "heads": 2,
        "mlp_dim": 64,
        "head_width": 16,
    },
}


def get_config(task: str = "stage1") -> ConfigDict:
    """Return 40 fp32 steps with dropout on the shapes world, a checkpoint every 5."""
    config = default_config("stage1" if task == "stage1" else "stage2").unlock()
    sizes = SIZES | ({"language_model": LANGUAGE[task]} if task in LANGUAGE else {})
    config.model.overrides = ConfigDict(sizes)
    config.steps, config.batch_size, config.log_every = 40, 8, 1
    config.precision = "float32"
    config.optimizer.warmup_steps = 4
    config.frozen_sources.vision = "random"
    config.frozen_sources.language_model = "random" if task in LANGUAGE else ""
    config.data.train = ({"kind": "shapes", "split": "train", "size": 64},)
    config.data.image.size = 32
    config.data.tokenizer.qformer = "shapes:bert"
    config.data.tokenizer.language_model = f"shapes:{task}" if task in LANGUAGE else ""
    config.data.max_text_length = 16
    config.data.workers = 1
    config.checkpoint.every = 5
    return config.lock()
