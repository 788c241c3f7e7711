"""What a feature cache is made of: the encoder, and how its outputs are stored."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

from ml_collections import ConfigDict

from blip2_jax.data.feature_records import FeatureDtype
from blip2_jax.data.images import ImageConfig
from blip2_jax.inference.image_encoder import (
    ImageEncoder,
    configured_image_encoder,
    open_image_encoder,
)
from blip2_jax.training.train_config import from_plain

_SHARD_BYTES = 2**30  # about
_MAX_SHARD_RECORDS = 4096


@dataclasses.dataclass(frozen=True)
class EncoderRecipe:
    """How a process opens the image encoder.

    Attributes:
      config: a training configuration as JSON, whose encoder it is; None: `spec`.
      spec: see `open_image_encoder`.
      sizes: see there.
      precision: see there.
    """

    config: Mapping[str, Any] | None = None
    spec: str = ""
    sizes: str = ""
    precision: str = "bfloat16"

    def open(self) -> ImageEncoder:
        """Open the encoder; see `open_image_encoder` for the errors."""
        if self.config is not None:
            config: ConfigDict = from_plain(dict(self.config))
            return configured_image_encoder(config)
        return open_image_encoder(self.spec, self.sizes, self.precision)


@dataclasses.dataclass(frozen=True)
class CacheOptions:
    """What is written.

    Attributes:
      dtype: storage of the features.
      crops: random crops of each image; 0 or 1: the whole image, resized as in
        evaluation.
      image: augmentation of the crops; its size is that of the encoder.
      seed: seed of the crops.
      batch_size: images that are encoded together, rounded up to all crops of an image.
      records_per_shard: records of a shard, rounded up to a whole batch; 0: about a
        gigabyte.
    """

    dtype: FeatureDtype = "bf16"
    crops: int = 1
    image: ImageConfig = dataclasses.field(default_factory=ImageConfig)
    seed: int = 0
    batch_size: int = 32
    records_per_shard: int = 0

    def __post_init__(self) -> None:
        """Check the values."""
        if self.crops < 0 or self.batch_size < 1 or self.records_per_shard < 0:
            raise ValueError(
                f"crops {self.crops} and records_per_shard {self.records_per_shard} "
                f"must not be negative, batch_size {self.batch_size} must be positive"
            )
        if self.crops > 1 and not self.image.augment:
            raise ValueError(
                f"{self.crops} crops would be equal, because data.image.augment is off"
            )

    @property
    def num_crops(self) -> int:
        """Number of features of an image."""
        return max(self.crops, 1)

    @property
    def chunk(self) -> int:
        """Records that are encoded together."""
        return max(self.batch_size // self.num_crops, 1)

    def shard_records(self, record_bytes: int) -> int:
        """Return the records of a shard, given the bytes of one."""
        records = self.records_per_shard or min(
            max(_SHARD_BYTES // record_bytes, 1), _MAX_SHARD_RECORDS
        )
        return math.ceil(records / self.chunk) * self.chunk
