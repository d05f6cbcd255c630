"""Speed and memory against the machine's own limits, all measured in one run.

    python -m picogpt bench --model_size 124M

A machine's speed drifts, so every figure is measured in turn with its limit, several rounds, and the share is the
median of the rounds' ratios. The limits: reading the weights once per token at the speed of one large matrix-vector
product, and computing a prompt at the speed of one large matrix product.
"""

from __future__ import annotations

import argparse
import json
import os
import pydoc_data
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

import gpt2
from encoder import get_encoder
from picogpt.random_weights import SHAPES, hparams_of, write_random_model
from utils import SIZES, Parser, checkpoint_prefix, load_hparams_and_params, number, provide, read_text

if TYPE_CHECKING:
    from picogpt.shapes import Params

    Array = np.ndarray[Any, np.dtype[Any]]

ROOT = Path(gpt2.__file__).parent
PROMPT = "Alan Turing theorized that computers would one day become"
Row = dict[str, Any]


def seconds(work: Callable[[], Any]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def paired(rounds: int, limit: Callable[[], Any], work: Callable[[], Any]) -> tuple[list[float], list[float]]:
    """Times of the limit and of the work, in turn, after one round that does not count."""
    times = [(seconds(limit), seconds(work)) for _ in range(rounds + 1)][1:]
    return [t for t, _ in times], [t for _, t in times]


def summary(name: str, values: list[float], unit: str, shares: list[float] | None = None, limit: str = "") -> Row:
    """One line of the table: the median, the range it was found in, and the median share of the limit."""
    row: Row = {
        "name": name,
        "median": statistics.median(values),
        "low": min(values),
        "high": max(values),
        "unit": unit,
    }
    return row | ({"share": statistics.median(shares), "limit": limit} if shares else {})


# ---------------------------------------------------------------------------------------------- the model's own work


def weights_per_token(params: Any) -> list[Array]:
    """The matrices that one decoded token is multiplied with: each is read once."""
    inside = [block[a][b]["w"] for block in params["blocks"] for a, b in (("attn", "c_attn"), ("attn", "c_proj"))]
    inside += [block[a][b]["w"] for block in params["blocks"] for a, b in (("mlp", "c_fc"), ("mlp", "c_proj"))]
    return [*inside, params["wte"]]


def prompt_flop(params: Params, n: int) -> float:
    """Multiplications and additions of a prompt of n tokens: each weight twice per token, the causal half of attention
    (queries with keys, probabilities with values), and the vocabulary once, for the last position."""
    *matrices, wte = weights_per_token(params)
    n_embd: int = wte.shape[1]
    return 2.0 * n * sum(w.size for w in matrices) + len(params["blocks"]) * 2.0 * n_embd * n * (n + 1) + 2.0 * wte.size


def measure_model(params: Params, n_head: int, rounds: int, tick: Callable[[], Any]) -> list[Row]:
    """Decoding and prompts, in this process."""
    rng = np.random.default_rng(0)
    n_ctx, n_embd = params["wpe"].shape
    n_bytes = sum(w.nbytes for w in weights_per_token(params))
    matrix = np.ones((n_bytes // 4 // n_embd, n_embd), np.float32)
    vector = np.ones(n_embd, np.float32)
    square = rng.standard_normal((2048, 2048), dtype=np.float32)
    ids = rng.integers(0, len(params["wte"]), n_ctx).tolist()
    cache = gpt2.empty_cache(params, n_head, n_ctx)
    rows, bandwidths, rates = [], [], []
    for n_past in [n for n in (10, 500, 1000) if n < n_ctx] or [n_ctx - 1]:
        gpt2.next_logits(ids[:n_past], params, n_head, cache, 0)

        def token(n_past: int = n_past) -> None:
            gpt2.gpt2(ids[:1], **params, n_head=n_head, cache=cache, n_past=n_past)

        limits, times = paired(5 * rounds, lambda: matrix @ vector, token)
        bandwidths += [matrix.nbytes / t / 1e9 for t in limits]
        shares = [a / b for a, b in zip(limits, times)]
        rows.append(summary(f"decode, {n_past} tokens before", [1 / t for t in times], "tokens/s", shares, "bandwidth"))
        tick()
    for n in [n for n in (64, 256, 960) if n <= n_ctx] or [n_ctx]:
        flop = prompt_flop(params, n)

        def prompt(n: int = n) -> None:
            gpt2.next_logits(ids[:n], params, n_head, cache, 0)

        limits, times = paired(rounds, lambda: square @ square, prompt)
        rates += [2 * 2048**3 / t / 1e9 for t in limits]
        shares = [flop / b / (2 * 2048**3 / a) for a, b in zip(limits, times)]
        rows.append(summary(f"prompt of {n}", [n / t for t in times], "tokens/s", shares, "sgemm"))
        tick()
    return [
        summary("limit: matrix-vector product", bandwidths, "GB/s"),
        summary("limit: matrix product (sgemm)", rates, "GFLOP/s"),
        *rows,
    ]


# -------------------------------------------------------------------------------------------------- whole processes


def run_command(folder: Path, n: int) -> tuple[float, float, float]:
    """Run the command of the README: seconds to the first text and to the end, and peak memory in MiB (0: unknown)."""
    command = [sys.executable, str(ROOT / "gpt2.py"), PROMPT, "--n_tokens_to_generate", str(n)]
    command += ["--model_size", folder.name, "--models_dir", str(folder.parent)]
    start = time.perf_counter()
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.read(1)
        first = time.perf_counter() - start
        process.stdout.read()
        said = process.stderr.read().decode().strip()
        if sys.platform == "win32":
            process.wait()
            return first, time.perf_counter() - start, 0.0
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise ValueError(f"the command ended with status {process.returncode}: {said}")
    return first, time.perf_counter() - start, usage.ru_maxrss / (1024 if sys.platform != "darwin" else 1024**2)


def measure_command(folder: Path, rounds: int, tick: Callable[[], Any]) -> list[Row]:
    """The README's command, from the start of the process."""
    runs = []
    for _ in range(rounds + 1):
        runs.append(run_command(folder, 40))
        tick()
    first, whole, memory = (list(values) for values in zip(*runs[1:]))
    prefix = checkpoint_prefix(folder)
    size = sum(path.stat().st_size for path in folder.glob(f"{prefix.name}.data-*")) / 2**20
    return [
        summary("process start to first text", first, "s"),
        summary("whole command, 40 tokens", whole, "s"),
        summary("peak memory", memory, "MiB", [m / size for m in memory], "data file"),
    ]


# ------------------------------------------------------------------------------------------------------- tokenizer


def english() -> str:
    """A megabyte of English that every Python has: its own language reference."""
    return (Path(pydoc_data.__file__ or "").parent / "topics.py").read_text(encoding="utf-8")


def measure_tokenizer(folder: Path, text: str, rounds: int, tick: Callable[[], Any]) -> list[Row]:
    """Each round starts with an empty cache of words."""
    megabytes = len(text.encode()) / 1e6
    word = "".join(random.Random(0).choices("abcdefghijklmnopqrstuvwxyz", k=1_000_000))
    cold, splits, back, long = [], [], [], []
    for _ in range(rounds):
        encoder = get_encoder(folder.name, folder.parent)
        splits.append(megabytes / seconds(partial(encoder.pieces.findall, text)))
        start = time.perf_counter()
        ids = encoder.encode(text)
        cold.append(megabytes / (time.perf_counter() - start))
        back.append(megabytes / seconds(partial(encoder.decode, ids)))
        long.append(seconds(partial(encoder.encode, word)))
        tick()
    shares = [a / b for a, b in zip(cold, splits)]
    return [
        summary("tokenizer, cold", cold, "MB/s", shares, "splitting by regex"),
        summary("detokenizer", back, "MB/s"),
        summary("one word of 1,000,000 letters", long, "s"),
    ]


# ------------------------------------------------------------------------------------------------------------ output


def table(rows: list[Row]) -> str:
    lines = []
    for row in rows:
        share = f"{row['share']:6.1%} of {row['limit']}" if "share" in row else ""
        spread = f"({row['low']:.4g} to {row['high']:.4g})"
        lines.append(f"{row['name']:32} {row['median']:9.4g} {row['unit']:9} {spread:22} {share}".rstrip())
    return "\n".join(lines)


def bench(folder: Path, text: str, rounds: int) -> list[Row]:
    """All rows of the table for a model's folder."""
    from tqdm import tqdm

    hparams, params = load_hparams_and_params(folder)
    with tqdm(total=6 + rounds + 1 + rounds, desc="measuring", unit="step") as bar:
        rows = measure_command(folder, rounds, bar.update)
        rows += measure_model(params, hparams["n_head"], rounds, bar.update)
        return rows + measure_tokenizer(folder, text, rounds, bar.update)


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = Parser(
        prog="picogpt bench",
        description="Measure speed and memory against this machine's own limits. Close other programs first.",
        epilog="examples:\n  python -m picogpt bench --model_size tiny\n  python -m picogpt bench --shape 124M",
    )
    add = parser.add_argument
    add(
        "--model_size",
        default="124M",
        help="124M, 355M, 774M, 1558M or a folder of --models_dir (default: %(default)s)",
    )
    add("--models_dir", default="models", help="(default: %(default)s)")
    add("--shape", choices=SIZES, help="instead: random weights of this shape, in a temporary folder")
    add("--text", type=Path, metavar="FILE", help="what to tokenize (default: the documentation inside Python)")
    add("--rounds", type=number(1, kind=int), default=5, metavar="N", help="(default: %(default)s)")
    add("--json", type=Path, metavar="FILE", help="write the figures, too")
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> int:
    args = parse_args(argv)
    text = read_text(args.text) if args.text else english()
    if args.json and not args.json.absolute().parent.is_dir():
        raise FileNotFoundError(f"{args.json.parent} is no folder to write {args.json.name} to")
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary) / str(args.shape)
        if args.shape:
            assert args.shape in SHAPES
            folder.mkdir()
            tokenizer = Path(args.models_dir) / args.shape
            there = tokenizer if (tokenizer / "encoder.json").exists() else None
            write_random_model(folder, hparams_of(args.shape), 0, there)
        else:
            folder = provide(args.model_size, args.models_dir)
        rows = bench(folder, text, args.rounds)
    print(f"{os.cpu_count()} processors, Python {sys.version.split()[0]}, NumPy {np.__version__}, {args.rounds} rounds")
    print(table(rows))
    if args.json:
        written = args.json.with_name(args.json.name + ".partial")
        written.write_text(json.dumps(rows, indent=2) + "\n", encoding="utf-8")
        os.replace(written, args.json)
    return 0
