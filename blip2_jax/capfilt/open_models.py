"""Loading of the models of CapFilt from files, folders or the hub."""

from __future__ import annotations

import pathlib
from typing import Any

from blip2_jax.capfilt.models import (
    Blip2Ranker,
    Blip2Sampler,
    BlipSampler,
    Captioner,
    ClipRanker,
    ModelName,
    Ranker,
    Sampling,
)
from blip2_jax.convert.detect import kind_of
from blip2_jax.convert.files.checkpoint_files import CheckpointFiles
from blip2_jax.convert.native_folder import is_native_folder
from blip2_jax.data import hub
from blip2_jax.inference.load import load
from blip2_jax.inference.load_capfilt import load_captioner, load_clip
from blip2_jax.inference.model import Blip2
from blip2_jax.inference.retriever import Blip2Retriever
from blip2_jax.inference.shipped_models import SHIPPED_MODELS
from blip2_jax.models.sizes import FeaturesConfig
from blip2_jax.training.checkpoints import is_run


def open_captioner(
    name: ModelName, sampling: Sampling, precision: str | None, batch_size: int
) -> Captioner:
    """Load a model that captions images.

    Args:
      name: the model.
      sampling: how captions are sampled.
      precision: see `blip2_jax.load`.
      batch_size: number of images per batch.

    Raises:
      ValueError: the path holds no such model.
      FileNotFoundError: the path does not exist.
    """
    options: dict[str, Any] = {"precision": precision, "batch_size": batch_size}
    if _kind(name.path) == "blip":
        blip = load_captioner(name.path, tokenizer=name.tokenizer, **options)
        return BlipSampler(blip, sampling)
    model = load(name.path, qformer_tokenizer=name.tokenizer, **options)
    _check_takes_images(model, name.path)
    return Blip2Sampler(model, sampling)


def open_ranker(
    name: ModelName, score: str, precision: str | None, batch_size: int
) -> Ranker:
    """Load a model that scores captions.

    Args:
      name: the model.
      score: "itc" or "itm", for a model of stage 1; "" for the default.
      precision: see `blip2_jax.load`.
      batch_size: number of rows per batch.

    Raises:
      ValueError: the path holds no such model, or the model has no such score.
      FileNotFoundError: the path does not exist.
    """
    options: dict[str, Any] = {"precision": precision, "batch_size": batch_size}
    if _kind(name.path) == "clip_huggingface":
        if score:
            raise ValueError(f"{name.path} is CLIP: --score is for stage-1 models")
        return ClipRanker(load_clip(name.path, tokenizer=name.tokenizer, **options))
    model = load(name.path, qformer_tokenizer=name.tokenizer, **options)
    if not isinstance(model, Blip2Retriever):
        raise ValueError(
            f"{name.path} is a stage-2 model, which scores no captions: a ranker is "
            "CLIP or a stage-1 model"
        )
    _check_takes_images(model, name.path)
    return Blip2Ranker(model, score or "itc")


def _kind(path: str) -> str:
    """Recognise the kind of a file or folder; "" for models of this package."""
    if path in SHIPPED_MODELS and not pathlib.Path(path).exists():
        return ""
    local = hub.local_path(path, *hub.TOKENIZER_FILES, *hub.TOKENIZER_FOLDERS)
    if not local.exists() or is_run(local) or is_native_folder(local):
        return ""  # `load` opens it, or says what is wrong
    return kind_of(CheckpointFiles(path))


def _check_takes_images(model: Blip2, path: str) -> None:
    """Check that a model has an image encoder.

    Raises:
      ValueError: it was trained on features.
    """
    if isinstance(model.model.config.vision, FeaturesConfig):
        raise ValueError(f"{path} was trained on features: it takes no images")
