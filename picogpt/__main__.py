"""Run a tool: `python -m picogpt TOOL …` calls the `main` of the tool's module. Only that module is imported."""

from __future__ import annotations

import contextlib
import difflib
import importlib
import re
import sys
import textwrap
import warnings
from pathlib import Path

from picogpt.command_line import log, run
from picogpt.threads import one_thread_for_small_models

TOOLS = {  # name: (module, purpose)
    "generate": ("picogpt.generate", "continue a text as gpt2.py does, with more options: many samples, speed, …"),
    "bench": ("picogpt.bench.command", "measure speed and memory, and compare them with the machine's limits"),
    "chat": ("picogpt.chat.terminal", "talk with a model in the terminal"),
    "compare": ("picogpt.compare.table", "check every part of the model against other implementations"),
    "convert": (
        "picogpt.checkpoints.convert",
        "convert a model to OpenAI's layout, or to Hugging Face's",
    ),
    "evaluate": ("picogpt.evaluate.command", "evaluate a model on LAMBADA and other datasets, by named protocols"),
    "explain": ("picogpt.explain.command", "show how the model reads a text: in the terminal, as pictures, as a page"),
    "facts": ("picogpt.facts.command", "compare OpenAI's weights with what other projects published about them"),
    "lm_eval": ("picogpt.harness", "run the tasks of lm-evaluation-harness on gpt2.py"),
    "models": ("picogpt.models", "list the models that are there, and those that can be downloaded"),
    "random_weights": ("picogpt.checkpoints.random_weights", "write a model with random weights"),
    "score": ("picogpt.scoring.command", "measure how well a model predicts texts: log-probabilities and perplexity"),
    "tokens": ("picogpt.tokens", "show the tokens of a text"),
    "trace": (
        "picogpt.tracing.command",
        "write every intermediate array of a forward pass, or compare with another program's",
    ),
    "train": ("picogpt.train.command", "train a model of any shape on a text file, or fine-tune one on it"),
}
MANY_ROWS = ("chat", "evaluate", "explain", "facts", "generate", "lm_eval", "score")  # whose texts may be long


def version() -> str:
    """Return the version in pyproject.toml, which is always here: picogpt runs from its folder."""
    text = (Path(__file__).parent.parent / "pyproject.toml").read_text(encoding="utf-8")
    return str(re.findall(r'^version = "(.*)"$', text, re.MULTILINE)[0])


def usage() -> str:
    """Return the list of the tools."""
    rows = (f"  {name:15} {purpose}" for name, (_, purpose) in TOOLS.items())
    names = "\n".join(textwrap.fill(row, 79, subsequent_indent=" " * 18) for row in rows)
    return f"usage: python -m picogpt TOOL [--help] …\n\n{names}"


def main() -> int:
    """Run the tool that the command line names, or list the tools."""
    name = sys.argv[1] if sys.argv[1:] else ""
    if name in ("-h", "--help", "--version"):
        print(f"picogpt {version()}" if name == "--version" else usage())
        return 0
    if not name:
        log(usage(), keep="\n")
        return 2
    if name not in TOOLS:
        close = difflib.get_close_matches(name, TOOLS, 1)
        question = f": did you mean {close[0]}?" if close else ""
        log(f"picogpt: {name!r} is not one of {', '.join(TOOLS)}{question} (try --help)")
        return 2
    sys.argv = [f"picogpt {name}", *sys.argv[2:]]  # error messages begin with its first word
    if name != "bench":  # which measures what gpt2.py does
        one_thread_for_small_models(sys.argv)
    warnings.simplefilter("ignore", RuntimeWarning)  # of NumPy: `gpt2.check_finite` finds what is not finite
    tool = importlib.import_module(TOOLS[name][0])
    with contextlib.ExitStack() as stack:
        if name in MANY_ROWS:
            stack.enter_context(importlib.import_module("picogpt.parallel").on_all_cores())
        status: int = tool.main()
    return status


if __name__ == "__main__":
    sys.exit(run(main))
