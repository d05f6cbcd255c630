"""Score shards: in this process, in several processes of this machine (joblib), or on a cluster (Dask).

Each engine yields the number of a shard and its scores, in any order. A worker gets the model's folder and the ids, and
maps the weights into its own memory, which processes of one machine share. Nothing large is ever sent.
"""

from __future__ import annotations

import contextlib
import functools
import importlib
import itertools
import logging
import math
import os
import signal
import socket
import threading
import time
import warnings
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from concurrent.futures import CancelledError
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

from picogpt.command_line import log
from picogpt.options import require
from picogpt.parallel import keep_freed_memory, on_cores
from picogpt.scoring.shards import fingerprint
from picogpt.scoring.windows import Scores, Window, pass_bytes, score_windows
from picogpt.tracing.recorder import trace
from picogpt.tracing.replacing import Change
from utils import load_hparams_and_params

if TYPE_CHECKING:
    from picogpt.typing.shapes import Params

Shards = Mapping[int, Sequence[Window]]  # the shards to score, by their numbers
Done = Generator[tuple[int, list[Scores]], None, None]
Changes = Mapping[str, Change] | None  # what `trace` replaces in the model: parts that are switched off
Work = Callable[[str, str, int, Any], tuple[int, Any]]  # such as `score_shard`
GO_ON = "with --results FOLDER, the same command goes on with what is missing"
WAIT = 600  # seconds that a cluster may be without any worker
START_ONE = "start one by `python -m dask worker`, and check its address"
N_SENT = 1000  # shards that a cluster has at the same time: enough for as many processes, and little memory


@functools.lru_cache(maxsize=1)
def open_params(folder: str, model: str, *code: ModuleType) -> tuple[Params, int]:
    """Return the parameters and n_head of the model in a folder, once in each process.

    `code` has the modules of the fingerprint, if they are not those that score. Raises ValueError naming this machine
    if the folder has no model, or not the one with this fingerprint.
    """
    here = f"{folder} on {socket.gethostname()}"
    try:
        found = fingerprint(Path(folder), code) if code else fingerprint(Path(folder))
    except OSError as error:
        raise ValueError(f"{here}: no model is there ({error.strerror}): every worker needs it at this path") from None
    if found != model:
        raise ValueError(f"{here}: the model or the program differs from the one here: every worker needs the same")
    hparams, params = load_hparams_and_params(Path(folder))
    return params, hparams["n_head"]


def score_shard(
    folder: str, model: str, number: int, shard: Sequence[Window], changes: Changes = None
) -> tuple[int, list[Scores]]:
    """Return the number and the scores of a shard. This is what workers run; Dask needs it in an importable module."""
    params, n_head = open_params(folder, model)
    with changed(changes):
        return number, score_windows(shard, params, n_head)


def changed(changes: Changes) -> contextlib.AbstractContextManager[Any]:
    """Replace these values of forward passes, by name, within a `with` block. None replaces nothing."""
    return contextlib.nullcontext() if changes is None else trace(changes, keep=False)


def in_this_process(
    shards: Shards, params: Params, n_head: int, progress: Callable[[int], Any], changes: Changes = None
) -> Done:
    """Score shards on all cores, or one by one. `progress` is called as in `score_windows`, by any thread."""
    is_over = threading.Event()

    def count(n_targets: int) -> None:
        progress(n_targets)
        if is_over.is_set():  # after Ctrl-C, threads don't finish their shards
            raise KeyboardInterrupt

    try:
        with changed(changes):
            calls = [(shard, params, n_head, count) for shard in shards.values()]
            yield from zip(shards, on_cores(score_windows, calls, pass_bytes(params, n_head)))
    finally:
        is_over.set()


def in_processes(shards: Shards, folder: str, model: str, n_jobs: int, changes: Changes = None) -> Done:
    """Score shards in n_jobs processes of this machine, whose threads of BLAS share the processor's cores.

    joblib sets OPENBLAS_NUM_THREADS and variables like it, in each process, to the number of cores divided by n_jobs,
    unless the user has set them. Raises ChildProcessError when a process is killed.
    """
    require("joblib")
    import joblib
    from joblib.externals.loky.process_executor import BrokenProcessPool

    calls = (joblib.delayed(score_shard)(folder, model, number, shard, changes) for number, shard in shards.items())
    settings: dict[str, Any] = {"initializer": follow, "initargs": (os.getpid(),), "max_nbytes": None, "batch_size": 1}
    done = joblib.Parallel(n_jobs, "loky", return_as="generator_unordered", **settings)(calls)
    try:
        with quiet(), contextlib.closing(done):
            yield from done
    except BrokenProcessPool:
        raise ChildProcessError(f"a worker process was killed, perhaps for lack of memory; {GO_ON}") from None


def follow(parent: int) -> None:
    """Make this process end soon after its parent, however that ends, and let the parent handle Ctrl-C."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    keep_freed_memory()

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(1)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def on_cluster(
    shards: Mapping[int, Any], folder: str, model: str, address: str, work: Work = score_shard, go_on: str = GO_ON
) -> Generator[tuple[int, Any], None, None]:
    """Do shards on the Dask cluster of the scheduler at an address. A shard whose worker is killed is done again.

    `work` is what a worker calls for each shard, and `go_on` says how a run that ended goes on.

    Raises OSError if the scheduler does not answer, or if it or a worker can't import this module, ChildProcessError if
    several workers died of the same shard, and what `open_params` raises.
    """
    require("distributed")
    with quiet():
        from distributed import KilledWorker

        with connected(address) as client:
            try:
                check_imports(client, address)
                yield from results_of(client, shards, folder, model, address, work)
            except KilledWorker as error:
                n_died = error.allowed_failures + 1
                raise ChildProcessError(f"{n_died} workers died of the same shard; {go_on}") from None
            except CancelledError:
                raise ConnectionError(f"the Dask scheduler at {address} is gone") from None


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Keep what joblib and Dask say about themselves from the user. All that matters becomes an exception."""
    before = logging.root.manager.disable
    logging.disable()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)


def connected(address: str) -> Any:
    """Return a client of the scheduler at an address. Raises OSError if none answers within ten seconds."""
    from distributed import Client

    found: list[Any] = []

    def connect() -> None:
        with contextlib.suppress(OSError):
            found.append(Client(address, timeout=5, set_as_default=False))

    thread = threading.Thread(target=connect, daemon=True)  # Dask itself waits for ever for a server that says nothing
    thread.start()
    thread.join(10)
    if not found:
        raise OSError(f"no Dask scheduler answers at {address}: start one, or check the address")
    return found[0]


def check_imports(client: Any, address: str) -> None:
    """Wait for a worker. Raise OSError unless the scheduler and the workers that are there can import this module.

    A worker that can't would close itself at the first shard, and the scheduler would wait for another one.
    """
    if not client.nthreads():
        log(f"[the Dask scheduler at {address} has no workers yet: waiting up to {WAIT} s for the first]")
        try:
            client.wait_for_workers(1, timeout=WAIT)
        except TimeoutError:
            raise OSError(f"no worker has joined the Dask scheduler at {address} in {WAIT} s: {START_ONE}") from None
    advice = "start it in a clone of picogpt by `python -m dask`"
    try:
        client.run_on_scheduler(importlib.import_module, __name__)
    except ImportError as error:
        raise OSError(f"the Dask scheduler at {address} fails with {error}: {advice}") from None
    for worker, found in client.run(importlib.import_module, __name__, on_error="return").items():
        if isinstance(found, ImportError):
            raise OSError(f"the Dask worker at {worker} fails with {found}: {advice}")


def results_of(
    client: Any, shards: Mapping[int, Any], folder: str, model: str, address: str, work: Work
) -> Generator[tuple[int, Any], None, None]:
    """Yield the number and the result of each shard, in the order in which they arrive. Each arrives once.

    Raises ConnectionError if all workers are gone, and none comes within WAIT seconds.
    """
    from distributed import as_completed

    calls = (client.submit(work, folder, model, *item, pure=False) for item in shards.items())
    pending = as_completed(itertools.islice(calls, N_SENT), loop=client.loop)
    asked = time.monotonic()
    alone_since = math.inf
    while pending.count():
        if pending.has_ready():
            yield next(pending).result()
            for call in itertools.islice(calls, 1):
                pending.add(call)
        elif time.monotonic() < asked + 5:
            time.sleep(0.02)
        else:  # ask every five seconds whether there is a worker
            asked = time.monotonic()
            if client.nthreads():
                alone_since = math.inf
            elif asked < alone_since:
                alone_since = asked
                log(f"[the Dask scheduler at {address} has no workers any more: waiting up to {WAIT} s for one]")
            elif asked > alone_since + WAIT:
                raise ConnectionError(f"all workers at {address} are gone, and none came in {WAIT} s: {START_ONE}")
