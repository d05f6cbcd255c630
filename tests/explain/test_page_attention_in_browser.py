"""The part of the page about attention, in a headless Chromium: the labelled map, the small maps, and the lists."""

from __future__ import annotations

import re
from itertools import pairwise

import numpy as np
import pytest

from explain import MODELS, PROMPT
from explain.browser import percents
from picogpt import look_inside


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
        cells = "".join(inside.text(id) for id in inside.stream_ids[:, 5 + i, 0])
        assert reader.texts("#lens tr")[i + 1] == inside.texts[5 + i] + cells
