"""The page in a headless Chromium: what a reader sees, and what mouse and keys do. All tests share one browser."""

from __future__ import annotations

import copy
import dataclasses

from explain import MODELS, ODD_PROMPT, PROMPT
from picogpt import Settings, look_inside
from picogpt.command_line import visible
from picogpt.explain.text import one_line


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


def test_a_part_of_a_character_is_named_everywhere_and_its_bytes_are_a_fact(opened, odd):
    reader = opened(odd)
    for place in ("#tokens button", "#lens th", "#map-rows .token", "#map-columns .token"):
        assert "你 2/3" in reader.texts(place), place
    reader.find("#tokens button")[2].click()
    assert reader.token("#chosen") == reader.token("#from-title") == "你 2/3"
    assert reader.texts("#facts dd")[-2:] == ["\\xbd", "a single byte"]


def test_the_lens_is_a_table_whose_cells_show_their_alternatives(reader, inside):
    assert reader.texts("#lens tr:first-child th")[1:] == ["embedding", "layer 0", "layer 1", "layer 2", "layer 3"]
    rows = reader.texts("#lens tr")
    for i in range(19):
        assert rows[i + 1] == inside.texts[i] + "".join(inside.text(id) for id in inside.stream_ids[:, i, 0])

    def expected(layer, i):
        best = zip(inside.stream_ids[layer, i], inside.stream_probs[layer, i])
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


def test_a_token_with_probability_0_has_no_rank(opened):
    seen = look_inside(PROMPT, "tiny", MODELS, settings=Settings(temperature=0))
    reader = opened(seen)
    ranks = []
    for button in reader.find("#tokens button")[1:-1]:
        button.click()
        ranks.append(reader.texts("#facts dd")[4])
    assert [rank == "–" for rank in ranks] == (seen.probs[1:] == 0).tolist()
    assert len({*ranks}) == 2


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
