"""python -m picogpt TOOL …: one module of this package for each tool, imported only when it is called."""

import importlib
import sys

from utils import run, say

TOOLS = {
    "bench": "measure speed and memory against the machine's own limits",
    "chat": "talk with a model in the terminal",
    "compare": "check every part against other implementations",
    "convert": "from Hugging Face's layout to OpenAI's, or back (--to-hf), bit for bit",
    "explain": "show what the model thinks of a text: in the terminal, as pictures, as a page",
    "random_weights": "write a model of any of the four sizes with random weights",
    "trace": "write every intermediate of one forward pass to a file",
    "train": "train a model of any shape from a text file",
}


def main() -> int:
    names = "\n".join(f"  {name:15} {what}" for name, what in TOOLS.items())
    usage = f"usage: python -m picogpt TOOL [--help] …\n\n{names}"
    if sys.argv[1:2] in (["-h"], ["--help"]):
        print(usage)
        return 0
    if not sys.argv[1:] or sys.argv[1] not in TOOLS:
        say(f"picogpt: {sys.argv[1]!r} is not one of: {', '.join(TOOLS)}" if sys.argv[1:] else usage)
        return 2
    name = sys.argv.pop(1)
    sys.argv[0] = f"picogpt {name}"
    status: int = importlib.import_module(f"picogpt.{name}").main()
    return status


if __name__ == "__main__":
    sys.exit(run(main))
