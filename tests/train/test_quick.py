"""Test `train --quick`, and what the pages say about its text and about the losses of models/tiny."""

from __future__ import annotations

import hashlib
import json
import re

import pytest
from helpers import ROOT, assert_error, run_main, shared

from picogpt.train import command, work
from picogpt.train.command import NUMBERS, QUICK
from picogpt.train.text import split

README, PAGE = ((ROOT / name).read_text(encoding="utf-8") for name in ("README.md", "docs/train.md"))


def test_quick_changes_the_defaults_of_what_is_not_given():
    args = command.parse_args(["t.txt", "--out", "m", "--quick", "--steps", "7"])
    expected = {name: QUICK.get(name, default) for name, (default, *_) in NUMBERS.items()} | {"steps": 7}
    assert {name: getattr(args, name) for name in NUMBERS} == expected
    assert set(QUICK) <= set(NUMBERS)
    assert command.parse_args(["t.txt", "--out", "m"]).n_layer == NUMBERS["n_layer"][0] != QUICK["n_layer"]


def test_the_page_names_the_shape_of_quick():
    (sentence,) = re.findall(r"`--quick` stands for a small shape and few steps: ([^.]*(?:\.\d[^.]*)*)\.", PAGE)
    assert dict(re.findall(r"`--(\w+) ([\d.]+)`", sentence)) == {name: f"{value:g}" for name, value in QUICK.items()}


def test_quick_is_not_for_fine_tuning(tmp_path):
    result = run_main("picogpt train", "t.txt", "--out", tmp_path / "m", "--from", "tiny", "--quick")
    assert_error(result, 2, "argument --quick: not with --from, which takes the shape of the model")


def test_a_run_is_the_same_with_quick_and_with_its_numbers():
    numbers = [word for name, value in QUICK.items() for word in (f"--{name}", str(value))]
    both = [command.parse_args(["t.txt", "--out", "m", *words]) for words in (["--quick"], numbers)]
    assert work.settings_of(both[0], ("a", "b"), {}) == work.settings_of(both[1], ("a", "b"), {})


def test_a_run_whose_losses_have_another_unit_is_not_resumed(train, tmp_path):
    """Before there was a unit in settings.json, losses were in nats per character."""
    args = command.parse_args(["t.txt", "--out", str(tmp_path / "m"), "--quick", "--resume"])
    settings = work.settings_of(args, ("a", "b"), {})
    (tmp_path / "m.training").mkdir()
    path = tmp_path / "m.training" / "settings.json"
    path.write_text(json.dumps(settings))
    work.prepare(args, ("a", "b"), {}, None)
    path.write_text(json.dumps({name: value for name, value in settings.items() if name != "unit_of_losses"}))
    with pytest.raises(ValueError, match=r"m.training was begun with unit_of_losses = None, not bits per byte"):
        work.prepare(args, ("a", "b"), {}, None)


def test_the_text_of_the_first_example():
    data = shared("text/tinyshakespeare.txt").read_bytes()
    for page in (README, PAGE):
        assert hashlib.sha256(data).hexdigest() in page
    assert f"The\nfile has {len(data):,} bytes" in PAGE
    _, held_out = split(data.decode(), 0.1)
    assert f"tail -c {len(held_out.encode())} tinyshakespeare.txt" in PAGE


def test_the_losses_of_tiny_are_those_of_its_picture():
    history = json.loads((ROOT / "docs" / "tiny-loss.json").read_text(encoding="utf-8"))
    rows = {row["step"]: row for row in history["evaluations"]}
    steps, losses = (re.findall(r"[\d.]+", re.search(rf"^\| {name}.*", PAGE, re.M)[0]) for name in ("step", "held-out"))
    assert losses == [f"{rows[int(step)]['held_out']:.3f}" for step in steps]
    assert min(rows, key=lambda step: rows[step]["held_out"]) == history["best_step"] == 1800
    assert history["unit_of_losses"] == "bits per byte"
    assert rows[1800]["held_out"] == pytest.approx(1.5107 / 0.693147, abs=1e-3)  # test_tiny_model.py measures it
