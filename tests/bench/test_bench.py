"""The benchmark's arithmetic, and that it runs on a small model. Nothing here depends on how fast a machine is."""

from __future__ import annotations

import importlib.util
import json
import sys

import numpy as np
import pytest
from helpers import ROOT

from picogpt.bench import command as bench
from picogpt.bench import growth, peers, timing
from picogpt.checkpoints.sizes import SHAPES, hparams_of
from picogpt.checkpoints.writing import initial_params


@pytest.mark.parametrize(("size", "megabytes"), [("124M", 494), ("1558M", 6219)])
def test_what_a_token_reads(size, megabytes):
    n_embd, _, n_layer = SHAPES[size]
    per_layer = 12 * n_embd * n_embd  # 3 + 1 + 4 + 4 squares
    assert (n_layer * per_layer + 50257 * n_embd) * 4 // 10**6 == megabytes
    params = initial_params(hparams_of("124M") | {"n_layer": 2}, 0)
    assert sum(w.nbytes for w in timing.weights_per_token(params)) == (2 * 12 * 768**2 + 50257 * 768) * 4


def test_what_a_prompt_costs():
    """Against a count of every product of the definition, one by one."""
    hparams = {"n_vocab": 300, "n_ctx": 20, "n_embd": 8, "n_head": 2, "n_layer": 3}
    n, flop = 20, 0
    for _ in range(hparams["n_layer"]):
        for position in range(n):
            flop += 2 * (8 * 24 + 8 * 8 + 8 * 32 + 32 * 8)
            flop += 2 * 2 * 8 * (position + 1)  # the scores of what it sees, and their values
    assert timing.prompt_flop(initial_params(hparams, 0), n) == flop + 2 * 8 * 300


TINY = ["--model_size", "tiny", "--models_dir", str(ROOT / "models"), "--rounds", "1"]


@pytest.fixture
def text(tmp_path):
    path = tmp_path / "text.txt"
    path.write_text("To be, or not to be, that is the question. " * 50, encoding="utf-8")
    return path


def test_it_measures_the_small_model(tmp_path, capsys, text):
    assert bench.main([*TINY, "--text", str(text), "--json", str(tmp_path / "figures.json")]) == 0
    rows = {row["name"]: row for row in json.loads((tmp_path / "figures.json").read_text())}
    assert {"decode, 10 tokens before", "prompt of 64", "tokenizer, English", "detokenizer, mixed languages"} <= set(
        rows
    )
    assert ("peak memory" in rows) == (sys.platform != "win32")
    printed = capsys.readouterr().out
    for name, row in rows.items():
        assert 0 < row["low"] <= row["median"] <= row["high"], name
        assert "ratio" not in row
        assert name in printed


def test_peers_and_the_picture(tmp_path, capsys, text, monkeypatch):
    """Of the small sizes only: the large ones take gigabytes."""
    for name in ("torch", "transformers", "matplotlib", "tiktoken", "tokenizers"):
        pytest.importorskip(name)
    monkeypatch.setattr(growth, "shapes_that_fit", lambda: ["124M"])
    picture = tmp_path / "growth.png"
    assert bench.main([*TINY, "--text", str(text), "--peers", "--plot", str(picture)]) == 0
    assert picture.read_bytes().startswith(b"\x89PNG")
    lines = capsys.readouterr().out.splitlines()
    for work, peer in (
        ("process start to first text", "transformers"),
        ("whole command, 40 tokens", "without a cache"),
        ("decode, 10 tokens before", "transformers"),
        ("decode, 10 tokens before", "without a cache"),
        ("prompt of 64", "transformers"),
        ("tokenizer, mixed languages", "tiktoken"),
        ("tokenizer, English", "tokenizers"),
    ):
        assert [line for line in lines if line.startswith(f"{work}: {peer} ") and " x as fast" in line], (work, peer)


def test_shares_and_ratios_are_medians_of_the_rounds():
    """Of each round's own times, so that a machine that is slow for a while does not matter."""
    work = timing.Work("w", "MB/s", 6, list, list, "the limit", 0.5, {"theirs": float})
    times = {"ours": [1.0, 2.0, 3.0], "limit": [1.0, 2.0, 1.5], "theirs": [2.0, 8.0, 9.0]}
    ours, theirs = timing.rows_of(work, times)
    assert ours == {"name": "w", "median": 3, "low": 2, "high": 6, "unit": "MB/s", "share": 0.5, "limit": "the limit"}
    assert theirs == {"name": "w: theirs", "median": 0.75, "low": 6 / 9, "high": 3, "unit": "MB/s", "ratio": 3}


def test_a_first_round_does_not_count_and_works_take_turns():
    calls = []
    clocks = {name: (lambda name=name: calls.append(name) or len(calls)) for name in ("a", "b")}
    assert timing.in_turn(2, clocks) == {"a": [3, 5], "b": [4, 6]}
    assert calls == ["a", "b"] * 3


def test_a_process_s_memory_is_its_own():
    """And not that of the process that starts it, which has more."""
    if sys.platform == "win32":
        pytest.skip("Windows has no wait4")
    held = np.ones(40 << 20, np.uint8)  # noqa: F841
    small = peers.run_process([sys.executable, "-c", "print(1)"])
    large = peers.run_process([sys.executable, "-c", "x = b'1' * (60 << 20); print(1)"])
    assert small.memory < 30
    assert 60 < large.memory < 90
    assert 0 < small.first <= small.whole


def test_what_a_process_says_when_it_fails_is_the_error():
    with pytest.raises(ValueError, match=r"ended with status 3: .*no such thing"):
        peers.run_process([sys.executable, "-c", "import sys; sys.stderr.write('no such thing'); sys.exit(3)"])


def test_memory_that_a_call_takes_at_its_peak():
    def work():
        a = np.ones(3 << 20, np.uint8)
        del a
        return np.ones(5 << 20, np.uint8)

    assert growth.peak_memory(work) == pytest.approx(5, rel=0.01)


def test_where_the_figures_can_not_go_is_said_before_the_work(tmp_path):
    for option in ("--json", "--plot"):
        with pytest.raises(FileNotFoundError, match="is no folder to write"):
            bench.main(["--model_size", "tiny", option, str(tmp_path / "missing" / "figures")])
        with pytest.raises(FileNotFoundError, match="is one itself"):
            bench.main(["--model_size", "tiny", option, str(tmp_path)])


def test_what_is_not_installed_is_said_before_the_work(monkeypatch, tmp_path):
    find = importlib.util.find_spec
    missing = ("matplotlib", "transformers")
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name in missing else find(name))
    with pytest.raises(OSError, match="matplotlib is not installed: pip install -r requirements-train.txt"):
        bench.main([*TINY, "--plot", str(tmp_path / "x.png")])
    with pytest.raises(OSError, match=r"(torch|transformers) is not installed: pip install -r requirements-dev.txt"):
        bench.main([*TINY, "--peers"])
