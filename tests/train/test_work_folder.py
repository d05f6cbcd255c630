"""Test the work folder of a training run: a state that is read again, and damaged ones, which are not."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from runs import interrupted

from picogpt.train import command, loop, work

HISTORY = [{"step": step, "training": 3.0, "held_out": 2.5, "seconds": 1.5} for step in (2, 4)]


@pytest.fixture
def state(packages, tmp_path) -> tuple[Path, dict[str, Any]]:
    """Return the file of a small saved state, and the tree in it."""
    tree = {"params": np.arange(6, dtype=np.float32).reshape(2, 3), "state": [np.int32(4)]}
    work.save_state(tmp_path, tree, HISTORY)
    return tmp_path / "state.npz", tree


def assert_damaged_or_right(state: tuple[Path, dict[str, Any]]) -> bool:
    """Check that a state is refused with one line that names its file, or read as it was. Return which of the two."""
    path, tree = state
    try:
        loaded, history = work.load_state(path.parent, tree)
    except ValueError as error:
        assert f"{path} is damaged (" in str(error)
        assert str(error).endswith(f": remove {path.parent}, and train from the start")
        assert "\n" not in str(error)
        return False
    assert history == HISTORY
    assert loaded["params"].tolist() == tree["params"].tolist()
    assert loaded["state"] == [4]
    return True


def test_a_saved_state_is_read_again(state):
    assert assert_damaged_or_right(state)


def test_a_damaged_state_is_one_line(state):
    path, _ = state
    whole = path.read_bytes()
    for n in range(0, len(whole), 9):
        path.write_bytes(whole[:n])
        assert not assert_damaged_or_right(state)
    for at in range(0, len(whole), 3):
        path.write_bytes(whole[:at] + bytes([whole[at] ^ 64]) + whole[at + 1 :])
        assert_damaged_or_right(state)


@pytest.fixture
def begun(train: Callable[..., int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return the work folder of a run that was killed before its first evaluation."""
    monkeypatch.setattr(loop.Run, "train", interrupted)
    monkeypatch.setattr(command, "removed_unless_saved", contextlib.nullcontext)
    assert train() == 130
    return tmp_path / "m.training"


def test_damaged_settings_are_not_resumed(train, begun):
    settings = (begun / "settings.json").read_bytes()
    (begun / "settings.json").write_bytes(settings[:-9])
    with pytest.raises(ValueError, match="settings.json is not a JSON object"):
        train("--resume")
    (begun / "settings.json").unlink()
    with pytest.raises(FileNotFoundError):
        train("--resume")


def test_a_run_that_was_killed_behind_its_last_state_is_finished(train, tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(command, "write_model", interrupted)
        assert train() == 130
    (tmp_path / "m.training" / "mine.txt").write_text("mine")
    assert train("--resume", "--patience", 3) == 0  # which may change
    history = json.loads((tmp_path / "m" / "history.json").read_text(encoding="utf-8"))
    assert history["evaluations"][-1]["step"] == history["settings"]["steps"]
    assert [path.name for path in (tmp_path / "m.training").iterdir()] == ["mine.txt"]  # what is not ours stays


def test_a_text_whose_last_letter_has_changed_is_not_resumed(train, begun, text):
    text.write_text(text.read_text(encoding="utf-8")[:-1] + "!", encoding="utf-8")
    with pytest.raises(ValueError, match="was begun with text = "):
        train("--resume")
