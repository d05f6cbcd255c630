"""What other projects report for OpenAI's models, and how uncertain a figure is because the data set is finite."""

from __future__ import annotations

import argparse
import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from picogpt.scoring.windows import Scores


class Report(NamedTuple):
    """Figures that a source reports for one of OpenAI's models, each with its standard error if that is given.

    They are those of a protocol, with this --stride (None: the protocol's own) and no other option, on a whole data
    file whose name has `file` in it.
    """

    model: str
    task: str
    variant: str
    protocol: str
    figures: dict[str, tuple[float, ...]]
    source: str
    file: str = ""
    stride: int | None = None


HARNESS = "EleutherAI/lm-evaluation-harness, issue"
HUGGING = "huggingface/transformers, issue"
DOCUMENTED = "huggingface/transformers, docs/source/en/perplexity.md"
VALID = "joeshmoe0112358/gpt2eval, with the mean of the windows' means"
UNKNOWN = "by a program that was not published"

REPORTS = [
    Report(
        "124M",
        "lambada",
        "",
        "harness",
        {"accuracy": (32.56, 0.65), "perplexity": (40.0554, 1.4787)},
        f"{HARNESS} 2159",
    ),
    Report("1558M", "lambada", "", "harness", {"perplexity": (10.63,)}, f"{HARNESS} 911"),
    Report("124M", "lambada", "", "last-token", {"accuracy": (46.89,)}, f"openai/gpt-2, issue 131, {UNKNOWN}"),
    Report("124M", "lambada", "", "last-token", {"accuracy": (46.67,)}, f"{HUGGING} 13761, {UNKNOWN}"),
    Report("124M", "lambada", "", "plain", {"accuracy": (26.0,)}, f"{HUGGING} 491, {UNKNOWN}"),
    Report("124M", "cbt", "CN", "paper", {"accuracy": (84.35,)}, f"{HUGGING} 13761, {UNKNOWN}"),
    Report("124M", "cbt", "NE", "paper", {"accuracy": (73.65,)}, f"{HUGGING} 13761, {UNKNOWN}"),
    Report("124M", "wikitext", "", "harness", {"perplexity": (37.37,)}, f"{HUGGING} 13761", "test"),
    Report("124M", "wikitext", "", "stride", {"documented perplexity": (29.94,)}, f"{HUGGING} 13761", "test", 1024),
    Report("774M", "wikitext", "", "stride", {"documented perplexity": (19.44,)}, DOCUMENTED, "test", 1024),
    Report("774M", "wikitext", "", "stride", {"documented perplexity": (16.44,)}, DOCUMENTED, "test"),
    *(
        Report(size, "wikitext", "", "stride", {"documented perplexity": (value,)}, VALID, "valid", 1024)
        for size, value in (("124M", 31.0423), ("355M", 22.5110), ("774M", 20.0883), ("1558M", 17.9139))
    ),
    Report(
        "124M",
        "ptb",
        "",
        "paper",
        {"perplexity per token": (52.53,), "perplexity": (79.65,)},
        f"{HUGGING} 13786, {UNKNOWN}",
        "test",
    ),
]


def reports_for(
    model: str, task: str, variant: str, protocol: str, data: Path, args: argparse.Namespace
) -> list[Report]:
    """Return what others report for this model, protocol and file. WikiText-2 and -103 have the same raw files."""
    return [
        report
        for report in REPORTS
        if (report.model, report.task, report.protocol) == (model, task, protocol)
        and report.variant in ("", variant)
        and re.search(report.file, data.name)
        and (args.stride, args.max_context, args.bos, args.limit) == (report.stride, None, None, None)
    ]


def line(report: Report) -> str:
    """Return what a source reports as one line."""
    figures = []
    for name, (value, *error) in report.figures.items():
        uncertain = "".join(f" ± {number:.2f}" for number in error)
        figures.append(f"{name} {value:.2f}{uncertain}{' %' if name == 'accuracy' else ''}")
    return f"others, {report.model}: {', '.join(figures)} ({report.source})"


def standard_errors(task: str, figures: Mapping[str, float], scores: Sequence[Scores]) -> dict[str, float]:
    """Return the standard errors of the accuracy, and of LAMBADA's perplexity, by their names: {} for other tasks.

    They are lm-evaluation-harness's: the deviation of the examples' values, with n - 1, divided by √n. For the
    perplexity, which is exp of such a mean, the harness draws the examples again and again; the error of the mean times
    the perplexity is what that tends to. The tokens of a long text depend on each other, so it has no such error.
    """
    n = int(figures.get("examples", 0))
    if "accuracy" not in figures or n < 2:
        return {}
    share = figures["accuracy"] / 100
    errors = {"accuracy": 100 * math.sqrt(share * (1 - share) / (n - 1))}
    if task == "lambada":  # each window is an example
        nats = [-float(scored.log_probs.sum()) for scored in scores]
        errors["perplexity"] = figures["perplexity"] * float(np.std(nats, ddof=1)) / math.sqrt(n)
    return errors
