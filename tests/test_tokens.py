"""`python -m picogpt tokens`, which shows the tokens of a text."""

from __future__ import annotations

from pathlib import Path

import pytest
from helpers import assert_error, model_options, run_command, run_main

import utils

TOKENS = r"""    39  H
    72  i
   220  ·
   127  é 1/2
   102  é 2/2
   256  !!
   198  \n
     6  '
"""


@pytest.fixture
def odd(models_dir: Path) -> list[object]:
    return model_options(models_dir / "odd")


def test_ids_and_texts(odd):
    assert run_command("picogpt tokens", "Hi é!!\n'", *odd) == (0, TOKENS, "")
    assert run_command("picogpt tokens", "-", *odd, stdin="Hi é!!\n'\r\n".encode()) == (0, TOKENS, "")


@pytest.mark.parametrize(
    ("stdin", "lines"),
    [(b"", ""), (b"\n", ""), (b"\0", "   188  \\x00\n"), (b"a\r\n\n", "    64  a\n   198  \\n\n")],
)
def test_standard_input(stdin, lines, odd):
    assert run_main("picogpt tokens", "-", *odd, stdin=stdin) == (0, lines, "")


@pytest.mark.parametrize("text", ["", "1234", "--help me", "-h me", "漢"])
def test_text_is_taken_literally(text, odd):
    result = run_main("picogpt tokens", text, *odd)
    assert result.status == 0, result
    assert result.out.count("\n") == len(text.encode("utf-8"))


def test_weights_are_not_needed(damaged):
    folder = damaged()
    for name in set(utils.FILES) - set(utils.TOKENIZER_FILES):
        (folder / name).unlink(missing_ok=True)
    assert run_main("picogpt tokens", "a", *model_options(folder)) == (0, "    64  a\n", "")
    (folder / "vocab.bpe").unlink()
    assert_error(run_main("picogpt tokens", "a", *model_options(folder)), 1, str(folder / "vocab.bpe"))
