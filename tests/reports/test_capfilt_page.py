"""The page about CapFilt: its texts are escaped, its charts and counts are right."""

import json
import re

import numpy as np

from blip2_jax.capfilt.candidates import collect_candidates, rank_candidates
from blip2_jax.capfilt.counts import CapFiltCounts
from blip2_jax.data.sources.base import BrokenSample
from blip2_jax.data.sources.reading import EncodedImage
from blip2_jax.data.tar_writer import open_tar_writer
from blip2_jax.reports.capfilt_page import capfilt_page, read_examples, web_share
from blip2_jax.reports.chart import histogram
from tests.support.generated_data import encoded, picture

SETTINGS = {"captioner": {"path": "<c>"}, "ranker": {"path": "r & s"}, "keep": 2}


def write_tar(path, numbers, counts):
    with open_tar_writer(path) as tar:
        for number in numbers:
            candidates = collect_candidates(
                [f"<script>alert({number})</script>"], ["a & b", "a & b!", "c"]
            )
            ranked = rank_candidates(candidates, np.array([0.1, 0.9, 0.5]), 2)
            counts.add_image(ranked)
            image = EncodedImage(encoded(picture(number), "PNG"), "png")
            tar.write(f"{number:09d}", image, ranked.as_json() | {"key": f"<{number}>"})


def test_a_page_shows_examples_of_all_tars(tmp_path):
    counts = CapFiltCounts()
    paths = [tmp_path / f"{number}.tar" for number in range(3)]
    for number, path in enumerate(paths):
        write_tar(path, range(3 * number, 3 * number + 3), counts)
    counts.add_broken(BrokenSample("truncated image", "<img src=x>"))
    examples = read_examples(paths, 6)
    keys = [content["key"] for _, content in examples]
    assert keys == ["<0>", "<1>", "<3>", "<4>", "<6>", "<7>"]
    assert len(read_examples(paths, 2)) == 2 and len(read_examples(paths, 99)) == 9
    assert read_examples([], 4) == read_examples(paths, 0) == []
    page = capfilt_page(SETTINGS, counts, examples)
    assert "<script" not in page and "<img src=x" not in page
    assert "&lt;script&gt;alert(0)" in page and "&lt;c&gt;" in page
    assert page.count("data:image/jpeg;base64,") == 6
    assert ">0.900</span> a &amp; b <" in page and "(2 times)" in page
    assert page.count("(web)") == 1 + 6
    assert "truncated image: &lt;img src=x&gt;" in page
    assert web_share(counts) == "0 of 9 web captions are kept (0.0 %)"
    assert json.loads(json.dumps(counts.as_json()))["images"] == 9


def test_a_histogram_escapes_names_and_leaves_out_empty_series():
    chart = histogram("a<b", {"x&y": {-1: 2, 3: 6}, "empty": {}}, 0.01)
    assert "a&lt;b" in chart and "x&amp;y <tspan" in chart and "empty" not in chart
    assert ">-0.01<" in chart and ">0.04<" in chart and ">80 %<" in chart
    (bins,) = re.findall('d="(M[^"]*Z)"', chart)
    assert bins.count("H") == 5
    assert "0.00" in histogram("nothing", {}, 0.01)
