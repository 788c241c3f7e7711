"""blip2-jax train --config flickr8k_opt_text --workdir runs/f8k_opt

Train a small OPT on the captions of Flickr8k as text alone, half of them after another
caption of the same photo, so that it learns to use the context. It is the frozen
language model of `flickr8k_stage2`. `blip2-jax train_vocabulary` makes its vocabulary
from the same captions. The argument gives the paths `data` and `words` of
`flickr8k_stage1`.
"""

from ml_collections import ConfigDict

from blip2_jax.configs.common_photos import language_model_config, small_opt
from blip2_jax.configs.flickr8k_stage1 import PHOTOS, parse_paths

EPOCHS = 10  # passes over the photos, each time with one of five captions


def get_config(argument: str = "") -> ConfigDict:
    """Build the configuration; `argument` changes the paths."""
    paths = parse_paths(argument)
    config = language_model_config(small_opt(vocab_size=4096), paths["words"])
    config.steps = EPOCHS * PHOTOS // config.batch_size
    config.data.train = ({"kind": "tars", "paths": f"{paths['data']}/train-*.tar"},)
    config.data.context_share = 0.5
    config.data.max_text_length = 36
    config.checkpoint.every = config.steps // 2
    return config.lock()
