"""Train a GPT-2 from a text file: the command line.

python -m picogpt train TEXT --out models/NAME
python -m picogpt train TEXT --out models/NAME --from MODEL
"""

from __future__ import annotations

import argparse
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from encoder import END_OF_TEXT, Encoder
from picogpt.checkpoints.writing import initial_params, write_checkpoint
from picogpt.command_line import Parser, UsageError, number, read_text, show
from picogpt.files import file_to_write, folder_to_make, new_folder
from picogpt.options import add_force, add_meta, add_models_dir, add_out, require
from picogpt.train.loop import Run
from picogpt.train.report import life_signs, log_interrupted, log_next_steps, plot
from picogpt.train.text import split
from picogpt.train.work import UNIT, History, best_of, is_saved, prepare, remove, work_folder, write_history
from utils import HPARAMS, TOKENIZER_FILES, load_encoder, load_encoder_hparams_and_params

WHOLE, WHOLE_OR_0 = number(1, kind=int), number(0, kind=int)
NUMBERS: dict[str, tuple[float, Callable[[str], float], str, str]] = {  # option: default, parser, metavar, help
    "held_out": (0.1, number(0.001, 0.9), "P", "the share of the text, at its end, that is held out"),
    "n_vocab": (512, WHOLE, "N", "tokens in the vocabulary"),
    "n_ctx": (256, WHOLE, "N", "tokens in the context"),
    "n_embd": (128, WHOLE, "N", "width of the model"),
    "n_head": (4, WHOLE, "N", "attention heads in each layer"),
    "n_layer": (6, WHOLE, "N", "layers"),
    "steps": (4000, WHOLE, "N", "training steps"),
    "batch_size": (32, WHOLE, "N", "windows of n_ctx tokens in each step"),
    "lr": (2e-3, number(0, open_low=True), "X", "the peak learning rate"),
    "warmup": (100, WHOLE_OR_0, "N", "steps in which the learning rate rises to --lr"),
    "weight_decay": (0.1, number(0), "X", "AdamW's weight decay"),
    "dropout": (0.1, number(0, 0.9), "P", "the dropout probability"),
    "average": (0.99, number(0, 0.9999), "X", "decay of the exponential moving average of the weights, in each step"),
    "eval_every": (100, WHOLE, "N", "steps between two evaluations on the held-out text"),
    "patience": (10, WHOLE_OR_0, "N", "stop after N evaluations without a lower loss; 0: never stop early"),
    "seed": (0, number(0, 2**63 - 1, kind=int), "S", "a number: the same seed gives the same model"),
}
QUICK: dict[str, float] = {  # the defaults that differ with --quick
    "n_vocab": 1024,
    "n_ctx": 64,
    "n_layer": 3,
    "steps": 1000,
    "batch_size": 16,
    "lr": 4e-3,
    "warmup": 50,
    "dropout": 0.0,
    "average": 0.98,
}
FINE_TUNING: dict[str, float] = {"steps": 1000, "batch_size": 1, "lr": 1e-4}  # the defaults that differ with --from
EPILOG = """examples:
  python -m picogpt train tinyshakespeare.txt --out models/romeo --quick
  python -m picogpt train shakespeare.txt --out models/shakespeare \\
    --plot loss.png
  python -m picogpt train shakespeare.txt --out models/shakespeare \\
    --resume    (after Ctrl-C)
  python -m picogpt train letters.txt --out models/letters --from 124M

Any text file in UTF-8 serves, best with 1 MB or more. The usual first one is
tinyshakespeare, 1.1 MB of Shakespeare's plays, which are in the public domain.
Andrej Karpathy collected it: it is the file data/tinyshakespeare/input.txt of
his repository github.com/karpathy/char-rnn."""


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = Parser(
        prog="python -m picogpt train",
        description="Train a GPT-2 from a text file, or fine-tune a model on it, and write it as a model folder.",
        epilog=EPILOG,
    )
    add, fine_tune = parser.add_argument, "fine-tune this model, with its tokenizer and its shape: a name as"
    add("text", type=Path, help="a UTF-8 text file")
    add_out(parser)
    add_force(parser)
    add_meta(parser)
    add("--resume", action="store_true", help="continue an interrupted run that had the same settings")
    add("--quick", action="store_true", help="a small shape and few steps: two minutes on two cores")
    add("--plot", type=Path, metavar="FILE.png", help="draw the losses into this file (needs matplotlib)")
    add("--from", dest="source", metavar="MODEL", help=f"{fine_tune} --model_size of other tools takes")
    add_models_dir(parser)
    for name, (default, parse, metavar, text) in NUMBERS.items():
        others = f"; with --quick: {QUICK[name]}" if name in QUICK else ""
        others += f"; with --from: {FINE_TUNING[name]}" if name in FINE_TUNING else ""
        others += "; with --from: the model's" if name in HPARAMS else ""
        add(f"--{name}", type=parse, metavar=metavar, help=f"{text} (default: {default}{others})")
    args = parser.parse_args(argv)
    if args.source is not None:
        for name in ("quick", *HPARAMS):
            if getattr(args, name):
                parser.error(f"argument --{name}: not with --from, which takes the shape of the model")
    set_defaults(args)
    if args.source is None and args.n_embd % args.n_head:
        parser.error(f"argument --n_head: n_embd = {args.n_embd} is not a multiple of {args.n_head}")
    if args.source is None and args.n_vocab < 257:
        parser.error(f"argument --n_vocab: {args.n_vocab} is less than the 256 bytes and {END_OF_TEXT}")
    return args


def set_defaults(args: argparse.Namespace) -> None:
    """Give the numbers that were not asked for their defaults. With --from, the shape stays open."""
    defaults = {name: default for name, (default, *_) in NUMBERS.items()} | (QUICK if args.quick else {})
    if args.source is not None:
        defaults |= FINE_TUNING
        defaults = {name: default for name, default in defaults.items() if name not in HPARAMS}
    for name, default in defaults.items():
        if getattr(args, name) is None:
            setattr(args, name, default)


def check_paths(args: argparse.Namespace) -> None:
    """Raise UsageError or OSError before the training begins if the outputs can't be made."""
    if args.plot and args.plot.suffix != ".png":
        raise UsageError(f"--plot {args.plot} does not end in .png")
    folder_to_make(args.out, args.force)
    if args.plot:
        file_to_write(args.plot, args.force)


def check_packages(args: argparse.Namespace) -> None:
    """Raise OSError for the packages that the options need and that are not installed."""
    optional = {"tokenizers": not args.source, "matplotlib": args.plot, "tensorflow": args.meta}
    require("jax", "optax", *(name for name, needed in optional.items() if needed))


def first_params(args: argparse.Namespace) -> tuple[Any, Encoder | None]:
    """Return the parameters to begin with, and their tokenizer: those of the model --from, or random ones and None.

    With --from, the shape of the model becomes the shape in `args`. Raises OSError or ValueError if the model's files
    can't be read.
    """
    if args.source is None:
        return initial_params(hparams_of(args), args.seed), None
    encoder, hparams, params = load_encoder_hparams_and_params(args.source, args.models_dir)
    vars(args).update({name: hparams[name] for name in HPARAMS})
    return params, encoder


def hparams_of(args: argparse.Namespace) -> dict[str, int]:
    return {name: getattr(args, name) for name in HPARAMS}


@contextmanager
def removed_unless_saved(work: Path) -> Iterator[None]:
    """Remove the work folder if the `with` block fails before the first evaluation: there is nothing to resume."""
    try:
        yield
    finally:
        if not is_saved(work):
            remove(work)


def write_model(args: argparse.Namespace, params: Any, history: History) -> None:
    """Write the model's folder: OpenAI's files, and history.json."""
    with new_folder(args.out, args.force) as folder:
        for name in TOKENIZER_FILES:
            shutil.copyfile(work_folder(args) / name, folder / name)
        write_history(args, history, folder)
        write_checkpoint(folder, hparams_of(args), params, args.meta)


def main(argv: list[str] | None = None) -> int:
    args = parse_args(argv)
    check_paths(args)
    check_packages(args)
    params, tokenizer = first_params(args)
    texts, work = split(read_text(args.text), args.held_out), work_folder(args)
    run = Run(args, params)
    try:
        with life_signs(lambda: run.doing):
            prepare(args, texts, params, tokenizer)
            with removed_unless_saved(work):
                best_params = run.train(texts)
        write_model(args, best_params, run.history)
    except KeyboardInterrupt:
        log_interrupted(args, run.history)
        return 130
    if args.plot:
        plot(run.history, args.plot, args.force)
    show_result(args, run)
    remove(work)
    log_next_steps(args.out, texts[0], load_encoder(args.out), args.n_ctx)
    return 0


def show_result(args: argparse.Namespace, run: Run) -> None:
    """Print the lowest held-out loss, and how long the run took."""
    best, last = best_of(run.history), run.history[-1]
    loss, nats = best["held_out"], run.parts[1].nats_per_char(best["held_out"])
    show(f"{args.out}: held-out loss {loss:.4f} {UNIT} ({nats:.4f} nats per character) at step {best['step']:.0f}")
    print(f"{last['step']:.0f} steps in {last['seconds']:.0f} s")
