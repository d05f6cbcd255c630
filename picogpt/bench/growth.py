"""Draw the picture of `bench --plot`: how time and memory grow with the prompt and the context."""

from __future__ import annotations

import os
import statistics
import tracemalloc
from collections.abc import Callable
from functools import partial
from typing import IO, TYPE_CHECKING, Any

import gpt2
from picogpt.bench.timing import N_DECODED, OURS, Tick, Work, Workload, measure

if TYPE_CHECKING:
    from picogpt.bench.peers import Transformers

LIMIT = "limit"  # the key of the limit, whatever its name is
OURS_COLOUR, LIMIT_COLOUR, PEER_COLOUR = "#0072b2", "#555555", "#d55e00"  # the colour-blind can tell them apart


def lengths(n_ctx: int) -> list[int]:
    """Return the numbers of tokens to measure at: each twice the one before, and last the whole context."""
    return [*(n for n in (16, 32, 64, 128, 256, 512) if n < n_ctx), n_ctx]


def peak_memory(work: Callable[[], Any]) -> float:
    """Return the MiB that a call allocates at its peak. (NumPy reports its arrays to tracemalloc.)"""
    tracemalloc.start()
    try:
        work()
        return tracemalloc.get_traced_memory()[1] / 2**20
    finally:
        tracemalloc.stop()


def milliseconds(work: Work, rounds: int, n: float = 1) -> dict[str, float]:
    """Measure work, and return the median time of one of its n parts: of ours, of its limit, and of each peer."""
    times = measure(work, rounds)[1]
    return {LIMIT if name in work.limits else name: 1e3 * statistics.median(times[name]) / n for name in times}


def draw(workload: Workload, other: Transformers | None, name: str, rounds: int, file: IO[bytes], tick: Tick) -> None:
    """Measure a model, and draw a picture with three panels."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(13, 4), layout="constrained")
    panels = figure.subplots(1, 3)
    draw_prompts(panels[0], workload, other, rounds, tick)
    draw_decoding(panels[1], workload, other, rounds, tick)
    draw_memory(panels[2], workload, tick)
    figure.suptitle(f"picogpt, {name}, {os.cpu_count()} processors, float32")
    for axes in panels:
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
        points.append(milliseconds(work, rounds))
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
        points.append(milliseconds(work, 2 * rounds, work.amount))
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
