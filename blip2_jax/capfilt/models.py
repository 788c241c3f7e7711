"""The models of CapFilt: what captions images, and what scores captions.

Both first prepare each image, so that only images of the models' sizes are held.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any, Protocol

from jaxtyping import Float, UInt8
from numpy import ndarray as Array

from blip2_jax.data.images import center_image, evaluation_image
from blip2_jax.data.text.tokenizers import clean_caption
from blip2_jax.generation.decoding_config import CAPTION_DEFAULTS
from blip2_jax.inference.blip_captioner import BlipCaptioner
from blip2_jax.inference.clip_scorer import ClipScorer
from blip2_jax.inference.model import Blip2
from blip2_jax.inference.retriever import Blip2Retriever
from blip2_jax.inference.row_keys import check_seed
from blip2_jax.models.sizes import ViTConfig

Pixels = UInt8[Array, "height width 3"]


@dataclasses.dataclass(frozen=True)
class Sampling:
    """How captions are sampled.

    Attributes:
      num_captions: number of captions of an image.
      top_p: tokens are sampled among the fewest with this total probability.
      max_new_tokens: longest caption; 0: the captioner's default.
      seed: a caption depends on it and on the image's number in the data.
    """

    num_captions: int = 10
    top_p: float = 0.9
    max_new_tokens: int = 0
    seed: int = 0

    def __post_init__(self) -> None:
        """Check the values.

        Raises:
          ValueError: one is out of range.
        """
        check_seed(self.seed)
        CAPTION_DEFAULTS.replace(
            sample=True,
            num_return_sequences=self.num_captions,
            top_p=self.top_p,
            **self.limit(),
        )

    def limit(self) -> dict[str, Any]:
        """Return the setting of the longest caption, if there is one."""
        return {"max_new_tokens": self.max_new_tokens} if self.max_new_tokens else {}


@dataclasses.dataclass(frozen=True)
class ModelName:
    """A model to load.

    Attributes:
      path: file, folder or name of the hub; see `blip2_jax.load`.
      tokenizer: directory or name of the hub, for a file that has none of its own.
    """

    path: str
    tokenizer: str = ""


class Captioner(Protocol):
    """Samples captions."""

    def prepare(self, pixels: Pixels) -> UInt8[Array, "R R 3"]:
        """Resize an image as the model does."""

    def sample(
        self, images: Sequence[UInt8[Array, "R R 3"]], numbers: Sequence[int]
    ) -> list[list[str]]:
        """Sample captions of images.

        Args:
          images: from `prepare`.
          numbers: a number of each image. Its captions depend on the image and the
            number, not on the other images.
        """


class Ranker(Protocol):
    """Scores captions."""

    def prepare(self, pixels: Pixels) -> UInt8[Array, "R R 3"]:
        """Resize an image as the model does."""

    def score(
        self,
        images: Sequence[UInt8[Array, "R R 3"]],
        texts: Sequence[Sequence[str]],
    ) -> list[Float[Array, " texts"]]:
        """Score the similarity of each image with each of its texts.

        Args:
          images: from `prepare`.
          texts: the texts of each image.
        """


@dataclasses.dataclass(frozen=True)
class Blip2Sampler:
    """A model of this package as `Captioner`."""

    model: Blip2
    sampling: Sampling

    def prepare(self, pixels: Pixels) -> UInt8[Array, "R R 3"]:
        """Resize an image; see `Captioner`."""
        return _resize(self.model, pixels)

    def sample(
        self, images: Sequence[UInt8[Array, "R R 3"]], numbers: Sequence[int]
    ) -> list[list[str]]:
        """Sample captions; see `Captioner`."""
        sampling = self.sampling
        captions = self.model.caption(
            list(images),
            sample=True,
            num_return_sequences=sampling.num_captions,
            top_p=sampling.top_p,
            seed=sampling.seed,
            sample_ids=numbers,
            **sampling.limit(),
        )
        return captions if sampling.num_captions > 1 else [[c] for c in captions]


@dataclasses.dataclass(frozen=True)
class BlipSampler:
    """BLIP's captioner as `Captioner`."""

    model: BlipCaptioner
    sampling: Sampling

    def prepare(self, pixels: Pixels) -> UInt8[Array, "R R 3"]:
        """Resize an image; see `Captioner`."""
        return evaluation_image(pixels, self.model.model.config.vision.image_size)

    def sample(
        self, images: Sequence[UInt8[Array, "R R 3"]], numbers: Sequence[int]
    ) -> list[list[str]]:
        """Sample captions; see `Captioner`."""
        sampling = self.sampling
        return self.model.caption(
            list(images),
            sampling.num_captions,
            top_p=sampling.top_p,
            seed=sampling.seed,
            indices=numbers,
            **sampling.limit(),
        )


@dataclasses.dataclass(frozen=True)
class ClipRanker:
    """CLIP as `Ranker`."""

    model: ClipScorer

    def prepare(self, pixels: Pixels) -> UInt8[Array, "R R 3"]:
        """Resize and crop an image; see `Ranker`."""
        return center_image(pixels, self.model.model.config.vision.image_size)

    def score(
        self, images: Sequence[UInt8[Array, "R R 3"]], texts: Sequence[Sequence[str]]
    ) -> list[Float[Array, " texts"]]:
        """Score texts of each image; see `Ranker`."""
        return self.model.image_text_similarity(list(images), texts)


@dataclasses.dataclass(frozen=True)
class Blip2Ranker:
    """A stage-1 model as `Ranker`.

    Attributes:
      model: the model.
      score_name: "itc", the cosine of the contrastive head, or "itm", the probability
        of the matching head.
    """

    model: Blip2Retriever
    score_name: str

    def prepare(self, pixels: Pixels) -> UInt8[Array, "R R 3"]:
        """Resize an image; see `Ranker`."""
        return _resize(self.model, pixels)

    def score(
        self, images: Sequence[UInt8[Array, "R R 3"]], texts: Sequence[Sequence[str]]
    ) -> list[Float[Array, " texts"]]:
        """Score texts of each image; see `Ranker`."""
        keep_case = self.model.qformer_tokenizer.keeps_case
        cleaned = [
            [clean_caption(text, keep_case=keep_case) for text in own] for own in texts
        ]
        return self.model.image_text_similarity(
            list(images), cleaned, score=self.score_name
        )


def _resize(model: Blip2, pixels: Pixels) -> UInt8[Array, "R R 3"]:
    """Resize an image to the size of a model's image encoder."""
    vision = model.model.config.vision
    assert isinstance(vision, ViTConfig)  # see `_check_takes_images`
    return evaluation_image(pixels, vision.image_size)
