"""python -m picogpt TOOL …: find the module of a tool and run its main. Only that module is imported."""

import importlib
import sys

from utils import log, run

TOOLS = {  # name: (module, what the tool does)
    "bench": ("picogpt.bench.command", "measure speed and memory against the machine's own limits"),
    "chat": ("picogpt.chat.terminal", "talk with a model in the terminal"),
    "compare": ("picogpt.compare.table", "check every part against other implementations"),
    "convert": (
        "picogpt.checkpoints.convert",
        "from Hugging Face's layout to OpenAI's, or back (--to-hf), bit for bit",
    ),
    "explain": (
        "picogpt.explain.command",
        "show what the model thinks of a text: in the terminal, as pictures, as a page",
    ),
    "random_weights": (
        "picogpt.checkpoints.random_weights",
        "write a model of any of the four sizes with random weights",
    ),
    "trace": ("picogpt.trace", "write every intermediate of one forward pass to a file"),
    "train": ("picogpt.train", "train a model of any shape from a text file"),
}


def main() -> int:
    names = "\n".join(f"  {name:15} {what}" for name, (_, what) in TOOLS.items())
    usage = f"usage: python -m picogpt TOOL [--help] …\n\n{names}"
    if sys.argv[1:2] in (["-h"], ["--help"]):
        print(usage)
        return 0
    if not sys.argv[1:] or sys.argv[1] not in TOOLS:
        log(f"picogpt: {sys.argv[1]!r} is not one of: {', '.join(TOOLS)}" if sys.argv[1:] else usage)
        return 2
    name = sys.argv.pop(1)
    sys.argv[0] = f"picogpt {name}"
    status: int = importlib.import_module(TOOLS[name][0]).main()
    return status


if __name__ == "__main__":
    sys.exit(run(main))
