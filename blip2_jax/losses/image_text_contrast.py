"""The contrastive loss that trains an image encoder (Radford et al. 2021)."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PyTree

from blip2_jax.losses import hard_negatives, objectives
from blip2_jax.models.vision.dual_encoder import DualEncoder
from blip2_jax.nn.layers import INITIAL_STD

MIN_TEMPERATURE = 0.004


@dataclasses.dataclass(frozen=True)
class ContrastOptions:
    """Options of the loss, and sizes of the text tower, which is discarded later.

    Attributes:
      label_smoothing: target mass spread over all pairs.
      projection_dim: width of the contrastive space.
      text_width, text_depth, text_heads, text_window: sizes of the text tower; see
        `TextTowerConfig`.
      initial_std: standard deviation of initial matrices; a narrow model learns faster
        at first with width**-0.5.
    """

    label_smoothing: float = 0.0
    projection_dim: int = 64
    text_width: int = 128
    text_depth: int = 2
    text_heads: int = 4
    text_window: int = 0
    initial_std: float = INITIAL_STD


def contrast_loss(
    model: DualEncoder,
    params: PyTree,
    batch: Mapping[str, Array],
    options: ContrastOptions,
) -> tuple[Float[Array, ""], dict[str, Any]]:
    """Compute the contrastive loss over the global batch.

    Args:
      model: the two towers.
      params: their parameters.
      batch: `image`, `text_ids`, `text_mask` and optionally `image_id`.
      options: options of the loss.

    Returns:
      The loss and its metrics: fp32 scalars `loss`, `accuracy` (image to text) and
      `temperature`.
    """
    bound = model.bind({"params": params})
    similarity = bound(batch["image"], batch["text_ids"], batch["text_mask"])
    temperature = jnp.maximum(params["temperature"], MIN_TEMPERATURE)
    scores = similarity / temperature
    image_id = batch.get("image_id", jnp.arange(scores.shape[0]))
    positives = hard_negatives.same_image(image_id)
    loss = objectives.itc_loss(scores, scores.T, positives, options.label_smoothing)
    best = jax.nn.one_hot(scores.argmax(axis=1), scores.shape[1], dtype=bool)
    accuracy = (best & positives).any(axis=1).mean(dtype=jnp.float32)
    return loss, {"loss": loss, "accuracy": accuracy, "temperature": temperature}
