"""Run gpt2.py's work on many rows, such as those of a long prompt, on all cores.

Of a forward pass, BLAS spreads only the matrix products over the cores. GELU, softmax, sums and copies run on one.
Within `on_all_cores`, the functions in SPLIT are replaced in the module by versions that cut their arrays into as many
parts as BLAS has threads. Each thread calls the original function for its part, with BLAS held to one thread. NumPy
lets go of the interpreter's lock while it computes. Where there are several passes to do, such as those for the windows
of a long text, `on_cores` gives each thread a whole pass instead, so that none waits for another between layers.
"""

from __future__ import annotations

import contextlib
import functools
import itertools
import math
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np

import gpt2
from picogpt.command_line import free_memory

if TYPE_CHECKING:
    from concurrent.futures import ThreadPoolExecutor

T = TypeVar("T")

MIN_ROWS = 384  # with fewer, BLAS's own threads are as fast: docs/speed.md has the measurement
SPLIT = {"layer_norm": 1, "linear": 1, "ffn": 1, "causal_attention": 2}  # name: how many of the last axes stay whole
SOFTMAX = gpt2.softmax


class State(threading.local):
    """What a thread is doing: whether it is within `on_all_cores`, and whether in a layer whose functions are split."""

    is_on = splits = False


THREAD = State()


@contextlib.contextmanager
def on_all_cores() -> Iterator[None]:
    """Split layers of MIN_ROWS rows or more, while a `with` block runs, between as many threads as BLAS has.

    Results differ by rounding from those without it, and are the same bit for bit with the same number of threads. With
    a single thread, without threadpoolctl, or with a BLAS that it can't hold to one thread (Accelerate), nothing is
    split. Passes that `trace` watches are not split either, since it records whole arrays. The module is changed for
    all threads, but only the passes of this one are split.
    """
    functions = {name: getattr(gpt2, name) for name in ("transformer_block", *SPLIT)}
    gpt2.transformer_block = functools.partial(layer, functions["transformer_block"])
    for name, n_whole in SPLIT.items():
        setattr(gpt2, name, functools.partial(in_parts, functions[name], n_whole))
    THREAD.is_on = True
    try:
        yield
    finally:
        THREAD.is_on = False
        for name, function in functions.items():
            setattr(gpt2, name, function)


@functools.cache
def machinery() -> tuple[Any, int, ThreadPoolExecutor]:
    """Return what limits BLAS's threads, their number (1 if it is unknown), and as many threads of Python.

    From then on, freed memory is kept, because what has work for several threads needs large arrays again and again.
    """
    from concurrent.futures import ThreadPoolExecutor  # here, since short texts need none of it

    try:
        from threadpoolctl import ThreadpoolController
    except ImportError:
        return None, 1, ThreadPoolExecutor(1)
    blas = ThreadpoolController().select(user_api="blas")
    n_threads = max((library["num_threads"] for library in blas.info()), default=1)
    keep_freed_memory()
    return blas, n_threads, ThreadPoolExecutor(n_threads)


def may_share() -> bool:
    """Return whether this thread may share its work with others: within `on_all_cores`, and not within `trace`."""
    return THREAD.is_on and gpt2.softmax is SOFTMAX and machinery()[1] > 1


def layer(function: Any, x: Any, *args: Any, **kwargs: Any) -> Any:
    """Call `transformer_block` so that the functions in SPLIT split their work, if that is worth it."""
    if math.prod(x.shape[:-1]) < MIN_ROWS or not may_share():
        return function(x, *args, **kwargs)
    THREAD.splits = True
    try:
        with machinery()[0].limit(limits=1):
            return function(x, *args, **kwargs)
    finally:
        THREAD.splits = False


def in_parts(function: Any, n_whole: int, *arrays: Any, **shared: Any) -> Any:
    """Call a function for parts of its arrays, cut along the longest axis that may be cut, and join the results."""
    if not THREAD.splits:
        return function(*arrays, **shared)
    _, n_threads, pool = machinery()
    axis = int(np.argmax(arrays[0].shape[:-n_whole]))
    parts = zip(*(np.array_split(array, n_threads, axis) for array in arrays))
    return np.concatenate(list(pool.map(lambda part: function(*part, **shared), parts)), axis)


def on_cores(function: Callable[..., T], parts: Sequence[tuple[Any, ...]], n_bytes: int) -> Iterator[T]:
    """Yield function(*part) for each part, in order. In `on_all_cores`, each core's thread does one part at a time.

    A part takes n_bytes of memory. Where that is not free for each thread, fewer parts are done at the same time.
    """
    if len(parts) < 2 or not may_share() or (n_free := free_memory() // n_bytes) < 2:
        yield from itertools.starmap(function, parts)
        return
    blas, _, pool = machinery()
    room = threading.Semaphore(n_free)

    def work(part: tuple[Any, ...]) -> T:
        with room:
            return function(*part)

    with blas.limit(limits=1):
        yield from pool.map(work, parts)


def keep_freed_memory() -> None:
    """Make glibc's malloc keep the memory of freed arrays for the next ones. Other C libraries stay as they are.

    Without it, the system takes large arrays back and clears them again: docs/speed.md has the measurement.
    """
    import ctypes

    if sys.platform == "linux" and hasattr(libc := ctypes.CDLL(None), "gnu_get_libc_version"):
        for option in (-1, -3):  # M_TRIM_THRESHOLD and M_MMAP_THRESHOLD in malloc.h
            libc.mallopt(option, 1 << 30)
