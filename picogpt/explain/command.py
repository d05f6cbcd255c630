"""python -m picogpt explain: show how a model reads a text, in the terminal, as pictures, and as a page.

    python -m picogpt explain "Alan Turing theorized that computers would one day" --html turing.html --png turing/

This module reads the options and opens the files, so that a mistake in either is reported before the model runs. The
numbers come from numbers.py. They are shown by terminal.py, plots.py and page.py.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import functools
import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import IO

from picogpt import options
from picogpt.command_line import Parser, UsageError, log, number, read_prompt
from picogpt.explain.figures import METADATA
from picogpt.explain.numbers import Inside, Settings, examine, positions
from picogpt.explain.page import layers_that_fit, page
from picogpt.explain.parts import add_part_options, check_part_options, replaced
from picogpt.explain.plots import FIGURES, save
from picogpt.explain.terminal import report, summary
from picogpt.files import new_file
from utils import load_encoder_hparams_and_params

# ---------------------------------------------------------------------------------------------------------- the files


def pictures(args: argparse.Namespace) -> list[Path]:
    """Return the paths of the pictures in all formats. One shows the change if parts of the model are replaced."""
    names = [name for name in FIGURES if name != "change" or args.without or args.patch]
    folders = {kind: getattr(args, kind) for kind in METADATA}
    return [folder / f"{name}.{kind}" for kind, folder in folders.items() if folder for name in names]


def remove_if_empty(folder: Path) -> None:
    with contextlib.suppress(OSError):
        folder.rmdir()


@contextlib.contextmanager
def outputs(args: argparse.Namespace) -> Iterator[dict[Path, IO[bytes]]]:
    """Open the page and the pictures before the model runs. They appear under their names when all are complete."""
    paths = pictures(args)
    with contextlib.ExitStack() as stack:
        if paths:
            options.require("matplotlib", purpose=f"for --{paths[0].suffix[1:]}")
            os.environ["MPLBACKEND"] = "agg"  # draws without a window; a backend set for notebooks may be missing here
        for folder in dict.fromkeys(path.parent for path in paths):
            if not folder.exists():  # before the page, which may go into the same folder
                folder.mkdir()
                stack.callback(remove_if_empty, folder)
        if args.html:
            paths.append(args.html)
        yield {path: stack.enter_context(new_file(path, args.force)) for path in paths}


def write(files: dict[Path, IO[bytes]], inside: Inside, args: argparse.Namespace) -> None:
    """Write the page and the pictures into the opened files. On a terminal, a line says which one is being made."""
    from tqdm import tqdm

    with tqdm(files.items(), desc="writing", leave=False, disable=None if files else True) as steps:
        for path, file in steps:
            steps.set_description("writing the page" if path == args.html else f"drawing {path.name}")
            if path != args.html:
                save(path.stem, inside, args.layer, args.head, file, args.tokens, path.suffix[1:])
                continue
            layers = layers_that_fit(inside, args.layer, args.tokens)
            if len(layers) < len(inside.attention):
                log(f"[{args.html} shows the attention of layer {args.layer} only: all would take too much room]")
            file.write(page(inside, None, args.layer, args.head, layers, args.tokens).encode())


# --------------------------------------------------------------------------------------------------- the command line


PART = re.compile(r"(-?\d+)?:(-?\d+)?")

EXAMPLES = """examples:
  python -m picogpt explain "Not all heroes wear capes." --html capes.html
  python -m picogpt explain "ROMEO:" --model_size tiny --layer 2 --head 4 \\
    --merges --png romeo/
  python -m picogpt explain - --top 10 --temperature 0.8 --top_k 40 \\
    < prompt.txt | less
  python -m picogpt explain "ROMEO: O" --model_size tiny --without 2.4,3.mlp
  python -m picogpt explain "ROMEO: O" --model_size tiny --patch 2.4 "JULIET: O"
  python -m picogpt explain - --tokens -20: --html end.html < prompt.txt

With --html, --png, --svg or --pdf, the numbers go to these files, and the
terminal shows a summary. --png writes attention.png (the chosen head),
heads.png (all heads of its layer), lens.png, probabilities.png and
residual.png. The sampling options show the probabilities that gpt2.py would
sample from with the same options.

With --without or --patch, all of this is about the changed model. The tables,
the page and one more picture, change.png, compare its predictions with those of
the whole model. 9.9@5 is head 9.9 at token 5 only, and 9.9@-1 at the last one."""


def part(text: str) -> slice:
    """Parse A:B, positions of tokens as in a slice of Python."""
    if not (found := PART.fullmatch(text)):
        raise argparse.ArgumentTypeError(f"{text!r} is not A:B, such as 0:20, 5: or -20:")
    return slice(*(int(x) if x else None for x in found.groups()))


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = Parser(
        prog="python -m picogpt explain",
        description="Show how a model reads a text: the probability of each token and the tokens that were more "
        "likely, the token that each layer predicts next (the logit lens), and where an attention head looks.",
        epilog=EXAMPLES,
    )
    add = parser.add_argument
    options.add_prompt(parser)
    add("--layer", type=number(0, kind=int), metavar="L", help="show the attention of this layer (default: the last)")
    add("--head", type=number(0, kind=int), default=0, metavar="H", help="show the attention of this head (default: 0)")
    add("--top", type=number(1, 50, kind=int), default=5, metavar="K", help="up to K tokens in each list (default: 5)")
    add("--tokens", type=part, metavar="A:B", help="show only the tokens A to B - 1; -20: shows the last 20")
    add("--merges", action="store_true", help="show the merges that build each token from single bytes")
    add("--html", type=Path, metavar="FILE.html", help="write a web page that works offline")
    add("--png", type=Path, metavar="FOLDER", help="write five pictures to this folder (needs matplotlib)")
    add("--svg", type=Path, metavar="FOLDER", help="write them as vector graphics, which web pages can show")
    add("--pdf", type=Path, metavar="FOLDER", help="write them as vector graphics for LaTeX and printing")
    add_part_options(parser)
    options.add_force(parser)
    options.add_model_options(parser)
    options.add_sampling_options(parser)
    numbers = parser._negative_number_matcher.pattern  # what looks like these is no option but the value of one
    parser._negative_number_matcher = re.compile(f"{numbers}|{PART.pattern}$")  # so that --tokens -20: works
    args = parser.parse_args(argv)
    check_part_options(parser, args)
    return args


def check_layer_and_head(args: argparse.Namespace, hparams: dict[str, int]) -> None:
    """Choose the last layer if none is given. Raise UsageError for a layer or head that the model does not have."""
    if args.layer is None:
        args.layer = hparams["n_layer"] - 1
    for name in ("layer", "head"):
        value, n = getattr(args, name), hparams[f"n_{name}"]
        if value >= n:
            raise UsageError(f"--{name} {value}: {args.model_size} has {name}s 0 to {n - 1}")


def look(args: argparse.Namespace) -> Inside:
    """Load the model, check the options that depend on it, and run it; a second time if parts of it are replaced."""
    prompt = read_prompt(args.prompt)
    encoder, hparams, params = load_encoder_hparams_and_params(args.model_size, args.models_dir)
    check_layer_and_head(args, hparams)
    ids = options.prompt_ids(encoder, prompt, hparams["n_ctx"])
    positions(args.tokens, len(ids))  # raises UsageError if these are no tokens of the prompt
    change = replaced(args, ids, encoder, hparams, params)
    settings = Settings(**options.sampling_settings(args))  # type: ignore[arg-type]
    seen = functools.partial(examine, ids, encoder, params, hparams["n_head"], args.top, settings)
    whole = seen(args.model_size)
    if change is None:
        return whole
    return dataclasses.replace(seen(f"{args.model_size} {change.label}", change.changes), whole=whole)


def main(argv: list[str] | None = None) -> int:
    args = parse_args(argv)
    with outputs(args) as files:
        inside = look(args)
        write(files, inside, args)
    show, tokens = summary if files else report, positions(args.tokens, len(inside.ids))
    for line in show(inside, tokens, args, shutil.get_terminal_size().columns, options.may_colour()):
        print(line)
    for path in files:
        print(f"{path}: {path.stat().st_size:,} bytes")
    return 0
