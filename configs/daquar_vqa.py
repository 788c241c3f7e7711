"""blip2-jax train --config daquar_vqa --workdir runs/daquar_vqa

Questions about real photos, DAQUAR (Malinowski and Fritz 2014), with nothing
pre-trained but the image encoder, an ImageNet MobileNetV2 whose features (49 x 1280 a
photo) were computed once: a small Q-Former, from scratch, in front of the frozen OPT of
`daquar_text.py`. The Q-Former reads the question beside its queries;
`--config.model.question_in_qformer=False` leaves it to the language model alone.

Paths are given behind the file's name, "NAME=PATH" joined by commas:
`configs/daquar_vqa.py:data=DIR,features=DIR,tokenizer=DIR,words=DIR,opt=RUN`.
  data       questions and annotations in VQA's layout, {train,test}-*.tar of photos
  features   {train,test}/ with features.npy and keys.json
  tokenizer  bert-base-uncased: a directory with vocab.txt
  words      the language model's, see daquar_text.py
"""

from typing import Any

from ml_collections import ConfigDict

from blip2_jax.configs import common
from blip2_jax.configs.flickr8k_opt_text import small_opt
from blip2_jax.configs.flickr8k_stage2 import small_stage2

QUESTIONS = 6049  # of the training photos that are not held out
EPOCHS = 3  # passes over the questions
PATHS = {
    "data": "data/daquar_vqa",
    "features": "features/daquar_vqa",
    "tokenizer": "tokenizers/bert-base-uncased",
    "words": "tokenizers/daquar",
    "opt": "runs/daquar_opt",
    "vqa": "runs/daquar_vqa",
}


def get_config(paths: str = "") -> ConfigDict:
    """The run's configuration."""
    path = read_paths(paths)
    config = small_stage2(path, question_opt())
    config.batch_size = 64
    config.steps = EPOCHS * QUESTIONS // config.batch_size
    config.model.question_in_qformer = True
    config.objective = ConfigDict({"mean_over": "texts", "image_tokens": 12})
    config.carried = ()

    each = {"kind": "per_question", "of": questions(path, "train", part="rest")}
    config.data.train = (each,)
    config.data.max_text_length = 40
    config.data.length_buckets = (28, 40)

    config.evaluation.every = config.steps // EPOCHS
    config.evaluation.sources = (questions(path, "train", part="tenth"),)
    config.evaluation.metric = "exact_match"
    config.evaluation.max_new_tokens = 8
    config.checkpoint.every = config.evaluation.every
    return config.lock()


def question_opt() -> dict[str, Any]:
    """Sizes of the language model of `daquar_text.py`."""
    return small_opt() | {"vocab_size": 2048}


def questions(
    path: dict[str, str], split: str, part: str = "all", shown: bool = True
) -> dict[str, Any]:
    """A record a photo, with its questions.

    Args:
      path: of `read_paths`.
      split: "train" or "test".
      part: "tenth" of the photos, held out to choose by, or the "rest". Neighbours
        often show one room, so that ten stay together.
      shown: with features; else texts alone are read.
    """
    photos = {"kind": "tars", "paths": f"{path['data']}/{split}-*.tar"}
    features = {"kind": "features", "path": f"{path['features']}/{split}"}
    return {
        "kind": "vqa",
        "questions": f"{path['data']}/OpenEnded_daquar_{split}_questions.json",
        "annotations": f"{path['data']}/daquar_{split}_annotations.json",
        "images": features | {"texts": photos} if shown else photos,
        "image_name": split + "-00000/{:09d}",
        "answer": "multiple_choice_answer",
        "part": part,
        "block": 10,
    }


def read_paths(paths: str) -> dict[str, str]:
    """`PATHS` with those that the command line names."""
    return common.parse_paths(paths, PATHS)
