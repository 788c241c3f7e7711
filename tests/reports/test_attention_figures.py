"""Attention maps: which queries are shown, and where an overlay is bright."""

import numpy as np
import pytest

from blip2_jax.reports.attention_figures import (
    PictureMaps,
    render_maps,
    telling_queries,
)
from blip2_jax.reports.heat import MIN_SIDE, colors, overlay, scale


def test_an_overlay_is_coloured_where_the_map_is_high():
    maps = np.full((1, 4, 4), 0.1, np.float32)
    maps[0, 0, 0] = 0.4
    drawn = overlay(np.full((64, 64, 3), 200, np.uint8), scale(maps)[0]).astype(int)
    assert drawn.shape == (256, 256, 3) and min(drawn.shape[:2]) >= MIN_SIDE
    red, _, blue = drawn[10, 10]
    assert red > 200 and red - blue > 80
    low = drawn[-10, -10]
    assert low.max() < 160 and np.ptp(low) <= 1


def test_wide_pictures_keep_their_form():
    pixels = np.zeros((30, 90, 3), np.uint8)
    assert overlay(pixels, np.zeros((7, 7), np.float32)).shape == (240, 720, 3)


def test_colours_become_lighter_with_attention():
    lightness = colors(np.linspace(0, 1, 20)) @ np.array([0.3, 0.6, 0.1])
    assert (np.diff(lightness) > 0).all()


@pytest.mark.parametrize("value", [0.0, 0.3, np.nan, np.inf])
def test_flat_and_broken_maps_are_dark(value):
    assert (scale(np.full((2, 3, 3), value, np.float32)) == 0).all()


def test_a_broken_value_leaves_the_rest_of_a_map():
    maps = np.zeros((1, 3, 3), np.float32)
    maps[0, 1, 1], maps[0, 0, 0] = 2.0, np.nan
    scaled = scale(maps)[0]
    assert scaled[1, 1] == 1 and scaled.sum() == 1


def test_telling_queries_are_concentrated_and_differ():
    flat = np.full((4, 4), 1 / 16)
    left, right = np.zeros((4, 4)), np.zeros((4, 4))
    left[0, 0] = right[3, 3] = 1.0
    maps = np.stack([flat, left, left, flat, right])
    shown = telling_queries(np.zeros((8, 8, 3), np.uint8), maps, 2)
    assert set(shown.labels) == {"query 2", "query 5"}
    shown = telling_queries(np.zeros((8, 8, 3), np.uint8), maps, 9)
    assert len(set(shown.labels)) == len(shown.maps) == 5


def test_each_word_has_a_picture_with_a_label_and_a_description():
    words = ["a", "<red>", "circle"]
    pixels, maps = (
        np.zeros((8, 8, 3), np.uint8),
        np.random.default_rng(0).random((3, 4, 4)),
    )
    page = render_maps([PictureMaps(pixels, words, maps, "a <red> circle")])
    assert page.count("data:image/png") == 4 and page.count("alt=") == 4
    assert "&lt;red&gt;</figcaption>" in page and "<red>" not in page
    assert "generated text" in page
