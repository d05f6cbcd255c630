"""Test what a training run says while it trains: its lines, their width, their losses, and the memory it takes."""

from __future__ import annotations

import json
import re

import numpy as np
import pytest
from helpers import ROOT
from runs import SETTINGS

from picogpt import command_line
from picogpt.checkpoints.writing import arrays_of, initial_params
from picogpt.command_line import UsageError
from picogpt.train import command, loop, report
from picogpt.train.text import encode_texts, split
from utils import load_encoder_hparams_and_params

HPARAMS = {"n_vocab": 280, "n_ctx": 16, "n_embd": 12, "n_head": 3, "n_layer": 2}
EVALUATION = r"step (\d+)/4: training (\d\.\d{4}), held out (\d\.\d{4})( \(best\))?, \d\d:\d\d left"


@pytest.mark.slow
def test_the_lines_of_a_run(train, text, tmp_path, monkeypatch, capsys):
    """First the shape, then a warning that compilation takes a while, then a line and a sample for each evaluation."""
    held_out = iter([9000.0, 8000.0, 8500.0, 7000.0])
    monkeypatch.setattr(loop.Trainer, "held_out_loss", lambda *args: next(held_out))
    assert train("--eval_every", 1) == 0
    lines = capsys.readouterr().err.splitlines()
    _, parts = encode_texts(16, tmp_path / "m", split(text.read_text(encoding="utf-8"), 0.1))
    n_params = sum(array.size for _, array in arrays_of(initial_params(HPARAMS, 0)))
    shape = f"n_layer 2, n_embd 12, n_head 3, n_ctx 16, n_vocab 280: {n_params:,} parameters; "
    shape += f"{len(parts[0].ids):,} tokens to train on, {len(parts[1].ids):,} held out"
    assert " ".join(lines).startswith(f"{shape} compiling takes a while")
    steps = [i for i, line in enumerate(lines) if line.startswith("step")]
    found = [re.fullmatch(EVALUATION, lines[i]).groups() for i in steps]
    rows = json.loads((tmp_path / "m" / "history.json").read_text(encoding="utf-8"))["evaluations"]
    assert [int(step) for step, *_ in found] == [1, 2, 3, 4]
    assert [line[:3] for line in found] == [
        (str(r["step"]), f"{r['training']:.4f}", f"{r['held_out']:.4f}") for r in rows
    ]
    assert [mark is not None for *_, mark in found] == [True, True, False, True]
    for start, end in zip(steps, [*steps[1:], len(lines)]):
        assert 1 < end - start <= 3
        assert all(line.startswith("  ") for line in lines[start + 1 : end])
    assert max(map(len, lines)) <= 80


@pytest.mark.slow
def test_both_losses_are_in_nats_per_character(train, text, tmp_path, monkeypatch, capsys):
    per_token, step = [], loop.Trainer.step

    def recorded(*args):
        *rest, loss = step(*args)
        per_token.append(float(loss))
        return *rest, loss

    monkeypatch.setattr(loop.Trainer, "step", recorded)
    assert train("--eval_every", 4) == 0
    assert np.log(280) - 1 < per_token[0] < np.log(280) + 1  # at first, each token is as likely as the others
    history = json.loads((tmp_path / "m" / "history.json").read_text(encoding="utf-8"))
    texts = split(text.read_text(encoding="utf-8"), 0.1)
    _, (training, _) = encode_texts(16, tmp_path / "m", texts)
    factor = len(training.ids) / len(texts[0])
    assert 0.1 < factor < 0.9
    assert history["evaluations"][0]["training"] == pytest.approx(np.mean(per_token) * factor)
    said = " ".join(capsys.readouterr().err.split())
    assert f"losses are in nats per character; the training loss is the one per token times {factor:.4f}" in said
    assert history["unit_of_losses"] == "nats per character"
    assert history["settings"]["n_embd"] == 12
    assert history["settings"]["patience"] == 10
    assert history["best_step"] == 4


@pytest.mark.slow
def test_samples_do_not_change_the_training(train, tmp_path, monkeypatch):
    assert train("--eval_every", 2, out=tmp_path / "with") == 0
    monkeypatch.setattr(report, "sample_lines", lambda *args: [])
    assert train("--eval_every", 2, out=tmp_path / "without") == 0
    data = [(tmp_path / name / "model.ckpt.data-00000-of-00001").read_bytes() for name in ("with", "without")]
    assert data[0] == data[1]


def test_a_sample_is_two_lines_that_begin_with_the_held_out_text(monkeypatch):
    pytest.importorskip("jax")
    monkeypatch.setattr(report, "width_of_terminal", lambda: 50)
    encoder, hparams, params = load_encoder_hparams_and_params("tiny", ROOT / "models")
    ids = np.array(encoder.encode("ROMEO:\nWhat is it that the duke has said to thee?"))
    lines = report.sample_lines(encoder, params, hparams["n_head"], ids, seed=3)
    assert len(lines) == 2
    assert lines[0].startswith("  " + encoder.decode(ids[:8].tolist()).replace("\n", r"\n"))
    assert all(47 <= len(line) <= 49 for line in lines)  # a \n stays whole
    assert lines == report.sample_lines(encoder, params, hparams["n_head"], ids, seed=3)
    assert lines != report.sample_lines(encoder, params, hparams["n_head"], ids, seed=4)


def test_rows_are_cut_at_the_width_and_show_control_characters():
    taken = []

    def pieces():
        for piece in ("a\x1b[2Jb", "\n你好", "e\u0301" * 10, "never"):
            taken.append(piece)
            yield piece

    assert report.rows(pieces(), 8, 3) == [r"a\x1b[2J", r"b\n你好e" + "\u0301", "e\u0301" * 8]
    assert "never" not in taken
    assert report.rows(["short"], 8, 2) == ["short"]
    assert report.rows(["one\ntwo", " three four"], 6, 2) == [r"one\nt", "wo thr"]


# ------------------------------------------------------------------------------------------------------------ memory


def test_too_little_memory_is_said_before_it_is_taken(train, tmp_path, monkeypatch):
    def fail(*args):
        raise AssertionError("the training must not begin")

    monkeypatch.setattr(loop, "batch", fail)
    monkeypatch.setattr(loop.Run, "start", fail)
    monkeypatch.setattr(command_line, "free_memory", lambda: 100_000)
    message = r"training takes 1 MB of memory, but only 0 MB are free: lower --batch_size 4"
    with pytest.raises(UsageError, match=message):
        train()
    assert [path.name for path in tmp_path.iterdir()] == ["text.txt"]


def test_the_memory_of_a_run_is_its_arrays_and_what_xla_plans_for_a_step(packages):
    """The arrays are the parameters, Adam's two moments and two averages. A step has at least gradients and logits."""
    args = command.parse_args(["text", "--out", "m", *SETTINGS])
    params = initial_params(HPARAMS, 0)
    n_bytes = 4 * sum(array.size for _, array in arrays_of(params))
    trainer = loop.Trainer(args)
    needed = trainer.compile(params)
    planned = trainer.compiled_step.memory_analysis().temp_size_in_bytes
    assert planned > n_bytes + 4 * (4 * 16 * 280)
    assert 5 * n_bytes <= needed - planned < 5 * n_bytes + 100  # and a few counters
