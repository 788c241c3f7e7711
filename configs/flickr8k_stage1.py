"""blip2-jax train --config flickr8k_stage1 --workdir runs/f8k_stage1

Stage 1 on Flickr8k: 6,000 training photos with five captions each. Only the image
encoder is pre-trained (ImageNet MobileNetV2, features computed once); the small
Q-Former starts from `flickr8k_itc`, which trains ITC alone, and its tokenizer is
BERT's.

The argument gives paths, "NAME=PATH" joined by commas:
`flickr8k_stage1:data=DIR,features=DIR,tokenizer=DIR`.
  data       {train,val,test}-*.tar in img2dataset layout
  features   {train,val,test}/ with features.npy and keys.json
  tokenizer  bert-base-uncased: a directory with vocab.txt
"""

from ml_collections import ConfigDict

from blip2_jax.configs import common
from blip2_jax.configs.common_photos import VISION_FEATURES, small_qformer
from blip2_jax.training.train_config import default_config

PHOTOS = 5999
EPOCHS = 10  # passes over the photos, each time with one of five captions
PATHS = {
    "data": "data/flickr8k",
    "features": "features/flickr8k",
    "tokenizer": "tokenizers/bert-base-uncased",
    "words": "tokenizers/flickr8k",  # the language model's, see flickr8k_opt_text.py
    "itc": "runs/f8k_itc",
    "stage1": "runs/f8k_stage1",
    "opt": "runs/f8k_opt",
    "stage2": "runs/f8k_stage2",
}


def get_config(argument: str = "") -> ConfigDict:
    """Build the configuration; `argument` changes `PATHS`."""
    paths = parse_paths(argument)
    config = default_config("stage1").unlock()
    config.batch_size = 128
    config.steps = EPOCHS * PHOTOS // config.batch_size
    config.precision = "float32"
    config.model.overrides = ConfigDict(
        {"vision": VISION_FEATURES, "qformer": small_qformer()}
    )
    config.init.from_run = paths["itc"]
    config.frozen = ()  # features replace the image encoder
    config.objective = ConfigDict(
        {
            "full_itc_gradient": True,
            "image_tokens": 16,
            "negative_hardness": 0.2,
            "itm_every": 1,
            "itg_every": 8,  # at this width the vocabulary's matmul is the largest
        }
    )

    config.data.train = (photos(paths, "train"),)
    config.data.tokenizer.qformer = paths["tokenizer"]
    config.data.max_text_length = 18
    config.data.workers = 0

    config.optimizer.name = "muon"
    config.optimizer.learning_rate = 1e-3
    config.optimizer.final_learning_rate = 1e-5
    config.optimizer.warmup_steps = 60
    config.optimizer.clip = 1.0

    config.evaluation.every = config.steps // 2
    config.evaluation.batch_size = 250
    config.evaluation.sources = (photos(paths, "val"),)
    config.evaluation.rerank = 0
    config.checkpoint.every = config.evaluation.every
    config.log_every = 20
    return config.lock()


def photos(paths: dict[str, str], split: str) -> dict[str, object]:
    """Return a data source: the features of a split's photos with their captions."""
    return {
        "kind": "features",
        "path": f"{paths['features']}/{split}",
        "texts": {"kind": "tars", "paths": f"{paths['data']}/{split}-*.tar"},
    }


def parse_paths(argument: str) -> dict[str, str]:
    """Return `PATHS` with the changes of the argument after ':' in `--config`."""
    return common.parse_paths(argument, PATHS)
