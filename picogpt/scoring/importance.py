"""Measure how much each part of a model matters: how many bits per token a text costs more without it."""

from __future__ import annotations

import argparse
import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from picogpt.command_line import log
from picogpt.files import new_file
from picogpt.scoring.results import finite
from picogpt.scoring.windows import Scores, Window, joined
from picogpt.scoring.work import Model, score_all, with_own_results
from picogpt.tracing.parts import Part, all_parts, changes, instead_of

WORDS = {"head": "head", "layer": "layer", "mlp": "MLP", "attn": "attention"}
WITH_NUMBERS = 12  # columns of a picture in which a number has room


class Importance(NamedTuple):
    """How much a part matters."""

    part: Part
    change: float  # bits per token that the texts cost more without it; below 0, the model is better without it
    error: float  # the standard error of this mean over the tokens, as if they were independent
    bits: float  # bits per token without it


def without_each(
    windows: Sequence[Window], whole: Sequence[Scores], seconds: float, model: Model, args: argparse.Namespace
) -> list[Importance]:
    """Score the windows once without each part of the kind that --without_each names. The most important come first.

    `whole` are the scores of the whole model, and `seconds` the time that they took, or 0 if it is not known. A bar on
    stderr counts the parts.
    """
    from tqdm import tqdm

    parts = all_parts(args.without_each, model.hparams["n_layer"], model.hparams["n_head"])
    if seconds:
        log(f"[scoring without each of {len(parts)} parts: about {duration(len(parts) * seconds)}]")
    texts = tqdm([window.ids[:-1] for window in windows], "means", unit="window", leave=False, disable=None)
    sources = instead_of(parts, args.instead, model.params, model.hparams["n_head"], texts)
    texts.close()
    log_probs = joined(whole).log_probs
    found = []
    for part in tqdm(parts, "without each", unit="part", leave=False, disable=None):
        own = with_own_results(args, str(part), args.instead)
        label = f" without {part} ({args.instead})"
        scores = score_all(windows, model, own, changes(([part], sources)), label)
        found.append(importance(part, log_probs, joined(scores).log_probs))
    return sorted(found, key=lambda one: -one.change)


def importance(part: Part, whole: Any, without: Any) -> Importance:
    """Compare the log-probabilities of the same tokens in the whole model and without a part. 2 x [n_tokens]"""
    change, n = (whole - without) / math.log(2), len(whole)
    error = float(change.std(ddof=1)) / math.sqrt(n) if n > 1 else math.nan
    return Importance(part, float(change.mean()), error, -float(without.mean()) / math.log(2))


def duration(seconds: float) -> str:
    """Say about how long something takes: duration(90) = "2 minutes" """
    n, unit = (seconds, "second") if seconds < 60 else (seconds / 60, "minute")
    return f"{math.ceil(n):,} {unit}{'s' * (math.ceil(n) != 1)}"


# ------------------------------------------------------------------------------------------------------------- results


def heading(args: argparse.Namespace) -> str:
    instead = "zero" if args.instead == "zero" else f"its {args.instead}"
    return f"bits per token without each {WORDS[args.without_each]} (replaced by {instead})"


def changes_table(found: Sequence[Importance], args: argparse.Namespace) -> Iterator[str]:
    """Yield the lines of a table."""
    yield f"{heading(args)}; the whole model has {found[0].bits - found[0].change:.4f}"
    yield f"{'change':>9} {'error':>9} {'bits/token':>10}  part"
    for part, change, error, bits in found:
        shown = "-" if math.isnan(error) else f"{error:.4f}"
        yield f"{change:>+9.4f} {shown:>9} {bits:>10.4f}  {part}"


def as_json(found: Sequence[Importance], args: argparse.Namespace) -> dict[str, Any]:
    """Return what --json writes, with all digits."""
    names = ("change", "standard error", "bits per token")
    parts = [{"part": str(one.part)} | finite(dict(zip(names, one[1:]))) for one in found]
    return {"kind": args.without_each, "instead": args.instead, "parts": parts}


def plot(found: Sequence[Importance], args: argparse.Namespace, path: Path, force: bool) -> None:
    """Draw the changes as a map: a row for each layer, and a column for each head; or a single row of layers."""
    from matplotlib.colors import FuncNorm
    from matplotlib.figure import Figure

    changes = grid(found)
    n_rows, n_columns = changes.shape
    figure = Figure((6.5, 1.9 + 0.36 * n_rows), layout="constrained")
    axes: Any = figure.subplots()
    largest = float(np.abs(changes).max()) or 1.0
    root = (lambda x: np.sign(x) * np.sqrt(np.abs(x)), lambda x: np.sign(x) * x * x)
    norm = FuncNorm(root, -largest, largest)  # so that small changes can be told from 0
    image = axes.imshow(changes, cmap="PuOr_r", norm=norm, aspect="auto")
    for (row, column), change in np.ndenumerate(changes) if n_columns <= WITH_NUMBERS else ():
        colour = "white" if abs(change) > 0.4 * largest else "black"
        axes.text(column, row, f"{round(change, 2) + 0.0:+.2f}", ha="center", va="center", color=colour, fontsize=8)
    of_heads = args.without_each == "head"
    axes.set_xlabel("head" if of_heads else "layer", fontsize=8)
    axes.set_xticks(range(0, n_columns, math.ceil(n_columns / 25)))
    axes.set_yticks(range(n_rows) if of_heads else [])
    if of_heads:
        axes.set_ylabel("layer", fontsize=8)
    axes.tick_params(labelsize=8)
    axes.set_title(f"{args.model_size}: change of the {heading(args)}", loc="left", fontsize=9, parse_math=False)
    ticks = [x * largest for x in (-1, -0.25, 0, 0.25, 1)]
    bar = figure.colorbar(image, ax=axes, location="bottom", ticks=ticks, format="{x:.2g}", shrink=0.7, aspect=40)
    bar.ax.tick_params(labelsize=8)
    bar.set_label("bits per token (above 0: the texts are harder to predict without it)", fontsize=8)
    with new_file(path, force) as file:
        figure.savefig(file, format="png", dpi=200)


def grid(found: Sequence[Importance]) -> Any:
    """Return the changes by layer and head, or as a single row if they are not about heads. -> [n_rows, n_columns]"""
    changes = [one.change for one in sorted(found, key=lambda one: (one.part.layer, one.part.which))]
    n_layer = 1 + max(one.part.layer for one in found)
    return np.array(changes).reshape(n_layer if isinstance(found[0].part.which, int) else 1, -1)
