"""blip2-jax evaluate --config eval/flickr8k_retrieval

Both directions on the 1,000 test photos of Flickr8k and their 5,000 captions: by ITC,
then the best 32 of each list re-ranked by ITM. Paths as in `flickr8k_stage1.py`.
"""

from ml_collections import ConfigDict

from blip2_jax.configs.flickr8k_stage1 import photos, read_paths
from blip2_jax.evaluation.eval_config import default_evaluation


def get_config(paths: str = "") -> ConfigDict:
    """The evaluation's configuration."""
    path = read_paths(paths)
    config = default_evaluation("retrieval").unlock()
    config.model = path["stage1"]
    config.data = (photos(path, "test"),)
    config.rerank = 32
    config.batch_size = 250
    return config.lock()
