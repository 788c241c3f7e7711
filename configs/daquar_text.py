"""blip2-jax train --config daquar_text --workdir runs/daquar_opt

Train a small OPT on the questions and answers of DAQUAR as text alone, several of one
photo in a document, so that it learns to use the context. It is the frozen language
model of `daquar_vqa`. `blip2-jax train_vocabulary` makes its vocabulary from the same
texts. The argument gives the paths `data` and `words` of `daquar_vqa`.
"""

from ml_collections import ConfigDict

from blip2_jax.configs.common_photos import language_model_config, small_opt
from blip2_jax.configs.daquar_vqa import VOCABULARY_SIZE, parse_paths, questions


def get_config(argument: str = "") -> ConfigDict:
    """Build the configuration; `argument` changes the paths."""
    paths = parse_paths(argument)
    config = language_model_config(small_opt(VOCABULARY_SIZE), paths["words"])
    config.steps = 300
    config.data.train = (questions(paths, "train", part="rest", features=False),)
    config.data.texts_per_document = 3
    config.data.max_text_length = 64
    config.checkpoint.every = config.steps // 2
    return config.lock()
