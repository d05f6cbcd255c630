"""A reader of docs/index.html in a browser, and what the page has to show."""

from __future__ import annotations

import functools
import re
import time
from typing import Any

import gpt2
import utils
from picogpt import generate

FOLDER = "picogpt/docs/?runtime=../../runtime"
READY = r"^Ready\. Python computed this text in \d+\.\d\d s\.$"
DEFAULTS = {"prompt": "ROMEO:", "n_tokens": 40, "temperature": 0.8, "top_k": 0, "top_p": 1, "seed": 1}


class Reader:
    """A reader who has opened the page in a browser."""

    def __init__(self, driver, address):
        self.driver = driver
        driver.get_log("browser")
        self.size(1280, 900)
        self.scheme("light")
        driver.get(address)

    def __call__(self, script, *arguments):
        return self.driver.execute_script(script, *arguments)

    def find(self, selector):
        return self.driver.find_element("css selector", selector)

    def text(self, selector):
        return self(f"return document.querySelector({selector!r}).textContent")

    def size(self, width, height):
        settings = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": False}
        self.driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", settings)

    def scheme(self, name):
        features = [{"name": "prefers-color-scheme", "value": name}]
        self.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})

    def press(self, *names):
        from selenium.webdriver import ActionChains, Keys

        for name in names:
            ActionChains(self.driver).send_keys(getattr(Keys, name)).perform()

    def wait(self, selector, pattern, seconds=90):
        """Return the text of an element once it fits a pattern, unless the page shows an error first."""
        end = time.monotonic() + seconds
        while not re.search(pattern, text := self.text(selector)):
            error = self.text("#error")
            assert selector == "#error" or not error, error
            assert time.monotonic() < end, f"{selector}: {text!r}, not {pattern!r}"
            time.sleep(0.02)
        return text

    def fill(self, **fields):
        """Fill fields as a visitor does. At its end, 101, the slider of top_k lets all tokens be drawn."""
        fields |= {"top_k": 101} if fields.get("top_k") == 0 else {}
        self(
            "for (const [id, value] of Object.entries(arguments[0])) { const field = document.getElementById(id);"
            "field.value = value; field.dispatchEvent(new Event('input', { bubbles: true })); }",
            fields,
        )

    def generate(self, **fields):
        self.fill(**fields)
        self.find("#generate").click()

    def text_of(self, **fields):
        """Generate a text, and return the status line of its end."""
        self.generate(**fields)
        return self.wait("#status", "^(Done|Stopped)")

    def steps(self):
        return self("return shownSteps")


@functools.cache
def tiny() -> Any:
    """Open models/tiny outside of the browser."""
    return utils.load_encoder_hparams_and_params("tiny", "models")


def continued(
    prompt: str, n_tokens: int, temperature: float, top_k: int, top_p: float, seed: int
) -> tuple[list[int], str]:
    """Generate with the same settings here. Return the new ids, and the text with the prompt."""
    encoder, hparams, params = tiny()
    words = [prompt, "--temperature", temperature, "--top_k", top_k, "--top_p", top_p, "--seed", seed]
    choose = generate.choosers(generate.parse_args([str(word) for word in words]))[0]
    ids = list(gpt2.generate(encoder.encode(prompt), params, hparams["n_head"], n_tokens, choose))
    return ids, prompt + encoder.decode(ids)
