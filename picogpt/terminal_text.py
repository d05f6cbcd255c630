"""Measure text in the columns of a terminal, and break it into lines between words: at once, or while it comes."""

from __future__ import annotations

import os
import sys
import textwrap
import unicodedata

from picogpt.command_line import log


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
