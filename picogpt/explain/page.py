"""What explain_numbers.py computed, as one HTML file: explain.html with the numbers in it. It opens without network.

The page builds itself from the numbers and never parses a token as HTML. They stand in it as JSON in pure ASCII,
without the characters that could end the element they stand in.
"""

from __future__ import annotations

import base64
import json
import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from picogpt.explain.numbers import Inside, layer_name
from picogpt.explain.text import visible_merges

if TYPE_CHECKING:
    from picogpt.trace import Array

TEMPLATE = Path(__file__).with_name("page.html")
MAX_ATTENTION = (
    12_000_000  # bytes of base64 for all layers: with more, the page takes a phone long, and holds one layer
)


def as_json(value: Any) -> str:
    """JSON that can stand in a script element: HTML sees neither a tag nor an entity in it."""
    text = json.dumps(value, separators=(",", ":"), allow_nan=False)
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def number(x: float) -> float | None:
    """Four digits are enough to look at; JSON has no nan and no infinity."""
    return float(f"{x:.4g}") if math.isfinite(x) else None


def packed(attention: Array) -> str:
    """The lower triangles of square matrices as 16-bit shares of 65535, little-endian, in base64. [..., n, n]"""
    n = attention.shape[-1]
    triangles = attention[..., np.tri(n, dtype=bool)]
    return base64.b64encode(np.round(triangles * 65535).astype("<u2").tobytes()).decode()


def layers_that_fit(inside: Inside, layer: int) -> list[int]:
    """The layers whose attention the page holds: all, or where they take more than MAX_ATTENTION, the chosen one.

    That one may take more, too: 17 MB for the 1023 tokens that 124M can read.
    """
    n_layer, n_head, n_seq, _ = inside.attention.shape
    size = n_layer * n_head * n_seq * (n_seq + 1) * 4 // 3
    return list(range(n_layer)) if size <= MAX_ATTENTION else [layer]


def content(inside: Inside, title: str, layer: int, head: int, layers: list[int]) -> dict[str, Any]:
    """All that the page shows, as JSON will hold it."""
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
    """The whole page; layers are those whose attention it holds (all), layer and head those that it shows at first."""
    layers = list(range(len(inside.attention))) if layers is None else layers
    if layer not in layers or head not in range(inside.attention.shape[1]):
        raise ValueError(f"the page has no layer {layer}, head {head}")
    template = TEMPLATE.read_text(encoding="utf-8")
    return template.replace("DATA_OF_THE_PAGE", as_json(content(inside, title, layer, head, layers)))
