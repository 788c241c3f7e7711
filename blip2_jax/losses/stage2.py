"""The loss of stage 2 and of its fine-tunes: language modelling of the text alone."""

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

_TOKENS = 0x70C5  # keeps the draw of image tokens apart from the keys of dropout


@dataclasses.dataclass(frozen=True)
class Stage2Options:
    """What changes the numbers of stage 2.

    Attributes:
      frozen_dropout: dropout in the language model too; the original leaves its
        frozen language models in training mode. Default: only the Q-Former drops.
      num_shards: average within each of this many shards of the batch first, as
        the original's ranks do; 1 = the mean over all target tokens.
      label_smoothing: of the targets; the original has none.
      mean_over: "tokens" of the global batch, or "texts": a text counts by the sum
        over its tokens. Of an answer that was drawn by how many annotators gave it,
        the latter is in expectation exactly the loss of all answers, weighted so.
      image_tokens: training sees so many of an image's tokens, as in stage 1
        (`Stage1Options`); 0: all.
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
    """Cross-entropy of the text given the image (paper section 3.3).

    Decoder-only: of `[queries; text]`, on the text that `target_mask` names.
    Encoder-decoder: prefix language modelling, of the decoder's targets.

    Args:
      model: which family it has decides on the batch's fields.
      params: the whole tree; a carried text branch may be absent.
      batch: see `LanguageModel.training_logits`, and `image` or `features`.
      key: dropout; None = evaluation.
      options: named deviations.

    Returns:
      The fp32 loss, and the metrics `loss`, `loss_lm` and `tokens` or `texts` (how
      many targets, or texts that have any, the loss is a mean of).
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
