"""A port of GPT-2 with every array of its forward pass, whose sums can be in any order, and which can make mistakes.

It shares no code with gpt2.py. `ERRORS` are the mistakes that ports make, each with the first array that it spoils.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

Array = np.ndarray[Any, np.dtype[Any]]

ERRORS = {
    "the erf form of gelu": "h0/mlp/gelu",
    "eps 1e-6": "h0/ln_1",
    "n - 1 in the variance": "h0/ln_1",
    "mask off by one": "h0/attn/scores",
    "position off by one": "embedding",
    "no division by sqrt(d_head)": "h0/attn/scores",
    "heads split the other way": "h0/attn/q",
    "biases forgotten": "h0/attn/c_attn",
    "layers sorted by name": "h2/ln_1",
    "tied weights not transposed": "logits",
}


def in_order(x: Array, w: Array) -> Array:
    """Multiply matrices with each sum from the first product to the last, as a plain loop in C does."""
    total = x[..., :, :1] * w[..., :1, :]
    for i in range(1, x.shape[-1]):
        total += x[..., :, i : i + 1] * w[..., i : i + 1, :]
    return total


def from_the_end(x: Array, w: Array) -> Array:
    """Multiply matrices with each sum from the last product to the first."""
    return in_order(x[..., ::-1], w[..., ::-1, :])


def in_eight_lanes(x: Array, w: Array) -> Array:
    """Multiply matrices with eight sums that are added at the end, as a loop with SIMD instructions does."""
    return sum(in_order(x[..., lane::8], w[..., lane::8, :]) for lane in range(8) if lane < x.shape[-1])


def in_pytorch(x: Array, w: Array) -> Array:
    """Multiply matrices with PyTorch's library."""
    torch = pytest.importorskip("torch")
    return (torch.tensor(x) @ torch.tensor(np.ascontiguousarray(w))).numpy()


class Port:
    """A forward pass: `values` has its arrays by our names."""

    def __init__(self, params: dict[str, Any], n_head: int, error: str = "", matmul: Callable[..., Array] = np.matmul):
        self.params, self.n_head, self.error, self.matmul = params, n_head, error, matmul
        self.values: dict[str, Array] = {}

    def keep(self, name: str, value: Array) -> Array:
        self.values[name] = value
        return value

    def run(self, ids: list[int]) -> dict[str, Array]:
        wte, wpe, blocks = self.params["wte"], self.params["wpe"], self.params["blocks"]
        self.keep("inputs", np.array(ids))
        positions = np.arange(len(ids)) + (self.error == "position off by one")
        x = self.keep("embedding", wte[ids] + wpe[positions])
        for layer, i in enumerate(self.order(len(blocks))):
            x = self.block(f"h{layer}/", x, blocks[i])
        x = self.keep("ln_f", self.norm(x, **self.params["ln_f"]))
        is_wrong = self.error == "tied weights not transposed"
        self.keep("logits", self.matmul(x, wte.reshape(wte.shape[::-1]) if is_wrong else wte.T))
        return self.values

    def order(self, n_layer: int) -> list[int]:
        if self.error != "layers sorted by name":
            return list(range(n_layer))
        if n_layer > 10:
            return sorted(range(n_layer), key=str)
        return [0, 1, *reversed(range(2, n_layer))]  # fewer layers have no two digits

    def block(self, prefix: str, x: Array, block: dict[str, Any]) -> Array:
        y = self.keep(prefix + "ln_1", self.norm(x, **block["ln_1"]))
        x = self.keep(prefix + "mid", x + self.attention(prefix + "attn/", y, **block["attn"]))
        y = self.keep(prefix + "ln_2", self.norm(x, **block["ln_2"]))
        y = self.keep(prefix + "mlp/c_fc", self.linear(y, **block["mlp"]["c_fc"]))
        y = self.keep(prefix + "mlp/gelu", self.gelu(y))
        y = self.keep(prefix + "mlp/c_proj", self.linear(y, **block["mlp"]["c_proj"]))
        return self.keep(prefix + "out", x + y)

    def attention(self, prefix: str, x: Array, c_attn: dict[str, Array], c_proj: dict[str, Array]) -> Array:
        n_seq, n_embd = x.shape
        qkv = self.keep(prefix + "c_attn", self.linear(x, **c_attn))
        parts = zip("qkv", (self.split(part) for part in np.split(qkv, 3, axis=1)))
        q, k, v = (self.keep(prefix + name, np.ascontiguousarray(part)) for name, part in parts)
        scores = self.matmul(q, k.transpose(0, 2, 1))
        if self.error != "no division by sqrt(d_head)":
            scores = scores * scores.dtype.type(1 / math.sqrt(q.shape[-1]))
        hidden = ~np.tri(n_seq, k=int(self.error == "mask off by one"), dtype=bool)
        scores = self.keep(prefix + "scores", np.where(hidden, scores.dtype.type(-1e10), scores))
        exp = np.exp(scores - scores.max(axis=-1, keepdims=True))
        probs = self.keep(prefix + "probs", exp / exp.sum(axis=-1, keepdims=True))
        heads = self.keep(prefix + "heads", self.matmul(probs, v))
        merged = self.keep(prefix + "merged", heads.transpose(1, 0, 2).reshape(n_seq, n_embd))
        return self.keep(prefix + "c_proj", self.linear(merged, **c_proj))

    def split(self, x: Array) -> Array:
        if self.error == "heads split the other way":
            return x.reshape(len(x), -1, self.n_head).transpose(2, 0, 1)
        return x.reshape(len(x), self.n_head, -1).transpose(1, 0, 2)

    def linear(self, x: Array, w: Array, b: Array) -> Array:
        y = self.matmul(x, w)
        return y if self.error == "biases forgotten" else y + b

    def norm(self, x: Array, g: Array, b: Array) -> Array:
        variance = x.var(axis=-1, keepdims=True, ddof=int(self.error == "n - 1 in the variance"))
        eps = 1e-6 if self.error == "eps 1e-6" else 1e-5
        return g * ((x - x.mean(axis=-1, keepdims=True)) / np.sqrt(variance + x.dtype.type(eps))) + b

    def gelu(self, x: Array) -> Array:
        if self.error == "the erf form of gelu":
            erf = np.vectorize(math.erf, otypes=[x.dtype])
            return x * (1 + erf(x / math.sqrt(2)).astype(x.dtype)) / 2
        return x / 2 * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))
