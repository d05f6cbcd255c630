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
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from picogpt.command_line import Parser, UsageError, check_memory, number, read_prompt, show
from picogpt.files import new_file
from picogpt.options import add_force, add_model_options, add_prompt, prompt_ids
from picogpt.tracing.against import Comparison
from picogpt.tracing.dump import Dump, opened, other_text
from picogpt.tracing.formats import Text
from picogpt.tracing.names import contents, joined, table
from picogpt.tracing.passes import Pass, check_lengths, memory_of, plan, recorded, shapes_of
from utils import HPARAMS, ensure_downloaded, load_encoder, load_hparams_and_params

if TYPE_CHECKING:
    from picogpt.typing.shapes import Params

Array = np.ndarray[Any, np.dtype[Any]]


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
  python -m picogpt trace --against gpt2_124M_debug_state.bin
  python -m picogpt trace "Not all heroes wear" --decode 3 --out steps.npz

In Python: with np.load("activations.npz") as file: file["h0/attn/probs"];
file["contents"] is the table, a structured array with the fields name, shape,
dtype and meaning, in the order of computation. file["contents.json"] holds the
same table, the prompt and its ids as a JSON text, for other languages.

Names begin with past/ in the pass over the first --n_past ids, with step1/ in
the first step of --decode, and so on. mine.npz needs only some of the arrays.
They are float32 or float64, in our shapes or with a batch axis of 1 before
them; masked scores may be any number below -1000. The names may be those of
transformers or TransformerLens. A value differs if it is more than 10 times
its own float32 rounding away from a float64 pass. NaN always differs.
docs/porting.md leads through a port.

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
    add_prompt(parser, unless="; with --against, it may be left out, and the file's own ids are read")
    parser.add_argument("--out", type=Path, metavar="FILE.npz", help="the file to write")
    against = "another implementation's file to compare with: NPZ, or llm.c's debug_state.bin"
    parser.add_argument("--against", type=Path, metavar="FILE", help=against)
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
    if args.prompt is None and (args.out or not args.against):
        parser.error("the PROMPT is missing: only --against without --out can take the ids from the file")
    return args


def main(argv: list[str] | None = None) -> int:
    args = parse_args(argv)
    prompt = None if args.prompt is None else read_prompt(args.prompt)
    with contextlib.ExitStack() as stack:
        dump = stack.enter_context(opened(args.against)) if args.against else None
        file = stack.enter_context(new_file(args.out, args.force)) if args.out else None
        writer = Writer(stack.enter_context(zipfile.ZipFile(file, "w"))) if file else None
        folder = ensure_downloaded(args.model_size, args.models_dir)
        hparams, params = load_hparams_and_params(folder)
        if dump and prompt is None:
            ids = dump.text_ids(params)
        else:
            ids = np.array(prompt_ids(load_encoder(folder), prompt or "", hparams["n_ctx"]))
        passes = planned(args, ids, hparams, np.asarray(params["wte"]))
        about = {"model": args.model_size, "hparams": hparams, "prompt": prompt, "ids": ids.tolist()}
        has_other_ids, comparison = begin(dump, about, params, passes) if dump else (False, None)
        is_finite = run(recorded(ids, params, hparams["n_head"], passes), passes, writer, comparison)
        if writer:
            writer.finish(about)
        comparison = comparison and comparison.best()
    if writer:
        report(args, hparams, writer)
    if comparison:
        for line in comparison.lines():
            show(line)
    if not is_finite:  # the file shows where this begins
        raise FloatingPointError("the logits are not finite: the weights are damaged or too large")
    return int(has_other_ids or bool(comparison and comparison.first))


def planned(args: argparse.Namespace, ids: Array, hparams: Mapping[str, int], wte: Array) -> list[Pass]:
    """Return the passes over these ids. Raises UsageError if they don't fit into the context or the memory."""
    n_texts = math.prod(ids.shape[:-1])
    if n_texts > 1 and (args.n_past or args.decode):
        raise UsageError(f"{args.against} has {n_texts} texts, but --n_past and --decode take one")
    check_lengths(ids.shape[-1], args.n_past, args.decode, hparams["n_ctx"])
    passes = plan(ids.shape[-1], args.n_past, args.decode)
    n_bytes = n_texts * memory_of(passes, hparams, wte.itemsize + 20 * bool(args.against))  # + 3 float32, float64
    check_memory("the trace", n_bytes + 36 * wte.size * bool(args.against), "a shorter prompt takes less")
    return passes


def begin(dump: Dump, about: dict[str, Any], params: Params, passes: list[Pass]) -> tuple[bool, Comparison | None]:
    """Print how the dump's text differs. Return whether its ids do, and the comparison to make if they don't."""
    ids, hparams = np.array(about["ids"]), about["hparams"]
    lines, has_other_ids = other_text(dump, about["model"], about["prompt"], about["ids"])
    comparison = None
    if not has_other_ids:
        shapes = {name: (*ids.shape[:-1], *shape) for name, shape in shapes_of(passes, hparams).items()}
        main_pass = next(one for one in passes if not one.prefix)
        text = Text(params, ids[..., main_pass.n_past :], main_pass.n_past)
        comparison = Comparison(dump, shapes, text, hparams["n_head"], passes)
    for line in lines:
        show(line)
    return has_other_ids, comparison


def run(
    found: Iterable[Mapping[str, Array]], passes: list[Pass], writer: Writer | None, comparison: Comparison | None
) -> bool:
    """Write and compare the values of all passes, with a progress bar. Return whether all logits are finite."""
    from tqdm import tqdm

    is_finite, is_quiet = True, None if len(passes) > 1 else True
    values_of = tqdm(found, "tracing", len(passes), unit="pass", leave=False, disable=is_quiet)
    for one, values in zip(passes, values_of):
        is_finite &= bool(np.isfinite(values[f"{one.prefix}logits"]).all())
        if writer:
            writer.add(values)
        if comparison:
            comparison.add(one, values)
    return is_finite


def report(args: argparse.Namespace, hparams: dict[str, int], writer: Writer) -> None:
    """Print the model's sizes, the table of contents, and the size of the file."""
    show(f"{args.model_size}: " + ", ".join(f"{name} {hparams[name]}" for name in HPARAMS))
    print(table(joined(row for row in writer.rows if not re.match(r"step(?!1/)", row[0]))))
    if args.decode > 1:
        print(f"step2/{' … step' + str(args.decode) + '/' if args.decode > 2 else ''}: the same names as step1/")
    show(f"{args.out}: {len(writer.rows)} arrays, {args.out.stat().st_size:,} bytes")
