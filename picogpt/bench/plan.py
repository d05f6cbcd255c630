"""How much memory `bench` takes, which it says and checks before the work begins."""

from __future__ import annotations

import math
from typing import NamedTuple

from picogpt.bench.timing import MAX_MATRIX, N_DECODED, SIDE
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


def work_memory(shape: Shape) -> int:
    """Return how many bytes the measurements take. The weights are not among them: they are mapped from their file.

    The limits and the keys and values of a full context stay in memory. Of the samples side by side and the tokenizers,
    one is there after the other.
    """
    keys = 2 * 4 * shape.hparams["n_layer"] * shape.hparams["n_embd"]  # and values, of one position
    samples = N_ROWS * ((10 + N_DECODED + 1) * keys + 3 * 4 * shape.hparams["n_vocab"])
    limits = min(shape.n_bytes, MAX_MATRIX) + 3 * 4 * SIDE**2  # the matrices of `timing.Limits`
    return limits + shape.hparams["n_ctx"] * keys + max(samples, TOKENIZERS)
