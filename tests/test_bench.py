"""The benchmark's arithmetic, and that it runs on a small model. Nothing here depends on how fast a machine is."""

from __future__ import annotations

import json

import pytest
from conftest import ROOT

from picogpt import bench
from picogpt.checkpoint import initial_params
from picogpt.random_weights import SHAPES, hparams_of


@pytest.mark.parametrize(("size", "megabytes"), [("124M", 494), ("1558M", 6219)])
def test_what_a_token_reads(size, megabytes):
    n_embd, _, n_layer = SHAPES[size]
    per_layer = 12 * n_embd * n_embd  # 3 + 1 + 4 + 4 squares
    assert (n_layer * per_layer + 50257 * n_embd) * 4 // 10**6 == megabytes
    params = initial_params(hparams_of("124M") | {"n_layer": 2}, 0)
    assert sum(w.nbytes for w in bench.weights_per_token(params)) == (2 * 12 * 768**2 + 50257 * 768) * 4


def test_what_a_prompt_costs():
    """Against a count of every product of the definition, one by one."""
    hparams = {"n_vocab": 300, "n_ctx": 20, "n_embd": 8, "n_head": 2, "n_layer": 3}
    n, flop = 20, 0
    for _ in range(hparams["n_layer"]):
        for position in range(n):
            flop += 2 * (8 * 24 + 8 * 8 + 8 * 32 + 32 * 8)
            flop += 2 * 2 * 8 * (position + 1)  # the scores of what it sees, and their values
    assert bench.prompt_flop(initial_params(hparams, 0), n) == flop + 2 * 8 * 300


def test_it_measures_the_small_model(tmp_path, capsys):
    text = tmp_path / "text.txt"
    text.write_text("To be, or not to be, that is the question. " * 50, encoding="utf-8")
    arguments = ["--model_size", "tiny", "--models_dir", str(ROOT / "models"), "--rounds", "1", "--text", str(text)]
    assert bench.main([*arguments, "--json", str(tmp_path / "figures.json")]) == 0
    rows = {row["name"]: row for row in json.loads((tmp_path / "figures.json").read_text())}
    assert {"peak memory", "decode, 10 tokens before", "prompt of 64", "tokenizer, cold"} <= set(rows)
    printed = capsys.readouterr().out
    for name, row in rows.items():
        assert 0 < row["low"] <= row["median"] <= row["high"], name
        assert name in printed


def test_where_the_figures_can_not_go_is_said_before_the_work(tmp_path):
    with pytest.raises(FileNotFoundError, match="is no folder to write"):
        bench.main(["--model_size", "tiny", "--json", str(tmp_path / "missing" / "figures.json")])
