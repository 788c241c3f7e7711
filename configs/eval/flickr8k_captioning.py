"""blip2-jax evaluate --config eval/flickr8k_captioning

Captions of the 1,000 test photos of Flickr8k by beam search, scored against five
captions by people. Writes a page with ten of the photos. The argument gives the paths
of `flickr8k_stage2` and `stage2=RUN`.
"""

from ml_collections import ConfigDict

from blip2_jax.configs.flickr8k_stage1 import parse_paths, photos
from blip2_jax.evaluation.eval_config import default_evaluation


def get_config(argument: str = "") -> ConfigDict:
    """Build the configuration; `argument` changes the paths."""
    paths = parse_paths(argument)
    config = default_evaluation("captioning").unlock()
    config.model = paths["stage2"]
    config.data = (photos(paths, "test"),)
    config.batch_size = 100
    config.page = 10
    config.decoding.num_beams = 5
    config.decoding.max_new_tokens = 20
    return config.lock()
