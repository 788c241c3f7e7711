"""Projectors: what replaces the Q-Former in an ablation.

A projector maps every cell of the image's patch grid to one visual token, without
queries and without attention: a linear map of the patches, as in LLaVA, or an MLP of
their average. The token of a cell knows nothing of the other cells but what the image
encoder wrote into its patches.
"""

from __future__ import annotations

import math

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from blip2_jax.models.sizes import ProjectorConfig
from blip2_jax.nn.layers import dense


class Projector(nn.Module):
    """Image tokens to one vector per cell; a linear layer of the model follows.

    Attributes:
      config: sizes.
      num_patches: number of patches of an image, a square.
      dtype: compute dtype; parameters are fp32.
    """

    config: ProjectorConfig
    num_patches: int
    dtype: DTypeLike = jnp.float32

    def setup(self) -> None:
        """Create submodules and parameters."""
        if self.config.join == "average":
            self.hidden = dense(self.config.hidden_width, self.dtype)

    def __call__(self, image: Float[Array, "B P D"]) -> Float[Array, "B Q width"]:
        """Compute the vectors of the cells, row by row.

        Args:
          image: normalised image tokens, patches last. A class token and registers are
            not used.
        """
        patches = image[:, -self.num_patches :]
        cells = split_cells(patches, self.config)
        if self.config.join == "concatenate":
            return cells.reshape(*cells.shape[:2], -1)
        ones = jnp.ones((1, self.num_patches, 1), self.dtype)
        inside = split_cells(ones, self.config)
        pooled = cells.sum(axis=2) / inside.sum(axis=2)
        return jax.nn.gelu(self.hidden(pooled), approximate=False)


def split_cells(
    patches: Float[Array, "B patches D"], config: ProjectorConfig
) -> Float[Array, "B Q cell D"]:
    """Return the patches of every cell; those beyond the edge of the image are 0.

    Raises:
      ValueError: the patches cannot be split so that every cell has one.
    """
    side, cell = config.split(patches.shape[1])
    grid, width = math.isqrt(patches.shape[1]), patches.shape[-1]
    missing = side * cell - grid
    square = patches.reshape(-1, grid, grid, width)
    padded = jnp.pad(square, ((0, 0), (0, missing), (0, missing), (0, 0)))
    cells = padded.reshape(-1, side, cell, side, cell, width)
    cells = cells.transpose(0, 1, 3, 2, 4, 5)
    return cells.reshape(-1, side * side, cell * cell, width)
