"""The Muon optimizer: momentum with orthogonalised matrices (Jordan 2024).

`optax.contrib.scale_by_muon` computes the same updates. It is not used because its
state has other leaves, so that stored runs could not resume, and because it transposes
tall matrices and reads its coefficients from the state, which makes a step of the
shapes world 3 to 13 % slower on a CPU.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float

MOMENTUM = 0.95
# The polynomial a x + b x**3 + c x**5 with the steepest slope at 0.
COEFFICIENTS = (3.4445, -4.7750, 2.0315)
ITERATIONS = 5
# Root mean square of an update. It is about that of Adam, so that both optimizers take
# the same learning rates (Liu et al. 2025).
RMS = 0.2


def scale_by_muon() -> optax.GradientTransformation:
    """Orthogonalise Nesterov momentum of matrices and scale it to `RMS`."""

    def scale(
        update: Float[Array, "... rows columns"],
    ) -> Float[Array, "... rows columns"]:
        return orthogonalise(update) * (RMS * max(update.shape[-2:]) ** 0.5)

    return optax.chain(
        optax.trace(MOMENTUM, nesterov=True),
        optax.stateless(lambda updates, _: jax.tree.map(scale, updates)),
    )


def orthogonalise(
    matrices: Float[Array, "... rows columns"],
) -> Float[Array, "... rows columns"]:
    """Map singular values to about 1 (0.7 to 1.2 unless tiny) by Newton-Schulz steps.

    The matmuls are on the smaller side, rows x rows or columns x columns.
    """
    a, b, c = COEFFICIENTS
    x = matrices / (jnp.linalg.norm(matrices, axis=(-2, -1), keepdims=True) + 1e-8)
    for _ in range(ITERATIONS):
        transposed = x.swapaxes(-1, -2)
        if x.shape[-2] > x.shape[-1]:
            square = transposed @ x
            x = a * x + x @ (b * square + c * (square @ square))
        else:
            square = x @ transposed
            x = a * x + (b * square + c * (square @ square)) @ x
    return x
