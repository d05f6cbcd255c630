"""Draw the numbers of `look_inside` as pictures with matplotlib, sized for the column of a blog post.

    inside = look_inside("Alan Turing theorized that computers would", "124M")
    plot_attention(inside, layer=11)

Every function draws into the given figure, or into a new one of pyplot, and returns its axes. Tokens are shown as plain
text: a $ does not start mathematics, and a character that no font has is escaped.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import IO, TYPE_CHECKING, Any

import numpy as np

from picogpt.explain.numbers import Array, Inside, layer_name
from picogpt.explain.text import decimals, escaped, fit
from picogpt.options import require

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

DPI = 150
BLUE, ORANGE = "#3b6fb6", "#b8541a"  # two colours that colour-blind readers can tell apart
MAX_ROWS, MAX_COLUMNS, MAX_LABELS = 40, 7, 20  # more tokens, layers or token labels would be too small to read
FONTS = (  # in order of preference, as not every font has every character; the first comes with matplotlib
    *("DejaVu Sans", "Segoe UI Symbol", "Noto Emoji", "Noto Sans Devanagari", "Noto Sans Arabic", "Malgun Gothic"),
    *("Yu Gothic", "Microsoft YaHei", "PingFang SC", "Hiragino Sans", "Noto Sans CJK JP", "Noto Sans CJK SC"),
)


def new_figure(width: float, height: float, figure: Figure | None) -> Figure:
    """Return the given figure, or a new one of pyplot, which a notebook shows. Width and height are in inches."""
    require("matplotlib")
    if figure is None:
        import matplotlib.pyplot as plt

        figure = plt.figure(layout="constrained")
    if figure.get_layout_engine() is None:
        figure.set_layout_engine("constrained")
    figure.set_size_inches(width, height)
    return figure


@functools.lru_cache(maxsize=1)
def fonts() -> tuple[list[str], frozenset[int]]:
    """Return the names of the installed FONTS, and the codes of all characters that they have."""
    from matplotlib import font_manager

    installed = {entry.name: entry.fname for entry in font_manager.fontManager.ttflist if entry.name in FONTS}
    names = sorted(installed, key=FONTS.index)
    return names, frozenset(code for name in names for code in font_manager.get_font(installed[name]).get_charmap())


def label(text: str, width: int = 14) -> str:
    """Shorten a token's text for a picture, and escape the characters that no font has."""
    known = fonts()[1]
    return fit("".join(char if ord(char) in known else escaped(char) for char in text), width).rstrip()


def style() -> dict[str, Any]:
    """Return the settings for every text in a picture: these fonts, and no mathematics."""
    return {"family": fonts()[0], "parse_math": False, "usetex": False}


def shown(n_seq: int) -> range:
    """Return the last positions of a text, as many as a picture has room for."""
    return range(max(0, n_seq - MAX_ROWS), n_seq)


def set_title(axes: Axes, text: str) -> None:
    axes.set_title(text, loc="left", fontsize=10, **style())


def title_of(text: str, tokens: range, inside: Inside) -> str:
    """Append to a title which tokens are shown, unless all are, and the settings that are not the defaults."""
    part = "" if len(tokens) == len(inside.ids) else f" (the last {len(tokens)} of {len(inside.ids)} tokens)"
    changed = inside.settings.changed()
    return text + part + ("\nwith " + ", ".join(changed) if changed else "")


def set_ticks(axis: Any, names: list[str], **settings: Any) -> None:
    """Label an axis with these names, at 0, 1, 2, …"""
    axis.set_ticks(range(len(names)), names, fontsize=8, **style(), **settings)


def probability_norm() -> Any:
    """Return a colour scale over the square root of the probability, so that 1 % can be told from 0."""
    from matplotlib.colors import PowerNorm

    return PowerNorm(0.5, 0, 1)


def colour_bar(figure: Figure, image: Any, axes: Any, text: str) -> None:
    place: dict[str, Any] = {"location": "bottom", "pad": 0.03, "shrink": 0.6, "aspect": 40}
    bar = figure.colorbar(image, ax=axes, ticks=[0, 0.01, 0.1, 0.25, 0.5, 1], format="{x:.0%}", **place)
    bar.ax.tick_params(labelsize=8)
    bar.set_label(text, fontsize=8)


def plot_attention(inside: Inside, layer: int, figure: Figure | None = None) -> Array:
    """Draw the attention of all heads of a layer. Row i of each square is the attention of token i. -> axes [n_head]"""
    heads, n_seq = inside.attention[layer], len(inside.ids)
    n_columns = math.ceil(math.sqrt(len(heads)))
    n_rows = math.ceil(len(heads) / n_columns)
    figure = new_figure(9, 8.4 * n_rows / n_columns + 1.7, figure)
    axes = figure.subplots(n_rows, n_columns, sharex=True, sharey=True, squeeze=False).ravel()
    past = np.tri(n_seq, dtype=bool)
    for head, (panel, probs) in enumerate(zip(axes, heads)):
        image = panel.imshow(np.ma.array(probs, mask=~past), cmap="viridis", norm=probability_norm())
        set_title(panel, f"head {head}")
        panel.tick_params(labelbottom=head + n_columns >= len(heads), labelsize=8)
        if n_seq <= MAX_LABELS:
            set_ticks(panel.xaxis, [label(text) for text in inside.texts], rotation=90)
            set_ticks(panel.yaxis, [label(text) for text in inside.texts])
    for panel in axes[len(heads) :]:
        panel.remove()
    figure.suptitle(f"Attention in layer {layer}: each row shows where one token looks", fontsize=11)
    colour_bar(figure, image, axes[: len(heads)].tolist(), "attention (each row sums to 100 %)")
    return np.array(axes[: len(heads)])


def plot_lens(inside: Inside, figure: Figure | None = None) -> Axes:
    """Draw the logit lens: the token that each layer predicts after each token, coloured by its probability."""
    tokens = shown(len(inside.ids))
    step = math.ceil(len(inside.lens_ids) / MAX_COLUMNS)
    layers = range((len(inside.lens_ids) - 1) % step, len(inside.lens_ids), step)  # ends with the last layer
    probs = inside.lens_probs[np.ix_(layers, tokens, [0])][..., 0].T
    figure = new_figure(9, 0.25 * len(tokens) + 1.8, figure)
    axes = figure.subplots()
    image = axes.imshow(probs, cmap="viridis", norm=probability_norm(), aspect="auto")
    for column, layer in enumerate(layers):
        for row, token in enumerate(tokens):
            text = label(inside.text(inside.lens_ids[layer, token, 0]), 11)
            front = "black" if probs[row, column] > 0.3 else "white"
            axes.text(column, row, text, ha="center", va="center", fontsize=8, color=front, **style())
    set_ticks(axes.xaxis, [layer_name(layer) for layer in layers])
    set_ticks(axes.yaxis, [label(inside.texts[token]) for token in tokens])
    axes.set_ylabel("after", fontsize=9)
    which = "each layer" if step == 1 else f"every {step}{'nd' if step == 2 else 'rd' if step == 3 else 'th'} layer"
    set_title(axes, title_of(f"Logit lens: the token that {which} predicts next", tokens, inside))
    colour_bar(figure, image, axes, "probability")
    return axes


def plot_probabilities(inside: Inside, figure: Figure | None = None) -> Axes:
    """Draw the probability of each token, and the most likely token wherever that was a different one."""
    tokens = shown(len(inside.ids))
    figure = new_figure(8, 0.25 * len(tokens) + 1.1, figure)
    axes = figure.subplots()
    axes.barh(range(len(tokens)), np.nan_to_num(inside.probs[tokens]), color=BLUE, label="this token")
    rows, ids, probs = alternatives(inside, tokens)
    rings = axes.plot(probs, rows, "o", markersize=5, markeredgecolor=ORANGE, label="most likely token, if different")
    rings[0].set(markerfacecolor="none", clip_on=False)  # so that rings at 0 % and 100 % stay whole
    for row, id, p in zip(rows, ids, probs):
        side, align = ((-7, 0), "right") if p > 0.8 else ((7, 0), "left")
        text = axes.annotate(label(inside.text(id)), (p, row), side, textcoords="offset points", **style())
        text.set(ha=align, va="center", fontsize=8, color=ORANGE)
    set_ticks(axes.yaxis, [label(inside.texts[token]) for token in tokens])
    axes.set_ylim(len(tokens) - 0.4, -0.6)
    axes.set_xlim(0, 1)
    axes.xaxis.set_major_formatter("{x:.0%}")
    for row, token in enumerate(tokens):
        bits = f"{decimals(inside.bits[token], 1)} bits" if token else "first token"
        axes.annotate(bits, (1, row), (6, 0), textcoords="offset points", va="center", fontsize=8)
    axes.tick_params(labelsize=8)
    axes.grid(axis="x", alpha=0.3)
    set_title(axes, title_of("Probability of each token", tokens, inside))
    figure.legend(loc="outside lower center", ncols=2, fontsize=8, frameon=False)
    return axes


def alternatives(inside: Inside, tokens: range) -> tuple[list[int], list[int], list[float]]:
    """Find the tokens that were not the most likely. Return their rows, and the most likely ids with probabilities."""
    rows = [row for row, token in enumerate(tokens) if inside.ranks[token] > 1]
    best = [(inside.lens_ids[-1, tokens[row] - 1, 0], inside.lens_probs[-1, tokens[row] - 1, 0]) for row in rows]
    return rows, [int(id) for id, _ in best], [float(p) for _, p in best]


def plot_residual(inside: Inside, figure: Figure | None = None) -> Axes:
    """Draw the length of the vectors in the residual stream after each layer, with one line for each token."""
    require("matplotlib")
    from matplotlib.ticker import LogFormatter

    figure = new_figure(8, 4, figure)
    axes = figure.subplots()
    first, others = inside.residual[:, 0], inside.residual[:, 1:]
    axes.plot(first, color=ORANGE, linewidth=2, marker="o", markersize=3, label="first token")
    if others.size:
        axes.plot(others, color=BLUE, linewidth=0.8, alpha=max(0.1, min(0.5, 10 / others.shape[1])))
        axes.plot(np.median(others, axis=1), color=BLUE, linewidth=2, label="other tokens (thick line: their median)")
    axes.set_yscale("log")
    axes.yaxis.set_major_formatter("{x:g}")
    axes.yaxis.set_minor_formatter(LogFormatter(labelOnlyBase=False, minor_thresholds=(2, 1)))
    step = math.ceil(len(first) / (2 * MAX_COLUMNS))
    named = [layer_name(layer) if (len(first) - 1 - layer) % step == 0 else "" for layer in range(len(first))]
    set_ticks(axes.xaxis, named)
    axes.set_ylabel("length of the vector (L2 norm)", fontsize=9)
    axes.tick_params(which="both", labelsize=8)
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8, frameon=False)
    set_title(axes, "Residual stream: length of its vectors after each layer")
    return axes


FIGURES: dict[str, Callable[[Inside, int, Figure], Any]] = {
    "attention": plot_attention,
    "lens": lambda inside, layer, figure: plot_lens(inside, figure),
    "probabilities": lambda inside, layer, figure: plot_probabilities(inside, figure),
    "residual": lambda inside, layer, figure: plot_residual(inside, figure),
}


def save(name: str, inside: Inside, layer: int, file: IO[bytes]) -> None:
    """Draw one of FIGURES and write it as PNG. Without pyplot, no window opens and no global state changes."""
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    with rc_context({"text.usetex": False}):  # for the numbers along the axes
        figure = Figure(layout="constrained")
        FIGURES[name](inside, layer, figure)
        figure.savefig(file, format="png", dpi=DPI)
