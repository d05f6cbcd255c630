"""The page: what is in the file, and what a reader sees and does, in a headless Chromium."""

from __future__ import annotations

import base64
import copy
import dataclasses
import json
import re
import shutil

import numpy as np
import pytest
from helpers import ODD, ROOT
from hypothesis import example, given
from hypothesis import strategies as st
from test_explain import PROMPT

from picogpt import look_inside, page
from picogpt.explain import page as explain_page
from picogpt.explain.numbers import Settings
from picogpt.explain.page import as_json, layers_that_fit, packed

MODELS = ROOT / "models"


@pytest.fixture(scope="module")
def inside():
    return look_inside(PROMPT, "tiny", MODELS)


def embedded(html: str) -> dict:
    return json.loads(re.search(r'<script type="application/json" id="data">(.*?)</script>', html, re.DOTALL)[1])


def unpacked(data: dict, n: int) -> np.ndarray:
    """The attention that a page holds. -> [layers, n_head, n, n]"""
    shares = np.frombuffer(base64.b64decode(data["attention"]), "<u2") / 65535
    squares = np.zeros((len(data["attentionLayers"]), data["nHead"], n, n))
    squares[..., np.tri(n, dtype=bool)] = shares.reshape(*squares.shape[:2], -1)
    return squares


# --------------------------------------------------------------------------------------------------------- the file


@given(st.text())
@example("</script><!--<script>")
@example("\u2028\u2029\u202e&lt;")
def test_json_in_the_page_can_end_nothing_and_says_the_same(text):
    written = as_json({"text": text})
    assert written.isascii()
    assert not {*"<>&"} & {*written}
    assert json.loads(written) == {"text": text}


def test_the_page_holds_the_numbers(inside):
    data = embedded(page(inside, "tiny", layer=2, head=1))
    assert np.abs(unpacked(data, 19) - inside.attention).max() <= 0.5001 / 65535
    assert [token[0] for token in data["tokens"]] == inside.ids.tolist()
    np.testing.assert_allclose([token[1] for token in data["tokens"][1:]], inside.probs[1:], rtol=5e-4)
    np.testing.assert_allclose([token[2] for token in data["tokens"][1:]], inside.bits[1:], rtol=5e-4)
    assert data["lensIds"] == inside.lens_ids.ravel().tolist()
    np.testing.assert_allclose(data["lensProbs"], inside.lens_probs.ravel(), rtol=5e-4)
    assert (data["layer"], data["head"]) == (2, 1)


def test_an_odd_prompt_adds_no_element_to_the_page(inside):
    plain, odd = page(inside, "tiny"), page(look_inside(ODD, "tiny", MODELS), ODD)
    assert re.findall(r"<[!/\w]+", plain) == re.findall(r"<[!/\w]+", odd)
    assert odd.isascii() == plain.isascii()


def test_a_page_that_would_be_too_large_holds_the_chosen_layer(inside, tmp_path, monkeypatch, capsys):
    from picogpt.explain import command as explain

    assert layers_that_fit(inside, 2) == [0, 1, 2, 3]
    size = len(packed(inside.attention))
    monkeypatch.setattr(explain_page, "MAX_ATTENTION", size)
    assert layers_that_fit(inside, 2) == [0, 1, 2, 3]
    monkeypatch.setattr(explain_page, "MAX_ATTENTION", size - 5)
    path = tmp_path / "a.html"
    words = [PROMPT, "--html", str(path), "--layer", "2", "--model_size", "tiny", "--models_dir", str(MODELS)]
    assert explain.main(words) == 0
    assert "holds the attention of layer 2 only" in capsys.readouterr().err
    data = embedded(path.read_text(encoding="utf-8"))
    assert data["attentionLayers"] == [2]
    assert np.abs(unpacked(data, 19)[0] - inside.attention[2]).max() <= 0.5001 / 65535


# ------------------------------------------------------------------------------------------------------ the browser


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
    """Someone who has a page open."""

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

    def requests(self):
        """The addresses that were asked for since the page was opened."""
        messages = [json.loads(entry["message"])["message"] for entry in self.driver.get_log("performance")]
        return [m["params"]["request"]["url"] for m in messages if m["method"] == "Network.requestWillBeSent"]


@pytest.fixture
def reader(chromium, inside, tmp_path):
    (tmp_path / "page.html").write_text(page(inside, "tiny", layer=3, head=0), encoding="utf-8")
    someone = Reader(chromium, tmp_path / "page.html")
    yield someone
    assert chromium.get_log("browser") == []
    assert {address for address in someone.requests() if not address.startswith("data:")} == {someone.path.as_uri()}
    assert someone("return performance.getEntriesByType('resource').length") == 0


def percents(texts):
    return [0.0 if text.endswith("<0.1 %") else float(re.search(r"([\d.]+) %$", text)[1]) for text in texts]


def test_a_token_under_the_pointer_shows_its_alternatives(reader, inside):
    buttons = reader.find("#tokens button")
    assert reader.texts("#tokens button") == [*inside.texts, "next"]
    reader.hover(buttons[9])
    assert reader.text("#chosen") == "·y"
    facts = reader.text("#facts")
    assert "position9id282" in facts
    assert "10.05 bits" in facts
    assert "rank133" in facts
    assert "merged·+y" in facts
    shown = reader.texts("#alternatives tr")
    best = zip(inside.lens_ids[-1, 8], inside.lens_probs[-1, 8])
    assert shown == [f"{inside.text(id)}{100 * p:.1f} %" for id, p in best]
    reader.hover(buttons[2])
    assert reader.text("#alternatives .this") == "\\n99.7 %this token"
    reader.hover(reader.find("h1")[0])
    assert reader.text("#chosen") == ":"  # what was chosen before is back


def test_a_click_chooses_and_the_keys_move(reader, inside):
    reader.find("#tokens button")[5].click()
    reader.hover(reader.find("h1")[0])
    assert reader.text("#chosen") == "ght"
    for keys, expected in [
        (["ARROW_RIGHT"], "·th"),
        (["ARROW_LEFT", "ARROW_LEFT"], "·li"),
        (["HOME"], "ROMEO"),
        (["ARROW_LEFT"], "ROMEO"),
        (["END"], "What comes next"),
        (["ARROW_RIGHT"], "What comes next"),
    ]:
        reader.press(*keys)
        assert reader.text("#chosen") == expected
    assert reader.text("#alternatives tr") == "\\n88.8 %"
    assert reader.texts("#tokens .current") == ["next"]
    assert reader("return document.activeElement.textContent") == "next"


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
        assert reader.text("#from-title") == f"{inside.texts[token]} looks at"
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
    assert reader.text("#chosen") == inside.texts[4]


def test_the_lens_is_a_table_whose_cells_show_their_alternatives(reader, inside):
    rows = reader.texts("#lens tr")
    assert rows[0] == "afterembeddingh0h1h2h3"
    for i in range(19):
        assert rows[i + 1] == inside.texts[i] + "".join(inside.text(id) for id in inside.lens_ids[:, i, 0])

    def said(layer, i):
        best = zip(inside.lens_ids[layer, i], inside.lens_probs[layer, i])
        return [inside.text(id) + ("<0.1 %" if p < 0.0005 else f"{100 * p:.1f} %") for id, p in best]

    cells = reader.find("#lens td[data-index]")
    reader.hover(cells[7 * 5 + 2])
    assert reader.text("#said-title") == "h1 after r"
    assert reader.texts("#said .token") == said(2, 7)
    cells[7 * 5 + 2].click()
    reader.press("ARROW_DOWN", "ARROW_RIGHT")
    assert reader.text("#said-title") == "h2 after ough"
    assert reader.texts("#said .token") == said(3, 8)
    reader.press("ARROW_UP", "ARROW_UP", "ARROW_LEFT")
    assert reader.text("#said-title") == "h1 after ·th"
    reader.press("HOME", "ARROW_UP")
    assert reader.text("#said-title") == "embedding after ROMEO"


def test_keys_with_a_modifier_are_the_browser_s(reader):
    script = """arguments[0].focus(); return ["altKey", "ctrlKey", "metaKey", "shiftKey"].map((name) => {
        const event = new KeyboardEvent("keydown", {key: "End", bubbles: true, cancelable: true, [name]: true});
        return arguments[0].dispatchEvent(event); })"""
    assert reader(script, reader.find("#tokens button")[3]) == [True, True, True, False]


def test_the_readout_is_that_of_the_focus_when_the_pointer_has_left(reader):
    cells, buttons = reader.find("#lens td"), reader.find("#tokens button")
    cells[7 * 5 + 2].click()
    said = "h1 after r"
    assert reader.text("#said-title") == said
    reader.hover(cells[8 * 5 + 4])
    assert reader.text("#said-title") == "h3 after ough"
    reader.hover(reader.find("#lens th")[0])
    reader.hover(reader.find("h2")[-1])
    assert reader.text("#said-title") == said
    reader.hover(buttons[3])
    reader.hover(reader.find("h1")[0])
    assert reader.text("#said-title") == said
    assert reader("return getComputedStyle(document.activeElement).outlineStyle") == "solid"
    assert reader("return document.querySelector('#readout').ariaLive") == "polite"
    reader("document.activeElement.blur()")
    assert reader.text("#said-title") == "h3 after :"
    buttons[3].click()
    assert reader("return ['details', 'readout'].map((id) => document.getElementById(id).ariaLive)") == [
        "polite",
        "off",
    ]


def test_the_tab_key_begins_with_the_token_that_is_shown(reader):
    reader.press("TAB")
    assert reader.text("#chosen") == reader("return document.activeElement.textContent") == ":"


@pytest.mark.parametrize("width", [360, 1200])
def test_what_the_pointer_or_the_focus_is_on_is_seen_with_what_is_said_of_it(chromium, tmp_path, width):
    seen = look_inside("\n".join([PROMPT] * 3) + " 中文 😀", "tiny", MODELS)
    assert len(seen.ids) > 60
    (tmp_path / "long.html").write_text(page(seen, "tiny"), encoding="utf-8")
    reader = Reader(chromium, tmp_path / "long.html")
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


def test_a_token_that_was_ruled_out_has_no_rank(chromium, tmp_path):
    seen = look_inside(PROMPT, "tiny", MODELS, settings=Settings(temperature=0))
    (tmp_path / "greedy.html").write_text(page(seen, "tiny"), encoding="utf-8")
    reader = Reader(chromium, tmp_path / "greedy.html")
    facts = []
    for button in reader.find("#tokens button")[1:-1]:
        button.click()
        facts.append("rank–" in reader.text("#facts"))
    assert facts == (seen.probs[1:] == 0).tolist()
    assert {*facts} == {True, False}


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
    """The contrast that WCAG asks of text, on paper, on a panel, and on a token of any probability."""
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


def test_whatever_the_prompt_says_is_text(chromium, tmp_path):
    seen = look_inside(ODD, "tiny", MODELS)
    (tmp_path / "odd.html").write_text(page(seen, ODD), encoding="utf-8")
    reader = Reader(chromium, tmp_path / "odd.html")
    assert reader.texts("#tokens button") == [*seen.texts, "next"]
    assert reader.text("#about") == ODD
    assert len(reader.find("script")) == 2
    reader.press("TAB", "END", "ARROW_LEFT")
    assert reader.text("#chosen") == seen.texts[-1]
    assert chromium.get_log("browser") == []


def test_a_token_of_markup_is_text_everywhere(chromium, inside, tmp_path):
    encoder = copy.copy(inside.encoder)
    encoder.token_bytes = lambda id: f"<img src=x onerror=alert({id})>&lt;</script>".encode()
    seen = dataclasses.replace(inside, encoder=encoder)
    assert seen.texts[0] == "<img·src=x·onerror=alert(813)>&lt;</script>"
    (tmp_path / "markup.html").write_text(page(seen, "<b>&amp;</b>"), encoding="utf-8")
    reader = Reader(chromium, tmp_path / "markup.html")
    for place in ("#tokens .token", "#from .token", "#to .token", "#said .token", "#lens .token", "#alternatives td"):
        assert any(text.startswith("<img·src=x·onerror=alert(") for text in reader.texts(place)), place
    assert reader.text("#about") == "<b>&amp;</b>"
    assert not reader.find("img, b")
    assert len(reader.find("script")) == 2
    assert chromium.get_log("browser") == []


def test_a_single_token(chromium, tmp_path):
    seen = look_inside("a", "tiny", MODELS)
    (tmp_path / "a.html").write_text(page(seen, "tiny"), encoding="utf-8")
    reader = Reader(chromium, tmp_path / "a.html")
    assert reader.texts("#from .token") == ["a100.0 %"]
    reader.press("TAB", "HOME")
    assert reader.text("#alternatives-title") == "Nothing comes before the first token"
    assert chromium.get_log("browser") == []
