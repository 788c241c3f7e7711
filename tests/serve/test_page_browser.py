"""The web page with the trained models of the package, in a real browser.

With `BLIP2_JAX_SCREENSHOTS=DIR` all screenshots are kept. `BLIP2_JAX_DOC_IMAGES=DIR`,
e.g. docs/images, is where those of docs/demo_page.md are written.
"""

import os
import pathlib
import time

import pytest

pytest.importorskip("gradio")
pytest.importorskip("selenium")

import blip2_jax
from blip2_jax.inference.image_index import ImageIndex
from blip2_jax.serve import page_server
from blip2_jax.serve.uploads import UploadLimits
from tests.support.browser import open_browser
from tests.support.web_page import (
    TABS,
    ask,
    caption_of,
    choose_example,
    choose_word,
    click,
    open_tab,
    ranked,
    search,
    settled,
    start,
)

pytestmark = pytest.mark.slow

# Name, width, dark.
VIEWS = (
    ("wide", 1280, False),
    ("wide_dark", 1280, True),
    ("phone", 390, False),
    ("phone_dark", 390, True),
)
SCHEME = "return document.body.classList.contains('dark')"
QUESTIONS = ("how many things are there?", "what shape is the thing at the top right?")


@pytest.fixture(scope="module")
def models():
    return blip2_jax.load("shapes"), blip2_jax.load("shapes_stage1")


@pytest.fixture(scope="module")
def url(models, tmp_path_factory):
    """The page, with an index of 12 pictures and a limit of one megapixel."""
    folder = tmp_path_factory.mktemp("searched")
    page_server.draw_pictures(folder / "pictures", 12)
    ImageIndex.build(models[1], folder / "pictures", folder / "index")
    limits = UploadLimits(pixels=1_000_000)
    index = str(folder / "index")
    with page_server.page_server(*models, index, limits=limits) as url:
        yield url


@pytest.fixture(scope="module")
def browser():
    with open_browser(offline=False) as opened:
        yield opened


def keep(browser, tmp_path, name, whole=True):
    folder = pathlib.Path(os.environ.get("BLIP2_JAX_SCREENSHOTS") or tmp_path)
    browser.screenshot(folder / f"page_{name}.png", whole)


def test_every_tab_shows_what_the_model_says(models, browser, url, tmp_path):
    generator, retriever = models
    image = blip2_jax.example_image(1, size=256)
    start(browser, url)
    choose_example(browser, 1)
    assert caption_of(browser) == generator.caption(image)[0]
    keep_for_docs(browser, tmp_path, "caption", 600)

    open_tab(browser, "Chat")
    answers = generator.converse(image, QUESTIONS)
    assert [ask(browser, text, n) for n, text in enumerate(QUESTIONS)] == answers
    assert answers[0] == "2"

    open_tab(browser, "Rank")
    click(browser, "Rank the texts")
    rows = ranked(browser)
    assert len(rows) == 4
    match = retriever.match(image, [row[0] for row in rows])
    assert [row[1] for row in rows] == [f"{p:.3f}" for p in match.itm.ravel()]
    assert rows == sorted(rows, key=lambda row: -float(row[1]))

    open_tab(browser, "Words")
    click(browser, "Show the words")
    choose_word(browser, "circle")
    keep_for_docs(browser, tmp_path, "words", 830)

    open_tab(browser, "Search")
    found = search(browser, "a small orange cross", 8)
    assert found[0].startswith("shapes04.png") and "match" in found[0]
    keep_for_docs(browser, tmp_path, "search", 970)

    # All results are there: no tab is cut off in any view, and all can be read.
    for view, width, dark in VIEWS:
        browser.view(width, dark, height=844)
        browser.wait(lambda dark=dark: browser.run(SCHEME) == dark, "colours")
        for tab in TABS:
            open_tab(browser, tab)
            assert_fits(browser, (view, tab))
            keep(browser, tmp_path, f"{tab.lower()}_{view}")
    assert not browser.errors()


def assert_fits(browser, view):
    assert browser.overflow() <= 0, view
    assert browser.cut() == [], view
    assert browser.contrast() > (4.5, ""), view


def keep_for_docs(browser, tmp_path, name, height):
    """Write a picture of the documentation, and check its size."""
    folder = pathlib.Path(os.environ.get("BLIP2_JAX_DOC_IMAGES") or tmp_path)
    browser.view(1000, height=height)
    browser.wait(lambda: settled(browser), "page")
    browser.run("document.activeElement.blur(); window.scrollTo(0, 0)")
    time.sleep(0.5)
    path = browser.small_screenshot(folder / f"page_{name}.png", 255)
    assert path.stat().st_size < 60_000
    browser.view(1280, height=900)


@pytest.mark.parametrize(("view", "width", "dark"), VIEWS)
def test_an_empty_page_fits(browser, url, view, width, dark, tmp_path):
    start(browser, url, width, dark)
    for tab in TABS:
        open_tab(browser, tab)
        assert_fits(browser, (view, tab))
        keep(browser, tmp_path, f"empty_{tab.lower()}_{view}")
    browser.all("#decoding button")[0].click()
    browser.wait(lambda: browser.all("#decoding input[type=checkbox]"), "settings")
    browser.all("#decoding input[type=checkbox]")[0].click()
    browser.wait(lambda: "Seed" in browser.text(), "settings of samples")
    browser.wait(lambda: settled(browser), "settings")
    assert_fits(browser, (view, "settings"))
    keep(browser, tmp_path, f"settings_{view}")
    assert not browser.errors()
