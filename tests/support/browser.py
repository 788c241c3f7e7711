"""A headless Chromium that opens pages from files, as a reader's browser does."""

import base64
import contextlib
import pathlib
import shutil
from collections.abc import Iterator

import pytest

DARK = {"name": "prefers-color-scheme", "value": "dark"}
LIGHT = {"name": "prefers-color-scheme", "value": "light"}


@contextlib.contextmanager
def open_browser() -> Iterator["Browser"]:
    """Start Chromium without network; the test is skipped where there is none."""
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


class Browser:
    """A browser with one page.

    Attributes:
      chrome: selenium's driver.
    """

    def __init__(self, chrome) -> None:
        self.chrome = chrome

    def open(
        self,
        path: pathlib.Path,
        width: int = 1280,
        dark: bool = False,
        print_media: bool = False,
        height: int = 844,
    ) -> None:
        """Open a file in a window of CSS pixels, light or dark, or as on paper."""
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
        self.chrome.get(path.resolve().as_uri())

    def run(self, script: str, *arguments):
        """Run JavaScript of the test (not of the page) and return its value."""
        return self.chrome.execute_script(script, *arguments)

    def press(self, key: str) -> None:
        """Press a key where the focus is."""
        from selenium.webdriver import ActionChains, Keys

        ActionChains(self.chrome).send_keys(getattr(Keys, key)).perform()

    def errors(self) -> list[str]:
        """Return the messages of the console since the last call."""
        return [entry["message"] for entry in self.chrome.get_log("browser")]

    def overflow(self) -> int:
        """Return how many pixels the page is wider than the window."""
        return self.run(
            "return document.documentElement.scrollWidth - "
            "document.documentElement.clientWidth"
        )

    def screenshot(self, path: pathlib.Path, whole: bool = True) -> pathlib.Path:
        """Write a PNG of the whole page, or of what the window shows."""
        shot = self.chrome.execute_cdp_cmd(
            "Page.captureScreenshot", {"captureBeyondViewport": whole}
        )
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(base64.b64decode(shot["data"]))
        return path
