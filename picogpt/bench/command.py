"""Measure speed and memory against the machine's own limits, and against other programs at the same work.

    python -m picogpt bench --model_size 124M --peers

A machine's speed drifts. Each round therefore measures the work and its limit one right after the other, and later the
work and the other programs. The table shows the median of several rounds. The limits are these:

- A decoded token reads every weight, and the keys and values of the text before it, once: at best as fast as one
  large matrix-vector product reads its matrix.
- A prompt is mostly matrix products. At best it does as many FLOP/s as one large matrix product (sgemm).
- Samples side by side read every weight once in each step, and multiply it for each sample. Their limit is the slower
  one of two: reading weights, keys and values as fast as above, or as many FLOP/s as sgemm does.
- The command starts Python, imports NumPy, and reads the weights once for each token.
- A tokenizer splits the text by a regular expression, and a detokenizer joins strings.
"""

from __future__ import annotations

import argparse
import json
import math
import pydoc_data
import random
import statistics
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from functools import partial
from pathlib import Path

from encoder import Encoder
from picogpt.bench.output import HEADER, environment, line, print_line
from picogpt.bench.peers import (
    ROOT,
    Peers,
    Process,
    other_tokenizers,
    our_process,
    start_of_numpy,
    without_a_cache,
)
from picogpt.bench.timing import (
    OURS,
    Clock,
    Limits,
    Row,
    Tick,
    Work,
    Workload,
    measure,
    prompt_flop,
    rows_of,
    samples_cost,
    seconds,
    summary,
)
from picogpt.checkpoints.writing import write_random_model
from picogpt.command_line import Parser, check_memory, number, read_text, show
from picogpt.files import new_file, overwritten
from picogpt.options import add_force, add_model_options, require
from picogpt.parallel import MIN_ROWS, on_all_cores
from picogpt.threads import weights_size
from utils import SIZES, ensure_downloaded, expected_shapes, load_encoder, load_hparams_and_params

N_LETTERS = 1_000_000  # letters of the longest word
N_SAMPLES = (4, 16, 64)  # how many samples grow side by side

# ------------------------------------------------------------------------------------------------------- the model


def decode_lengths(n_ctx: int) -> list[int]:
    """Return the numbers of tokens after which decoding is measured."""
    return [n for n in (10, 500, 1000) if n < n_ctx] or [n_ctx - 1]


def prompt_lengths(n_ctx: int) -> list[int]:
    """Return the lengths of the prompts that are measured."""
    return [n for n in (64, 256, 960) if n <= n_ctx] or [n_ctx]


def measure_model(workload: Workload, other: Peers | None, rounds: int, tick: Tick) -> Iterator[Row]:
    """Measure decoding, prompts and samples in this process, and the two limits. Yield each row as it is there."""
    bandwidth: list[float] = []
    rate: list[float] = []
    for n in decode_lengths(workload.n_ctx):
        peers = other.decoding(workload, n) | {"without a cache": without_a_cache(workload, n)} if other else {}
        work = workload.decode(n, peers)
        found, times = measure(work, rounds)
        yield from found
        n_bytes, _ = samples_cost(workload.params, 1, n, len(workload.next_ids(n)))
        bandwidth += [n_bytes / t / 1e9 for t in times["bandwidth"]]
        tick()
    yield summary("limit: matrix-vector product", bandwidth, "GB/s")
    for n in prompt_lengths(workload.n_ctx):
        peers = {"on all cores": on_threads(workload.prompt(n).ours)} if n >= MIN_ROWS else {}
        found, times = measure(workload.prompt(n, peers | (other.prompt(workload, n) if other else {})), rounds)
        yield from found
        rate += [prompt_flop(workload.params, n) / t / 1e9 for t in times["sgemm"]]
        tick()
    yield summary("limit: sgemm", rate, "GFLOP/s")
    for n in N_SAMPLES:
        yield from measure(workload.samples(n, other.samples(workload, n) if other else {}), rounds)[0]
        tick()


def on_threads(ours: Clock) -> Clock:
    """Return a clock for our own work as `picogpt generate` does it."""

    def timed() -> float:
        with on_all_cores():
            return ours()

    return timed


# ------------------------------------------------------------------------------------------------- whole processes


def measure_command(folder: Path, limits: Limits, other: Peers | None, rounds: int, tick: Tick) -> list[Row]:
    """Measure the whole command that generates 40 tokens: its first text, its end, and its memory."""
    programs = {OURS: partial(our_process, folder)} | (other.processes(folder) if other else {})
    runs: dict[str, list[Process]] = {name: [] for name in programs}
    least: list[tuple[float, float]] = []
    for _ in range(rounds + 1):
        start, read = start_of_numpy(), limits.read(limits.n_bytes)
        least.append((start + read, start + 40 * read))
        for name, program in programs.items():
            runs[name].append(program())
        tick()
    counted = {name: found[1:] for name, found in runs.items()}
    rows = []
    for i, title in enumerate(("process start to first text", "whole command, 40 tokens")):
        times = {name: [run[i] for run in found] for name, found in counted.items()}
        clocks = {name: float for name in programs if name != OURS}  # never called: the times are here already
        work = Work(title, "s", 1, float, {"start + read": float}, clocks)
        rows += rows_of(work, times | {"start + read": [t[i] for t in least[1:]]})
    return rows + memory_rows(folder, {name: [run.memory for run in found] for name, found in counted.items()})


def memory_rows(folder: Path, memory: dict[str, list[float]]) -> list[Row]:
    """Return a row for each program's peak memory, or no rows on Windows, where the memory is not known."""
    if not all(memory[OURS]):
        return []
    share = {"share": statistics.median(memory[OURS]) / (weights_size(folder) / 2**20), "limit": "data file"}
    rows = [summary("peak memory", memory[OURS], "MiB") | share]
    for name, values in memory.items():
        if name != OURS:
            ratio = statistics.median(theirs / ours for theirs, ours in zip(values, memory[OURS]))
            rows.append(summary(f"peak memory: {name}", values, "MiB") | {"ratio": ratio})
    return rows


# ------------------------------------------------------------------------------------------------------- tokenizer


def english() -> str:
    """Return a megabyte of English that every Python has: its own language reference."""
    return (Path(pydoc_data.__file__ or "").parent / "topics.py").read_text(encoding="utf-8")


def mixed_languages() -> str:
    """Make up almost two megabytes of text in ten scripts and in emoji.

    Words repeat as they do in real text: the i-th word comes 1/i times as often as the first. Chinese, Japanese and
    Thai have no spaces between words, so runs of up to forty of their letters never repeat.
    """
    rng = random.Random(0)
    spaced = ["az", "àÿ", "ας", "ая", "ἀ\u1f7e", "את", "ءي", "कह", "가힣", "😀🙏"]
    words = ["".join(chr(rng.randint(*map(ord, ends))) for _ in range(rng.randint(2, 9))) for ends in spaced * 2500]
    often = rng.choices(words, [1 / i for i in range(1, len(words) + 1)], k=120_000)
    unspaced = [tuple(map(ord, ends)) for ends in ("一龥", "ぁん", "กฮ")]
    for at in range(0, len(often), 40):
        often[at] = "".join(chr(rng.randint(*rng.choice(unspaced))) for _ in range(rng.randint(5, 40)))
    return " ".join(often)


def measure_tokenizer(load: Callable[[], Encoder], text: str, peers: bool, rounds: int, tick: Tick) -> Iterator[Row]:
    """Measure encoding with an empty cache (English, other languages), decoding, and encoding one very long word."""
    encoder = load()
    word = "".join(random.Random(0).choices("abcdefghijklmnopqrstuvwxyz", k=N_LETTERS))
    for name, sample in (("English", text), ("mixed languages", mixed_languages())):
        megabytes, ids = len(sample.encode()) / 1e6, encoder.encode(sample)
        fresh = [load() for _ in range(2 * (rounds + 1))]  # with empty caches, and made before the timing begins
        encode = partial(seconds, partial(lambda unused, text: unused.pop().encode(text), fresh, sample))
        split = partial(seconds, partial(encoder.pieces.findall, sample))
        others = other_tokenizers(encoder, sample) if peers else {}
        work = Work(f"tokenizer, {name}", "MB/s", megabytes, encode, {"splitting": split}, others)
        yield from measure(work, rounds)[0]
        join = partial(seconds, partial("".join, [encoder.decoder[id] for id in ids]))
        decode = partial(seconds, partial(encoder.decode, ids))
        yield from measure(Work(f"detokenizer, {name}", "MB/s", megabytes, decode, {"joining": join}), rounds)[0]
        tick()
    long_word = Work(f"one word of {N_LETTERS:,} letters", "s", 1, partial(seconds, partial(encoder.encode, word)))
    yield from measure(long_word, min(rounds, 2))[0]
    tick()


# ---------------------------------------------------------------------------------------------------- the whole run


def bench(folder: Path, text: str, rounds: int, peers: bool = False) -> Iterator[Row]:
    """Measure the model in a folder, and yield each row of the table as it is there.

    `text` is for the tokenizer. Raises UsageError if the other programs' copy of the weights has no room in memory.
    """
    from tqdm import tqdm

    hparams, params = load_hparams_and_params(folder)
    n_ctx = hparams["n_ctx"]
    if peers:
        check_memory("measuring the other programs", 2 * weights_size(folder) + 800 * 10**6)
    workload = Workload(params, hparams["n_head"])
    n_rows = len(decode_lengths(n_ctx)) + len(prompt_lengths(n_ctx)) + len(N_SAMPLES)
    with ExitStack() as stack:
        total = rounds + 1 + n_rows + 3
        bar = stack.enter_context(tqdm(None, "measuring", total, leave=False, unit="step", disable=None))
        other = stack.enter_context(Peers(folder)) if peers else None
        yield from measure_command(folder, workload.limits, other, rounds, bar.update)
        yield from measure_model(workload, other, rounds, bar.update)
        load = partial(load_encoder, folder)
        yield from measure_tokenizer(load, text, peers, rounds, bar.update)


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """Read the options; --help lists them."""
    parser = Parser(
        prog="python -m picogpt bench",
        description="Measure speed and memory against this machine's own limits. Close other programs first.",
        epilog="""examples:
  python -m picogpt bench --model_size tiny
  python -m picogpt bench --shape 124M --peers
  python -m picogpt bench --shape 1558M --rounds 3 --json 1558M.json""",
    )
    add_model_options(parser)
    add = parser.add_argument
    add("--shape", choices=SIZES, help="measure random weights of this size instead, in a temporary folder")
    add("--text", type=Path, metavar="FILE", help="English text to tokenize (default: Python's own documentation)")
    add("--rounds", type=number(1, kind=int), default=5, metavar="N", help="how many rounds (default: %(default)s)")
    add("--peers", action="store_true", help="also measure other programs, and gpt2 without its cache")
    add("--json", type=Path, metavar="FILE", help="write the figures to this file as well, at the end")
    add_force(parser)
    args = parser.parse_args(argv)
    if problem := overwritten({"--json": args.json}, [args.text] if args.text else []):
        parser.error(problem)
    return args


def random_model(size: str, models_dir: Path, parent: Path) -> Path:
    """Write a model of random weights into a folder of `parent`. It gets OpenAI's tokenizer if `models_dir` has it.

    A relative `models_dir` is searched for beside gpt2.py, too. Raises UsageError if too little memory is free.
    """
    folder = parent / f"random-{size}"
    n_bytes = 4 * sum(map(math.prod, expected_shapes(SIZES[size]).values()))
    check_memory(f"drawing random weights in the shape of {size}", n_bytes + 200 * 10**6)
    places = [place / size for place in (models_dir, ROOT / models_dir)]
    tokenizer = next((load_encoder(place) for place in places if (place / "encoder.json").exists()), None)
    folder.mkdir()
    write_random_model(folder, SIZES[size], 0, tokenizer)
    return folder


def main(argv: list[str] | None = None) -> int:
    """Measure, print each row as it is there, and write the figures."""
    args = parse_args(argv)
    text = read_text(args.text) if args.text else english()
    if args.peers:
        require("torch", "transformers", "safetensors")
    with ExitStack() as stack:  # a file that can't be written is refused here, before the long work
        file = stack.enter_context(new_file(args.json, args.force)) if args.json else None
        if args.shape:
            temporary = stack.enter_context(tempfile.TemporaryDirectory())
            folder = random_model(args.shape, Path(args.models_dir), Path(temporary))
        else:
            folder = ensure_downloaded(args.model_size, args.models_dir)
        rows: list[Row] = []
        for row in bench(folder, text, args.rounds, args.peers):
            if not rows:
                print_line(environment(args.rounds) + "\n" + HEADER)
            rows.append(row)
            print_line(line(row))
        if file:
            file.write((json.dumps(rows, indent=2) + "\n").encode("utf-8"))
    if args.json:
        show(f"{args.json}: {args.json.stat().st_size:,} bytes")
    return 0
