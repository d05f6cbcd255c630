"""List the models that are there, and those that can be downloaded.

python -m picogpt models
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Iterator
from pathlib import Path

import utils
from picogpt.command_line import Parser, visible
from picogpt.options import add_models_dir
from picogpt.threads import weights_size
from utils import SIZES, expected_shapes, load_hparams

HEADER = f"{'model':20} {'n_layer':>7} {'n_embd':>6} {'n_head':>6} {'n_ctx':>5} {'n_vocab':>7} {'size':>8}  where"


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """Read the options; --help lists them."""
    parser = Parser(
        prog="python -m picogpt models",
        description="List the models in --models_dir, and those that can be downloaded: their shapes, sizes and paths.",
        epilog="examples:\n  python -m picogpt models\n  python -m picogpt models --models_dir ~/models",
    )
    add_models_dir(parser)
    return parser.parse_args(argv)


def folders(models_dir: str) -> Iterator[Path]:
    """Yield the folders of models: in models_dir in the current folder, then in that beside utils.py."""
    places = dict.fromkeys((Path(models_dir).absolute(), Path(utils.__file__).parent.absolute() / models_dir))
    for place in places:
        for folder in sorted(place.glob("*/")):
            if weights_size(folder) and any((folder / name).exists() for name in ("hparams.json", "config.json")):
                yield folder


def row(name: str, hparams: dict[str, int], n_bytes: float, where: str) -> str:
    """Return a row of the table. n_bytes is the size of the weights' files."""
    numbers = (hparams[name] for name in ("n_layer", "n_embd", "n_head", "n_ctx", "n_vocab"))
    shape = " ".join(f"{number:>{width}}" for number, width in zip(numbers, (7, 6, 6, 5, 7)))
    return f"{visible(name):20} {shape} {n_bytes / 1e6:>5,.0f} MB  {visible(where)}"


def main(argv: list[str] | None = None) -> int:
    """Print a row for each model that is there, and for each that can be downloaded."""
    args = parse_args(argv)
    found = list(folders(args.models_dir))
    print(HEADER)
    for folder in found:
        try:
            reader = utils.foreign(folder)
            hparams = reader.read_config(folder / "config.json") if reader else load_hparams(folder / "hparams.json")
        except (OSError, ValueError) as error:
            print(f"{visible(folder.name):20} {visible(str(error))}")
            continue
        print(row(folder.name, hparams, weights_size(folder), str(folder)))
    for size, hparams in SIZES.items():
        if size not in [folder.name for folder in found]:
            n_bytes = 4 * sum(map(math.prod, expected_shapes(hparams).values()))
            print(row(size, hparams, n_bytes, "can be downloaded"))
    return 0
