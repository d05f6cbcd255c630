"""A reader who uses a page in a headless Chromium. The fixtures in conftest.py start it."""

from __future__ import annotations

import json
import re

import numpy as np


class Reader:
    """A reader who has opened a page in the browser."""

    def __init__(self, driver, path):
        self.driver, self.path = driver, path
        self.driver.get_log("performance")
        self.size(1000, 800)
        self.scheme("light")
        driver.get(path.as_uri())

    def __call__(self, script, *arguments):
        return self.driver.execute_script(script, *arguments)

    def find(self, selector):
        return self.driver.find_elements("css selector", selector)

    def text(self, selector):
        return self(f"return document.querySelector({selector!r}).textContent")

    def texts(self, selector):
        return self(f"return [...document.querySelectorAll({selector!r})].map((found) => found.textContent)")

    def strengths(self, canvas):
        """Return how opaque the pixels of a map are, from 0 to 1. It is copied, since reading often logs a warning."""
        script = """const map = arguments[0], copy = new OffscreenCanvas(map.width, map.height);
            const context = copy.getContext("2d", {willReadFrequently: true});
            context.drawImage(map, 0, 0);
            const { data } = context.getImageData(0, 0, map.width, map.height);
            return [...data].filter((_, k) => k % 4 === 3)"""
        return np.reshape(self(script, canvas), (canvas.get_property("height"), -1)) / 255

    def size(self, width, height, mobile=False):
        settings = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": mobile}
        self.driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", settings)

    def scheme(self, name):
        features = [{"name": "prefers-color-scheme", "value": name}]
        self.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})

    def hover(self, element):
        from selenium.webdriver import ActionChains

        ActionChains(self.driver).move_to_element(element).perform()

    def press(self, *names):
        from selenium.webdriver import ActionChains, Keys

        for name in names:
            ActionChains(self.driver).send_keys(getattr(Keys, name)).perform()

    def choose(self, select, value):
        from selenium.webdriver.support.select import Select

        Select(self.find(select)[0]).select_by_visible_text(str(value))

    def token(self, selector):
        """Return the token in a heading."""
        return self.text(f"{selector} .token")

    def lens_cell(self):
        """Return the layer and the token whose predictions the lens shows."""
        return self.text("#predictions-title").split(": predictions after ")[0], self.token("#predictions-title")

    def predictions(self):
        return self.texts("#predictions .token")

    def requests(self):
        """Return the addresses that the browser has asked for since the page was opened."""
        messages = [json.loads(entry["message"])["message"] for entry in self.driver.get_log("performance")]
        return [m["params"]["request"]["url"] for m in messages if m["method"] == "Network.requestWillBeSent"]


def percents(texts):
    return [0.0 if text.endswith("<0.1 %") else float(re.search(r"([\d.]+) %$", text)[1]) for text in texts]
