"""Draw the numbers of `look_inside` as pictures with matplotlib, which can be read in a column of 650 pixels.

    inside = look_inside("Alan Turing theorized that computers would", "124M")
    plot_attention(inside, layer=11)

Every function draws into the given figure or axes and keeps its size, or makes a new figure with pyplot. It returns its
axes. `tokens=slice(10, 20)` draws these tokens only, and `title=False` leaves the title out. Tokens are shown as plain
text: a $ does not start mathematics, and a character that no font has is escaped.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import IO, TYPE_CHECKING, Any

import numpy as np

from picogpt.explain.numbers import Array, Inside, layer_name, positions
from picogpt.explain.text import decimals, escaped, fit
from picogpt.options import require

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure, SubFigure

    Place = Figure | SubFigure | None  # where to draw; None makes a new figure

WIDTH, DPI = 6.5, 200  # inches, so that a picture scaled to 650 pixels has 100 pixels for an inch
SMALL, LARGE = 8, 9  # sizes of letters in points: 11 and 12.5 of those pixels
BLUE, ORANGE = "#3b6fb6", "#b8541a"  # two colours that colour-blind readers can tell apart
MAX_ROWS, MAX_COLUMNS = 40, 7  # more tokens or layers would be too small to read
FONTS = (  # in order of preference, as not every font has every character; the first comes with matplotlib
    *("DejaVu Sans", "Segoe UI Symbol", "Noto Emoji", "Noto Sans Devanagari", "Noto Sans Arabic", "Malgun Gothic"),
    *("Yu Gothic", "Microsoft YaHei", "PingFang SC", "Hiragino Sans", "Noto Sans CJK JP", "Noto Sans CJK SC"),
)

# ------------------------------------------------------------------------------------------- figures, texts and colours


def height_of(name: str, inside: Inside, tokens: slice | None) -> float:
    """Return the height in inches that a picture, named as in FIGURES, needs if it is WIDTH wide."""
    n_rows, n_columns = panels_of(inside)
    heights = {"attention": 5.2 * n_rows / n_columns + 1.9, "residual": 3.6}
    return heights.get(name) or 0.21 * len(last_rows(inside, tokens)) + 1.7


def panels_of(inside: Inside) -> tuple[int, int]:
    """Return how many rows and columns the panels of all heads take. More than three would be too small to read."""
    n_head = inside.attention.shape[1]
    n_columns = min(3, math.ceil(math.sqrt(n_head)))
    return math.ceil(n_head / n_columns), n_columns


def new_figure(height: float, figure: Place) -> Figure | SubFigure:
    """Return the given figure, or a new one of pyplot, which a notebook shows. The height is in inches."""
    require("matplotlib")
    if figure is None:
        import matplotlib.pyplot as plt

        figure = plt.figure(figsize=(WIDTH, height), layout="constrained")
    if figure.get_layout_engine() is None and hasattr(figure, "set_layout_engine"):  # parts of a figure have no own one
        figure.set_layout_engine("constrained")
    return figure


def new_axes(height: float, figure: Place, axes: Axes | None) -> Axes:
    """Return the given axes, or new ones in the given figure or in a new one."""
    return axes if axes is not None else new_figure(height, figure).subplots()


@functools.lru_cache(maxsize=1)
def fonts() -> tuple[list[str], frozenset[int]]:
    """Return the names of the installed FONTS, and the codes of all characters that they have.

    A family has several files, such as an oblique one with fewer characters. Only the one that is drawn counts.
    """
    from matplotlib import font_manager

    installed = {entry.name for entry in font_manager.fontManager.ttflist}
    names = [name for name in FONTS if name in installed]
    drawn = [font_manager.findfont(font_manager.FontProperties(family=[name])) for name in names]
    return names, frozenset(code for path in drawn for code in font_manager.get_font(path).get_charmap())


def label(text: str, width: int = 14) -> str:
    """Shorten a text for a picture, and escape the characters that no font has."""
    known = fonts()[1]
    return fit("".join(char if ord(char) in known else escaped(char) for char in text), width).rstrip()


def style(size: float = SMALL) -> dict[str, Any]:
    """Return the settings for every text in a picture: its size, these fonts, and no mathematics."""
    return {"fontsize": size, "family": fonts()[0], "parse_math": False, "usetex": False}


def last_rows(inside: Inside, tokens: slice | None) -> range:
    """Return the positions that a slice chooses. Without a slice, these are as many of the last as can be read."""
    return positions(tokens, len(inside.ids)) if tokens else range(len(inside.ids))[-MAX_ROWS:]


def title_of(text: str, tokens: range, inside: Inside) -> str:
    """Return a title of several lines: what is drawn, model and text, which tokens, and settings that were changed."""
    part = f"tokens {tokens[0]} to {tokens[-1]} of {len(inside.ids)}" if len(tokens) < len(inside.ids) else ""
    notes = ", ".join(filter(None, [part, *inside.settings.changed()]))
    return "\n".join(filter(None, [text, label(inside.caption(50), 80), notes]))


def set_title(axes: Axes, text: str) -> None:
    axes.set_title(text, loc="left", **style(LARGE))


def set_ticks(axis: Any, names: list[str], step: int = 1, **settings: Any) -> None:
    """Label every `step`-th place of an axis with its name. The places are 0, 1, 2, …"""
    axis.set_ticks(range(0, len(names), step), names[::step], **style(), **settings)


def probability_norm() -> Any:
    """Return a colour scale over the square root of the probability, so that 1 % can be told from 0."""
    from matplotlib.colors import PowerNorm

    return PowerNorm(0.5, 0, 1)


def colour_bar(image: Any, axes: list[Axes], text: str) -> None:
    place: dict[str, Any] = {"location": "bottom", "pad": 0.03, "shrink": 0.7, "aspect": 40}
    bar = axes[0].figure.colorbar(image, ax=axes, ticks=[0, 0.01, 0.1, 0.25, 0.5, 1], format="{x:.0%}", **place)
    bar.ax.tick_params(labelsize=SMALL)
    bar.set_label(text, fontsize=SMALL)


# ----------------------------------------------------------------------------------------------------- the pictures


def plot_attention(
    inside: Inside, layer: int, figure: Place = None, *, tokens: slice | None = None, title: bool = True
) -> Array:
    """Draw the attention of all heads of a layer. Row i of each square is the attention of token i. -> axes [n_head]

    With `tokens`, both rows and columns are these tokens.
    """
    chosen = positions(tokens, len(inside.ids))
    heads = inside.attention[layer][:, chosen][:, :, chosen]
    n_rows, n_columns = panels_of(inside)
    figure = new_figure(height_of("attention", inside, tokens), figure)
    grid = figure.subplots(n_rows, n_columns, sharex=True, sharey=True, squeeze=False).ravel()
    axes, unused = grid[: len(heads)], grid[len(heads) :]
    for panel in unused:
        panel.remove()
    past = np.tri(len(chosen), dtype=bool)
    names = [label(inside.texts[i], 10) for i in chosen]
    step = math.ceil(len(names) * n_columns / 33)  # 33 labels have room beside each other
    for head, (panel, probs) in enumerate(zip(axes, heads)):
        image = panel.imshow(np.ma.array(probs, mask=~past), cmap="viridis", norm=probability_norm())
        set_title(panel, f"head {head}")
        set_ticks(panel.xaxis, names, step, rotation=90)
        set_ticks(panel.yaxis, names, step)
        panel.tick_params(labelbottom=head + n_columns >= len(heads))
    if title:
        heading = title_of(f"Attention in layer {layer}: each row shows where one token looks", chosen, inside)
        figure.suptitle(heading, x=0.01, ha="left", **style(LARGE))
    colour_bar(image, axes.tolist(), "attention" + (" (each row sums to 100 %)" if chosen[0] == 0 else ""))
    return np.array(axes)


def plot_lens(
    inside: Inside, figure: Place = None, *, axes: Axes | None = None, tokens: slice | None = None, title: bool = True
) -> Axes:
    """Draw the logit lens: the token that each layer predicts after each token, coloured by its probability."""
    rows = last_rows(inside, tokens)
    step = math.ceil(len(inside.stream_ids) / MAX_COLUMNS)
    layers = range((len(inside.stream_ids) - 1) % step, len(inside.stream_ids), step)  # ends with the last layer
    axes = new_axes(height_of("lens", inside, tokens), figure, axes)
    probs = inside.stream_probs[np.ix_(layers, rows, [0])][..., 0].T
    image = axes.imshow(probs, cmap="viridis", norm=probability_norm(), aspect="auto")
    for column, layer in enumerate(layers):
        for row, token in enumerate(rows):
            text = label(inside.text(inside.stream_ids[layer, token, 0]), 10)
            front = "black" if probs[row, column] > 0.3 else "white"
            axes.text(column, row, text, ha="center", va="center", color=front, clip_on=True, **style())
    set_ticks(axes.xaxis, [layer_name(layer) for layer in layers])
    set_ticks(axes.yaxis, [label(inside.texts[token]) for token in rows])
    axes.set_ylabel("after", fontsize=SMALL)
    if title:
        which = "each layer" if step == 1 else f"every {step}{'nd' if step == 2 else 'rd' if step == 3 else 'th'} layer"
        set_title(axes, title_of(f"Logit lens: the token that {which} predicts next", rows, inside))
    colour_bar(image, [axes], "probability")
    return axes


def plot_probabilities(
    inside: Inside, figure: Place = None, *, axes: Axes | None = None, tokens: slice | None = None, title: bool = True
) -> Axes:
    """Draw the probability of each token, and the most likely token wherever that was a different one."""
    rows = last_rows(inside, tokens)
    axes = new_axes(height_of("probabilities", inside, tokens), figure, axes)
    axes.barh(range(len(rows)), np.nan_to_num(inside.probs[rows]), color=BLUE, label="this token")
    draw_alternatives(axes, inside, rows)
    set_ticks(axes.yaxis, [label(inside.texts[token]) for token in rows])
    axes.set_ylim(len(rows) - 0.4, -0.6)
    axes.set_xlim(0, 1)
    axes.xaxis.set_major_formatter("{x:.0%}")
    for row, token in enumerate(rows):
        bits = f"{decimals(inside.bits[token], 1)} bits" if token else "first token"
        axes.annotate(bits, (1, row), (6, 0), textcoords="offset points", va="center", fontsize=SMALL)
    axes.tick_params(labelsize=SMALL)
    axes.grid(axis="x", alpha=0.3)
    if title:
        set_title(axes, title_of("Probability of each token", rows, inside))
    place: dict[str, Any] = {"loc": "upper center", "bbox_to_anchor": (0, 0, 1, 0), "borderaxespad": 2.5}
    axes.legend(ncols=2, fontsize=SMALL, frameon=False, reverse=True, **place)
    return axes


def draw_alternatives(axes: Axes, inside: Inside, tokens: range) -> None:
    """Draw a ring with a name at the probability of the most likely token, in each row whose token was another one."""
    rows = [row for row, token in enumerate(tokens) if inside.ranks[token] > 1]
    ids = [inside.lens_ids[-1, tokens[row] - 1, 0] for row in rows]
    probs = [inside.lens_probs[-1, tokens[row] - 1, 0] for row in rows]
    rings = axes.plot(probs, rows, "o", markersize=5, markeredgecolor=ORANGE, label="most likely token, if different")
    rings[0].set(markerfacecolor="none", clip_on=False)  # so that rings at 0 % and 100 % stay whole
    for row, id, p in zip(rows, ids, probs):
        side, align = ((-7, 0), "right") if p > 0.8 else ((7, 0), "left")
        text = axes.annotate(label(inside.text(id)), (p, row), side, textcoords="offset points", **style())
        text.set(ha=align, va="center", color=ORANGE)


def plot_residual(
    inside: Inside, figure: Place = None, *, axes: Axes | None = None, tokens: slice | None = None, title: bool = True
) -> Axes:
    """Draw the length of the vectors in the residual stream after each layer, with one line for each token."""
    axes = new_axes(height_of("residual", inside, tokens), figure, axes)
    chosen = positions(tokens, len(inside.ids))
    others = inside.stream_lengths[:, [i for i in chosen if i > 0]]
    if chosen[0] == 0:
        axes.plot(inside.stream_lengths[:, 0], color=ORANGE, linewidth=2, marker="o", markersize=3, label="first token")
    if others.size:
        axes.plot(others, color=BLUE, linewidth=0.8, alpha=max(0.1, min(0.5, 10 / others.shape[1])))
        axes.plot(np.median(others, axis=1), color=BLUE, linewidth=2, label="other tokens (thick line: their median)")
    scale_residual(axes, len(inside.stream_lengths))
    axes.legend(fontsize=SMALL, frameon=False)
    if title:
        set_title(axes, title_of("Residual stream: length of its vectors after each layer", chosen, inside))
    return axes


def scale_residual(axes: Axes, n_lengths: int) -> None:
    """Set up the axes of `plot_residual`: layers across, which are named up to the last, and lengths upwards."""
    from matplotlib.ticker import LogFormatter

    axes.set_yscale("log")
    axes.yaxis.set_major_formatter("{x:g}")
    axes.yaxis.set_minor_formatter(LogFormatter(labelOnlyBase=False, minor_thresholds=(2, 1)))
    axes.tick_params(which="both", labelsize=SMALL)
    step = math.ceil(n_lengths / MAX_COLUMNS)
    named = range((n_lengths - 1) % step, n_lengths, step)
    axes.xaxis.set_ticks(named, [layer_name(layer) for layer in named], **style())
    axes.set_ylabel("length of the vector (L2 norm)", fontsize=SMALL)
    axes.grid(alpha=0.3)


# -------------------------------------------------------------------------------------------------------- the files

FIGURES: dict[str, Callable[[Inside, int, Figure, slice | None], Any]] = {
    "attention": lambda inside, layer, figure, tokens: plot_attention(inside, layer, figure, tokens=tokens),
    "lens": lambda inside, layer, figure, tokens: plot_lens(inside, figure, tokens=tokens),
    "probabilities": lambda inside, layer, figure, tokens: plot_probabilities(inside, figure, tokens=tokens),
    "residual": lambda inside, layer, figure, tokens: plot_residual(inside, figure, tokens=tokens),
}


def save(name: str, inside: Inside, layer: int, file: IO[bytes], tokens: slice | None = None) -> None:
    """Draw one of FIGURES and write it as PNG. Without pyplot, no window opens and no global state changes."""
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    with rc_context({"text.usetex": False}):  # for the numbers along the axes
        figure = Figure((WIDTH, height_of(name, inside, tokens)), layout="constrained")
        FIGURES[name](inside, layer, figure, tokens)
        figure.savefig(file, format="png", dpi=DPI)
