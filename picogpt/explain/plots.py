"""Draw the numbers of `look_inside` as pictures with matplotlib.

    inside = look_inside("Alan Turing theorized that computers would", "124M")
    plot_head(inside, layer=11, head=3)

Every function draws into the given figure or axes and keeps its size, or makes a new figure with pyplot. It returns its
axes. `tokens=slice(10, 20)` draws these tokens only, and `title=False` leaves the title and the source out. Tokens are
shown as plain text: a $ does not start mathematics, and a character that no font has is escaped.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import IO, TYPE_CHECKING, Any

import numpy as np

from picogpt.explain import figures
from picogpt.explain.heads import head_size, heads_size, plot_attention, plot_head
from picogpt.explain.numbers import Inside, layer_name, positions
from picogpt.explain.text import decimals

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from picogpt.explain.figures import Place

MAX_COLUMNS = 25  # so many layers of the lens have room
RESIDUAL_SIZE = figures.WIDTH, 3.8


def rows_size(inside: Inside, tokens: slice | None) -> tuple[float, float]:
    """Return the width and height in inches of a picture with a row for each token."""
    return figures.WIDTH, 0.21 * len(figures.last_rows(inside, tokens)) + 1.9


def lens_size(inside: Inside, tokens: slice | None) -> tuple[float, float]:
    """Return the width and height in inches of a picture of the lens. Many layers make it wider."""
    width, height = rows_size(inside, tokens)
    return max(width, 1.5 + 0.64 * min(MAX_COLUMNS, len(inside.stream_ids))), height


# ---------------------------------------------------------------------------------------------- lens and probabilities


def layers_of(n: int, width: float) -> Sequence[int]:
    """Return the layers of n that have room in a width of so many inches: all, or every second or so up to the last."""
    step = max(math.ceil(n / MAX_COLUMNS), math.ceil(0.4 * n / width))
    return range((n - 1) % step, n, step)


def plot_lens(
    inside: Inside, figure: Place = None, *, axes: Axes | None = None, tokens: slice | None = None, title: bool = True
) -> Axes:
    """Draw the logit lens: the token that each layer predicts after each token, coloured by its probability.

    The column of the embedding is pale, because it only repeats its tokens.
    """
    rows, given = figures.last_rows(inside, tokens), axes is not None
    axes = figures.new_axes(lens_size(inside, tokens), figure, axes)
    layers = layers_of(len(inside.stream_ids), figures.inches(axes)[0])
    probs = inside.stream_probs[np.ix_(layers, rows, [0])][..., 0].T
    pale = np.where(np.array(layers) == 0, 0.25, 1.0) * np.ones_like(probs)
    image = figures.draw_cells(axes, probs, alpha=pale)
    room = int(figures.inches(axes)[0] / len(layers) * figures.LETTERS)
    write_predictions(axes, inside, rows, layers, room)
    name_layers(axes, layers, range(len(layers)), room)
    figures.set_ticks(axes.yaxis, [figures.label(inside.texts[token]) for token in rows])
    axes.set_ylabel("after", fontsize=figures.SMALL)
    if title:
        step = layers[1] - layers[0] if len(layers) > 1 else 1
        which = "each layer" if step == 1 else f"every {step}{'nd' if step == 2 else 'rd' if step == 3 else 'th'} layer"
        figures.set_title(axes, f"Logit lens: the token that {which} predicts next", rows, inside, inner=given)
    figures.colour_bar(
        image, [axes], "probability" + ("; the embedding only repeats its token" if layers[0] == 0 else "")
    )
    return axes


def name_layers(axes: Axes, layers: Sequence[int], places: Sequence[int], room: int) -> None:
    """Name the layers at their places along the axis, each in two lines if one line has no room for its letters."""
    names = [layer_name(layer) for layer in layers]
    if room < 9:
        names = [name.replace(" ", "\n").replace("embedding", "embed-\nding") for name in names]
    axes.xaxis.set_ticks(places, names, **figures.style())


def write_predictions(axes: Axes, inside: Inside, rows: range, layers: Sequence[int], room: int) -> None:
    """Write the likeliest token into each cell, in `room` letters, and its probability in percent if both fit."""
    place: dict[str, Any] = {"va": "center", "clip_on": True, **figures.style()}
    for column, layer in enumerate(layers):
        both = layer > 0 and room >= 13
        colour, middle = figures.INK if layer else figures.FAINT, column - 0.2 if both else column
        for row, token in enumerate(rows):
            text = figures.label(
                inside.text(inside.stream_ids[layer, token, 0]), min(10, max(2, room - 5 if both else room))
            )
            axes.text(middle, row, text, ha="center", color=colour, **place)
            if both:
                value = figures.in_percent(inside.stream_probs[layer, token, 0])
                axes.text(column + 0.44, row, value, ha="right", color=colour, **place)


def plot_probabilities(
    inside: Inside, figure: Place = None, *, axes: Axes | None = None, tokens: slice | None = None, title: bool = True
) -> Axes:
    """Draw the probability of each token, and the most likely token wherever that was a different one."""
    rows, given = figures.last_rows(inside, tokens), axes is not None
    axes = figures.new_axes(rows_size(inside, tokens), figure, axes)
    axes.barh(range(len(rows)), np.nan_to_num(inside.probs[rows]), color=figures.BLUE, label="this token")
    draw_alternatives(axes, inside, rows)
    figures.set_ticks(axes.yaxis, [figures.label(inside.texts[token]) for token in rows])
    axes.set_ylim(len(rows) - 0.4, -0.6)
    axes.set_xlim(0, 1)
    axes.xaxis.set_major_formatter(figures.in_percent)
    for row, token in enumerate(rows):
        bits = f"{decimals(inside.bits[token], 1)} bits" if token else "first token"
        axes.annotate(bits, (1, row), (6, 0), textcoords="offset points", va="center", fontsize=figures.SMALL)
    axes.tick_params(labelsize=figures.SMALL)
    axes.grid(axis="x", alpha=0.3)
    if title:
        figures.set_title(axes, "Probability of each token", rows, inside, inner=given)
    place: dict[str, Any] = {"loc": "upper center", "bbox_to_anchor": (0, 0, 1, 0), "borderaxespad": 2.5}
    axes.legend(ncols=2, fontsize=figures.SMALL, frameon=False, reverse=True, **place)
    return axes


def draw_alternatives(axes: Axes, inside: Inside, tokens: range) -> None:
    """Draw a ring with a name at the probability of the most likely token, in each row whose token was another one."""
    rows = [row for row, token in enumerate(tokens) if inside.ranks[token] > 1]
    ids = [inside.stream_ids[-1, tokens[row] - 1, 0] for row in rows]
    probs = [inside.stream_probs[-1, tokens[row] - 1, 0] for row in rows]
    rings = axes.plot(
        probs, rows, "o", markersize=5, markeredgecolor=figures.ORANGE, label="most likely token, if different"
    )
    rings[0].set(markerfacecolor="none", clip_on=False)  # so that rings at 0 % and 100 % stay whole
    for row, id, p in zip(rows, ids, probs):
        side, align = ((-7, 0), "right") if p > 0.8 else ((7, 0), "left")
        text = axes.annotate(
            figures.label(inside.text(id)), (p, row), side, textcoords="offset points", **figures.style()
        )
        text.set(ha=align, va="center", color=figures.ORANGE)


def plot_residual(
    inside: Inside, figure: Place = None, *, axes: Axes | None = None, tokens: slice | None = None, title: bool = True
) -> Axes:
    """Draw the length of the vectors in the residual stream after each layer, with one line for each token."""
    chosen, given = positions(tokens, len(inside.ids)), axes is not None
    axes = figures.new_axes(RESIDUAL_SIZE, figure, axes)
    others = inside.stream_lengths[:, [i for i in chosen if i > 0]]
    if chosen[0] == 0:
        style: dict[str, Any] = {"color": figures.ORANGE, "linewidth": 2, "marker": "o", "markersize": 3}
        axes.plot(inside.stream_lengths[:, 0], label="first token", **style)
    if others.size:
        axes.plot(others, color=figures.BLUE, linewidth=0.8, alpha=max(0.1, min(0.5, 10 / others.shape[1])))
        axes.plot(
            np.median(others, axis=1), color=figures.BLUE, linewidth=2, label="other tokens (thick line: their median)"
        )
    scale_residual(axes, len(inside.stream_lengths))
    axes.legend(fontsize=figures.SMALL, frameon=False)
    if title:
        figures.set_title(axes, "Residual stream: length of its vectors after each layer", chosen, inside, inner=given)
    return axes


def scale_residual(axes: Axes, n_lengths: int) -> None:
    """Set up the axes of `plot_residual`: layers across, which are named up to the last, and lengths upwards."""
    from matplotlib.ticker import LogFormatter

    axes.set_yscale("log")
    axes.yaxis.set_major_formatter("{x:g}")
    axes.yaxis.set_minor_formatter(LogFormatter(labelOnlyBase=False, minor_thresholds=(2, 1)))
    axes.tick_params(which="both", labelsize=figures.SMALL)
    layers = layers_of(n_lengths, figures.inches(axes)[0])
    name_layers(axes, layers, layers, int(figures.inches(axes)[0] / len(layers) * figures.LETTERS))
    axes.set_ylabel("length of the vector (L2 norm)", fontsize=figures.SMALL)
    axes.grid(alpha=0.3)


# --------------------------------------------------------------------------------------------------------- the files

SIZES: dict[str, Callable[[Inside, slice | None], tuple[float, float]]] = {
    "attention": head_size,
    "heads": heads_size,
    "lens": lens_size,
    "probabilities": rows_size,
    "residual": lambda inside, tokens: RESIDUAL_SIZE,
    "change": rows_size,
}


def draw_change(inside: Inside, layer: int, head: int, figure: Figure, tokens: slice | None) -> None:
    from picogpt.explain.change_plot import plot_change  # which imports this module

    plot_change(inside, figure, tokens=tokens)


FIGURES: dict[str, Callable[[Inside, int, int, Figure, slice | None], Any]] = {
    "attention": lambda inside, layer, head, figure, tokens: plot_head(inside, layer, head, figure, tokens=tokens),
    "heads": lambda inside, layer, head, figure, tokens: plot_attention(inside, layer, figure, tokens=tokens),
    "lens": lambda inside, layer, head, figure, tokens: plot_lens(inside, figure, tokens=tokens),
    "probabilities": lambda inside, layer, head, figure, tokens: plot_probabilities(inside, figure, tokens=tokens),
    "residual": lambda inside, layer, head, figure, tokens: plot_residual(inside, figure, tokens=tokens),
    "change": draw_change,  # only if parts of the model were replaced
}


def save(
    name: str, inside: Inside, layer: int, head: int, file: IO[bytes], tokens: slice | None = None, kind: str = "png"
) -> None:
    """Draw one of FIGURES and write it as PNG, SVG or PDF. No window opens and no global state changes."""
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    with rc_context({"text.usetex": False, "svg.hashsalt": "picogpt"}):  # for the numbers along the axes; for the ids
        figure = Figure(SIZES[name](inside, tokens), layout="constrained")
        FIGURES[name](inside, layer, head, figure, tokens)
        figures.write_figure(figure, file, kind)
