"""The page in windows of different sizes, in the dark and on paper, in a headless Chromium."""

from __future__ import annotations

import re

import numpy as np
import pytest
from browser import contrast, luminance

from explain import MODELS, PROMPT
from picogpt import look_inside
from picogpt.explain.numbers import examine


@pytest.fixture(scope="module")
def deep(tiny):
    """Return the numbers of a model with 16 layers, whose lens has more columns than a small window has room for."""
    encoder, hparams, params = tiny
    deeper = params | {"blocks": params["blocks"] * 4}
    return examine(encoder.encode(PROMPT + " 中文"), encoder, deeper, hparams["n_head"])


def test_the_lens_uses_the_width_of_the_window_and_says_if_it_has_no_room(opened, deep):
    reader = opened(deep)
    script = """const box = document.querySelector(".scroll");
        return [box.offsetWidth, box.scrollWidth, box.scrollLeft, box.classList.contains("continues"),
            document.querySelector("#more").offsetHeight > 0]"""
    for width in (360, 800):
        reader.size(width, 800)
        reader.driver.refresh()
        box, content, left, continues, more = reader(script)
        assert content > box == width - 32
        assert (left, continues, more) == (0, True, True)
        ended = """const [box, done] = [document.querySelector(".scroll"), arguments[0]];
            box.scrollLeft = box.scrollWidth;
            requestAnimationFrame(() => requestAnimationFrame(() => done(box.classList.contains("continues"))))"""
        assert reader.driver.execute_async_script(ended) is False
    reader.size(3000, 800)
    reader.driver.refresh()
    box, content, _, continues, more = reader(script)
    assert 960 < box == content < 2968
    assert (continues, more) == (False, False)
    reader.press(*["TAB"] * 5)
    assert reader.lens_cell() == ("layer 15", "ROMEO")
    reader.size(1000, 800)
    reader.press(*["ARROW_LEFT"] * 16)
    assert reader.lens_cell() == ("embedding", "ROMEO")
    cell, head = (
        f"document.querySelector('#lens {part}').getBoundingClientRect()" for part in ("td:focus", "th.token")
    )
    assert reader(f"return {cell}.left - {head}.right") >= -1  # the column that stays in place does not hide it


def test_the_lens_of_124m_fits_1280_pixels(opened, tiny):
    encoder, hparams, params = tiny
    blocks = params["blocks"] * 3
    reader = opened(examine(encoder.encode(PROMPT), encoder, params | {"blocks": blocks}, hparams["n_head"]))
    reader.size(1280, 800)
    box, content, *heads = reader("""const box = document.querySelector(".scroll");
        return [box.clientWidth, box.scrollWidth,
            ...[...document.querySelectorAll("#lens th")].slice(1, 14).map((e) => e.scrollWidth - e.clientWidth)]""")
    assert content <= box <= 1248
    assert heads == [0] * 13  # no name of a layer is cut


@pytest.mark.parametrize("size", [(360, 640), (360, 740), (412, 915), (740, 360)])
def test_on_a_phone_the_panel_of_the_token_takes_a_third_at_most(reader, size):
    reader.size(*size)
    for i in (1, 9, 18):
        reader(f"choose({i})")
        assert reader("return document.querySelector('#details').offsetHeight") <= size[1] / 3


def test_hover_is_said_to_a_mouse_only(reader):
    def said():
        return reader("return document.body.innerText").lower()

    assert said().count("hover") == 3
    assert "tap" not in said()
    reader.driver.execute_cdp_cmd("Emulation.setTouchEmulationEnabled", {"enabled": True})
    try:
        reader.size(360, 740, mobile=True)
        reader.driver.refresh()
        assert reader("return matchMedia('(hover: none)').matches")
        assert [word for word in ("hover", "click", "arrow keys") if word in said()] == []
        assert said().count("tap") == 5
        assert reader("return document.documentElement.scrollWidth") <= 360
    finally:
        reader.driver.execute_cdp_cmd("Emulation.setTouchEmulationEnabled", {"enabled": False})
        reader.size(1000, 800)


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
