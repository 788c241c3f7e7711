"""The web page with the trained models of the package, in a real browser.

With `BLIP2_JAX_SCREENSHOTS=DIR` all screenshots are kept. `BLIP2_JAX_DOC_IMAGES=DIR`,
e.g. docs/images, is where those of docs/demo_page.md are written.
"""

import os
import pathlib
import re
import time

import pytest
from PIL import Image

pytest.importorskip("gradio")
pytest.importorskip("selenium")

import blip2_jax
from blip2_jax.inference.image_index import ImageIndex
from blip2_jax.serve import page_server
from blip2_jax.serve.uploads import UploadLimits
from tests.support.browser import open_browser
from tests.support.web_page import (
    CONTROLS,
    FIRST,
    TABS,
    ask,
    caption_of,
    choose_example,
    choose_word,
    click,
    open_tab,
    overlay_source,
    press_at,
    ranked,
    search,
    set_number,
    settled,
    start,
    tab_through,
    upload,
    value,
)

pytestmark = pytest.mark.slow

# Name, width, dark.
VIEWS = (
    ("wide", 1280, False),
    ("wide_dark", 1280, True),
    ("phone", 390, False),
    ("phone_dark", 390, True),
)
TOAST = """
const box = document.querySelector('.toast-body')?.getBoundingClientRect();
return box && [box.left, box.right];
"""
SCHEME = "return document.body.classList.contains('dark')"
QUESTIONS = ("how many things are there?", "what shape is the thing at the top right?")


@pytest.fixture(scope="module")
def models():
    return blip2_jax.load("shapes"), blip2_jax.load("shapes_stage1")


@pytest.fixture(scope="module")
def url(models, tmp_path_factory):
    """Serve the page, with an index of 12 pictures and a limit of one megapixel."""
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


def test_the_keyboard_reaches_and_starts_everything(browser, url):
    start(browser, url)
    press_at(browser, browser.all("#examples button")[2], "ENTER")
    browser.wait(lambda: browser.all("#picture img"), "picture")
    for tab, button in TABS.items():
        press_at(browser, browser.named("[role=tab]", tab), "ENTER")
        start_button = browser.named("button:not([role=tab])", button)
        browser.wait(lambda: settled(browser), tab)
        reached = tab_through(browser)
        missing = [e for e in browser.run(CONTROLS) if e not in reached]
        assert not missing, [e.get_attribute("outerHTML")[:200] for e in missing]
        if tab == "Chat":
            browser.named("textarea", "Question").send_keys(QUESTIONS[0])
        if tab == "Search":
            browser.named("textarea, input", "What to find").send_keys("a star")
        press_at(browser, start_button, "ENTER")
    browser.wait(lambda: browser.all("#found img"), "pictures")
    press_at(browser, browser.named("[role=tab]", "Words"), "ENTER")
    before = browser.wait(lambda: overlay_source(browser), "overlay")
    browser.run("document.querySelector('#words input:checked').focus()")
    browser.press("TAB")  # in gradio every radio button is a stop of its own
    browser.press("SPACE")
    browser.wait(lambda: overlay_source(browser) != before, "another overlay")
    for tab, result in {
        "Rank": "#scores td",
        "Chat": "#chat .bot.message",
        "Caption": "#caption textarea",
    }.items():
        press_at(browser, browser.named("[role=tab]", tab), "ENTER")
        browser.wait(lambda result=result: browser.all(result), result)
    assert value(browser, "#caption textarea")
    assert not browser.errors()


@pytest.mark.parametrize("width", [1280, 390])
def test_what_is_no_picture_or_too_large_is_refused(browser, url, width, tmp_path):
    (tmp_path / "text.png").write_text("no picture")
    Image.new("RGB", (1200, 1000)).save(tmp_path / "large.png")
    blip2_jax.example_image(4, size=300).save(tmp_path / "cross.jpg")
    for name, message in {
        "": "Choose a picture first.",
        "text.png": "The file is not a picture that can be read.",
        "large.png": "The picture has 1.2 million pixels; at most 1 million are read.",
    }.items():
        start(browser, url, width)
        if name:
            upload(browser, tmp_path / name)
        click(browser, FIRST)
        browser.wait(lambda text=message: text in browser.text(), message)
        left, right = browser.wait(lambda: browser.run(TOAST), "message")
        assert left >= 0 and right <= width
        keep(browser, tmp_path, f"refused_{pathlib.Path(name).stem}_{width}", False)
    browser.errors()  # of the text that the browser should show as a picture
    start(browser, url, width)
    upload(browser, tmp_path / "cross.jpg")
    assert "orange cross" in caption_of(browser)
    # Gradio itself reports at each upload that it cannot stream the progress.
    assert all("Method not implemented." in error for error in browser.errors())


def test_the_decoding_settings_count(models, browser, url):
    image = blip2_jax.example_image(3, size=256)
    start(browser, url)
    choose_example(browser, 3)
    browser.all("#decoding button")[0].click()
    browser.wait(lambda: browser.all("#decoding input[type=checkbox]"), "settings")
    set_number(browser, "Beams", 1)
    set_number(browser, "Most tokens", 4)
    expected = models[0].caption(image, num_beams=1, max_new_tokens=4)[0]
    assert caption_of(browser) == expected
    assert len(expected.split()) <= 4
    set_number(browser, "Most tokens", 30)
    browser.all("#decoding input[type=checkbox]")[0].click()
    samples = []
    for seed in (1, 2, 1):
        browser.wait(
            lambda seed=seed: set_number(browser, "Seed", seed) is None, "seed"
        )
        samples.append(caption_of(browser))
    assert samples[0] == samples[2]
    assert len({expected, *samples}) > 2


def test_two_users_are_answered_at_once(models, browser, url):
    with open_browser(offline=False) as other:
        users = {0: browser, 4: other}
        for number, user in users.items():
            start(user, url)
            choose_example(user, number)
        for user in users.values():
            click(user, FIRST)
        for number, user in users.items():
            image = blip2_jax.example_image(number, size=256)
            text = value(user, "#caption textarea")
            assert text == models[0].caption(image)[0]
            assert not user.errors()


def test_a_model_of_stage_1_has_the_tabs_of_what_it_can_do(models, browser):
    with page_server.page_server(models[1]) as url:
        start(browser, url)
        names = [tab.text.strip() for tab in browser.all("[role=tab]")]
        assert names == [name for name in TABS if name != "Chat"]
        choose_example(browser, 0)
        assert re.search("purple triangle", caption_of(browser))
