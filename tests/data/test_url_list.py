"""Lists of URLs with downloaded images: CC3M, CC12M, SBU."""

import json
import zlib

import pytest

from blip2_jax.data.sources.base import BrokenSample
from blip2_jax.data.sources.layouts import detect_layout
from blip2_jax.data.sources.registry import build_source
from tests.support.layouts import IMAGES

URLS = [f"https://example.com/{number}.png?a=b" for number in range(4)]


def write_cc3m(folder, suffix=".jpg"):
    """Write CC3M's list, and two images under the names of LAVIS' script."""
    lines = [f'caption {n}, "quoted\t{url}' for n, url in enumerate(URLS)]
    (folder / "cc3m.tsv").write_text("\n".join(lines) + "\n")
    (folder / "images").mkdir()
    for number in (0, 3):
        name = f"{number}_{zlib.crc32(URLS[number].encode())}{suffix}"
        (folder / "images" / name).write_bytes(IMAGES[number])
    return {
        "kind": "url_list",
        "path": str(folder / "cc3m.tsv"),
        "images": str(folder / "images"),
    }


@pytest.mark.parametrize("suffix", [".jpg", ""])
def test_rows_whose_image_was_not_downloaded_are_left_out(tmp_path, suffix):
    spec = write_cc3m(tmp_path, suffix)
    layout = detect_layout(tmp_path)
    assert layout.spec == spec
    assert "2 images that were not downloaded left out" in str(layout)
    source = build_source(spec)
    captions = [source.record(index).captions for index in range(len(source))]
    assert captions == [('caption 0, "quoted',), ('caption 3, "quoted',)]
    assert source.encoded_image(1) == IMAGES[3]


def test_names_by_row_in_folders(tmp_path):
    spec = write_cc3m(tmp_path)
    (tmp_path / "images" / "00").mkdir()
    (tmp_path / "images" / "00" / "000000002.jpg").write_bytes(IMAGES[2])
    source = build_source({**spec, "image_name": "00/{row:09d}.jpg"})
    assert [source.record(n).captions for n in range(len(source))] == [
        ('caption 2, "quoted',)
    ]
    with pytest.raises(ValueError, match=r"'\{number\}' is no format of row"):
        build_source({**spec, "image_name": "{number}"})


def test_errors_name_file_and_line(tmp_path):
    spec = write_cc3m(tmp_path)
    with open(spec["path"], "a") as file:
        file.write("no tab\nhttp://a.b/c.jpg\tcaption\n")
    broken = []
    source = build_source(spec)
    for index in range(len(source)):
        try:
            source.record(index)
        except BrokenSample as error:
            broken.append(str(error))
    reason = "(the line does not hold a URL and a caption)"
    assert broken == [
        f"malformed row: {spec['path']} line {n} {reason}" for n in (5, 6)
    ]
    (tmp_path / "none").mkdir()
    with pytest.raises(
        FileNotFoundError, match=r"no image of .*cc3m\.tsv is in .*none"
    ):
        build_source({**spec, "images": str(tmp_path / "none")})
    path = tmp_path / "text.tsv"
    path.write_text("a\tb\n")
    with pytest.raises(ValueError, match=r"text\.tsv is no list of URLs"):
        build_source({**spec, "path": str(path)})


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"image_urls": []}, "has no lists image_urls and captions"),
        ({"image_urls": {}, "captions": []}, "are no lists"),
        ({"image_urls": ["x"], "captions": []}, "has 1 image_urls, but 0 captions"),
    ],
)
def test_other_contents_than_parallel_lists(tmp_path, content, message):
    path = tmp_path / "sbu.json"
    path.write_text(json.dumps(content))
    with pytest.raises(ValueError, match=rf"sbu\.json.* {message}"):
        build_source({"kind": "url_list", "path": str(path), "images": str(tmp_path)})
