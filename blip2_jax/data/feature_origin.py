"""The encoder that computed the features of a source."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any


@dataclasses.dataclass(frozen=True)
class FeatureOrigin:
    """The encoder and the images that features were computed with.

    Attributes:
      cache: directory of the cache.
      encoder: name of the encoder's weights, for messages.
      digest: SHA-256 of all parameters of the encoder, before any cast.
      sizes: fields of the encoder's `ViTConfig`.
      precision: dtype of its matmul inputs.
      num_tokens: tokens of an image.
      width: values of a token.
      crops: random crops of an image; 1: the whole image, resized as in evaluation.
    """

    cache: str
    encoder: str
    digest: str
    sizes: Mapping[str, Any]
    precision: str
    num_tokens: int
    width: int
    crops: int

    @property
    def resolution(self) -> Any:
        """Side of the encoder's images in pixels."""
        return self.sizes.get("image_size")
