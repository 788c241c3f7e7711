"""blip2-jax train --config daquar_vqa --workdir runs/daquar_vqa

Visual question answering on real photos, DAQUAR (Malinowski and Fritz 2014). Only the
image encoder is pre-trained (ImageNet MobileNetV2, features computed once): a small
Q-Former starts from scratch with the frozen OPT of `daquar_text`. The Q-Former reads
the question beside its queries; `--config.model.question_in_qformer=False` gives the
question to the language model only.

The argument gives paths, "NAME=PATH" joined by commas:
`daquar_vqa:data=DIR,features=DIR,tokenizer=DIR,words=DIR,opt=RUN`.
  data       questions and annotations in VQA's layout, {train,test}-*.tar of photos
  features   {train,test}/ with features.npy and keys.json
  tokenizer  bert-base-uncased: a directory with vocab.txt
  words      the language model's tokenizer, see daquar_text.py
"""

from typing import Any

from ml_collections import ConfigDict

from blip2_jax.configs import common
from blip2_jax.configs.common_photos import small_opt, stage2_config

QUESTIONS = 6049  # questions about the training photos that are not held out
EPOCHS = 3  # passes over the questions
VOCABULARY_SIZE = 2048
PATHS = {
    "data": "data/daquar_vqa",
    "features": "features/daquar_vqa",
    "tokenizer": "tokenizers/bert-base-uncased",
    "words": "tokenizers/daquar",
    "opt": "runs/daquar_opt",
    "vqa": "runs/daquar_vqa",
}


def get_config(argument: str = "") -> ConfigDict:
    """Build the configuration; `argument` changes `PATHS`."""
    paths = parse_paths(argument)
    config = stage2_config(small_opt(VOCABULARY_SIZE), paths)
    config.batch_size = 64
    config.steps = EPOCHS * QUESTIONS // config.batch_size
    config.model.question_in_qformer = True
    config.objective = ConfigDict({"mean_over": "texts", "image_tokens": 12})
    config.carried = ()

    train = questions(paths, "train", part="rest")
    config.data.train = ({"kind": "per_question", "of": train},)
    config.data.max_text_length = 40
    config.data.length_buckets = (28, 40)

    config.evaluation.every = config.steps // EPOCHS
    config.evaluation.sources = (questions(paths, "train", part="tenth"),)
    config.evaluation.metric = "exact_match"
    config.evaluation.max_new_tokens = 8
    config.checkpoint.every = config.evaluation.every
    return config.lock()


def questions(
    paths: dict[str, str], split: str, part: str = "all", features: bool = True
) -> dict[str, Any]:
    """Return a data source: photos with their questions.

    Args:
      paths: result of `parse_paths`.
      split: "train" or "test".
      part: "all", "tenth" (photos that are held out for evaluation) or "rest".
        Neighbouring photos often show the same room, so that blocks of ten stay
        together.
      features: whether to read the photos' features; otherwise texts alone are read.
    """
    photos = {"kind": "tars", "paths": f"{paths['data']}/{split}-*.tar"}
    photo_features = {
        "kind": "features",
        "path": f"{paths['features']}/{split}",
        "texts": photos,
    }
    return {
        "kind": "vqa",
        "questions": f"{paths['data']}/OpenEnded_daquar_{split}_questions.json",
        "annotations": f"{paths['data']}/daquar_{split}_annotations.json",
        "images": photo_features if features else photos,
        "image_name": split + "-00000/{:09d}",
        "answer": "multiple_choice_answer",
        "part": part,
        "block": 10,
    }


def parse_paths(argument: str) -> dict[str, str]:
    """Return `PATHS` with the changes of the argument after ':' in `--config`."""
    return common.parse_paths(argument, PATHS)
