"""`ClipScorer`: the similarity of images and texts by CLIP (Radford et al. 2021).

    scorer = blip2_jax.load_clip("openai/clip-vit-large-patch14")
    scorer.image_text_similarity(["a.jpg"], [["a cat", "a dog on a sofa"]])

As in the original, images are resized to their shorter side and cropped, and texts are
cut to the tower's positions (77). An image's or text's vector does not depend on the
others of a call.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from jaxtyping import Bool, Float, Int, PyTree, UInt8
from numpy import ndarray as Array

from blip2_jax.convert.vocabulary import check_rows
from blip2_jax.data.images import center_image
from blip2_jax.data.text.tokenizers import ClipTokenizer, pad_rows
from blip2_jax.inference import inputs, programs
from blip2_jax.models.vision.clip import LEGACY_END_ID, Clip
from blip2_jax.parallel import hosts


class ClipScorer:
    """CLIP with its parameters and tokenizer.

    Attributes:
      model: the Flax module.
      params: its parameters.
      tokenizer: CLIP's.
      batch_size: number of images, or of texts, of the largest compiled program.
      origin: where the model comes from.
    """

    def __init__(
        self,
        model: Clip,
        params: PyTree,
        tokenizer: ClipTokenizer,
        *,
        batch_size: int = 64,
        origin: str = "",
    ):
        """Build a scorer from its parts; `load_clip` does so from files.

        Raises:
          ValueError: the tokenizer is not that of the model, or `batch_size` is below
            1.
        """
        inputs.check_batch_size(batch_size)
        _check_tokenizer(tokenizer, model)
        self.model, self.params, self.tokenizer = model, params, tokenizer
        self.batch_size, self.origin = batch_size, origin

    def __repr__(self) -> str:
        return f"ClipScorer({self.origin or 'built from parts'})"

    def image_text_similarity(
        self, images: Any, texts: Sequence[Sequence[str]]
    ) -> list[Float[Array, " texts"]]:
        """Compute the similarity of each image with texts of its own.

        Args:
          images: one image (see `blip2_jax.inference.user_images.as_pixels`) or
            several.
          texts: a list of texts for each image; their numbers may differ.

        Returns:
          For each image the cosines, in [-1, 1], with its texts.

        Raises:
          ValueError: there are not as many lists as images, or a list is empty.
        """
        if isinstance(texts, str) or any(isinstance(row, str) for row in texts):
            raise ValueError("texts are a list of texts for each image, not one list")
        rows = [inputs.as_texts(row, "texts") for row in texts]
        vectors = self.embed_images(images)
        if len(rows) != len(vectors):
            raise ValueError(f"{len(rows)} lists of texts for {len(vectors)} images")
        text_vectors = self.embed_texts([text for row in rows for text in row])
        ends = np.cumsum([len(row) for row in rows])[:-1]
        return [
            own_texts @ image
            for image, own_texts in zip(
                vectors, np.split(text_vectors, ends), strict=True
            )
        ]

    def similarity(
        self, images: Any, texts: str | Sequence[str]
    ) -> Float[Array, "images texts"]:
        """Compute the cosine, in [-1, 1], of every image with every text."""
        return self.embed_images(images) @ self.embed_texts(texts).T

    def embed_images(self, images: Any) -> Float[Array, "B C"]:
        """Compute fp32 unit vectors of images."""
        size = self.model.config.vision.image_size
        pixels = inputs.as_images(images, size, center_image)
        vectors = []
        for batch, padded in inputs.batches(len(pixels), self.batch_size):
            rows = inputs.pad_batch(pixels[batch], padded)
            output = hosts.to_host(embed_images(self.model, self.params, rows))
            vectors.append(output[: batch.stop - batch.start])
        return np.concatenate(vectors)

    def embed_texts(self, texts: str | Sequence[str]) -> Float[Array, "B C"]:
        """Compute fp32 unit vectors of texts.

        Each text is padded to the next of a few lengths, whatever the other texts are.
        """
        limit = self.model.config.text.max_positions
        rows = [
            self.tokenizer.encode(text, limit)
            for text in inputs.as_texts(texts, "texts")
        ]
        lengths = np.array([min(inputs.padded_length(len(r)), limit) for r in rows])
        vectors = np.empty((len(rows), self.model.config.projection_dim), np.float32)
        for length in np.unique(lengths):
            members = np.flatnonzero(lengths == length)
            for batch, size in inputs.batches(len(members), self.batch_size):
                chosen = members[batch]
                ids, mask = pad_rows(
                    [rows[index] for index in chosen],
                    int(length),
                    self.tokenizer.end_id,
                )
                output = embed_texts(
                    self.model,
                    self.params,
                    inputs.pad_batch(ids, size),
                    inputs.pad_batch(mask, size),
                )
                vectors[chosen] = hosts.to_host(output)[: len(chosen)]
        return vectors


def _check_tokenizer(tokenizer: ClipTokenizer, model: Clip) -> None:
    """Check that the tokenizer's ids are those of the model.

    Raises:
      ValueError: they are not; the message has both numbers.
    """
    config = model.config
    check_rows("text tower of CLIP", tokenizer.vocab_size, config.text.vocab_size)
    expected = config.end_id
    if expected == LEGACY_END_ID:  # the token with the highest id
        expected = tokenizer.vocab_size - 1
    if tokenizer.end_id != expected:
        raise ValueError(
            f"the end token is {tokenizer.end_id} in the tokenizer and {expected} in "
            "CLIP: choose the tokenizer of this model"
        )


@programs.compile_function(static=("model",))
def embed_images(
    model: Clip, params: PyTree, images: UInt8[jax.Array, "B R R 3"]
) -> Float[jax.Array, "B C"]:
    """Compute unit vectors of uint8 images."""
    return model.bind({"params": params}).encode_image(images)


@programs.compile_function(static=("model",))
def embed_texts(
    model: Clip,
    params: PyTree,
    ids: Int[jax.Array, "B T"],
    mask: Bool[jax.Array, "B T"],
) -> Float[jax.Array, "B C"]:
    """Compute unit vectors of texts; see `Clip.encode_text`."""
    return model.bind({"params": params}).encode_text(ids, mask)
