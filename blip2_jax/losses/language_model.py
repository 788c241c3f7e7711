"""The loss and initial parameters of a language model that is trained on text alone."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray, PyTree

from blip2_jax.losses.objectives import lm_loss
from blip2_jax.models.sizes import LanguageModelConfig
from blip2_jax.nn.layers import INITIAL_STD, scale_matrices


@dataclasses.dataclass(frozen=True)
class LanguageModelOptions:
    """Options of language model training.

    Attributes:
      initial_std: standard deviation of initial matrices and token embeddings. 0.02
        suits the released widths; a narrow model learns faster at first with about
        width**-0.5.
    """

    initial_std: float = INITIAL_STD


def language_loss(
    model: Any, params: PyTree, batch: Mapping[str, Any], key: PRNGKeyArray | None
) -> tuple[Float[Array, ""], dict[str, Any]]:
    """Compute the cross-entropy of texts; see `LanguageModel.training_logits`.

    Args:
      model: a `LanguageModel`.
      params: a tree with `language_model`.
      batch: token arrays of the model's family.
      key: key for dropout; None disables it.

    Returns:
      The fp32 loss and its metrics `loss`, `loss_lm` and `tokens` (the number of
      target tokens that the loss is the mean of).
    """
    bound = model.bind({"params": params["language_model"]})
    logits, targets, mask = bound.training_logits(None, batch, key)
    value = lm_loss(logits, targets, mask)
    tokens = mask.sum(dtype=jnp.float32)
    return value, {"loss": value, "loss_lm": value, "tokens": tokens}


def initial_language_model(
    params: PyTree, sizes: LanguageModelConfig, std: float
) -> PyTree:
    """Rescale initial matrices from a standard deviation of 0.02 to `std`.

    T5 does not divide attention logits by the square root of the head width, so its
    query matrices are smaller by that factor (Raffel et al. 2020). A table of positions
    (OPT) becomes sinusoids (Vaswani et al. 2017) of the same deviation: a head that
    attends to the previous token is then a rotation, which need not be learned for
    every position separately.
    """
    if std == INITIAL_STD:
        return params

    head_width = getattr(sizes, "head_width", sizes.width // sizes.heads)

    def factor(names: tuple[str, ...]) -> float:
        if not sizes.scales_scores and names[-2] == "query":
            return std / INITIAL_STD * head_width**-0.5
        return std / INITIAL_STD

    params = scale_matrices(params, factor)
    tables = params["embeddings"]
    if "position" in tables:
        positions = std * 2**0.5 * sinusoids(*tables["position"].shape)
        params = params | {"embeddings": tables | {"position": positions}}
    return params


def sinusoids(count: int, width: int) -> Float[Array, "T D"]:
    """Compute sinusoidal position embeddings of wavelengths from 2 pi to 20,000 pi."""
    frequencies = 10_000.0 ** (-jnp.arange(width // 2) / (width // 2))
    angles = jnp.arange(count)[:, None] * frequencies
    return jnp.concatenate([jnp.sin(angles), jnp.cos(angles)], axis=1)
