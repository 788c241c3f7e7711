"""blip2-jax train --config flickr8k_stage1 --workdir runs/f8k_stage1

Stage 1 on the 6,000 training photos of Flickr8k, each with five captions, with nothing
pre-trained but the image encoder: all three objectives, after `flickr8k_itc.py` has
begun with the contrast. The encoder is an ImageNet MobileNetV2 whose features (49 x
1280 a photo) were computed once; the Q-Former is a small one, its words are BERT's.

Paths are given behind the file's name, "NAME=PATH" joined by commas:
`configs/flickr8k_stage1.py:data=DIR,features=DIR,tokenizer=DIR`.
  data       {train,val,test}-*.tar in img2dataset layout
  features   {train,val,test}/ with features.npy and keys.json
  tokenizer  bert-base-uncased: a directory with vocab.txt
"""

from ml_collections import ConfigDict

from blip2_jax.configs import common
from blip2_jax.training.train_config import default_config

PHOTOS = 5999
EPOCHS = 10  # passes over the photos, each time with one of five captions
PATHS = {
    "data": "data/flickr8k",
    "features": "features/flickr8k",
    "tokenizer": "tokenizers/bert-base-uncased",
    "words": "tokenizers/flickr8k",  # of the language model, see flickr8k_opt_text.py
    "itc": "runs/f8k_itc",
    "stage1": "runs/f8k_stage1",
    "opt": "runs/f8k_opt",
    "stage2": "runs/f8k_stage2",
}


def get_config(paths: str = "") -> ConfigDict:
    """The run's configuration."""
    path = read_paths(paths)
    config = default_config("stage1").unlock()
    config.batch_size = 128
    config.steps = EPOCHS * PHOTOS // config.batch_size
    config.precision = "float32"
    config.model.overrides = ConfigDict(
        {
            "vision": vision_features(),
            "qformer": small_qformer(),
        }
    )
    config.init.from_run = path["itc"]
    config.frozen = ()  # features take the image encoder's place
    config.objective = ConfigDict(
        {
            "full_itc_gradient": True,
            "image_tokens": 16,
            "negative_hardness": 0.2,
            "itm_every": 1,
            "itg_every": 8,  # at this width the vocabulary's product is the dearest
        }
    )

    config.data.train = (photos(path, "train"),)
    config.data.tokenizer.qformer = path["tokenizer"]
    config.data.max_text_length = 18
    config.data.workers = 0

    config.optimizer.name = "muon"
    config.optimizer.learning_rate = 1e-3
    config.optimizer.final_learning_rate = 1e-5
    config.optimizer.warmup_steps = 60
    config.optimizer.clip = 1.0

    config.evaluation.every = config.steps // 2
    config.evaluation.batch_size = 250
    config.evaluation.sources = (photos(path, "val"),)
    config.evaluation.rerank = 0
    config.checkpoint.every = config.evaluation.every
    config.log_every = 20
    return config.lock()


def vision_features() -> dict[str, object]:
    """Precomputed features in place of an image encoder."""
    return {"kind": "features", "num_tokens": 49, "width": 1280}


def small_qformer() -> dict[str, float]:
    """Sizes that differ from the paper's."""
    return {
        "width": 256,
        "depth": 2,
        "heads": 4,
        "mlp_dim": 512,
        "cross_attention_every": 1,
        "num_queries": 8,
        "projection_dim": 128,
        "initial_std": 0.06,
    }


def photos(path: dict[str, str], split: str) -> dict[str, object]:
    """A split's precomputed features with its captions."""
    return {
        "kind": "features",
        "path": f"{path['features']}/{split}",
        "texts": {"kind": "tars", "paths": f"{path['data']}/{split}-*.tar"},
    }


def read_paths(paths: str) -> dict[str, str]:
    """`PATHS` with those that the command line names."""
    return common.parse_paths(paths, PATHS)
