"""The tables in the terminal: every number is there, and every line fits."""

from __future__ import annotations

import re
from argparse import Namespace

import numpy as np
import pytest

from explain import MODELS, ODD_PROMPT, PROMPT
from picogpt import Settings, look_inside
from picogpt.explain.terminal import report
from picogpt.terminal_text import n_columns


def shown(inside, width=200, colour=False, merges=False):
    args = Namespace(model_size="tiny", layer=2, head=3, top=5, merges=merges)
    return "\n".join(report(inside, args, width, colour)) + "\n"


def test_the_tokens_with_all_their_numbers(inside):
    out = shown(inside)
    assert "\x1b" not in out
    for i in range(1, 19):
        text, p, bits, rank = inside.texts[i], inside.probs[i], inside.bits[i], inside.ranks[i]
        share = "<0.1 %" if p < 0.0005 else f"{100 * p:.1f} %"
        line = re.search(rf"^ *{i} {re.escape(text)} +{share} +{bits:.2f} +{rank}\b.*", out, re.M)[0]
        assert line.count(" %") == 1 + min(rank - 1, 5)  # the token and those that were likelier
    best = inside.lens_ids[-1, 8, 0]
    assert re.search(rf"^   9 ·y .*133   {re.escape(inside.text(best))} 19.6 %  ", out, re.M)
    assert re.search(r"^next \\n 88.8 %  ", out, re.M)


def test_the_lens_and_the_attention(inside):
    lens_lines, attention_lines = shown(inside).split("logit lens")[1].split("attention of layer 2, head 3")
    for layer, name in enumerate(("embedding", "h0", "h1", "h2", "h3")):
        best, p = inside.lens_ids[layer, 0, 0], inside.lens_probs[layer, 0, 0]
        assert re.search(rf"^{name} +{re.escape(inside.text(best))} +{100 * p:.1f} %", lens_lines, re.M)
    row = inside.attention[2, 3, 5]
    most = int(np.argmax(row))
    assert re.search(
        rf"^   5 ght +{most} {re.escape(inside.texts[most])} {100 * row[most]:.1f} %  ", attention_lines, re.M
    )


def test_merges_are_shown_when_they_are_asked_for(inside):
    assert re.search(r"^ROMEO +O\+M  E\+O  R\+OM  ROM\+EO$", shown(inside, merges=True), re.M)
    assert "ROM+EO" not in shown(inside)


def test_settings_are_named_and_used(inside):
    seen = look_inside(PROMPT, "tiny", MODELS, settings=Settings(0.7, 1000, 1.0, 1.2))
    first, second, *_ = shown(seen).splitlines()
    bits = seen.bits[1:].sum()
    assert np.isfinite(bits)
    assert bits != inside.bits[1:].sum()
    assert first.startswith(f"tiny: 19 tokens, {bits:.2f} bits, ")
    assert "temperature 0.7, top_k 1000, repetition_penalty 1.2" in second
    assert "temperature" not in shown(inside)


def test_tokens_with_probability_0_have_infinite_bits_and_no_rank():
    seen = look_inside(PROMPT, "tiny", MODELS, settings=Settings(temperature=0))
    out = shown(seen)
    assert out.startswith("tiny: 19 tokens, ∞ bits, ∞ bits per token\n")
    assert len(re.findall(r"^ *\d+ \S+ +0\.0 %       ∞       -   ", out, re.M)) == np.sum(seen.probs == 0) > 5
    assert len(re.findall(r"^ *\d+ \S+ +100\.0 %    0\.00       1", out, re.M)) == np.sum(seen.probs == 1) > 4


@pytest.mark.parametrize("width", [60, 80, 133])
def test_lines_fit_the_terminal(width):
    seen = look_inside(PROMPT + " 中文 😀", "tiny", MODELS, settings=Settings(0.7, 1000, 0.99, 1.2))
    lines = shown(seen, width, merges=True).splitlines()
    assert max(map(n_columns, lines)) <= width
    assert max(map(n_columns, lines)) > width - 20
    assert lines == [line.rstrip() for line in lines]


def test_colours_show_probabilities_and_change_nothing_else(inside):
    coloured = shown(inside, colour=True)
    assert coloured.count("\x1b[38;5;16;48;5;220m") > 5  # probabilities above 1/2
    assert " \x1b[0m" not in coloured  # spaces that fill a column have no colour
    assert re.sub(r"\x1b\[[\d;]*m", "", coloured) == shown(inside)


def test_nothing_in_a_prompt_reaches_the_terminal_raw():
    out = shown(look_inside(ODD_PROMPT, "tiny", MODELS), merges=True)
    assert not [char for char in out if not char.isprintable() and char != "\n"]


def test_a_single_token():
    assert shown(look_inside("a", "tiny", MODELS)).startswith("tiny: 1 token\n")
