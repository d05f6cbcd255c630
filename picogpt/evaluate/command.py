"""Evaluate a model on the datasets of GPT-2's paper, by protocols that have a name and say each of their steps.

    python -m picogpt evaluate lambada --data lambada_test.jsonl --model_size 124M

Each protocol is a function: it reads the data file, makes windows of ids, has them scored, and returns its figures by
name. Its docstring is its documentation, which --explain prints.
"""

from __future__ import annotations

import argparse
import inspect
import json
import os
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from picogpt.command_line import Parser, log, number, reason
from picogpt.evaluate import cbt, lambada, paper, reported, texts
from picogpt.evaluate.output import show_table
from picogpt.files import file_to_write, new_file, overwritten
from picogpt.options import add_force, add_model_options
from picogpt.scoring.results import finite
from picogpt.scoring.windows import Scores, Window
from picogpt.scoring.work import (
    Model,
    add_window_options,
    add_work_options,
    kept_files,
    open_model,
    score_all,
    with_own_results,
)

TASKS = {
    "lambada": lambada.PROTOCOLS,
    "cbt": cbt.PROTOCOLS,
    "wikitext": texts.WIKITEXT,
    "ptb": texts.PTB,
    "text8": texts.TEXT8,
    "enwik8": texts.ENWIK8,
    "1bw": texts.ONE_BILLION_WORDS,
}
ALONE, FIXED = "each example is scored independently of the others", "the protocol fixes the windows"
BARE = "the protocol puts nothing before the text"
REFUSED: dict[tuple[str, str], dict[str, str]] = {  # the options that a protocol of a task does not have, and why
    **{(task, protocol): {"--stride": ALONE} for task in ("lambada", "cbt") for protocol in TASKS[task]},
    ("lambada", "harness"): {"--stride": ALONE, "--bos": BARE},
    ("wikitext", "harness"): {"--stride": FIXED, "--max_context": FIXED, "--no_bos": FIXED},
    ("wikitext", "stride"): {"--bos": BARE},
}
MOST_MODELS = 4  # as many columns of ours fit into 80 characters


def first_lines() -> str:
    """Return the tasks and their protocols, each with the first line of its docstring."""
    lines = []
    for task, protocols in TASKS.items():
        lines.append(f"  {task}")
        for name, protocol in protocols.items():
            row = f"    {name:12}{(inspect.getdoc(protocol) or '').partition(chr(10))[0]}"
            lines.append(textwrap.fill(row, 79, subsequent_indent=" " * 16, break_on_hyphens=False))
    return "\n".join(lines)


EPILOG = """tasks and protocols (the first one of each task is its default):
{}

examples:
  {command} lambada --data lambada_test.jsonl \\
    --model_size 124M
  {command} lambada --data lambada_test.jsonl \\
    --protocol harness --limit 100
  {command} lambada --protocol harness --explain
  {command} --paper data/ --model_size 124M,355M"""


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """Parse the command line."""
    command = "python -m picogpt evaluate"
    parser = Parser(
        prog=command,
        description="Evaluate a model on a dataset, and show the figures of GPT-2's paper beside ours. The data comes "
        "from a file that you name; only a model is downloaded.",
        epilog=EPILOG.format(first_lines(), command=command),
    )
    add = parser.add_argument
    add("task", nargs="?", metavar="TASK", help=", ".join(TASKS))
    add("--data", type=Path, metavar="FILE", help="the file with the data of the task")
    add("--protocol", metavar="NAME", help="the protocol (default: the first of the task)")
    add("--explain", action="store_true", help="print every step of the protocol, or of all of the task, and exit")
    add("--paper", type=Path, metavar="FOLDER", help="print the paper's table, and ours for the data in this folder")
    add("--variant", metavar="NAME", help="which dataset of the task this is, if the file's name does not show it")
    whole = number(1, kind=int)
    bos = "put <|endoftext|> before each text (default: as the protocol says)"
    add_window_options(parser, bos, bos_default=None, stride_default="as the protocol says")
    add("--markdown", action="store_true", help="print the table in Markdown, to paste it")
    add("--limit", type=whole, metavar="N", help="use the first N examples only")
    add("--json", type=Path, metavar="FILE", help="write the figures to this file, too")
    add_force(parser)
    add_model_options(parser, several=True)
    add_work_options(parser)
    args = parser.parse_args(argv)
    if problem := problem_of(args):
        parser.error(problem)
    return args


def problem_of(args: argparse.Namespace) -> str:
    """Return what is wrong with a combination of options, or ""."""
    if args.model_size.count(",") >= MOST_MODELS:
        return f"the table has room for {MOST_MODELS} models"
    if args.paper:
        if names := [*(["task"] if args.task else []), *(["--explain"] if args.explain else []), *given(args)]:
            return f"--paper takes no {names[0]}, because each row of the table has its own"
        files = [str(args.paper / name) for row in paper.ROWS for name in row.files]
        return overwritten({"--json": args.json}, files + kept_files(args))
    if args.task not in TASKS:
        return f"{args.task!r} is not a task: {', '.join(TASKS)}" if args.task else "name a task, or --paper FOLDER"
    protocols, variants = TASKS[args.task], paper.VARIANTS.get(args.task, {})
    if args.protocol is not None and args.protocol not in protocols:
        return f"{args.protocol!r} is not a protocol of {args.task}: {', '.join(protocols)}"
    if args.variant is not None and args.variant not in variants:
        return f"{args.variant!r} is not a variant of {args.task}: {', '.join(variants) or 'it has none'}"
    refused = REFUSED.get((args.task, args.protocol or next(iter(protocols))), {})
    if names := [option for option in given(args) if option in refused]:
        return f"{names[0]} is not possible: {refused[names[0]]}"
    if not args.data:
        return "" if args.explain else "name the file with the data: --data FILE"
    return overwritten({"--json": args.json}, [str(args.data), *kept_files(args)])


def given(args: argparse.Namespace) -> list[str]:
    """Return those options that belong to a task and are given, as the command line has them."""
    names = ("data", "protocol", "variant", "stride", "max_context")
    found = [f"--{name}" for name in names if getattr(args, name) is not None]
    return found + ([] if args.bos is None else ["--bos" if args.bos else "--no_bos"])


def main(argv: list[str] | None = None) -> int:
    """Evaluate one task, or fill the paper's table, or explain protocols."""
    args = parse_args(argv)
    if args.explain:
        explain(args.task, args.protocol)
        return 0
    if args.json:
        file_to_write(args.json, args.force)  # an error comes before the work
    failed: list[Path] = []
    results = fill_table(args, failed) if args.paper else evaluate_task(args)
    if args.json:
        with new_file(args.json, args.force) as file:
            found = results if args.paper or len(results) > 1 else results[0]
            file.write((json.dumps(found, indent=2) + "\n").encode("utf-8"))
    return int(bool(failed))


def explain(task: str, protocol: str | None) -> None:
    """Print the whole docstring of a protocol, or those of all protocols of a task."""
    names = [protocol] if protocol else list(TASKS[task])
    print("\n\n".join(f"{task}, protocol {name}\n\n{inspect.getdoc(TASKS[task][name])}" for name in names))


def evaluate_task(args: argparse.Namespace) -> list[dict[str, Any]]:
    """Evaluate models on the task and the data that the options name, and print the figures beside the paper's."""
    protocol = args.protocol or next(iter(TASKS[args.task]))
    variant = args.variant or paper.variant_of(args.task, args.data)
    os.stat(args.data)  # raises OSError before a model is downloaded
    names = args.model_size.split(",")
    models = [open_model(argparse.Namespace(**vars(args) | {"model_size": name})) for name in names]
    own = [args if len(models) == 1 else with_own_results(args, name) for name in names]
    results = [evaluate(args.task, protocol, args.data, variant, *each) for each in zip(models, own)]
    shown_names = ", ".join(result["model"] for result in results)
    print(f"{args.task}{variant and ' '}{variant}, protocol {protocol}, model {shown_names}")
    show_table(results, args.markdown)
    if args.limit:
        print(f"only the first {args.limit} of the file's examples (--limit)")
    return results


def evaluate(
    task: str, protocol: str, data: Path, variant: str, model: Model, args: argparse.Namespace
) -> dict[str, Any]:
    """Return the figures of a model on a data file, those of the paper, and all that says how they came about."""
    scores: list[Scores] = []

    def score(windows: Sequence[Window]) -> list[Scores]:
        scores[:] = score_all(windows, model, args)
        return scores

    figures = TASKS[task][protocol](data, model, score, args)
    options = {name: getattr(args, name) for name in ("stride", "max_context", "bos", "limit")}
    model_name = model.folder.name
    reports = reported.reports_for(model_name, task, variant, protocol, data, args)
    return {
        "task": task,
        "variant": variant,
        "protocol": protocol,
        "model": model_name,
        "data": str(data),
        **options,
        "figures": finite(figures),
        "standard errors": finite(reported.standard_errors(task, figures, scores)),
        "paper": paper.published(model_name, task, variant),
        "others": [reported.line(found) for found in reports],
    }


def fill_table(args: argparse.Namespace, failed: list[Path]) -> list[dict[str, Any]]:
    """Print the paper's table row by row, with the figures of each model on the data that the folder holds.

    What is wrong with a file is logged, and its row has no figures. `failed` gets the file.
    """
    names = args.model_size.split(",")
    any_data = say_what_is_there(args.paper)
    models = [open_model(argparse.Namespace(**vars(args) | {"model_size": name})) for name in names if any_data]
    results: dict[tuple[str, Path], list[dict[str, Any]]] = {}
    print(paper.heading(names, args.markdown))
    for row in paper.ROWS:
        ours = [None] * len(names)
        if found := paper.find(args.paper, row):
            data, protocol = found
            key = row.task, data
            if key not in results:  # the two rows of LAMBADA take one run
                work = [row.task, *data.relative_to(args.paper).parts]
                try:
                    results[key] = [
                        evaluate(row.task, protocol, data, row.variant, model, with_own_results(args, name, *work))
                        for name, model in zip(names, models)
                    ]
                except (OSError, ValueError) as error:
                    log(reason(error))
                    results[key] = []
                    failed.append(data)
            if results[key]:
                ours = [result["figures"].get(row.figure) for result in results[key]]
        cells = [*map(paper.theirs, row.values)], [*map(paper.ours, ours)]
        print(paper.line(row.label, *cells, in_markdown=args.markdown), flush=True)
    for (_, data), of_models in [item for item in results.items() if item[1]]:
        if args.markdown:
            print()  # ends the table, and each of these lines is a paragraph
        print(f"{data.relative_to(args.paper).as_posix()}: protocol {of_models[0]['protocol']}")
    if args.limit and results:
        print(f"only the first {args.limit} examples of each file (--limit)")
    return [result for of_models in results.values() for result in of_models]


def say_what_is_there(folder: Path) -> bool:
    """Print to stderr which data files a folder holds and which it misses. Return whether it holds any.

    Raises NotADirectoryError if it is no folder.
    """
    if not folder.is_dir():
        raise NotADirectoryError(f"{folder} is not a folder: --paper names the one with the data files")
    found = {row.label.partition(",")[0]: (paper.find(folder, row), row.files) for row in paper.ROWS}
    for dataset, (place, names) in found.items():
        log(f"{dataset}: {f'found {place[0]}' if place else 'missing, not found as ' + ' or '.join(names)}")
    return any(place for place, _ in found.values())
