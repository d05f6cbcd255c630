"""Helpers of the tests that look at a page in a browser."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest


def find_chromium() -> tuple[Any, str, str]:
    """Return selenium's webdriver, and the paths of browser and driver. Skip the test if one of them is missing."""
    webdriver = pytest.importorskip("selenium.webdriver")
    browser = shutil.which("chromium") or shutil.which("google-chrome")
    driver = shutil.which("chromedriver")
    if not browser or not driver:
        pytest.skip("needs chromium and chromedriver (Debian: apt-get install chromium chromium-driver)")
    return webdriver, browser, driver


def start_chromium(*arguments: str) -> Any:
    """Start a headless Chromium, and return selenium's driver. Skip the test if one of them is not installed."""
    webdriver, browser, driver = find_chromium()
    options = webdriver.ChromeOptions()
    options.binary_location = browser
    for argument in ("--headless=new", "--no-sandbox", "--disable-dev-shm-usage", "--hide-scrollbars", *arguments):
        options.add_argument(argument)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    return webdriver.Chrome(options=options, service=webdriver.ChromeService(driver))


def start_firefox() -> Any:
    """Start a headless Firefox, and return selenium's driver. Skip the test if one of them is not installed."""
    webdriver = pytest.importorskip("selenium.webdriver")
    browser = shutil.which("firefox") or shutil.which("firefox-esr")
    driver = shutil.which("geckodriver")
    if not browser or not driver:
        pytest.skip("needs firefox and geckodriver (Debian: apt-get install firefox-esr; geckodriver is on GitHub)")
    options = webdriver.FirefoxOptions()
    options.binary_location = browser
    options.add_argument("-headless")
    return webdriver.Firefox(options=options, service=webdriver.FirefoxService(driver))


def luminance(colour: Sequence[float]) -> float:
    """Return the relative luminance of an sRGB colour, 0 to 1, as WCAG defines it."""
    r, g, b = (c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in np.array(colour) / 255)
    return float(0.2126 * r + 0.7152 * g + 0.0722 * b)


def contrast(a: Sequence[float], b: Sequence[float]) -> float:
    """Return the contrast of two sRGB colours, 1 to 21. WCAG asks for 4.5 between text and what is behind it."""
    darker, lighter = sorted((luminance(a), luminance(b)))
    return (lighter + 0.05) / (darker + 0.05)
