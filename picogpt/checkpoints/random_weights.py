"""Write a model of one of OpenAI's four sizes with random weights, for tests and benchmarks without a network.

python -m picogpt random_weights --shape 124M --out models/random-124M
"""

from __future__ import annotations

import argparse
from pathlib import Path

from picogpt.checkpoints.sizes import hparams_of
from picogpt.checkpoints.writing import require_tensorflow, write_random_model
from picogpt.command_line import Parser, number
from picogpt.files import new_folder
from picogpt.options import add_force, add_out, find_folder
from utils import SIZES


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = Parser(
        prog="python -m picogpt random_weights",
        description="Write a model of one of OpenAI's four sizes with random weights. It needs TensorFlow.",
        epilog="examples:\n  python -m picogpt random_weights --shape 124M --out models/random-124M",
    )
    add = parser.add_argument
    add("size", nargs="?", choices=SIZES, help=argparse.SUPPRESS)  # an older name of --shape
    add("--shape", choices=SIZES, help="random weights of this size (required)")
    add_out(parser)
    add_force(parser)
    tokenizer = "copy encoder.json and vocab.bpe from this folder (default: make up a vocabulary of the same size)"
    add("--tokenizer", type=Path, metavar="FOLDER", help=tokenizer)
    seed = "a number: the same seed gives the same weights (default: %(default)s)"
    add("--seed", type=number(0, kind=int), default=0, metavar="S", help=seed)
    args = parser.parse_args(argv)
    if (args.shape is None) == (args.size is None):
        parser.error("--shape names one size")
    args.shape = args.shape or args.size
    return args


def main(argv: list[str] | None = None) -> int:
    args = parse_args(argv)
    require_tensorflow()
    tokenizer = find_folder(args.tokenizer) if args.tokenizer else None
    with new_folder(args.out, args.force) as folder:
        write_random_model(folder, hparams_of(args.shape), args.seed, tokenizer)
    print(f"{args.out}: {args.shape} with random weights")
    return 0
