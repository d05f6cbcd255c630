"""The page in a headless Chromium: what a reader sees, and what mouse and keys do. All tests share one browser."""

from __future__ import annotations

import copy
import dataclasses
import json
import re
import shutil
from itertools import pairwise

import numpy as np
import pytest

from explain import MODELS, ODD_PROMPT, PROMPT
from picogpt import Settings, look_inside, page
from picogpt.explain.numbers import examine
from picogpt.explain.text import one_line
from utils import visible


@pytest.fixture(scope="module")
def chromium():
    webdriver = pytest.importorskip("selenium.webdriver")
    browser = shutil.which("chromium") or shutil.which("google-chrome")
    driver = shutil.which("chromedriver")
    if not browser or not driver:
        pytest.skip("needs chromium and chromedriver (Debian: apt-get install chromium chromium-driver)")
    options = webdriver.ChromeOptions()
    options.binary_location = browser
    for argument in ("--headless=new", "--no-sandbox", "--disable-dev-shm-usage", "--hide-scrollbars"):
        options.add_argument(argument)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    running = webdriver.Chrome(options=options, service=webdriver.ChromeService(driver))
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

    def strengths(self, canvas):
        """Return how opaque the pixels of a map are, from 0 to 1. It is copied, since reading often logs a warning."""
        script = """const map = arguments[0], copy = new OffscreenCanvas(map.width, map.height);
            const context = copy.getContext("2d", {willReadFrequently: true});
            context.drawImage(map, 0, 0);
            const { data } = context.getImageData(0, 0, map.width, map.height);
            return [...data].filter((_, k) => k % 4 === 3)"""
        return np.reshape(self(script, canvas), (canvas.get_property("height"), -1)) / 255

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
        return self.text("#predictions-title").split(": predictions after ")[0], self.token("#predictions-title")

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
    assert [reader(alone, place) for place in ("#tokens button", "#heads button", "#lens td")] == [1, 1, 1]
    reached = []
    for _ in range(5):
        reader.press("TAB")
        reached.append(reader("const at = document.activeElement; return at.id || at.parentElement.id || at.tagName"))
    assert reached == ["tokens", "layer", "head", "heads", "TD"]


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
    np.testing.assert_allclose(reader.strengths(reader.find("#map")[0]), np.sqrt(probs), atol=0.01)


def test_a_row_of_the_map_chooses_its_token(reader, inside):
    canvas = reader.find("#map")[0]
    reader("arguments[0].scrollIntoView()", canvas)
    from selenium.webdriver import ActionChains

    height = canvas.size["height"]
    ActionChains(reader.driver).move_to_element_with_offset(canvas, 0, int(height * (4.5 / 19 - 0.5))).click().perform()
    assert reader.token("#chosen") == inside.texts[4]


def test_the_map_names_its_rows_and_columns_and_marks_the_row_of_the_token(reader, inside):
    assert reader.texts("#map-rows .token") == reader.texts("#map-columns .token") == inside.texts
    middle = """const [box, map] = [arguments[0], document.querySelector("#map")].map((e) => e.getBoundingClientRect());
        return [box.left + box.width / 2 - map.left, box.top + box.height / 2 - map.top].map((x) => x / map.width)"""
    for i, (row, column) in enumerate(zip(reader.find("#map-rows .token"), reader.find("#map-columns .token"))):
        assert reader(middle, row)[1] == pytest.approx((i + 0.5) / 19, abs=0.004)
        assert reader(middle, column)[0] == pytest.approx((i + 0.5) / 19, abs=0.004)
    for i in (9, 18, 0):
        reader.find("#tokens button")[i].click()
        assert reader.texts("#map-rows .current") == [inside.texts[i]]
        assert reader(middle, reader.find("#map-row")[0]) == pytest.approx([0.5, (i + 0.5) / 19], abs=0.004)


@pytest.mark.parametrize("width", [360, 1000])
def test_labels_of_the_map_do_not_overlap_and_the_marked_row_has_one(opened, width):
    seen = look_inside("\n".join([PROMPT] * 3), "tiny", MODELS)
    reader = opened(seen)
    reader.size(width, 700)
    reader("choose(7)")
    tops = reader("return [...document.querySelectorAll('#map-rows .token:not(.current)')].map((e) => e.offsetTop)")
    assert 5 < len(tops) < len(seen.ids)
    assert min(b - a for a, b in pairwise(tops)) >= 14
    assert reader.texts("#map-rows .current") == [seen.texts[7]]


def test_the_map_shows_the_value_under_the_pointer(reader, inside):
    from selenium.webdriver import ActionChains

    canvas = reader.find("#map")[0]
    reader("arguments[0].scrollIntoView({block: 'center'})", canvas)
    width, height = canvas.size["width"], canvas.size["height"]

    def hover(i, j):
        place = int(width * ((j + 0.5) / 19 - 0.5)), int(height * ((i + 0.5) / 19 - 0.5))
        ActionChains(reader.driver).move_to_element_with_offset(canvas, *place).perform()
        return reader.text("#map-value")

    assert hover(9, 3) == f"·y attends to What: {100 * inside.attention[3, 0, 9, 3]:.1f} %"
    assert reader("return document.querySelector('#map-cell').style.top") == f"{900 / 19:.4f}%"
    assert hover(3, 9) == "What can't look at ·y, which comes later"
    reader.hover(reader.find("#map-title")[0])
    assert reader.text("#map-value").startswith("Hover over")
    assert reader("return document.querySelector('#map-cell').hidden")


def test_small_maps_of_all_heads_choose_one(reader, inside):
    for layer in (3, 1):
        reader.choose("#layer", layer)
        for head, canvas in enumerate(reader.find("#heads canvas")):
            np.testing.assert_allclose(reader.strengths(canvas), np.sqrt(inside.attention[layer, head]), atol=0.01)
    pressed = "#heads [aria-pressed=true]"
    reader.find("#heads button")[2].click()
    assert (reader.texts(pressed), reader.text("#map-title")) == (["head 2"], "All tokens in layer 1, head 2")
    reader.press("ARROW_RIGHT")
    assert (reader.texts(pressed), reader.text("#map-title")) == (["head 3"], "All tokens in layer 1, head 3")
    assert reader("return document.querySelector('#head').value") == "3"
    looks = percents(reader.texts("#from .token"))
    np.testing.assert_allclose(looks, 100 * inside.attention[1, 3, 1, :2], atol=0.052)
    reader.choose("#head", 0)
    assert reader.texts(pressed) == ["head 0"]
    assert reader("return [...document.querySelectorAll('#heads button')].map((e) => e.tabIndex)") == [
        0,
        -1,
        -1,
        -1,
        -1,
    ]


def test_a_small_map_of_a_long_text_shows_the_largest_of_each_block(opened):
    seen = look_inside(PROMPT * 6, "tiny", MODELS)
    n = len(seen.ids)
    assert 88 < n <= 176
    reader = opened(seen)
    size = -(-n // 2)
    padded = np.pad(seen.attention[0, 0], (0, 2 * size - n))
    expected = np.sqrt(padded.reshape(size, 2, size, 2).max(axis=(1, 3)))
    np.testing.assert_allclose(reader.strengths(reader.find("#heads canvas")[0]), expected, atol=0.01)


def test_only_chosen_tokens_are_shown_and_earlier_ones_are_summed(opened, inside):
    reader = opened(inside, layer=3, tokens=slice(5, 9))
    assert reader.texts("#tokens button") == [*inside.texts[5:9], "next"]
    buttons = reader.find("#tokens button")
    buttons[0].click()
    assert reader.texts("#facts dd")[0] == "5"
    assert reader.text("#alternatives-title") == f"Predictions after {inside.texts[4]}"
    best = zip(inside.lens_ids[-1, 4], inside.lens_probs[-1, 4])
    assert reader.texts("#alternatives td:first-child") == [inside.text(id) for id, _ in best]
    buttons[2].click()
    looks = reader.texts("#from .token")
    assert looks[0].startswith("earlier tokens")
    row = inside.attention[3, 0, 7]
    np.testing.assert_allclose(percents(looks), 100 * np.array([row[:5].sum(), *row[5:8]]), atol=0.06)
    for i in range(4):
        cells = "".join(inside.text(id) for id in inside.lens_ids[:, 5 + i, 0])
        assert reader.texts("#lens tr")[i + 1] == inside.texts[5 + i] + cells


def test_a_part_of_a_character_is_named_everywhere_and_its_bytes_are_a_fact(opened, odd):
    reader = opened(odd)
    for place in ("#tokens button", "#lens th", "#map-rows .token", "#map-columns .token"):
        assert "你 2/3" in reader.texts(place), place
    reader.find("#tokens button")[2].click()
    assert reader.token("#chosen") == reader.token("#from-title") == "你 2/3"
    assert reader.texts("#facts dd")[-2:] == ["\\xbd", "a single byte"]


@pytest.fixture(scope="module")
def deep(tiny):
    """Return the numbers of a model with 16 layers, whose lens has more columns than a small window has room for."""
    encoder, hparams, params = tiny
    deeper = params | {"blocks": params["blocks"] * 4}
    return examine(encoder.encode(PROMPT + " 中文"), encoder, deeper, hparams["n_head"])


def test_the_lens_uses_the_width_of_the_window_and_begins_with_the_last_layers(opened, deep):
    reader = opened(deep)
    script = """const [box, last] = [".scroll", "#lens td:last-child"].map((name) => document.querySelector(name));
        return [box.offsetWidth, box.scrollWidth, last.getBoundingClientRect().right]"""
    for width in (360, 1400):
        reader.size(width, 800)
        reader.driver.refresh()
        box, content, right = reader(script)
        assert content > box == width - 32
        assert right == pytest.approx(width - 17, abs=1)
    reader.size(3000, 800)
    box, content, _ = reader(script)
    assert 960 < box == content < 2968
    reader.press(*["TAB"] * 5)
    assert reader.lens_cell() == ("layer 15", "ROMEO")
    reader.size(1000, 800)
    reader.press(*["ARROW_LEFT"] * 16)
    assert reader.lens_cell() == ("embedding", "ROMEO")
    cell, head = (
        f"document.querySelector('#lens {part}').getBoundingClientRect()" for part in ("td:focus", "th.token")
    )
    assert reader(f"return {cell}.left - {head}.right") >= -1  # the column that stays in place does not hide it


def test_on_paper_all_layers_fit_with_their_colours(opened, deep):
    reader = opened(deep)
    reader.scheme("dark")
    reader.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": "print"})
    reader.size(1000, 700)
    try:
        box, content, shown = reader("""const box = document.querySelector(".scroll");
            return [box.clientWidth, box.scrollWidth, getComputedStyle(box).overflowX]""")
        assert content <= box <= 1000
        assert shown == "visible"
        cut = "return [...document.querySelectorAll('#lens td, #lens th')].filter((e) => e.scrollWidth > e.clientWidth)"
        assert reader(cut) == []
        kept = "return [...document.querySelectorAll('.shaded')].map((e) => getComputedStyle(e).printColorAdjust)"
        assert {*reader(kept)} == {"exact"}
        assert reader("return getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
        assert reader("return getComputedStyle(document.querySelector('#details')).position") == "static"
    finally:
        reader.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": ""})


@pytest.mark.parametrize("width", [320, 1000])
def test_the_legend_is_one_line(reader, width):
    reader.size(width, 700)
    assert reader.texts("#legend span") == ["1 %", "10 %", "50 %", "100 %"]
    boxes = "[...document.querySelectorAll('#legend span')].map((e) => e.getClientRects())"
    assert reader(f"return {boxes}.map((rects) => rects.length)") == [1] * 4
    assert len({*reader(f"return {boxes}.map((rects) => rects[0].top)")}) == 1
    assert max(reader(f"return {boxes}.map((rects) => rects[0].right)")) <= width


def test_predictions_that_do_not_fit_can_be_scrolled_with_the_keys(opened, inside):
    reader = opened(look_inside(PROMPT, "tiny", MODELS, top=10))
    focusable = "return document.querySelector('#predictions').tabIndex"
    reader.size(360, 700)
    reader("document.querySelector('#lens td').focus()")
    assert reader(focusable) == 0
    reader.size(1400, 800)
    reader("readOutFocused()")
    assert reader(focusable) == -1


def test_the_lens_is_a_table_whose_cells_show_their_alternatives(reader, inside):
    assert reader.texts("#lens tr:first-child th")[1:] == ["embedding", "layer 0", "layer 1", "layer 2", "layer 3"]
    rows = reader.texts("#lens tr")
    for i in range(19):
        assert rows[i + 1] == inside.texts[i] + "".join(inside.text(id) for id in inside.lens_ids[:, i, 0])

    def expected(layer, i):
        best = zip(inside.lens_ids[layer, i], inside.lens_probs[layer, i])
        return [inside.text(id) + ("<0.1 %" if p < 0.0005 else f"{100 * p:.1f} %") for id, p in best]

    cells = reader.find("#lens td[data-index]")
    reader.hover(cells[7 * 5 + 2])
    assert reader.lens_cell() == ("layer 1", "r")
    assert reader.predictions() == expected(2, 7)
    cells[7 * 5 + 2].click()
    reader.press("ARROW_DOWN", "ARROW_RIGHT")
    assert reader.lens_cell() == ("layer 2", "ough")
    assert reader.predictions() == expected(3, 8)
    reader.press("ARROW_UP", "ARROW_UP", "ARROW_LEFT")
    assert reader.lens_cell() == ("layer 1", "·th")
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
    focused = ("layer 1", "r")
    assert reader.lens_cell() == focused
    reader.hover(cells[8 * 5 + 4])
    assert reader.lens_cell() == ("layer 3", "ough")
    reader.hover(reader.find("#lens th")[0])
    reader.hover(reader.find("h2")[-1])
    assert reader.lens_cell() == focused
    reader.hover(buttons[3])
    reader.hover(reader.find("h1")[0])
    assert reader.lens_cell() == focused
    assert reader("return getComputedStyle(document.activeElement).outlineStyle") == "solid"
    assert reader("return document.querySelector('#readout').ariaLive") == "polite"
    reader("document.activeElement.blur()")
    assert reader.lens_cell() == ("layer 3", ":")
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


def luminance(colour):
    r, g, b = (c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in np.array(colour) / 255)
    return 0.2126 * r + 0.7152 * g + 0.0722 * b


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
        lighter, darker = sorted((luminance(front), luminance(back)), reverse=True)
        assert (lighter + 0.05) / (darker + 0.05) >= 4.5
    assert (luminance(paper) > 0.5) == (scheme == "light")
    assert reader("return getComputedStyle(document.body).backgroundColor") == "rgb({}, {}, {})".format(*paper)


def test_whatever_the_prompt_says_is_text(opened):
    seen = look_inside(ODD_PROMPT, "tiny", MODELS)
    reader = opened(seen, None)
    assert reader.texts("#tokens button") == [*seen.texts, "next"]
    assert reader.text("#text") == visible(ODD_PROMPT, keep="\t")
    assert reader.driver.title == reader.text("h1") == one_line(ODD_PROMPT, 80)
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
    assert reader.text("h1") == reader.driver.title == "<b>&amp;</b>"
    assert not reader.find("img, b")
    assert len(reader.find("script")) == 2


def test_a_single_token(opened):
    reader = opened(look_inside("a", "tiny", MODELS))
    assert reader.texts("#from .token") == ["a100.0 %"]
    reader.press("TAB", "HOME")
    assert reader.token("#chosen") == "a"
    assert reader.texts("#alternatives tr") == []
