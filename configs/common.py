"""Values and functions that several configurations share.

Annotations, images and weights are expected under the names by which their authors
publish them; the command line can change the paths (`--config.data.train[0].path=...`).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ml_collections import ConfigDict

from blip2_jax.models.sizes import ViTConfig
from blip2_jax.training.train_config import ConfigError

# Weights. The folders of BERT and of language models hold their tokenizers too.
BERT = "weights/bert-base-uncased"
EVA_VIT_G = "weights/eva_vit_g.pth"
CLIP_VIT_L = "weights/clip_vit_L.pth"
LANGUAGE_MODELS = {
    "opt2.7b": "weights/opt-2.7b",
    "opt6.7b": "weights/opt-6.7b",
    "flant5xl": "weights/flan-t5-xl",
    "flant5xxl": "weights/flan-t5-xxl",
    "vicuna7b": "weights/vicuna-7b-v1.1",
    "vicuna13b": "weights/vicuna-13b-v1.1",
}

# Argument of the pre-training configurations. "original": the numbers of the authors'
# code where they differ from the paper's.
VARIANTS = ("paper", "original")


def annotation_file(name: str, images: str) -> dict[str, Any]:
    """Return a data source: annotation JSON beside a folder of images."""
    return {"kind": "annotations", "path": f"data/annotations/{name}", "images": images}


def tar_files(name: str) -> dict[str, Any]:
    """Return a data source: tar files in img2dataset layout."""
    return {"kind": "tars", "paths": f"data/{name}/*.tar"}


# Data sources.
COCO_IMAGES = "data/coco/images"
COCO_TRAIN = annotation_file("coco_karpathy_train.json", COCO_IMAGES)
COCO_VALIDATION = annotation_file("coco_karpathy_val.json", COCO_IMAGES)
VISUAL_GENOME = {
    "kind": "visual_genome",
    "path": "data/annotations/vg_caption.json",
    "images": "data/vg/images",
}
VQA_VALIDATION = {
    "kind": "vqa",
    "questions": "data/vqav2/v2_OpenEnded_mscoco_val2014_questions.json",
    "annotations": "data/vqav2/v2_mscoco_val2014_annotations.json",
    "images": COCO_IMAGES,
    "image_name": "val2014/COCO_val2014_{:012d}.jpg",
}

# Sizes of data sets.
COCO_CAPTIONS = 566_747  # captions of Karpathy's training images
VISUAL_GENOME_CAPTIONS = 821_000  # about


def square_root_weights(sizes: Mapping[str, int]) -> dict[str, float]:
    """Return the square root of each size, as a share of their sum.

    The weights of a mixture in InstructBLIP (Dai et al. 2023, section 2.4).
    """
    total = sum(size**0.5 for size in sizes.values())
    return {name: size**0.5 / total for name, size in sizes.items()}


def parse_variant(text: str, *choices: tuple[str, ...]) -> tuple[str, ...]:
    """Parse the argument after ':' in `--config`, e.g. "vitl,original".

    Args:
      text: words joined by commas, in any order.
      choices: alternatives of each kind of word, the default first.

    Returns:
      One word of each kind.

    Raises:
      ConfigError: an unknown word, or two words of one kind.
    """
    chosen: dict[int, str] = {}
    for word in filter(None, text.split(",")):
        kind = next((n for n, words in enumerate(choices) if word in words), None)
        if kind is None or kind in chosen:
            known = "; ".join(" or ".join(filter(None, words)) for words in choices)
            raise ConfigError(
                f"argument {text!r} after ':' in --config: choose {known}"
            )
        chosen[kind] = word
    return tuple(chosen.get(n, words[0]) for n, words in enumerate(choices))


def parse_paths(text: str, defaults: Mapping[str, str]) -> dict[str, str]:
    """Parse the argument after ':' in `--config` as paths, "NAME=PATH,NAME=PATH".

    Args:
      text: the argument.
      defaults: default path of every name.

    Returns:
      A path for every name.

    Raises:
      ConfigError: an unknown name, or a name without a path.
    """
    paths = dict(item.partition("=")[::2] for item in text.split(",") if item)
    for name, path in paths.items():
        if name not in defaults or not path:
            raise ConfigError(
                f"{name}={path} after ':' in --config: expected NAME=PATH with a NAME "
                f"of {', '.join(defaults)}"
            )
    return {**defaults, **paths}


def run_directory(language: str) -> str:
    """Return the directory of a stage-2 run with ViT-g, e.g. "runs/opt2_7b"."""
    return f"runs/{language.replace('.', '_')}"


def set_vision(config: ConfigDict, sizes: ViTConfig) -> None:
    """Replace the preset's image encoder by one of other sizes or resolution."""
    vision = {"kind": "vit", **sizes.stored_fields()}
    others = config.model.overrides.to_dict()
    config.model.overrides = ConfigDict({**others, "vision": vision})
    config.data.image.size = sizes.image_size


def set_bert(config: ConfigDict, sizes: dict[str, Any], path: str) -> None:
    """Start the Q-Former from another BERT.

    Args:
      config: of an experiment, unlocked.
      sizes: fields of `QFormerConfig` that the BERT determines.
      path: of its folder, which holds its tokenizer too.
    """
    overrides = config.model.overrides.to_dict()
    qformer = {**overrides.get("qformer", {}), **sizes}
    config.model.overrides = ConfigDict({**overrides, "qformer": qformer})
    config.data.tokenizer.qformer = path
    if not config.init.from_run:
        config.init.from_weights = (path,)


def freeze_vision(config: ConfigDict) -> None:
    """Keep the image encoder of a fine-tune as it was pre-trained."""
    config.frozen = ("^visual_encoder/", *config.frozen)
    config.optimizer.layer_decay = 1.0


def use_original_numbers(config: ConfigDict, batch_size: int) -> None:
    """Change a pre-training configuration to the numbers of the authors' code.

    The original trains for ten epochs over the captions of COCO and Visual Genome, here
    converted to steps. Its learning rate is constant within an epoch and its warm-up
    ends with the first epoch, while here both run per step.
    """
    config.batch_size = batch_size
    config.steps = 10 * ((COCO_CAPTIONS + VISUAL_GENOME_CAPTIONS) // batch_size)
    config.data.train = (COCO_TRAIN, VISUAL_GENOME)
    config.data.keep_end = False
    config.optimizer.final_learning_rate = 1e-5
    config.optimizer.b2 = 0.999
    config.optimizer.original_decay = True
