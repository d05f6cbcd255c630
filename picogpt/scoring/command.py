"""Score texts: how well a model predicts them.

python -m picogpt score FILE… --model_size 124M
"""

from __future__ import annotations

import argparse
import csv
import io
import json
import math
import shutil
import sys
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import IO, Any, NamedTuple

import numpy as np

from encoder import Encoder
from picogpt.command_line import Parser, UsageError, visible
from picogpt.files import file_to_write, new_file, overwritten
from picogpt.options import add_allow_special, add_force, add_instead, add_model_options, allow_special, require
from picogpt.scoring.importance import as_json, changes_table, plot, without_each
from picogpt.scoring.jobs import Changes
from picogpt.scoring.reading import at, read_texts, shown_name
from picogpt.scoring.results import Summary, finite, table
from picogpt.scoring.windows import Array, Scores, Window, joined, windows
from picogpt.scoring.work import (
    Model,
    add_window_options,
    add_work_options,
    begin,
    kept_files,
    open_model,
    score_all,
    with_own_results,
)
from picogpt.terminal_text import in_context
from picogpt.tracing.parts import KINDS

EXAMPLES = """examples:
  python -m picogpt score README.md docs/train.md --model_size tiny
  python -m picogpt score novel.txt --stride 512
  python -m picogpt score lines.jsonl --jsonl text --json scores.json
  python -m picogpt score novel.txt --without_each head --plot heads.png
  cat story.txt | python -m picogpt score - --tokens

With a smaller --stride, a window has --max_context tokens, those that it scores
included. By default, the windows are disjoint, and each also reads the one
token before it. With --stride 1, each token is scored given as many tokens
before it as fit. A larger stride is faster, but the first tokens of a window
have less context.

--without_each scores everything once more without each part, so its time is
that of a run without it times the number of parts. It is said before, unless
there is a --results folder, whose work may be done already."""


class Text(NamedTuple):
    """A text to score: its name in the results, its characters, and its ids. The first id is not scored."""

    name: str
    text: str
    ids: Array


Cut = list[tuple[Text, list[Window]]]  # texts with their windows


def encoded(texts: Iterable[tuple[str, str]], model: Model, bos: bool) -> Iterator[Text]:
    """Yield the texts with their ids. Raises UsageError for a text that has no token to score."""
    first = begin(model, bos)
    for place, text in texts:
        with at(shown_name(place)):
            ids = model.encoder.encode(text)
        if len(first + ids) == 1:
            what = "has only one token, and nothing before it"
            raise UsageError(f"{shown_name(place)} {what}: drop --no_bos to score it")
        yield Text(place, text, np.array(first + ids))


# -------------------------------------------------------------------------------------------------- write the results


def token_rows(text: Text, scores: Scores) -> Iterator[tuple[int, int, float, int]]:
    """Yield position, id, log-probability and rank of each token. The first has position 0, and is not scored."""
    yield 0, int(text.ids[0]), math.nan, 0
    for i, (id, log_prob, rank) in enumerate(zip(text.ids[1:], scores.log_probs, scores.ranks), 1):
        yield i, int(id), float(log_prob), int(rank)


def literal(encoder: Encoder, id: int) -> str:
    """Return a token as a Python literal for --csv: 'text', or b'bytes' if it is only a part of a character."""
    token = encoder.token_bytes(id)
    try:
        return repr(token.decode("utf-8"))
    except UnicodeDecodeError:
        return repr(token)


def print_tokens(text: Text, scores: Scores, encoder: Encoder) -> None:
    """Print a line for each token of a text."""
    print(f"{'id':>6} {'log p':>9} {'rank':>6}  token of {visible(text.name)}")
    tokens = in_context([encoder.token_bytes(id) for id in text.ids.tolist()])
    for (_, id, log_prob, rank), token in zip(token_rows(text, scores), tokens):
        figures = f"{log_prob:>9.4f} {rank:>6}" if rank else f"{'-':>9} {'-':>6}"
        print(f"{id:>6} {figures}  {token}")


def write_csv(file: IO[bytes], results: Iterable[tuple[Text, Scores]], encoder: Encoder) -> None:
    """Write a row for each token: text, position, id, token, log_prob and rank (both empty if it was not scored)."""
    lines = io.TextIOWrapper(file, encoding="utf-8", errors="backslashreplace", newline="", write_through=True)
    writer = csv.writer(lines, lineterminator="\n")
    writer.writerow(["text", "position", "id", "token", "log_prob", "rank"])
    for text, scores in results:
        for position, id, log_prob, rank in token_rows(text, scores):
            figures = [log_prob, rank] if rank else ["", ""]
            writer.writerow([text.name, position, id, literal(encoder, id), *figures])
    lines.detach()


def write_json(
    file: IO[bytes],
    settings: dict[str, Any],
    results: Iterable[tuple[Text, Scores]],
    summaries: list[Summary],
    more: dict[str, Any],
) -> None:
    """Write settings, `more`, and for each text its figures with the ids, log-probabilities and ranks of all tokens.

    The first id of a text was not scored: its log-probability and rank are null.
    """
    entries = [
        {"text": text.name}
        | finite(summary.figures())
        | {"ids": text.ids.tolist()}
        | {"log_probs": [None, *scores.log_probs.tolist()], "ranks": [None, *scores.ranks.tolist()]}
        for (text, scores), summary in zip(results, summaries)
    ]
    total = finite(Summary.total(summaries).figures())
    whole = {"settings": settings, "total": total} | more | {"texts": entries}
    file.write(json.dumps(whole, ensure_ascii=False, allow_nan=False).encode("utf-8", "backslashreplace") + b"\n")


# -------------------------------------------------------------------------------------------------------- the command


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """Read the options; --help lists them."""
    command = "python -m picogpt score"
    purpose = "Measure how well a model predicts texts: log-probabilities, bits per byte, and perplexity."
    parser = Parser(prog=command, description=purpose, epilog=EXAMPLES)
    add = parser.add_argument
    add("files", nargs="+", metavar="FILE", help="a text file in UTF-8, or - for standard input")
    add_model_options(parser, several=True)
    add_window_options(
        parser, "put <|endoftext|> before each text, so that its first token is scored, too (the default)"
    )
    add_allow_special(parser)
    add("--jsonl", metavar="FIELD", help="the files are JSON Lines: score this field of every line")
    add("--tokens", action="store_true", help="print a line for each token: its id, log-probability and rank")
    add("--json", type=Path, metavar="FILE", help="write everything to a JSON file")
    add("--csv", type=Path, metavar="FILE", help="write a row for each token to a CSV file")
    add_without_each(parser)
    add_force(parser)
    add_work_options(parser)
    args = parser.parse_args(argv)
    if args.files.count("-") > 1:
        parser.error("argument FILE: - is there twice, but standard input can be read only once")
    if "," in args.model_size and (args.json or args.csv or args.tokens):
        parser.error("--json, --csv and --tokens are for one model")
    check_without_each(parser, args)
    inputs = [name for name in args.files if name != "-"] + kept_files(args)
    if problem := overwritten({"--json": args.json, "--csv": args.csv, "--plot": args.plot}, inputs):
        parser.error(problem)
    return args


def check_without_each(parser: argparse.ArgumentParser, args: argparse.Namespace) -> None:
    """Call `parser.error` if options do not fit to --without_each, or to its absence."""
    if "," in args.model_size and args.without_each:
        parser.error("--without_each is for one model")
    if not args.without_each and (args.plot or args.instead != "zero"):
        parser.error(f"--{'plot' if args.plot else args.instead} needs --without_each, which says what is switched off")
    if args.plot and args.plot.suffix != ".png":
        parser.error(f"argument --plot: {str(args.plot)!r} does not end in .png")


def add_without_each(parser: argparse.ArgumentParser) -> None:
    """Add --without_each, --mean, --bias and --plot."""
    each = "measure how much each part matters: score without each head, each layer, its MLP or its attention"
    parser.add_argument("--without_each", choices=KINDS, metavar="|".join(KINDS), help=each)
    add_instead(parser)
    plot = "draw how much each part matters into this file (needs matplotlib)"
    parser.add_argument("--plot", type=Path, metavar="FILE.png", help=plot)


def main(argv: list[str] | None = None) -> int:
    """Score the files that the command line names, and print a row for each text and model, and for all together."""
    args = parse_args(argv)
    names = args.model_size.split(",")
    for path in filter(None, (args.json, args.csv, args.plot)):
        file_to_write(path, args.force)  # an error comes before the work
    if args.plot:
        require("matplotlib", purpose="for --plot")
    texts = list(read_texts(args.files, args.jsonl))
    models = [open_model(argparse.Namespace(**vars(args) | {"model_size": name})) for name in names]
    cut = {name: cut_texts(texts, model, args) for name, model in zip(names, models)}
    began = time.perf_counter()
    scored = {name: score_texts(cut[name], name, model, args) for name, model in zip(names, models)}
    seconds, results = time.perf_counter() - began, scored[names[0]]
    summaries = {
        name: [Summary.of(text.text, scores.log_probs.tolist()) for text, scores in scored[name]] for name in names
    }
    encoder = models[0].encoder
    for text, scores in results if args.tokens else ():
        print_tokens(text, scores, encoder)
    print_table([text for text, _ in results], summaries)
    found = parts_of(cut[names[0]], results, 0 if args.results else seconds, models[0], args)
    if args.json:
        settings = {name: getattr(args, name) for name in ("model_size", "stride", "max_context", "bos", "jsonl")}
        with new_file(args.json, args.force) as file:
            write_json(file, settings, results, summaries[names[0]], found)
    if args.csv:
        with new_file(args.csv, args.force) as file:
            write_csv(file, results, encoder)
    return 0


def cut_texts(texts: Iterable[tuple[str, str]], model: Model, args: argparse.Namespace) -> Cut:
    """Return the texts with their ids, each with its windows."""
    allow_special(model.encoder, args)
    all_texts = list(encoded(texts, model, args.bos))  # an error in any of them comes before the work
    n_ctx = model.hparams["n_ctx"]
    return [(text, list(windows(text.ids, n_ctx, args.stride, args.max_context))) for text in all_texts]


def score_texts(cut: Cut, name: str, model: Model, args: argparse.Namespace) -> list[tuple[Text, Scores]]:
    """Return the scores of texts with a model."""
    if "," in args.model_size:
        args = with_own_results(args, name)
    changes: Changes = {} if args.without_each else None  # {}: computed and rounded as without each part
    scored = iter(score_all([window for _, parts in cut for window in parts], model, args, changes))
    return [(text, joined([next(scored) for _ in parts])) for text, parts in cut]


def parts_of(
    cut: Cut, results: list[tuple[Text, Scores]], seconds: float, model: Model, args: argparse.Namespace
) -> dict[str, Any]:
    """Measure, print and draw how much each part matters. Return what --json writes about it: {} without the option."""
    if not args.without_each:
        return {}
    all_windows = [window for _, parts in cut for window in parts]
    found = without_each(all_windows, [scores for _, scores in results], seconds, model, args)
    print()
    for line in changes_table(found, args):
        print(line, flush=True)
    if args.plot:
        plot(found, args, args.plot, args.force)
    return {"without_each": as_json(found, args)}


def print_table(texts: list[Text], summaries: dict[str, list[Summary]]) -> None:
    """Print a row for each text and model, and for all texts together. Only a terminal gets names that are cut."""
    rows = [(text.name, model, found[i]) for i, text in enumerate(texts) for model, found in summaries.items()]
    if len(texts) > 1:
        rows += [("total", model, Summary.total(found)) for model, found in summaries.items()]
    named = [(visible(name if len(summaries) == 1 else f"{name}, {model}"), found) for name, model, found in rows]
    width = shutil.get_terminal_size().columns if sys.stdout.isatty() else None
    for line in table(named, width):
        print(line, flush=True)
