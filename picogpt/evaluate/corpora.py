"""What the protocols share: reading, windows of a whole text or of one example, sums of scores, and their figures.

A protocol is a function of the data file, the model, a function that scores windows, and the options. It returns its
figures by name. The options are `stride` and `max_context` (as in `picogpt.scoring.windows`, None for the default),
`bos` (whether <|endoftext|> stands before each document, None for the protocol's own rule) and `limit` (how many
documents, None for all). The command refuses those that a protocol does not have.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from picogpt.command_line import UsageError, read_text
from picogpt.scoring.reading import numbered_lines
from picogpt.scoring.results import bits, perplexity
from picogpt.scoring.windows import Scores, Window, windows
from picogpt.scoring.work import Model, begin

Score = Callable[[Sequence[Window]], list[Scores]]
Protocol = Callable[[Path, Model, Score, argparse.Namespace], dict[str, float]]


def read_corpus(data: Path) -> str:
    """Return the text of a file. Raises OSError, and UsageError if it is empty or not UTF-8."""
    text = read_text(data)
    if not text.strip():
        raise UsageError(f"{data} is empty: there is no text to score")
    return text


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


def windows_of(ids: Sequence[int], model: Model, args: argparse.Namespace) -> list[Window]:
    """Return the windows of a document.

    <|endoftext|> stands before the document, unless --no_bos is given. It separated the documents of the training data,
    and gives the first token something to be predicted from. Without it, the first token is context only: its
    probability is missing in the sum. Raises UsageError if the vocabulary lacks it.
    """
    array = np.array([*begin(model, args.bos), *ids], np.intp)
    return list(windows(array, model.hparams["n_ctx"], args.stride, args.max_context))


def scores_of(parts: Sequence[Window], score: Score, data: Path) -> list[Scores]:
    """Return the scores of all windows. Raises UsageError if there is nothing to score."""
    if not parts:
        raise UsageError(f"{data} has only one token, and nothing stands before it: there is nothing to predict")
    return score(parts)


def total(scores: Sequence[Scores]) -> tuple[float, int]:
    """Return the negative log-probability of all targets in nats, and how many there are."""
    return -float(sum(part.log_probs.sum() for part in scores)), sum(len(part.log_probs) for part in scores)


def per_token(nats: float, n_tokens: int) -> dict[str, float]:
    """Return the figures that count the model's own tokens."""
    return {"perplexity per token": perplexity(nats, n_tokens), "nats": nats, "tokens": n_tokens}


def word_figures(nats: float, n_tokens: int, text: str, n_documents: int) -> dict[str, float]:
    """Return the figures of a corpus of words. `text` is the original: tokens of the data set with spaces between them.

    "perplexity" is for each word of the original, and each line end counts as a word, `<eos>`. That is how the data
    sets' own sizes are counted: the validation set of WikiText-2 has 217,646 tokens in Merity et al. 2016, which are
    213,886 words and 3,760 line ends in the file. The second perplexity divides the same sum by the words alone.
    """
    n_words, n_lines, n_bytes = count_words(text), text.count("\n"), len(text.encode("utf-8"))
    return {
        "perplexity": perplexity(nats, n_words + n_lines),
        "perplexity without line ends": perplexity(nats, max(n_words, 1)),
        "perplexity per token": perplexity(nats, n_tokens),
        "bits per byte": bits(nats, n_bytes),
        "nats": nats,
        "tokens": n_tokens,
        "words": n_words,
        "line ends": n_lines,
        "bytes": n_bytes,
        "documents": n_documents,
    }


def count_words(text: str) -> int:
    """Return the number of words between spaces and line ends."""
    return sum(word != "" for line in text.split("\n") for word in line.split(" "))


def take(items: Iterable[Any], args: argparse.Namespace) -> list[Any]:
    """Return the items that --limit leaves."""
    return list(items)[: args.limit]
