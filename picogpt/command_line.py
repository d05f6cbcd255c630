"""What every command line needs: options, prompts and texts, messages, streams and signals.

`run` turns a function into a well-behaved command. This module imports nothing else of picogpt.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import itertools
import logging
import math
import os
import re
import signal
import sys
import textwrap
import time
import unicodedata
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any


class UsageError(ValueError):
    """Raised when the user asked for something impossible. The exit status is 2; for other errors it is 1."""


class Parser(argparse.ArgumentParser):
    """Parse a command line whose errors are one line each. A prompt may begin with -h, so only -h alone asks for help.

    `prog` is the command as a user types it, such as "python -m picogpt train". `Parser.model` is the model that the
    last command line named, for messages.
    """

    model = "the model"

    def __init__(self, prog: str, **settings: Any):
        settings["description"] = textwrap.fill(settings.get("description", ""), 78, break_on_hyphens=False)
        super().__init__(prog, add_help=False, formatter_class=argparse.RawDescriptionHelpFormatter, **settings)
        self.add_argument("--help", action="help", help="show this text and exit")

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        args = sys.argv[1:] if args is None else args
        parsed, unknown = super().parse_known_args(["--help"] if args == ["-h"] else args, namespace)
        Parser.model = getattr(parsed, "model_size", Parser.model)
        return parsed, unknown

    def _get_option_tuples(self, option_string: str) -> Any:
        """Find the options that a word may mean. Take --to-hf as --to_hf, since other programs write names so."""
        name, *value = option_string.split("=", 1)
        if name.startswith("--"):
            option_string = "=".join(["--" + name[2:].replace("-", "_"), *value])
        return super()._get_option_tuples(option_string)

    def error(self, message: str) -> Any:
        if re.match("unrecognized arguments: [^-]", message) and "prompt" in (action.dest for action in self._actions):
            message += "; put a text of several words into quotes"
        name = self.prog.removeprefix("python ").removeprefix("-m ")
        log(f"{name}: {message} (try --help)")
        self.exit(2)


def number(
    low: float, high: float = math.inf, kind: type[float] = float, open_low: bool = False
) -> Callable[[str], float]:
    """Return a function for `type=` of an option. It parses a number and refuses one that is not from low to high.

    >>> number(0, 1)("0.5")
    0.5
    >>> number(0, kind=int)("-1")
    Traceback (most recent call last):
    argparse.ArgumentTypeError: '-1' is not a whole number at least 0
    """

    def parse(text: str) -> float:
        try:
            value = kind(text)
        except ValueError:
            value = math.nan
        if not (low < value if open_low else low <= value) or not value <= high or value == math.inf:
            name = "a whole number" if kind is int else "a number"
            limits = f"{'above' if open_low else 'at least'} {low:g}"
            if high < math.inf:
                limits += f" and at most {high:g}"
            raise argparse.ArgumentTypeError(f"{text!r} is not {name} {limits}")
        return value

    return parse


def read_prompt(text: str, longest: int = 1 << 24) -> str:
    """Return the prompt from the command line. "-" reads it from standard input, without its last line end.

    Line ends become \\n, and a byte order mark at the start is left out, as in files. Raises UsageError when the text
    is not valid UTF-8, or has more than `longest` bytes: the output of `yes` has no end.
    """
    if text == "-":
        if sys.stdin is None:
            raise UsageError("standard input is closed")
        if len(data := sys.stdin.buffer.read(longest + 1)) > longest:
            raise UsageError(f"standard input has more than {longest:,} bytes")
        return decode_utf8(data, "standard input").replace("\r\n", "\n").removesuffix("\n")
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise UsageError(f"the prompt is not valid UTF-8: character {error.start} is {text[error.start]!r}") from None
    return text.removeprefix("\ufeff")


def read_text(path: Path, megabytes: int = 1000) -> str:
    """Return the text of a file, with line ends as \\n. Raises OSError, or UsageError if it is too long or not UTF-8.

    The file may be a pipe, such as <(cat TEXT), or a device, which may have no end.
    """
    with open(path, "rb") as file:
        data = b"".join(itertools.islice(iter(lambda: file.read(1 << 20), b""), megabytes + 1))
    if len(data) > megabytes << 20:
        raise UsageError(f"{path} has more than {megabytes:,} MB, the most that is read of such a file")
    return re.sub(r"\r\n?", "\n", decode_utf8(data, str(path)))


def decode_utf8(data: bytes, source: str) -> str:
    """Decode UTF-8 without a byte order mark. Raises UsageError naming the source and its first wrong byte."""
    try:
        return data.decode("utf-8").removeprefix("\ufeff")
    except UnicodeDecodeError as error:
        raise UsageError(f"{source} is not UTF-8: byte {error.start} is 0x{data[error.start]:02x}") from None


def visible(text: str, keep: str = "") -> str:
    r"""Return a text without characters that could steer or deceive a terminal: they become escapes such as \x1b.

    These are control characters, formats such as "from right to left" or a space of no width, line and paragraph
    separators, and lone surrogates. Those in `keep`, such as "\n\t", stay.

    >>> print(visible("\x1b[2J two\nlines \u202e漢"))
    \x1b[2J two\nlines \u202e漢
    """
    hidden = {"Cc", "Cf", "Cs", "Zl", "Zp"}  # Unicode's general categories of these characters
    return "".join(
        repr(char)[1:-1] if unicodedata.category(char) in hidden and char not in keep else char for char in text
    )


def shown(text: str) -> str:
    """Return what to print of a model's text: all of it, unchanged, but `visible` if stdout is a terminal.

    The two joiners stay in both cases, since they belong to words in Persian and Hindi, and to many emoji.
    """
    return visible(text, keep="\n\t\u200c\u200d") if sys.stdout.isatty() else text


def log(message: str, keep: str = "") -> None:
    """Print a message for the user to stderr, because stdout is for results only.

    It becomes `visible`, and therefore one line, whatever names and values are in it, except for characters in `keep`.
    """
    print(visible(message, keep), file=sys.stderr, flush=True)


def show(line: str) -> None:
    """Print a line of results in which there is a name from the user, or from a foreign file. It becomes `visible`."""
    print(visible(line), flush=True)


def timed(ids: Iterable[int], times: list[float]) -> Iterator[int]:
    """Pass on the ids, and append the time to times when the text of each has been printed."""
    for id in ids:
        yield id
        times.append(time.perf_counter())  # whoever prints the text comes back for the next id


def log_speed(n_prompt: int, times: list[float]) -> None:
    """Print the speed to stderr. `times` holds the clock at the start and after each new token, in seconds."""
    if len(times) > 1:
        rate = f", then {(len(times) - 2) / (times[-1] - times[1]):.1f} tokens/s" if len(times) > 2 else ""
        log(f"[{n_prompt} prompt token{'s' * (n_prompt != 1)} in {times[1] - times[0]:.2f} s{rate}]")


def free_memory(group: Path = Path("/sys/fs/cgroup")) -> int:
    """Return how many bytes of memory this process can take before the system has to swap or to kill.

    On macOS, which has no simple way to ask, this is all the memory of the machine.
    """
    if sys.platform == "win32":
        import ctypes

        status = (ctypes.c_uint64 * 8)(64)  # a MEMORYSTATUSEX: its own size, the total and the available bytes, ...
        ctypes.windll.kernel32.GlobalMemoryStatusEx(ctypes.byref(status))
        return int(status[2])
    limits = [os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")]
    with contextlib.suppress(OSError):
        limits += [1024 * int(kb) for kb in re.findall(r"MemAvailable: *(\d+) kB", Path("/proc/meminfo").read_text())]
    with contextlib.suppress(OSError, ValueError):  # a container's limit, which is "max" where there is none
        limit, used = int((group / "memory.max").read_text()), (group / "memory.stat").read_text()
        limits += [limit - int(anonymous) for anonymous in re.findall(r"^anon (\d+)$", used, re.MULTILINE)]
    return min(limits)


class Logged(logging.Handler):
    """Shows the warnings of the library, which go to the logger `picogpt`, as `log` does."""

    def emit(self, record: logging.LogRecord) -> None:
        log(record.getMessage())


def run(main: Callable[[], int]) -> int:
    """Call `main` and return the exit status. An error is one line on stderr; Ctrl-C and a closed pipe are silent."""
    prepare_streams()
    if not (logger := logging.getLogger("picogpt")).handlers:
        logger.addHandler(Logged())
    try:
        with signals_as_exceptions():
            status = main()
            sys.stdout.flush()  # what can't be written is an error, too
            return status
    except SystemExit as stop:  # of argparse and of signals
        status = int(stop.code or 0)
    except KeyboardInterrupt:
        status = 130
    except BrokenPipeError:
        status = 141
    except (OSError, ValueError, MemoryError, FloatingPointError) as error:
        log(f"{Path(sys.argv[0]).name}: {reason(error)}")
        status = 2 if isinstance(error, UsageError) else 1
    try:
        sys.stdout.flush()
    except OSError:
        if sys.__stdout__ and sys.stdout is sys.__stdout__:  # Python would try once more at exit, and complain
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.__stdout__.fileno())
    return status


def prepare_streams() -> None:
    """Make sure that printing works where a stream is closed, or has no such character in its encoding."""
    for name, errors in {"stdin": "strict", "stdout": "replace", "stderr": "backslashreplace"}.items():
        stream = getattr(sys, name)
        if stream is None and name != "stdin":  # print would fail, or send errors to stdout, also in processes of ours
            number = {"stdout": 1, "stderr": 2}[name]
            os.dup2(os.open(os.devnull, os.O_WRONLY), number)
            os.set_inheritable(number, True)
            setattr(sys, name, open(number, "w", encoding="utf-8", closefd=False))  # noqa: SIM115
        elif isinstance(stream, io.TextIOWrapper):  # a notebook's stream has no encoding to set
            with contextlib.suppress(io.UnsupportedOperation):  # something was read from stdin already
                stream.reconfigure(errors=errors)


@contextlib.contextmanager
def signals_as_exceptions() -> Iterator[None]:
    """Turn SIGTERM and SIGHUP into SystemExit, as Ctrl-C is KeyboardInterrupt, so that no half-written file stays.

    A handler is set where there is none, and taken away at the end.
    """

    def leave(number: int, frame: Any) -> None:
        raise SystemExit(128 + number)

    numbers = [getattr(signal, name) for name in ("SIGTERM", "SIGHUP") if hasattr(signal, name)]
    free = [number for number in numbers if signal.getsignal(number) is signal.SIG_DFL]
    with contextlib.suppress(ValueError):  # Python sets handlers in the main thread only
        for number in free:
            signal.signal(number, leave)
    try:
        yield
    finally:
        with contextlib.suppress(ValueError):
            for number in free:
                signal.signal(number, signal.SIG_DFL)


def reason(error: Exception) -> str:
    """Return why something failed: with the file of an OSError, and the model whose numbers are not finite."""
    if isinstance(error, FloatingPointError):
        return f"{Parser.model}: {error}"
    if isinstance(error, OSError) and error.filename:
        return f"{error.filename}: {error.strerror}"
    text = str(error) or type(error).__name__
    return f"not enough memory: {text}" if isinstance(error, MemoryError) else text


def check_memory(what: str, n_bytes: float, advice: str = "") -> str:
    """Return a sentence that says how much memory some work takes and how much is free. `what` names the work.

    Raises UsageError, which ends with the advice, if too little is free. What the work takes is rounded up, and what
    is free is rounded down.
    """
    free = free_memory()
    takes, are_free = f"{math.ceil(n_bytes / 1e6):,} MB of memory", f"{math.floor(free / 1e6):,} MB are free"
    if n_bytes > free:
        raise UsageError(f"{what} takes {takes}, but only {are_free}" + (f": {advice}" if advice else ""))
    return f"{what} takes {takes}; {are_free}"
