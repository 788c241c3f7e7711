"""Hard negatives for ITM, sampled by similarity over the global batch."""

from __future__ import annotations

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray


@flax.struct.dataclass
class Negatives:
    """Sampled negatives, as indices into the global batch.

    A step returns them, and takes them as an input to replay an earlier run.

    Attributes:
      image: index of the negative image of each text.
      text: index of the negative text of each image.
    """

    image: Int[Array | np.ndarray, " B"]
    text: Int[Array | np.ndarray, " B"]


def same_image(image_id: Int[Array, " B"]) -> Bool[Array, "B B"]:
    """Mark the pairs of rows that show the same image, the diagonal included."""
    return image_id[:, None] == image_id[None, :]


def has_negative(positives: Bool[Array, "B B"]) -> Bool[Array, " B"]:
    """Mark the rows for which the batch holds at least one other image."""
    return ~positives.all(axis=1)


def negative_weights(
    similarity: Float[Array, "B B"], positives: Bool[Array, "B B"]
) -> Float[Array, "B B"]:
    """Compute the probability of each column as the row's negative; 0 for positives."""
    return jax.nn.softmax(similarity, axis=1, where=~positives)


def sample_hard_negatives(
    key: PRNGKeyArray,
    image_to_text: Float[Array, "B B"],
    text_to_image: Float[Array, "B B"],
    positives: Bool[Array, "B B"],
) -> Negatives:
    """Sample one negative per row and direction with `negative_weights`.

    Each direction is one draw over the global batch, so it does not depend on the mesh.
    A row without a valid negative gets an arbitrary one; mask it with `has_negative`.

    Args:
      key: key of this step.
      image_to_text: similarity / temperature, one image per row.
      text_to_image: similarity / temperature, one text per row.
      positives: pairs that must not be sampled, from `same_image`.
    """
    image_key, text_key = jax.random.split(key)

    def draw(key: PRNGKeyArray, similarity: Float[Array, "B B"]) -> Int[Array, " B"]:
        logits = jnp.where(positives, -jnp.inf, jax.lax.stop_gradient(similarity))
        return jax.random.categorical(key, logits, axis=1).astype(jnp.int32)

    return Negatives(
        image=draw(image_key, text_to_image), text=draw(text_key, image_to_text)
    )
