"""Time pieces of work in turn with their limits and with other programs, and describe the model's own work."""

from __future__ import annotations

import statistics
import time
from collections import deque
from collections.abc import Callable, Mapping
from functools import partial
from itertools import islice
from typing import Any, NamedTuple

import numpy as np

import gpt2
from picogpt.batch import generate_batch

Row = dict[str, Any]
Times = dict[str, list[float]]
Tick = Callable[[], Any]
Clock = Callable[[], float]  # a function that does a piece of work and returns the seconds it took
Clocks = Mapping[str, Clock]
OURS = "ours"  # the key of our own times; the others have the names of limits and peers
MAX_MATRIX = 1 << 30  # the most bytes of the matrix whose product with a vector gives the speed of reading
SIDE = 2048  # rows and columns of the two matrices whose product gives the machine's speed at multiplying
MAX_SHARE = 1.1  # of a limit that limits: more than 1 only because a machine's speed drifts
N_DECODED = 8  # tokens decoded in a row for one figure: a single token would be timed with cold caches
TEMPERATURE = 0.9  # at which samples are drawn


class Work(NamedTuple):
    """One thing to measure.

    A call of `ours`, or of a peer, does `amount` tokens, or megabytes; `unit` is "tokens/s" or "MB/s", or "s" if the
    time itself is shown. A call of each limit returns the seconds that the work would take at that limit's speed. The
    work can't be faster than the slowest of its limits.
    """

    name: str
    unit: str
    amount: float
    ours: Clock
    limits: Clocks = {}  # noqa: RUF012
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

    Share and ratio are computed in each round and their median is taken, since a machine's speed drifts. Of several
    limits, the slowest one in each round counts, and the row names the one with the largest median. Work that is
    clearly faster than its limit is not limited by it, and gets neither share nor limit.
    """
    ours = times[OURS]

    def figures(seconds: list[float]) -> list[float]:
        return [t if work.unit == "s" else work.amount / t for t in seconds]

    row = summary(work.name, figures(ours), work.unit)
    if work.limits:
        slowest = map(max, zip(*(times[name] for name in work.limits)))
        share = statistics.median(limit / t for limit, t in zip(slowest, ours))
        if share <= MAX_SHARE:
            row |= {"share": share, "limit": max(work.limits, key=lambda name: statistics.median(times[name]))}
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
    times = in_turn(rounds, {OURS: work.ours, **work.limits})
    rows = rows_of(work._replace(peers={}), times)
    if work.peers:
        together = in_turn(rounds, {OURS: work.ours, **work.peers}, pause=0.05)
        rows += rows_of(work._replace(limits={}), together)[1:]
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


def samples_cost(params: Any, n_samples: int, n_past: int, n_steps: int) -> tuple[int, int]:
    """Count the bytes that n_steps steps of n_samples texts read after n_past tokens, and their operations.

    A step reads each weight once for all samples, and the keys and values of each sample. Each sample takes two
    operations, a multiplication and an addition, for each weight and for each number in its keys and values.
    """
    weights = n_steps * sum(w.size for w in weights_per_token(params))
    n_keys = sum(range(n_past + 1, n_past + n_steps + 1))  # a step's own key is read, too
    wte = params["wte"]
    keys_and_values = n_keys * len(params["blocks"]) * 2 * wte.shape[1]
    return wte.itemsize * (weights + n_samples * keys_and_values), 2 * n_samples * (weights + keys_and_values)


class Limits:
    """The two products that mark the machine's limits: a large matrix with a vector, and two large matrices.

    The first one reads as many bytes as the weights have, `n_bytes`, but at most MAX_MATRIX.
    """

    def __init__(self, params: Any):
        self.n_bytes, n_embd = sum(w.nbytes for w in weights_per_token(params)), params["wte"].shape[1]
        n_rows = min(self.n_bytes, MAX_MATRIX) // 4 // n_embd
        self.matrix = np.ones((n_rows, n_embd), np.float32)
        self.vector = np.ones(n_embd, np.float32)
        self.square = np.random.default_rng(0).standard_normal((SIDE, SIDE), dtype=np.float32)

    def read(self, n_bytes: float) -> float:
        """Multiply the large matrix with the vector, and return the seconds that n_bytes take at this speed."""
        return n_bytes / self.matrix.nbytes * seconds(lambda: self.matrix @ self.vector)

    def multiply(self, flop: float) -> float:
        """Multiply the two square matrices, and return the seconds that so many operations take at this speed."""
        return flop / (2 * len(self.square) ** 3) * seconds(lambda: self.square @ self.square)


class Workload:
    """A model and random ids, with the work to measure: decoding after n tokens, prompts, and samples side by side."""

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
        """Return the work of decoding `next_ids`. Each of them reads all weights, keys and values once."""
        ids, limits = self.next_ids(n_past), self.limits

        def ours() -> None:
            for n in range(n_past + 1, n_past + len(ids) + 1):
                self.context.logits(self.ids[:n])

        n_bytes, _ = samples_cost(self.params, 1, n_past, len(ids))
        name, limit = f"decode after {n_past} tokens", partial(limits.read, n_bytes)
        return Work(name, "tokens/s", len(ids), partial(seconds, ours), {"bandwidth": limit}, peers or {})

    def prompt(self, n: int, peers: Clocks | None = None) -> Work:
        """Return the work of taking a prompt of n tokens, up to the logits of its last position."""

        def ours() -> None:
            self.context.ids = []  # forget the keys and values of the round before
            self.context.logits(self.ids[:n])

        limit = partial(self.limits.multiply, prompt_flop(self.params, n))
        return Work(f"prompt of {n}", "tokens/s", n, partial(seconds, ours), {"sgemm": limit}, peers or {})

    def sampled(self) -> tuple[list[int], int]:
        """Return the prompt that samples continue, and the number of steps after it that are timed."""
        prompt = self.ids[: min(10, self.n_ctx - 1)]
        return prompt, min(N_DECODED, self.n_ctx - len(prompt))

    def samples(self, n_samples: int, peers: Clocks | None = None) -> Work:
        """Return the work of a few steps in which n_samples continuations of one prompt grow side by side.

        `generate_batch` itself is timed, with the choosing of the ids, since users wait for that as well. It is a
        generator, so that the prompt and the first id of each sample can be taken before the clock starts.
        """
        prompt, n_steps = self.sampled()
        rngs = [np.random.default_rng(seed) for seed in range(n_samples)]
        choose = [partial(gpt2.sample, rng=rng, temperature=TEMPERATURE) for rng in rngs]

        def ours() -> float:
            new = generate_batch(prompt, self.params, self.n_head, n_steps + 1, choose, batch_size=n_samples)
            deque(islice(new, n_samples), maxlen=0)
            return seconds(lambda: deque(new, maxlen=0))

        n_bytes, flop = samples_cost(self.params, n_samples, len(prompt), n_steps)
        limits = {"bandwidth": partial(self.limits.read, n_bytes), "sgemm": partial(self.limits.multiply, flop)}
        return Work(f"{n_samples} samples side by side", "tokens/s", n_samples * n_steps, ours, limits, peers or {})
