"""Score shards: in this process, in several processes of this machine (joblib), or on a cluster (Dask).

Each engine yields the number of a shard and its scores, in any order. A worker gets the model's folder and the ids, and
maps the weights into its own memory, which processes of one machine share. Nothing large is ever sent.
"""

from __future__ import annotations

import functools
import socket
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from picogpt.options import require
from picogpt.scoring.shards import fingerprint
from picogpt.scoring.windows import Scores, Window, score_windows
from utils import checkpoint_prefix, load_gpt2_params_from_tf_ckpt, load_hparams, log

if TYPE_CHECKING:
    from picogpt.typing.shapes import Params

Shards = Mapping[int, Sequence[Window]]  # the shards to score, by their numbers
Done = Iterator[tuple[int, list[Scores]]]


@functools.lru_cache(maxsize=1)
def open_params(folder: str, model: str) -> tuple[Params, int]:
    """Return the parameters and n_head of the model in a folder, once in each process.

    Raises ValueError naming this machine if the folder has no model, or not the one with this fingerprint.
    """
    here = f"{folder} on {socket.gethostname()}"
    try:
        found = fingerprint(Path(folder))
    except OSError as error:
        raise ValueError(f"{here}: no model is there ({error.strerror}): every worker needs it at this path") from None
    if found != model:
        raise ValueError(f"{here}: this is another model than the one here: every worker needs the same one")
    hparams = load_hparams(Path(folder, "hparams.json"))
    return load_gpt2_params_from_tf_ckpt(checkpoint_prefix(Path(folder)), hparams), hparams["n_head"]


def score_shard(folder: str, model: str, number: int, shard: Sequence[Window]) -> tuple[int, list[Scores]]:
    """Return the number and the scores of a shard. This is what workers run; Dask needs it in an importable module."""
    params, n_head = open_params(folder, model)
    return number, score_windows(shard, params, n_head)


def in_this_process(shards: Shards, params: Params, n_head: int, progress: Callable[[int], Any]) -> Done:
    """Score shards one by one, with all threads of BLAS. `progress` is called as in `score_windows`."""
    for number, shard in shards.items():
        yield number, score_windows(shard, params, n_head, progress)


def in_processes(shards: Shards, folder: str, model: str, n_jobs: int) -> Done:
    """Score shards in n_jobs processes, whose threads of BLAS share the cores.

    joblib sets OPENBLAS_NUM_THREADS and its like in each process to the number of cores divided by n_jobs, unless the
    user has set them. Raises ChildProcessError when a process is killed.
    """
    require("joblib")
    import joblib
    from joblib.externals.loky.process_executor import BrokenProcessPool

    calls = (joblib.delayed(score_shard)(folder, model, number, shard) for number, shard in shards.items())
    engine = joblib.Parallel(n_jobs, "loky", return_as="generator_unordered", batch_size=1, max_nbytes=None)
    try:
        yield from engine(calls)
    except BrokenProcessPool:
        raise ChildProcessError("a worker process was killed, perhaps for lack of memory") from None
