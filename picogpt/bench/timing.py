"""Time pieces of work in turn with their limits and with other programs, and describe the model's own work."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, NamedTuple

import numpy as np

import gpt2

Row = dict[str, Any]
Times = dict[str, list[float]]
Tick = Callable[[], Any]
Clocks = Mapping[str, Callable[[], float]]  # each function does a piece of work and returns the seconds it took
OURS, LIMIT = "ours", "limit"
SIDE = 2048  # rows and columns of the two matrices whose product gives the machine's speed at multiplying
N_DECODED = 8  # tokens decoded in a row for one figure: a single token would be timed with cold caches


class Work(NamedTuple):
    """One thing to measure.

    A call of `ours` does `amount` tokens, or megabytes; `unit` is "tokens/s" or "MB/s", or "s" if the time
    itself is shown. At the limit's speed, a call of `ours` would take `limit_share` times as long as a call of `limit`.
    """

    name: str
    unit: str
    amount: float
    ours: Callable[[], Any]
    limit: Callable[[], Any] | None = None
    limit_name: str = ""
    limit_share: float = 1.0
    peers: Clocks = {}  # noqa: RUF012


# ------------------------------------------------------------------------------------------------------------ timing


def seconds(work: Callable[[], Any]) -> float:
    """Return how many seconds a call takes."""
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def in_turn(rounds: int, clocks: Clocks, pause: float = 0) -> Times:
    """Run every clock once in each round, and return each one's seconds. A first round is run but not counted."""
    times: Times = {name: [] for name in clocks}
    for _ in range(rounds + 1):
        for name, clock in clocks.items():
            time.sleep(pause)
            times[name].append(clock())
    return {name: values[1:] for name, values in times.items()}


def summary(name: str, values: list[float], unit: str) -> Row:
    """Return one row of the table: the median of the values, the lowest and the highest."""
    return {"name": name, "median": statistics.median(values), "low": min(values), "high": max(values), "unit": unit}


def rows_of(work: Work, times: Times) -> list[Row]:
    """Return our own row with its share of the limit, and a row for each peer with the ratio of its time to ours.

    Share and ratio are computed in each round and their median is taken, since a machine's speed drifts.
    """
    ours = times[OURS]

    def figures(seconds: list[float]) -> list[float]:
        return [t if work.unit == "s" else work.amount / t for t in seconds]

    row = summary(work.name, figures(ours), work.unit)
    if work.limit:
        share = statistics.median(work.limit_share * limit / t for limit, t in zip(times[LIMIT], ours))
        row |= {"share": share, "limit": work.limit_name}
    rows = [row]
    for peer in work.peers:
        ratio = statistics.median(theirs / t for theirs, t in zip(times[peer], ours))
        rows.append(summary(f"{work.name}: {peer}", figures(times[peer]), work.unit) | {"ratio": ratio})
    return rows


def measure(work: Work, rounds: int) -> tuple[list[Row], Times]:
    """Measure a piece of work. Returns its rows and the times that they were computed from.

    The peers get rounds of their own, in which our work is timed once more, because other programs empty the
    processor's caches. A pause in these rounds lets the threads of one program go to sleep before the next one starts.
    """
    ours: Clocks = {OURS: partial(seconds, work.ours)}
    times = in_turn(rounds, {**ours, LIMIT: partial(seconds, work.limit)} if work.limit else ours)
    rows = rows_of(work._replace(peers={}), times)
    if work.peers:
        together = in_turn(rounds, {**ours, **work.peers}, pause=0.05)
        rows += rows_of(work._replace(limit=None), together)[1:]
        times = together | times
    return rows, times


# ---------------------------------------------------------------------------------------------- the model's own work


def weights_per_token(params: Any) -> list[Any]:
    """Return the matrices that a decoded token is multiplied with. Each of them is read once."""
    names = (("attn", "c_attn"), ("attn", "c_proj"), ("mlp", "c_fc"), ("mlp", "c_proj"))
    return [*(block[a][b]["w"] for block in params["blocks"] for a, b in names), params["wte"]]


def prompt_flop(params: Any, n: int) -> float:
    """Count the multiplications and additions of a prompt of n tokens.

    Each token takes two operations for each weight. Attention takes the causal half of two products: queries with keys,
    and probabilities with values. Only the last token is multiplied with wte.
    """
    *matrices, wte = weights_per_token(params)
    attention = len(params["blocks"]) * 2 * wte.shape[1] * n * (n + 1)
    return float(2 * n * sum(w.size for w in matrices) + attention + 2 * wte.size)


class Limits:
    """The two products that mark the machine's limits: a large matrix with a vector, and two large matrices.

    The first one reads as many bytes as the weights have, but at most a gigabyte. `reads` is the number of times that
    its matrix fits into the weights.
    """

    def __init__(self, params: Any):
        n_bytes, n_embd = sum(w.nbytes for w in weights_per_token(params)), params["wte"].shape[1]
        n_rows = min(n_bytes, 1 << 30) // 4 // n_embd
        self.matrix = np.ones((n_rows, n_embd), np.float32)
        self.vector = np.ones(n_embd, np.float32)
        self.square = np.random.default_rng(0).standard_normal((SIDE, SIDE), dtype=np.float32)
        self.reads = n_bytes / self.matrix.nbytes

    def read(self) -> Any:
        """Read the large matrix once, by multiplying it with a vector."""
        return self.matrix @ self.vector

    def multiply(self) -> Any:
        """Multiply the two square matrices."""
        return self.square @ self.square


class Workload:
    """A model and random ids, with the two kinds of work to measure: decoding after n tokens, and taking a prompt."""

    def __init__(self, params: Any, n_head: int):
        self.params, self.n_head = params, n_head
        self.n_ctx = len(params["wpe"])
        self.ids: list[int] = np.random.default_rng(0).integers(0, len(params["wte"]), self.n_ctx).tolist()
        self.context = gpt2.Context(params, n_head)
        self.limits = Limits(params)

    def next_ids(self, n_past: int) -> list[int]:
        """Return the ids that are decoded one by one after the first n_past."""
        return self.ids[n_past : n_past + N_DECODED]

    def decode(self, n_past: int, peers: Clocks | None = None) -> Work:
        """Return the work of decoding `next_ids`. It reads all weights once for each of them."""
        ids, limits = self.next_ids(n_past), self.limits

        def ours() -> None:
            for n in range(n_past + 1, n_past + len(ids) + 1):
                self.context.logits(self.ids[:n])

        name, limit_share = f"decode after {n_past} tokens", limits.reads * len(ids)
        return Work(name, "tokens/s", len(ids), ours, limits.read, "bandwidth", limit_share, peers or {})

    def prompt(self, n: int, peers: Clocks | None = None) -> Work:
        """Return the work of taking a prompt of n tokens, up to the logits of its last position."""

        def ours() -> None:
            self.context.ids = []  # forget the keys and values of the round before
            self.context.logits(self.ids[:n])

        limit_share = prompt_flop(self.params, n) / (2.0 * SIDE**3)
        return Work(f"prompt of {n}", "tokens/s", n, ours, self.limits.multiply, "sgemm", limit_share, peers or {})
