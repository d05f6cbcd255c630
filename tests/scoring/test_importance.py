"""`score --without_each`: how much each part matters, against models whose weights are 0 there."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
from helpers import ROOT, assert_error, run_main

import gpt2
from picogpt import score
from picogpt.scoring import importance as module
from picogpt.scoring.importance import Importance, duration, grid, importance
from picogpt.tracing.parts import Part
from picogpt.tracing.recorder import trace
from utils import load_encoder_hparams_and_params

TINY = ["--model_size", "tiny", "--models_dir", ROOT / "models"]
TEXT = "ROMEO:\nWhat light through yonder window breaks?\n\nJULIET:\nO Romeo, wherefore art thou Romeo?\n"
WINDOWS = {"max_context": 32, "stride": 16}


@pytest.fixture(scope="module")
def tiny():
    return load_encoder_hparams_and_params("tiny", ROOT / "models")


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "text.txt"
    path.write_text(TEXT, encoding="utf-8")
    return path


def bits(tiny, blocks, **settings):
    """Return the bits of each token with other layers than the model's own."""
    encoder, hparams, params = tiny
    ids = [encoder.encoder["<|endoftext|>"], *encoder.encode(TEXT)]
    return -score(ids, params | {"blocks": blocks}, hparams["n_head"], **settings) / math.log(2)


def silenced(block, part, n_head):
    """Return a layer whose part adds nothing, as its last matrix and bias are 0, or the rows of a head are."""
    block = {name: dict(value) for name, value in block.items()}
    for name in ("attn", "mlp"):
        w, b = block[name]["c_proj"]["w"].copy(), block[name]["c_proj"]["b"].copy()
        if isinstance(part.which, int) and name == "attn":
            np.split(w, n_head)[part.which][:] = 0
        elif part.which in (name, "layer"):
            w[:], b[:] = 0, 0
        block[name]["c_proj"] = {"w": w, "b": b}
    return block


def measured(file, tmp_path, *words):
    """Return what --json says about the parts, by their names, and the result of the command."""
    path = tmp_path / "scores.json"
    done = run_main("picogpt score", file, *TINY, "--json", path, "--force", *words)
    assert done.status == 0, done
    found = json.loads(path.read_text(encoding="utf-8"))["without_each"]
    return {one["part"]: one for one in found["parts"]}, done


@pytest.mark.parametrize("kind", ["head", "layer", "mlp", "attn"])
def test_each_part_costs_what_a_model_with_zeros_there_costs(tiny, file, tmp_path, kind):
    found, done = measured(file, tmp_path, "--without_each", kind, "--max_context", 32, "--stride", 16)
    _, hparams, params = tiny
    heads = range(hparams["n_head"]) if kind == "head" else [kind]
    whole = bits(tiny, params["blocks"], **WINDOWS)
    assert len(found) == len(heads) * hparams["n_layer"]
    for layer in range(hparams["n_layer"]):
        for which in heads:
            part, blocks = Part(layer, which), list(params["blocks"])
            blocks[layer] = silenced(blocks[layer], part, hparams["n_head"])
            without = bits(tiny, blocks, **WINDOWS)
            one = found.pop(str(part))
            assert one["change"] == pytest.approx((without - whole).mean(), abs=1e-5)
            assert one["bits per token"] == pytest.approx(without.mean(), rel=1e-5)
            error = (without - whole).std(ddof=1) / math.sqrt(len(whole))
            assert one["standard error"] == pytest.approx(error, abs=1e-5)
    assert found == {}
    lines = done.out.split("\n\n")[1].splitlines()
    word = {"mlp": "MLP", "attn": "attention"}.get(kind, kind)
    heading = f"bits per token without each {word} (replaced by zero); the whole model has {whole.mean():.4f}"
    assert lines[0] == heading
    changes = [float(line.split()[0]) for line in lines[2:]]
    assert len(changes) == len(heads) * hparams["n_layer"]
    assert changes == sorted(changes, reverse=True)
    assert f"without each of {len(changes)} parts: about " in done.err


def test_the_mean_is_that_of_all_windows(tiny, file, tmp_path):
    found, _ = measured(file, tmp_path, "--without_each", "mlp", "--mean", "--max_context", 32)
    encoder, hparams, params = tiny
    ids = [encoder.encoder["<|endoftext|>"], *encoder.encode(TEXT)]
    rows = []
    for start in range(0, len(ids) - 1, 32):
        with trace() as t:
            gpt2.gpt2(ids[start : start + 32][: len(ids) - 1 - start], **params, n_head=hparams["n_head"])
        rows.append(t["h2/mlp/c_proj"])
    mean, blocks = np.concatenate(rows).mean(0), list(params["blocks"])
    assert len(np.concatenate(rows)) == len(ids) - 1 > 32
    blocks[2] = silenced(blocks[2], Part(2, "mlp"), hparams["n_head"])
    blocks[2]["mlp"]["c_proj"]["b"] = mean.astype(np.float32)
    expected = bits(tiny, blocks, max_context=32) - bits(tiny, params["blocks"], max_context=32)
    assert found["2.mlp"]["change"] == pytest.approx(expected.mean(), abs=1e-5)


def test_the_bias_of_a_head_is_that_of_its_values(tiny, file, tmp_path):
    found, done = measured(file, tmp_path, "--without_each", "head", "--bias")
    _, hparams, params = tiny
    blocks = list(params["blocks"])
    w = blocks[1]["attn"]["c_attn"]["w"].copy()
    np.split(np.split(w, 3, axis=1)[2], hparams["n_head"], axis=1)[3][:] = 0
    blocks[1] = blocks[1] | {"attn": blocks[1]["attn"] | {"c_attn": blocks[1]["attn"]["c_attn"] | {"w": w}}}
    expected = bits(tiny, blocks) - bits(tiny, params["blocks"])
    assert found["1.3"]["change"] == pytest.approx(expected.mean(), abs=1e-5)
    assert "(replaced by its bias)" in done.out


def test_without_the_option_nothing_changes(file, tmp_path):
    path = tmp_path / "scores.json"
    done = run_main("picogpt score", file, *TINY, "--json", path)
    assert (len(done.out.splitlines()), done.err) == (2, "")
    assert "without_each" not in json.loads(path.read_text(encoding="utf-8"))


@pytest.mark.slow
def test_processes_and_kept_results_give_the_same(file, tmp_path):
    pytest.importorskip("joblib")
    words = ["--without_each", "mlp", "--mean"]
    alone, _ = measured(file, tmp_path, *words)
    kept = [*words, "--results", tmp_path / "results"]
    jobs, done = measured(file, tmp_path, *kept, "--jobs", 2)
    for part, one in alone.items():
        assert jobs[part]["change"] == pytest.approx(one["change"], abs=1e-5)
    assert "about" not in done.err  # as the time of results that are there is not known
    names = {path.name for path in (tmp_path / "results").iterdir() if path.is_dir()}
    assert names == {f"{layer}.mlp-mean" for layer in range(4)}
    again, done = measured(file, tmp_path, *kept)
    assert again == jobs
    assert done.err.count("are in") == 5
    other, done = measured(file, tmp_path, "--without_each", "mlp", "--results", tmp_path / "results")
    assert other != jobs  # zeros are other work than means


def test_results_of_another_part_are_refused(file, tmp_path):
    kept = ["--without_each", "mlp", "--results", tmp_path / "results"]
    measured(file, tmp_path, *kept)
    (tmp_path / "results" / "0.mlp-zero").rename(tmp_path / "results" / "1.mlp-bias")
    done = run_main("picogpt score", file, *TINY, *kept, "--bias")
    assert done.status == 2
    assert "1.mlp-bias holds results of another model" in done.err


def test_the_picture_is_a_map_of_layers_and_heads(file, tmp_path):
    pytest.importorskip("matplotlib")
    path = tmp_path / "heads.png"
    measured(file, tmp_path, "--without_each", "head", "--plot", path)
    assert path.read_bytes().startswith(b"\x89PNG")
    again = run_main("picogpt score", file, *TINY, "--without_each", "head", "--plot", path)
    assert_error(again, 1, "heads.png", "--force")


def test_the_map_has_a_row_for_each_layer():
    heads = [Importance(Part(i // 3, i % 3), float(i), 0.0, 0.0) for i in (5, 0, 3, 1, 4, 2)]
    assert grid(heads).tolist() == [[0, 1, 2], [3, 4, 5]]
    layers = [Importance(Part(i, "layer"), float(i), 0.0, 0.0) for i in (11, *range(11))]
    assert grid(layers).tolist() == [[*range(12)]]


def test_a_single_token_has_no_standard_error(capsys):
    one = importance(Part(0, 1), np.log2([0.5]) * math.log(2), np.log2([0.125]) * math.log(2))
    assert (one.change, one.bits) == pytest.approx((2, 3))
    assert math.isnan(one.error)
    args = type("Args", (), {"without_each": "head", "instead": "zero"})
    assert list(module.changes_table([one], args))[-1].split() == ["+2.0000", "-", "3.0000", "0.1"]
    assert module.as_json([one], args)["parts"][0]["standard error"] is None


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.2, "1 second"), (30, "30 seconds"), (60, "1 minute"), (61, "2 minutes"), (90000, "1,500 minutes")],
)
def test_durations_are_rounded_up(seconds, text):
    assert duration(seconds) == text


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--mean"], "--mean needs --without_each"),
        (["--bias"], "--bias needs --without_each"),
        (["--plot", "a.png"], "--plot needs --without_each"),
        (["--without_each", "mlp", "--plot", "a.pdf"], "'a.pdf' does not end in .png"),
        (["--without_each", "neuron"], "invalid choice: 'neuron'"),
        (["--without_each", "mlp", "--model_size", "tiny,tiny"], "--without_each is for one model"),
    ],
)
def test_options_that_do_not_fit_are_refused(file, words, message):
    assert_error(run_main("picogpt score", file, *TINY, *words), 2, message)
