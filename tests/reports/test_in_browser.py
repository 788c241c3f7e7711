"""Reports in a real browser: wide and narrow, light, dark and printed, by keyboard.

With `BLIP2_JAX_SCREENSHOTS=DIR` all screenshots are kept. `BLIP2_JAX_DOC_IMAGES=DIR`,
e.g. docs/images, is where those of docs/reports.md are written.
"""

import base64
import json
import os
import pathlib
import re

import pytest
from PIL import Image

import blip2_jax
from blip2_jax.capfilt.counts import CapFiltCounts
from blip2_jax.cli.report import main
from blip2_jax.data.sources.registry import build_source
from blip2_jax.evaluation.examples import write_examples
from blip2_jax.evaluation.shapes_exam import make_exam
from blip2_jax.reports.capfilt_page import capfilt_page, read_examples
from blip2_jax.reports.caption_page import CaptionedImage, caption_page
from blip2_jax.reports.demo_report import demo_page, demo_scores
from tests.reports.test_capfilt_page import SETTINGS, write_tar
from tests.reports.test_demo_report import fake_results
from tests.support.browser import open_browser
from tests.support.run_directories import DATA, write_run_directory

pytestmark = pytest.mark.slow

PAGES = ("run", "runs", "evaluations", "captions", "demo", "capfilt")
# Name, width, dark, printed.
VIEWS = (
    ("wide", 1280, False, False),
    ("wide_dark", 1280, True, False),
    ("phone", 390, False, False),
    ("phone_dark", 390, True, False),
    ("paper", 718, False, True),  # A4 less its margins
    ("paper_of_dark", 718, True, True),
)


@pytest.fixture(scope="module")
def pages(tmp_path_factory) -> pathlib.Path:
    """Write the pages, from a trained model's attention and invented numbers."""
    folder = tmp_path_factory.mktemp("pages")
    first = write_run_directory(folder / "run_a")
    second = write_run_directory(folder / "run_b", seed=1, until=250)
    report(folder / "run", "--runs", first)
    report(folder / "runs", "--runs", first, second)
    report(folder / "evaluations", write_record(folder), "--maps", "3", "--count", "2")
    source = build_source(DATA)
    captioned = [
        CaptionedImage(source.load_image(n), text, source.record(n).captions, f"{n}")
        for n, text in enumerate(["a small red square", "a big blue circle"])
    ]
    page = caption_page("Captions of shapes", "cider 128.1, bleu_4 62.0", captioned)
    (folder / "captions.html").write_text(page)
    exam = make_exam("heldout", 12, 4)
    results = fake_results(exam)
    losses = [{"step": n, "loss_itc": 9 / n, "loss_itm": 1 / n} for n in range(1, 90)]
    scores = demo_scores(results)
    page = demo_page(exam, results, scores, {"stage1": losses}, "a minute")
    (folder / "demo.html").write_text(page)
    counts = CapFiltCounts()
    write_tar(folder / "0.tar", range(4), counts)
    page = capfilt_page(SETTINGS, counts, read_examples([folder / "0.tar"], 4))
    (folder / "capfilt.html").write_text(page)
    return folder


def report(out: pathlib.Path, *arguments: object) -> None:
    """Run the command."""
    assert main([*map(str, arguments), "--out", str(out)]) == 0


def write_record(folder: pathlib.Path) -> pathlib.Path:
    """Write a record of captions by the model of the package."""
    source = build_source(DATA)
    model = blip2_jax.load("shapes")
    images = [source.load_image(n) for n in range(6)]
    examples = [
        {
            "unit": "image",
            "id": n,
            "key": source.record(n).key,
            "said": said,
            "references": list(source.record(n).captions),
            "scores": {"cider": 100.0 * n},
        }
        for n, said in enumerate(model.caption(images))
    ]
    settings = {"model": "shapes", "which": "best", "precision": "", "beside": {}}
    settings |= {"data": [DATA], "max_examples": 6, "paper": {"cider": 145.8}}
    record = {
        "task": "captioning",
        "title": "shapes",
        "scores": {"cider": 250.0},
        "intervals": {"cider": [170.0, 330.0]},
        "notice": "",
        "broken": {},
        "digests": {"model": "a" * 64, "data": "d" * 64},
        "settings": settings,
        "device": "1 cpu",
        "processes": 1,
        "seconds": 2.5,
        "date": "2026-01-01",
    }
    path = folder / "captions.json"
    path.write_text(json.dumps(record))
    write_examples(path.with_suffix(".examples.jsonl"), examples)
    return path


@pytest.fixture(scope="module")
def browser():
    with open_browser() as opened:
        yield opened


def keep(browser, tmp_path: pathlib.Path, name: str, whole: bool = True) -> None:
    folder = pathlib.Path(os.environ.get("BLIP2_JAX_SCREENSHOTS") or tmp_path)
    browser.screenshot(folder / f"{name}.png", whole)


@pytest.mark.parametrize("page", PAGES)
def test_every_view_fits_is_readable_and_has_no_error(pages, page, browser, tmp_path):
    browser.errors()
    for view, width, dark, printed in VIEWS:
        browser.open(pages / f"{page}.html", width, dark, printed)
        assert browser.overflow() <= 0, view
        assert browser.contrast() > (4.5, ""), view
        light_page = (
            browser.run("return getComputedStyle(document.body).backgroundColor")
            == "rgb(255, 255, 255)"
        )
        assert light_page == (printed or not dark), view
        keep(browser, tmp_path, f"{page}_{view}")
    images = browser.run(
        "return [...document.images].map(i => [i.alt, i.complete && i.naturalWidth])"
    )
    assert all(alt and width for alt, width in images)
    ids = browser.run("return [...document.querySelectorAll('[id]')].map(e => e.id)")
    assert len(set(ids)) == len(ids)
    loaded = browser.run(
        "return performance.getEntriesByType('resource').map(e => e.name)"
    )
    assert not [name for name in loaded if not name.startswith("data:")]
    assert not browser.errors()


OPEN = "return document.querySelectorAll(':popover-open').length"
FIRST = "return document.querySelector('.zoom img').getBoundingClientRect().width"
FOCUSED = "return document.activeElement.matches('.zoom button')"


@pytest.mark.parametrize("width", [1280, 390])
def test_a_picture_is_enlarged_by_keyboard_and_by_click(
    pages, width, browser, tmp_path
):
    browser.open(pages / "evaluations.html", width)
    height = browser.run("return document.documentElement.scrollHeight")
    small = browser.run(FIRST)
    while not browser.run(FOCUSED):
        browser.press("TAB")
    browser.press("ENTER")
    assert browser.run(OPEN) == 1 and browser.run(FIRST) > 0.9 * width > small
    assert browser.run("return document.documentElement.scrollHeight") == height
    keep(browser, tmp_path, f"enlarged_{width}", whole=False)
    browser.press("ESCAPE")
    assert browser.run(OPEN) == 0 and browser.run(FIRST) == small
    assert browser.run(FOCUSED)
    button = browser.chrome.find_element("css selector", ".zoom button")
    for opened in (1, 0, 1):
        button.click()
        assert browser.run(OPEN) == opened
    browser.press("ENTER")
    assert browser.run(OPEN) == 0
    assert not browser.errors()


# Of docs/reports.md: page, width, height, dark, and the heading at the top.
DOC_IMAGES = {
    "reports_run": ("run", 1100, 640, False, "Evaluation scores"),
    "reports_phone": ("runs", 390, 780, True, "Losses"),
    "reports_words": ("evaluations", 1000, 520, False, "Where the model looks"),
}
TO_HEADING = """
const heading = [...document.querySelectorAll('h2')].find(
  h => h.textContent.startsWith(arguments[0]));
heading.scrollIntoView();
return heading.getBoundingClientRect().top;
"""


@pytest.mark.parametrize("name", DOC_IMAGES)
def test_images_of_the_documentation_can_be_made(pages, name, browser, tmp_path):
    page, width, height, dark, heading = DOC_IMAGES[name]
    browser.open(pages / f"{page}.html", width, dark, height=height)
    assert browser.run(TO_HEADING, heading) < height
    folder = pathlib.Path(os.environ.get("BLIP2_JAX_DOC_IMAGES") or tmp_path)
    path = browser.small_screenshot(folder / f"{name}.png")
    assert Image.open(path).size == (width, height)
    assert path.stat().st_size < 150_000


def test_a_page_prints_on_few_sheets(pages, browser):
    browser.open(pages / "run.html")
    paper = {"paperWidth": 8.27, "paperHeight": 11.69}
    pdf = browser.chrome.execute_cdp_cmd("Page.printToPDF", paper)
    content = base64.b64decode(pdf["data"])
    assert 2 <= len(re.findall(rb"/Type\s*/Page\b", content)) <= 6


def test_maps_of_the_trained_model_have_labels(pages):
    page = (pages / "evaluations.html").read_text()
    assert "Where the model looks" in page
    assert page.count("<figcaption class=word") >= 3 * 3
