"""blip2-jax evaluate --config eval/flickr8k_captioning

A caption for each of the 1,000 test photos of Flickr8k by beam search, scored against
five captions by people; ten of them go on a page beside their photos. Paths as in
`flickr8k_stage2.py`, with `stage2=RUN`.
"""

from ml_collections import ConfigDict

from blip2_jax.configs.flickr8k_stage1 import photos, read_paths
from blip2_jax.evaluation.eval_config import default_evaluation


def get_config(paths: str = "") -> ConfigDict:
    """The evaluation's configuration."""
    path = read_paths(paths)
    config = default_evaluation("captioning").unlock()
    config.model = path["stage2"]
    config.data = (photos(path, "test"),)
    config.batch_size = 100
    config.page = 10
    config.decoding.num_beams = 5
    config.decoding.max_new_tokens = 20
    return config.lock()
