"""Test the work folder of a training run: a state that is read again, and damaged ones, which are not."""

from __future__ import annotations

import contextlib
import json
import math
import pickle
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


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_a_damaged_state_is_one_line(state):
    path, _ = state
    whole = path.read_bytes()
    for n in range(0, len(whole), 9):
        path.write_bytes(whole[:n])
        assert not assert_damaged_or_right(state)
    rng = np.random.default_rng(0)
    n_read = 0
    for at in range(0, len(whole), 3):
        path.write_bytes(whole[:at] + bytes([whole[at] ^ 1 << int(rng.integers(8))]) + whole[at + 1 :])
        n_read += assert_damaged_or_right(state)
    assert n_read < len(whole) / 6  # the rest is in fields of the zip file that nobody reads, such as dates
    for _ in range(100):
        at, length = rng.integers(len(whole)), rng.integers(1, 60)
        path.write_bytes(whole[:at] + rng.bytes(length) + whole[at + length :])
        assert_damaged_or_right(state)


def test_a_state_of_another_kind_is_one_line(state):
    path, tree = state
    arrays = {"leaf0": tree["params"], "leaf1": tree["state"][0]}
    row = HISTORY[0]
    histories = [
        5,
        {},
        [],
        [5],
        [row | {"step": "4"}],
        [row | {"training": math.nan}],
        [row | {"step": True}],
        [row, row],
    ]
    histories += [[row | {"step": 0}], [row | {"step": 1.5}], [row | {"more": 1}], [row | {"step": 10**400}]]
    for history in histories:
        np.savez(path, history=json.dumps(history), **arrays)
        assert not assert_damaged_or_right(state), history
    good = json.dumps(HISTORY)
    for changed in (
        {"leaf0": arrays["leaf0"].T},
        {"leaf0": arrays["leaf0"].astype(np.float64)},
        {"leaf1": np.array("text")},
        {"leaf1": np.array([{}], dtype=object)},
        {"history": "[" * 100_000},
        {"history": np.array([1, 2])},
        {"history": "\ud800"},
    ):
        np.savez(path, **({"history": good} | arrays | changed))
        assert not assert_damaged_or_right(state), changed
    np.savez(path, history=good, leaf0=arrays["leaf0"])
    assert not assert_damaged_or_right(state)
    for array in (arrays["leaf0"], np.array([{}], dtype=object)):
        with open(path, "wb") as file:
            np.save(file, array)
        assert not assert_damaged_or_right(state)
    for data in (b"", b"text", b"PK\x03\x04", pickle.dumps(arrays), b"PK\x05\x06" + bytes(18)):
        path.write_bytes(data)
        assert not assert_damaged_or_right(state)


@pytest.fixture
def begun(train: Callable[..., int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return the work folder of a run that was killed before its first evaluation."""
    monkeypatch.setattr(loop.Run, "train", interrupted)
    monkeypatch.setattr(command, "removed_unless_saved", contextlib.nullcontext)
    assert train() == 130
    return tmp_path / "m.training"


def test_a_damaged_work_folder_is_not_resumed(train, begun):
    """Not with other settings, and not with a tokenizer that would cut the text into other tokens."""
    merges, settings = (begun / "vocab.bpe").read_bytes(), (begun / "settings.json").read_bytes()
    (begun / "vocab.bpe").write_bytes(merges[: merges.rindex(b"\n", 0, -1) + 1])
    with pytest.raises(ValueError, match="was begun with tokenizer = "):
        train("--resume")
    (begun / "vocab.bpe").write_bytes(merges)
    for damaged, message in ((settings[:-9], "not JSON"), (b"[]", "not a JSON object"), (b"\xff", "not JSON")):
        (begun / "settings.json").write_bytes(damaged)
        with pytest.raises(ValueError, match=f"settings.json is {message}"):
            train("--resume")
    (begun / "settings.json").unlink()
    with pytest.raises(FileNotFoundError):
        train("--resume")


def test_another_text_is_not_resumed(train, begun, text):
    text.write_text(text.read_text(encoding="utf-8") + " more", encoding="utf-8")
    with pytest.raises(ValueError, match="was begun with text = "):
        train("--resume")
