"""What `bench` builds, how much memory that takes and how long it lasts: said, and checked, before the work begins."""

from __future__ import annotations

import math
import time
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from picogpt.bench.timing import MAX_MATRIX, N_DECODED, SIDE, Work
from picogpt.command_line import UsageError, free_memory
from picogpt.terminal_text import log_wrapped, megabytes
from utils import expected_shapes

SHARE = 0.3  # of a limit that the work reaches, for the estimate of the time: docs/speed.md has 0.19 to 0.85
TOKENIZER_SPEED = 2e6  # bytes in a second, with the limit and the way back
N_ROWS = 64  # the most samples that grow side by side
BYTES_PER_TOKEN = 370  # of a vocabulary in memory, measured with OpenAI's
LONG_WORD = 160 * 10**6  # bytes for the word of a million letters and the texts, measured with the bundled model


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
        return f"{self.name} ({sizes}; {megabytes(self.n_bytes)} of weights in float32)"


def about(seconds: float) -> str:
    """Return a rough duration as text.

    >>> about(12), about(71), about(100), about(4000)
    ('20 s', '80 s', '2 minutes', '67 minutes')
    """
    return f"{10 * math.ceil(seconds / 10)} s" if seconds < 90 else f"{math.ceil(seconds / 60)} minutes"


# ------------------------------------------------------------------------------------------------------------- memory


def limits_memory(n_bytes: int) -> int:
    """Return how many bytes the matrices of `timing.Limits` take beside a model with n_bytes of weights."""
    return min(n_bytes, MAX_MATRIX) + 3 * 4 * SIDE**2


def keys_memory(hparams: dict[str, int], n: int) -> int:
    """Return how many bytes the keys and values of n positions take."""
    return n * 2 * 4 * hparams["n_layer"] * hparams["n_embd"]


def tokenizers_memory(n_vocab: int, rounds: int) -> int:
    """Return how many bytes the tokenizers take, with their caches, the texts, and the very long word."""
    return 2 * (rounds + 1) * (BYTES_PER_TOKEN * n_vocab + 10**6) + LONG_WORD


def work_memory(shape: Shape, rounds: int) -> int:
    """Return how many bytes the measurements take. The weights are not among them: they are mapped from their file.

    The limits and the keys and values of a full context stay in memory. Of the samples side by side and the tokenizers,
    one is there after the other.
    """
    hparams, n_vocab = shape.hparams, shape.hparams["n_vocab"]
    samples = N_ROWS * (keys_memory(hparams, 10 + N_DECODED + 1) + 3 * 4 * n_vocab)
    largest = max(samples, tokenizers_memory(n_vocab, rounds))
    return limits_memory(shape.n_bytes) + keys_memory(hparams, hparams["n_ctx"]) + largest


def picture_memory(shape: Shape) -> int:
    """Return how many bytes a model of random weights takes in memory, with its limits and room for a context."""
    return shape.n_bytes + limits_memory(shape.n_bytes) + keys_memory(shape.hparams, shape.hparams["n_ctx"])


def check_memory(what: str, n_bytes: float) -> None:
    """Log how much memory a work takes, and how much is free. Raises UsageError if that is not enough."""
    free = free_memory()
    are_free = megabytes(free, math.floor)
    if n_bytes > free:
        raise UsageError(f"{what} takes about {megabytes(n_bytes)} of memory, but only {are_free} are free")
    log_wrapped(f"{what} takes about {megabytes(n_bytes)} of memory; {are_free} are free")


def those_that_fit(shapes: Sequence[Shape], beside: float) -> list[Shape]:
    """Return the models that can be built in memory beside so many other bytes, one after the other.

    Log a line for each model: what is built, or that it is left out.
    """
    free, fitting = free_memory() - beside, []
    for shape in shapes:
        needed = picture_memory(shape)
        if needed <= free:
            fitting.append(shape)
            log_wrapped(f"for the picture: random weights in memory, {shape}; {megabytes(needed)} in all")
        else:
            are_free = megabytes(max(0, free), math.floor)
            log_wrapped(f"left out of the picture: {shape.name} takes {megabytes(needed)}, but {are_free} are free")
    return fitting


# --------------------------------------------------------------------------------------------------------------- time


def expected_seconds(works: Iterable[Work], rounds: int) -> float:
    """Return about how long it takes to measure these works, from one call of each of their limits."""
    total = 0.0
    for work in works:
        start = time.perf_counter()
        slowest = max(limit() for limit in work.limits.values())
        total += (rounds + 1) * (time.perf_counter() - start + slowest / SHARE)
    return total


def expected_seconds_of_others(start: float, read: float, n_bytes: int, rounds: int) -> float:
    """Return about how long the whole commands and the tokenizers take.

    `start` is the time in which a process starts and imports NumPy, and `read` that of reading the weights once. The
    tokenizers get n_bytes of text, and at most three times one very long word, for a second each.
    """
    command = 4 * start + 42 * read / SHARE
    return (rounds + 1) * (command + n_bytes / TOKENIZER_SPEED) + min(rounds + 1, 3)
