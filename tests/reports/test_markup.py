"""Texts of data and models stay texts of a page, wherever they stand."""

import html.parser
import json

import numpy as np
import pytest

from blip2_jax.evaluation.breakdown import question_type_tables
from blip2_jax.evaluation.compare import group_entries, read_entries
from blip2_jax.evaluation.examples import write_examples
from blip2_jax.reports.caption_page import CaptionedImage, caption_page
from blip2_jax.reports.chart import line_chart
from blip2_jax.reports.markup import Html, concatenate, element
from blip2_jax.reports.record_page import record_markdown, record_page
from blip2_jax.reports.template import render_list, render_page, render_table

EVIL = "'\"></p><script>alert(1)</script><img src=x onerror=alert(1)>&amp;\n| [a](b)"


class Parser(html.parser.HTMLParser):
    """Collects the elements, attributes and texts of a page."""

    def __init__(self, page):
        super().__init__()
        self.names, self.attributes, self.texts = set(), [], []
        self.feed(page)

    def handle_starttag(self, tag, attributes):
        """Collect an element."""
        self.names.add(tag)
        self.attributes += attributes

    def handle_data(self, data):
        """Collect a text."""
        self.texts.append(data)


def check(page, at_least):
    """Check that a page shows the hostile text so often, never as markup."""
    parser = Parser(page)
    assert "script" not in parser.names
    assert not [name for name, _ in parser.attributes if name.startswith("on")]
    sources = [value for name, value in parser.attributes if name == "src"]
    assert all(value.startswith("data:image/") for value in sources)
    values = [value for _, value in parser.attributes if value]
    shown = sum(text.count("<script>") for text in [*parser.texts, *values])
    assert shown >= at_least


def entries_of(tmp_path, task, examples):
    record = {
        "task": task,
        "title": EVIL,
        "scores": {EVIL: 1.0},
        "notice": EVIL,
        "broken": {},
        "digests": {"model": "m", "data": "d"},
        "settings": {"data": [], "paper": {EVIL: 2.0}},
        "device": EVIL,
        "processes": 1,
        "seconds": 1.0,
        "date": EVIL,
    }
    path = tmp_path / "r.json"
    path.write_text(json.dumps(record))
    write_examples(path.with_suffix(".examples.jsonl"), examples)
    return group_entries(read_entries([path]))


class EveryImage:
    """Has an image of every name."""

    def find(self, key):
        """Return an image."""
        return np.zeros((4, 4, 3), np.uint8)


QUESTION = {
    "unit": "question",
    "id": 0,
    "key": EVIL,
    "question": EVIL,
    "said": EVIL,
    "references": [EVIL, EVIL],
    "scores": {"vqa_accuracy": 1.0},
}
SEARCHES = [
    {
        "unit": "image",
        "id": 0,
        "key": EVIL,
        "ranks": {"itm": 0, EVIL: 0},
        "found": [{"text": EVIL, "right": True}],
    },
    {
        "unit": "text",
        "id": 0,
        "owner": 0,
        "said": EVIL,
        "ranks": {"itm": 0, EVIL: 0},
        "found": [{"key": EVIL, "right": False}],
    },
]


@pytest.mark.parametrize("images", [{}, {0: EveryImage()}], ids=["names", "images"])
@pytest.mark.parametrize(
    ("task", "examples"), [("vqa", [QUESTION]), ("retrieval", SEARCHES)]
)
def test_a_report_shows_hostile_texts(tmp_path, task, examples, images):
    examples = [example | {"id": n} for example in examples for n in range(2)]
    groups = entries_of(tmp_path, task, examples)
    tables = question_type_tables(groups)
    check(record_page(groups, tables, images, {EVIL: []}, 1), 20)
    markdown = record_markdown(groups, tables)
    assert "<" not in markdown and "\n| [a](b)" not in markdown


def test_captions_and_names():
    pixels = np.zeros((4, 4, 3), np.uint8)
    page = caption_page(EVIL, EVIL, [CaptionedImage(pixels, EVIL, [EVIL], EVIL)])
    check(page, 6)  # title twice, lead, caption, reference, name


def test_common_parts():
    parts = [render_table([EVIL], [[EVIL]]), render_list([EVIL]), EVIL]
    check(render_page("", parts), 4)
    check(render_page("", [line_chart(EVIL, {EVIL: [(1, 1)]})]), 2)


def test_only_markup_is_not_escaped():
    assert element("p", "<", Html("<br>"), 3) == "<p>&lt;<br>3</p>"
    assert element("img", alt='"', width=3) == '<img alt="&quot;" width=3>'
    assert element("a", class_="b c") == '<a class="b c"></a>'
    mixed = concatenate(["<", element("b", "x")], ", ")
    assert mixed == "&lt;, <b>x</b>" and isinstance(mixed, Html)
    # What is put together in another way is text.
    assert element("p", f"{element('b', 'x')}") == "<p>&lt;b&gt;x&lt;/b&gt;</p>"


def test_a_page_allows_no_scripts():
    assert "default-src 'none'; img-src data:" in render_page("", [])
