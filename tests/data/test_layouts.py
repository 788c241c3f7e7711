"""One small data set in every layout gives equal examples, however it is given."""

import pickle

import numpy as np
import pytest

from blip2_jax.data.pipeline import training_batches
from blip2_jax.data.sources.base import Source
from blip2_jax.data.sources.content_digest import TIMES
from blip2_jax.data.sources.layouts import detect_layout
from blip2_jax.data.sources.registry import build_source
from tests.support import layouts
from tests.support.generated_data import bert_directory


@pytest.fixture(params=layouts.WRITERS)
def writer(request):
    """Return the title of a layout and the function that writes it."""
    if request.param == "saved_dataset":
        pytest.importorskip("datasets")
    return layouts.WRITERS[request.param]


@pytest.fixture
def data(writer, tmp_path):
    """Write the data set; return its path and the title of its layout."""
    title, write = writer
    return write(tmp_path / "data"), title


def contents(source: Source) -> list[tuple[tuple[str, ...], bytes]]:
    """Return the captions and pixels of all records."""
    return [
        (source.record(index).captions, source.load_image(index).tobytes())
        for index in range(len(source))
    ]


def test_every_layout_is_recognised_and_gives_equal_examples(data, tmp_path):
    path, title = data
    layout = detect_layout(path, default_split="train")
    assert layout.title == title
    assert (layout.records, layout.captions, layout.broken) == (5, 10, ())
    source = build_source(layout.spec)
    reference = {"kind": "csv", "path": str(layouts.write_csv(tmp_path / "csv"))}
    reference["path"] += "/captions.txt"
    reference["images"] = str(tmp_path / "csv" / "Images")
    expected = contents(build_source(reference))
    assert [texts for texts, _ in expected] == list(map(tuple, layouts.TEXTS))
    assert contents(source) == expected
    assert contents(pickle.loads(pickle.dumps(source))) == expected
    assert len(set(source.keys())) == source.num_images == 5
    assert [source.record(n).image_id for n in range(5)] == list(range(5))


def test_batches_of_every_layout_are_equal(data, tmp_path):
    path, _ = data
    specs = [
        detect_layout(path, default_split="train").spec,
        detect_layout(layouts.write_csv(tmp_path / "csv")).spec,
    ]
    tokenizer = {"qformer": bert_directory(tmp_path / "bert")}
    batches = []
    for spec in specs:
        options = {"train": (spec,), "image": {"size": 28}, "tokenizer": tokenizer}
        stream = training_batches(
            options, "image_text", seed=3, batch_size=4, start_step=2
        )
        batches.append(next(stream))
        assert not stream.broken_stats.counts
        stream.close()
    for key in ("image", "image_id", "text_ids", "text_mask"):
        np.testing.assert_array_equal(batches[0][key], batches[1][key])
    assert batches[0]["_text"] == batches[1]["_text"]


def test_the_description_says_what_was_found(tmp_path):
    path = layouts.write_csv(tmp_path / "data")
    assert str(detect_layout(path)) == (
        f"{path}/captions.txt: CSV; 5 images, 10 captions; "
        f"columns: image 'image', caption 'caption'; images: {path}/Images"
    )


def test_a_run_notices_other_texts_but_not_a_copy(writer, tmp_path, monkeypatch):
    def digests(name):
        path = writer[1](tmp_path / name)
        source = build_source(detect_layout(path, default_split="train").spec)
        return {
            part: value
            for part, value in source.content().items()
            if not part.endswith(TIMES)
        }

    before = digests("before")
    assert digests("copy") == before
    changed = [list(texts) for texts in layouts.TEXTS]
    changed[4][1] = "another text"
    monkeypatch.setattr(layouts, "TEXTS", changed)
    assert digests("changed") != before
