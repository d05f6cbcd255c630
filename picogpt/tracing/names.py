"""The names of the values in a forward pass, their meanings, and tables of them."""

from __future__ import annotations

import math
import re
import textwrap
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

Array = np.ndarray[Any, np.dtype[Any]]

# All names in the order of computation. Those of LAYER come once for each layer, after h0/, h1/ and so on.
BEFORE = {"inputs": "token ids [n_seq]", "embedding": "token embeddings + position embeddings [n_seq, n_embd]"}
LAYER = {
    "ln_1": "layer norm of the layer's input [n_seq, n_embd]",
    "attn/c_attn": "queries, keys and values of all heads side by side [n_seq, 3 n_embd]",
    "attn/q": "queries [n_head, n_seq, d_head]",
    "attn/k": "keys, with those from the cache first [n_head, n_past + n_seq, d_head]",
    "attn/v": "values, with those from the cache first [n_head, n_past + n_seq, d_head]",
    "attn/scores": "q / sqrt(d_head) @ k^T, -inf where masked [n_head, n_seq, n_past + n_seq]",
    "attn/probs": "softmax of scores, 0 where masked [n_head, n_seq, n_past + n_seq]",
    "attn/heads": "probs @ v [n_head, n_seq, d_head]",
    "attn/merged": "heads side by side [n_seq, n_embd]",
    "attn/c_proj": "output of attention, which is added to the layer's input [n_seq, n_embd]",
    "mid": "the layer's input + attn/c_proj [n_seq, n_embd]",
    "ln_2": "layer norm of mid [n_seq, n_embd]",
    "mlp/c_fc": "hidden layer before gelu [n_seq, 4 n_embd]",
    "mlp/gelu": "gelu of mlp/c_fc [n_seq, 4 n_embd]",
    "mlp/c_proj": "output of the feed-forward network, which is added to mid [n_seq, n_embd]",
    "out": "mid + mlp/c_proj, the next layer's input [n_seq, n_embd]",
}
AFTER = {
    "ln_f": "layer norm of the last layer's output, only the rows that n_logits keeps [n_logits, n_embd]",
    "logits": "ln_f @ wte^T [n_logits, n_vocab]",
}
LOSS = {"loss": "mean cross-entropy of the targets or of each next id, in nats"}  # only in files of others
TABLES = ("contents", "contents.json")  # the arrays of a file that are no values


def meanings(n_layer: int) -> dict[str, str]:
    """Return the names of all values of a forward pass and their meanings, in the order of computation."""
    layers = {f"h{layer}/{name}": text for layer in range(n_layer) for name, text in LAYER.items()}
    return BEFORE | layers | AFTER


def meaning(name: str) -> str:
    """Return what a name means, whatever layer or pass it belongs to: that of "step1/h0/ln_1" is that of "ln_1".

    Raises KeyError if no value has such a name.
    """
    return (BEFORE | LAYER | AFTER | LOSS)[re.sub(r"^(past/|step\d+/)?(h\d+/)?", "", name)]


def contents(values: Mapping[str, Array]) -> Array:
    """Return the table of contents of these values, in their order.

    It is a structured array of strings with the fields name, shape, dtype and meaning. np.load needs no pickle for it.
    """
    rows = [(name, str(list(value.shape)), str(value.dtype), meaning(name)) for name, value in values.items()]
    return joined(rows)


def joined(rows: Iterable[Iterable[str]]) -> Array:
    """Return rows of name, shape, dtype and meaning as one structured array, whose fields are as wide as needed."""
    texts = [tuple(row) for row in rows]
    widths = [max(map(len, column)) for column in zip(*texts)]
    fields = ("name", "shape", "dtype", "meaning")
    return np.array(texts, dtype=[(field, f"U{width}") for field, width in zip(fields, widths)])


def table(rows: Array) -> str:
    """Format the table of contents as text of 80 columns. A long meaning continues on the next line, indented.

    Its column has at least 20 characters, so lines are longer than 80 only if names or shapes are very long.
    """
    lines = [[str(field) for field in row] for row in rows.tolist()]
    widths = [max(map(len, column)) for column in zip(*lines)][:-1]
    indent = sum(widths) + 2 * len(widths)
    wrapper = textwrap.TextWrapper(max(80 - indent, 20), break_long_words=False, break_on_hyphens=False)
    below = "\n" + " " * indent
    return "\n".join("  ".join([*map(str.ljust, line, widths), below.join(wrapper.wrap(line[-1]))]) for line in lines)


def shortened(names: Iterable[str], among: Iterable[str]) -> list[str]:
    """Return the names, with a pattern such as "h*/ln_1" where they are all the names `among` others that match it.

    >>> shortened(["h0/ln_1", "h0/out", "h1/ln_1"], meanings(2))
    ['h*/ln_1', 'h0/out']
    """
    patterns: dict[str, set[str]] = {}
    for name in among:
        patterns.setdefault(pattern_of(name), set()).add(name)
    names = list(names)
    whole = {pattern for pattern, family in patterns.items() if family <= set(names) and len(family) > 1}
    return list(dict.fromkeys(pattern_of(name) if pattern_of(name) in whole else name for name in names))


def pattern_of(name: str) -> str:
    """Return a name with * in the place of the numbers of its layer and its step."""
    return re.sub(r"\d+/", "*/", name)


def shape_of(name: str, sizes: Mapping[str, int]) -> tuple[int, ...]:
    """Return the shape of a value, from the one in its meaning and the sizes of its pass: n_seq, n_past, n_embd, ….

    >>> shape_of("h0/attn/k", {"n_head": 2, "n_past": 3, "n_seq": 1, "d_head": 8})
    (2, 4, 8)
    """
    axes = meaning(name).rpartition("[")[2].rstrip("]").split(", ")
    products = [[term.split() for term in axis.split(" + ")] for axis in axes]  # "n_past + n_seq", "3 n_embd"
    return tuple(
        sum(math.prod(int(word) if word.isdigit() else sizes[word] for word in words) for words in terms)
        for terms in products
    )
