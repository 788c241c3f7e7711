"""Training a language model on text alone, to be frozen later."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray, PyTree

from blip2_jax.losses.objectives import lm_loss
from blip2_jax.models.presets import LanguageModelConfig, OPTConfig, T5Config
from blip2_jax.nn.layers import INITIAL_STD, scale_matrices


@dataclasses.dataclass(frozen=True)
class LanguageModelOptions:
    """How a language model begins.

    Attributes:
      initial_std: of fresh matrices and token tables. 0.02 suits the released widths;
        a narrow model starts faster at about width**-0.5.
    """

    initial_std: float = INITIAL_STD


def language_loss(
    model: Any, params: PyTree, batch: Mapping[str, Any], key: PRNGKeyArray | None
) -> tuple[Float[Array, ""], dict[str, Any]]:
    """Cross-entropy of a batch's texts; see `LanguageModel.training_logits`.

    Args:
      model: a `LanguageModel`.
      params: a tree with `language_model`.
      batch: token arrays of the model's family.
      key: dropout; None = none.

    Returns:
      The fp32 loss, and the metrics `loss`, `loss_lm` and `tokens` (how many targets
      the loss is a mean of).
    """
    bound = model.bind({"params": params["language_model"]})
    logits, targets, mask = bound.training_logits(None, batch, key)
    value = lm_loss(logits, targets, mask)
    tokens = mask.sum(dtype=jnp.float32)
    return value, {"loss": value, "loss_lm": value, "tokens": tokens}


def initial_language_model(
    params: PyTree, sizes: LanguageModelConfig, std: float
) -> PyTree:
    """Fresh parameters whose matrices have deviation `std` instead of 0.02.

    T5 does not divide its attention's logits by the root of the head width, so its
    query matrices are smaller by that factor (Raffel et al. 2020). The positions of
    an OPT become sinusoids (Vaswani et al. 2017) of the same deviation: a head that
    looks one token back is then a rotation, and need not be learned place by place.
    """
    if std == INITIAL_STD:
        return params

    def factor(names: tuple[str, ...]) -> float:
        if isinstance(sizes, T5Config) and names[-2] == "query":
            return std / INITIAL_STD * sizes.head_width**-0.5
        return std / INITIAL_STD

    params = scale_matrices(params, factor)
    if isinstance(sizes, OPTConfig):
        tables = params["embeddings"]
        positions = std * 2**0.5 * sinusoids(*tables["position"].shape)
        params = params | {"embeddings": tables | {"position": positions}}
    return params


def sinusoids(count: int, width: int) -> Float[Array, "count width"]:
    """Sines and cosines of every place, of wavelengths from 2 pi to 20,000 pi."""
    frequencies = 10_000.0 ** (-jnp.arange(width // 2) / (width // 2))
    angles = jnp.arange(count)[:, None] * frequencies
    return jnp.concatenate([jnp.sin(angles), jnp.cos(angles)], axis=1)
