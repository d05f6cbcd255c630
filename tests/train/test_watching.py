"""Test what a training run says while it trains: its lines, their width, their losses, and the memory it takes."""

from __future__ import annotations

import contextlib
import json
import re
import shlex
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from helpers import ROOT
from runs import SETTINGS

from picogpt import command_line
from picogpt.checkpoints.writing import arrays_of, initial_params
from picogpt.command_line import UsageError
from picogpt.train import command, loop, report
from picogpt.train.text import encode_texts, split
from utils import load_encoder, load_encoder_hparams_and_params

NEXT = "what to do next: continue a text, chat, look inside"
HPARAMS = {"n_vocab": 280, "n_ctx": 16, "n_embd": 12, "n_head": 3, "n_layer": 2}
EVALUATION = r"step (\d+)/4: training (\d+\.\d{4}), held out (\d+\.\d{4}) bits per byte( \(best\))?"
BEHIND = r"  held out (\d+\.\d{4}) nats per character; training ([\d,]+) tokens/s; \d\d:\d\d left"


@pytest.mark.slow
def test_the_lines_of_a_run(train, text, tmp_path, monkeypatch, capsys):
    """First the shape, then a warning that compilation takes a while, then a line and a sample for each evaluation."""
    held_out = iter(nats := [9000.0, 8000.0, 8500.0, 7000.0])
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
    for start, end, loss in zip(steps, [*steps[1:], lines.index(NEXT)], nats):
        behind, *sample = lines[start + 1 : end]
        shown, tokens_per_second = re.fullmatch(BEHIND, behind).groups()
        assert float(shown) == pytest.approx(loss / parts[1].n_chars, abs=1e-4)
        assert int(tokens_per_second.replace(",", "")) > 0
        assert 2 <= len(sample) <= 3
        assert [line[:10] for line in sample] == ["  prompt: ", "  new:    ", " " * 10][: len(sample)]
    assert max(map(len, lines[: steps[-1] + 5])) <= 80


@pytest.mark.slow
def test_both_losses_are_in_bits_per_byte(train, text, tmp_path, monkeypatch, capsys):
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
    factor = len(training.ids) / len(texts[0].encode("utf-8"))
    assert 0.1 < factor < 0.9
    assert history["evaluations"][0]["training"] == pytest.approx(np.mean(per_token) / np.log(2) * factor)
    said = " ".join(capsys.readouterr().err.split())
    assert "losses are in bits per byte, as `score` prints them; " in said
    assert f"the training loss is the one per token times {factor:.4f}" in said
    assert f"the random weights have a loss of {per_token[0] / np.log(2) * factor:.4f} bits per byte" in said
    assert history["unit_of_losses"] == "bits per byte"
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


def test_a_sample_is_a_line_of_the_held_out_text_and_two_new_lines(monkeypatch):
    pytest.importorskip("jax")
    monkeypatch.setattr(report, "width_of_terminal", lambda: 50)
    encoder, hparams, params = load_encoder_hparams_and_params("tiny", ROOT / "models")
    ids = np.array(encoder.encode("ROMEO:\nWhat is it that the duke has said to thee?"))
    lines = report.sample_lines(encoder, params, hparams["n_head"], ids, seed=3)
    assert len(lines) == 3
    assert lines[0] == "  prompt: " + encoder.decode(ids[:8].tolist()).replace("\n", r"\n")
    assert [line[:10] for line in lines[1:]] == ["  new:    ", " " * 10]
    assert all(47 <= len(line) <= 49 for line in lines[1:])  # a \n stays whole
    assert lines == report.sample_lines(encoder, params, hparams["n_head"], ids, seed=3)
    assert lines != report.sample_lines(encoder, params, hparams["n_head"], ids, seed=4)


def test_the_prompt_of_a_sample_ends_with_a_whole_character():
    pytest.importorskip("jax")
    encoder, hparams, params = load_encoder_hparams_and_params("tiny", ROOT / "models")
    ids = np.array(encoder.encode("你好世界"))  # three tokens for each character
    given, *_ = report.sample_lines(encoder, params, hparams["n_head"], ids, seed=3)
    assert given == "  prompt: 你好"
    given, *_ = report.sample_lines(encoder, params, hparams["n_head"], ids[1:], seed=3)  # as a text may be cut
    assert given.startswith("  prompt: \ufffd")


def test_without_a_terminal_a_run_says_regularly_what_it_does(monkeypatch, capsys):
    doing = iter(["compiling", "step 1/4, training 3.5000 bits per byte", *["waiting"] * 99])
    with report.life_signs(lambda: next(doing), seconds=0.05):
        time.sleep(0.3)
    first, second, *_ = capsys.readouterr().err.splitlines()
    assert first == "after 0 s: compiling"
    assert second == "after 0 s: step 1/4, training 3.5000 bits per byte"
    time.sleep(0.2)
    assert capsys.readouterr().err == ""  # it has ended
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    with report.life_signs(lambda: "compiling", seconds=0.01):
        time.sleep(0.1)
    assert capsys.readouterr().err == ""


@pytest.mark.slow
def test_a_run_says_what_it_does_when_it_is_asked(train, monkeypatch):
    asked, seen = [], []
    monkeypatch.setattr(command, "life_signs", lambda doing: contextlib.nullcontext(asked.append(doing)))
    for owner, name in ((command, "prepare"), (loop, "encode_texts"), (loop.Trainer, "compile"), (loop, "batch")):

        def noted(*args, name=name, function=getattr(owner, name)):
            seen.append(asked[0]())
            return function(*args)

        monkeypatch.setattr(owner, name, noted)
    assert train("--eval_every", 4) == 0
    assert seen[:4] == ["making the tokenizer", "encoding the text", "compiling", "preparing the first step"]
    assert [re.sub(r"\d\.\d{4}", "X", text) for text in seen[4:]] == [
        f"step {step}/4, training X bits per byte" for step in (1, 2, 3)
    ]


@pytest.mark.parametrize(
    ("text", "prompt"),
    [
        ("First Citizen:\nBefore we proceed any further, hear me speak.\n", "First Citizen:"),
        ('$HOME `id` \\ "\n  To be, or not to be, that is the question\n', "The"),
        ("\n- a list\nTo be, or not to be, that is the question\n", "To be, or not to be, that is the"),
        ("Straße! you\n", "Straße"),
        ("你好世界\n", "你好世界"),
        ("<html>\n", "The"),
    ],
)
def test_the_next_steps_are_commands(text, prompt, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    encoder = load_encoder(ROOT / "models" / "tiny")
    report.log_next_steps(Path("models") / "it's mine", text, encoder, 256)
    title, *lines, page = capsys.readouterr().err.splitlines()
    assert title == NEXT
    words = [shlex.split(line) for line in lines]
    assert words[0] == ["python", "gpt2.py", prompt, "--model", "it's mine", "--temperature", "0.8"]
    assert words[1] == ["python", "-m", "picogpt", "chat", "--model", "it's mine"]
    assert words[2][3:] == ["explain", prompt, "--model", "it's mine", "--html", "it's mine.html"]
    assert page == "or publish it: docs/index.html?model=it's mine is its page (see docs/page.md)"
    report.log_next_steps(Path("elsewhere") / "mine", text, encoder, 256)  # models/ is where the page looks
    _, *lines = capsys.readouterr().err.splitlines()
    assert [line.split("--model ")[1].split()[0] for line in lines] == ["elsewhere/mine"] * 3


@pytest.mark.parametrize("n_ctx", [1, 2, 8, 64])
def test_the_next_steps_fit_into_a_short_context(n_ctx, capsys):
    encoder = load_encoder(ROOT / "models" / "tiny")
    report.log_next_steps(Path("a"), "ROMEO: But, soft! what light\n", encoder, n_ctx)
    words = shlex.split(capsys.readouterr().err.splitlines()[1])
    n_new = int(words[words.index("-n") + 1]) if "-n" in words else 40
    assert 0 < len(encoder.encode(words[2])) <= max(1, n_ctx // 2)
    assert len(encoder.encode(words[2])) + n_new <= n_ctx + 1
    assert ("-n" in words) == (n_ctx < 64)


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
