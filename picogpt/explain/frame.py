"""Show explain's page in a notebook: the whole page stands in an attribute of an iframe, so it needs no other file.

Where frames are removed, as in JupyterLab until it trusts a notebook, the line below the frame remains, with the text
and its surprisal.
"""

from __future__ import annotations

import html
import math

from picogpt.explain.numbers import Inside
from picogpt.explain.page import as_text, layers_that_fit, page

MAX_ATTENTION = 2_000_000  # bytes. Jupyter drops an output of more than 3 MB (its iopub_data_rate_limit, in 3 seconds)
HEIGHT = 720  # pixels


def frame(inside: Inside) -> str:
    """Return the page in an iframe, and below it the short text, which opens to the names of the arrays.

    If the attention of all layers takes more than MAX_ATTENTION, the page holds the last layer, and of a long text the
    last tokens. The frame may run the page's script, but has no access to the notebook.
    """
    n_layer, n_head, _, _ = inside.attention.shape
    tokens = slice(-math.isqrt(MAX_ATTENTION * 3 // (4 * n_head)), None)  # so that one layer fits
    layers = layers_that_fit(inside, n_layer - 1, tokens, MAX_ATTENTION)
    source = html.escape(page(inside, layer=n_layer - 1, layers=layers, tokens=tokens))
    style = f"width: 100%; height: {HEIGHT}px; border: 0"
    return (
        f'<iframe title="Inside the model" sandbox="allow-scripts" style="{style}" srcdoc="{source}"></iframe>\n'
        f"<details><summary>{as_text(inside.caption(60))}: {inside.summary}</summary>{inside.arrays}</details>"
    )
