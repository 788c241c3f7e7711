"""The page of captioned pictures."""

import numpy as np

from blip2_jax.data.sources.base import Record
from blip2_jax.reports import page


def test_a_page_holds_its_pictures_and_escapes_its_texts():
    shown = page.Shown(np.zeros((4, 4, 3), np.uint8), "a <b> cat", ["one & two"], "k")
    text = page.caption_page("Title", "Lead", [shown])
    assert "data:image/jpeg;base64," in text
    assert "a &lt;b&gt; cat" in text and "one &amp; two" in text


def test_pictures_of_features_come_from_the_source_of_their_texts():
    shapes = {"kind": "shapes", "split": "heldout", "size": 6}
    source = page.build_source(shapes)
    features = {"kind": "features", "path": "nowhere", "texts": shapes}
    records = [source.record(index) for index in range(6)] + [Record("other", 9)]
    captions = {record.image_id: record.key for record in records}
    shown = page.draw_shown([features], records, captions, 3)
    assert len(shown) == 3
    for each in shown:
        assert each.caption == each.name
        index = source.keys().index(each.name)
        np.testing.assert_array_equal(each.pixels, source.load_image(index))
    assert len(page.draw_shown([shapes], records, captions, 99)) == 6
