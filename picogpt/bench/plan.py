"""What `bench` builds, and how much memory that takes: said, and checked, before the work begins."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

from picogpt.bench.timing import MAX_MATRIX, N_DECODED, SIDE
from picogpt.command_line import free_memory
from picogpt.terminal_text import log_wrapped
from utils import expected_shapes

N_ROWS = 64  # the most samples that grow side by side
TOKENIZERS = 400 * 10**6  # bytes for a dozen of them with OpenAI's vocabulary, and the word of a million letters


class Shape(NamedTuple):
    """A model to build or to measure: its name and its hyperparameters."""

    name: str
    hparams: dict[str, int]

    @property
    def n_bytes(self) -> int:
        """Return how many bytes the weights take in float32."""
        return 4 * sum(math.prod(shape) for shape in expected_shapes(self.hparams).values())

    def __str__(self) -> str:
        sizes = ", ".join(f"{name} {self.hparams[name]}" for name in ("n_layer", "n_embd", "n_ctx", "n_vocab"))
        return f"{self.name} ({sizes}; {self.n_bytes / 1e6:,.0f} MB of weights in float32)"


def limits_memory(n_bytes: int) -> int:
    """Return how many bytes the matrices of `timing.Limits` take beside a model with n_bytes of weights."""
    return min(n_bytes, MAX_MATRIX) + 3 * 4 * SIDE**2


def keys_memory(hparams: dict[str, int], n: int) -> int:
    """Return how many bytes the keys and values of n positions take."""
    return n * 2 * 4 * hparams["n_layer"] * hparams["n_embd"]


def work_memory(shape: Shape) -> int:
    """Return how many bytes the measurements take. The weights are not among them: they are mapped from their file.

    The limits and the keys and values of a full context stay in memory. Of the samples side by side and the tokenizers,
    one is there after the other.
    """
    samples = N_ROWS * (keys_memory(shape.hparams, 10 + N_DECODED + 1) + 3 * 4 * shape.hparams["n_vocab"])
    return limits_memory(shape.n_bytes) + keys_memory(shape.hparams, shape.hparams["n_ctx"]) + max(samples, TOKENIZERS)


def picture_memory(shape: Shape) -> int:
    """Return how many bytes a model of random weights takes in memory, with its limits and room for a context."""
    return shape.n_bytes + limits_memory(shape.n_bytes) + keys_memory(shape.hparams, shape.hparams["n_ctx"])


def those_that_fit(shapes: Sequence[Shape], beside: float) -> list[Shape]:
    """Return the models that can be built in memory beside so many other bytes, one after the other. Log the others."""
    free = free_memory() - beside
    for shape in shapes:
        if (needed := picture_memory(shape)) > free:
            are_free = f"{max(0, free) / 1e6:,.0f} MB are free"
            log_wrapped(f"left out of the picture: {shape.name} takes {needed / 1e6:,.0f} MB, but {are_free}")
    return [shape for shape in shapes if picture_memory(shape) <= free]
