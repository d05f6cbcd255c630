"""Draw the attention of one head, and of all heads of a layer. plots.py says what these pictures have in common."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np

from picogpt.command_line import UsageError
from picogpt.explain import figures
from picogpt.explain.numbers import Array, Inside, positions

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from picogpt.explain.figures import Place


def head_size(inside: Inside, tokens: slice | None) -> tuple[float, float]:
    """Return the width and height in inches of a picture of one head."""
    return figures.WIDTH, min(5.3, 0.45 * len(positions(tokens, len(inside.ids)))) + 2.2


def heads_size(inside: Inside, tokens: slice | None) -> tuple[float, float]:
    """Return the width and height in inches of a picture of all heads. Every row has room for its name."""
    (n_rows, n_columns), n = panels_of(inside), len(positions(tokens, len(inside.ids)))
    key = 0.7 if inside.attention.shape[1] == n_rows * n_columns else 0.0  # or else there is an empty place for it
    return figures.WIDTH, n_rows * (max(1.8, 0.125 * min(n, figures.MAX_ROWS)) + 0.25) + 1.0 + key


def panels_of(inside: Inside) -> tuple[int, int]:
    """Return how many rows and columns the panels of all heads take. More than three would be too small to read."""
    n_head = inside.attention.shape[1]
    n_columns = min(3, math.ceil(math.sqrt(n_head)))
    return math.ceil(n_head / n_columns), n_columns


def attention_of(inside: Inside, layer: int, chosen: range) -> Any:
    """Return the attention of these tokens to each other, without the cells of later tokens. -> [n_head, n, n]"""
    if not 0 <= layer < len(inside.attention):
        raise UsageError(f"layer is {layer}, but the model has layers 0 to {len(inside.attention) - 1}")
    heads = inside.attention[layer][:, chosen][:, :, chosen]
    return np.ma.array(heads, mask=np.broadcast_to(~np.tri(len(chosen), dtype=bool), heads.shape))


def key_to_attention(chosen: range, note: str = "") -> str:
    return ", ".join(filter(None, ["attention", "each row sums to 100 %" if chosen[0] == 0 else "", note]))


def plot_head(
    inside: Inside,
    layer: int,
    head: int,
    figure: Place = None,
    *,
    axes: Axes | None = None,
    tokens: slice | None = None,
    title: bool = True,
) -> Axes:
    """Draw the attention of one head. Row i shows how much token i attends to each token, in numbers if they fit.

    With `tokens`, both rows and columns are these tokens.
    """
    chosen, given = positions(tokens, len(inside.ids)), axes is not None
    axes = figures.new_axes(head_size(inside, tokens), figure, axes)
    probs = attention_of(inside, layer, chosen)[head]
    image, note = figures.draw_cells(axes, probs), figures.write_values(axes, probs)
    names, step = [figures.label(inside.texts[i], 10) for i in chosen], math.ceil(len(chosen) / figures.MAX_ROWS)
    figures.set_ticks(axes.xaxis, names, step, rotation=90)
    figures.set_ticks(axes.yaxis, names, step)
    axes.set_xlabel("the token that is looked at (key)", fontsize=figures.SMALL)
    axes.set_ylabel("the token that looks (query)", fontsize=figures.SMALL)
    if title:
        what = f"Attention in layer {layer}, head {head}: each row shows where one token looks"
        figures.set_title(axes, what, chosen, inside, inner=given)
    figures.colour_bar(image, [axes], key_to_attention(chosen, note))
    return axes


def plot_attention(
    inside: Inside, layer: int, figure: Place = None, *, tokens: slice | None = None, title: bool = True
) -> Array:
    """Draw the attention of all heads of a layer. Row i of each panel is the attention of token i. -> axes [n_head]

    With `tokens`, both rows and columns are these tokens.
    """
    chosen = positions(tokens, len(inside.ids))
    heads, (n_rows, n_columns) = attention_of(inside, layer, chosen), panels_of(inside)
    figure = figures.new_figure(heads_size(inside, tokens), figure)
    grid = figure.subplots(n_rows, n_columns, sharex=True, sharey=True, squeeze=False).ravel()
    axes, unused = grid[: len(heads)], grid[len(heads) :]
    names = [figures.label(inside.texts[i], 10) for i in chosen]
    for head, (panel, probs) in enumerate(zip(axes, heads)):
        image, note = figures.draw_cells(panel, probs), figures.write_values(panel, probs)
        panel.set_title(f"head {head}", loc="left", **figures.style(figures.LARGE))
        figures.set_ticks(panel.xaxis, names, math.ceil(len(names) * n_columns / 40), rotation=90)
        figures.set_ticks(panel.yaxis, names, math.ceil(len(names) / figures.MAX_ROWS))
        name_columns(panel, last=head + n_columns >= len(heads), below=head + n_columns >= len(grid))
    if title:
        figures.set_title(figure, f"Attention in layer {layer}: each row shows where one token looks", chosen, inside)
    figures.colour_bar(image, axes.tolist(), key_to_attention(chosen, note), unused[0] if len(unused) else None)
    for panel in unused[1:]:
        panel.remove()
    return np.array(axes)


def name_columns(panel: Axes, last: bool, below: bool) -> None:
    """Show the names of the columns below the last panel of each column of panels.

    If the place below is empty, the names reach into it. The rows of panels stay together.
    """
    panel.tick_params(labelbottom=last)
    for text in panel.get_xticklabels():
        text.set_in_layout(below)
