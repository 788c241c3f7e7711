"""The page of captioned images."""

import numpy as np

from blip2_jax.data.sources.registry import build_source
from blip2_jax.reports.caption_page import CaptionedImage, caption_page, draw_captioned


def test_a_page_holds_its_images_and_escapes_its_texts():
    pixels = np.zeros((4, 4, 3), np.uint8)
    page = caption_page(
        "Title", "Lead", [CaptionedImage(pixels, "a <b> cat", ["one & two"], "k")]
    )
    assert "data:image/jpeg;base64," in page
    assert "a &lt;b&gt; cat" in page and "one &amp; two" in page
    assert "<meta name=viewport" in page


def test_images_of_features_come_from_the_source_of_their_texts():
    shapes = {"kind": "shapes", "split": "heldout", "size": 6}
    source = build_source(shapes)
    features = {"kind": "features", "path": "nowhere", "texts": shapes}
    keys = [source.record(index).key for index in range(6)] + ["other"]
    examples = [{"key": key, "said": key, "references": []} for key in keys]
    captioned = draw_captioned([features], examples, 3)
    assert len(captioned) == 3
    for image in captioned:
        assert image.caption == image.name
        index = source.keys().index(image.name)
        np.testing.assert_array_equal(image.pixels, source.load_image(index))
    assert len(draw_captioned([shapes], examples, 99)) == 6
