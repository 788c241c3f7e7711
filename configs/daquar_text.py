"""python launch/train.py --config configs/daquar_text.py --workdir runs/daquar_opt

A small OPT that learns DAQUAR's questions and answers as text alone, several of one
photo one after the other, so that it learns to go by what stands before. It is the
frozen language model of `daquar_vqa.py`. Its vocabulary comes from the same texts,
by `python -m blip2_jax.data.bpe`. Paths as there, of which it needs `data` and `words`.
"""

from ml_collections import ConfigDict

from blip2_jax.training.config import default_config
from configs.daquar_vqa import question_opt, questions, read_paths


def get_config(paths: str = "") -> ConfigDict:
    """The run's configuration."""
    path = read_paths(paths)
    config = default_config("language_model").unlock()
    config.batch_size = 64
    config.steps = 300
    config.precision = "float32"
    config.model.preset = "pretrain_opt2.7b"
    config.model.overrides = ConfigDict({"language_model": question_opt()})
    config.objective = ConfigDict({"initial_std": 0.07})

    config.data.train = (questions(path, "train", part="rest", shown=False),)
    config.data.tokenizer.language_model = path["words"]
    config.data.texts_per_document = 3
    config.data.max_text_length = 64

    config.optimizer.name = "muon"
    config.optimizer.learning_rate = 2e-3
    config.optimizer.final_learning_rate = 2e-5
    config.optimizer.warmup_steps = 50
    config.optimizer.clip = 1.0
    config.checkpoint.every = config.steps // 2
    config.log_every = 20
    return config.lock()
