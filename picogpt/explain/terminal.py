"""Show the numbers of `look_inside` as tables in the terminal."""

from __future__ import annotations

import argparse
import math
import textwrap
from collections.abc import Iterator, Sequence

import numpy as np

from picogpt.explain.numbers import Inside, layer_name
from picogpt.explain.text import decimals, visible_merges
from picogpt.terminal_text import fit, n_columns, percent

# limit: background colour, for probabilities below the limit. The colours are numbers of the 256-colour palette of
# terminals, the nearest to those of pictures and pages. The text is black, so it is readable in every terminal.
COLOURS = {0.01: 255, 0.05: 189, 0.2: 153, 0.5: 111, 1.0: 68}
BLACK = 16
LABELS = ("<1 %", "<5 %", "<20 %", "<50 %", "≥50 %")  # the key to COLOURS
TOKEN, INDEX, CELL = 16, 5, 18  # widths of the columns, in characters
MOST_SURPRISING = 3  # the number of tokens in a summary


def paint(text: str, p: float, colour: bool) -> str:
    """Colour a text by its probability, except for the spaces at its end."""
    if not colour or math.isnan(p):
        return text
    back = next((number for limit, number in COLOURS.items() if p < limit), COLOURS[1.0])
    word = text.rstrip(" ")
    return f"\x1b[38;5;{BLACK};48;5;{back}m{word}\x1b[0m{text[len(word) :]}"


def wrapped(items: Sequence[str], indent: int, width: int) -> str:
    """Put items side by side, on as many lines as they need. All lines but the first are indented."""
    lines, line = [], ""
    for item in items:
        if line and indent + n_columns(line) + 2 + n_columns(item) > width:
            lines.append(line)
            line = ""
        line += ("  " if line else "") + item
    return ("\n" + " " * indent).join([*lines, line])


def likelier(inside: Inside, i: int) -> list[str]:
    """List the tokens that were more likely than token i. After the last token, list the most likely next ones."""
    ids, probs = inside.lens_ids[-1, i - 1], inside.lens_probs[-1, i - 1]
    least = inside.probs[i] if i < len(inside.ids) else 0.0
    return [f"{inside.text(id)} {percent(p)}" for id, p in zip(ids, probs) if p > least]


def key() -> str:
    """Show which colour stands for which probabilities."""
    lows = [0.0, *COLOURS]  # each colour begins where the one before ends
    return "colours by probability: " + "  ".join(paint(text, low, True) for text, low in zip(LABELS, lows))


def token_table(inside: Inside, tokens: range, width: int, colour: bool) -> Iterator[str]:
    """Show each token with its probability, surprisal and rank, and the tokens that were more likely."""
    indent, before = INDEX + TOKEN + 27, "   "
    if width - indent < 24:  # too narrow for another column, so the likelier tokens go on the next line
        indent, before = INDEX, "\n" + " " * INDEX
    yield f"{'#':>{INDEX - 1}} {'token':{TOKEN}} {'prob.':>7}  {'bits':>6}  {'rank':>6}{before}likelier tokens"
    for i in tokens:
        p, bits, rank = inside.probs[i], inside.bits[i], inside.ranks[i]
        token = paint(fit(inside.texts[i], TOKEN), p, colour)
        if i == 0:
            yield f"{i:{INDEX - 1}} {token} {'-':>7}  {'-':>6}  {'-':>6}   (first)"
        else:
            place, others = rank if p else "-", before + wrapped(likelier(inside, i), indent, width)
            yield f"{i:{INDEX - 1}} {token} {percent(p):>7}  {decimals(bits, 2):>6}  {place:>6}{others}".rstrip()


def next_tokens(inside: Inside, width: int) -> str:
    return f"{'next':>{INDEX - 1}} {wrapped(likelier(inside, len(inside.ids)), INDEX, width)}"


def signed(bits: float) -> str:
    """Write a change in bits: signed(0.123) = "+0.12", and "-" where there is no number."""
    return "-" if math.isnan(bits) else f"{round(bits, 2) + 0.0:+.2f}".replace("inf", "∞")


def top_change(whole: Inside, inside: Inside, i: int) -> list[str]:
    """Name the likeliest token at position i, with its probability, in the whole model and with replaced parts."""
    ids = [x.lens_ids[-1, i - 1, 0] for x in (whole, inside)]
    probs = [percent(x.lens_probs[-1, i - 1, 0]) for x in (whole, inside)]
    now = probs[1] if ids[0] == ids[1] else f"{inside.text(ids[1])} {probs[1]}"
    return [f"{inside.text(ids[0])} {probs[0]}", f"→ {now}"]


def change_table(inside: Inside, tokens: Sequence[int], width: int, colour: bool) -> Iterator[str]:
    """Show for each token how replaced parts change its probability, and which token is the likeliest there.

    The position after the last token has no token, only the likeliest ones.
    """
    assert inside.whole is not None
    indent, before = INDEX + TOKEN + 30, "   "
    if width - indent < 24:  # as in `token_table`
        indent, before = INDEX, "\n" + " " * INDEX
    yield f"{'#':>{INDEX - 1}} {'token':{TOKEN}} {'whole':>7}  {'now':>7}  {'change':>7}{before}likeliest: whole → now"
    for i in (i for i in tokens if i > 0):
        likeliest = wrapped(top_change(inside.whole, inside, i), indent, width)
        if i == len(inside.ids):
            yield f"{'next':{indent}}{likeliest}"
            continue
        token = paint(fit(inside.texts[i], TOKEN), inside.probs[i], colour)
        probs = f"{percent(inside.whole.probs[i]):>7}  {percent(inside.probs[i]):>7}"
        yield f"{i:{INDEX - 1}} {token} {probs}  {signed(inside.change[i]):>7}{before}{likeliest}"


def change_heading(inside: Inside) -> str:
    """Say how many bits the replaced parts add to the whole text."""
    known = inside.change[1:]
    sums = f": {signed(known.sum())} bits, {signed(known.mean())} bits per token" if len(known) else ""
    return f"change from the whole model{sums}"


def merge_report(inside: Inside, tokens: range, width: int) -> Iterator[str]:
    """Show the merges behind each token. A token that occurs several times is shown once."""
    yield "\nmerges: the steps that build each token from single bytes"
    for id in dict.fromkeys(inside.ids[tokens].tolist()):
        steps = visible_merges(inside.encoder, id) or ["(a single byte)"]
        yield f"{fit(inside.text(id), TOKEN)} {wrapped(steps, TOKEN + 1, width)}"


def lens_table(inside: Inside, tokens: range, width: int, colour: bool) -> Iterator[str]:
    """Show the token that each layer predicts after each token, with as many columns as the terminal has room for."""
    n = max(1, (width - 10) // CELL)
    for start in range(0, len(tokens), n):
        columns = tokens[start : start + n]
        yield "after     " + "".join(fit(f"{i} {inside.texts[i]}", CELL - 1) + " " for i in columns).rstrip()
        for layer in reversed(range(len(inside.stream_ids))):
            cells = [(inside.text(inside.stream_ids[layer, i, 0]), inside.stream_probs[layer, i, 0]) for i in columns]
            painted = colour and layer > 0  # the embedding only repeats its tokens
            shown = [paint(fit(text, CELL - 9), p, painted) + f"{percent(p):>8} " for text, p in cells]
            yield f"{layer_name(layer):10}" + "".join(shown).rstrip()
        yield ""


def attention_lines(inside: Inside, tokens: range, args: argparse.Namespace, width: int, colour: bool) -> Iterator[str]:
    """Show for each token the tokens that a head attends to most, with their positions."""
    for i in tokens:
        row = inside.attention[args.layer, args.head, i]
        most = [j for j in np.argsort(-row[: i + 1], kind="stable")[: args.top] if row[j] > 0]
        seen = [f"{j} {inside.texts[j]} {percent(row[j])}" for j in most]
        token = paint(fit(inside.texts[i], TOKEN), inside.probs[i], colour)
        yield f"{i:{INDEX - 1}} {token} {wrapped(seen, INDEX + TOKEN + 1, width)}"


def heading(inside: Inside, tokens: range, width: int, colour: bool) -> Iterator[str]:
    """Name the settings, the colours, and the shown tokens unless all are."""
    settings = f"probabilities: {inside.settings.describe()} (a space is shown as ·)"
    yield textwrap.fill(settings, width, subsequent_indent=" " * 15)
    if len(tokens) < len(inside.ids):
        yield f"shown: tokens {tokens[0]} to {tokens[-1]}"
    if colour:
        yield key()


def result(inside: Inside, tokens: range, width: int, colour: bool) -> Iterator[str]:
    """Yield what matters most: the sum of the surprisals, the most surprising tokens, and the likeliest next ones."""
    known = [i for i in tokens if i > 0]
    if known:
        yield "most surprising:"
    for i in sorted(known, key=lambda i: -inside.bits[i])[:MOST_SURPRISING]:
        token = paint(fit(inside.texts[i], TOKEN), inside.probs[i], colour)
        yield f"{i:{INDEX - 1}} {token} {percent(inside.probs[i]):>7}  {decimals(inside.bits[i], 2):>6} bits".rstrip()
    end = [len(inside.ids)] if tokens.stop == len(inside.ids) else []
    if end:
        yield next_tokens(inside, width)
    if inside.whole:
        yield change_heading(inside) + "; most of it:"
        most = sorted(known, key=lambda i: -np.nan_to_num(abs(inside.change[i])))[:MOST_SURPRISING]
        yield from change_table(inside, [*most, *end], width, colour)


def summary(inside: Inside, tokens: range, args: argparse.Namespace, width: int, colour: bool) -> Iterator[str]:
    """Yield the few lines that are shown when the numbers themselves go to a page or to pictures."""
    yield f"{inside.model}: {inside.summary}"
    yield from heading(inside, tokens, width, colour)
    yield from result(inside, tokens, width, colour)
    if args.merges:
        yield from merge_report(inside, tokens, width)


def report(inside: Inside, tokens: range, args: argparse.Namespace, width: int, colour: bool) -> Iterator[str]:
    """Yield all the numbers of these tokens, line by line. The summary comes first and last."""
    yield f"{inside.model}: {inside.summary}"
    yield from heading(inside, tokens, width, colour)
    yield from result(inside, tokens, width, colour)
    yield ""
    yield from token_table(inside, tokens, width, colour)
    if inside.whole:
        yield f"\n{change_heading(inside)}"
        end = [len(inside.ids)] if tokens.stop == len(inside.ids) else []
        yield from change_table(inside, [*tokens, *end], width, colour)
    if args.merges:
        yield from merge_report(inside, tokens, width)
    yield "\nlogit lens: the token that each layer predicts next"
    yield from lens_table(inside, tokens, width, colour)
    yield f"attention of layer {args.layer}, head {args.head}: where each token looks most"
    yield from attention_lines(inside, tokens, args, width, colour)
    yield f"\nsummary of {inside.model}: {inside.summary}"
    yield from result(inside, tokens, width, colour)
