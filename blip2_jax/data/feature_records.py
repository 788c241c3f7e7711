"""Features and texts of an image as the records of a feature cache.

An image has one record of texts (JSON) and one of features for each crop:

    bf16   [P, D] bfloat16
    int8   [P] float32 scales, then [P, D] int8: a value is its integer times the scale
           of its token

An image that another record shares, or that is broken, has features of no bytes.
"""

from __future__ import annotations

import dataclasses
import json
from typing import Any, Literal, get_args

import ml_dtypes
import numpy as np
from jaxtyping import Float, Shaped
from numpy import ndarray as Array

from blip2_jax.data.sources.base import BrokenSample, Record
from blip2_jax.data.sources.checked_rows import take_text
from blip2_jax.data.sources.record_json import record_from_json, record_to_json
from blip2_jax.parallel.files import FileFormatError

FeatureDtype = Literal["bf16", "int8"]
DTYPES: tuple[FeatureDtype, ...] = get_args(FeatureDtype)
_LEVELS = 127  # the largest integer; -128 is not used, so that 0 is 0
_INFINITY = 0x7F80  # bits of bfloat16's infinity; larger ones without sign are NaN


def num_bytes(dtype: FeatureDtype, tokens: int, width: int) -> int:
    """Return the size of the features of one crop."""
    return tokens * width * 2 if dtype == "bf16" else tokens * (width + 4)


def pack_features(features: Float[Array, "P D"], dtype: FeatureDtype) -> bytes:
    """Return the record of features, which must be finite.

    Args:
      features: float32 or bfloat16.
      dtype: "bf16" rounds to 8 significant bits. "int8" rounds to a 127th of the
        largest magnitude of the token: the error is at most a 254th of it, and that of
        the bfloat16 in which it is read.
    """
    if dtype == "bf16":
        return np.asarray(features, ml_dtypes.bfloat16).tobytes()
    values = np.asarray(features, np.float32)
    scales = np.abs(values).max(axis=1) / np.float32(_LEVELS)
    divisors = np.where(scales > 0, scales, 1)
    integers = np.rint(values / divisors[:, None]).astype(np.int8)
    return scales.tobytes() + integers.tobytes()


def unpack_features(
    data: bytes, dtype: FeatureDtype, tokens: int, width: int
) -> Shaped[Array, "P D"]:
    """Return the features of a record in bfloat16.

    Raises:
      ValueError: the record has another size, or the features are not finite.
    """
    if len(data) != num_bytes(dtype, tokens, width):
        raise ValueError(
            f"{len(data)} bytes of features, not {num_bytes(dtype, tokens, width)}"
        )
    if dtype == "bf16":
        features = np.frombuffer(data, ml_dtypes.bfloat16)
    else:
        scales = np.frombuffer(data, np.float32, tokens)
        integers = np.frombuffer(data, np.int8, offset=4 * tokens)
        with np.errstate(invalid="ignore", over="ignore"):  # checked below
            values = integers.reshape(tokens, width) * scales[:, None]
            features = values.astype(ml_dtypes.bfloat16)
    # Thirty times faster than `np.isfinite` of this dtype.
    if (features.view(np.uint16) & 0x7FFF).max() >= _INFINITY:
        raise ValueError("features are not finite")
    return features.reshape(tokens, width)


@dataclasses.dataclass(frozen=True)
class CachedRecord:
    """The texts of a record of a cache and what is known about its image.

    Attributes:
      record: the texts; None if the record is broken.
      broken: (cause, key, detail) of a broken record or image; None if it is whole.
      features: index in the cache of the record that holds the features of the image.
    """

    record: Record | None
    broken: tuple[str, str, str] | None
    features: int

    def readable(self) -> Record:
        """Return the record.

        Raises:
          BrokenSample: it was broken when the cache was written.
        """
        if self.record is None:
            raise BrokenSample(*(self.broken or ("unreadable record", "", "")))
        return self.record

    def check_image(self) -> None:
        """Check that the features are there.

        Raises:
          BrokenSample: the image was broken when the cache was written.
        """
        if self.broken is not None:
            raise BrokenSample(*self.broken)


def pack_record(cached: CachedRecord) -> bytes:
    """Return the record of texts."""
    fields: dict[str, Any] = {"features": cached.features}
    if cached.record is not None:
        fields["record"] = record_to_json(cached.record)
        fields["image"] = cached.record.image_id
    if cached.broken is not None:
        fields["broken"] = cached.broken
    return json.dumps(fields, default=int).encode()  # ids may be NumPy's integers


def unpack_record(data: bytes, name: str) -> CachedRecord:
    """Return the texts of a record.

    Args:
      data: the record.
      name: of the record, for errors.

    Raises:
      FileFormatError: the record is damaged.
    """
    try:
        fields = json.loads(data)
        record: Record | None = None
        broken = fields.get("broken")
        if "record" in fields:
            content, image = fields["record"], int(fields["image"])
            record = record_from_json(
                content, take_text(content.get("key", ""), "key"), image
            )
        if broken is not None:
            cause, key, detail = map(str, broken)
            broken = (cause, key, detail)
        return CachedRecord(record, broken, int(fields["features"]))
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise FileFormatError(f"{name} is damaged: {error!r}") from None
