"""Write a model of one of OpenAI's four sizes with random weights, for tests and benchmarks without a network.

python -m picogpt random_weights --shape 124M --out models/random-124M
"""

from __future__ import annotations

import argparse

from picogpt.checkpoints.writing import write_graph, write_random_model
from picogpt.command_line import Parser, number, show
from picogpt.files import new_folder
from picogpt.options import add_force, add_meta, add_out, require
from utils import SIZES, TOKENIZER_FILES, ensure_downloaded, load_encoder


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = Parser(
        prog="python -m picogpt random_weights",
        description="Write a model of one of OpenAI's four sizes with random weights.",
        epilog="examples:\n  python -m picogpt random_weights --shape 124M --out models/random-124M",
    )
    add = parser.add_argument
    add("--shape", required=True, choices=SIZES, help="random weights of this size")
    add_out(parser)
    add_force(parser)
    tokenizer = "take the tokenizer of this model, a name or a folder (default: make up a vocabulary of the same size)"
    add("--tokenizer", metavar="NAME", help=tokenizer)
    seed = "a number: the same seed gives the same weights (default: %(default)s)"
    add("--seed", type=number(0, kind=int), default=0, metavar="S", help=seed)
    add_meta(parser)
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> int:
    args = parse_args(argv)
    if args.meta:
        require("tensorflow", purpose="for --meta")
    tokenizer = load_encoder(ensure_downloaded(args.tokenizer, files=TOKENIZER_FILES)) if args.tokenizer else None
    with new_folder(args.out, args.force) as folder:
        write_random_model(folder, SIZES[args.shape], args.seed, tokenizer)
        if args.meta:
            write_graph(folder / "model.ckpt")
    show(f"{args.out}: {args.shape} with random weights")
    return 0
