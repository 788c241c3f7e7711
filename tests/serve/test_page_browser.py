"""The web page in a real browser: every tab, the keyboard, narrow and dark.

Screenshots go to BLIP2_JAX_SCREENSHOTS, if it is set; docs/images/page_*.png are some.
"""

import os
import pathlib
import re
import select
import shutil
import signal
import subprocess
import sys

import pytest

from tests.support.browser import (
    WAIT,
    button,
    chromium,
    console_errors,
    find,
    screenshot,
    set_viewport,
    wait_for,
)

pytest.importorskip("gradio")
pytest.importorskip("selenium")
if not (shutil.which("chromium") and shutil.which("chromedriver")):
    pytest.skip("needs chromium and chromedriver", allow_module_level=True)
pytestmark = pytest.mark.slow

TABS = ("Caption", "Chat", "Match and rank", "Where it looked", "Search")


def serve(*options):
    """Start the command; return the process and the URL that it prints."""
    command = [sys.executable, "-m", "blip2_jax.cli.main", "web", *options]
    cache = os.environ.get("JAX_COMPILATION_CACHE_DIR", "off")
    process = subprocess.Popen(
        [*command, f"--compile_cache={cache}"], stdout=subprocess.PIPE, text=True
    )
    ready, _, _ = select.select([process.stdout], [], [], WAIT)
    line = process.stdout.readline() if ready else ""
    match = re.search(r"http://127\.0\.0\.1:\d+", line)
    if not match:
        process.kill()
        raise AssertionError(f"no address: {line!r}")
    return process, match[0]


def stop(process):
    process.send_signal(signal.SIGINT)
    process.wait(60)


@pytest.fixture(scope="module")
def shots(tmp_path_factory):
    directory = os.environ.get("BLIP2_JAX_SCREENSHOTS")
    return pathlib.Path(directory or tmp_path_factory.mktemp("screenshots"))


@pytest.fixture(scope="module")
def browser():
    """A browser on the page of the shipped models."""
    process, url = serve()
    try:
        with chromium() as driver:
            set_viewport(driver, 1280, 900)
            driver.get(url)
            wait_for(lambda: button(driver, "Describe the picture"), "page")
            yield driver
    finally:
        stop(process)


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


def test_a_stage1_model_has_its_own_tabs():
    process, url = serve("--model", "shapes_stage1")
    try:
        with chromium() as driver:
            driver.get(url)
            wait_for(lambda: button(driver, "Describe the picture"), "page")
            assert tab_named(driver, "Chat") is None
            assert all(tab_named(driver, t) for t in TABS if t != "Chat")
    finally:
        stop(process)
