"""Write the numbers of `look_inside` into page.html, which makes a single HTML file that works offline.

page.css and page.js go into that file, too. The numbers are JSON inside a script element, in ASCII and without the
characters that could end that element. The page's own script draws everything from them, and never parses a token as
HTML.
"""

from __future__ import annotations

import base64
import html
import json
import math
import re
from pathlib import Path
from typing import Any

import numpy as np

from picogpt.command_line import visible
from picogpt.explain.numbers import Array, Inside, layer_name, positions
from picogpt.explain.text import one_line, visible_merges

FOLDER = Path(__file__).parent
MAX_ATTENTION = 12_000_000  # bytes of base64 for all layers; a larger page would open slowly on a phone
MAX_TITLE = 80  # columns


def as_json(value: Any) -> str:
    """Write a value as JSON without <, > and &, so that HTML finds neither a tag nor an entity in it."""
    text = json.dumps(value, separators=(",", ":"), allow_nan=False)
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def number(x: float) -> float | None:
    """Round to four digits, which is enough to show. Return None for nan and infinity, which JSON lacks."""
    return float(f"{x:.4g}") if math.isfinite(x) else None


def packed(attention: Array) -> str:
    """Write the lower triangles of matrices [..., n, n] in base64: 65535 x for each x, as little-endian uint16."""
    n = attention.shape[-1]
    triangles = attention[..., np.tri(n, dtype=bool)]
    return base64.b64encode(np.round(triangles * 65535).astype("<u2").tobytes()).decode()


def as_text(text: str) -> str:
    """Write a text in ASCII so that HTML shows it as it is, except for control characters, which become escapes."""
    return html.escape(visible(text, keep="\n\t\u200c\u200d")).encode("ascii", "xmlcharrefreplace").decode()


def layers_that_fit(inside: Inside, layer: int, tokens: slice | None = None, most: int | None = None) -> list[int]:
    """Return all layers if their attention takes at most `most` (MAX_ATTENTION) bytes, or else only the given layer.

    One layer of 124M takes 17 MB for the longest prompt, 1024 tokens.
    """
    n_layer, n_head, n_seq, _ = inside.attention.shape
    n = len(positions(tokens, n_seq))
    most = MAX_ATTENTION if most is None else most
    return list(range(n_layer)) if n_layer * n_head * n * (n + 1) * 4 // 3 <= most else [layer]


def content(inside: Inside, chosen: range, layer: int, head: int, layers: list[int]) -> dict[str, Any]:
    """Collect everything that the page shows of the chosen tokens, under the names that its script reads.

    The lens begins one token earlier where there is one, because it predicts the first of the chosen tokens.
    """
    first = chosen[0]
    lens = np.s_[:, max(0, first - 1) : chosen.stop]
    ids, lens_ids = inside.ids[chosen].tolist(), inside.stream_ids[lens]
    numbers = zip(ids, inside.probs[chosen], inside.bits[chosen], inside.ranks[chosen].tolist())
    return {
        "first": first,
        "before": inside.texts[first - 1] if first else "",
        "tokens": [[id, number(p), number(bits), rank] for id, p, bits, rank in numbers],
        "shown": [inside.texts[i] for i in chosen],
        "whole": [[number(p), number(bits)] for p, bits in zip(inside.whole.probs[chosen], inside.change[chosen])]
        if inside.whole
        else None,
        "merges": {id: visible_merges(inside.encoder, id) for id in set(ids)},
        "texts": {id: inside.text(id) for id in {*ids, *lens_ids.ravel().tolist()}},
        "layers": [layer_name(i) for i in range(len(inside.stream_ids))],
        "top": lens_ids.shape[-1],
        "lensIds": lens_ids.ravel().tolist(),
        "lensProbs": [number(p) for p in inside.stream_probs[lens].ravel()],
        "nHead": inside.attention.shape[1],
        "attentionLayers": layers,
        "attention": packed(inside.attention[layers][:, :, chosen][..., chosen]),
        "layer": layer,
        "head": head,
    }


def parts_of_characters(texts: list[str]) -> str:
    """Explain the first of the tokens that hold only a part of a character: "你 1/2". Without one, say nothing."""
    found = next(filter(None, (re.search(r"(\S+) \d/\d", text) for text in texts)), None)
    return f", and {found[0]} is a token that holds a part of the bytes of {found[1]}" if found else ""


def about(inside: Inside, chosen: range) -> str:
    """Name the model, the surprisal of the text, the settings, and which tokens the page shows if not all."""
    part = f"shown: tokens {chosen[0]} to {chosen[-1]}" if len(chosen) < len(inside.ids) else ""
    model = f"{inside.model}: " if inside.model else ""
    probabilities = f"probabilities: {inside.settings.describe()}"
    return model + "; ".join(filter(None, [inside.summary, probabilities, part]))


def page(
    inside: Inside,
    title: str | None = None,
    layer: int = 0,
    head: int = 0,
    layers: list[int] | None = None,
    tokens: slice | None = None,
) -> str:
    """Return the page as HTML. Its title is the beginning of the text, unless another one is given.

    The page contains the attention of these layers (by default all of them) and opens with the given layer and head.
    With `tokens`, it shows only these. Raises ValueError if the page does not contain the layer and head, and
    UsageError, which is a ValueError, if the slice chooses no token.
    """
    layers = list(range(len(inside.attention))) if layers is None else layers
    if layer not in layers or head not in range(inside.attention.shape[1]):
        raise ValueError(f"the page has no layer {layer}, head {head}")
    chosen, text = positions(tokens, len(inside.ids)), inside.encoder.decode(inside.ids.tolist())
    title = one_line(text, MAX_TITLE) or "Inside the model" if title is None else title
    parts = {
        "STYLE": (FOLDER / "page.css").read_text(encoding="utf-8"),
        "SCRIPT": (FOLDER / "page.js").read_text(encoding="utf-8"),
        "TITLE": as_text(title),
        "PARTS": as_text(parts_of_characters(inside.texts[chosen.start : chosen.stop])),
        "ABOUT": as_text(about(inside, chosen)),
        "TEXT": "" if text == title else as_text(text),
        "DATA": as_json(content(inside, chosen, layer, head, layers)),
    }
    template = (FOLDER / "page.html").read_text(encoding="utf-8")
    return re.sub("|".join(rf"\b{name}_OF_THE_PAGE\b" for name in parts), lambda found: parts[found[0][:-12]], template)
