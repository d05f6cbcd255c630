"""Check every part of the model and the tokenizer against other people's implementations of the same thing.

    python -m picogpt compare

Each line of the table compares one part with one library at one dtype. If a model's name follows the part's, the inputs
come from a forward pass of that model; otherwise they are made up. n is the number of cases, and "abs." and "rel." are
the largest absolute and relative differences among them. A relative difference is divided by the largest number in the
case's result. It must be within the limit, the tolerance: 1e-12 in float64 and 1e-4 in float32. Rounding errors are
smaller: at most 5e-14 and 3e-5 were measured. A wrong formula exceeds the tolerance by far on one of the inputs, at
least in float64; the tests plant such errors to prove it.
"""

from __future__ import annotations

import argparse
import importlib.util
import math
import sys
from collections.abc import Callable, Iterator
from functools import cache, partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

import gpt2
from encoder import Encoder
from picogpt.command_line import Parser
from picogpt.compare.cases import MADE_UP, Case, Cases, ModelCases, made_up_encoder, texts
from picogpt.compare.references import REFERENCES, TOKENIZERS
from picogpt.options import add_model_options
from picogpt.tolerance import TOLERANCE, difference
from utils import load_encoder_hparams_and_params

Array = np.ndarray[Any, np.dtype[Any]]
DTYPES = ("float32", "float64")


class Row(NamedTuple):
    """A line of the table."""

    part: str
    against: str
    dtype: str
    cases: int
    absolute: float
    relative: float
    tolerance: float
    verdict: str


# ------------------------------------------------------------------------------------------------------------- ours


def our_attention(q: Any, k: Any, v: Any, mask: Any) -> Any:
    """Call `gpt2.attention`, which adds its mask to the scores. A case's mask is True where a query may look."""
    added: Any = 0.0 if mask is None else np.where(mask, 0, -math.inf).astype(q.dtype)
    return gpt2.attention(q, k, v, added)


def our_cached(ids: Array, params: Any, n_head: int, ways: list[list[int]]) -> Any:
    """Compute the logits in every way that uses a cache, and return all their rows below each other.

    First come the rows of all ids: once for each way to feed them in pieces into a cache, and once for the last of
    these ways with a `gpt2.Context`. Then come only the last two rows, twice: from a context that held other ids
    after the first half, and from `gpt2.gpt2` with n_logits=2.
    """
    rows = []
    for pieces in ways:
        room: Any = gpt2.empty_cache(params, n_head, len(ids))
        room.fill(np.nan)  # a key that is read before it is written turns the result into NaN
        for start, stop in bounds(pieces):
            rows.append(gpt2.gpt2(ids[start:stop], **params, n_head=n_head, cache=room, n_past=start))
    context = gpt2.Context(params, n_head)
    others = np.concatenate([ids[: len(ids) // 2], len(params["wte"]) - 1 - ids])[: len(ids)]
    context.logits(others.tolist())
    back = context.logits(ids.tolist(), n_logits=min(2, len(ids)))
    rows += [context.logits(ids[:stop].tolist(), n_logits=stop - start) for start, stop in bounds(ways[-1])]
    rows.append(back)
    rows.append(gpt2.gpt2(ids, **params, n_head=n_head, n_logits=2))
    return np.concatenate(rows)


def bounds(lengths: list[int]) -> list[tuple[int, int]]:
    """Return where pieces of these lengths begin and end: bounds([3, 1]) = [(0, 3), (3, 4)]."""
    stops = np.cumsum(lengths).tolist()
    return list(zip([0, *stops], stops))


# Each function is looked up in gpt2 when it is called, so that the tests can replace it.
OURS: dict[str, Callable[..., Any]] = {
    "gelu": lambda x: gpt2.gelu(x),
    "softmax": lambda x: gpt2.softmax(x),
    "layer_norm": lambda x, g, b: gpt2.layer_norm(x, g, b),
    "linear": lambda x, w, b: gpt2.linear(x, w, b),
    "ffn": lambda x, c_fc, c_proj: gpt2.ffn(x, c_fc, c_proj),
    "attention": our_attention,
    "causal_attention": lambda q, k, v, mask: gpt2.causal_attention(q, k, v),
    "mha": lambda x, attn, n_head: gpt2.mha(x, **attn, n_head=n_head),
    "transformer_block": lambda x, block, n_head: gpt2.transformer_block(x, **block, n_head=n_head),
    "gpt2": lambda ids, params, n_head: gpt2.gpt2(ids, **params, n_head=n_head),
    "cached steps": our_cached,
    "sampling filters": lambda logits, ids, *settings: gpt2.token_probs(logits, ids, *settings),
}


# -------------------------------------------------------------------------------------------------------- measuring


def compared(name: str, part: str, against: str, dtype: str, cases: Callable[[], list[Case]]) -> Row:
    """Return one line of the table. If gpt2.py or the library raises an error, the verdict is FAIL with its message."""
    if not installed(against):
        return Row(name, against, dtype, 0, 0, 0, 0, "not installed")
    pairs = []
    try:
        for case in cases():
            with np.errstate(over="ignore", under="ignore"):
                ours, theirs = (np.asarray(side(*case)) for side in (OURS[part], REFERENCES[part][against]))
            pairs.append(difference(ours, theirs))
    except Exception as error:  # any error at all: the table goes on with the other lines
        return failed(name, against, dtype, error)
    absolute, relative = (max(column) for column in zip(*pairs))
    tolerance = TOLERANCE[str(ours.dtype)]  # the sampling filters compute in float64, whatever the logits are
    verdict = "pass" if relative <= tolerance else "FAIL"
    return Row(name, against, dtype, len(pairs), absolute, relative, tolerance, verdict)


def compared_tokenizer(name: str, against: str, encoder: Encoder) -> Row:
    """Return one line of the table. It counts the texts whose ids differ, or whose ids do not decode to the text."""
    if not installed(against):
        return Row(name, against, "ids", 0, 0, 0, 0, "not installed")
    merges, cases = list(encoder.ranks), texts()
    ours = Encoder(encoder.encoder, merges)  # a copy, whose cache of words is still empty
    try:
        theirs = TOKENIZERS[against](encoder, merges)
        encoded = [(text, ours.encode(text)) for text in cases]
        wrong = sum(ids != theirs(text) or ours.decode(ids) != text for text, ids in encoded)
    except Exception as error:  # any error at all, as above
        return failed(name, against, "ids", error)
    return Row(name, against, "ids", len(cases), wrong, wrong / len(cases), 0, "FAIL" if wrong else "pass")


def installed(library: str) -> bool:
    """Return whether a library can be imported. transformers needs PyTorch as well."""
    needed = ("torch", library) if library == "transformers" else (library,)
    return all(importlib.util.find_spec(name) for name in needed)


def failed(name: str, against: str, dtype: str, error: Exception) -> Row:
    message = " ".join(f"FAIL: {error}".split())[:90]
    return Row(name, against, dtype, 0, math.inf, math.inf, math.nan, message)


# --------------------------------------------------------------------------------------------------------- the tool


def compare(model: ModelCases | None, parts: list[str]) -> Iterator[Row]:
    """Yield the lines of the table for these parts: on made-up cases, and on those of the model if there is one."""
    from tqdm import tqdm

    sources = {"": MADE_UP} | ({f", {model.name}": model.by_part()} if model else {})
    encoders = {"": made_up_encoder()} | ({f", {model.name}": model.encoder} if model else {})
    work: list[Callable[[], Row]] = []
    for part in (part for part in OURS if part in parts):
        for source, by_part in sources.items():
            for dtype in DTYPES:
                cases = made_once(by_part[part], dtype)
                work += [partial(compared, part + source, part, lib, dtype, cases) for lib in REFERENCES[part]]
    if "tokenizer" in parts:
        for source, encoder in encoders.items():
            work += [partial(compared_tokenizer, f"tokenizer{source}", lib, encoder) for lib in TOKENIZERS]
    for row in tqdm(work, desc="comparing", unit="row", file=sys.stderr, disable=None):
        yield row()


def made_once(cases: Cases, dtype: str) -> Callable[[], list[Case]]:
    """Return a function that makes a part's cases when it is first called, and returns the same ones afterwards."""
    return cache(lambda: list(cases(dtype)))


HEADER = f"{'part':27} {'against':12} {'dtype':7} {'n':>3} {'abs.':>7} {'rel.':>7} {'limit':>6}"


def line(row: Row) -> str:
    """Format a row of the table in at most 80 columns, unless it ends with an error's message."""
    name = f"{row.part[:27]:27} {row.against:12} {row.dtype:7}"
    if row.verdict == "not installed":
        return f"{name} {'':12} not installed"
    return f"{name} {row.cases:3} {row.absolute:7.2g} {row.relative:7.2g} {row.tolerance:6.2g} {row.verdict}"


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parts = [*OURS, "tokenizer"]
    parser = Parser(
        prog="python -m picogpt compare",
        description="Check every part against other people's implementations. The exit status is 1 if a part differs.",
        epilog="examples:\n  python -m picogpt compare\n  python -m picogpt compare --model_size 124M\n"
        '  python -m picogpt compare --parts gelu "cached steps"',
    )
    add_model_options(parser, default="tiny")
    listed = f"the parts to check, of: {', '.join(parts)} (default: all)"
    parser.add_argument("--parts", nargs="+", choices=parts, metavar="PART", default=parts, help=listed)
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> int:
    args = parse_args(argv)
    encoder, hparams, params = load_encoder_hparams_and_params(args.model_size, args.models_dir)
    model = ModelCases(Path(args.model_size).name, encoder, params, hparams["n_head"])
    print("gpt2.py against other implementations of its parts; `score` compares models")
    print(HEADER)
    rows = []
    for row in compare(model, args.parts):
        rows.append(row)
        print(line(row), flush=True)
    count = {verdict: sum(r.verdict.startswith(verdict) for r in rows) for verdict in ("pass", "FAIL", "not installed")}
    print(", ".join(f"{n} {verdict}" for verdict, n in count.items()))
    return 1 if count["FAIL"] else 0
