"""A headless Chromium that opens reports from files and pages of a local server."""

import base64
import contextlib
import io
import pathlib
import shutil
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from PIL import Image

DARK = {"name": "prefers-color-scheme", "value": "dark"}
LIGHT = {"name": "prefers-color-scheme", "value": "light"}
WAIT = 120.0  # seconds; the first request of a model compiles


@contextlib.contextmanager
def open_browser(offline: bool = True) -> Iterator["Browser"]:
    """Start Chromium with an empty profile; skip the test where there is none.

    Args:
      offline: without network. Pages of a server of this machine need it.
    """
    webdriver = pytest.importorskip("selenium.webdriver")
    program, driver = shutil.which("chromium"), shutil.which("chromedriver")
    if not program or not driver:
        pytest.skip("needs chromium and chromedriver")
    options = webdriver.ChromeOptions()
    options.binary_location = program
    for flag in ("headless=new", "no-sandbox", "disable-dev-shm-usage", "disable-gpu"):
        options.add_argument(f"--{flag}")
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    service = webdriver.ChromeService(executable_path=driver)
    chrome = webdriver.Chrome(options=options, service=service)
    try:
        chrome.execute_cdp_cmd("Network.enable", {})
        if offline:
            chrome.execute_cdp_cmd("Network.emulateNetworkConditions", _OFFLINE)
        chrome.execute_cdp_cmd("Emulation.setScrollbarsHidden", {"hidden": True})
        yield Browser(chrome)
    finally:
        chrome.quit()


_OFFLINE = {
    "offline": True,
    "latency": 0,
    "downloadThroughput": 0,
    "uploadThroughput": 0,
}


# In one call: a page that is drawn anew between two calls loses its elements.
_VISIBLE = """
return [...document.querySelectorAll(arguments[0])].filter(
  e => e.checkVisibility({visibilityProperty: true}) && e.getClientRects().length);
"""


_CUT = """
const cut = [];
for (const node of document.body.querySelectorAll('*')) {
  const texts = [...node.childNodes].filter(n => n.nodeType == 3 && n.data.trim());
  if (!texts.length && !node.matches('button, input, textarea, img')) continue;
  const shown = {visibilityProperty: true, opacityProperty: true};
  if (!node.checkVisibility(shown)) continue;
  const box = node.getBoundingClientRect();
  if (box.width < 2 || box.height < 2) continue;
  const hides = getComputedStyle(node).overflowX == 'hidden' &&
    node.scrollWidth > node.clientWidth + 1;
  if (box.right > innerWidth + 1 || box.left < -1 || hides)
    cut.push(`${node.tagName} ${node.className} ${node.textContent.trim()}`);
}
return cut;
"""
_CONTRAST = """
const rgb = c => c.match(/[\\d.]+/g).slice(0, 3).map(Number);
const light = c => rgb(c).map(v => (v /= 255) <= .03928 ? v / 12.92 :
  ((v + .055) / 1.055) ** 2.4).reduce((s, v, i) => s + v * [.2126, .7152, .0722][i], 0);
const ground = node => { for (; node; node = node.parentElement) {
  const color = getComputedStyle(node).backgroundColor;
  if (!color.endsWith(', 0)')) return color; } return 'rgb(255, 255, 255)'; };
let worst = [21, ''];
for (const node of document.body.querySelectorAll('*')) {
  if (node.matches('script, style')) continue;
  const own = [...node.childNodes].some(n => n.nodeType == 3 && n.data.trim());
  const field = node.matches('textarea, input:not([type=radio], [type=checkbox])') &&
    node.type != 'range' && node.type != 'file';
  if (!own && !field || !node.checkVisibility({visibilityProperty: true})) continue;
  const style = field && !node.value && node.placeholder ?
    getComputedStyle(node, '::placeholder') : getComputedStyle(node);
  const [a, b] = [light(node.closest('svg') ? style.fill : style.color),
                  light(ground(node))].sort((x, y) => y - x);
  const value = (a + .05) / (b + .05);
  if (value < worst[0]) worst = [value, node.value || node.textContent.trim()];
}
return worst;
"""


class Browser:
    """A browser with one page.

    Attributes:
      chrome: selenium's driver.
    """

    def __init__(self, chrome) -> None:
        self.chrome = chrome

    def open(
        self,
        page: pathlib.Path | str,
        width: int = 1280,
        dark: bool = False,
        print_media: bool = False,
        height: int = 844,
    ) -> None:
        """Open a file or a URL in a window as of `view`."""
        self.view(width, dark, print_media, height)
        self.chrome.get(page if isinstance(page, str) else page.resolve().as_uri())

    def view(
        self,
        width: int = 1280,
        dark: bool = False,
        print_media: bool = False,
        height: int = 844,
    ) -> None:
        """Set the window's CSS pixels, and light, dark or paper.

        Below 600 pixels the window is that of a phone.
        """
        self.chrome.execute_cdp_cmd(
            "Emulation.setDeviceMetricsOverride",
            {
                "width": width,
                "height": height,
                "deviceScaleFactor": 1,
                "mobile": width < 600,
            },
        )
        self.chrome.execute_cdp_cmd(
            "Emulation.setEmulatedMedia",
            {
                "media": "print" if print_media else "screen",
                "features": [DARK if dark else LIGHT],
            },
        )

    def run(self, script: str, *arguments):
        """Run JavaScript of the test (not of the page) and return its value."""
        return self.chrome.execute_script(script, *arguments)

    def all(self, selector: str) -> list[Any]:
        """Return the visible elements of a CSS selector."""
        return self.run(_VISIBLE, selector)

    def text(self) -> str:
        """Return the visible text of the page."""
        return self.run("return document.body.innerText")

    def named(self, selector: str, name: str) -> Any:
        """Wait for the visible element with a text or label, and return it."""

        def search() -> Any:
            elements = self.all(selector)
            return next((e for e in elements if self.name_of(e) == name), None)

        return self.wait(search, f"{selector} {name!r}")

    def name_of(self, element) -> str:
        """Return the name by which a screen reader calls an element."""
        return element.accessible_name or element.text.strip()

    def wait(self, check: Callable[[], Any], what: str, seconds: float = WAIT) -> Any:
        """Return the first true result of a function.

        Raises:
          AssertionError: there is none within the time.
        """
        end, reason = time.monotonic() + seconds, ""
        while time.monotonic() < end:
            try:
                if result := check():
                    return result
            except Exception as error:  # the page is being drawn anew
                reason = str(error)
            time.sleep(0.1)
        raise AssertionError(f"no {what} after {seconds:g} s {reason}")

    def press(self, *keys: str) -> None:
        """Press keys, or type texts, where the focus is."""
        from selenium.webdriver import ActionChains, Keys

        typed = [getattr(Keys, key, key) for key in keys]
        ActionChains(self.chrome).send_keys(*typed).perform()

    def focused(self) -> Any:
        """Return the element that has the focus."""
        return self.chrome.switch_to.active_element

    def errors(self) -> list[str]:
        """Return the messages of the console since the last call."""
        return [entry["message"] for entry in self.chrome.get_log("browser")]

    def overflow(self) -> int:
        """Return how many pixels the page is wider than the window."""
        return self.run(
            "return document.documentElement.scrollWidth - "
            "document.documentElement.clientWidth"
        )

    def cut(self) -> list[str]:
        """Return the texts and controls that are cut off or outside of the window."""
        return self.run(_CUT)

    def contrast(self) -> tuple[float, str]:
        """Return the least contrast of a text with its ground, and the text."""
        value, text = self.run(_CONTRAST)
        return value, text

    def screenshot(self, path: pathlib.Path, whole: bool = True) -> pathlib.Path:
        """Write a PNG of the whole page, or of what the window shows."""
        shot = self.chrome.execute_cdp_cmd(
            "Page.captureScreenshot", {"captureBeyondViewport": whole}
        )
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(base64.b64decode(shot["data"]))
        return path

    def small_screenshot(self, path: pathlib.Path, colors: int = 96) -> pathlib.Path:
        """Write a PNG of few colours, and so of few bytes, of what the window shows."""
        content = self.screenshot(path, whole=False).read_bytes()
        image = Image.open(io.BytesIO(content)).convert("RGB")
        image = image.quantize(colors, dither=Image.Dither.NONE)
        image.save(path, optimize=True)
        return path
