"""Speed and memory against the machine's own limits, and other programs' at the same work, all measured in one run.

    python -m picogpt bench --model_size 124M --peers --plot growth.png

A machine's speed drifts, so each figure is measured in turn with its limit, and once more in turn with its peers, for
several rounds; a share or ratio is the median of the rounds'. The limits: a decoded token reads every weight once, at
the speed of one large matrix-vector product; a prompt multiplies at the speed of one large matrix product; a process
starts Python and NumPy and then reads the weights once a token; a tokenizer splits by the regular expression, a
detokenizer joins strings.
"""

from __future__ import annotations

import argparse
import json
import os
import pydoc_data
import random
import statistics
import sys
import tempfile
from collections.abc import Callable
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from encoder import Encoder, get_encoder
from picogpt.bench.growth import check_matplotlib, draw, steps
from picogpt.bench.peers import Process, Transformers, other_tokenizers, our_process, start_of_numpy, without_a_cache
from picogpt.bench.timing import (
    LIMIT,
    OURS,
    SIDE,
    Limits,
    Row,
    Tick,
    Times,
    Work,
    Workload,
    measure,
    rows_of,
    seconds,
    summary,
)
from picogpt.checkpoints.sizes import SHAPES, hparams_of
from picogpt.checkpoints.writing import write_random_model
from picogpt.files import new_file
from utils import SIZES, Parser, checkpoint_prefix, ensure_downloaded, load_hparams_and_params, number, read_text


def measure_model(machine: Workload, other: Transformers | None, rounds: int, tick: Tick) -> list[Row]:
    """Decoding and prompts, in this process."""
    rows: list[Row] = []
    reading: list[float] = []
    multiplying: list[float] = []
    for n in [n for n in (10, 500, 1000) if n < machine.n_ctx] or [machine.n_ctx - 1]:
        peers = other.decoding(machine, n) | {"without a cache": without_a_cache(machine, n)} if other else {}
        found, times = measure(machine.decode(n, peers), rounds)
        rows += found
        reading += times[LIMIT]
        tick()
    for n in [n for n in (64, 256, 960) if n <= machine.n_ctx] or [machine.n_ctx]:
        found, times = measure(machine.prompt(n, other.prompt(machine, n) if other else {}), rounds)
        rows += found
        multiplying += times[LIMIT]
        tick()
    bandwidth = [machine.limits.matrix.nbytes / t / 1e9 for t in reading]
    rate = [2 * SIDE**3 / t / 1e9 for t in multiplying]
    limits = summary("limit: matrix-vector product", bandwidth, "GB/s"), summary("limit: sgemm", rate, "GFLOP/s")
    return [*limits, *rows]


# -------------------------------------------------------------------------------------------------- whole processes


def measure_command(folder: Path, limits: Limits, other: Transformers | None, rounds: int, tick: Tick) -> list[Row]:
    """The README's command, from the start of the process: Python, NumPy, and one reading of the weights a token."""
    programs: dict[str, Callable[[], Process]] = {OURS: partial(our_process, folder)}
    if other:
        programs |= other.processes(folder)
    runs: dict[str, list[Process]] = {name: [] for name in programs}
    least: list[tuple[float, float]] = []
    for _ in range(rounds + 1):
        start, read = start_of_numpy(), limits.reads * seconds(limits.read)
        least.append((start + read, start + 40 * read))
        for name, program in programs.items():
            runs[name].append(program())
        tick()
    rows = []
    for i, title in enumerate(("process start to first text", "whole command, 40 tokens")):
        times: Times = {name: [run[i] for run in found[1:]] for name, found in runs.items()}
        rivals = {name: float for name in programs if name != OURS}
        work = Work(title, "s", 1, list, list, "the limits", peers=rivals)
        rows += rows_of(work, times | {LIMIT: [t[i] for t in least[1:]]})
    memory = {name: [run.memory for run in found[1:]] for name, found in runs.items()}
    if not all(memory[OURS]):
        return rows  # Windows has no wait4
    data = sum(path.stat().st_size for path in folder.glob(f"{checkpoint_prefix(folder).name}.data-*")) / 2**20
    share = {"share": statistics.median(memory[OURS]) / data, "limit": "the data file"}
    rows.append(summary("peak memory", memory[OURS], "MiB") | share)
    for name in programs:
        if name != OURS:
            ratio = statistics.median(theirs / ours for theirs, ours in zip(memory[name], memory[OURS]))
            rows.append(summary(f"peak memory: {name}", memory[name], "MiB") | {"ratio": ratio})
    return rows


# ------------------------------------------------------------------------------------------------------- tokenizer


def english() -> str:
    """A megabyte of English that every Python has: its own language reference."""
    return (Path(pydoc_data.__file__ or "").parent / "topics.py").read_text(encoding="utf-8")


def mixed_languages() -> str:
    """Megabytes of made-up words in eleven scripts, as often as words are: the i-th 1/i times as often as the first.

    Chinese, Japanese and Thai have no spaces: there each run of up to forty letters is new.
    """
    rng = random.Random(0)
    spaced = ["az", "àÿ", "ας", "ая", "ἀ\u1f7e", "את", "ءي", "कह", "가힣", "😀🙏"]
    words = ["".join(chr(rng.randint(*map(ord, ends))) for _ in range(rng.randint(2, 9))) for ends in spaced * 2500]
    often = rng.choices(words, [1 / i for i in range(1, len(words) + 1)], k=120_000)
    unspaced = [tuple(map(ord, ends)) for ends in ("一龥", "ぁん", "กฮ")]
    for at in range(0, len(often), 40):
        often[at] = "".join(chr(rng.randint(*rng.choice(unspaced))) for _ in range(rng.randint(5, 40)))
    return " ".join(often)


def encode_by_next(encoders: list[Encoder], text: str) -> Any:
    return encoders.pop().encode(text)


def measure_tokenizer(load: Callable[[], Encoder], text: str, peers: bool, rounds: int, tick: Tick) -> list[Row]:
    """Every round has an encoder that has met no word yet; only what is measured is timed."""
    encoder = load()
    word = "".join(random.Random(0).choices("abcdefghijklmnopqrstuvwxyz", k=1_000_000))
    rows = []
    for name, sample in (("English", text), ("mixed languages", mixed_languages())):
        amount, ids = len(sample.encode()) / 1e6, encoder.encode(sample)
        fresh = [load() for _ in range(2 * (rounds + 1))]
        encode, split = partial(encode_by_next, fresh, sample), partial(encoder.pieces.findall, sample)
        others = other_tokenizers(encoder, sample) if peers else {}
        work = Work(f"tokenizer, {name}", "MB/s", amount, encode, split, "the split", peers=others)
        rows += measure(work, rounds)[0]
        join = partial("".join, [encoder.decoder[id] for id in ids])
        back = Work(f"detokenizer, {name}", "MB/s", amount, partial(encoder.decode, ids), join, "joining strings")
        rows += measure(back, rounds)[0]
        tick()
    rows += measure(Work("one word of 1,000,000 letters", "s", 1, partial(encoder.encode, word)), min(rounds, 2))[0]
    tick()
    return rows


# ------------------------------------------------------------------------------------------------------------ output


def table(rows: list[Row]) -> str:
    lines = []
    for row in rows:
        share = f"{row['share']:6.1%} of {row['limit']}" if "share" in row else ""
        against = (
            f"ours: {row['ratio']:.2f} x as {'little' if row['unit'] == 'MiB' else 'fast'}" if "ratio" in row else ""
        )
        spread = f"({row['low']:.4g} to {row['high']:.4g})"
        lines.append(f"{row['name']:44} {row['median']:9.4g} {row['unit']:9} {spread:22} {share}{against}".rstrip())
    return "\n".join(lines)


def bench(folder: Path, text: str, rounds: int, peers: bool, plot: Path | None) -> list[Row]:
    """All rows of the table for a model's folder; and the plot, if there is to be one."""
    from tqdm import tqdm

    hparams, params = load_hparams_and_params(folder)
    total = 6 + rounds + 1 + 3 + (steps(len(params["wpe"])) if plot else 0)
    with ExitStack() as stack:
        bar = stack.enter_context(tqdm(total=total, desc="measuring", unit="step", file=sys.stderr, disable=None))
        other = stack.enter_context(Transformers(folder)) if peers else None
        machine = Workload(params, hparams["n_head"])
        rows = measure_command(folder, machine.limits, other, rounds, bar.update)
        rows += measure_model(machine, other, rounds, bar.update)
        rows += measure_tokenizer(lambda: get_encoder(folder.name, folder.parent), text, peers, rounds, bar.update)
        if plot:
            file = stack.enter_context(new_file(plot))
            draw(machine, other, folder.name, rounds, file, bar.update)
    return rows


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = Parser(
        prog="picogpt bench",
        description="Measure speed and memory against this machine's own limits. Close other programs first.",
        epilog="""examples:
  python -m picogpt bench --model_size tiny
  python -m picogpt bench --shape 124M --peers --plot growth.png
  python -m picogpt bench --shape 1558M --rounds 3 --json 1558M.json""",
    )
    sizes, add = "124M, 355M, 774M, 1558M or a folder of --models_dir (default: %(default)s)", parser.add_argument
    add("--model_size", default="124M", help=sizes)
    add("--models_dir", default="models", help="(default: %(default)s)")
    add("--shape", choices=SIZES, help="instead: random weights of this shape, in a temporary folder")
    add("--text", type=Path, metavar="FILE", help="English to tokenize (default: the documentation inside Python)")
    add("--rounds", type=number(1, kind=int), default=5, metavar="N", help="(default: %(default)s)")
    add("--peers", action="store_true", help="the same by transformers, tiktoken, tokenizers, and without a cache")
    add("--json", type=Path, metavar="FILE", help="write the figures, too")
    add("--plot", type=Path, metavar="FILE.png", help="draw how time and memory grow (matplotlib)")
    return parser.parse_args(argv)


def check_files(args: argparse.Namespace) -> None:
    """Raise OSError now for a file that could not be written after the work."""
    for path in (args.json, args.plot):
        if path and (path.is_dir() or not path.absolute().parent.is_dir()):
            raise FileNotFoundError(f"{path.parent} is no folder to write {path.name} to, or {path.name} is one itself")
    if args.plot:
        check_matplotlib()


def main(argv: list[str] | None = None) -> int:
    args = parse_args(argv)
    text = read_text(args.text) if args.text else english()
    check_files(args)
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary) / str(args.shape)
        if args.shape:
            assert args.shape in SHAPES
            folder.mkdir()
            tokenizer = Path(args.models_dir) / args.shape
            there = tokenizer if (tokenizer / "encoder.json").exists() else None
            write_random_model(folder, hparams_of(args.shape), 0, there)
        else:
            folder = ensure_downloaded(args.model_size, args.models_dir)
        rows = bench(folder, text, args.rounds, args.peers, args.plot)
    print(f"{os.cpu_count()} processors, Python {sys.version.split()[0]}, NumPy {np.__version__}, {args.rounds} rounds")
    print(table(rows))
    if args.json:
        with new_file(args.json) as file:
            file.write((json.dumps(rows, indent=2) + "\n").encode("utf-8"))
    return 0
