"""picogpt/parallel.py: the work of many rows on several threads, with the same results."""

from __future__ import annotations

import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace

import numpy as np
import pytest
from helpers import SMALL, random_params, relative

import gpt2
import picogpt.__main__
from picogpt import parallel
from picogpt.parallel import on_all_cores
from picogpt.scoring.jobs import in_this_process
from picogpt.scoring.windows import Window, pass_bytes, score_windows
from picogpt.tracing.recorder import trace

WIDE = SMALL | {"n_ctx": 500}


class Blas:
    """Stands for threadpoolctl: remembers how long BLAS was held to one thread."""

    def __init__(self):
        self.limits = []

    def limit(self, limits):
        self.limits.append(limits)
        return self

    def __enter__(self):
        self.limits.append("in")

    def __exit__(self, *error):
        self.limits.append("out")


@pytest.fixture
def threads(monkeypatch):
    """Give `on_all_cores` three threads, and return the names of those that computed a GELU."""
    blas, seen = Blas(), []
    with ThreadPoolExecutor(3) as pool:
        monkeypatch.setattr(parallel, "machinery", lambda: (blas, 3, pool))
        gelu = gpt2.gelu
        monkeypatch.setattr(gpt2, "gelu", lambda x: (seen.append((threading.current_thread(), x.size)), gelu(x))[1])
        yield seen
    assert blas.limits.count("in") == blas.limits.count("out") == blas.limits.count(1)


@pytest.fixture(scope="module")
def params():
    return random_params(WIDE)


def ids_of(*shape: int) -> np.ndarray:
    return np.random.default_rng(1).integers(0, WIDE["n_vocab"], shape)


@pytest.mark.parametrize("shape", [(384,), (500,), (1, 400), (7, 60), (400, 1)])
def test_the_same_logits_from_several_threads(threads, params, shape):
    whole = gpt2.gpt2(ids_of(*shape), **params, n_head=3)
    assert {thread for thread, _ in threads} == {threading.main_thread()}
    with on_all_cores():
        first, second = (gpt2.gpt2(ids_of(*shape), **params, n_head=3) for _ in range(2))
    assert first.tobytes() == second.tobytes()
    assert first.dtype == np.float32
    assert relative(first, whole) < 2e-6
    in_threads = [n for thread, n in threads if thread is not threading.main_thread()]
    n_parts = 3 * 2 * WIDE["n_layer"]
    assert len(in_threads) == n_parts
    assert 0 < max(in_threads) < 2 * min(in_threads)  # a part is never empty


def test_a_cache_is_filled_and_continued(threads, params):
    ids = ids_of(450).tolist()
    with on_all_cores():
        context = gpt2.Context(params, 3)
        context.logits(ids[:400])
        pieces = context.logits(ids)
    assert relative(pieces, gpt2.gpt2(ids, **params, n_head=3)[-1:]) < 2e-6


@pytest.mark.parametrize("shape", [(383,), (1,), (6, 63)])
def test_few_rows_stay_in_one_thread_bit_for_bit(threads, params, shape):
    whole = gpt2.gpt2(ids_of(*shape), **params, n_head=3)
    with on_all_cores():
        assert gpt2.gpt2(ids_of(*shape), **params, n_head=3).tobytes() == whole.tobytes()
    assert {thread for thread, _ in threads} == {threading.main_thread()}


@pytest.mark.parametrize("trace_first", [True, False])
def test_a_trace_inside_or_outside_sees_whole_arrays(threads, params, trace_first):
    plain = {}
    with trace() as plain_trace:
        gpt2.gpt2(ids_of(400), **params, n_head=3)
    plain = dict(plain_trace)
    for_both = [trace(), on_all_cores()] if trace_first else [on_all_cores(), trace()]
    with for_both[0] as a, for_both[1] as b:
        gpt2.gpt2(ids_of(400), **params, n_head=3)
        values = dict(a or b)
    assert values.keys() == plain.keys()
    assert all(values[name].tobytes() == plain[name].tobytes() for name in plain)


def test_the_functions_come_back_after_an_error_in_a_thread(threads, params, monkeypatch):
    before = {name: getattr(gpt2, name) for name in ("transformer_block", *parallel.SPLIT)}

    def broken(x):
        raise MemoryError("no room")

    monkeypatch.setattr(gpt2, "gelu", broken)
    with pytest.raises(MemoryError, match="no room"), on_all_cores():
        gpt2.gpt2(ids_of(400), **params, n_head=3)
    assert {name: getattr(gpt2, name) for name in before} == before
    assert not parallel.THREAD.splits


@pytest.mark.parametrize("n_windows", [1, 2, 7])
def test_windows_are_scored_in_several_threads_with_the_same_numbers(threads, params, n_windows):
    """Windows of one text in threads, and a single one in parts of this thread's passes."""
    texts = [Window(row, 200) for row in ids_of(n_windows, 401)]
    alone, counted = score_windows(texts, params, 3), []
    seen = len(threads)
    with on_all_cores():
        together = score_windows(texts, params, 3, counted.append)
    in_threads = {thread for thread, _ in threads[seen:]} - {threading.main_thread()}
    assert len(in_threads) == (0 if n_windows == 1 else min(3, n_windows))
    assert [scores.log_probs.tobytes() for scores in together] == [scores.log_probs.tobytes() for scores in alone]
    assert counted == [200] * n_windows


@pytest.mark.parametrize(("n_fit", "most"), [(1, 0), (2, 2), (9, 3)])
def test_no_more_windows_are_scored_at_the_same_time_than_fit_into_memory(threads, params, monkeypatch, n_fit, most):
    monkeypatch.setattr(parallel, "free_memory", lambda: n_fit * pass_bytes(params, 3))
    running, seen, forward = set(), [], gpt2.gpt2

    def watched(*args, **kwargs):
        running.add(threading.current_thread())
        seen.append(len(running - {threading.main_thread()}))
        time.sleep(0.02)
        logits = forward(*args, **kwargs)
        running.remove(threading.current_thread())
        return logits

    monkeypatch.setattr(gpt2, "gpt2", watched)
    with on_all_cores():
        score_windows([Window(row, 200) for row in ids_of(7, 401)], params, 3)
    assert max(seen) == most


def test_shards_are_scored_in_several_threads_and_stop_together(threads, params):
    """Threads that score a shard don't share out its windows again, for the pool has no thread left for them."""
    shards = {i: [Window(row, 60) for row in ids_of(6, 401)] for i in range(4, 10)}
    counted = []
    with on_all_cores():
        done = in_this_process(shards, params, 3, counted.append)
        first, scores = next(done)
        done.close()
    threads_seen = {thread for thread, _ in threads}
    assert first == 4
    assert [part.tobytes() for part in scores[5]] == [part.tobytes() for part in score_windows(shards[4], params, 3)[5]]
    assert threading.main_thread() not in threads_seen
    parallel.machinery()[2].shutdown()
    assert len(counted) <= 6 * 4  # of 36: each thread ended the window that it was at


def test_blas_is_held_to_one_thread_and_let_go_again():
    threadpoolctl = pytest.importorskip("threadpoolctl")

    def n_threads():
        return [library["num_threads"] for library in threadpoolctl.threadpool_info() if library["user_api"] == "blas"]

    parallel.machinery.cache_clear()
    with threadpoolctl.threadpool_limits(2):
        before, during = n_threads(), []
        _, n, pool = parallel.machinery()
        assert n == max(before, default=1)
        with on_all_cores():
            parallel.layer(lambda x: during.append(n_threads()), np.zeros((400, 6)))
        assert during == [[1] * len(before) if n > 1 else before]
        assert n_threads() == before
    pool.shutdown()
    parallel.machinery.cache_clear()


class NoLibrary:
    """Stands for threadpoolctl where the BLAS is Accelerate, which it does not know."""

    def select(self, **kwargs):
        return self

    def info(self):
        return []


@pytest.mark.parametrize("module", [None, SimpleNamespace(ThreadpoolController=NoLibrary)])
def test_without_threadpoolctl_or_with_a_blas_that_it_does_not_know_nothing_is_split(monkeypatch, params, module):
    monkeypatch.setitem(sys.modules, "threadpoolctl", module)
    parallel.machinery.cache_clear()
    whole = gpt2.gpt2(ids_of(400), **params, n_head=3)
    with on_all_cores():
        assert gpt2.gpt2(ids_of(400), **params, n_head=3).tobytes() == whole.tobytes()
    assert parallel.machinery()[1] == 1
    parallel.machinery.cache_clear()


@pytest.mark.parametrize(
    ("tool", "expected"), [("generate", True), ("score", True), ("bench", False), ("trace", False)]
)
def test_the_tools_whose_texts_may_be_long_use_it(monkeypatch, tool, expected):
    seen = []

    class Tool:
        @staticmethod
        def main():
            seen.append(gpt2.linear is not linear)
            return 0

    linear = gpt2.linear
    modules = {picogpt.__main__.TOOLS[tool][0]: Tool, "picogpt.parallel": parallel}
    monkeypatch.setattr(picogpt.__main__.importlib, "import_module", modules.__getitem__)
    monkeypatch.setattr(sys, "argv", ["picogpt", tool])
    assert picogpt.__main__.main() == 0
    assert seen == [expected]
