"""blip2-jax train --config qformer_real_size:DATA --workdir runs/real

20 steps of stage 1 with the Q-Former in its real size (12 blocks of 768, 32 queries,
BERT's 30,522 words and [DEC]) from scratch, on 224-pixel photos decoded from tars,
behind a small image encoder of random weights. It learns nothing of use: it shows first
losses (ln 8 for ITC, ln 2 for ITM, ln 30523 for ITG), speed and memory.

DATA is a folder with `flickr8k/train-*.tar` (img2dataset layout) and
`bert-base-uncased/vocab.txt` or, as "TARS,TOKENIZER", a pattern and a folder.
"""

from ml_collections import ConfigDict

from blip2_jax.training.train_config import default_config

VISION = {"width": 192, "depth": 4, "heads": 3, "mlp_dim": 768, "patch_size": 16}


def get_config(data: str = "data") -> ConfigDict:
    """The run's configuration."""
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
