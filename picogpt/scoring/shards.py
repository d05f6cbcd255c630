"""Cut the work into shards, and keep the results of each shard in a file, so that a later run can go on.

A shard is a list of consecutive windows. It is the unit of work, and all that is lost when a process is killed.
"""

from __future__ import annotations

import hashlib
import io
import json
import zipfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

import gpt2
from picogpt.command_line import UsageError, log
from picogpt.files import new_file
from picogpt.scoring import windows as code_of_scores
from picogpt.scoring.windows import Array, Scores, Window
from utils import checkpoint_prefix, read_json

LEAST, MOST, N_SHARDS = 1024, 4096, 64  # positions in a shard, so that a text of any length makes about 64 of them
DESCRIPTION = "run.json"
DAMAGED = (ValueError, KeyError, EOFError, RuntimeError, zipfile.BadZipFile)  # what np.load raises for damaged files


def shards_of(windows: Sequence[Window], n_positions: int | None = None) -> list[list[Window]]:
    """Cut the windows, in their order, into shards of at most n_positions, or of one longer window.

    By default, there are at least N_SHARDS if the text is long enough, so that no process waits long for the last one.
    The cut depends on the windows only. The windows of a shard go through the model in the same batches wherever that
    happens, so that each score is the same number, too.

    >>> windows = [Window(np.arange(n), 1) for n in (3, 4, 3, 9)]
    >>> [[len(window.ids) for window in shard] for shard in shards_of(windows, 5)]
    [[3, 4], [3], [9]]
    """
    if n_positions is None:
        n_positions = min(MOST, max(LEAST, sum(len(window.ids) - 1 for window in windows) // N_SHARDS))
    shards: list[list[Window]] = []
    n_taken = 0
    for window in windows:
        n_taken += len(window.ids) - 1
        if not shards or n_taken > n_positions:
            shards.append([])
            n_taken = len(window.ids) - 1
        shards[-1].append(window)
    return shards


def fingerprint(folder: Path, code: Sequence[ModuleType] = (gpt2, code_of_scores)) -> str:
    """Return a sha256 of what decides the results: a model's hyperparameters and weights, and the code that is used.

    All weights are read, about a second for each GB. Raises OSError.
    """
    digest = hashlib.sha256()
    folder.stat()  # raises FileNotFoundError
    for module in code:
        digest.update(Path(str(module.__file__)).read_bytes())
    endings = ("hparams.json", "config.json", "*.index", "*.data-*", "*.safetensors")
    for path in sorted({path for ending in endings for path in folder.glob(ending)} | {checkpoint_prefix(folder)}):
        if path.exists():  # the prefix is a file in V1 checkpoints only
            with open(path, "rb") as file:
                while part := file.read(1 << 20):
                    digest.update(part)
    return digest.hexdigest()


def describe(shards: Sequence[Sequence[Window]], model: str) -> dict[str, Any]:
    """Return what identifies some work: the fingerprint of the model, and that of all windows."""
    digest = hashlib.sha256()
    for shard in shards:
        digest.update(f"{len(shard)} windows".encode())
        for ids, n_targets, excluded in shard:
            digest.update(f"{len(ids)} ids, {n_targets} targets, {len(excluded)} excluded".encode())
            for numbers in (ids, list(excluded)):
                digest.update(np.ascontiguousarray(numbers, "<i8").tobytes())
    n_tokens = sum(window.n_targets for shard in shards for window in shard)
    return {"model": model, "windows": digest.hexdigest(), "n_shards": len(shards), "n_tokens": n_tokens}


class WorkFolder:
    """A folder with the results of one piece of work: a description, and a file for each shard that is done."""

    option, advice = "--results", "choose a new or an empty folder"  # for messages

    def __init__(self, folder: Path, work: dict[str, Any]):
        self.folder, self.work = folder, work

    def prepare(self) -> None:
        """Make a new or empty folder ready. Raises UsageError if it belongs to other work or holds other files.

        Nothing is changed then.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        if (self.folder / DESCRIPTION).exists():
            self.check()
        else:
            self.describe()

    def describe(self) -> None:
        """Write the description. Raises UsageError if the folder is not empty."""
        names = [path.name for path in self.folder.iterdir() if not path.name.endswith(".partial")]
        if names:
            text = f"holds {min(names)!r}, but no {DESCRIPTION} that says which work its results belong to"
            raise UsageError(f"{self.option} {self.folder} {text}: {self.advice}")
        with new_file(self.folder / DESCRIPTION) as file:
            file.write(json.dumps(self.work, indent=1).encode() + b"\n")

    def check(self) -> None:
        """Raise UsageError unless the folder's description is that of this work."""
        found = read_json(self.folder / DESCRIPTION)
        if found != self.work:
            raise UsageError(f"{self.option} {self.folder} {self.difference(found)}: {self.advice}")

    def difference(self, found: dict[str, Any]) -> str:
        """Return how the work of the folder, which has the description `found`, differs from this work."""
        other = "another model" if found.get("model") != self.work["model"] else "other texts or windows"
        return f"holds results of {other}"

    def path(self, number: int) -> Path:
        return self.folder / f"shard-{number:06d}.npz"

    def key(self, number: int) -> str:
        """Return what a shard's file says about itself: to which model, code and windows it belongs, and its number."""
        return f"{self.work['model']} {self.work['windows']} {number}"

    def write(self, number: int, **arrays: Any) -> None:
        """Write the results of a shard."""
        with new_file(self.path(number), replace=True) as file:  # a damaged one may be there
            np.savez(file, work=np.array(self.key(number)), **arrays)

    def read(self, number: int, shard: Any) -> Any:
        """Return the results of a shard from its file. Raises one of DAMAGED unless it is whole, and of this work."""
        raise NotImplementedError

    def load(self, shards: Sequence[Any]) -> Iterator[tuple[int, Any]]:
        """Yield the number and the results of each shard that is done. A damaged file counts as not done."""
        for number, shard in enumerate(shards):
            path = self.path(number)
            if path.exists():
                try:
                    yield number, self.read(number, shard)
                except DAMAGED:
                    log(f"[{path} is damaged, or of other work: it is computed anew]")


class Results(WorkFolder):
    """The folder of the scores of some shards."""

    def begin(self, shards: Sequence[Sequence[Window]]) -> dict[int, list[Scores]]:
        """Return the scores of the shards that are done, by number. The folder is made ready, as `prepare` says.

        A damaged file counts as not done, and is replaced later.
        """
        self.prepare()
        scores = dict(self.load(shards))
        if scores:
            log(f"[{len(scores)} of {len(shards)} shards are in {self.folder} already]")
        return scores

    def save(self, number: int, scores: Sequence[Scores]) -> None:
        """Write the scores of a shard."""
        log_probs, ranks = (np.concatenate(arrays) for arrays in zip(*scores))
        self.write(number, log_probs=log_probs, ranks=ranks)

    def read(self, number: int, shard: Sequence[Window]) -> list[Scores]:
        return read_shard(self.path(number), shard, self.key(number))


def read_arrays(path: Path, key: str, *names: str) -> list[Array]:
    """Return the arrays of a shard from its file. Raises one of DAMAGED unless it is whole and has this key."""
    with np.load(io.BytesIO(path.read_bytes()), allow_pickle=False) as file:
        if str(file["work"]) != key:
            raise ValueError(f"{path} is not of this work")
        return [file[name] for name in names]


def read_shard(path: Path, shard: Sequence[Window], key: str) -> list[Scores]:
    """Return the scores of a shard from its file. Raises one of DAMAGED unless it is whole and has this key."""
    log_probs, ranks = read_arrays(path, key, "log_probs", "ranks")
    ends = np.cumsum([window.n_targets for window in shard])
    dtypes = [array.dtype for array in Scores(log_probs, ranks)]
    if not log_probs.shape == ranks.shape == (ends[-1],) or dtypes != [np.float64, np.int64]:
        raise ValueError(f"{path} is not of this work")
    if not np.isfinite(log_probs).all() or ranks.min() < 1:
        raise ValueError(f"{path} has numbers that no model gives")
    return [Scores(*pair) for pair in zip(np.split(log_probs, ends[:-1]), np.split(ranks, ends[:-1]))]
