"""The web page in a real browser: every tab, the keyboard, narrow and dark.

The model's results are prepared, so that nothing is compiled; `test_page_actions` runs
the actions with models. Screenshots go to BLIP2_JAX_SCREENSHOTS, if it is set; the
pictures of docs/demo_page.md are some of them.
"""

import os
import pathlib
import re
import shutil
import types

import numpy as np
import pytest

pytest.importorskip("gradio")
pytest.importorskip("selenium")
if not (shutil.which("chromium") and shutil.which("chromedriver")):
    pytest.skip("needs chromium and chromedriver", allow_module_level=True)

import blip2_jax
from blip2_jax.inference.image_index import Hit
from blip2_jax.inference.retriever import Match
from blip2_jax.inference.word_attention import WordAttention
from blip2_jax.serve import page_server
from blip2_jax.serve.page import PageContent
from blip2_jax.serve.page_actions import PageActions
from blip2_jax.serve.requests import AnswerRequest, CaptionRequest, MatchRequest
from blip2_jax.serve.uploads import UploadLimits
from tests.support.browser import (
    button,
    chromium,
    console_errors,
    find,
    screenshot,
    set_viewport,
    wait_for,
)

pytestmark = pytest.mark.slow

TABS = ("Caption", "Chat", "Match and rank", "Where it looked", "Search")


# What the shipped model says about the second example picture.
CAPTION = (
    "at the top right a small purple triangle, at the bottom right a large orange "
    "circle"
)
VISION = types.SimpleNamespace(image_size=64)
MODEL = types.SimpleNamespace(
    model=types.SimpleNamespace(config=types.SimpleNamespace(vision=VISION))
)


class PreparedIndex:
    """An index of example pictures whose searches find the first ones."""

    def __init__(self, folder):
        self.folder = folder
        page_server.draw_pictures(folder, 12)

    def __len__(self):
        return 12

    def path(self, name):
        return self.folder / name

    def search(self, text, top):
        del text
        names = sorted(path.name for path in self.folder.iterdir())[:top]
        return [[Hit(name, 0.5 - 0.01 * i, 0.99) for i, name in enumerate(names)]]


class PreparedActions(PageActions):
    """The actions of the page with prepared results of the model."""

    def __init__(self, folder, can_answer=True):
        self.writer = self.matcher = MODEL
        self.index = PreparedIndex(folder)
        self.limits, self.max_queue = UploadLimits(), 8
        self._can_answer = can_answer

    @property
    def can_answer(self):
        return self._can_answer

    def _ask(self, model, request):
        if isinstance(request, CaptionRequest):
            return [CAPTION]
        if isinstance(request, AnswerRequest):
            return ["no" if "star" in request.question else "two"]
        if isinstance(request, MatchRequest):
            count = len(request.texts)
            return Match(np.linspace(0.2, 0.4, count), np.linspace(0.05, 0.9, count))
        return request.function(self)

    def word_attention(self, path, text, prompt):
        pixels = self.read(path)
        words = (text or CAPTION).split()
        maps = np.zeros((len(words), 2, 2), np.float32)
        maps[:7, 0, 1] = maps[7:, 1, 1] = 1
        return pixels, WordAttention(words, maps)


def content(pictures):
    return PageContent(
        "BLIP-2",
        f"Model: `shapes (shipped)`, stage 2. blip2_jax {blip2_jax.__version__}.",
        pictures,
        page_server.SHAPES_QUESTIONS,
        page_server.SHAPES_TEXTS,
        page_server.SHAPES_SEARCHES,
    )


@pytest.fixture(scope="module")
def shots(tmp_path_factory):
    directory = os.environ.get("BLIP2_JAX_SCREENSHOTS")
    return pathlib.Path(directory or tmp_path_factory.mktemp("screenshots"))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder of the page's files, which gradio uses too."""
    folder = tmp_path_factory.mktemp("page")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("GRADIO_TEMP_DIR", str(folder / "uploads"))
        patch.setenv("GRADIO_ANALYTICS_ENABLED", "False")
        yield folder


@pytest.fixture(scope="module")
def browser(folder):
    """A browser on the page."""
    actions = PreparedActions(folder / "photos")
    pictures = page_server.draw_pictures(folder / "examples", 6)
    page = page_server.serve_page(actions, content(pictures), "127.0.0.1", None)
    with page as url, chromium() as driver:
        set_viewport(driver, 1280, 900)
        driver.get(url)
        wait_for(lambda: button(driver, "Describe the picture"), "page")
        yield driver


def open_tab(driver, name):
    tab = wait_for(lambda: tab_named(driver, name), f"tab {name}")
    driver.execute_script("arguments[0].click()", tab)


def tab_named(driver, name):
    from selenium.webdriver.common.by import By

    tabs = driver.find_elements(By.CSS_SELECTOR, '[role="tab"]')
    return next((tab for tab in tabs if tab.text.strip() == name), None)


def text_field(driver, label):
    from selenium.webdriver.common.by import By

    fields = driver.find_elements(By.CSS_SELECTOR, "label textarea, label input")
    return next(
        field
        for field in fields
        if field.is_displayed()
        and field.find_element(By.XPATH, "./ancestor::label").text.startswith(label)
    )


def test_every_tab_works(browser, shots):
    from selenium.webdriver.common.by import By
    from selenium.webdriver.common.keys import Keys

    examples = wait_for(
        lambda: browser.find_elements(By.CSS_SELECTOR, ".gallery-item"), "examples"
    )
    examples[1].click()
    wait_for(lambda: find(browser, "#picture img"), "picture")
    button(browser, "Describe the picture").click()
    output = lambda: find(browser, "#caption textarea").get_attribute("value")
    caption = wait_for(output, "caption")
    assert re.search("circle|square|triangle|star|cross|ring", caption)
    screenshot(browser, shots / "caption_1280_light.png")

    open_tab(browser, "Chat")
    for number, question in enumerate(("how many things are there?", "is it red?")):
        field = wait_for(lambda: text_field(browser, "Question"), "question")
        field.send_keys(question + Keys.ENTER)
        bots = lambda count=number + 1: (
            len(browser.find_elements(By.CSS_SELECTOR, "#chat .message.bot")) >= count
        )
        wait_for(bots, f"answer {number}")
        wait_for(lambda: not text_field(browser, "Question").get_attribute("value"), "")
    screenshot(browser, shots / "chat_1280_light.png")

    open_tab(browser, "Match and rank")
    wait_for(lambda: button(browser, "Rank the texts"), "button").click()
    rows = lambda: browser.find_elements(By.CSS_SELECTOR, "#scores tbody tr")
    wait_for(lambda: len(rows()) == 4, "scores")
    values = [float(row.find_elements(By.TAG_NAME, "td")[1].text) for row in rows()]
    assert values == sorted(values, reverse=True)
    screenshot(browser, shots / "match_1280_light.png")

    open_tab(browser, "Where it looked")
    wait_for(lambda: button(browser, "Show the words"), "button").click()
    words = lambda: browser.find_elements(By.CSS_SELECTOR, "#words input")
    wait_for(lambda: len(words()) >= 3, "words")
    overlay = lambda: find(browser, "#overlay img").get_attribute("src")
    first = wait_for(overlay, "overlay")
    words()[0].send_keys(Keys.ARROW_RIGHT)  # the keyboard chooses the next word
    wait_for(lambda: overlay() != first, "another overlay")
    screenshot(browser, shots / "words_1280_light.png")

    open_tab(browser, "Search")
    field = wait_for(lambda: text_field(browser, "What to find"), "field")
    field.send_keys("a large blue star" + Keys.ENTER)
    found = lambda: browser.find_elements(By.CSS_SELECTOR, "#found img")
    wait_for(lambda: len(found()) == 8, "pictures")
    wait_for(lambda: all(i.get_property("complete") for i in found()), "loaded")
    screenshot(browser, shots / "search_1280_light.png")
    assert console_errors(browser) == []


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
@pytest.mark.parametrize("width", [1280, 390])
def test_nothing_is_cut_off(browser, shots, width, dark):
    set_viewport(browser, width, 900 if width > 600 else 844, dark=dark)
    browser.refresh()
    wait_for(lambda: button(browser, "Describe the picture"), "page")
    scheme = browser.execute_script("return document.body.classList.contains('dark')")
    assert scheme == dark
    for name in TABS:
        open_tab(browser, name)
        sizes = "return [document.documentElement.scrollWidth, innerWidth]"
        needed, there = browser.execute_script(sizes)
        assert needed <= there, name
        label = f"{name.split()[0].lower()}_{width}_{'dark' if dark else 'light'}"
        screenshot(browser, shots / f"empty_{label}.png")
    assert console_errors(browser) == []


def test_the_keyboard_reaches_and_starts_everything(browser):
    from selenium.webdriver.common.by import By
    from selenium.webdriver.common.keys import Keys

    set_viewport(browser, 1280, 900)
    browser.refresh()
    wait_for(lambda: button(browser, "Describe the picture"), "page")
    body, reached = browser.find_element(By.TAG_NAME, "body"), []
    for _ in range(60):
        body.send_keys(Keys.TAB)
        element = browser.switch_to.active_element
        reached.append(f"{element.get_attribute('role')}:{element.text.strip()}")
        if element.text == "Describe the picture":
            break
    else:
        raise AssertionError(reached)
    assert any("tab:Caption" in name for name in reached)
    browser.switch_to.active_element.send_keys(Keys.ENTER)
    # Without a picture the page says what is missing.
    wait_for(
        lambda: (
            "Choose a picture first" in browser.find_element(By.TAG_NAME, "body").text
        ),
        "message",
    )
    browser.get_log("browser")  # the refused request is not an error of the page


def test_files_that_are_no_pictures_are_refused(browser, tmp_path):
    from selenium.webdriver.common.by import By

    path = tmp_path / "text.png"
    path.write_text("no picture")
    browser.refresh()
    wait_for(lambda: button(browser, "Describe the picture"), "page")
    upload = browser.find_element(By.CSS_SELECTOR, "#picture input[type=file]")
    upload.send_keys(str(path))
    wait_for(lambda: find(browser, "#picture img"), "picture")
    button(browser, "Describe the picture").click()
    page = lambda: browser.find_element(By.TAG_NAME, "body").text
    wait_for(lambda: "not a picture" in page(), "message")
    browser.get_log("browser")


def test_a_model_that_does_not_answer_has_no_chat(browser, folder):
    actions = PreparedActions(folder / "more", can_answer=False)
    with page_server.serve_page(actions, content([]), "127.0.0.1", None) as url:
        browser.get(url)
        wait_for(lambda: button(browser, "Describe the picture"), "page")
        assert tab_named(browser, "Chat") is None
        assert all(tab_named(browser, name) for name in TABS if name != "Chat")
