"""Draw how replaced parts of the model change the prediction of each token."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from picogpt.explain import figures
from picogpt.explain.numbers import Inside
from picogpt.explain.plots import rows_size
from picogpt.explain.terminal import signed
from picogpt.terminal_text import percent

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from picogpt.explain.figures import Place


def plot_change(
    inside: Inside, figure: Place = None, *, axes: Axes | None = None, tokens: slice | None = None, title: bool = True
) -> Axes:
    """Draw the change of each token's surprisal in bits, and write its probability before and after.

    Bars to the right are tokens that became less likely. Raises ValueError if no part of the model was replaced.
    """
    if inside.whole is None:
        raise ValueError("no part of this model was replaced")
    rows, given = figures.last_rows(inside, tokens), axes is not None
    axes = figures.new_axes(rows_size(inside, tokens), figure, axes)
    bits = np.nan_to_num(inside.change[rows], posinf=0, neginf=0)
    axes.barh(range(len(rows)), bits, color=[figures.ORANGE if x > 0 else figures.BLUE for x in bits])
    figures.set_ticks(axes.yaxis, [figures.label(inside.texts[token]) for token in rows])
    axes.set_ylim(len(rows) - 0.4, -0.6)
    axes.axvline(0, color="black", linewidth=0.8)
    for row, token in enumerate(rows):
        place: dict[str, Any] = {"textcoords": "offset points", "va": "center", **figures.style()}
        axes.annotate(change_text(inside, token), (1, row), (6, 0), xycoords=("axes fraction", "data"), **place)
    axes.tick_params(labelsize=figures.SMALL)
    axes.grid(axis="x", alpha=0.3)
    axes.set_xlabel(
        "change of the surprisal in bits (right: less likely than in the whole model)", fontsize=figures.SMALL
    )
    if title:
        figures.set_title(axes, "Change of each token's prediction", rows, inside, inner=given)
    return axes


def change_text(inside: Inside, token: int) -> str:
    """Return a token's change in bits, and its probability in the whole model and now."""
    if token == 0 or inside.whole is None:
        return "first token"
    return f"{signed(inside.change[token])}: {percent(inside.whole.probs[token])} → {percent(inside.probs[token])}"
