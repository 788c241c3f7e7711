"""Interpolated position embeddings against torch's."""

import numpy as np
import pytest

from blip2_jax.convert.positions import interpolate_positions
from blip2_jax.models.sizes import ViTConfig


def encoder(side, **sizes):
    """Return the sizes of an image encoder with so many patches on a side."""
    return ViTConfig(1, 1, 1, 1, image_size=side, patch_size=1, **sizes)


@pytest.mark.parametrize("sizes", [(4, 6), (16, 26), (6, 4)])
@pytest.mark.parametrize("tower", ["eva", "clip"])
def test_equals_the_original(goldens, sizes, tower):
    arrays = np.load(goldens / "misc" / "pos_embed_interp.npz")
    old, new = sizes
    name = "in_6to4" if sizes == (6, 4) else f"in_{old}to{new}"
    vision = encoder(new, pre_norm=tower == "clip")
    resized = interpolate_positions(arrays[name][0], vision)
    expected = arrays[f"{tower}_{old}to{new}"].reshape(new * new + 1, -1)
    np.testing.assert_allclose(resized, expected, rtol=1e-4, atol=1e-5)
    assert resized.dtype == np.float32


def test_same_size_is_untouched():
    positions = np.ones((17, 3), np.float16)
    assert interpolate_positions(positions, encoder(4)) is positions


def test_a_grid_must_be_square():
    with pytest.raises(ValueError, match="square"):
        interpolate_positions(np.ones((13, 3)), encoder(4))
