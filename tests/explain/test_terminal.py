"""The tables in the terminal: every number is there, and every line fits."""

from __future__ import annotations

import re
from argparse import Namespace

import numpy as np
import pytest

from explain import MODELS, ODD_PROMPT, PROMPT
from picogpt import Settings, look_inside
from picogpt.explain.numbers import positions
from picogpt.explain.terminal import BLACK, COLOURS, report, summary
from picogpt.terminal_text import n_columns


def shown(inside, width=200, colour=False, merges=False, tokens=None, form=report):
    args = Namespace(layer=2, head=3, top=5, merges=merges)
    return "\n".join(form(inside, positions(tokens, len(inside.ids)), args, width, colour)) + "\n"


def without_colours(text):
    return re.sub(r"\x1b\[[\d;]*m", "", text)


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


def test_the_summary_is_the_first_and_the_last_part_of_the_report(inside):
    parts = shown(inside).split("\n\n")
    (first, _, *surprising), (last, *again) = (part.strip().splitlines() for part in (parts[0], parts[-1]))
    assert first == f"tiny: {inside.summary}"
    assert last == f"summary of {first}"
    assert surprising == again
    assert (again[0], len(again)) == ("most surprising:", 5)
    assert again[-1].startswith("next ")


def test_the_lens_and_the_attention(inside):
    lens_lines, attention_lines = shown(inside).split("logit lens")[1].split("attention of layer 2, head 3")
    attention_lines = attention_lines.split("summary of")[0]
    for layer, name in enumerate(("embedding", "layer 0", "layer 1", "layer 2", "layer 3")):
        best, p = inside.stream_ids[layer, 0, 0], inside.stream_probs[layer, 0, 0]
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
    assert coloured.count("\x1b[38;5;16;48;5;68m") > 5  # probabilities above 1/2
    (embedding,) = re.findall("^embedding.*", shown(inside, 10_000, colour=True), re.M)
    assert "\x1b" not in embedding  # it only repeats the tokens
    assert " \x1b[0m" not in coloured  # spaces that fill a column have no colour
    assert re.sub("colours .*\n", "", without_colours(coloured)) == shown(inside)


@pytest.mark.parametrize("form", [report, summary])
def test_a_key_tells_what_the_colours_mean(inside, form):
    out = shown(inside, 60, colour=True, form=form)
    (line,) = [line for line in out.splitlines() if "colours by probability" in line]
    samples = re.findall(r"\x1b\[38;5;(\d+);48;5;(\d+)m(\S)(\d+) %\x1b\[0m", line)
    limits = [*COLOURS][:-1]
    assert [(int(a), int(b)) for a, b, _, _ in samples] == [(BLACK, number) for number in COLOURS.values()]
    assert [float(x) / 100 for *_, x in samples] == [*limits, limits[-1]]
    assert [sign for _, _, sign, _ in samples] == ["<", "<", "<", "<", "≥"]
    assert n_columns(without_colours(line)) <= 60


def test_only_the_chosen_tokens_are_shown(inside):
    out = shown(inside, tokens=slice(5, 8), merges=True)
    assert "shown: tokens 5 to 7\n" in out
    assert f"19 tokens, {inside.bits[1:].sum():.2f} bits" in out
    tables = re.split("\n.*(?:likelier|merges|logit lens|attention of|summary of).*\n", out)[1:]
    rows = [f"{i} {inside.texts[i]}" for i in (5, 6, 7)]
    assert re.findall(r"^ +(\d+ \S+)", tables[0], re.M) == rows
    assert re.findall(r"^(\S+)", tables[1], re.M) == inside.texts[5:8]
    assert re.findall(r"\d+ \S+", tables[2].splitlines()[0]) == rows
    assert re.findall(r"^ +(\d+ \S+)", tables[3], re.M) == rows
    assert "\nnext " not in out
    assert "\nnext " in shown(inside, tokens=slice(-3, None))


def test_the_parts_of_a_character_are_named_in_every_table(odd):
    assert odd.texts[1:] == ["你 1/3", "你 2/3", "你 3/3"]
    for table in shown(odd, 60).split("logit lens")[0], shown(odd).split("logit lens")[1]:
        assert all(text in table for text in odd.texts)


def test_a_summary_is_short_and_names_the_most_surprising_tokens():
    seen = look_inside(PROMPT * 12, "tiny", MODELS)
    out = shown(seen, 60, form=summary)
    assert out.startswith(f"tiny: {len(seen.ids)} tokens, {seen.bits[1:].sum():.2f} bits, ")
    assert len(out.splitlines()) < 10
    most = 1 + np.argsort(-seen.bits[1:], kind="stable")[:3]
    assert re.findall(r"^ *(\d+) .* (\S+) bits$", out, re.M) == [(str(i), f"{seen.bits[i]:.2f}") for i in most]
    assert re.search(rf"^next {re.escape(seen.text(seen.lens_ids[-1, -1, 0]))} ", out, re.M)
    assert "ROM+EO" in shown(seen, form=summary, merges=True)  # because they were asked for
    assert shown(look_inside("a", "tiny", MODELS), form=summary).splitlines()[2].startswith("next ")


def test_nothing_in_a_prompt_reaches_the_terminal_raw():
    out = shown(look_inside(ODD_PROMPT, "tiny", MODELS), merges=True)
    assert not [char for char in out if not char.isprintable() and char != "\n"]


def test_a_single_token():
    assert shown(look_inside("a", "tiny", MODELS)).startswith("tiny: 1 token\n")
