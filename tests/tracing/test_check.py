"""Test the checker of the walkthrough's exercises: right functions, and the mistakes that readers make."""

from __future__ import annotations

import math
import re

import numpy as np
import pytest
from helpers import SMALL, random_params

import gpt2
from picogpt.tracing.check import check

PARAMS, N_HEAD = random_params(SMALL), SMALL["n_head"]
IDS = [3, 1, 4, 1, 5, 9]


def answer(name, function):
    before = dict(vars(gpt2))
    try:
        return check(name, function, IDS, PARAMS, N_HEAD)
    finally:
        assert dict(vars(gpt2)) == before


def mask(q, k):
    return np.where(np.arange(k.shape[-2]) > np.arange(q.shape[-2])[:, None], -math.inf, 0).astype(q.dtype)


RIGHT = {
    "layer_norm": lambda x, g, b: (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-5) * g + b,
    "causal_mask": mask,
    "merge_heads": lambda x: np.concatenate(list(x), axis=-1),
    "gelu": lambda x: 0.5 * x * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3))),
    "softmax": lambda x: np.exp(x) / np.exp(x).sum(axis=-1, keepdims=True),
}


@pytest.mark.parametrize("name", RIGHT)
def test_a_right_function(name):
    assert answer(name, RIGHT[name]) == f"All 52 arrays of the model are the same with your {name}."


def test_a_mask_of_very_negative_numbers_is_right_too():
    assert answer("causal_mask", lambda q, k: np.maximum(mask(q, k), np.float32(-1e9))).startswith("All 52 arrays")


MISTAKES = {  # name of the function, function, first array that differs, and what is said of it
    "all rows together": (
        *("layer_norm", lambda x, g, b: (x - x.mean()) / x.std() * g + b),
        *("h0/ln_1", r"At \[\d, \d+\], yours is -?\d.* instead of -?\d"),
    ),
    "n - 1": (
        *("layer_norm", lambda x, g, b: (x - x.mean(-1, keepdims=True)) / x.std(-1, ddof=1, keepdims=True) * g + b),
        *("h0/ln_1", "At"),
    ),
    "not yet written": ("layer_norm", lambda x, g, b: None, "h0/ln_1", r"Yours is None instead of float32 \[6, 21\]"),
    "nothing hidden": ("causal_mask", lambda q, k: np.zeros_like(mask(q, k)), "h0/attn/scores", "instead of -inf"),
    "one too many": (
        *("causal_mask", lambda q, k: np.triu(np.full((6, 6), -np.inf, q.dtype))),
        *("h0/attn/scores", r"At \[0, 0, 0\], yours is -inf instead of"),
    ),
    "float64": (
        *("causal_mask", lambda q, k: mask(q, k).astype(float)),
        *("h0/attn/scores", r"Yours is float64 \[3, 6, 6\] instead of float32 \[3, 6, 6\]"),
    ),
    "only reshaped": ("merge_heads", lambda x: x.reshape(6, 21), "h0/attn/merged", "At"),
    "a shape that fits nowhere": (
        "merge_heads",
        lambda x: x,
        "h0/attn/merged",
        r"Yours is float32 \[3, 6, 7\] instead",
    ),
    "relu": ("gelu", lambda x: np.maximum(x, 0), "h0/mlp/gelu", "At"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_wrong_function(mistake):
    name, function, array, says = MISTAKES[mistake]
    first, meaning, rest = answer(name, function).split("\n")
    assert first == f"The first array that differs is {array}:"
    assert meaning.endswith("]")
    assert re.search(says, rest), rest


def test_an_error_in_the_function_is_the_reader_s_to_see():
    with pytest.raises(ZeroDivisionError):
        answer("gelu", lambda x: 1 / 0)


def test_a_function_that_gpt2_lacks():
    with pytest.raises(AttributeError, match="layernorm"):
        answer("layernorm", lambda x, g, b: x)
