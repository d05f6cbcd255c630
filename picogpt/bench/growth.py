"""Draw the picture of `bench --plot`: how time and memory grow with the prompt, the context and the model's size."""

from __future__ import annotations

import os
import statistics
import tracemalloc
from collections.abc import Callable
from functools import partial
from typing import IO, TYPE_CHECKING, Any

import numpy as np

import gpt2
from picogpt.bench.timing import N_DECODED, OURS, Tick, Times, Work, Workload, measure
from picogpt.checkpoints.sizes import hparams_of
from utils import SIZES, expected_shapes, free_memory, nest

if TYPE_CHECKING:
    from picogpt.bench.peers import Transformers

LIMIT = "limit"  # the key of the limit, whatever its name is
OURS_COLOUR, LIMIT_COLOUR, PEER_COLOUR = "#0072b2", "#555555", "#d55e00"  # the colour-blind can tell them apart


def lengths(n_ctx: int) -> list[int]:
    """Return the numbers of tokens to measure at: each twice the one before, and last the whole context."""
    return [*(n for n in (16, 32, 64, 128, 256, 512) if n < n_ctx), n_ctx]


def n_bytes_of(size: str) -> int:
    """Return how many bytes the weights of a size take in float32."""
    return 4 * sum(int(np.prod(shape)) for shape in expected_shapes(hparams_of(size)).values())


def sizes_that_fit() -> list[str]:
    """Return the sizes whose weights take less than half of the free memory."""
    memory = free_memory()
    return [size for size in SIZES if 2 * n_bytes_of(size) < memory]


def n_measurements(n_ctx: int) -> int:
    """Return how many measurements `draw` makes."""
    return 3 * len(lengths(n_ctx)) + len(sizes_that_fit())


def made_up(size: str) -> Any:
    """Return parameters that repeat a few random numbers, because the speed does not depend on the values."""
    hparams = hparams_of(size)
    some = np.random.default_rng(0).standard_normal(1 << 16, dtype=np.float32) * 0.02
    tensors = {name: np.resize(some, shape) for name, shape in expected_shapes(hparams).items()}
    return nest(tensors, hparams["n_layer"])


def peak_memory(work: Callable[[], Any]) -> float:
    """Return the MiB that a call allocates at its peak. (NumPy reports its arrays to tracemalloc.)"""
    tracemalloc.start()
    try:
        work()
        return tracemalloc.get_traced_memory()[1] / 2**20
    finally:
        tracemalloc.stop()


def milliseconds(work: Work, times: Times) -> dict[str, float]:
    """Return the median time of the work itself, of its limit, and of each peer."""
    return {LIMIT if name in work.limits else name: 1e3 * statistics.median(times[name]) for name in times}


def milliseconds_per_token(work: Work, rounds: int) -> dict[str, float]:
    """Measure decoding, and return the median time of a single token."""
    whole = milliseconds(work, measure(work, rounds)[1])
    return {name: value / work.amount for name, value in whole.items()}


def draw(workload: Workload, other: Transformers | None, name: str, rounds: int, file: IO[bytes], tick: Tick) -> None:
    """Measure the model and draw a picture with four panels."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 7.5), layout="constrained")
    panels = figure.subplots(2, 2)
    draw_prompts(panels[0, 0], workload, other, rounds, tick)
    draw_decoding(panels[0, 1], workload, other, rounds, tick)
    draw_memory(panels[1, 0], workload, tick)
    draw_sizes(panels[1, 1], rounds, tick)
    figure.suptitle(f"picogpt, {name}, {os.cpu_count()} processors, float32")
    for axes in panels.flat:
        axes.grid(alpha=0.3, which="both")
        axes.legend()
    figure.savefig(file, format="png", dpi=110)


def draw_lines(axes: Any, x: list[Any], points: list[dict[str, float]], limit: str) -> None:
    """Draw one line each for picogpt, the limit, and transformers if it was measured."""
    styles = {
        OURS: {"color": OURS_COLOUR, "marker": "o", "label": "picogpt"},
        LIMIT: {"color": LIMIT_COLOUR, "linestyle": "--", "label": f"limit: {limit}"},
        "transformers": {"color": PEER_COLOUR, "marker": "s", "label": "transformers, PyTorch"},
    }
    for key, style in styles.items():
        if key in points[0]:
            axes.plot(x, [point[key] for point in points], **style)
    axes.set_ylabel("milliseconds")


def draw_prompts(axes: Any, workload: Workload, other: Transformers | None, rounds: int, tick: Tick) -> None:
    """Draw the time from a prompt to its first token."""
    points, counts = [], lengths(workload.n_ctx)
    for n in counts:
        work = workload.prompt(n, other.prompt(workload, n) if other else {})
        points.append(milliseconds(work, measure(work, rounds)[1]))
        tick()
    draw_lines(axes, counts, points, "sgemm")
    axes.set(title="a prompt, to its first token", xlabel="prompt tokens", xscale="log", yscale="log")


def draw_decoding(axes: Any, workload: Workload, other: Transformers | None, rounds: int, tick: Tick) -> None:
    """Draw the time of one more token."""
    points, counts = [], [n - N_DECODED for n in lengths(workload.n_ctx)]
    for n in counts:
        work = workload.decode(n, other.decoding(workload, n) if other else {})
        points.append(milliseconds_per_token(work, 2 * rounds))
        tick()
    draw_lines(axes, counts, points, "reading the weights")
    axes.set(title="one more token", xlabel="tokens before it")
    axes.set_ylim(bottom=0)


def draw_memory(axes: Any, workload: Workload, tick: Tick) -> None:
    """Draw the memory that a prompt and one more token take beyond the weights, which are mapped from their file."""
    peaks, counts = [], lengths(workload.n_ctx)
    for n in counts:
        new = gpt2.generate(workload.ids[:n], workload.params, workload.n_head, 1)
        peaks.append(peak_memory(partial(list, new)))
        tick()
    n_embd, n_layer = workload.params["wte"].shape[1], len(workload.params["blocks"])
    axes.plot(counts, peaks, color=OURS_COLOUR, marker="o", label="picogpt")
    cache = [n * n_layer * 2 * n_embd * 4 / 2**20 for n in counts]
    axes.plot(counts, cache, color=LIMIT_COLOUR, linestyle="--", label="the keys and values alone")
    axes.set(title="memory beyond the weights", xlabel="prompt tokens", ylabel="MiB")


def draw_sizes(axes: Any, rounds: int, tick: Tick) -> None:
    """Draw the time of one more token after ten others, in models of OpenAI's sizes with made-up weights."""
    points, sizes = [], sizes_that_fit()
    for size in sizes:
        points.append(milliseconds_per_token(Workload(made_up(size), hparams_of(size)["n_head"]).decode(10), rounds))
        tick()
    draw_lines(axes, [n_bytes_of(size) / 1e9 for size in sizes], points, "reading the weights")
    axes.set(title="one more token, by model size", xlabel="GB of weights: " + ", ".join(sizes))
    axes.set_ylim(bottom=0)
    axes.set_xlim(left=0)
