"""The picture that `bench --plot` draws: how time and memory grow with prompt, context and model size."""

from __future__ import annotations

import importlib.util
import os
import statistics
import tracemalloc
from collections.abc import Callable
from functools import partial
from typing import IO, TYPE_CHECKING, Any

import numpy as np

import gpt2
from picogpt.bench.timing import LIMIT, Times, Work, Workload, measure
from picogpt.checkpoints.sizes import SHAPES, hparams_of
from utils import expected_shapes, nest

if TYPE_CHECKING:
    from picogpt.bench.peers import Transformers

OURS_COLOUR, LIMIT_COLOUR, PEER_COLOUR = "#0072b2", "#555555", "#d55e00"  # told apart by the colour-blind


def check_matplotlib() -> None:
    if importlib.util.find_spec("matplotlib") is None:
        raise OSError("--plot: matplotlib is not installed: pip install -r requirements-train.txt")


def lengths(n_ctx: int) -> list[int]:
    """Lengths that double, and the whole context."""
    return [*(n for n in (16, 32, 64, 128, 256, 512) if n < n_ctx), n_ctx]


def shapes_that_fit() -> list[str]:
    """The sizes whose weights take less than half of the machine's memory; unknown, it is taken to be 8 GiB."""
    try:
        memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):
        memory = 8 << 30
    return [size for size in SHAPES if 2 * n_bytes_of(size) < memory]


def n_bytes_of(size: str) -> int:
    return 4 * sum(int(np.prod(shape)) for shape in expected_shapes(hparams_of(size)).values())


def steps(n_ctx: int) -> int:
    """How many measurements `draw` makes."""
    return 3 * len(lengths(n_ctx)) + len(shapes_that_fit())


def made_up(size: str) -> Any:
    """Parameters of a size in memory: the same few random numbers again and again. Speed does not depend on them."""
    hparams = hparams_of(size)
    some = np.random.default_rng(0).standard_normal(1 << 16, dtype=np.float32) * 0.02
    tensors = {name: np.resize(some, shape) for name, shape in expected_shapes(hparams).items()}
    return nest(tensors, hparams["n_layer"])


def peak_memory(work: Callable[[], Any]) -> float:
    """MiB that a call allocates beyond what was there: NumPy reports its arrays to tracemalloc."""
    tracemalloc.start()
    try:
        work()
        return tracemalloc.get_traced_memory()[1] / 2**20
    finally:
        tracemalloc.stop()


def milliseconds(times: Times, factors: dict[str, float]) -> dict[str, float]:
    return {name: 1e3 * factors.get(name, 1) * statistics.median(values) for name, values in times.items()}


def a_token(work: Work, rounds: int) -> dict[str, float]:
    """Milliseconds for each of the tokens that a work decodes."""
    whole = milliseconds(measure(work, rounds)[1], {LIMIT: work.part})
    return {name: value / work.amount for name, value in whole.items()}


def draw(
    machine: Workload, other: Transformers | None, name: str, rounds: int, file: IO[bytes], tick: Callable[[], Any]
) -> None:
    """Measure and draw four panels."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, panels = plt.subplots(2, 2, figsize=(10, 7.5), layout="constrained")
    n_ctx = machine.n_ctx
    counts = lengths(n_ctx)
    draw_prompts(panels[0, 0], machine, other, counts, rounds, tick)
    draw_decoding(panels[0, 1], machine, other, [n - 8 for n in counts], rounds, tick)
    draw_memory(panels[1, 0], machine, counts, tick)
    draw_sizes(panels[1, 1], rounds, tick)
    figure.suptitle(f"picogpt, {name}, {os.cpu_count()} processors, float32")
    for axes in panels.flat:
        axes.grid(alpha=0.3, which="both")
        axes.legend()
    figure.savefig(file, format="png", dpi=110)
    plt.close(figure)


def lines(axes: Any, x: list[Any], found: list[dict[str, float]], limit: str) -> None:
    """One line for each of ours, the limit and the peers that were measured at every point."""
    styles = {
        "ours": {"color": OURS_COLOUR, "marker": "o", "label": "picogpt"},
        "limit": {"color": LIMIT_COLOUR, "linestyle": "--", "label": limit},
        "transformers": {"color": PEER_COLOUR, "marker": "s", "label": "transformers, PyTorch"},
    }
    for key, style in styles.items():
        if key in found[0]:
            axes.plot(x, [point[key] for point in found], **style)
    axes.set_ylabel("milliseconds")


def draw_prompts(axes: Any, machine: Workload, other: Any, counts: list[int], rounds: int, tick: Any) -> None:
    found = []
    for n in counts:
        work = machine.prompt(n, other.prompt(machine, n) if other else {})
        found.append(milliseconds(measure(work, rounds)[1], {LIMIT: work.part}))
        tick()
    lines(axes, counts, found, "limit: sgemm")
    axes.set(title="a prompt, to its first token", xlabel="prompt tokens", xscale="log", yscale="log")


def draw_decoding(axes: Any, machine: Workload, other: Any, counts: list[int], rounds: int, tick: Any) -> None:
    found = []
    for n in counts:
        work = machine.decode(n, other.decoding(machine, n) if other else {})
        found.append(a_token(work, 2 * rounds))
        tick()
    lines(axes, counts, found, "limit: reading the weights")
    axes.set(title="one more token", xlabel="tokens before it")
    axes.set_ylim(bottom=0)


def draw_memory(axes: Any, machine: Workload, counts: list[int], tick: Any) -> None:
    """Beyond the weights, which are mapped: the cache for a prompt and one token more, and what its pass needs."""

    peaks = []
    for n in counts:
        new = gpt2.generate(machine.ids[:n], machine.params, machine.n_head, 1)
        peaks.append(peak_memory(partial(list, new)))
        tick()
    n_embd, n_layer = machine.params["wte"].shape[1], len(machine.params["blocks"])
    axes.plot(counts, peaks, color=OURS_COLOUR, marker="o", label="picogpt")
    cache = [n * n_layer * 2 * n_embd * 4 / 2**20 for n in counts]
    axes.plot(counts, cache, color=LIMIT_COLOUR, linestyle="--", label="the keys and values alone")
    axes.set(title="memory beyond the weights", xlabel="prompt tokens", ylabel="MiB")


def draw_sizes(axes: Any, rounds: int, tick: Any) -> None:
    found, sizes = [], shapes_that_fit()
    for size in sizes:
        work = Workload(made_up(size), SHAPES[size][1]).decode(10)
        found.append(a_token(work, rounds))
        tick()
    lines(axes, [n_bytes_of(size) / 1e9 for size in sizes], found, "limit: reading the weights")
    axes.set(title="one more token, by model size", xlabel="GB of weights: " + ", ".join(sizes))
    axes.set_ylim(bottom=0)
    axes.set_xlim(left=0)
