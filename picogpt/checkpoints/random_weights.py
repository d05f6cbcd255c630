"""Write a model of one of OpenAI's four sizes with random weights, for tests and benchmarks without a network.

python -m picogpt random_weights 124M --out models/random-124M
"""

from __future__ import annotations

import argparse
from pathlib import Path

from picogpt.checkpoints.sizes import hparams_of
from picogpt.checkpoints.writing import write_random_model
from picogpt.files import new_folder
from picogpt.options import add_force
from utils import SIZES, Parser, number


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = Parser(
        prog="python -m picogpt random_weights",
        description="Write a model of one of OpenAI's four sizes with random weights. It needs TensorFlow.",
        epilog="examples:\n  python -m picogpt random_weights 124M --out models/random-124M",
    )
    add = parser.add_argument
    add("size", choices=SIZES)
    add("--out", type=Path, required=True, metavar="models/NAME", help="the folder to make")
    add_force(parser)
    tokenizer = "copy encoder.json and vocab.bpe from this folder (default: make up a vocabulary of the same size)"
    add("--tokenizer", type=Path, metavar="FOLDER", help=tokenizer)
    add("--seed", type=number(0, kind=int), default=0, help="for the random numbers (default: %(default)s)")
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> int:
    args = parse_args(argv)
    with new_folder(args.out, args.force) as folder:
        write_random_model(folder, hparams_of(args.size), args.seed, args.tokenizer)
    print(f"{args.out}: {args.size} with random weights")
    return 0
