"""The stage-1 model: image tower, Q-Former and the heads of its three objectives."""

from __future__ import annotations

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float, Shaped

from blip2_jax.models.blip2 import Blip2Base
from blip2_jax.nn.layers import dense
from blip2_jax.nn.similarity import unit_vectors

INITIAL_TEMPERATURE = 0.07


class Blip2Stage1(Blip2Base):
    """A Q-Former with contrastive and matching heads (paper section 3.2).

    The passes over queries and text, and the language-model head of ITG, are methods of
    the Q-Former: `model.bind({"params": params}).qformer.text_pass(ids, mask)`.
    """

    def setup(self) -> None:
        """Create submodules and parameters."""
        super().setup()
        width = self.config.qformer.projection_dim
        self.vision_projection = dense(width, self.dtype)
        self.text_projection = dense(width, self.dtype)
        self.itm_head = dense(2, jnp.float32)
        initial = nn.initializers.constant(INITIAL_TEMPERATURE)
        self.temperature = self.param("temperature", initial, ())

    def project_queries(self, hidden: Float[Array, "B Q D"]) -> Float[Array, "B Q C"]:
        """Map query outputs to fp32 unit vectors of the contrastive space."""
        return unit_vectors(self.vision_projection(hidden))

    def project_text(self, hidden: Float[Array, "... D"]) -> Float[Array, "... C"]:
        """Map text outputs to fp32 unit vectors; the text's vector is that of [CLS]."""
        return unit_vectors(self.text_projection(hidden))

    def itm_logits(self, hidden: Float[Array, "B Q D"]) -> Float[Array, "B 2"]:
        """Compute fp32 logits of (no match, match), averaged over the queries."""
        return self.itm_head(hidden).mean(axis=1)

    def __call__(self, images: Shaped[Array, "B ..."]) -> None:
        """Run every part once, so that `init` creates all parameters."""
        ids, mask = jnp.zeros((1, 2), jnp.int32), jnp.ones((1, 2), bool)
        image = self.image_keys_values(self.encode_image(images))
        queries, cache = self.qformer.query_pass(self.query_tokens, image)
        self.project_queries(queries)
        self.project_text(self.qformer.text_pass(ids, mask))
        self.itm_logits(queries)
        self.qformer.lm_logits(self.qformer.generate_pass(ids, mask, cache))
