"""The protocols of WikiText-2 and WikiText-103, for the raw and the tokenized files.

The files come from Merity et al. 2016. Both sets have the same articles for validation and test, and their raw files
are the same. In their tokenized files, rare words are <unk>, of which WikiText-2 has more: its vocabulary has 33,278
words, that of WikiText-103 has 267,735. The figures of GPT-2's paper for its smallest model, 29.41 and 37.50, can't
both be those of the raw files. The paper does not say which files it used.
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from encoder import END_OF_TEXT
from picogpt.command_line import UsageError
from picogpt.evaluate.corpora import (
    Protocol,
    Score,
    per_token,
    read_corpus,
    scores_of,
    take,
    total,
    windows_of,
    word_figures,
)
from picogpt.evaluate.detokenize import WIKITEXT as STYLE
from picogpt.evaluate.detokenize import detokenize
from picogpt.scoring.results import bits, perplexity
from picogpt.scoring.windows import Array, Window, check_sizes, rolling_windows
from picogpt.scoring.work import Model


def paper(data: Path, model: Model, score: Score, args: argparse.Namespace) -> dict[str, float]:
    """Score WikiText by the rules of GPT-2's paper as far as they are known: Radford et al. 2019, section 3.1.

    1. Every line becomes natural text by an invertible detokenizer (`picogpt.evaluate.detokenize`). <unk> stays. The
       paper used one of its own, which was never published, and says that it gains 2.5 to 5 of perplexity.
    2. The file is one document: its lines with their ends, and <|endoftext|> before the first if `bos` is set.
    3. The log-probability is summed over windows by `stride` and `max_context`.
    4. The sum is divided by the number of original words before the exponential is taken. The authors confirmed that
       in issue 78 of openai/gpt-2 ("scale losses according to the token ratio"). A line end counts as a word here, as
       in the sizes that the data set's authors give.

    Unknown: whether the paper counts line ends, how its windows overlap, whether they begin again at each article,
    whether <|endoftext|> stands before the text, and whether <unk> was replaced. With `limit`, only the first articles
    are scored.

    Raises UsageError for a file without a top heading.
    """
    text = read_wikitext(data, args.limit)
    parts = windows_of(model.encoder.encode(detokenize(text, STYLE)), model, args)
    return word_figures(*total(scores_of(parts, score, data)), text, 1)


def harness(data: Path, model: Model, score: Score, args: argparse.Namespace) -> dict[str, float]:
    """Score WikiText as the task `wikitext` of lm-evaluation-harness does (version 2 of the task).

    1. The file is cut into pages at its top headings, " = Title = ", as in EleutherAI/wikitext_document_level.
    2. A page goes through the harness's detokenizer, which is not invertible (`harness_text`).
    3. <|endoftext|> stands before each page. The windows of n_ctx tokens are disjoint with one token of context, but
       the last of a page reaches back so far that it is full (get_rolling_token_windows and make_disjoint_window).
    4. "perplexity" (the harness: word_perplexity) divides the sum over all pages by the words of the original pages.
       They are counted by splitting at white space, which also counts an empty word at each end that is white space:
       two for each page of the published files. "perplexity per byte" and "bits per byte" divide by their bytes.

    The harness takes WikiText-2's raw test set. Its perplexity for 124M, 37.37, is near the paper's 37.50 for
    WikiText-103. The rule fixes the windows, so `stride`, `max_context` and no `bos` are refused.

    Raises UsageError for a file without a top heading, and for a vocabulary without <|endoftext|>.
    """
    if END_OF_TEXT not in model.encoder.encoder:
        raise UsageError(f"the protocol harness needs {END_OF_TEXT}, which the vocabulary of {model.folder} lacks")
    documents = take(pages(read_corpus(data), data), args)
    parts: list[Window] = []
    for page in documents:
        ids = [model.encoder.encoder[END_OF_TEXT], *model.encoder.encode(harness_text(page))]
        parts += rolling_windows(np.array(ids, np.intp), model.hparams["n_ctx"])
    nats, n_tokens = total(scores_of(parts, score, data))
    n_words = sum(len(re.split(r"\s+", page)) for page in documents)
    n_bytes = sum(len(page.encode("utf-8")) for page in documents)
    return {
        "perplexity": perplexity(nats, n_words),
        "perplexity per token": perplexity(nats, n_tokens),
        "perplexity per byte": perplexity(nats, n_bytes),
        "bits per byte": bits(nats, n_bytes),
        "nats": nats,
        "tokens": n_tokens,
        "words": n_words,
        "bytes": n_bytes,
        "documents": len(documents),
    }


def stride(data: Path, model: Model, score: Score, args: argparse.Namespace) -> dict[str, float]:
    r"""Score WikiText as the documentation of transformers does, "Perplexity of fixed-length models".

    1. The rows of the data set are the lines of the file with their ends, and blank lines are empty rows. They are
       joined by "\n\n", so that four blank lines follow a heading. Nothing is detokenized: a raw file is meant.
    2. No <|endoftext|> stands before the text: the first token is context only.
    3. Windows of n_ctx tokens (1,024) begin every n_ctx / 2 tokens (512), or by `max_context` and `stride`. The first
       scores all its tokens but one, and each other those that are new. Where the stride is as large as the window,
       the first token of every window has no context and is left out.
    4. "documented perplexity" is the documentation's figure. It is per token of GPT-2, so the paper's figure, which is
       per word, is no match. It is made from the windows' mean losses: each has its number of new tokens minus one as
       its weight. This weight is too small by one after the first window, a mistake in the documentation's code that is
       kept. "perplexity per token" counts each token once.

    The documentation reports 16.44 for 774M on WikiText-2's raw test set, and 19.44 with a stride of 1,024.

    Raises UsageError for a file without a top heading, and unless 1 <= stride <= max_context <= n_ctx.
    """
    text = read_wikitext(data, args.limit)
    n_ctx = model.hparams["n_ctx"]
    span = n_ctx if args.max_context is None else args.max_context
    step = max(span // 2, 1) if args.stride is None else args.stride
    check_sizes(step, span, n_ctx)
    parts = list(overlapping_windows(np.array(model.encoder.encode("\n\n".join(rows_of(text))), np.intp), span, step))
    scores = scores_of(parts, score, data)
    nats, n_tokens = total(scores)
    weights = [part.n_targets - (i > 0 and step < span) for i, part in enumerate(parts)]
    mean = -sum(weight * part.log_probs.mean() for weight, part in zip(weights, scores)) / sum(weights)
    return {"documented perplexity": perplexity(mean, 1), **per_token(nats, n_tokens)}


def rows_of(text: str) -> list[str]:
    """Return the rows of the data set as it is on the Hugging Face hub: lines with their ends; blank ones are empty."""
    return [row if row.strip() else "" for row in re.findall(r"[^\n]*\n|[^\n]+", text)]


def read_wikitext(data: Path, limit: int | None) -> str:
    """Return the text of a WikiText file, or its first pages. Raises UsageError for a file without a top heading."""
    text = read_corpus(data)
    found = pages(text, data)
    return text if limit is None else "\n".join(found[:limit]) + ("\n" if limit < len(found) else "")


def pages(text: str, data: Path) -> list[str]:
    """Return the pages of a WikiText file. Each begins with its top heading, such as " = Homer = ".

    A line is a top heading if it has one "=" at each end. The line end between two pages belongs to neither. Lines
    before the first heading are a page of their own, unless they are blank. Raises UsageError if there is no heading.
    """
    found: list[list[str]] = [[]]
    for line in text.split("\n"):
        if is_top_heading(line):
            found.append([])
        found[-1].append(line)
    if len(found) == 1:
        raise UsageError(f'{data} is not a file of WikiText: no line is a top heading, such as " = Homer = "')
    return [page for page in map("\n".join, found) if page.strip()]


def is_top_heading(line: str) -> bool:
    """Return whether a line is a heading of the first level, by the rule of EleutherAI/wikitext_document_level."""
    return line.strip().startswith("= ") and line.strip().endswith(" =") and "= =" not in line


def harness_text(page: str) -> str:
    """Return a page as the detokenizer of lm-evaluation-harness leaves it (tasks/wikitext/preprocess_wikitext.py).

    It is not invertible: the quotes of two words in quotation marks may pair up wrongly, "N" becomes "1", and some
    rules were written for other texts. The second one does nothing in WikiText, but belongs to it.
    """
    page = re.sub(r"/' [0-9]/", "/'[0-9]/", page.replace("s '", "s'"))
    for mark in "-,.":
        page = page.replace(f" @{mark}@ ", mark)
    for mark in ":;.!?,":
        page = page.replace(f" {mark} ", f"{mark} ")
    for left, right in ("()", "[]", "{}", '""', "''"):
        page = re.sub(rf"\{left}\s*([^\{right}]*?)\s*\{right}", rf"{left}\1{right}", page)
    for n in (4, 3, 2):
        page = page.replace(" ".join("=" * n), "=" * n)
    for before, after in ((" ° ", "°"), (" \n", "\n"), ("\n ", "\n"), (" N ", " 1 "), (" 's", "'s")):
        page = page.replace(before, after)
    return page


def overlapping_windows(ids: Array, span: int, stride: int) -> Iterator[Window]:
    """Yield the windows of transformers' documentation: `span` ids from every stride-th on. Each scores what is new.

    A window without context before its new ids does not score the first of them.

    >>> [(window.ids.tolist(), window.n_targets) for window in overlapping_windows(np.arange(7), 4, 2)]
    [([0, 1, 2, 3], 3), ([2, 3, 4, 5], 2), ([4, 5, 6], 1)]
    >>> [(window.ids.tolist(), window.n_targets) for window in overlapping_windows(np.arange(6), 4, 4)]
    [([0, 1, 2, 3], 3), ([4, 5], 1)]
    """
    seen = 0
    for begin in range(0, len(ids), stride):
        window = ids[begin : begin + span]
        n_targets = min(begin + len(window) - seen, len(window) - 1)
        if n_targets:
            yield Window(window, n_targets)
        seen = begin + len(window)
        if seen == len(ids):
            return


WIKITEXT: dict[str, Protocol] = {"paper": paper, "harness": harness, "stride": stride}
