"""Run a tool: `python -m picogpt TOOL …` calls the `main` of the tool's module. Only that module is imported."""

from __future__ import annotations

import _signal as signal  # type: ignore[import-not-found]  # the part of `signal` that imports nothing
import sys

if __name__ == "__main__" and signal.getsignal(signal.SIGINT) is signal.default_int_handler:
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # before `run` begins, Ctrl-C ends the program silently

import importlib
import textwrap

from picogpt.command_line import log, run

TOOLS = {  # name: (module, purpose)
    "generate": ("picogpt.generate", "continue a text as gpt2.py does, with more options: many samples, speed, …"),
    "bench": ("picogpt.bench.command", "measure speed and memory, and compare them with the machine's limits"),
    "chat": ("picogpt.chat.terminal", "talk with a model in the terminal"),
    "compare": ("picogpt.compare.table", "check every part of the model against other implementations"),
    "convert": ("picogpt.checkpoints.convert", "convert a model from Hugging Face's layout to OpenAI's, or back"),
    "evaluate": ("picogpt.evaluate.command", "evaluate a model on LAMBADA and other datasets, by named protocols"),
    "explain": ("picogpt.explain.command", "show how the model reads a text: in the terminal, as pictures, as a page"),
    "lm_eval": ("picogpt.harness", "run the tasks of lm-evaluation-harness on gpt2.py"),
    "random_weights": ("picogpt.checkpoints.random_weights", "write a model with random weights"),
    "score": ("picogpt.scoring.command", "measure how well a model predicts texts: log-probabilities and perplexity"),
    "tokens": ("picogpt.tokens", "show the tokens of a text"),
    "trace": (
        "picogpt.tracing.command",
        "write every intermediate array of a forward pass, or compare with another program's",
    ),
    "train": ("picogpt.train.command", "train a model of any shape on a text file, or fine-tune one on it"),
}


def main() -> int:
    """Run the tool that the command line names, or list the tools."""
    rows = (f"  {name:15} {purpose}" for name, (_, purpose) in TOOLS.items())
    names = "\n".join(textwrap.fill(row, 79, subsequent_indent=" " * 18) for row in rows)
    usage = f"usage: python -m picogpt TOOL [--help] …\n\n{names}"
    if sys.argv[1:2] in (["-h"], ["--help"]):
        print(usage)
        return 0
    if not sys.argv[1:]:
        log(usage, keep="\n")
        return 2
    name = sys.argv.pop(1)
    if name not in TOOLS:
        log(f"picogpt: {name!r} is not one of {', '.join(TOOLS)} (try --help)")
        return 2
    sys.argv[0] = f"picogpt {name}"  # error messages begin with it
    status: int = importlib.import_module(TOOLS[name][0]).main()
    return status


if __name__ == "__main__":
    sys.exit(run(main))
