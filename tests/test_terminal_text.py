"""Test how text is measured in columns, and broken into lines, at once or while it comes."""

from __future__ import annotations

import doctest
import io
import os
import re
import sys

import pytest
from helpers import read_to_the_end
from hypothesis import given
from hypothesis import strategies as st

from picogpt import terminal_text
from picogpt.terminal_text import Wrapper, fit_middle, log_wrapped, n_columns, split_words, width_of_terminal

TEXTS = st.text(st.sampled_from("abcdefg  \t-.é\u0301你好🙂\u200d"), max_size=60)


def wrapped(text: str, width: int | None, column: int = 0, size: int = 1) -> str:
    """Return a text that came in pieces of this size as lines."""
    wrapper = Wrapper(width, column)
    return "".join(wrapper.add(text[i : i + size]) for i in range(0, len(text), size)) + wrapper.finish()


@pytest.mark.parametrize(
    ("text", "expected"),
    [("abc", 3), ("你好", 4), ("🙂", 2), ("e\u0301", 1), ("\u200d", 0), ("\u0915\u200d\u0937", 2), ("", 0), ("ｱ", 1)],
)
def test_columns(text, expected):
    assert n_columns(text) == expected


@pytest.mark.parametrize(
    ("text", "width", "column", "expected"),
    [
        ("one two three", 7, 0, "one two\nthree"),
        ("one two three", 7, 1, "one\ntwo\nthree"),
        ("one two", 80, 78, "\none two"),
        ("one", 3, 0, "one"),
        ("one", 3, 1, "\none"),
        ("one  two", 8, 0, "one  two"),
        ("one  two", 7, 0, "one\ntwo"),
        ("a\tb c", 9, 0, "a\tb\nc"),
        ("a\tb", 8, 0, "a\nb"),
        ("abcdefgh", 3, 0, "abc\ndef\ngh"),
        ("x abcdefgh", 3, 0, "x\nabc\ndef\ngh"),
        ("我说你好。", 4, 0, "我说\n你好\n。"),
        ("say 你好 now", 6, 0, "say 你\n好 now"),
        ("e\u0301e\u0301 e\u0301", 4, 0, "e\u0301e\u0301 e\u0301"),
        ("你", 1, 0, "你"),
        ("one ", 3, 0, "one "),
        ("\u0301\ta", 2, 0, "\u0301a"),
    ],
)
def test_lines_break_between_words(text, width, column, expected):
    assert wrapped(text, width, column) == expected


@given(TEXTS, st.integers(2, 30), st.integers(0, 30))
def test_every_line_fits_and_nothing_but_spaces_is_lost(text, width, column):
    lines = wrapped(text, width, column).split("\n")
    for i, line in enumerate(lines):
        start = " " * column if i == 0 else ""
        cells = "".join(char if char in " \t" else "#" * n_columns(char) for char in start + line)
        assert len(cells.expandtabs()) <= width or not line.strip(" \t") or line[-1] in " \t", (i, line)
    without_spaces = re.sub("[ \t\n]", "", "".join(lines))
    assert without_spaces == re.sub("[ \t]", "", text)
    assert wrapped(text, None, column) == text


@given(TEXTS, st.integers(2, 30), st.integers(1, 9))
def test_lines_do_not_depend_on_the_pieces(text, width, size):
    assert wrapped(text, width, size=size) == wrapped(text, width, size=len(text) or 1)


def test_only_the_last_word_waits():
    wrapper = Wrapper(10)
    pieces = ["He", "llo", " wor", "ld", " 你", "好", " x" * 9]
    assert [wrapper.add(piece) for piece in pieces] == ["", "", "Hello", "", "\nworld", " 你", "好\nx x x x x\nx x x"]
    assert wrapper.finish() == " x"
    assert [Wrapper(None).add(piece) for piece in pieces] == pieces


def test_a_word_without_an_end_does_not_wait_forever():
    wrapper = Wrapper(10)
    assert "".join(wrapper.add("x") for _ in range(10**4)).count("x") >= 10**4 - 10


@given(TEXTS, st.integers(1, 9))
def test_words_are_the_whole_text(text, width):
    words = split_words(text, width)
    assert "".join(words) == text
    assert all(word.strip(" \t") for word in words[:-1])


@pytest.mark.skipif(sys.platform == "win32", reason="a pseudo-terminal of POSIX")
@pytest.mark.parametrize(("columns", "width"), [(40, 40), (0, 80)])
def test_lines_fit_the_terminal(monkeypatch, columns, width):
    import fcntl
    import struct
    import termios

    controller, terminal = os.openpty()
    fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack("4H", 24, columns, 0, 0))
    with open(terminal, "w") as stream:
        monkeypatch.setattr(sys, "stderr", stream)
        assert width_of_terminal() == width
        log_wrapped("word " * 40)
    lines = read_to_the_end(controller).decode().splitlines()
    os.close(controller)
    assert width - 5 < max(map(len, lines)) <= width
    assert " ".join(lines).split() == ["word"] * 40


def test_no_terminal_has_80_columns(monkeypatch, tmp_path):
    with open(tmp_path / "err.txt", "w") as file:
        for stream in (file, io.StringIO()):
            monkeypatch.setattr(sys, "stderr", stream)
            assert width_of_terminal() == 80


def test_the_examples_in_the_docstrings():
    assert doctest.testmod(terminal_text).failed == 0


@given(TEXTS, st.integers(1, 70))
def test_a_text_that_is_cut_in_its_middle_keeps_its_ends(text, width):
    cut = fit_middle(text, width)
    assert n_columns(cut) == width
    if n_columns(text) <= width:
        assert cut.rstrip(" ") == text.rstrip(" ")
    else:
        begin, _, end = cut.rstrip(" ").partition("…")
        assert text.startswith(begin)
        assert text.rstrip(" ").endswith(end)
