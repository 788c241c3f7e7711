"""What a user does on the web page, done in a browser."""

import time

# Each tab with the button that starts its action.
TABS = {
    "Caption": "Describe the picture",
    "Chat": "Ask",
    "Rank": "Rank the texts",
    "Words": "Show the words",
    "Search": "Search",
}
FIRST = "Describe the picture"  # the button that shows first


def start(browser, url, width=1280, dark=False):
    """Open the page and wait until it can be used."""
    browser.errors()
    browser.open(url, width, dark, height=900 if width > 600 else 844)
    browser.named("button", FIRST)
    named = "return document.querySelector('#examples button').ariaLabel"
    browser.wait(lambda: browser.run(named), "names of the example pictures")


def open_tab(browser, name):
    browser.run("arguments[0].click()", browser.named("[role=tab]", name))
    browser.named("button", TABS[name])
    # At a tab's first sight its parts come in one after the other.
    browser.wait(lambda: settled(browser), f"tab {name}")


def settled(browser) -> bool:
    """Return True if the page stays as high as it is, with all pictures loaded."""
    height = "return document.documentElement.scrollHeight"
    loaded = (
        "return [...document.images].every(i => i.complete || !i.checkVisibility())"
    )
    first = browser.run(height)
    time.sleep(0.4)
    return browser.run(loaded) and browser.run(height) == first


def choose_example(browser, number):
    browser.all("#examples button")[number].click()
    browser.wait(lambda: browser.all("#picture img"), "picture")


def click(browser, name):
    browser.named("button:not([role=tab])", name).click()


def value(browser, selector):
    """Wait for the value of a field, and return it."""
    return browser.wait(
        lambda: browser.all(selector)[0].get_property("value"), selector
    )


def caption_of(browser):
    """Press the button and return the next caption."""
    output = "#caption textarea"
    browser.run("document.querySelector(arguments[0]).value = ''", output)
    click(browser, FIRST)
    return value(browser, output)


def ask(browser, question, number):
    """Ask a question, the n-th of the conversation; return the answer."""
    browser.named("textarea", "Question").send_keys(question + "\n")
    bubbles = lambda: browser.all("#chat .bot.message")
    browser.wait(lambda: len(bubbles()) > number, "answer")
    empty = lambda: not browser.named("textarea", "Question").get_property("value")
    browser.wait(empty, "empty field")
    return bubbles()[number].text


def ranked(browser):
    """Return the rows of the table of scores."""
    cells = browser.wait(lambda: browser.all("#scores td"), "scores")
    texts = [cell.text for cell in cells]
    return [texts[i : i + 3] for i in range(0, len(texts), 3)]


def overlay_source(browser):
    return browser.all("#overlay img")[0].get_attribute("src")


def choose_word(browser, word):
    """Choose a word and wait for its overlay."""
    words = browser.wait(lambda: browser.all("#words label"), "words")
    before = browser.wait(lambda: overlay_source(browser), "overlay")
    next(label for label in words if label.text.strip() == word).click()
    browser.wait(lambda: overlay_source(browser) != before, "another overlay")


def search(browser, text, count):
    """Search; return the captions of the pictures that are found."""
    browser.named("textarea, input", "What to find").send_keys(text + "\n")
    captions = lambda: browser.all("#found .caption-label")
    browser.wait(lambda: len(captions()) == count, "pictures")
    return [caption.text for caption in captions()]


def upload(browser, path):
    """Upload a file as the picture."""
    field = "#picture input[type=file]"
    browser.chrome.find_element("css selector", field).send_keys(str(path))
    there = "return document.querySelector('#picture img') != null"
    browser.wait(lambda: browser.run(there), "picture")  # may be a broken one


def set_number(browser, label, number):
    """Write a number into the field of a setting."""
    fields = browser.all("#decoding input[type=number]")
    name = lambda field: browser.name_of(field)
    field = next(field for field in fields if label in name(field))
    browser.run("arguments[0].select()", field)
    field.send_keys(f"{number}\t")


# All that is to be used, but radio buttons.
CONTROLS = """
return [...document.querySelectorAll('button, input, textarea, a, [role=tab]')].filter(
  e => e.checkVisibility({visibilityProperty: true}) && e.getClientRects().length &&
    !e.disabled && e.type != 'radio' && e.type != 'file' && !e.closest('.toast-wrap'));
"""
FOCUS = """
const e = document.activeElement, labels = [...(e.labels || [])];
const name = e.ariaLabel || labels.map(l => l.innerText).join(' ') || e.innerText;
return [e, e == document.body, getComputedStyle(e).outlineStyle, name];
"""


def tab_through(browser):
    """Press Tab from where the focus is, once around; return what it reached."""
    reached = []
    for _ in range(100):
        browser.press("TAB")
        element, is_end, outline, name = browser.run(FOCUS)
        if element in reached:
            return reached
        if is_end:  # the next one is the first
            continue
        assert outline == "solid", name
        assert name.strip(), element.get_attribute("outerHTML")
        reached.append(element)
    raise AssertionError("Tab does not come back")


def press_at(browser, element, key):
    """Press a key where the focus is put."""
    browser.run("arguments[0].focus()", element)
    browser.press(key)
