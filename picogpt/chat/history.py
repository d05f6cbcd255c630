"""Keep the lines that a user typed in a file, for this chat's arrow keys and the next one's.

Several chats may run at once. Each of them appends a line as soon as it is typed, while it holds a lock. When a chat
begins and the file has grown too long, a shorter one takes its place, under the same lock.
"""

from __future__ import annotations

import contextlib
import functools
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypeVar

from picogpt.command_line import log
from picogpt.files import file_to_write, new_file
from utils import lock

LONGEST_HISTORY = 1 << 18  # bytes; a longer file is cut to the newest half of this

Result = TypeVar("Result")


def reason(error: OSError) -> str:
    """Return why something failed, and with which file."""
    return f"{error.filename}: {error.strerror}" if error.filename else str(error)


@contextlib.contextmanager
def locked(path: Path) -> Iterator[None]:
    """Keep other chats away from the history inside the `with` block. Makes the folder if there is none."""
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    file_to_write(path, replace=True)  # raises OSError for a folder, a device or a pipe
    with open(path.with_name(f"{path.name}.lock"), "ab") as file:
        with contextlib.suppress(OSError):  # some network file systems have no locks
            lock(file.fileno(), wait=True)
        yield


def newest_lines(path: Path) -> list[str]:
    """Return the lines of the history, oldest first, and cut its file if it is too long. Raises OSError."""
    with locked(path):
        if not path.exists():
            return []
        path.chmod(0o600)
        with open(path, "rb") as file:
            is_long = file.seek(0, os.SEEK_END) > LONGEST_HISTORY
            file.seek(-LONGEST_HISTORY // 2 if is_long else 0, os.SEEK_END if is_long else os.SEEK_SET)
            lines = file.read().split(b"\n")[is_long:]  # the first of a part is only the end of a line
        if is_long:
            with new_file(path, replace=True) as shorter:
                shorter.write(b"\n".join(lines))
    return [line.decode("utf-8", errors="replace") for line in lines if line.strip()]


def append_line(path: Path, line: str) -> None:
    """Append a line to the history. Only the user may read a new file. Raises OSError."""
    with locked(path), open(path, "ab", opener=functools.partial(os.open, mode=0o600)) as file:
        file.write(line.encode("utf-8", errors="replace") + b"\n")


class History:
    """The lines that the user typed. Without a path, or after an error, which is logged once, no file keeps them."""

    def __init__(self, path: Path | None):
        self.path = path

    def lines(self) -> list[str]:
        """Return the lines of earlier chats, oldest first."""
        return self.attempt(newest_lines) or []

    def add(self, line: str) -> None:
        """Keep a line."""
        self.attempt(lambda path: append_line(path, line))

    def attempt(self, work: Callable[[Path], Result]) -> Result | None:
        """Do something with the file. After an error, the file is left alone from then on."""
        if self.path is None:
            return None
        try:
            return work(self.path)
        except OSError as error:
            log(f"[the history is not kept: {reason(error)}]")
            self.path = None
            return None
