"""Score many windows with a model from a folder: here, in several processes or on a cluster. Show the progress."""

from __future__ import annotations

import argparse
import functools
import os
import re
from collections.abc import Callable, Iterable, Sequence
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from encoder import END_OF_TEXT, Encoder
from picogpt.command_line import Parser, UsageError, number
from picogpt.options import add_bos, dask_address
from picogpt.scoring.jobs import Changes, Done, Shards, in_processes, in_this_process, on_cluster, score_shard
from picogpt.scoring.results import perplexity
from picogpt.scoring.shards import DESCRIPTION, Results, describe, fingerprint, shards_of
from picogpt.scoring.windows import Scores, Window
from utils import ensure_downloaded, load_encoder_hparams_and_params

if TYPE_CHECKING:
    from picogpt.typing.shapes import Params


class Model(NamedTuple):
    """A model that was opened: its folder, what is in there, and its fingerprint, "" where nobody needs it."""

    folder: Path
    encoder: Encoder
    hparams: dict[str, int]
    params: Params
    fingerprint: str = ""


def open_model(args: argparse.Namespace) -> Model:
    """Open the model that --model_size and --models_dir name. Missing files are downloaded."""
    folder = ensure_downloaded(args.model_size, args.models_dir)
    is_kept = args.results or args.dask or args.jobs > 1  # by others, who must not take it for another one
    found = fingerprint(folder) if is_kept else ""
    return Model(folder, *load_encoder_hparams_and_params(args.model_size, args.models_dir), found)


def begin(model: Model, bos: bool | None) -> list[int]:
    """Return the ids that stand before each text: <|endoftext|>, or none if `bos` is False.

    Raises UsageError if the vocabulary has no such token.
    """
    if bos is False:
        return []
    if END_OF_TEXT not in model.encoder.encoder:
        what = f"the vocabulary of {model.folder} has no {END_OF_TEXT} to put before a text"
        raise UsageError(f"{what}: leave it out with --no_bos")
    return [model.encoder.encoder[END_OF_TEXT]]


def add_window_options(
    parser: argparse.ArgumentParser, bos: str, bos_default: bool | None = True, stride_default: str = "--max_context"
) -> None:
    """Add --stride, --max_context, --bos and --no_bos, which say how a text is cut into windows.

    `bos` is the help of --bos; `stride_default` is the default that the help of --stride names.
    """
    add, context = parser.add_argument, "tokens in a window, at least 2 (default and most: the model's n_ctx)"
    stride = f"tokens from the beginning of one window to the beginning of the next (default: {stride_default})"
    add("--stride", type=number(1, kind=int), metavar="N", help=stride)
    add("--max_context", type=number(2, kind=int), metavar="N", help=context)
    add_bos(parser, bos, bos_default)


def add_work_options(parser: argparse.ArgumentParser) -> None:
    """Add the options that say where and how the work is done, and which `score_all` reads."""
    place = parser.add_mutually_exclusive_group()
    jobs = (
        "score in N processes, which share the processor's cores and the memory of the weights (default: %(default)s)"
    )
    dask = (
        "score on a Dask cluster, such as tcp://HOST:8786; each worker needs this folder and the model at its path; "
        "without any worker for ten minutes, the run ends"
    )
    results = "keep the results here as they arrive; the same command later goes on with what is missing"
    place.add_argument("--jobs", type=number(1, kind=int), default=1, metavar="N", help=jobs)
    place.add_argument("--dask", type=dask_address, metavar="ADDRESS", help=dask)
    parser.add_argument("--results", type=Path, metavar="FOLDER", help=results)


def kept_files(args: argparse.Namespace) -> list[str]:
    """Return the file in --results that no output may replace."""
    return [str(args.results / DESCRIPTION)] if args.results else []


def score_all(
    windows: Sequence[Window], model: Model, args: argparse.Namespace, changes: Changes = None, label: str = ""
) -> list[Scores]:
    """Return the scores of all windows in their order. A bar on stderr shows the tokens and the perplexity so far.

    `changes` are replaced in the model as `trace` does it, and `label` tells --results these changes from others.

    The scores are the same numbers for any --jobs and on any cluster, as long as BLAS uses the same number of threads
    in each process: OpenBLAS adds up in another order with another number. For the shape of 124M, that changed
    log-probabilities by up to 1.4e-6.

    Raises UsageError if --results belongs to other work, OSError if the cluster does not answer, and ChildProcessError
    if a process was killed. What is in --results by then stays.
    """
    from tqdm import tqdm

    Parser.model = model.folder.name  # in messages, where a command line names several models
    shards = shards_of(windows)
    results = Results(args.results, describe(shards, model.fingerprint + label)) if args.results else None
    scores = results.begin(shards) if results else {}
    todo = {i: shard for i, shard in enumerate(shards) if i not in scores}
    n, nats = totals(scores.values())
    total = sum(window.n_targets for window in windows)
    bar = tqdm(desc="scoring", total=total, initial=n, unit="token", unit_scale=True, leave=False, disable=None)
    with bar, closing(engine(todo, model, args, changes, bar.update)) as done:
        for i, scored in done:
            if results:
                results.save(i, scored)
            scores[i] = scored
            n_more, more = totals([scored])
            n, nats = n + n_more, nats + more
            bar.set_postfix_str(f"perplexity {perplexity(nats, n):.4g}", refresh=False)
            bar.update(max(0, n - bar.n))  # what the work did not count itself
    return [scored for i in range(len(shards)) for scored in scores[i]]


def with_own_results(args: argparse.Namespace, *names: str) -> argparse.Namespace:
    """Return the options with a folder within --results for one piece of several works, such as one of two models."""
    if args.results is None:
        return args
    return argparse.Namespace(
        **vars(args) | {"results": args.results / re.sub(r"[^\w.]+", "-", "-".join(names)).strip("-")}
    )


def totals(shards: Iterable[Sequence[Scores]]) -> tuple[int, float]:
    """Return the number of tokens in some shards, and the sum of their -log(p)."""
    arrays = [scores.log_probs for shard in shards for scores in shard]
    return sum(map(len, arrays)), -float(sum(map(np.sum, arrays)))


def engine(
    shards: Shards, model: Model, args: argparse.Namespace, changes: Changes, progress: Callable[[int], Any]
) -> Done:
    """Return what does the work as the options say. Only the work in this process calls `progress`."""
    folder = os.path.abspath(model.folder)
    if args.dask is not None and shards:
        return on_cluster(shards, folder, model.fingerprint, args.dask, functools.partial(score_shard, changes=changes))
    if args.jobs > 1 and shards:
        return in_processes(shards, folder, model.fingerprint, args.jobs, changes)
    return in_this_process(shards, model.params, model.hparams["n_head"], progress, changes)
