"""Test the file that keeps what users typed: its place, its permissions, its length, and several chats at once."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

from picogpt.chat import history as module
from picogpt.chat.history import History
from picogpt.files import state_folder

posix = pytest.mark.skipif(sys.platform == "win32", reason="links, pipes and permissions of POSIX")


def test_lines_are_there_in_the_next_chat(tmp_path):
    path = tmp_path / "a" / "b" / "chat_history"
    history = History(path)
    assert history.lines() == []
    for line in ("Hello", "/set temperature 0", "déjà 你好", "lone \udc80"):
        history.add(line)
    assert History(path).lines() == ["Hello", "/set temperature 0", "déjà 你好", "lone ?"]


@posix
def test_only_the_user_may_read_it(tmp_path):
    path = tmp_path / "picogpt" / "chat_history"
    History(path).add("Hello")
    assert path.stat().st_mode & 0o777 == 0o600
    assert path.parent.stat().st_mode & 0o777 == 0o700


@posix
def test_a_file_that_is_too_long_is_cut_to_its_newest_lines(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "LONGEST_HISTORY", 100)
    path = tmp_path / "chat_history"
    history = History(path)
    for i in range(10):
        history.add(f"line {i} é")
    assert len(path.read_bytes()) == 100
    assert len(history.lines()) == 10  # not too long yet
    history.add("x" * 20)
    assert history.lines() == ["line 8 é", "line 9 é", "x" * 20]
    assert len(path.read_bytes()) <= 50
    assert path.stat().st_mode & 0o777 == 0o600
    history.add("y" * 1000)
    assert history.lines() == []  # no whole line fits
    assert sorted(file.name for file in tmp_path.iterdir()) == ["chat_history"]


def test_two_chats_at_once_keep_the_lines_of_both(tmp_path):
    one, two = History(tmp_path / "chat_history"), History(tmp_path / "chat_history")
    for history in (one, two):
        history.lines()
    for text in "ab":
        one.add(f"{text} of one")
        two.add(f"{text} of two")
    assert History(tmp_path / "chat_history").lines() == ["a of one", "a of two", "b of one", "b of two"]


def unusable(folder: Path) -> list[Path]:
    """Return paths that can't hold a history."""
    (folder / "file").write_text("mine")
    (folder / "folder").mkdir()
    return [folder / "file" / "chat_history", folder / "folder", Path("/dev/null/chat_history")]


@posix
def test_a_place_that_can_not_be_used_is_one_line_and_no_error(tmp_path, capsys):
    for path in unusable(tmp_path):
        history = History(path)
        assert history.lines() == []
        history.add("Hello")
        history.add("Hello")
        assert history.lines() == []
        assert capsys.readouterr().err.startswith("[the history is not kept: ")
    assert (tmp_path / "file").read_text() == "mine"


def test_without_a_path_nothing_happens(capsys):
    history = History(None)
    history.add("Hello")
    assert history.lines() == []
    assert capsys.readouterr() == ("", "")


# ---------------------------------------------------------------------------------------------------- its folder


def test_the_tests_have_a_folder_of_their_own():
    assert state_folder() == Path(os.environ["XDG_STATE_HOME"], "picogpt")
    assert "picogpt-state-" in str(state_folder())


@pytest.mark.parametrize(
    ("platform", "settings", "expected"),
    [
        ("linux", {}, "HOME/.local/state/picogpt"),
        ("linux", {"XDG_STATE_HOME": "HOME/x"}, "HOME/x/picogpt"),
        ("linux", {"XDG_STATE_HOME": "relative"}, "HOME/.local/state/picogpt"),
        ("linux", {"LOCALAPPDATA": "HOME/y"}, "HOME/.local/state/picogpt"),
        ("darwin", {}, "HOME/Library/Application Support/picogpt"),
        ("darwin", {"XDG_STATE_HOME": "HOME/x"}, "HOME/x/picogpt"),
        ("win32", {"LOCALAPPDATA": "HOME/y"}, "HOME/y/picogpt"),
        ("win32", {}, "HOME/AppData/Local/picogpt"),
    ],
)
def test_the_folder_on_each_system(tmp_path, monkeypatch, platform, settings, expected):
    monkeypatch.setattr(sys, "platform", platform)
    monkeypatch.setattr(Path, "home", lambda: tmp_path)
    for name in ("XDG_STATE_HOME", "LOCALAPPDATA"):
        monkeypatch.delenv(name, raising=False)
    for name, value in settings.items():
        monkeypatch.setenv(name, value.replace("HOME", str(tmp_path)))
    assert state_folder() == Path(expected.replace("HOME", str(tmp_path)))


def test_a_user_without_a_home_has_no_folder(monkeypatch):
    def home():
        raise RuntimeError("no home")

    monkeypatch.delenv("XDG_STATE_HOME")
    monkeypatch.delenv("LOCALAPPDATA", raising=False)
    monkeypatch.setattr(Path, "home", home)
    assert state_folder() is None
