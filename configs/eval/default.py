"""blip2-jax evaluate --model runs/f8k_stage1 --task retrieval

What every evaluation starts from; `--config.KEY=VALUE` changes a key.
"""

from ml_collections import ConfigDict

from blip2_jax.evaluation.eval_config import default_evaluation


def get_config() -> ConfigDict:
    """The defaults."""
    return default_evaluation()
