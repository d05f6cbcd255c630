"""The page in a headless Chromium: what a reader sees, and what mouse and keys do. All tests share one browser."""

from __future__ import annotations

import copy
import dataclasses
import json
import re

import numpy as np
import pytest
from browser import contrast, luminance, start_chromium

from explain import MODELS, ODD_PROMPT, PROMPT
from picogpt import Settings, look_inside, page


@pytest.fixture(scope="module")
def chromium():
    running = start_chromium()
    yield running
    running.quit()


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

    def size(self, width, height):
        settings = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": False}
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
        words = re.findall(r"\w+", self.text("#predictions-title"))
        layers = self.texts("#lens tr:first-child th")[1:]
        return next(layer for layer in layers if layer in words), self.token("#predictions-title")

    def predictions(self):
        return self.texts("#predictions .token")

    def requests(self):
        """Return the addresses that the browser has asked for since the page was opened."""
        messages = [json.loads(entry["message"])["message"] for entry in self.driver.get_log("performance")]
        return [m["params"]["request"]["url"] for m in messages if m["method"] == "Network.requestWillBeSent"]


@pytest.fixture
def opened(chromium, tmp_path):
    """Open a page in the browser. In the end, check that it logged no error and asked for nothing but its own file."""
    readers = []

    def open_page(seen, title="tiny", **first):
        path = tmp_path / f"{len(readers)}.html"
        path.write_text(page(seen, title, **first), encoding="utf-8")
        readers.append(Reader(chromium, path))
        return readers[-1]

    yield open_page
    assert chromium.get_log("browser") == []
    (reader,) = readers
    assert {address for address in reader.requests() if not address.startswith("data:")} == {reader.path.as_uri()}
    assert reader("return performance.getEntriesByType('resource').length") == 0


@pytest.fixture
def reader(opened, inside):
    return opened(inside, layer=3, head=0)


def percents(texts):
    return [0.0 if text.endswith("<0.1 %") else float(re.search(r"([\d.]+) %$", text)[1]) for text in texts]


def test_a_token_under_the_pointer_shows_its_alternatives(reader, inside):
    buttons = reader.find("#tokens button")
    assert reader.texts("#tokens button") == [*inside.texts, "next"]
    reader.hover(buttons[9])
    assert reader.token("#chosen") == "·y"
    assert reader.texts("#facts dd") == ["9", "282", "0.1 %", "10.05 bits", "133", "·+y"]
    best = zip(inside.lens_ids[-1, 8], inside.lens_probs[-1, 8])
    assert reader.texts("#alternatives tr") == [f"{inside.text(id)}{100 * p:.1f} %" for id, p in best]
    reader.hover(buttons[2])
    assert reader.texts("#alternatives .this td")[:2] == ["\\n", "99.7 %"]
    reader.hover(reader.find("h1")[0])
    assert reader.token("#chosen") == ":"  # the token that was chosen before


def test_a_click_chooses_and_the_keys_move(reader, inside):
    reader.find("#tokens button")[5].click()
    reader.hover(reader.find("h1")[0])
    assert reader.token("#chosen") == "ght"
    for keys, expected in [
        (["ARROW_RIGHT"], "·th"),
        (["ARROW_LEFT", "ARROW_LEFT"], "·li"),
        (["HOME"], "ROMEO"),
        (["ARROW_LEFT"], "ROMEO"),
        (["END"], "next"),
        (["ARROW_RIGHT"], "next"),
    ]:
        reader.press(*keys)
        assert reader.texts("#tokens .current") == [expected]
        assert reader("return document.activeElement.textContent") == expected
        assert expected == "next" or reader.token("#chosen") == expected
    assert reader.text("#alternatives tr") == "\\n88.8 %"
    assert reader.texts("#facts dd") == []
    assert reader.token("#from-title") == "?"  # the next token does not look at anything yet


def test_the_tab_key_reaches_everything_once(reader):
    alone = "return [...document.querySelectorAll(arguments[0])].filter((one) => one.tabIndex === 0).length"
    assert [reader(alone, place) for place in ("#tokens button", "#lens td")] == [1, 1]
    reached = []
    for _ in range(4):
        reader.press("TAB")
        reached.append(reader("const at = document.activeElement; return at.id || at.parentElement.id || at.tagName"))
    assert reached == ["tokens", "layer", "head", "TD"]


def test_attention_both_ways_in_the_layer_and_head_that_are_chosen(reader, inside):
    for layer, head, token in [(3, 0, 9), (1, 4, 12), (0, 2, 0), (2, 3, 18)]:
        reader.find("#tokens button")[token].click()
        reader.choose("#layer", layer)
        reader.choose("#head", head)
        probs = inside.attention[layer, head]
        assert reader.token("#from-title") == reader.token("#to-title") == inside.texts[token]
        looks, seen = reader.texts("#from .token"), reader.texts("#to .token")
        assert [re.sub(r"<?[\d.]+ %$", "", text) for text in looks] == inside.texts[: token + 1]
        assert [re.sub(r"<?[\d.]+ %$", "", text) for text in seen] == inside.texts[token:]
        np.testing.assert_allclose(percents(looks), 100 * probs[token, : token + 1], atol=0.052)
        np.testing.assert_allclose(percents(seen), 100 * probs[token:, token], atol=0.052)
    script = """const map = document.querySelector("#map"), context = map.getContext("2d");
        return [...context.getImageData(0, 0, map.width, map.height).data].filter((_, k) => k % 4 === 3)"""
    np.testing.assert_allclose(np.reshape(reader(script), (19, 19)) / 255, np.sqrt(probs), atol=0.01)


def test_a_row_of_the_map_chooses_its_token(reader, inside):
    canvas = reader.find("#map")[0]
    reader("arguments[0].scrollIntoView()", canvas)
    from selenium.webdriver import ActionChains

    height = canvas.size["height"]
    ActionChains(reader.driver).move_to_element_with_offset(canvas, 0, int(height * (4.5 / 19 - 0.5))).click().perform()
    assert reader.token("#chosen") == inside.texts[4]


def test_the_lens_is_a_table_whose_cells_show_their_alternatives(reader, inside):
    assert reader.texts("#lens tr:first-child th")[1:] == ["embedding", "h0", "h1", "h2", "h3"]
    rows = reader.texts("#lens tr")
    for i in range(19):
        assert rows[i + 1] == inside.texts[i] + "".join(inside.text(id) for id in inside.lens_ids[:, i, 0])

    def expected(layer, i):
        best = zip(inside.lens_ids[layer, i], inside.lens_probs[layer, i])
        return [inside.text(id) + ("<0.1 %" if p < 0.0005 else f"{100 * p:.1f} %") for id, p in best]

    cells = reader.find("#lens td[data-index]")
    reader.hover(cells[7 * 5 + 2])
    assert reader.lens_cell() == ("h1", "r")
    assert reader.predictions() == expected(2, 7)
    cells[7 * 5 + 2].click()
    reader.press("ARROW_DOWN", "ARROW_RIGHT")
    assert reader.lens_cell() == ("h2", "ough")
    assert reader.predictions() == expected(3, 8)
    reader.press("ARROW_UP", "ARROW_UP", "ARROW_LEFT")
    assert reader.lens_cell() == ("h1", "·th")
    reader.press("HOME", "ARROW_UP")
    assert reader.lens_cell() == ("embedding", "ROMEO")


def test_keys_with_a_modifier_are_left_to_the_browser(reader):
    script = """arguments[0].focus(); return ["altKey", "ctrlKey", "metaKey", "shiftKey"].map((name) => {
        const event = new KeyboardEvent("keydown", {key: "End", bubbles: true, cancelable: true, [name]: true});
        return arguments[0].dispatchEvent(event); })"""
    assert reader(script, reader.find("#tokens button")[3]) == [True, True, True, False]


def test_the_readout_is_that_of_the_focus_when_the_pointer_has_left(reader):
    cells, buttons = reader.find("#lens td"), reader.find("#tokens button")
    cells[7 * 5 + 2].click()
    focused = ("h1", "r")
    assert reader.lens_cell() == focused
    reader.hover(cells[8 * 5 + 4])
    assert reader.lens_cell() == ("h3", "ough")
    reader.hover(reader.find("#lens th")[0])
    reader.hover(reader.find("h2")[-1])
    assert reader.lens_cell() == focused
    reader.hover(buttons[3])
    reader.hover(reader.find("h1")[0])
    assert reader.lens_cell() == focused
    assert reader("return getComputedStyle(document.activeElement).outlineStyle") == "solid"
    assert reader("return document.querySelector('#readout').ariaLive") == "polite"
    reader("document.activeElement.blur()")
    assert reader.lens_cell() == ("h3", ":")
    buttons[3].click()
    assert reader("return ['details', 'readout'].map((id) => document.getElementById(id).ariaLive)") == [
        "polite",
        "off",
    ]


def test_the_tab_key_begins_with_the_token_that_is_shown(reader):
    reader.press("TAB")
    assert reader.token("#chosen") == reader("return document.activeElement.textContent") == ":"


@pytest.mark.parametrize("width", [360, 1200])
def test_the_token_or_cell_in_use_stays_in_view_together_with_its_numbers(opened, width):
    seen = look_inside("\n".join([PROMPT] * 3) + " 中文 😀", "tiny", MODELS)
    assert len(seen.ids) > 60
    reader = opened(seen)
    reader.size(width, 700)
    in_view = """const box = arguments[0].getBoundingClientRect(), x = Math.max(box.left, 0) + 20;
        return [box.top + 4, box.bottom - 4].every((y) => arguments[0].contains(document.elementFromPoint(x, y)))"""
    details, readout = reader.find("#details")[0], reader.find("#readout")[0]
    for button in reader.find("#tokens button")[::5]:
        reader("arguments[0].focus()", button)
        assert reader(in_view, button)
        assert reader(in_view, details)
    cells = reader.find("#lens td")
    top = "return arguments[0].getBoundingClientRect().top"
    for cell in cells[::47]:
        reader("arguments[0].focus()", cell)
        assert reader(in_view, cell)
        assert reader(in_view, readout)
    reader("arguments[0].scrollIntoView({block: 'center'})", cells[-1])
    before = reader(top, cells[-1])
    for cell in cells[-5:]:
        reader.hover(cell)
        assert reader(top, cells[-1]) == before
    heights = "return arguments[0].map((cell) => (readOut(cell), document.querySelector('#readout').offsetHeight))"
    assert len({*reader(heights, [*range(len(cells))])}) == 1
    assert reader("return document.documentElement.scrollWidth") <= width


def test_a_token_with_probability_0_has_no_rank(opened):
    seen = look_inside(PROMPT, "tiny", MODELS, settings=Settings(temperature=0))
    reader = opened(seen)
    ranks = []
    for button in reader.find("#tokens button")[1:-1]:
        button.click()
        ranks.append(reader.texts("#facts dd")[4])
    assert [rank == "–" for rank in ranks] == (seen.probs[1:] == 0).tolist()
    assert len({*ranks}) == 2


@pytest.mark.parametrize("width", [320, 360, 1000])
def test_nothing_is_wider_than_the_screen(reader, width):
    reader.size(width, 700)
    assert reader("return document.documentElement.scrollWidth") <= width
    small = reader("return [...document.querySelectorAll('button, select')].filter((e) => e.offsetHeight < 30).length")
    assert small == 0


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_can_be_read_on_every_colour(reader, scheme):
    """WCAG asks for a contrast of 4.5. Check text on the page, on a panel, and on a token of any probability."""
    reader.scheme(scheme)
    style = reader(
        "const s = getComputedStyle(document.documentElement); return Object.fromEntries("
        "['--ink', '--faint', '--paper', '--panel', '--hot'].map((n) => [n, s.getPropertyValue(n).trim()]))"
    )
    ink, faint, paper, panel = (
        [int(c, 16) for c in re.findall("..?" if len(style[n]) > 4 else ".", style[n][1:])]
        for n in ("--ink", "--faint", "--paper", "--panel")
    )
    paper = [c * 17 if len(style["--paper"]) == 4 else c for c in paper]
    hottest = 0.7 * np.array([float(c) for c in style["--hot"].split()]) + 0.3 * np.array(paper)
    for front, back in [(ink, paper), (ink, panel), (faint, paper), (faint, panel), (ink, hottest)]:
        assert contrast(front, back) >= 4.5
    assert (luminance(paper) > 0.5) == (scheme == "light")
    assert reader("return getComputedStyle(document.body).backgroundColor") == "rgb({}, {}, {})".format(*paper)


def test_whatever_the_prompt_says_is_text(opened):
    seen = look_inside(ODD_PROMPT, "tiny", MODELS)
    reader = opened(seen, title=ODD_PROMPT)
    assert reader.texts("#tokens button") == [*seen.texts, "next"]
    assert reader.text("#about") == ODD_PROMPT
    assert len(reader.find("script")) == 2
    reader.press("TAB", "END", "ARROW_LEFT")
    assert reader.token("#chosen") == seen.texts[-1]


def test_a_token_that_looks_like_html_is_text_everywhere(opened, inside):
    encoder = copy.copy(inside.encoder)
    encoder.token_bytes = lambda id: f"<img src=x onerror=alert({id})>&lt;</script>".encode()
    seen = dataclasses.replace(inside, encoder=encoder)
    assert seen.texts[0] == "<img·src=x·onerror=alert(813)>&lt;</script>"
    reader = opened(seen, title="<b>&amp;</b>")
    places = ("#tokens", "#from", "#to", "#predictions", "#lens", "#alternatives", "#chosen", "#predictions-title")
    for place in places:
        assert any(text.startswith("<img·src=x·onerror=alert(") for text in reader.texts(f"{place} .token")), place
    assert reader.text("#about") == "<b>&amp;</b>"
    assert not reader.find("img, b")
    assert len(reader.find("script")) == 2


def test_a_single_token(opened):
    reader = opened(look_inside("a", "tiny", MODELS))
    assert reader.texts("#from .token") == ["a100.0 %"]
    reader.press("TAB", "HOME")
    assert reader.token("#chosen") == "a"
    assert reader.texts("#alternatives tr") == []
