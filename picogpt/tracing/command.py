"""Write every value of a forward pass to a file, or compare with the values of another implementation.

python -m picogpt trace "Not all heroes wear capes." --out activations.npz
python -m picogpt trace "Not all heroes wear capes." --against mine.npz

docs/trace.md describes the format of the file.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import math
import re
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

import gpt2
from picogpt.command_line import Parser, UsageError, check_memory, number, read_prompt, show
from picogpt.files import new_file
from picogpt.options import add_force, add_model_options, add_prompt, prompt_ids
from picogpt.tracing.against import Comparison, Dump, opened, other_text
from picogpt.tracing.names import contents, joined, meanings, shape_of, table
from picogpt.tracing.recorder import trace
from utils import HPARAMS, ensure_downloaded, load_encoder, load_hparams_and_params

if TYPE_CHECKING:
    from picogpt.typing.shapes import Params

Array = np.ndarray[Any, np.dtype[Any]]


class Pass(NamedTuple):
    """A forward pass over n_seq ids, after n_past others. Its values have names that begin with the prefix."""

    prefix: str
    n_past: int
    n_seq: int


def plan(n_prompt: int, n_past: int, n_decode: int) -> list[Pass]:
    """Return the passes to record: over the first n_past ids, over the rest of the prompt, and over each new id."""
    past = [Pass("past/", 0, n_past)] if n_past else []
    steps = [Pass(f"step{step + 1}/", n_prompt + step, 1) for step in range(n_decode)]
    return [*past, Pass("", n_past, n_prompt - n_past), *steps]


def check_lengths(n_prompt: int, n_past: int, n_decode: int, n_ctx: int) -> None:
    """Raise UsageError if the prompt is too short for n_past, or the context for all decoding steps."""
    if n_past >= n_prompt:
        raise UsageError(f"--n_past {n_past} leaves no id of the prompt to trace: it has {n_prompt}")
    if n_prompt + n_decode > n_ctx:
        raise UsageError(f"{n_prompt} ids and {n_decode} decoding steps, but the model's context is n_ctx = {n_ctx}")


def shapes_of(passes: Sequence[Pass], hparams: dict[str, int]) -> dict[str, tuple[int, ...]]:
    """Return the names and shapes of all values, in the order of computation."""
    sizes = hparams | {"d_head": hparams["n_embd"] // hparams["n_head"]}
    return {
        one.prefix + name: shape_of(name, sizes | {"n_seq": one.n_seq, "n_past": one.n_past, "n_logits": one.n_seq})
        for one in passes
        for name in meanings(hparams["n_layer"])
    }


def memory_of(passes: Sequence[Pass], hparams: dict[str, int], itemsize: int) -> int:
    """Return how many bytes the values take at most. A pass is kept until the next one has ended."""
    sizes = [itemsize * sum(map(math.prod, shapes_of([one], hparams).values())) for one in passes]
    return max(a + b for a, b in zip([0, *sizes], sizes))


def recorded(ids: Sequence[int], params: Params, n_head: int, passes: Sequence[Pass]) -> Iterator[dict[str, Array]]:
    """Run the passes, and yield the names and values of each. The ids after the prompt are the likeliest ones.

    Several passes share a cache. A single one has none, as when the model reads a whole text.
    """
    ids, last = list(ids), passes[-1]
    cache = gpt2.empty_cache(params, n_head, last.n_past + last.n_seq) if len(passes) > 1 else None
    for prefix, n_past, n_seq in passes:
        with trace() as t:
            gpt2.gpt2(ids[n_past : n_past + n_seq], **params, n_head=n_head, cache=cache, n_past=n_past)
        if n_past + n_seq == len(ids) < last.n_past + last.n_seq:
            ids.append(gpt2.greedy(gpt2.check_finite(t["logits"][-1]), ids))
        yield {prefix + name: value for name, value in t.items()}


class Writer:
    """An NPZ file in the making. Each pass is written at once, so that it need not stay in memory."""

    def __init__(self, archive: zipfile.ZipFile):
        self.archive = archive
        self.rows: list[tuple[str, str, str, str]] = []  # name, shape, dtype, meaning

    def add(self, values: Mapping[str, Array]) -> None:
        """Write these values."""
        for name, value in values.items():
            write_array(self.archive, name, value)
        self.rows += contents(values).tolist()

    def finish(self, about: Mapping[str, Any]) -> None:
        """Write the table of contents in both forms. The JSON text begins with `about`."""
        arrays = [
            {"name": name, "shape": json.loads(shape), "dtype": dtype, "meaning": meaning}
            for name, shape, dtype, meaning in self.rows
        ]
        text = json.dumps({**about, "arrays": arrays})
        write_array(self.archive, "contents", joined(self.rows))
        write_array(self.archive, "contents.json", np.frombuffer(text.encode("ascii"), np.uint8))


def write_array(archive: zipfile.ZipFile, name: str, array: Array) -> None:
    """Add an array to an NPZ file, row by row (in C's order), whatever its order in memory is."""
    with archive.open(f"{name}.npy", "w", force_zip64=True) as member:
        np.lib.format.write_array(member, np.ascontiguousarray(array), allow_pickle=False)


EPILOG = """examples:
  python -m picogpt trace "Not all heroes wear capes." --out activations.npz
  python -m picogpt trace - --out romeo.npz --model_size tiny < prompt.txt
  python -m picogpt trace "Not all heroes wear capes." --against mine.npz
  python -m picogpt trace "Not all heroes wear" --decode 3 --out steps.npz

In Python: with np.load("activations.npz") as file: file["h0/attn/probs"];
file["contents"] is the table, a structured array with the fields name, shape,
dtype and meaning, in the order of computation. file["contents.json"] holds the
same table, the prompt and its ids as a JSON text, for other languages.

Names begin with past/ in the pass over the first --n_past ids, with step1/ in
the first step of --decode, and so on. mine.npz needs only some of the arrays.
Each must have our shape and dtype; masked scores may be any number below
-1000. Two values agree within 1e-4 (float32) or 1e-12 (float64) of the largest
number of their array, as in compare. NaN differs from every number.

The exit status of --against is 0 if all values agree; 1 if a value or an id
differs, or if a file can't be opened; and 2 if the files or options can't be
compared, for example because of a wrong shape."""


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = Parser(
        prog="python -m picogpt trace",
        description="Write all intermediate values of a forward pass to an NPZ file, and print a table of them. Or "
        "find the first value that differs in a file of another implementation; the exit status is then 1.",
        epilog=EPILOG,
    )
    whole = number(0, kind=int)
    add_prompt(parser)
    parser.add_argument("--out", type=Path, metavar="FILE.npz", help="the file to write")
    parser.add_argument(
        "--against", type=Path, metavar="FILE.npz", help="another implementation's file to compare with"
    )
    n_past = "read the first N ids in a pass of their own, and keep their keys and values in a cache"
    parser.add_argument("--n_past", type=whole, default=0, metavar="N", help=n_past)
    parser.add_argument("--decode", type=whole, default=0, metavar="N", help="add N greedy steps that use the cache")
    add_force(parser)
    add_model_options(parser)
    args = parser.parse_args(argv)
    if not (args.out or args.against):
        parser.error("--out FILE.npz or --against FILE.npz is needed")
    if args.out and args.out.suffix != ".npz":
        parser.error(f"argument --out: {str(args.out)!r} does not end in .npz")
    return args


def main(argv: list[str] | None = None) -> int:
    from tqdm import tqdm

    args = parse_args(argv)
    prompt = read_prompt(args.prompt)
    with contextlib.ExitStack() as stack:
        dump = stack.enter_context(opened(args.against)) if args.against else None
        file = stack.enter_context(new_file(args.out, args.force)) if args.out else None
        writer = Writer(stack.enter_context(zipfile.ZipFile(file, "w"))) if file else None
        folder = ensure_downloaded(args.model_size, args.models_dir)
        hparams, params = load_hparams_and_params(folder)
        ids = prompt_ids(load_encoder(folder), prompt, hparams["n_ctx"])
        check_lengths(len(ids), args.n_past, args.decode, hparams["n_ctx"])
        passes = plan(len(ids), args.n_past, args.decode)
        dtype = params["wte"].dtype
        check_memory("the trace", memory_of(passes, hparams, dtype.itemsize), "a shorter prompt takes less")
        about = {"model": args.model_size, "hparams": hparams, "prompt": prompt, "ids": ids}
        has_other_ids, comparison = False, None
        if dump:
            has_other_ids, comparison = begin(dump, about, shapes_of(passes, hparams), dtype)
        found, is_quiet = recorded(ids, params, hparams["n_head"], passes), None if len(passes) > 1 else True
        is_finite = True
        for values in tqdm(found, "tracing", len(passes), unit="pass", leave=False, disable=is_quiet):
            is_finite &= all(np.isfinite(value).all() for name, value in values.items() if name.endswith("logits"))
            for user in (writer, comparison):
                if user:
                    user.add(values)
        if writer:
            writer.finish(about)
    if writer:
        report(args, hparams, writer)
    if comparison:
        for line in comparison.lines():
            show(line)
    if not is_finite:  # the file shows where this begins
        raise FloatingPointError("the logits are not finite: the weights are damaged or too large")
    return int(has_other_ids or bool(comparison and comparison.first))


def begin(
    dump: Dump, about: dict[str, Any], shapes: dict[str, tuple[int, ...]], dtype: np.dtype[Any]
) -> tuple[bool, Comparison | None]:
    """Print how the dump's text differs. Return whether its ids do, and the comparison to make if they don't."""
    lines, has_other_ids = other_text(dump, about["model"], about["prompt"], about["ids"])
    if not has_other_ids:
        dump.check(shapes, dtype)
    for line in lines:
        show(line)
    return has_other_ids, None if has_other_ids else Comparison(dump, shapes)


def report(args: argparse.Namespace, hparams: dict[str, int], writer: Writer) -> None:
    """Print the model's sizes, the table of contents, and the size of the file."""
    show(f"{args.model_size}: " + ", ".join(f"{name} {hparams[name]}" for name in HPARAMS))
    print(table(joined(row for row in writer.rows if not re.match(r"step(?!1/)", row[0]))))
    if args.decode > 1:
        print(f"step2/{' … step' + str(args.decode) + '/' if args.decode > 2 else ''}: the same names as step1/")
    show(f"{args.out}: {len(writer.rows)} arrays, {args.out.stat().st_size:,} bytes")
