"""blip2-jax train --config qformer_real_size:DATA --workdir runs/real

20 steps of stage 1 with the Q-Former of the paper's size, trained from scratch on
224-pixel photos from tars, with a small image encoder of random weights. Measures the
first losses (ln 8 for ITC, ln 2 for ITM, ln 30523 for ITG), speed and memory; the model
is of no use.

DATA is a folder with `flickr8k/train-*.tar` (img2dataset layout) and
`bert-base-uncased/vocab.txt`, or "TARS,TOKENIZER": a glob pattern and a folder.
"""

from ml_collections import ConfigDict

from blip2_jax.training.train_config import default_config

VISION = {"width": 192, "depth": 4, "heads": 3, "mlp_dim": 768, "patch_size": 16}


def get_config(data: str = "data") -> ConfigDict:
    """Build the configuration; `data` is a folder or "TARS,TOKENIZER"."""
    default = f"{data}/flickr8k/train-*.tar,{data}/bert-base-uncased"
    tars, tokenizer = (data if "," in data else default).split(",")
    config = default_config("stage1").unlock()
    config.steps = 20
    config.batch_size = 8
    config.precision = "float32"
    config.model.preset = "pretrain"
    config.model.overrides = ConfigDict({"vision": VISION})
    config.frozen_sources.vision = "random"

    config.data.train = ({"kind": "tars", "paths": tars},)
    config.data.tokenizer.qformer = tokenizer
    config.data.workers = 1
    config.optimizer.warmup_steps = 5
    config.checkpoint.every = 20
    config.log_every = 1
    return config.lock()
