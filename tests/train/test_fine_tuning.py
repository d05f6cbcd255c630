"""Test --from: fine-tuning an existing model, with its tokenizer and its shape."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers import ROOT, as_dtype, assert_error, bits_per_byte, loss_per_char, run_main
from runs import SCHEDULE, interrupted_at

from picogpt import options
from picogpt.checkpoints.convert import to_hf
from picogpt.checkpoints.writing import initial_params, made_up_merges, tokenizer_of, write_checkpoint, write_tokenizer
from picogpt.train import command, loop
from picogpt.train.text import split
from utils import FILES, META, load_encoder_hparams_and_params

TINY = ROOT / "models" / "tiny"


@pytest.fixture
def fine_tune(train: Callable[..., int]) -> Callable[..., int]:
    """Return a function that fine-tunes a model on the text."""

    def run(*args: Any, **places: Path) -> int:
        return train(*args, settings=SCHEDULE, **places)

    return run


def write_source(folder: Path, seed: int) -> None:
    """Write a model in float16, whose shape is that of the other tests, so that its step is compiled already."""
    hparams = {"n_vocab": 280, "n_ctx": 16, "n_embd": 12, "n_head": 3, "n_layer": 2}
    folder.mkdir(parents=True)
    write_tokenizer(folder, tokenizer_of(made_up_merges(280 - 257)))
    write_checkpoint(folder, hparams, as_dtype(initial_params(hparams, seed), np.float16))


@pytest.mark.slow
def test_fine_tuning_lowers_the_loss_of_tiny_on_another_text(fine_tune, text, tmp_path, capsys):
    _, held_out = split(text.read_text(encoding="utf-8"), 0.1)
    encoder, hparams, params = load_encoder_hparams_and_params("tiny", TINY.parent)
    before = loss_per_char(held_out, encoder, params, hparams)
    assert fine_tune("--from", "tiny", "--lr", 0.001, "--batch_size", 1, "--eval_every", 4, out=tmp_path / "new") == 0
    captured = capsys.readouterr()
    said = float(re.search(r"step 0/4: held out (\S+) bits per byte, before the fine-tuning", captured.err)[1])
    assert said == pytest.approx(bits_per_byte(before, held_out), abs=1e-3)
    encoder, new_hparams, params = load_encoder_hparams_and_params("new", tmp_path)
    after = loss_per_char(held_out, encoder, params, new_hparams)
    assert after < before - 0.1
    printed = re.search(r"held-out loss (\S+) bits per byte \((\S+) nats per character\)", captured.out).groups()
    assert [float(x) for x in printed] == pytest.approx([bits_per_byte(after, held_out), after], abs=1e-3)
    assert new_hparams == hparams
    assert {path.name for path in (tmp_path / "new").iterdir()} == {*FILES, "history.json"} - {META}
    for name in ("encoder.json", "vocab.bpe"):
        assert (tmp_path / "new" / name).read_bytes() == (TINY / name).read_bytes()


@pytest.mark.slow
def test_fine_tuning_is_resumed_with_the_same_model_only(fine_tune, tmp_path, monkeypatch):
    for seed in (1, 2):
        write_source(tmp_path / "models" / f"source{seed}", seed)
    to_hf(tmp_path / "models" / "source1", tmp_path / "models" / "hf")  # --from takes every layout
    through, broken = tmp_path / "through", tmp_path / "broken"
    settings = ["--models_dir", tmp_path / "models", "--eval_every", 2, "--from"]
    assert fine_tune(*settings, "hf", out=through) == 0
    monkeypatch.setattr(loop, "batch", interrupted_at(3, draw := loop.batch))
    assert fine_tune(*settings, "source1", out=broken) == 130
    monkeypatch.setattr(loop, "batch", draw)
    with pytest.raises(ValueError, match="broken.training was begun with from = [0-9a-f]{64}, not [0-9a-f]{64}"):
        fine_tune(*settings, "source2", "--resume", out=broken)
    assert fine_tune(*settings, "source1", "--resume", out=broken) == 0
    for path in through.iterdir():
        if path.name != "history.json":  # it has times
            assert path.read_bytes() == (broken / path.name).read_bytes(), path.name
    assert load_encoder_hparams_and_params("through", tmp_path)[2]["wte"].dtype == np.float32


@pytest.mark.parametrize("option", ["n_vocab", "n_ctx", "n_embd", "n_head", "n_layer"])
def test_the_shape_is_the_model_s(tmp_path, option):
    result = run_main("picogpt train", "t.txt", "--out", tmp_path / "m", "--from", "tiny", f"--{option}", 4)
    assert_error(result, 2, f"argument --{option}: not with --from")


def test_the_defaults_of_fine_tuning_are_gentler():
    scratch, tuned = (command.parse_args(["t.txt", "--out", "m", *more]) for more in ([], ["--from", "124M"]))
    assert (scratch.lr, scratch.batch_size, scratch.steps, scratch.n_ctx) == (2e-3, 32, 4000, 256)
    assert (tuned.lr, tuned.batch_size, tuned.steps, tuned.n_ctx) == (1e-4, 1, 1000, None)
    assert command.parse_args(["t.txt", "--out", "m", "--from", "124M", "--lr", "0.5"]).lr == 0.5


def test_a_model_that_is_not_there_and_a_package_that_fine_tuning_does_not_need(fine_tune, tmp_path, monkeypatch):
    find = options.importlib.util.find_spec
    monkeypatch.setattr(options.importlib.util, "find_spec", lambda name: find(name) if name != "tokenizers" else None)
    with pytest.raises(FileNotFoundError, match="there is no model 'nothing' in"):
        fine_tune("--from", "nothing")
    assert [path.name for path in tmp_path.iterdir()] == ["text.txt"]
