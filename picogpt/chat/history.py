"""Keep the lines that a user typed in a file, for this chat's arrow keys and the next one's.

Several chats may run at once. Each of them appends a line as soon as it is typed, in a single write, so that no other
line gets into it.
"""

from __future__ import annotations

import contextlib
import functools
import os
from collections.abc import Iterator
from pathlib import Path

from picogpt.command_line import log, reason
from picogpt.files import new_file

LONGEST_HISTORY = 1 << 18  # bytes; a longer file is cut to the newest half of this


def newest_lines(path: Path) -> list[str]:
    """Return the lines of the history, oldest first, and cut its file if it is too long. Raises OSError."""
    data = b""
    with contextlib.suppress(FileNotFoundError):
        data = path.read_bytes()
    lines = data.split(b"\n")
    if len(data) > LONGEST_HISTORY:
        lines = data[-LONGEST_HISTORY // 2 :].split(b"\n")[1:]  # the first of a part is only the end of a line
        with new_file(path, replace=True) as shorter:
            shorter.write(b"\n".join(lines))
    return [line.decode("utf-8", errors="replace") for line in lines if line.strip()]


def append_line(path: Path, line: str) -> None:
    """Append a line to the history. Only the user may read a new file. Raises OSError."""
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    with open(path, "ab", buffering=0, opener=functools.partial(os.open, mode=0o600)) as file:
        file.write(line.encode("utf-8", errors="replace") + b"\n")


class History:
    """The lines that the user typed. Without a path, or after an error, which is logged once, no file keeps them."""

    def __init__(self, path: Path | None):
        self.path = path

    def lines(self) -> list[str]:
        """Return the lines of earlier chats, oldest first."""
        with self.errors_logged():
            return newest_lines(self.path) if self.path else []
        return []

    def add(self, line: str) -> None:
        """Keep a line."""
        with self.errors_logged():
            if self.path:
                append_line(self.path, line)

    @contextlib.contextmanager
    def errors_logged(self) -> Iterator[None]:
        """Log an error of the `with` block. The file is left alone from then on."""
        try:
            yield
        except OSError as error:
            log(f"[the history is not kept: {reason(error)}]")
            self.path = None
