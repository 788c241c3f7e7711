"""Random keys of sampling: one for each row, from a seed and the row's number."""

from __future__ import annotations

from collections.abc import Sequence

import jax
import numpy as np
from jaxtyping import Integer, Key, UInt32
from numpy import ndarray as Array

from blip2_jax.data.dataclass_options import is_integer


def check_seed(seed: int) -> None:
    """Check a seed of sampling.

    Raises:
      ValueError: it is no whole number of 64 bits.
    """
    if not is_integer(seed) or not -(2**63) <= seed < 2**63:
        raise ValueError(f"seed={seed!r}: expected a whole number of 64 bits")


def row_numbers(sample_ids: Sequence[int] | None, rows: int) -> UInt32[Array, " rows"]:
    """Return the numbers by which the samples of rows are drawn.

    Args:
      sample_ids: a number below 2**32 for each row; None: its index.
      rows: number of rows.

    Raises:
      ValueError: there is not one such number for each row.
    """
    if sample_ids is None:
        return np.arange(rows, dtype=np.uint32)
    numbers = np.asarray(sample_ids)
    is_number = numbers.dtype.kind in "iu" and numbers.shape == (rows,)
    if not is_number or numbers.min() < 0 or numbers.max() >= 2**32:
        raise ValueError(
            f"sample_ids are {rows} whole numbers below 2**32, one for each row, not "
            f"{sample_ids!r}"
        )
    return numbers.astype(np.uint32)


def row_keys(seed: int, numbers: Integer[Array, " B"]) -> Key[jax.Array, " B"]:
    """Make a random key for each row of a batch, from its number."""
    return _fold_in_rows(jax.random.key(seed), numbers.astype(np.uint32))


@jax.jit
def _fold_in_rows(
    key: Key[jax.Array, ""], numbers: UInt32[jax.Array, " B"]
) -> Key[jax.Array, " B"]:
    return jax.vmap(jax.random.fold_in, (None, 0))(key, numbers)
