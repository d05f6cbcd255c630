"""Read texts exactly as they are: whole files, standard input, or a field of each line of JSON Lines."""

from __future__ import annotations

import contextlib
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from picogpt.command_line import UsageError, decode_utf8


def shown_name(name: str) -> str:
    """Return how messages call a file: "-" is standard input."""
    return "standard input" if name == "-" else name


def read_exactly(name: str) -> str:
    """Return the text of a file, or of standard input for "-", with its line ends as they are.

    Raises OSError, and UsageError if it is not UTF-8.
    """
    if name == "-" and sys.stdin is None:
        raise UsageError("standard input is closed")
    data = sys.stdin.buffer.read() if name == "-" else Path(name).read_bytes()
    return decode_utf8(data, shown_name(name))


@contextlib.contextmanager
def at(place: str) -> Iterator[None]:
    """Turn a ValueError into a UsageError whose message begins with its place, such as "passages.jsonl:3"."""
    try:
        yield
    except ValueError as error:
        raise UsageError(f"{place}: {error}") from None


def numbered_lines(name: str, text: str) -> list[tuple[str, str]]:
    r"""Return the place and the text of each line of a file that is not blank.

    >>> numbered_lines("file", "one\n\nthree\n")
    [('file:1', 'one'), ('file:3', 'three')]
    """
    return [(f"{name}:{number}", line) for number, line in enumerate(text.split("\n"), 1) if line.strip()]


def json_object(text: str | bytes) -> dict[str, Any]:
    """Parse a JSON object. Raises ValueError if the text is none."""
    try:
        found = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"not JSON: {error}") from None
    if not isinstance(found, dict):
        raise ValueError("not a JSON object")
    return found


def field_of(line: str, field: str) -> str:
    """Return the text in a field of a JSON object. Raises ValueError if the line is no object with such a field.

    >>> field_of('{"text": "To be"}', "text")
    'To be'
    """
    text = json_object(line).get(field)
    if not isinstance(text, str):
        raise ValueError(f"not a JSON object with a text in the field {field!r}")
    return text


def read_texts(names: list[str], field: str | None) -> list[tuple[str, str]]:
    """Return the place and the text of each file, or of a field of each line of JSON Lines that is not blank.

    Raises UsageError that begins with the place if a line is wrong or a text is empty.
    """
    texts: list[tuple[str, str]] = []
    for name in names:
        lines = [(name, read_exactly(name))]
        if field is not None and not (lines := numbered_lines(*lines[0])):
            raise UsageError(f"{shown_name(name)} is empty: it has no record to score")
        for place, line in lines:
            with at(place):
                texts.append((place, line if field is None else field_of(line, field)))
    for place, text in texts:
        if not text:
            raise UsageError(f"{shown_name(place)} is empty: it has no token to score")
    return texts
