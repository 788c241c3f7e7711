"""The stage-2 model: projected query outputs as a prompt of a frozen language model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray, Shaped

from blip2_jax.models.blip2 import Blip2Base
from blip2_jax.models.language.input_sequence import queries_then_text
from blip2_jax.models.language.interface import build_language_model
from blip2_jax.nn.kv_cache import PrefixKV
from blip2_jax.nn.layers import dense

Logits = tuple[Float[Array, "B T V"], Int[Array, "B T"], Bool[Array, "B T"]]


class Blip2Stage2(Blip2Base):
    """Image to queries to language (paper section 3.3).

    The Q-Former's text branch has no parameters here, unless `question_in_qformer`.
    Then queries and question attend to each other, as in the paper's VQA fine-tune
    (section 4.3), and the branch comes from stage 1.

    Attributes:
      question_in_qformer: the Q-Former reads `question_ids` and `question_mask`.
    """

    question_in_qformer: bool = False

    def setup(self) -> None:
        """Create submodules and parameters."""
        super().setup()
        config = self.config.language_model
        if config is None:
            raise ValueError("a stage-2 model needs config.language_model, got None")
        self.language_projection = dense(config.embedding_width, self.dtype)
        self.language_model = build_language_model(
            config, self.dtype, self.scan, self.remat
        )

    @property
    def reads_text(self) -> bool:
        """Return True if the Q-Former's text branch is used, for questions."""
        return self.question_in_qformer

    def encode_queries(
        self,
        features: Float[Array, "B P D"],
        question_ids: Int[Array, "B T"] | None = None,
        question_mask: Bool[Array, "B T"] | None = None,
        *,
        gates: Sequence[Float[Array, "B H Q P"]] = (),
        key: PRNGKeyArray | None = None,
    ) -> Float[Array, "B Q D"]:
        """Compute the query outputs for an image and, optionally, a question.

        Args:
          features: from `encode_image`.
          question_ids: Q-Former token ids, `[CLS]` first; None = no question.
          question_mask: True = a real token; a row without any has no question.
          gates: see `QFormer.query_pass`.
          key: dropout key; None = no dropout.

        Raises:
          ValueError: `question_ids` are given, but the model does not read questions or
            `question_mask` is missing.
        """
        if question_ids is not None and not self.question_in_qformer:
            raise ValueError("question_in_qformer is False, but got question_ids")
        image = self.image_keys_values(features)
        if question_ids is None:
            return self.qformer.query_pass(
                self.query_tokens, image, gates=gates, key=key
            )[0]
        if question_mask is None:
            raise ValueError("got question_ids without question_mask")
        return self.qformer.multimodal_pass(
            self.query_tokens,
            question_ids,
            question_mask,
            image,
            queries_only=True,
            gates=gates,
            key=key,
        )

    def project(self, query_output: Float[Array, "B Q D"]) -> Float[Array, "B Q E"]:
        """Project query outputs to the language model's embedding space."""
        return self.language_projection(query_output)

    def training_logits(
        self,
        batch: Mapping[str, Array],
        *,
        features: Float[Array, "B P D"] | None = None,
        key: PRNGKeyArray | None = None,
        language_key: PRNGKeyArray | None = None,
    ) -> Logits:
        """Compute logits, targets and target mask of a batch; see `LanguageModel`.

        Args:
          batch: `image` or `features`, the text fields of the language model's
            family, and `question_ids`, `question_mask` if the model reads questions.
          features: used instead of encoding the batch's images.
          key: dropout key of the Q-Former; None = no dropout.
          language_key: dropout key of the language model; None = no dropout.

        Raises:
          ValueError: the model reads questions, but the batch has no `question_ids`.
        """
        if self.question_in_qformer and "question_ids" not in batch:
            raise ValueError(
                "question_in_qformer is True, but the batch has no question_ids"
            )
        if features is None:
            images = batch["features"] if "features" in batch else batch["image"]
            features = self.encode_image(images)
        queries = self.encode_queries(
            features,
            batch.get("question_ids"),
            batch.get("question_mask"),
            key=key,
        )
        return self.language_model.training_logits(
            self.project(queries), batch, language_key
        )

    def prefill(
        self,
        query_output: Float[Array, "B Q D"],
        prompt_ids: Int[Array, "B T"],
        prompt_mask: Bool[Array, "B T"],
        weights: Any = None,
    ) -> tuple[Float[Array, "B V"], PrefixKV]:
        """Read the projected queries and a prompt, for generation.

        Args:
          query_output: from `encode_queries`.
          prompt_ids: language-model tokens, padded on the left.
          prompt_mask: True = a real token.
          weights: from `LanguageModel.unstacked_weights`; None = the parameters.

        Returns:
          fp32 logits of the first new token, and the KV cache.
        """
        text = self.language_model.embed(prompt_ids)
        queries = self.project(query_output)
        inputs, mask = queries_then_text(queries, text, prompt_mask)
        return self.language_model.prefill(inputs, mask, weights)

    def __call__(self, images: Shaped[Array, "B ..."]) -> None:
        """Run every part once, so that `init` creates all parameters."""
        ids, mask = jnp.zeros((1, 2), jnp.int32), jnp.ones((1, 2), bool)
        text = dict.fromkeys(("text_ids", "input_ids", "target_ids"), ids)
        masks = dict.fromkeys(("text_mask", "input_mask", "target_mask"), mask)
        question = (ids, mask) if self.question_in_qformer else ()
        if question:  # creates the last block's text feed-forward, unused by queries
            self.qformer.text_pass(*question)
        queries = self.encode_queries(self.encode_image(images), *question)
        self.language_model.training_logits(self.project(queries), text | masks)
