"""An opened model of another kind than BLIP-2: sizes, parameters and tokenizer."""

from __future__ import annotations

import dataclasses
from typing import Generic, TypeVar

from blip2_jax.convert.converted_arrays import ConvertedArrays

C = TypeVar("C")


@dataclasses.dataclass(frozen=True)
class OpenedModel(Generic[C]):
    """A model to load.

    Attributes:
      config: sizes.
      arrays: parameters by path, read on access.
      tokenizer: a directory or a name of the hub; "" for none.
    """

    config: C
    arrays: ConvertedArrays
    tokenizer: str
