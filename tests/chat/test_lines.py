"""Test how lines are asked for: pastes, triple quotes and the history, most of them in a real terminal."""

from __future__ import annotations

import sys

import pytest
from chats import PASTE_OFF, PASTE_ON, PROMPT

from picogpt.chat.lines import whole_message

PASTE, END = "\x1b[200~", "\x1b[201~"  # what a terminal sends before and after a paste


def whole(*lines: str) -> str:
    """Return the message that these lines make, all of which must be asked for."""
    rest = iter(lines[1:])
    message = whole_message(lines[0], lambda prompt: next(rest) if prompt == "... " else "")
    assert next(rest, None) is None
    return message


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        (["Hello"], "Hello"),
        ([" /undo"], " /undo"),
        (["/undo"], "/undo"),
        (["/undo\n"], "/undo"),
        (["one\n\n  two\nthree\n"], "one two three"),
        (["/undo\nplease"], " /undo please"),
        (["/save x\n/save y\n"], " /save x /save y"),
        (['"""one', "", "  two", 'three"""'], "one two three"),
        (['"""', "one", '"""'], "one"),
        (['"""', "one", '"""  '], "one"),
        (['"""one"""'], "one"),
        (['"""one\ntwo"""\n'], "one two"),
        (['"""one\ntwo', "three\nfour", 'five"""'], "one two three four five"),
        (['"""say "so"', 'or ""', '"""'], 'say "so" or ""'),
        (['""""""'], ""),
        (['"""', '"""'], ""),
        (['""""', '"""'], '"'),
        (['"""/undo"""'], " /undo"),
        (['"""', "exit", '"""'], " exit"),
        (['"""', ' """'], ""),
        ([' """not open'], ' """not open'),
        (['say """this"""'], 'say """this"""'),
    ],
)
def test_a_message_of_several_lines_is_one_line(lines, message):
    assert whole(*lines) == message


def test_a_pasted_paragraph_is_one_message(terminal, tmp_path):
    """Not even a line that looks like a command is one. The arrow brings the message back as one line."""
    child = terminal(replies=[" Yes.\n", " No.\n", " So.\n"])
    child.send(f"{PASTE}First line,\rsecond line.\r/undo\r\rexit\r{END}")
    child.sendline("")
    child.expect_exact(f"Bob: Yes.\r\n{PROMPT}")
    child.sendline("/undo")
    child.expect_exact("[taken back: First line, second line. /undo exit]")
    child.sendline("\x1b[A\x1b[A")
    child.expect_exact(f"Bob: No.\r\n{PROMPT}")
    child.send(f"{PASTE}/save {tmp_path}/file\r/exit\r{END}")
    child.sendline("")
    child.expect_exact(f"Bob: So.\r\n{PROMPT}")
    child.sendline("/undo")
    child.expect_exact(f"[taken back: /save {tmp_path}/file /exit]")
    child.sendline("/exit")
    child.expect_exact(PASTE_OFF)
    child.wait()
    assert child.exitstatus == 0
    assert not (tmp_path / "file").exists()
    assert (tmp_path / "state" / "picogpt" / "chat_history").read_text().splitlines() == [
        "First line, second line. /undo exit",
        "/undo",
        "First line, second line. /undo exit",
        f" /save {tmp_path}/file /exit",
        "/undo",
        "/exit",
    ]


def test_triple_quotes_in_a_terminal(terminal):
    child = terminal(replies=[" Yes.\n", " No.\n"])
    child.sendline('"""First line,')
    child.expect_exact(f"{PASTE_ON}... ")
    child.sendline("dropped")
    child.expect_exact(f"{PASTE_ON}... ")
    child.sendintr()  # drops all of the message
    child.expect_exact(f"\r\n{PROMPT}")
    child.sendline('"""First line,')
    child.expect_exact(f"{PASTE_ON}... ")
    child.sendline('/undo"""')
    child.expect_exact(f"Bob: Yes.\r\n{PROMPT}")
    child.sendline("/undo")
    child.expect_exact("[taken back: First line, /undo]")


def test_the_history_is_there_in_the_next_chat(terminal, tmp_path):
    child = terminal(replies=[" Yes.\n"])
    child.sendline("déjà vu")
    child.expect_exact(f"Bob: Yes.\r\n{PROMPT}")
    child.close(force=True)  # even a chat that is killed has kept it
    file = tmp_path / "state" / "picogpt" / "chat_history"
    assert file.read_text(encoding="utf-8") == "déjà vu\n"
    assert file.stat().st_mode & 0o777 == 0o600
    child = terminal(replies=[" Once more.\n"])
    child.sendline("\x1b[A")
    child.expect_exact(f"déjà vu\r\n{PASTE_OFF}Bob: Once more.\r\n")
    child.close(force=True)
    child = terminal("--no_history", replies=[" Hm?\n"])
    child.sendline("\x1b[Asecret")
    child.expect_exact(f"secret\r\n{PASTE_OFF}Bob: Hm?\r\n")
    assert "déjà" not in child.before
    assert file.read_text(encoding="utf-8") == "déjà vu\n" * 2


def test_a_history_that_can_not_be_kept_is_one_line(terminal, tmp_path):
    (tmp_path / "file").write_text("mine")
    child = terminal(replies=[" Yes.\n", " No.\n"], XDG_STATE_HOME=str(tmp_path / "file"))
    assert child.before.count("[the history is not kept: ") == 1
    for reply in ("Yes", "No"):
        child.sendline("Hello")
        child.expect_exact(f"Hello\r\n{PASTE_OFF}Bob: {reply}.\r\n{PROMPT}")
        assert "not kept" not in child.before


def test_words_are_wrapped_at_the_terminal_s_width(terminal):
    reply = " Hello, Alice, my dearest friend; a tall tower stands here."
    child = terminal(replies=[f"{reply}\n", f"{reply}\n"], columns=24)
    child.sendline("Hi")
    child.expect_exact("Bob: Hello, Alice, my\r\ndearest friend; a tall\r\ntower stands here.\r\n")
    child.setwinsize(24, 40)
    child.sendline("Hi")
    child.expect_exact("Bob: Hello, Alice, my dearest friend; a\r\ntall tower stands here.\r\n")


def test_words_are_wrapped_for_a_terminal_only(play, monkeypatch):
    reply = " word" * 40
    monkeypatch.setenv("COLUMNS", "30")
    assert play("Hi\n", reply + "\n")[0] == reply.strip() + "\n"
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    lines = play("Hi\n", reply + "\n")[0].splitlines()
    assert max(map(len, lines)) == 29
    assert " ".join(lines) == reply.strip()
