"""Read texts exactly as they are: whole files, standard input, or a field of each line of JSON Lines."""

from __future__ import annotations

import contextlib
import json
import os
import stat
import sys
from collections.abc import Iterator

from picogpt.command_line import UsageError, decode_utf8

LONGEST = 1 << 30  # bytes of one text: its token ids alone take about twice as much memory


def shown_name(name: str) -> str:
    """Return how messages call a file: "-" is standard input."""
    return "standard input" if name == "-" else name


def read_bytes(name: str) -> bytes:
    """Return the bytes of a file or a pipe, or of standard input for "-".

    Raises OSError if a file changes its length while it is read, and UsageError if it is too long.
    """
    if name == "-" and sys.stdin is None:
        raise UsageError("standard input is closed")
    with contextlib.nullcontext(sys.stdin.buffer) if name == "-" else open(name, "rb") as file:
        data = file.read(LONGEST + 1)
        if len(data) > LONGEST:
            raise UsageError(f"{shown_name(name)} has more than {LONGEST:,} bytes, the most that a text may have")
        if name != "-" and stat.S_ISREG((status := os.fstat(file.fileno())).st_mode) and status.st_size != len(data):
            raise OSError(f"{name} changed while it was read: it has {status.st_size:,} bytes, but had {len(data):,}")
    return data


def read_exactly(name: str) -> str:
    """Return the text of a file, or of standard input for "-", with its line ends as they are."""
    return decode_utf8(read_bytes(name), shown_name(name))


def numbered_lines(text: str) -> list[tuple[int, str]]:
    r"""Return the lines that are not blank, with their numbers. A byte order mark in front belongs to none.

    >>> numbered_lines("\ufeffone\n\nthree\n")
    [(1, 'one'), (3, 'three')]
    """
    lines = text.removeprefix("\ufeff").split("\n")
    return [(number, line) for number, line in enumerate(lines, 1) if line.strip()]


def field_of(line: str, field: str) -> str:
    """Return the text in a field of a JSON object. Raises ValueError if the line is no object with such a field.

    >>> field_of('{"text": "To be"}', "text")
    'To be'
    """
    try:
        record = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"not JSON: {error}") from None
    if not isinstance(record, dict) or field not in record:
        raise ValueError(f"not a JSON object with the field {field!r}")
    if not isinstance(text := record[field], str):
        raise ValueError(f"the field {field!r} is not a text, but {type(text).__name__}")
    return text


def records(name: str, field: str) -> Iterator[tuple[str, str]]:
    """Yield the place and the text of one field of each line of a JSON Lines file. Blank lines are skipped.

    Raises UsageError that begins with the place of a wrong line.
    """
    for number, line in numbered_lines(read_exactly(name)):
        place = f"{name}:{number}"
        try:
            text = field_of(line, field)
        except ValueError as error:
            raise UsageError(f"{place}: {error}") from None
        yield place, text


def read_texts(names: list[str], field: str | None) -> list[tuple[str, str]]:
    """Return the place and the text of each file, or of each line's field. Raises UsageError if one is empty."""
    texts: list[tuple[str, str]] = []
    for name in names:
        found = [(name, read_exactly(name))] if field is None else list(records(name, field))
        if not found:
            raise UsageError(f"{shown_name(name)} is empty: it has no record to score")
        texts += found
    for place, text in texts:
        if not text:
            raise UsageError(f"{shown_name(place)} is empty: it has no token to score")
    return texts
