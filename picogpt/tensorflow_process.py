"""Call functions that use TensorFlow in a process of its own.

TensorFlow and triton, which PyTorch brings on Linux, can't be in one process: importing both ends it. TensorFlow also
ends its process at some damaged files, and writes lines about itself to stderr, which are not shown here.
"""

from __future__ import annotations

import functools
import pickle
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

ROOT = Path(__file__).parent.parent
START = "import sys; sys.path = sys.argv[1:]; from picogpt.tensorflow_process import serve; serve()"


class TensorFlowError(ValueError):
    """Raised with the first line of what TensorFlow says about a failure."""


class TensorFlowProcess:
    """A process that calls functions. It ends with the `with` block, or with the process that began it.

    Arguments and results are pickled; of a function, only its module and its name. It should import TensorFlow itself,
    and return NumPy's arrays, since to unpickle an object of TensorFlow would import it here.
    """

    def __init__(self) -> None:
        places = [str(ROOT), *filter(None, sys.path)]  # without the current folder, which may be a stranger's
        words = [sys.executable, "-c", START, *places]
        pipe = subprocess.PIPE
        self.process = subprocess.Popen(words, stdin=pipe, stdout=pipe, stderr=subprocess.DEVNULL)

    def __enter__(self) -> TensorFlowProcess:
        return self

    def __exit__(self, *error: object) -> None:
        self.process.kill()
        self.process.communicate()

    def call(self, function: Callable[..., Any], *args: Any) -> Any:
        """Return function(*args) as that process computes it. Raises TensorFlowError if it fails there."""
        stdin, stdout = cast(Any, self.process.stdin), cast(Any, self.process.stdout)
        try:
            pickle.dump((function, args), stdin, protocol=5)
            stdin.flush()
            failure, result = pickle.load(stdout)
        except (OSError, EOFError):
            raise TensorFlowError("it crashes") from None
        if failure:
            raise TensorFlowError(failure)
        return result


@functools.cache
def shared_process() -> TensorFlowProcess:
    """Return the process for many calls: importing TensorFlow takes seconds."""
    return TensorFlowProcess()


def serve() -> None:
    """Answer the calls that come through standard input until it ends."""
    while True:
        try:
            function, args = pickle.load(sys.stdin.buffer)
        except EOFError:
            return
        try:
            answer = "", function(*args)
        except Exception as error:  # TensorFlow's own kinds of errors would import it where they are unpickled
            answer = (str(error) or type(error).__name__).splitlines()[0], None
        pickle.dump(answer, sys.stdout.buffer, protocol=5)
        sys.stdout.buffer.flush()
