"""Show the numbers of `look_inside` as tables in the terminal."""

from __future__ import annotations

import argparse
import math
import textwrap
from collections.abc import Iterator, Sequence

import numpy as np

from picogpt.explain.numbers import Inside, layer_name
from picogpt.explain.text import decimals, fit, visible_merges
from picogpt.terminal_text import n_columns

# limit: (text colour, background colour), for probabilities below the limit. The colours are numbers of the 256-colour
# palette of terminals, and follow matplotlib's viridis. With both set, a token is readable in light and dark terminals.
COLOURS = {0.01: (255, 53), 0.05: (255, 60), 0.2: (255, 30), 0.5: (16, 77), 1.0: (16, 220)}
TOKEN, INDEX, CELL = 16, 5, 18  # widths of the columns, in characters


def paint(text: str, p: float, colour: bool) -> str:
    """Colour a text by its probability, except for the spaces at its end."""
    if not colour or math.isnan(p):
        return text
    front, back = next((pair for limit, pair in COLOURS.items() if p < limit), COLOURS[1.0])
    word = text.rstrip(" ")
    return f"\x1b[38;5;{front};48;5;{back}m{word}\x1b[0m{text[len(word) :]}"


def percent(p: float) -> str:
    """Write a probability in at most 7 characters: percent(0.123) = "12.3 %" """
    return "-" if math.isnan(p) else "<0.1 %" if 0 < p < 0.0005 else f"{100 * p:.1f} %"


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


def token_table(inside: Inside, width: int, colour: bool) -> Iterator[str]:
    """Show each token with its probability, surprisal and rank, and the tokens that were more likely."""
    indent, before = INDEX + TOKEN + 27, "   "
    if width - indent < 24:  # too narrow for another column, so the likelier tokens go on the next line
        indent, before = INDEX, "\n" + " " * INDEX
    yield f"{'#':>{INDEX - 1}} {'token':{TOKEN}} {'prob.':>7}  {'bits':>6}  {'rank':>6}{before}likelier tokens"
    for i, (text, p, bits, rank) in enumerate(zip(inside.texts, inside.probs, inside.bits, inside.ranks)):
        token = paint(fit(text, TOKEN), p, colour)
        if i == 0:
            yield f"{i:{INDEX - 1}} {token} {'-':>7}  {'-':>6}  {'-':>6}   (first)"
        else:
            place, others = rank if p else "-", before + wrapped(likelier(inside, i), indent, width)
            yield f"{i:{INDEX - 1}} {token} {percent(p):>7}  {decimals(bits, 2):>6}  {place:>6}{others}".rstrip()
    yield f"{'next':>{INDEX - 1}} {wrapped(likelier(inside, len(inside.ids)), INDEX, width)}"


def merge_lines(inside: Inside, width: int) -> Iterator[str]:
    """Show the merges behind each token. A token that occurs several times is shown once."""
    for id in dict.fromkeys(inside.ids.tolist()):
        steps = visible_merges(inside.encoder, id) or ["(a single byte)"]
        yield f"{fit(inside.text(id), TOKEN)} {wrapped(steps, TOKEN + 1, width)}"


def lens_table(inside: Inside, width: int, colour: bool) -> Iterator[str]:
    """Show the token that each layer predicts after each token, with as many columns as the terminal has room for."""
    n = max(1, (width - 10) // CELL)
    for start in range(0, len(inside.ids), n):
        columns = range(start, min(start + n, len(inside.ids)))
        yield "after     " + "".join(fit(f"{i} {inside.texts[i]}", CELL - 1) + " " for i in columns).rstrip()
        for layer in reversed(range(len(inside.lens_ids))):
            cells = [(inside.text(inside.lens_ids[layer, i, 0]), inside.lens_probs[layer, i, 0]) for i in columns]
            shown = [paint(fit(text, CELL - 9), p, colour) + f"{percent(p):>8} " for text, p in cells]
            yield f"{layer_name(layer):10}" + "".join(shown).rstrip()
        yield ""


def attention_lines(inside: Inside, layer: int, head: int, top: int, width: int, colour: bool) -> Iterator[str]:
    """Show for each token the tokens that a head attends to most, with their positions."""
    for i, row in enumerate(inside.attention[layer, head]):
        most = [j for j in np.argsort(-row[: i + 1], kind="stable")[:top] if row[j] > 0]
        seen = [f"{j} {inside.texts[j]} {percent(row[j])}" for j in most]
        token = paint(fit(inside.texts[i], TOKEN), inside.probs[i], colour)
        yield f"{i:{INDEX - 1}} {token} {wrapped(seen, INDEX + TOKEN + 1, width)}"


def heading(inside: Inside, model: str, width: int) -> Iterator[str]:
    """Name the model, the sum of the surprisals and the settings."""
    known = inside.bits[1:]
    total = f", {decimals(known.sum(), 2)} bits, {decimals(known.mean(), 2)} bits per token" if len(known) else ""
    yield f"{model}: {len(inside.ids)} token{'s' * (len(inside.ids) > 1)}{total}"
    settings = f"probabilities: {inside.settings.describe()} (a space is shown as ·)"
    yield textwrap.fill(settings, width, subsequent_indent=" " * 15)


def report(inside: Inside, args: argparse.Namespace, width: int, colour: bool) -> Iterator[str]:
    """Yield everything that is shown in the terminal, line by line."""
    yield from heading(inside, args.model_size, width)
    yield from token_table(inside, width, colour)
    if args.merges:
        yield "\nmerges: the steps that build each token from single bytes"
        yield from merge_lines(inside, width)
    yield "\nlogit lens: the token that each layer predicts next"
    yield from lens_table(inside, width, colour)
    yield f"attention of layer {args.layer}, head {args.head}: where each token looks most"
    yield from attention_lines(inside, args.layer, args.head, args.top, width, colour)
