"""Tokens as visible text, and the merges behind them."""

from __future__ import annotations

import re
from itertools import pairwise

import pytest
from helpers import ROOT, shared
from hypothesis import example, given
from hypothesis import strategies as st

from encoder import get_encoder
from explain import MODELS
from picogpt.explain.text import decimals, merges_of, one_line, visible_merges
from picogpt.terminal_text import fit, in_context, n_columns, visible


@pytest.mark.parametrize(
    ("token", "shown"),
    [
        (b" the", "·the"),
        (b"\xc3", "\\xc3"),
        (b" caf\xc3\xa9\n", "·café\\n"),
        ("·\\".encode(), "\\u00b7\\\\"),
        ("\u0301e\u0301".encode(), "\\u0301e\u0301"),
        ("\u202e\u200b\xad\x1b".encode(), "\\u202e\\u200b\\u00ad\\x1b"),
        ("\U000e0001\u0600".encode(), "\\U000e0001\\u0600"),
        ("中😀".encode(), "中😀"),
    ],
)
def test_visible(token, shown):
    assert visible(token) == shown


@given(st.binary(max_size=8), st.binary(max_size=8))
@example(b"\xc2\x85", b"\x85")
@example(b"\\n", b"\n")
@example("·".encode(), b" ")
def test_different_tokens_look_different_and_all_can_be_seen(a, b):
    assert (visible(a) == visible(b)) == (a == b)
    assert visible(a).isprintable()
    assert " " not in visible(a)


@pytest.mark.parametrize(
    ("tokens", "shown"),
    [
        ([b"\xe4\xbd", b"\xa0"], ["你 1/2", "你 2/2"]),
        ([b"a", b" \xe4", b"\xbd", b"\xa0!"], ["a", "· 你 1/3", "你 2/3", "你 3/3 !"]),
        ([b"a\xe4\xbd", b"\xa0b\xc3", b"\xa9"], ["a 你 1/2", "你 2/2 b é 1/2", "é 2/2"]),
        ([b"\xe2\x80", b"\xae", b"\xcc", b"\x81"], ["\\u202e 1/2", "\\u202e 2/2", "\\u0301 1/2", "\\u0301 2/2"]),
        ([b"\xe4\xbd", b"x", b"\xa0"], ["\\xe4\\xbd", "x", "\\xa0"]),  # not the bytes of a character
        ([b"1/2", b" 1/2"], ["1/2", "·1/2"]),
        ([], []),
    ],
)
def test_tokens_that_share_a_character_are_named_as_its_parts(tokens, shown):
    assert in_context(tokens) == shown


@given(st.text(st.characters(codec="utf-8", exclude_characters="\\"), max_size=12), st.lists(st.integers(0, 40)))
def test_whole_characters_look_as_they_do_alone_and_all_tokens_can_be_seen(text, cuts):
    data = text.encode()
    places = sorted({0, len(data), *(cut for cut in cuts if cut < len(data))})
    tokens = [data[a:b] for a, b in pairwise(places)]
    shown = in_context(tokens)
    assert len(shown) == len(tokens)
    assert "".join(shown).isprintable()
    for token, name in zip(tokens, shown):
        try:
            token.decode()
        except UnicodeDecodeError:
            assert " " in name
            assert not re.search(r"\\x[89a-f]", name)  # a byte that is shown as such
        else:
            assert name == visible(token)


def test_one_line():
    assert one_line(" ROMEO:\n\tWhat  light \x1b[0m", 40) == "ROMEO: What light \\x1b[0m"
    assert one_line("中文字", 5) == "中文…"
    assert one_line("", 5) == ""


@given(st.text(max_size=20), st.integers(1, 12))
def test_fit_takes_exactly_its_columns(text, width):
    assert n_columns(fit(text, width)) == width
    if n_columns(text) <= width:
        assert fit(text, width).startswith(text)


def test_decimals():
    assert [decimals(2.345, 1), decimals(float("inf"), 2)] == ["2.3", "∞"]


def merged_by_definition(symbol, ranks):
    """Byte pair encoding as its paper describes it, with a list of the merges that it makes."""
    symbols, made = [*symbol], []
    while pairs := [pair for pair in pairwise(symbols) if " ".join(pair) in ranks]:
        a, b = min(pairs, key=lambda pair: ranks[" ".join(pair)])
        made += [(a, b)] if (a, b) not in made else []
        i = 0
        while i < len(symbols) - 1:
            if (symbols[i], symbols[i + 1]) == (a, b):
                symbols[i : i + 2] = [a + b]
            i += 1
    return symbols, made


def vocabularies():
    yield "tiny", get_encoder("tiny", MODELS), 1
    if (ROOT.parent / "shared" / "openai-117M").exists():
        yield "openai", get_encoder("openai-117M", shared("openai-117M").parent), 700


def test_merges_are_those_that_made_the_token():
    for name, encoder, step in vocabularies():
        ranks, found = encoder.ranks, 0
        for symbol in [*encoder.encoder][::step]:
            symbols, made = merged_by_definition(symbol, ranks)
            if symbols == [symbol]:
                assert merges_of(symbol, ranks) == made, (name, symbol)
                found += len(made) > 1
        assert found > 50


def test_merges_are_shown_as_text():
    encoder = get_encoder("tiny", MODELS)
    assert visible_merges(encoder, encoder.encoder["Ġthe"]) == ["·+t", "h+e", "·t+he"]
    assert visible_merges(encoder, encoder.encoder["a"]) == []
