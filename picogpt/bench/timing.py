"""Timing in turn with limits and peers, and a model's own work: what `bench` and its picture measure with."""

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
Clocks = Mapping[str, Callable[[], float]]  # each does a work and returns the seconds it took
OURS, LIMIT = "ours", "limit"
SIDE = 2048  # of the square matrices whose product is the sgemm rate


class Work(NamedTuple):
    """One thing to measure: a call does `amount` of `unit`, and at the limit's speed takes `part` of its time."""

    name: str
    unit: str
    amount: float
    ours: Callable[[], Any]
    limit: Callable[[], Any] | None = None
    limit_name: str = ""
    part: float = 1.0
    peers: Clocks = {}  # noqa: RUF012


# ------------------------------------------------------------------------------------------------------------ timing


def seconds(work: Callable[[], Any]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def in_turn(rounds: int, clocks: Clocks, pause: float = 0) -> Times:
    """Seconds that each gives, one after the other in every round; a first round does not count."""
    times: Times = {name: [] for name in clocks}
    for _ in range(rounds + 1):
        for name, clock in clocks.items():
            time.sleep(pause)
            times[name].append(clock())
    return {name: values[1:] for name, values in times.items()}


def summary(name: str, values: list[float], unit: str) -> Row:
    """One line of the table: the median, and the range it was found in."""
    return {"name": name, "median": statistics.median(values), "low": min(values), "high": max(values), "unit": unit}


def rows_of(work: Work, times: Times) -> list[Row]:
    """A work's own line, with its share of the limit, and one for each peer, with how many times as fast ours is."""
    ours = times[OURS]

    def figures(seconds: list[float]) -> list[float]:
        return [t if work.unit == "s" else work.amount / t for t in seconds]

    row = summary(work.name, figures(ours), work.unit)
    if work.limit:
        share = statistics.median(work.part * limit / t for limit, t in zip(times[LIMIT], ours))
        row |= {"share": share, "limit": work.limit_name}
    rows = [row]
    for peer in work.peers:
        ratio = statistics.median(theirs / t for theirs, t in zip(times[peer], ours))
        rows.append(summary(f"{work.name}: {peer}", figures(times[peer]), work.unit) | {"ratio": ratio})
    return rows


def measure(work: Work, rounds: int) -> tuple[list[Row], Times]:
    """A work's lines, and the times that they come from.

    The peers have rounds of their own, in which ours runs once more: other programs leave cold caches. There, idle
    threads get the time to stop spinning, or they would take the next one's processors.
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
    """The matrices that one decoded token is multiplied with: each is read once."""
    inside = [block[a][b]["w"] for block in params["blocks"] for a, b in (("attn", "c_attn"), ("attn", "c_proj"))]
    inside += [block[a][b]["w"] for block in params["blocks"] for a, b in (("mlp", "c_fc"), ("mlp", "c_proj"))]
    return [*inside, params["wte"]]


def prompt_flop(params: Any, n: int) -> float:
    """Multiplications and additions of a prompt of n tokens: each weight twice per token, the causal half of attention
    (queries with keys, probabilities with values), and the vocabulary once, for the last position."""
    *matrices, wte = weights_per_token(params)
    attention = len(params["blocks"]) * 2 * wte.shape[1] * n * (n + 1)
    return float(2 * n * sum(w.size for w in matrices) + attention + 2 * wte.size)


class Limits:
    """The two products that nothing in NumPy beats: one large matrix with a vector, as many bytes as the weights have
    (up to a gigabyte: `reads` says how many times the weights are the matrix), and two large matrices."""

    def __init__(self, params: Any):
        n_bytes, n_embd = sum(w.nbytes for w in weights_per_token(params)), params["wte"].shape[1]
        n_rows = min(n_bytes, 1 << 30) // 4 // n_embd
        self.matrix = np.ones((n_rows, n_embd), np.float32)
        self.vector = np.ones(n_embd, np.float32)
        self.square = np.random.default_rng(0).standard_normal((SIDE, SIDE), dtype=np.float32)
        self.reads = n_bytes / self.matrix.nbytes

    def read(self) -> Any:
        return self.matrix @ self.vector

    def multiply(self) -> Any:
        return self.square @ self.square


class Workload:
    """A model's parameters with a full cache, ready to decode a token behind any number of others, or take a prompt."""

    def __init__(self, params: Any, n_head: int):
        self.params, self.n_head = params, n_head
        self.n_ctx = len(params["wpe"])
        self.ids: list[int] = np.random.default_rng(0).integers(0, len(params["wte"]), self.n_ctx).tolist()
        self.cache = gpt2.empty_cache(params, n_head, self.n_ctx)
        self.limits = Limits(params)
        gpt2.next_logits(self.ids, params, n_head, self.cache, 0)

    def coming(self, n_past: int) -> list[int]:
        """The ids that are decoded behind n_past others, one by one: a few, so that it is the pace of many."""
        return self.ids[n_past : n_past + 8]

    def decode(self, n_past: int, peers: Clocks | None = None) -> Work:
        ids, limits = self.coming(n_past), self.limits

        def ours() -> None:
            for i, id in enumerate(ids):
                gpt2.next_logits([id], self.params, self.n_head, self.cache, n_past + i)

        name, part = f"decode, {n_past} tokens before", limits.reads * len(ids)
        return Work(name, "tokens/s", len(ids), ours, limits.read, "bandwidth", part, peers or {})

    def prompt(self, n: int, peers: Clocks | None = None) -> Work:
        ours = partial(gpt2.next_logits, self.ids[:n], self.params, self.n_head, self.cache, 0)
        part = prompt_flop(self.params, n) / (2.0 * SIDE**3)
        return Work(f"prompt of {n}", "tokens/s", n, ours, self.limits.multiply, "sgemm", part, peers or {})
