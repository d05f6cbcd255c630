"""What the pictures of plots.py share: figures and their sizes, fonts, titles, and the colours of probabilities.

A picture is readable in a column of 650 pixels: its letters are at least 11 pixels high there. Its file has twice as
many pixels, for screens that show two for each. Only the lens of a deep model is wider.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import IO, TYPE_CHECKING, Any

import numpy as np

from picogpt.explain.numbers import Array, Inside, positions
from picogpt.options import require
from picogpt.terminal_text import Wrapper, escaped, fit

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure, SubFigure

    Place = Figure | SubFigure | None  # where to draw; None makes a new figure

WIDTH, DPI = 6.5, 200  # inches, so that a picture scaled to 650 pixels has 100 pixels for an inch
SMALL, LARGE = 8, 9  # sizes of letters in points: 11 and 12.5 of those pixels
LETTERS = 14  # letters of the small size that take an inch
BLUE, ORANGE, INK, FAINT = "#2471cc", "#c4511a", "#1b1d21", "#5d6470"  # page.css has the same colours
STRONGEST = 0.7  # how much of BLUE is in the colour of 100 %: the rest is white, so that INK can be read on all colours
MAX_ROWS = 40  # so many tokens have room for their names
FONTS = (  # in order of preference, as not every font has every character; the first comes with matplotlib
    *("DejaVu Sans", "Segoe UI Symbol", "Noto Emoji", "Noto Sans Devanagari", "Noto Sans Arabic", "Malgun Gothic"),
    *("Yu Gothic", "Microsoft YaHei", "PingFang SC", "Hiragino Sans", "Noto Sans CJK JP", "Noto Sans CJK SC"),
)
METADATA: dict[str, dict[str, str | None]] = {  # the formats; without the date, the same numbers give the same file
    "png": {},
    "svg": {"Date": None},
    "pdf": {"CreationDate": None},
}

# --------------------------------------------------------------------------------------------------- figures and axes


def new_figure(size: tuple[float, float], figure: Place) -> Figure | SubFigure:
    """Return the given figure, or a new one of pyplot, which a notebook shows. The size is in inches."""
    require("matplotlib")
    if figure is None:
        import matplotlib.pyplot as plt

        figure = plt.figure(figsize=size, layout="constrained")
    if figure.get_layout_engine() is None and hasattr(figure, "set_layout_engine"):  # parts of a figure have no own one
        figure.set_layout_engine("constrained")
    return figure


def new_axes(size: tuple[float, float], figure: Place, axes: Axes | None) -> Axes:
    """Return the given axes, or new ones in the given figure or in a new one."""
    return axes if axes is not None else new_figure(size, figure).subplots()


def inches(axes: Axes) -> tuple[float, float]:
    """Return the width and height of axes. Before their figure is drawn, these are estimates."""
    return axes.bbox.width / axes.figure.dpi, axes.bbox.height / axes.figure.dpi


def last_rows(inside: Inside, tokens: slice | None) -> range:
    """Return the positions that a slice chooses. Without a slice, these are as many of the last as can be read."""
    return positions(tokens, len(inside.ids)) if tokens else range(len(inside.ids))[-MAX_ROWS:]


# ------------------------------------------------------------------------------------------------------------- texts


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


def source(inside: Inside, width: float) -> str:
    """Name picogpt, the model and the text in lines of this many inches: two, with the beginning of a long text."""
    n = int(LETTERS * width)
    wrapper = Wrapper(n)
    return wrapper.add(label(f"picogpt · {inside.caption(int(1.7 * n))}", 2 * n)) + wrapper.finish()


def set_title(place: Any, text: str, tokens: range, inside: Inside, *, inner: bool = False) -> None:
    """Write above axes or a figure what is drawn, which tokens, and the settings that were changed.

    The source is written below the figure in small type. `inner` writes it into the title, since axes that somebody
    else made may share their figure.
    """
    part = f"tokens {tokens[0]} to {tokens[-1]} of {len(inside.ids)}" if len(tokens) < len(inside.ids) else ""
    notes = ", ".join(filter(None, [part, *inside.settings.changed()]))
    figure = getattr(place, "figure", place) if hasattr(place, "set_title") else place
    named = source(inside, inches(place)[0] if inner else figure.bbox.width / figure.dpi)
    heading = "\n".join(filter(None, [text, notes, named if inner else ""]))
    if hasattr(place, "set_title"):
        place.set_title(heading, loc="left", **style(LARGE))
    else:
        place.suptitle(heading, x=0.01, ha="left", **style(LARGE))
    if not inner:
        figure.supxlabel(named, x=0.01, ha="left", color=FAINT, wrap=True, **style())


def set_ticks(axis: Any, names: Sequence[str], step: int = 1, **settings: Any) -> None:
    """Label every `step`-th place of an axis with its name. The places are 0, 1, 2, …"""
    axis.set_ticks(range(0, len(names), step), names[::step], **style(), **settings)


# ----------------------------------------------------------------------------------------------------------- colours


@functools.lru_cache(maxsize=1)
def colour_scale() -> dict[str, Any]:
    """Return the colours of probabilities, from white for 0 to blue for 1. With the square root, 1 % is visible.

    The page and the terminal have the same ones.
    """
    from matplotlib.colors import LinearSegmentedColormap, PowerNorm, to_rgb

    strongest = tuple(1 - STRONGEST * (1 - part) for part in to_rgb(BLUE))
    return {
        "cmap": LinearSegmentedColormap.from_list("probability", [(1.0, 1.0, 1.0), strongest]),
        "norm": PowerNorm(0.5, 0, 1),
    }


def draw_cells(axes: Axes, probs: Array, **settings: Any) -> Any:
    """Draw a matrix with one cell for each probability."""
    return axes.imshow(probs, aspect="auto", interpolation="nearest", **colour_scale(), **settings)


def write_values(axes: Axes, probs: Any) -> str:
    """Write percentages into the cells if they fit, with the sign if that fits, too. Return a note on those without."""
    n_rows, n_columns = probs.shape
    width, height = inches(axes)
    room = int(width / n_columns * LETTERS)
    if room < 3 or height / n_rows < 0.13:
        return ""
    unit = " %" if room > 5 else ""
    for row, column in zip(*np.nonzero(~np.ma.getmaskarray(probs))):
        value = f"{100 * probs[row, column]:.0f}{unit}"
        axes.text(column, row, value, ha="center", va="center", color=INK, clip_on=True, **style())
    return "" if unit else "numbers in %"


def in_percent(p: float, position: Any = None) -> str:
    """Write a probability along an axis, as matplotlib asks for it."""
    return f"{100 * p:.0f} %"


def colour_bar(image: Any, axes: list[Axes], text: str, place: Axes | None = None) -> None:
    """Draw the key to the colours below the axes, or in an empty place beside them."""
    pad = 0.15 * axes[0].figure.dpi / axes[0].figure.bbox.height  # 0.15 inches, as a share
    where: dict[str, Any] = {"ax": axes, "location": "bottom", "pad": pad, "shrink": 0.7, "aspect": 40}
    ticks = [0, 0.01, 0.1, 0.25, 0.5, 1]
    if place is not None:
        place.set_axis_off()
        where, ticks = {"cax": place.inset_axes((0.05, 0.4, 0.9, 0.06)), "orientation": "horizontal"}, [0, 0.1, 0.5, 1]
    bar = axes[0].figure.colorbar(image, ticks=ticks, format=in_percent, **where)
    if bar.solids is not None:
        bar.solids.set(rasterized=False, edgecolor="face")  # rectangles, as the cells
    bar.ax.tick_params(labelsize=SMALL)
    bar.set_label(text, fontsize=SMALL)


# --------------------------------------------------------------------------------------------------------- the files


def as_vectors(axes: Axes) -> None:
    """Replace a matrix of cells by as many rectangles, which stay sharp at any size, unless it has too many."""
    from matplotlib.collections import PolyCollection

    for image in list(axes.images):
        cells = image.get_array()
        if cells is None or cells.size > 10_000:
            continue
        rgba = image.to_rgba(cells, alpha=image.get_alpha())
        colours = 1 - rgba[..., 3:] * (1 - rgba[..., :3])  # on white: transparent rectangles would show their overlap
        rows, columns = np.nonzero(~np.ma.getmaskarray(cells))
        corners = np.array([[-0.5, -0.5], [0.5, -0.5], [0.5, 0.5], [-0.5, 0.5]])
        places = np.stack([columns, rows], axis=-1)[:, None] + corners
        style = {"facecolors": colours[rows, columns], "edgecolors": "face", "linewidths": 0.3, "zorder": 0}
        axes.add_collection(PolyCollection(list(places), **style), autolim=False)
        image.remove()


def write_figure(figure: Figure, file: IO[bytes], kind: str) -> None:
    """Write a figure in one of the formats of METADATA."""
    if kind != "png":
        for axes in figure.axes:
            as_vectors(axes)
    figure.savefig(file, format=kind, dpi=DPI, metadata=METADATA[kind])
