"""Run lm-evaluation-harness with a model of ours: its own command line, with our options that name the model."""

from __future__ import annotations

import argparse
import contextlib
import importlib
import io
import sys
import traceback
from typing import TYPE_CHECKING

from picogpt.command_line import Parser, UsageError, reason
from picogpt.options import add_model_options, require

if TYPE_CHECKING:
    from lm_eval._cli import HarnessCLI

COMMAND = "python -m picogpt lm_eval"


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """Read our options. The others, which are the harness's, become the list `rest`."""
    parser = Parser(
        prog=COMMAND,
        allow_abbrev=False,  # no option of the harness is short for one of ours
        usage=f"{COMMAND} --tasks TASK … [--model NAME]\n{' ' * 32}[--models_dir FOLDER] [option of the harness] …",
        description="Run the tasks of lm-evaluation-harness on gpt2.py.",
        epilog=f"""All other options go to the harness's own command: `lm_eval run --help` lists
them, and `lm_eval ls tasks` the names of tasks.

The harness downloads the data of its own tasks from the Hugging Face hub.
Tasks of your own may use local files.

examples:
  {COMMAND} --tasks lambada_openai --limit 100
  {COMMAND} --tasks wikitext hellaswag --model_size 355M \\
    --output_path results
  {COMMAND} --tasks my_task.yaml --model_size tiny""",
    )
    add_model_options(parser)
    argv = sys.argv[1:] if argv is None else argv
    args, rest = parser.parse_known_args(["--help"] if argv == ["-h"] else argv)
    if not rest:
        parser.error("--tasks is missing")
    args.rest = rest
    return args  # type: ignore[no-any-return]


def main(argv: list[str] | None = None) -> int:
    """Run the harness. It prints its table of results to stdout, and its log to stderr."""
    args = parse_args(argv)
    require("lm_eval")
    from datasets.exceptions import DatasetsError
    from lm_eval.__main__ import HarnessCLI, setup_logging

    setup_logging()
    harness = HarnessCLI()
    theirs = harness_options(harness, args.rest)
    importlib.import_module("picogpt.lm_eval")  # it registers the model `picogpt`
    theirs.model, theirs.model_args = "picogpt", {"model_size": args.model_size, "models_dir": args.models_dir}
    try:
        harness.execute(theirs)
    except DatasetsError as error:
        text = " ".join(f"{error} {error.__cause__ or ''}".split())
        raise OSError(f"can't read the data of a task: {text}") from None
    except Exception as error:
        if isinstance(error, (OSError, MemoryError)) or not is_of_a_task(error):
            raise
        what = " ".join(reason(error).split())
        if isinstance(error, (KeyError, TypeError)):  # for a metric that does not exist, the harness says only "None"
            hint = "an entry is missing, or names what does not exist, such as a metric or a split"
            what = f"{hint} ({type(error).__name__}: {what})"
        raise UsageError(f"can't use --tasks {' '.join(theirs.tasks or [])}: {what}") from None
    return 0


def is_of_a_task(error: Exception) -> bool:
    """Return whether an error is one of a task's own: it comes out of a template, or out of code that loads tasks.

    No code of ours runs below either, so that this hides no bug of ours.
    """
    from jinja2 import TemplateError

    modules = (frame.f_globals.get("__name__", "") for frame, _ in traceback.walk_tb(error.__traceback__))
    return isinstance(error, TemplateError) or any(name.startswith("lm_eval.tasks.") for name in modules)


def harness_options(harness: HarnessCLI, words: list[str]) -> argparse.Namespace:
    """Return the options of `lm_eval run`. Raises UsageError with the harness's own message if they are wrong."""
    sys.argv[1:] = ["run", *words]  # the harness reads them from there
    messages = io.StringIO()
    try:
        with contextlib.redirect_stderr(messages):
            theirs: argparse.Namespace = harness.parse_args()
    except SystemExit as error:
        if not error.code:
            raise
        raise UsageError(messages.getvalue().strip().rpartition("error: ")[2]) from None
    if theirs.model is not None or theirs.model_args is not None:
        raise UsageError("--model and --models_dir name the model, not --model_args")
    if theirs.tasks is None and theirs.config is None:
        raise UsageError("--tasks is missing (try --help)")
    return theirs
