"""A headless Chromium, and what tests look for on a page."""

from __future__ import annotations

import contextlib
import pathlib
import shutil
import time
from collections.abc import Callable, Iterator
from typing import Any

WAIT = 600.0  # seconds; a first request compiles


@contextlib.contextmanager
def chromium(width: int = 1280, height: int = 900) -> Iterator[Any]:
    """Start a browser with an empty profile."""
    from selenium import webdriver

    options = webdriver.ChromeOptions()
    for argument in (
        "--headless=new",
        "--no-sandbox",
        "--disable-dev-shm-usage",
        f"--window-size={width},{height}",
    ):
        options.add_argument(argument)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    options.binary_location = shutil.which("chromium")
    service = webdriver.ChromeService(shutil.which("chromedriver"))
    driver = webdriver.Chrome(options, service)
    driver.set_page_load_timeout(WAIT)
    driver.set_script_timeout(WAIT)
    try:
        yield driver
    finally:
        driver.quit()


def set_viewport(driver: Any, width: int, height: int, *, dark: bool = False) -> None:
    """Set the size of the page and the colour scheme that the browser asks for."""
    metrics = {"width": width, "height": height, "deviceScaleFactor": 1}
    driver.execute_cdp_cmd(
        "Emulation.setDeviceMetricsOverride", metrics | {"mobile": width < 600}
    )
    scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
    driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [scheme]})


def wait_for(check: Callable[[], Any], what: str, seconds: float = WAIT) -> Any:
    """Return the first true result of a function."""
    end, last = time.monotonic() + seconds, ""
    while time.monotonic() < end:
        try:
            if result := check():
                return result
        except Exception as error:  # the page is being drawn anew
            last = str(error)
        time.sleep(0.3)
    raise AssertionError(f"no {what} after {seconds} s {last}")


def find(driver: Any, selector: str) -> Any:
    """Return the first visible element of a CSS selector; None: there is none."""
    from selenium.webdriver.common.by import By

    elements = driver.find_elements(By.CSS_SELECTOR, selector)
    return next((element for element in elements if element.is_displayed()), None)


def button(driver: Any, text: str) -> Any:
    """Return the visible button with a text."""
    from selenium.webdriver.common.by import By

    elements = driver.find_elements(By.TAG_NAME, "button")
    return next((e for e in elements if e.text == text and e.is_displayed()), None)


def console_errors(driver: Any) -> list[str]:
    """Return what the browser's console has reported as errors."""
    entries = driver.get_log("browser")
    return [entry["message"] for entry in entries if entry["level"] == "SEVERE"]


def screenshot(driver: Any, path: pathlib.Path) -> None:
    """Write what the browser shows to a small PNG of 256 colours."""
    import io

    from PIL import Image

    image = Image.open(io.BytesIO(driver.get_screenshot_as_png())).convert("RGB")
    path.parent.mkdir(parents=True, exist_ok=True)
    image.quantize(256).save(path, optimize=True)
