"""A browser without a window, for tests of pages."""

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

CHROMIUM = ("chromium", "chromium-browser", "google-chrome")


def start() -> Iterator[Any]:
    """A Chromium of 1300 × 900 pixels that is driven by selenium. Skips where one of the three is absent."""
    webdriver = pytest.importorskip("selenium.webdriver", reason="needs selenium, which is not installed")
    browser, driver = next(filter(None, map(shutil.which, CHROMIUM)), None), shutil.which("chromedriver")
    if browser is None or driver is None:
        pytest.skip("needs Chromium and chromedriver, which are not installed (apt-get install chromium-driver)")
    options = webdriver.ChromeOptions()
    options.binary_location = browser
    for word in ("headless=new", "no-sandbox", "disable-gpu", "disable-dev-shm-usage", "window-size=1300,900"):
        options.add_argument(f"--{word}")
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    found = webdriver.Chrome(options=options, service=webdriver.ChromeService(driver))
    found.set_script_timeout(60)
    yield found
    found.quit()


def open_page(browser: Any, path: Path) -> None:
    """Loads a file, which must not make the browser complain, nor load anything else."""
    complaints(browser)
    browser.get(path.absolute().as_uri())
    loaded = browser.execute_script("return performance.getEntriesByType('resource').map((one) => one.name)")
    assert complaints(browser) + loaded == []


def complaints(browser: Any) -> list[str]:
    """The errors that the browser has met since this was last asked."""
    return [entry["message"] for entry in browser.get_log("browser") if entry["level"] == "SEVERE"]
