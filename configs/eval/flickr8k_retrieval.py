"""blip2-jax evaluate --config eval/flickr8k_retrieval

Retrieval in both directions between the 1,000 test photos of Flickr8k and their 5,000
captions: by ITC, then the best 32 candidates re-ranked by ITM. The argument gives the
paths of `flickr8k_stage1` and `stage1=RUN`.
"""

from ml_collections import ConfigDict

from blip2_jax.configs.flickr8k_stage1 import parse_paths, photos
from blip2_jax.evaluation.eval_config import default_evaluation


def get_config(argument: str = "") -> ConfigDict:
    """Build the configuration; `argument` changes the paths."""
    paths = parse_paths(argument)
    config = default_evaluation("retrieval").unlock()
    config.model = paths["stage1"]
    config.data = (photos(paths, "test"),)
    config.rerank = 32
    config.batch_size = 250
    return config.lock()
