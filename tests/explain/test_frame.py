"""The page in a notebook: a frame that holds the whole page, and a line of text where frames are removed."""

from __future__ import annotations

import re
from html import unescape

import numpy as np
import pytest

from explain import MODELS, ODD_PROMPT, PROMPT
from picogpt import look_inside, page
from picogpt.explain import frame as frame_module
from picogpt.explain.frame import frame


def source(html: str) -> str:
    """Return the page that a frame holds."""
    (found,) = re.findall(r'<iframe [^<>]*srcdoc="([^"]*)"></iframe>', html)
    return unescape(found)


def test_a_notebook_shows_the_page_in_a_frame(inside):
    html = inside._repr_html_()
    assert html == frame(inside)
    assert source(html) == page(inside, layer=3)
    assert 'sandbox="allow-scripts"' in html


def test_without_the_frame_a_line_of_text_remains(inside):
    rest = re.sub("<iframe.*</iframe>", "", inside._repr_html_(), flags=re.DOTALL)
    shown = unescape(re.sub("<[^>]*>", "\n", rest))
    assert f'tiny reads "ROMEO: What light through yonder window breaks?": {inside.summary}\n' in shown
    assert inside.arrays in shown


def test_no_text_ends_the_frame_or_becomes_html():
    html = look_inside(ODD_PROMPT, "tiny", MODELS)._repr_html_()
    assert re.findall(r"<(/?\w+)", html) == ["iframe", "/iframe", "details", "summary", "/summary", "/details"]


def test_a_long_text_makes_an_output_that_jupyter_shows(inside, monkeypatch):
    n = 19
    triangle = n * (n + 1) // 2 * 2 * 4 // 3 * 5  # bytes of base64 for one layer of 5 heads
    monkeypatch.setattr(frame_module, "MAX_ATTENTION", 4 * triangle + 20)
    assert '"attentionLayers":[0,1,2,3]' in source(frame(inside))
    monkeypatch.setattr(frame_module, "MAX_ATTENTION", 3 * triangle)
    last = source(frame(inside))
    assert '"attentionLayers":[3]' in last
    assert "shown: tokens" not in last
    monkeypatch.setattr(frame_module, "MAX_ATTENTION", triangle // 2)
    assert re.search(r"shown: tokens [6-9] to 18<", source(frame(inside)))


def test_the_longest_text_of_124m_makes_less_than_3_mb(inside):
    """Its attention has the largest part. Random numbers pack no better than real ones."""
    from dataclasses import replace

    n = 1024
    rng = np.random.default_rng(0)
    attention = rng.random((1, 12, n, n), np.float32)
    ids, numbers = rng.integers(0, 1024, n), rng.random(n)
    lens = rng.integers(0, 1024, (13, n, 5))
    attention = np.broadcast_to(attention, (12, 12, n, n))
    seen = replace(inside, ids=ids, probs=numbers, ranks=ids, attention=attention, stream_ids=lens)
    seen = replace(seen, stream_probs=rng.random((13, n, 5)), stream_lengths=rng.random((13, n)))
    assert 2_000_000 < len(frame(seen).encode()) < 3_000_000


@pytest.fixture
def notebook(chromium, tmp_path, inside):
    """Open a page that holds the frame, as a notebook's output does, and go into the frame."""
    path = tmp_path / "notebook.html"
    path.write_text(f"<!DOCTYPE html><body><h1>Output</h1>{frame(inside)}", encoding="utf-8")
    chromium.get_log("browser")
    chromium.get(path.as_uri())
    chromium.switch_to.frame(0)
    yield chromium
    chromium.switch_to.default_content()
    assert chromium.get_log("browser") == []


def test_the_page_works_in_the_frame_and_can_not_reach_the_notebook(notebook, inside):
    from selenium.webdriver import ActionChains

    tokens = notebook.find_elements("css selector", "#tokens button")
    assert [token.text for token in tokens] == [*inside.texts, "next"]
    ActionChains(notebook).move_to_element(tokens[8]).perform()
    assert inside.texts[8] in notebook.find_element("id", "chosen").text
    assert notebook.find_element("tag name", "h1").text == PROMPT.replace("\n", " ")
    reach = "try { return parent.document.title } catch (error) { return error.name }"
    assert notebook.execute_script(reach) == "SecurityError"
    assert notebook.execute_script("return performance.getEntriesByType('resource').length") == 0
