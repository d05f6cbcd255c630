"""Continue every line of a JSON Lines file: `generate --prompts`, on this machine or on a Dask cluster.

The texts to make are cut into shards, whose results are kept in the work folder: --out with .work at its end. When all
are there, the texts are written to --out in the order of their lines, and the work folder goes.
"""

from __future__ import annotations

import argparse
import functools
import hashlib
import json
import os
import secrets
import shutil
import time
from collections import defaultdict
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import closing, suppress
from pathlib import Path
from typing import Any, NamedTuple

import gpt2
from encoder import Encoder
from picogpt.command_line import UsageError, log
from picogpt.continuation import check_batch, first_ids, is_over, last_id, rows_that_fit, text_pieces
from picogpt.files import file_to_write, new_file
from picogpt.generate import warn_about_unused
from picogpt.options import allow_special, check_size, sampling_settings
from picogpt.prompts.shards import Shards, Texts, cut
from picogpt.prompts.work import CODE, Request, continue_rows, continue_shard
from picogpt.scoring.jobs import on_cluster
from picogpt.scoring.reading import at, field_of, read_exactly, shown_name
from picogpt.scoring.shards import DESCRIPTION, fingerprint
from picogpt.scoring.windows import Array
from utils import ensure_downloaded, load_encoder_hparams_and_params, read_json

GO_ON = "the same command goes on with what is missing"


class Opened(NamedTuple):
    """A model that was opened: its folder, what is in there, and its fingerprint."""

    folder: Path
    encoder: Encoder
    n_head: int
    params: Any
    fingerprint: str


class Work(NamedTuple):
    """All texts to make: the prompts, their numbers of ids, the texts of each shard, how, and where they are kept."""

    prompts: list[str]
    lengths: list[int]
    shards: list[Array]
    request: Request
    n_samples: int
    kept: Texts


def open_model(args: argparse.Namespace) -> Opened:
    """Open the model that --model_size and --models_dir name. Missing files are downloaded."""
    folder = ensure_downloaded(args.model_size, args.models_dir)
    encoder, hparams, params = load_encoder_hparams_and_params(args.model_size, args.models_dir)
    return Opened(folder, allow_special(encoder, args), hparams["n_head"], params, fingerprint(folder, CODE))


def read_prompts(name: str, field: str) -> list[str]:
    """Return a field of every line of a JSON Lines file. Raises UsageError naming the line that has no valid text."""
    lines = read_exactly(name).removesuffix("\n").split("\n")
    if lines == [""]:
        raise UsageError(f"{shown_name(name)} is empty: it has no prompt")
    prompts = []
    for number, line in enumerate(lines, 1):
        with at(f"{shown_name(name)}:{number}"):
            if not line.strip():
                raise ValueError("the line is blank")
            prompts.append(field_of(line, field))
            if surrogates := [char for char in prompts[-1] if "\ud800" <= char <= "\udfff"]:
                raise ValueError(f"the prompt is not valid Unicode: it has {surrogates[0]!r}, half of a character")
    return prompts


def count_ids(prompts: Sequence[str], name: str, encoder: Encoder, params: Any, n_new: int) -> list[int]:
    """Return the number of ids of each prompt. Raises UsageError naming the line that the model can't continue."""
    from tqdm import tqdm

    lengths = []
    for number, prompt in enumerate(tqdm(prompts, "encoding", unit="line", leave=False, disable=None), 1):
        with at(f"{shown_name(name)}:{number}"):
            check_size(encoder, prompt, len(params["wpe"]))
            lengths.append(len(gpt2.checked_ids(first_ids(encoder, prompt), params, n_new)))
    return lengths


def describe(prompts: Sequence[str], model: str, seed: int, args: argparse.Namespace) -> dict[str, Any]:
    """Return what decides the texts. How many of them are made at once does not."""
    digest = hashlib.sha256()
    for prompt in prompts:
        digest.update(json.dumps(prompt).encode() + b"\n")
    names = ("n_tokens_to_generate", "n_samples", "stop", "end_of_text", "allow_special")
    settings = {name: getattr(args, name) for name in names} | sampling_settings(args)
    return {"model": model, "prompts": digest.hexdigest(), "seed": seed, **settings}


def seed_of(args: argparse.Namespace, folder: Path) -> int:
    """Return --seed, or else the seed of the work that the folder has begun, or else a new one."""
    if args.seed is not None:
        return int(args.seed)
    with suppress(OSError, ValueError, KeyError, TypeError):
        return int(read_json(folder / DESCRIPTION)["seed"])
    return secrets.randbelow(1 << 32)


def warn(args: argparse.Namespace, prompts: Sequence[str]) -> None:
    """Warn on stderr about what is allowed but probably a mistake."""
    spaces = [number for number, prompt in enumerate(prompts, 1) if prompt.endswith(" ")]
    if spaces:
        which = f"{len(spaces)} of the prompts end in a space, the first in line {spaces[0]}"
        log(f"warning: {which}, which makes the texts worse: GPT-2's tokens begin with a space")
    warn_about_unused(args)


def plan(args: argparse.Namespace, model: Opened) -> Work:
    """Read the prompts, and cut the work into shards. Raises UsageError before any of it is done."""
    prompts = read_prompts(args.prompts, args.field)
    end, n_new = last_id(model.encoder, args), args.n_tokens_to_generate
    lengths = count_ids(prompts, args.prompts, model.encoder, model.params, n_new)
    warn(args, prompts)
    folder = args.out.with_name(f"{args.out.name}.work")
    seed = seed_of(args, folder)
    kept = Texts(folder, describe(prompts, model.fingerprint, seed, args))
    kept.prepare()
    if args.seed is None and args.temperature > 0:
        log(f"[--seed {seed} makes the same texts]")
    request = Request(n_new, seed, sampling_settings(args), end, args.stop or "", args.batch_size)
    return Work(prompts, lengths, cut(lengths, args.n_samples), request, args.n_samples, kept)


def make(work: Work, model: Opened, args: argparse.Namespace) -> None:
    """Make the texts that are missing, and keep them. A bar on stderr shows how many are done, and the time left."""
    from tqdm import tqdm

    done = [number for number, _ in work.kept.load(work.shards)]
    if done:
        log(f"[{len(done)} of {len(work.shards)} shards are in {work.kept.folder} already]")
    todo = dict(enumerate(work.shards))
    n_done, total = sum(len(todo.pop(number)) for number in done), sum(map(len, work.shards))
    ids = functools.partial(first_ids, model.encoder)
    shards = Shards(todo, work.prompts, work.n_samples, work.request, ids)
    start, n_tokens = time.perf_counter(), 0
    bar = tqdm(desc="generating", total=total, initial=n_done, unit="text", unit_scale=True, leave=False, disable=None)
    progress = functools.partial(bar.update, 1 / max(1, work.request.n_new))
    with bar, closing(engine(shards, work, model, args, progress)) as results:
        for number, texts in results:
            work.kept.save(number, texts)
            n_tokens += sum(map(len, texts))
            n_done += len(texts)
            bar.update(n_done - bar.n)  # what the work did not count itself, and texts that ended early
    if n_tokens:
        log(f"[{n_tokens / (time.perf_counter() - start):.1f} tokens/s, all texts together]")


def engine(
    shards: Shards, work: Work, model: Opened, args: argparse.Namespace, progress: Callable[[], Any]
) -> Generator[tuple[int, list[list[int]]], None, None]:
    """Yield the number and the new ids of each shard. Only the work in this process calls `progress`."""
    if args.dask is not None and shards:
        folder = os.path.abspath(model.folder)
        yield from on_cluster(shards, folder, model.fingerprint, args.dask, continue_shard, GO_ON)
        return
    if shards:
        n_positions = max(work.lengths) + work.request.n_new
        most = min(work.request.batch_size, max(map(len, shards.texts.values())))
        n_rows = rows_that_fit(most, model.params, model.n_head, n_positions)
        log(f"[{check_batch(n_rows, model.params, model.n_head, n_positions)}]")
    for number, shard in shards.items():
        yield number, continue_rows(shard, model.params, model.n_head, model.encoder, progress)


def records(work: Work, encoder: Encoder) -> Iterator[dict[str, Any]]:
    """Yield what --out says about each text, in the order of lines and samples. One shard of each length is in memory.

    `length` counts the new ids, with the one that ended the text. `ended` is false if a text could have gone on.
    """
    end, stops = work.request.end, [work.request.stop]
    numbers: dict[int, list[int]] = defaultdict(list)  # those of the shards of each length
    for number, shard in enumerate(work.shards):
        numbers[work.lengths[shard[0] // work.n_samples]].append(number)
    new = {
        length: (ids for number in own for ids in work.kept.read(number, work.shards[number]))
        for length, own in numbers.items()
    }
    for line, (prompt, length) in enumerate(zip(work.prompts, work.lengths), 1):
        for sample in range(1, work.n_samples + 1):
            ids = next(new[length])
            text = "".join(text_pieces(ids, encoder, end, stops))
            ended = is_over(ids, encoder, end, stops)
            yield {"line": line, "sample": sample, "prompt": prompt, "text": text, "ended": ended, "length": len(ids)}


def continue_file(args: argparse.Namespace) -> int:
    """Write the texts that continue the lines of --prompts to --out."""
    from tqdm import tqdm

    file_to_write(args.out, args.force)  # an error comes before the work
    model = open_model(args)
    work = plan(args, model)
    make(work, model, args)
    total = len(work.prompts) * work.n_samples
    with new_file(args.out, args.force) as file:
        for record in tqdm(records(work, model.encoder), "writing", total, unit="text", leave=False, disable=None):
            file.write(json.dumps(record, ensure_ascii=False).encode("utf-8") + b"\n")
    shutil.rmtree(work.kept.folder)
    return 0
