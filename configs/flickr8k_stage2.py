"""blip2-jax train --config flickr8k_stage2 --workdir runs/f8k_stage2

Stage 2 on Flickr8k: the Q-Former of `flickr8k_stage1` with the frozen OPT of
`flickr8k_opt_text`. The argument gives the paths of `flickr8k_stage1` and those of the
two runs: `flickr8k_stage2:data=DIR,features=DIR,words=DIR,stage1=RUN,opt=RUN`.
"""

from ml_collections import ConfigDict

from blip2_jax.configs.common_photos import small_opt, stage2_config
from blip2_jax.configs.flickr8k_stage1 import PHOTOS, parse_paths, photos

EPOCHS = 7  # passes over the photos, each time with one of five captions


def get_config(argument: str = "") -> ConfigDict:
    """Build the configuration; `argument` changes the paths."""
    paths = parse_paths(argument)
    config = stage2_config(small_opt(vocab_size=4096), paths)
    config.batch_size = 128
    config.steps = EPOCHS * PHOTOS // config.batch_size
    config.init.from_run = paths["stage1"]
    config.init.which = "best"

    config.data.train = (photos(paths, "train"),)
    config.data.max_text_length = 20

    config.evaluation.every = config.steps // 4
    config.evaluation.sources = (photos(paths, "val"),)
    config.evaluation.max_examples = 300
    config.evaluation.max_new_tokens = 20
    config.checkpoint.every = config.evaluation.every
    return config.lock()
