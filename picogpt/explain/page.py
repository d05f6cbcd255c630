"""Write the numbers of `look_inside` into page.html, which makes a single HTML file that works offline.

The numbers are JSON inside a script element, in ASCII and without the characters that could end that element. The
page's own script draws everything from them, and never parses a token as HTML.
"""

from __future__ import annotations

import base64
import json
import math
from pathlib import Path
from typing import Any

import numpy as np

from picogpt.explain.numbers import Array, Inside, layer_name
from picogpt.explain.text import visible_merges

TEMPLATE = Path(__file__).with_name("page.html")
MAX_ATTENTION = 12_000_000  # bytes of base64 for all layers; a larger page would open slowly on a phone


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


def layers_that_fit(inside: Inside, layer: int) -> list[int]:
    """Return all layers if their attention takes at most MAX_ATTENTION, or else only the given layer.

    One layer of 124M takes 17 MB for the longest prompt, 1024 tokens.
    """
    n_layer, n_head, n_seq, _ = inside.attention.shape
    size = n_layer * n_head * n_seq * (n_seq + 1) * 4 // 3
    return list(range(n_layer)) if size <= MAX_ATTENTION else [layer]


def content(inside: Inside, title: str, layer: int, head: int, layers: list[int]) -> dict[str, Any]:
    """Collect everything that the page shows, under the names that its script reads."""
    vocabulary = np.unique(np.concatenate([inside.ids, inside.lens_ids.ravel()])).tolist()
    numbers = zip(inside.ids.tolist(), inside.probs, inside.bits, inside.ranks.tolist())
    return {
        "title": title,
        "tokens": [[id, number(p), number(bits), rank] for id, p, bits, rank in numbers],
        "merges": {id: visible_merges(inside.encoder, id) for id in set(inside.ids.tolist())},
        "texts": {id: inside.text(id) for id in vocabulary},
        "layers": [layer_name(i) for i in range(len(inside.lens_ids))],
        "top": inside.lens_ids.shape[-1],
        "lensIds": inside.lens_ids.ravel().tolist(),
        "lensProbs": [number(p) for p in inside.lens_probs.ravel()],
        "nHead": inside.attention.shape[1],
        "attentionLayers": layers,
        "attention": packed(inside.attention[layers]),
        "layer": layer,
        "head": head,
    }


def page(inside: Inside, title: str, layer: int = 0, head: int = 0, layers: list[int] | None = None) -> str:
    """Return the page as HTML. It contains the attention of these layers (by default all of them).

    The page opens with the given layer and head. Raises ValueError if the page does not contain these.
    """
    layers = list(range(len(inside.attention))) if layers is None else layers
    if layer not in layers or head not in range(inside.attention.shape[1]):
        raise ValueError(f"the page has no layer {layer}, head {head}")
    template = TEMPLATE.read_text(encoding="utf-8")
    return template.replace("DATA_OF_THE_PAGE", as_json(content(inside, title, layer, head, layers)))
