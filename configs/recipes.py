"""The paper's two stages of pre-training (sections 3.4 and 4), as configurations.

`configs/stage1_*.py` and `configs/stage2_*.py` choose among these; `fine_tunes.py` goes
on from them. Annotations, images and weights (as LAVIS and Hugging Face publish them)
are expected where the functions say; the command line can say otherwise
(`--config.data.train[0].path=...`). Configurations are returned unlocked.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from ml_collections import ConfigDict

from blip2_jax.models import presets
from blip2_jax.training.train_config import ConfigError, default_config

BERT = "weights/bert-base-uncased"
CAPTIONS = 566_747  # of COCO's Karpathy training images


@dataclasses.dataclass(frozen=True)
class Vision:
    """An image encoder: its sizes, weights, and pairs in a step of stage 1."""

    sizes: presets.ViTConfig
    weights: str
    batch_size: int
    ending: str  # of the names of presets and runs


@dataclasses.dataclass(frozen=True)
class Language:
    """A language model: its weights and tokenizer, and captions a step of stage 2."""

    weights: str
    batch_size: int


VISION = {
    "vitg": Vision(presets.EVA_VIT_G, "weights/eva_vit_g.pth", 1680, ""),
    "vitl": Vision(presets.CLIP_VIT_L, "weights/clip_vit_L.pth", 2320, "_vitL"),
}
LANGUAGE = {
    "opt2.7b": Language("weights/opt-2.7b", 1920),
    "opt6.7b": Language("weights/opt-6.7b", 1920),
    "flant5xl": Language("weights/flan-t5-xl", 1520),
    "flant5xxl": Language("weights/flan-t5-xxl", 1520),
}
# "original": what the authors' code does where it differs from the paper, as far as
# this package has it. Its learning rate is constant within an epoch and its warm-up
# ends with the first one; here both run per step.
VARIANTS = ("paper", "original")


def parse_variant(text: str, *choices: tuple[str, ...]) -> tuple[str, ...]:
    """What stands behind a configuration's name: words joined by commas, in any order.

    Args:
      text: "vitl,original", say.
      choices: of each kind of word those there are, the default first.

    Returns:
      A word of each kind.

    Raises:
      ConfigError: a word of no kind, or two of one.
    """
    chosen: dict[int, str] = {}
    for word in filter(None, text.split(",")):
        kind = next((n for n, words in enumerate(choices) if word in words), None)
        if kind is None or kind in chosen:
            known = "; ".join(" or ".join(filter(None, words)) for words in choices)
            raise ConfigError(f"{text!r} behind a configuration's name: choose {known}")
        chosen[kind] = word
    return tuple(chosen.get(n, words[0]) for n, words in enumerate(choices))


def read_paths(text: str, paths: Mapping[str, str]) -> dict[str, str]:
    """The paths that a configuration looks for, where its command line says otherwise.

    Args:
      text: what stands behind its name, "NAME=PATH" joined by commas.
      paths: the defaults of all names.

    Raises:
      ConfigError: no such name, or no path behind one.
    """
    given = dict(item.partition("=")[::2] for item in text.split(",") if item)
    known = ", ".join(paths)
    for name, path in given.items():
        if name not in paths or not path:
            raise ConfigError(f"{name}={path} is no NAME=PATH; names are {known}")
    return {**paths, **given}


def stage1(vision: str = "vitg", variant: str = "paper") -> ConfigDict:
    """250,000 steps from BERT-base in front of an image encoder."""
    config = default_config("stage1").unlock()
    config.steps, config.batch_size = 250_000, VISION[vision].batch_size
    config.init.from_weights = (BERT,)
    use_models(config, vision)
    # The paper gives no last rate for this stage; the original code has 1e-5.
    config.optimizer.final_learning_rate = 1e-5
    _shared(config)
    if variant == "original":
        _original(config, batch_size=100 * 16)
        config.optimizer.warmup_steps = 5000
        config.objective = ConfigDict({"num_shards": 16})  # ITG's mean, of 16 GPUs
    return config


def stage2(language: str, vision: str = "vitg", variant: str = "paper") -> ConfigDict:
    """80,000 steps from a stage-1 run in front of a language model."""
    config = default_config("stage2").unlock()
    config.steps, config.batch_size = 80_000, LANGUAGE[language].batch_size
    config.init.from_run = f"runs/stage1_{vision}"
    use_models(config, vision, language)
    config.optimizer.final_learning_rate = 5e-5
    _shared(config)
    if variant == "original":
        _original(config, batch_size=64 * 16)
        config.data.prefix_split = "none"
        config.objective = ConfigDict({"frozen_dropout": True, "num_shards": 16})
    return config


def use_models(
    config: ConfigDict, vision: str, language: str = "", size: int = 224
) -> None:
    """Sizes, weights and tokenizers of an image encoder and a language model.

    Args:
      vision: of `VISION`.
      language: of `LANGUAGE`; "": none (stage 1).
      size: of the images.
    """
    name = f"pretrain_{language}" if language else "pretrain"
    tower = presets.at_resolution(VISION[vision].sizes, size)
    named = name + VISION[vision].ending
    config.model.preset = named if named in presets.PRESETS else name
    if presets.PRESETS[config.model.preset].vision != tower:
        whole = {"kind": "vit", **dataclasses.asdict(tower)}
        config.model.overrides = ConfigDict({"vision": whole})
    config.data.image.size = size
    config.frozen_sources.vision = VISION[vision].weights
    config.data.tokenizer.qformer = BERT
    if language:
        config.frozen_sources.language_model = LANGUAGE[language].weights
        config.data.tokenizer.language_model = LANGUAGE[language].weights


def run_name(language: str, vision: str = "vitg") -> str:
    """The directory of a stage-2 run, as the configurations' commands have it."""
    return f"runs/{language.replace('.', '_')}{VISION[vision].ending}"


def annotation_json(name: str, images: str) -> dict[str, Any]:
    """A source of annotation JSON beside a folder of images."""
    return {"kind": "annotations", "path": f"data/annotations/{name}", "images": images}


COCO_TRAIN = annotation_json("coco_karpathy_train.json", "data/coco/images")
COCO_VALIDATION = annotation_json("coco_karpathy_val.json", "data/coco/images")
VG_CAPTIONS = annotation_json("vg_caption.json", "data/vg/images")


def _shared(config: ConfigDict) -> None:
    """AdamW (0.9, 0.98), 2,000 steps of warm-up to 1e-4, 129 M images."""
    config.optimizer.learning_rate = 1e-4
    config.optimizer.warmup_steps = 2000
    config.optimizer.weight_decay = 0.05
    config.optimizer.b1, config.optimizer.b2 = 0.9, 0.98
    # No `length_buckets`: of so many captions one nearly always fills the length.
    config.data.train = (
        COCO_TRAIN,
        VG_CAPTIONS,
        {"kind": "tars", "paths": "data/cc3m/*.tar"},
        {"kind": "tars", "paths": "data/cc12m/*.tar"},
        {"kind": "tars", "paths": "data/sbu/*.tar"},
        {"kind": "tars", "paths": "data/laion115m/*.tar"},
    )
    config.evaluation.every = 5000
    config.evaluation.sources = (COCO_VALIDATION,)
    config.evaluation.max_examples = 1000
    config.compilation_cache = "runs/compiled"


def _original(config: ConfigDict, batch_size: int) -> None:
    """COCO and Visual Genome alone for ten epochs, and the code's other numbers.

    Its epochs are of captions, ours of images: the steps are those of ten of its own,
    566,747 captions of COCO and about 821,000 of Visual Genome.
    """
    config.batch_size = batch_size
    config.steps = 10 * ((CAPTIONS + 821_000) // batch_size)
    config.optimizer.final_learning_rate = 1e-5
    config.optimizer.b2 = 0.999
    config.optimizer.original_decay = True
    config.data.train = (COCO_TRAIN, VG_CAPTIONS)
    config.data.keep_end = False
