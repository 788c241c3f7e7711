"""blip2-jax evaluate --model runs/f8k_stage1 --task retrieval

Defaults of every evaluation; `--config.KEY=VALUE` changes a key.
"""

from ml_collections import ConfigDict

from blip2_jax.evaluation.eval_config import default_evaluation


def get_config() -> ConfigDict:
    """Build the configuration."""
    return default_evaluation()
