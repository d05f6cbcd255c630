"""Write a model of one of OpenAI's four sizes with random weights: for tests and benchmarks where no network is.

python -m picogpt random_weights 124M --out models/random-124M
"""

from __future__ import annotations

import argparse
import itertools
import shutil
from pathlib import Path

from encoder import BYTE_TO_CHAR
from picogpt.checkpoints.writing import initial_params, write_checkpoint, write_tokenizer
from picogpt.files import new_folder
from utils import SIZES, TOKENIZER_FILES, Parser, number

SHAPES = {"124M": (768, 12, 12), "355M": (1024, 16, 24), "774M": (1280, 20, 36), "1558M": (1600, 25, 48)}


def hparams_of(size: str) -> dict[str, int]:
    """The hyper-parameters of one of OpenAI's sizes."""
    n_embd, n_head, n_layer = SHAPES[size]
    return {"n_vocab": 50257, "n_ctx": 1024, "n_embd": n_embd, "n_head": n_head, "n_layer": n_layer}


def made_up_merges(n: int) -> list[str]:
    """n merges of two bytes each: a vocabulary of the right size where OpenAI's is not at hand."""
    return [f"{a} {b}" for a, b in itertools.islice(itertools.product(BYTE_TO_CHAR.values(), repeat=2), n)]


def write_random_model(folder: Path, hparams: dict[str, int], seed: int, tokenizer: Path | None = None) -> None:
    """All seven files of a model with random weights in a folder that is there."""
    if tokenizer is None:
        write_tokenizer(folder, made_up_merges(hparams["n_vocab"] - 257))
    else:
        for name in TOKENIZER_FILES:
            shutil.copyfile(tokenizer / name, folder / name)
    write_checkpoint(folder, hparams, initial_params(hparams, seed))


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = Parser(
        prog="picogpt random_weights",
        description="Write a model of one of the four sizes with random weights.",
        epilog="examples:\n  python -m picogpt random_weights 124M --out models/random-124M",
    )
    parser.add_argument("size", choices=SIZES)
    parser.add_argument("--out", type=Path, required=True, metavar="models/NAME", help="the folder; must not exist yet")
    parser.add_argument("--tokenizer", type=Path, metavar="FOLDER", help="whose encoder.json and vocab.bpe (made up)")
    parser.add_argument("--seed", type=number(0, kind=int), default=0, help="(default: %(default)s)")
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> int:
    args = parse_args(argv)
    with new_folder(args.out) as folder:
        write_random_model(folder, hparams_of(args.size), args.seed, args.tokenizer)
    print(f"{args.out}: {args.size} with random weights")
    return 0
