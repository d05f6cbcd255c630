"""The page's file: it holds the numbers, nothing in a prompt becomes HTML, and it does not get too large."""

from __future__ import annotations

import base64
import json
import re
from html import unescape

import numpy as np
import pytest
from helpers import shared
from hypothesis import example, given
from hypothesis import strategies as st

from encoder import get_encoder
from explain import MODELS, ODD_PROMPT, PROMPT
from picogpt import Inside, Settings, look_inside, page
from picogpt.command_line import visible
from picogpt.explain import page as page_module
from picogpt.explain.page import as_json, layers_that_fit, packed


def embedded(html: str) -> dict:
    return json.loads(re.search(r'<script type="application/json" id="data">(.*?)</script>', html, re.DOTALL)[1])


def unpacked(data: dict, n: int) -> np.ndarray:
    """Return the attention in a page's data. -> [layers, n_head, n, n]"""
    shares = np.frombuffer(base64.b64decode(data["attention"]), "<u2") / 65535
    squares = np.zeros((len(data["attentionLayers"]), data["nHead"], n, n))
    squares[..., np.tri(n, dtype=bool)] = shares.reshape(*squares.shape[:2], -1)
    return squares


@given(st.text())
@example("</script><!--<script>")
@example("\u2028\u2029\u202e&lt;")
def test_json_in_the_page_can_not_end_its_element_and_keeps_its_value(text):
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
    assert data["lensIds"] == inside.stream_ids.ravel().tolist()
    np.testing.assert_allclose(data["lensProbs"], inside.stream_probs.ravel(), rtol=5e-4)
    assert (data["layer"], data["head"]) == (2, 1)


def test_an_odd_prompt_adds_no_element_to_the_page(inside):
    plain, odd = page(inside), page(look_inside(ODD_PROMPT, "tiny", MODELS))
    assert re.findall(r"<[!/\w]+", plain) == re.findall(r"<[!/\w]+", odd)
    assert odd.isascii() == plain.isascii()


def elements(html: str, name: str) -> list[str]:
    return [unescape(text) for text in re.findall(rf"<{name}\b[^>]*>(.*?)</{name}>", html, re.DOTALL)]


def test_the_prompt_is_the_title_and_stands_in_the_page_as_text(inside):
    html = page(inside)
    assert elements(html, "title") == elements(html, "h1") == ["ROMEO: What light through yonder window breaks?"]
    about, text, *_ = elements(html, "p")
    assert about == f"tiny: {inside.summary}; probabilities: the model's own"
    assert text == PROMPT  # with its line break, which the title does not have
    odd = page(look_inside(ODD_PROMPT, "tiny", MODELS))
    assert elements(odd, "p")[1] == visible(ODD_PROMPT, keep="\t")
    (one,) = elements(page(look_inside("word " * 40, "tiny", MODELS)), "title")
    assert one == "word " * 15 + "word…"
    short = page(look_inside("ROMEO", "tiny", MODELS))
    assert (elements(short, "h1"), elements(short, "p")[1]) == (["ROMEO"], "")  # once is enough
    assert elements(page(inside, "DATA_OF_THE_PAGE <b>"), "h1") == ["DATA_OF_THE_PAGE <b>"]


def test_the_page_holds_only_the_tokens_that_are_chosen(inside):
    html = page(inside, tokens=slice(5, 9))
    data = embedded(html)
    assert (data["first"], data["before"]) == (5, inside.texts[4])
    assert data["shown"] == inside.texts[5:9]
    assert [token[0] for token in data["tokens"]] == inside.ids[5:9].tolist()
    assert np.abs(unpacked(data, 4) - inside.attention[:, :, 5:9, 5:9]).max() <= 0.5001 / 65535
    assert data["lensIds"] == inside.stream_ids[:, 4:9].ravel().tolist()
    assert set(data["texts"]) == {str(id) for id in (*inside.ids[5:9], *inside.stream_ids[:, 4:9].ravel())}
    assert "shown: tokens 5 to 8<" in html
    with pytest.raises(ValueError, match="tokens 19: are none"):
        page(inside, tokens=slice(19, None))


def test_only_a_page_with_parts_of_characters_explains_them(odd, inside):
    said = "a token that holds a part of the bytes of"
    assert said not in unescape(page(inside))
    assert f"shown as ·, and 你 1/3 is {said} 你. " in unescape(page(odd))
    assert f", and 你 2/3 is {said} 你. " in unescape(page(odd, tokens=slice(2, None)))
    assert said not in unescape(page(odd, tokens=slice(0, 1)))


def test_fewer_tokens_leave_room_for_all_layers(inside, monkeypatch):
    monkeypatch.setattr(page_module, "MAX_ATTENTION", len(packed(inside.attention)) // 2)
    assert layers_that_fit(inside, 2) == [2]
    assert layers_that_fit(inside, 2, slice(0, 5)) == [0, 1, 2, 3]


def test_the_page_names_the_character_of_each_token(odd):
    data = embedded(page(odd))
    assert data["shown"] == ["a", "你 1/3", "你 2/3", "你 3/3"]
    assert [data["texts"][str(id)] for id in odd.ids] == ["a", "\\xe4", "\\xbd", "\\xa0"]


def test_a_page_that_would_be_too_large_holds_the_chosen_layer(inside, tmp_path, monkeypatch, explain):
    assert layers_that_fit(inside, 2) == [0, 1, 2, 3]
    size = len(packed(inside.attention))
    monkeypatch.setattr(page_module, "MAX_ATTENTION", size)
    assert layers_that_fit(inside, 2) == [0, 1, 2, 3]
    monkeypatch.setattr(page_module, "MAX_ATTENTION", size - 5)
    path = tmp_path / "a.html"
    _, err = explain(PROMPT, "--html", path, "--layer", 2)
    assert f"{path}" in err
    assert "layer 2 only" in err
    data = embedded(path.read_text(encoding="utf-8"))
    assert data["attentionLayers"] == [2]
    assert np.abs(unpacked(data, 19)[0] - inside.attention[2]).max() <= 0.5001 / 65535


def test_40_tokens_of_124m_make_a_page_of_less_than_3_mb():
    """Random numbers of 124M's shapes are enough: they pack no better than real ones."""
    rng = np.random.default_rng(0)
    encoder = get_encoder("openai-117M", shared("openai-117M").parent)
    ids, probs = rng.integers(0, 50257, 40), rng.random(40)
    lens_ids, lens_probs = rng.integers(0, 50257, (13, 40, 5)), rng.random((13, 40, 5))
    attention = rng.random((12, 12, 40, 40))
    seen = Inside(encoder, ids, probs, ids, lens_ids, lens_probs, attention, rng.random((13, 40)), Settings())
    assert 100_000 < len(page(seen, "124M").encode()) < 3_000_000


def test_a_layer_or_head_that_the_page_does_not_have_is_refused(inside):
    for layer, head in [(4, 0), (-1, 0), (0, 5), (0, -1)]:
        with pytest.raises(ValueError, match=f"layer {layer}, head {head}"):
            page(inside, "tiny", layer, head)
    with pytest.raises(ValueError, match="layer 0"):
        page(inside, "tiny", layers=[2])
