"""Cut the texts to make into shards whose prompts have equal numbers of ids, and keep the new ids of each in a file."""

from __future__ import annotations

import hashlib
import itertools
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from picogpt.prompts.work import Request, Row, Shard
from picogpt.scoring.shards import WorkFolder, read_arrays
from picogpt.scoring.windows import Array

N_ROWS = 64  # texts in a shard, which is all that is lost when a process is killed: some minutes of 124M


def cut(lengths: Sequence[int], n_samples: int, n_rows: int = N_ROWS) -> list[Array]:
    """Cut all texts into shards. A text is a number: that of its line, times n_samples, plus that of its sample.

    >>> [shard.tolist() for shard in cut([5, 3, 5], 2, n_rows=3)]
    [[2, 3], [0, 1, 4], [5]]
    """
    shards: list[Array] = []
    for _, group in itertools.groupby(np.argsort(lengths, kind="stable"), key=lambda line: lengths[line]):
        texts = (np.array(list(group))[:, None] * n_samples + np.arange(n_samples)).ravel()
        shards += np.split(texts, range(n_rows, len(texts), n_rows))
    return shards


Ids = Callable[[str], list[int]]  # from a prompt to its ids


class Shards(Mapping[int, Shard]):
    """Shards that are made when they are asked for: a million prompts need no ids in memory."""

    def __init__(self, texts: dict[int, Array], prompts: Sequence[str], n_samples: int, request: Request, ids: Ids):
        self.texts, self.prompts, self.n_samples, self.request, self.ids = texts, prompts, n_samples, request, ids

    def __getitem__(self, number: int) -> Shard:
        pairs = [divmod(text, self.n_samples) for text in self.texts[number].tolist()]
        ids = {line: self.ids(self.prompts[line]) for line in {line for line, _ in pairs}}
        return Shard(self.request, [Row(line + 1, sample + 1, ids[line]) for line, sample in pairs])

    def __iter__(self) -> Iterator[int]:
        return iter(self.texts)

    def __len__(self) -> int:
        return len(self.texts)


class Texts(WorkFolder):
    """The work folder, with the new ids of the shards that are done."""

    option, advice = "the work folder", "choose another --out, or remove the folder"

    def difference(self, found: dict[str, Any]) -> str:
        for name, value in self.work.items():
            if found.get(name) != value:
                other = {"model": "another model or program", "prompts": "other prompts"}
                return "belongs to " + other.get(name, f"a request with {name} = {found.get(name)}, not {value}")
        return "has a description of another form"

    def key(self, number: int) -> str:
        return hashlib.sha256(json.dumps([self.work, number], sort_keys=True).encode()).hexdigest()

    def save(self, number: int, texts: Sequence[Sequence[int]]) -> None:
        ids = np.array([id for text in texts for id in text], np.int64)
        self.write(number, ids=ids, lengths=np.array([len(text) for text in texts], np.int64))

    def read(self, number: int, shard: Array) -> list[list[int]]:
        ids, lengths = read_arrays(self.path(number), self.key(number), "ids", "lengths")
        if len(lengths) != len(shard) or lengths.sum() != len(ids):
            raise ValueError(f"{self.path(number)} is not of this work")
        return [text.tolist() for text in np.split(ids, np.cumsum(lengths)[:-1])]
