"""What is made: rows of texts in shards, and how a shard is continued, here or by a worker of a Dask cluster."""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

import gpt2
from encoder import Encoder
from picogpt import batch, continuation
from picogpt.continuation import draw, is_over, rows_that_fit
from picogpt.scoring.jobs import open_params
from utils import load_encoder

if TYPE_CHECKING:
    from picogpt.typing.shapes import Params

CODE = (gpt2, batch, continuation)  # the modules that decide the texts, as part of the fingerprint


class Row(NamedTuple):
    """A text to make: the line of its prompt and its number among the samples, both from 1 on, and the prompt's ids."""

    line: int
    sample: int
    ids: list[int]


class Request(NamedTuple):
    """How texts are made: how many ids, which seed and settings of sampling, and the id and the text that end one."""

    n_new: int
    seed: int
    settings: dict[str, Any]
    end: int | None
    stop: str
    batch_size: int


class Shard(NamedTuple):
    """Rows whose prompts have equal numbers of ids, and the request that they belong to."""

    request: Request
    rows: list[Row]


def continue_shard(folder: str, model: str, number: int, shard: Shard) -> tuple[int, list[list[int]]]:
    """Return the number of a shard and its new ids. This is what workers run."""
    params, n_head = open_params(folder, model, *CODE)
    return number, continue_rows(shard, params, n_head, open_encoder(folder))


@functools.lru_cache(maxsize=1)
def open_encoder(folder: str) -> Encoder:
    """Return the tokenizer of the model in a folder, once in each process. A text of --stop ends where it says so."""
    return load_encoder(Path(folder))


def continue_rows(
    shard: Shard, params: Params, n_head: int, encoder: Encoder, progress: Callable[[], Any] = lambda: None
) -> list[list[int]]:
    """Return the new ids of each row. `progress` is called for each of them."""
    request, rows = shard
    n_rows = rows_that_fit(request.batch_size, params, n_head, len(rows[0].ids) + request.n_new)
    over = functools.partial(is_over, encoder=encoder, end=request.end, stops=[request.stop])
    choose = [functools.partial(draw, rng=generator(request.seed, row), **request.settings) for row in rows]
    prompts, texts = [row.ids for row in rows], [list[int]() for _ in rows]
    for i, id in batch.generate_each(prompts, params, n_head, request.n_new, choose, over, n_rows):
        texts[i].append(id)
        progress()
    return texts


def generator(seed: int, row: Row) -> np.random.Generator:
    """Return a text's own random generator, so that the text does not depend on any other."""
    return np.random.default_rng(np.random.SeedSequence(seed, spawn_key=(row.line, row.sample)))
