"""Visual Genome as released and as LAVIS publishes it."""

import json

import pytest

from blip2_jax.data.sources.base import BrokenSample
from blip2_jax.data.sources.layouts import detect_layout
from blip2_jax.data.sources.registry import build_source
from tests.support import layouts


@pytest.mark.parametrize("flat", [False, True])
@pytest.mark.parametrize("name", ["visual_genome", "visual_genome_of_lavis"])
def test_images_are_in_two_folders_or_in_one(tmp_path, name, flat):
    path = layouts.WRITERS[name][1](tmp_path)
    if flat:
        for folder in ("VG_100K", "VG_100K_2"):
            for image in list((tmp_path / "images" / folder).iterdir()):
                image.rename(tmp_path / "images" / image.name)
            (tmp_path / "images" / folder).rmdir()
    source = build_source(detect_layout(path).spec)
    expected = [1, 2, 3, 4, 5] if name == "visual_genome" else ["vg_1", "vg_2"]
    for index, original in enumerate(expected):
        record = source.record(index)
        folder = "" if flat else ("VG_100K/", "VG_100K_2/")[index % 2]
        assert record.key == f"{folder}{index + 1}.jpg"
        assert record.original_id == original
        assert source.encoded_image(index) == layouts.IMAGES[index]


def test_broken_images_are_named(tmp_path):
    layouts.write_visual_genome(tmp_path)
    path = tmp_path / "region_descriptions.json"
    content = json.loads(path.read_text())
    content[1]["regions"][0]["phrase"] = None
    del content[2]["id"]
    content[3]["id"] = 99
    path.write_text(json.dumps(content))
    spec = {
        "kind": "visual_genome",
        "path": str(path),
        "images": str(tmp_path / "images"),
    }
    source = build_source(spec)
    with pytest.raises(
        BrokenSample, match=r"image 2 \(phrase\[0\] is null, not a text"
    ):
        source.record(1)
    with pytest.raises(BrokenSample, match=r"image 3 \(the image has no id"):
        source.record(2)
    with pytest.raises(BrokenSample, match=r"missing image: 99\.jpg"):
        source.load_image(3)
    for content in ("[", "{}", "[[]]"):
        path.write_text(content)
        with pytest.raises(ValueError, match=r"region_descriptions\.json"):
            build_source(spec)
