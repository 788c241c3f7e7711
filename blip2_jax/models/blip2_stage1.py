"""Stage 1: the Q-Former with its contrastive, matching and language-model heads."""

from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray, Shaped

from blip2_jax.models.blip2 import Blip2Base
from blip2_jax.models.qformer.qformer import ImageKeyValues, QueryCache
from blip2_jax.nn.kv_cache import GeneratedKV, PrefixKV
from blip2_jax.nn.layers import dense

INITIAL_TEMPERATURE = 0.07


class Blip2Stage1(Blip2Base):
    """Image features and text to what the three objectives need."""

    def setup(self) -> None:
        super().setup()
        width = self.config.qformer.projection_dim
        self.vision_projection = dense(width, self.dtype)
        self.text_projection = dense(width, self.dtype)
        self.itm_head = dense(2, jnp.float32)
        initial = nn.initializers.constant(INITIAL_TEMPERATURE)
        self.temperature = self.param("temperature", initial, ())

    def query_pass(
        self, image: ImageKeyValues, *, key: PRNGKeyArray | None = None
    ) -> tuple[Float[Array, "B Q D"], QueryCache]:
        """The queries read the image: output, and their keys and values by block."""
        return self.qformer.query_pass(self.query_tokens, image, key=key)

    def text_pass(
        self,
        ids: Int[Array, "B T"],
        mask: Bool[Array, "B T"],
        *,
        first_only: bool = False,
        key: PRNGKeyArray | None = None,
    ) -> Float[Array, "B N D"]:
        """Text alone, bidirectional; `first_only`: the output of [CLS], N = 1."""
        return self.qformer.text_pass(ids, mask, first_only=first_only, key=key)

    def multimodal_pass(
        self,
        ids: Int[Array, "B T"],
        mask: Bool[Array, "B T"],
        image: ImageKeyValues,
        other: ImageKeyValues = (),
        *,
        queries_only: bool = False,
        key: PRNGKeyArray | None = None,
    ) -> Float[Array, "B N D"]:
        """Queries, then text, seeing each other; the queries read the image.

        Texts outnumber images where neighbours share one, and the last of them reads
        the `other` image. `queries_only`: the output of the queries, N = Q.
        """
        return self.qformer.multimodal_pass(
            self.query_tokens,
            ids,
            mask,
            image,
            other,
            queries_only=queries_only,
            key=key,
        )

    def generate_pass(
        self,
        ids: Int[Array, "B T"],
        mask: Bool[Array, "B T"],
        query_cache: QueryCache,
        *,
        key: PRNGKeyArray | None = None,
    ) -> Float[Array, "B T D"]:
        """Causal text behind the cached queries; `ids` begin with [DEC]."""
        return self.qformer.generate_pass(ids, mask, query_cache, key=key)

    def joint_pass(
        self,
        ids: Int[Array, "B T"],
        caption_ids: Int[Array, "B T"],
        mask: Bool[Array, "B T"],
        image: ImageKeyValues,
        *,
        key: PRNGKeyArray | None = None,
    ) -> tuple[Float[Array, "B Q D"], Float[Array, "B D"], Float[Array, "B T D"]]:
        """What ITC and ITG ask, at once: queries, the text's [CLS], captions."""
        return self.qformer.joint_pass(
            self.query_tokens, ids, caption_ids, mask, image, key=key
        )

    def lm_logits(self, hidden: Float[Array, "... D"]) -> Float[Array, "... V"]:
        """fp32 logits over the vocabulary."""
        return self.qformer.lm_logits(hidden)

    def project_queries(self, hidden: Float[Array, "B Q D"]) -> Float[Array, "B Q C"]:
        """Unit vectors of the contrastive space, one per query; fp32."""
        return normalize(self.vision_projection(hidden))

    def project_text(self, hidden: Float[Array, "... D"]) -> Float[Array, "... C"]:
        """Unit vectors of the contrastive space; a text's is that of its [CLS]."""
        return normalize(self.text_projection(hidden))

    def itm_logits(self, hidden: Float[Array, "B Q D"]) -> Float[Array, "B 2"]:
        """fp32 logits of (no match, match): the mean of the queries' votes."""
        return self.itm_head(hidden).mean(axis=1)

    def prefill(
        self, ids: Int[Array, "B T"], query_cache: QueryCache
    ) -> tuple[Float[Array, "B V"], PrefixKV]:
        """Caption generation: reads `ids`, [DEC] first; see `QFormer.prefill`."""
        return self.qformer.prefill(ids, query_cache)

    def decode_step(
        self,
        ids: Int[Array, "B W"],
        time: Int[Array, ""],
        prefix: PrefixKV,
        generated: GeneratedKV,
        visible: Bool[Array, "B W M"],
    ) -> tuple[Float[Array, "B W V"], GeneratedKV]:
        """Caption generation: one token per beam; see `QFormer.decode_step`."""
        return self.qformer.decode_step(ids, time, prefix, generated, visible)

    def touch(self, images: Shaped[Array, "B ..."]) -> None:
        """Runs every part once, so that initialisation creates every parameter."""
        ids, mask = jnp.zeros((1, 2), jnp.int32), jnp.ones((1, 2), bool)
        image = self.image_keys_values(self.encode_image(images))
        queries, cache = self.query_pass(image)
        self.project_queries(queries)
        self.project_text(self.text_pass(ids, mask))
        self.itm_logits(queries)
        self.lm_logits(self.generate_pass(ids, mask, cache))


def normalize(x: Float[Array, "... C"]) -> Float[Array, "... C"]:
    """Vectors of length one, fp32 (cosines are their dot products)."""
    x = x.astype(jnp.float32)
    squares = jnp.sum(x * x, axis=-1, keepdims=True)
    return x * jax.lax.rsqrt(jnp.maximum(squares, 1e-24))
