"""The fixtures of chat's tests: a chat with a scripted model, in this process or in a real terminal."""

from __future__ import annotations

import io
import json
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import pytest
from chats import TINY, actor
from helpers import ROOT

import gpt2
from picogpt.chat.terminal import main


@pytest.fixture
def play(monkeypatch, capsys) -> Callable[..., tuple[str, str]]:
    """play(input, replies) runs the command line with a scripted model, and returns its stdout and stderr.

    The input comes from a pipe, or, if `typed` is true, from a terminal. Prompts are left out, and the line end after
    the last of them. `sample` may take the place of the replies.
    """

    def run(
        lines: str, *replies: str, args: tuple[str, ...] = (), typed: bool = False, sample: Any = None
    ) -> tuple[str, str]:
        stdin = io.TextIOWrapper(io.BytesIO(lines.encode("utf-8")), encoding="utf-8", newline="\n")
        stdin.isatty = lambda: typed
        monkeypatch.setattr(sys, "stdin", stdin)
        monkeypatch.setattr(gpt2, "sample", sample or actor(*replies))
        assert main([*TINY, *args]) == 0
        done = capsys.readouterr()
        return done.out, done.err.replace("Alice: ", "").removesuffix("\n" if typed else "")

    return run


# The real program in a real terminal. Only the choice of tokens is scripted, and it is slow enough to interrupt.
SCRIPTED = """
import json, sys, time, gpt2
from encoder import get_encoder
from picogpt.chat.terminal import Chat, main
from picogpt.command_line import run
encoder = get_encoder("tiny", "models")
replies = iter(json.loads(sys.argv.pop(1)))
generate_ids = Chat.generate_ids
def scripted(chat):
    ids = iter(encoder.encode(next(replies)))
    def choose(logits, seen):
        time.sleep(0.03)
        return next(ids)
    chat.choose = choose
    return generate_ids(chat)
Chat.generate_ids = scripted
sys.exit(run(main))
"""
REPLIES = (" Hi, I am Bob.\n", " la" * 900, " Still here.\n", " Yes.\n")


@pytest.fixture
def terminal(tmp_path) -> Iterator[Callable[..., Any]]:
    """terminal(*options, **environment) starts the chat in a pseudo-terminal and waits for its first prompt.

    `replies` are the model's, and `columns` is the terminal's width. No colours unless NO_COLOR is None.
    """
    pytest.importorskip("readline", reason="needs readline")
    pexpect = pytest.importorskip("pexpect", reason="pexpect drives the pseudo-terminal")
    if not hasattr(pexpect, "spawn"):
        pytest.skip("needs a pseudo-terminal")
    children = []

    def start(*options: str, replies: Sequence[str] = REPLIES, columns: int = 80, **settings: str | None) -> Any:
        unset: dict[str, str | None] = {"COLUMNS": None, "LINES": None}  # they would count for more than the terminal
        env = os.environ | {"TERM": "xterm", "XDG_STATE_HOME": str(tmp_path / "state"), "PYTHONUTF8": "1"}
        env = {name: value for name, value in (env | unset | {"NO_COLOR": "1"} | settings).items() if value is not None}
        child = pexpect.spawn(
            sys.executable,
            ["-c", SCRIPTED, json.dumps(replies), *TINY, "--max_tokens", "200", *options],
            cwd=str(ROOT),
            env=env,
            encoding="utf-8",
            timeout=60,
            dimensions=(24, columns),
        )
        children.append(child)
        child.delaybeforesend = 0.1
        child.expect("Alice: ")
        return child

    yield start
    for child in children:
        child.close(force=True)
