"""Dataclasses from options: unknown and missing keys are named."""

import dataclasses

import pytest
from ml_collections import ConfigDict

from blip2_jax.data.dataclass_options import from_options, replace_options


@dataclasses.dataclass(frozen=True)
class Size:
    width: int
    depth: int = 2


def test_from_plain_and_ml_collections_options():
    assert from_options(Size, {"width": 4}, "size") == Size(4, 2)
    assert from_options(Size, ConfigDict({"width": 4, "depth": 1}), "size") == Size(
        4, 1
    )
    assert replace_options(Size(4), {"depth": 3}, "size") == Size(4, 3)


def test_wrong_keys_are_named():
    with pytest.raises(ValueError, match="size has no key 'widht'; its keys are width"):
        from_options(Size, {"widht": 4}, "size")
    with pytest.raises(ValueError, match="size needs the key 'width'"):
        from_options(Size, {"depth": 4}, "size")
    with pytest.raises(ValueError, match="size has no key 'height'"):
        replace_options(Size(4), {"height": 4}, "size")
