"""The two parts of a source share no image and together are the whole."""

import json
import pickle

import numpy as np
import pytest

from benchmarks.large_index import write_large_set
from blip2_jax.data.sources.base import BrokenSample
from blip2_jax.data.sources.registry import build_source
from tests.support.generated_data import picture

PARTS = ("train", "held_out")


@pytest.fixture
def spec(tmp_path):
    """Write 20 images with two questions each; one more row is malformed."""
    rows = [{"image": "20.png", "question": 5, "answer": ["a"]}]
    for number in range(20):
        picture(number).save(tmp_path / f"{number}.png")
        rows += [
            {"image": f"{number}.png", "question": f"{number} {n}", "answer": ["a"]}
            for n in (0, 1)
        ]
    path = tmp_path / "rows.json"
    path.write_text(json.dumps(rows))
    images = {"kind": "annotations", "path": str(path), "images": str(tmp_path)}
    return {"kind": "per_question", "of": images}


def split(spec, part, **options):
    return build_source({"kind": "split", "of": spec, "part": part, **options})


def records_of(source):
    """Return the usable records with the pixels of their images."""
    usable = [index for index, key in enumerate(source.keys()) if key]
    return [(source.record(n), source.load_image(n).tobytes()) for n in usable]


def test_parts_are_the_whole_and_share_no_image(spec):
    whole = build_source(spec)
    parts = [split(spec, part, share=0.2) for part in PARTS]
    assert sum(map(len, parts)) == len(whole) == 41
    assert [part.num_images for part in parts] == [17, 4]
    pixels = {record.questions[0].text: image for record, image in records_of(whole)}
    images = []
    for part in parts:
        records = records_of(part)
        assert {record.image_id for record, _ in records} <= set(range(part.num_images))
        for record, image in records:
            assert image == pixels.pop(record.questions[0].text)
        images.append({record.key for record, _ in records})
    assert not pixels and not images[0] & images[1]


def test_the_draw_depends_on_the_seed_alone(spec):
    keys = [split(spec, "held_out", seed=seed).keys() for seed in (0, 0, 1)]
    assert keys[0] == keys[1] != keys[2]


@pytest.mark.parametrize("shared", [True, False], ids=["shared images", "own images"])
def test_the_draw_is_the_one_of_earlier_runs(spec, shared):
    """A run that continues must hold out the same images."""
    spec = spec if shared else spec["of"]
    whole = build_source(spec)
    count = whole.num_images
    order = np.random.default_rng(3).permutation(count)
    held_out = set(order[: round(0.2 * count)].tolist())
    keys, images = whole.keys(), [spec_image(whole, n) for n in range(len(whole))]
    for part in PARTS:
        source = split(spec, part, share=0.2, seed=3)
        chosen = [
            n for n, i in enumerate(images) if (i in held_out) != (part == "train")
        ]
        assert source.keys() == [keys[n] for n in chosen]
        numbers = {i: n for n, i in enumerate(sorted({images[n] for n in chosen}))}
        for index, n in enumerate(chosen):
            if keys[n]:
                assert source.record(index).image_id == numbers[images[n]]


def spec_image(source, index):
    """Image of a record; a broken record counts as that of its own number."""
    try:
        return source.record(index).image_id
    except BrokenSample:
        return index % source.num_images


def test_a_part_of_many_records_is_small(tmp_path):
    """Each worker process gets a copy."""
    spec = write_large_set(tmp_path / "large", 200_000)
    part = split(spec, "train", share=0.1)
    assert len(part) == 180_000 and part.record(179_999).image_id == 179_999
    assert len(pickle.dumps(part)) < 50_000


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"part": "test"}, "part must be train or held_out, not 'test'"),
        ({"share": 1.0}, "share must be between 0 and 1, not 1.0"),
        (
            {"of": {"kind": "shapes", "split": "train", "size": 8}},
            "groups of .* near-duplicates",
        ),
    ],
)
def test_bad_arguments(spec, options, message):
    with pytest.raises(ValueError, match=message):
        build_source({"kind": "split", "of": spec, "part": "train"} | options)
