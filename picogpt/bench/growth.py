"""Draw the picture of `bench --plot`: how time and memory grow with the prompt, the context and the model's size."""

from __future__ import annotations

import math
import os
import statistics
import tracemalloc
from collections.abc import Callable
from functools import partial
from typing import IO, TYPE_CHECKING, Any

import numpy as np

import gpt2
from picogpt.bench.plan import Shape
from picogpt.bench.timing import N_DECODED, OURS, Tick, Times, Work, Workload, measure
from utils import SIZES, expected_shapes, nest

if TYPE_CHECKING:
    from picogpt.bench.peers import Transformers

LIMIT = "limit"  # the key of the limit, whatever its name is
OURS_COLOUR, LIMIT_COLOUR, PEER_COLOUR = "#0072b2", "#555555", "#d55e00"  # the colour-blind can tell them apart


def lengths(n_ctx: int) -> list[int]:
    """Return the numbers of tokens to measure at: each twice the one before, and last the whole context."""
    return [*(n for n in (16, 32, 64, 128, 256, 512) if n < n_ctx), n_ctx]


def other_sizes(model: Shape, all_sizes: bool) -> list[Shape]:
    """Return the sizes of OpenAI's to draw beside the model: the smaller ones, or all."""
    shapes = [Shape(size, SIZES[size]) for size in SIZES]
    return [shape for shape in shapes if shape.n_bytes < model.n_bytes or (all_sizes and shape.n_bytes > model.n_bytes)]


def n_measurements(n_ctx: int, sizes: list[Shape]) -> int:
    """Return how many measurements `draw` makes."""
    return 3 * len(lengths(n_ctx)) + len(sizes) + 1


def made_up(hparams: dict[str, int]) -> Any:
    """Return parameters that repeat a few random numbers, because the speed does not depend on the values."""
    some = np.random.default_rng(0).standard_normal(1 << 16, dtype=np.float32) * 0.02
    shapes = expected_shapes(hparams).items()
    tensors = {name: np.resize(some[: math.prod(shape)], shape) for name, shape in shapes}  # resize keeps all of `some`
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


def draw(
    workload: Workload,
    other: Transformers | None,
    model: Shape,
    sizes: list[Shape],
    rounds: int,
    file: IO[bytes],
    tick: Tick,
) -> None:
    """Measure the model, and models of other sizes, and draw a picture with four panels."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 7.5), layout="constrained")
    panels = figure.subplots(2, 2)
    draw_prompts(panels[0, 0], workload, other, rounds, tick)
    draw_decoding(panels[0, 1], workload, other, rounds, tick)
    draw_memory(panels[1, 0], workload, tick)
    draw_sizes(panels[1, 1], workload, model, sizes, rounds, tick)
    figure.suptitle(f"picogpt, {model.name}, {os.cpu_count()} processors, float32")
    for axes in panels.flat:
        axes.grid(alpha=0.3, which="both")
        axes.legend()
    figure.savefig(file, format="png", dpi=110)


def draw_lines(axes: Any, x: list[Any], points: list[dict[str, float]], limit: str) -> None:
    """Draw one line each for picogpt, the limit, and transformers if it was measured."""
    styles = {
        OURS: {"color": OURS_COLOUR, "marker": "o", "label": "picogpt"},
        LIMIT: {"color": LIMIT_COLOUR, "linestyle": "--", "marker": "_", "label": f"limit: {limit}"},
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
    axes.set_xticks(counts, list(map(str, counts)))
    axes.set_xticks([], minor=True)  # their labels would overlap


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


def draw_sizes(axes: Any, workload: Workload, model: Shape, sizes: list[Shape], rounds: int, tick: Tick) -> None:
    """Draw the time of one more token after ten others: in the model, and in OpenAI's sizes with made-up weights."""
    shapes, points = sorted([model, *sizes], key=lambda shape: shape.n_bytes), []
    for shape in shapes:
        measured = workload if shape is model else Workload(made_up(shape.hparams), shape.hparams["n_head"])
        points.append(milliseconds_per_token(measured.decode(min(10, measured.n_ctx - 1)), rounds))
        tick()
    unit, n_bytes = (
        ("MB", 1e6) if len(shapes) == 1 else ("GB", 1e9)
    )  # a single one may be as small as the bundled model
    draw_lines(axes, [shape.n_bytes / n_bytes for shape in shapes], points, "reading the weights")
    names = ", ".join(shape.name for shape in shapes)
    axes.set(title="one more token, by model size", xlabel=f"{unit} of weights: {names}")
    axes.margins(0.1)  # a model smaller than OpenAI's is a single point
    axes.set_ylim(bottom=0)
    axes.set_xlim(left=0)
