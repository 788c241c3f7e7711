"""blip2-jax train --config daquar_text --workdir runs/daquar_opt

A small OPT that learns DAQUAR's questions and answers as text alone, several of one
photo one after the other, so that it learns to go by what stands before. It is the
frozen language model of `daquar_vqa.py`. Its vocabulary comes from the same texts,
by `blip2-jax train_vocabulary`. Paths as there, of which it needs `data` and `words`.
"""

from ml_collections import ConfigDict

from blip2_jax.configs.daquar_vqa import question_opt, questions, read_paths
from blip2_jax.configs.flickr8k_opt_text import small_language_model


def get_config(paths: str = "") -> ConfigDict:
    """The run's configuration."""
    path = read_paths(paths)
    config = small_language_model(question_opt(), path["words"])
    config.steps = 300
    config.data.train = (questions(path, "train", part="rest", shown=False),)
    config.data.texts_per_document = 3
    config.data.max_text_length = 64
    config.checkpoint.every = config.steps // 2
    return config.lock()
