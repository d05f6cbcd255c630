"""Text for people to read: tokens written so that they can be told apart, and lines that fit the terminal.

All tools write a token in the same way, as `visible` and `in_context` do, and a probability as `percent` does. Files
for programs have the exact bytes.
"""

from __future__ import annotations

import itertools
import math
import os
import sys
import textwrap
import unicodedata
from collections.abc import Sequence

from picogpt.command_line import log


def visible(token: bytes) -> str:
    r"""Turn a token's bytes into visible characters, so that different tokens look different.

    A space becomes "·". Some characters become a Python escape: control and format characters, a combining mark at the
    beginning, and bytes that are only a part of a character.
    Example: visible(b" caf\xc3\xa9") = "·café"; visible(b"\xc3\n") = r"\xc3\n"
    """
    text = token.decode("utf-8", errors="surrogateescape")
    return "".join(visible_char(char, first=i == 0) for i, char in enumerate(text))


def visible_char(char: str, first: bool) -> str:
    if char == " ":
        return "·"
    if "\udc80" <= char <= "\udcff":  # surrogateescape puts bytes here that are not valid UTF-8
        return f"\\x{ord(char) - 0xDC00:02x}"
    if char.isprintable() and char not in "\\·" and not (first and unicodedata.category(char).startswith("M")):
        return char
    if char < "\x80":
        return char.encode("unicode_escape").decode()
    return escaped(char)


def escaped(char: str) -> str:
    r"""Return a character as \u and its code: escaped("中") = "\u4e2d". The form \x is kept for single bytes."""
    return f"\\u{ord(char):04x}" if char <= "\uffff" else f"\\U{ord(char):08x}"


def in_context(tokens: Sequence[bytes]) -> list[str]:
    r"""Turn the tokens of a text into visible characters. The tokens that share a character are named as its parts.

    A token may hold only some bytes of a character, which say nothing by themselves. The text tells which character it
    is. A space separates such a part from the rest, and can't be taken for one of the text, which is shown as "·".
    Example: in_context([b" \xe4\xbd", b"\xa0"]) = ["· 你 1/2", "你 2/2"]
    """
    owners = [token for token, held in enumerate(tokens) for _ in held]  # the token that holds each byte of the text
    pieces: list[list[str]] = [[""] for _ in tokens]
    at = 0
    for char in b"".join(tokens).decode("utf-8", errors="surrogateescape"):
        size = len(char.encode("utf-8", errors="surrogateescape"))
        holders = list(dict.fromkeys(owners[at : at + size]))
        at += size
        for part, token in enumerate(holders, 1):
            if len(holders) > 1:
                pieces[token] += [f"{visible_char(char, first=True)} {part}/{len(holders)}", ""]
            else:
                pieces[token][-1] += visible_char(char, first=not pieces[token][-1])
    return [" ".join(filter(None, found)) for found in pieces]


def percent(p: float) -> str:
    """Write a probability in at most 7 characters: percent(0.123) = "12.3 %" """
    return "-" if math.isnan(p) else "<0.1 %" if 0 < p < 0.0005 else f"{100 * p:.1f} %"


def width_of_terminal() -> int:
    """Return how many columns the terminal of stderr has, or 80 if it is none, or does not say."""
    try:
        return os.get_terminal_size(sys.stderr.fileno()).columns or 80
    except (OSError, ValueError):  # a file or a pipe; a stream of a notebook, which has no number
        return 80


def log_wrapped(text: str) -> None:
    """Print a text to stderr in lines that fit the terminal."""
    for line in textwrap.wrap(text, width_of_terminal()):
        log(line)


def n_columns(text: str) -> int:
    """Count the columns that a text takes in a terminal: two for Chinese and emoji, none for combining marks.

    The two joiners take none, either. Source: Unicode Standard Annex 11, "East Asian Width".
    """
    widths = {"W": 2, "F": 2}
    return sum(
        0
        if unicodedata.category(char) in ("Mn", "Me") or char in "\u200c\u200d"
        else widths.get(unicodedata.east_asian_width(char), 1)
        for char in text
    )


def fit(text: str, width: int) -> str:
    """Make a text exactly this many columns wide: add spaces, or cut it and end it with an ellipsis."""
    if n_columns(text) > width:
        ends = itertools.accumulate(map(n_columns, text))
        text = text[: sum(end < width for end in ends)] + "…"
    return text + " " * (width - n_columns(text))


def fit_middle(text: str, width: int) -> str:
    """Make a text exactly this many columns wide: add spaces, or put an ellipsis in the place of its middle.

    >>> fit_middle("books/ulysses/chapter-01.txt", 20), fit_middle("a.txt", 8)
    ('books/uly…ter-01.txt', 'a.txt   ')
    """
    if n_columns(text) > width:
        n_end = sum(n <= width // 2 for n in itertools.accumulate(map(n_columns, reversed(text))))
        end = text[len(text) - n_end :]
        return fit(fit(text, width - n_columns(end)).rstrip() + end, width)
    return fit(text, width)


def split_words(text: str, width: int) -> list[str]:
    """Split a text into words, each with the spaces and tabs before it.

    A character of two columns is a word by itself, because Chinese and Japanese have no spaces. A word that has more
    than `width` columns is split. The last word may be incomplete.

    >>> split_words("so  I say 你好", 80)
    ['so', '  I', ' say', ' 你', '好']
    """
    words, n = [""], 0  # n columns of the last word are no spaces
    for char in text:
        columns, bare = n_columns(char), words[-1].lstrip(" \t")
        is_wide = n > 0 and 2 in (columns, n_columns(bare[0]))
        if bare and columns and (char in " \t" or is_wide or n + columns > width):
            words.append("")
            n = 0
        words[-1] += char
        n += 0 if char in " \t" else columns
    return words


class Wrapper:
    """Breaks text that comes in pieces into lines of at most `width` columns, between words.

    The first line has `column` columns already. A word is held back until it is complete, so that nothing that is on
    the screen has to move. Without a width, every piece passes at once and unchanged.
    """

    def __init__(self, width: int | None, column: int = 0):
        self.width, self.column, self.held = width, column, ""

    def add(self, piece: str) -> str:
        """Take the next piece, and return what can be printed now."""
        if self.width is None:
            return piece
        *words, self.held = split_words(self.held + piece, self.width)
        return "".join(map(self.place, words))

    def finish(self) -> str:
        """Return the word that was held back."""
        word, self.held = self.held, ""
        return self.place(word)

    def place(self, word: str) -> str:
        """Return a word with the spaces before it, or with a line break instead of them if it does not fit."""
        bare = word.lstrip(" \t")
        spaces = word[: len(word) - len(bare)]
        end = len((" " * self.column + spaces).expandtabs()) + n_columns(bare)
        if self.width is None or end <= self.width or not bare:
            self.column = end
            return word
        broken = "\n" if self.column else ""
        self.column = n_columns(bare)
        return broken + bare
