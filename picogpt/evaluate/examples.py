"""The parts that tasks made of separate examples share: reading lines, and contexts that fit into the model."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from picogpt.command_line import UsageError, read_text
from picogpt.scoring.reading import numbered_lines
from picogpt.scoring.windows import Window
from picogpt.scoring.work import Model


def read_lines(data: Path) -> list[tuple[str, str]]:
    """Return the place and the text of each line of a file that is not blank. Raises UsageError if there is none."""
    lines = numbered_lines(str(data), read_text(data))
    if not lines:
        raise UsageError(f"{data} is empty")
    return lines


def readable(model: Model, args: argparse.Namespace) -> int:
    """Return how many tokens the model reads at most: --max_context, or else all of its n_ctx positions.

    Raises UsageError if --max_context is larger than n_ctx.
    """
    n_ctx = model.hparams["n_ctx"]
    if args.max_context is not None and args.max_context > n_ctx:
        raise UsageError(f"--max_context {args.max_context} is more than the model's n_ctx = {n_ctx}")
    return args.max_context or n_ctx


def window_of(context: list[int], targets: list[int], n_readable: int, excluded: Sequence[int] = ()) -> Window:
    """Return a window that scores the targets after as much of the end of the context as the model can read.

    Raises ValueError if there are no targets, no context, or more targets than the model can read.
    """
    if not context or not targets:
        raise ValueError(f"there is no {'token to score' if context else 'text before the token to score'}")
    if len(targets) > n_readable:
        raise ValueError(f"{len(targets)} tokens are to be scored, but the model reads {n_readable} at most")
    return Window(np.array((context + targets)[-(n_readable + 1) :], np.intp), len(targets), excluded)
