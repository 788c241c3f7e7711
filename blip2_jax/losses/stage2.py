"""The loss of stage 2 and its fine-tunes: language modelling of the text."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray, PyTree

from blip2_jax.losses.objectives import lm_loss, text_loss
from blip2_jax.models.blip2_stage2 import Blip2Stage2
from blip2_jax.nn.dropout import some_tokens, split_key

_TOKENS = 0x70C5  # separates the key of image token sampling from those of dropout


@dataclasses.dataclass(frozen=True)
class Stage2Options:
    """Options of the loss.

    Attributes:
      frozen_dropout: apply dropout in the frozen language model too, as the original
        does because it leaves the model in training mode. By default only the Q-Former
        has dropout.
      num_shards: average within each of this many shards of the batch first, as the
        original does per rank; 1 is the mean over all target tokens.
      label_smoothing: label smoothing of the targets; the original has none.
      mean_over: "tokens" takes the mean over target tokens of the global batch;
        "texts" takes the mean over texts of the sum of their token losses. If answers
        are sampled by the number of annotators who gave them, the expectation of the
        latter equals the weighted loss of all answers.
      image_tokens: number of random image tokens that training uses (see
        `Stage1Options`); 0 uses all.
    """

    frozen_dropout: bool = False
    num_shards: int = 1
    label_smoothing: float = 0.0
    mean_over: Literal["tokens", "texts"] = "tokens"
    image_tokens: int = 0

    def __post_init__(self) -> None:
        if self.mean_over not in ("tokens", "texts"):
            raise ValueError(
                f"config.objective.mean_over is {self.mean_over!r}; it must be tokens "
                "or texts"
            )


def stage2_loss(
    model: Blip2Stage2,
    params: PyTree,
    batch: Mapping[str, Any],
    key: PRNGKeyArray | None,
    options: Stage2Options = Stage2Options(),
) -> tuple[Float[Array, ""], dict[str, Any]]:
    """Compute the cross-entropy of the text given the image (paper section 3.3).

    A decoder-only model reads `[queries; text]`; the loss covers the text tokens of
    `target_mask`. An encoder-decoder model is trained by prefix language modelling.

    Args:
      model: the stage-2 model. Its language model determines the fields of the batch.
      params: its parameters; a text branch that is not used may be absent.
      batch: `image` or `features`, and the fields of `LanguageModel.training_logits`.
      key: key for dropout; None disables it (evaluation).
      options: options of the loss.

    Returns:
      The fp32 loss and its metrics `loss`, `loss_lm`, and `tokens` or `texts` (the
      number of target tokens, or of texts with targets, that the loss is the mean of).
    """
    bound = model.bind({"params": params})
    features = None
    if options.image_tokens and key is not None:
        images = batch["features"] if "features" in batch else batch["image"]
        features = some_tokens(
            bound.encode_image(images),
            options.image_tokens,
            jax.random.fold_in(key, _TOKENS),
        )
    key, language_key = split_key(key, 2)
    logits, targets, mask = bound.training_logits(
        batch,
        features=features,
        key=key,
        language_key=language_key if options.frozen_dropout else None,
    )
    mean = lm_loss if options.mean_over == "tokens" else text_loss
    loss = mean(logits, targets, mask, options.label_smoothing, options.num_shards)
    count = mask if options.mean_over == "tokens" else mask.any(axis=1)
    return loss, {
        "loss": loss,
        "loss_lm": jax.lax.stop_gradient(loss),
        options.mean_over: count.sum(dtype=jnp.float32),
    }
