"""Test training: gradients against PyTorch's, resuming, diverging, and Ctrl-C."""

from __future__ import annotations

import contextlib
import json
import math
import re
import signal
import sys
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
from helpers import SMALL, bits_per_byte, loss_per_char, random_params, relative, run_main, transformers_model
from runs import interrupted_at

import gpt2
from picogpt import jax_model
from picogpt.checkpoints.writing import initial_params
from picogpt.train import command, loop
from picogpt.train.text import split
from utils import FILES, META, load_encoder_hparams_and_params

pytestmark = pytest.mark.usefixtures("checked_shapes")


# ------------------------------------------------------------------------------------------------------- gradients


@pytest.mark.slow
@pytest.mark.parametrize(("dtype", "tolerance"), [("float32", 2e-5), ("float64", 1e-12)])
def test_gradients_equal_pytorch_s(packages, dtype, tolerance):
    torch = pytest.importorskip("torch")
    import jax
    import optax

    params = random_params(SMALL, dtype)
    ids = np.random.default_rng(1).integers(0, 101, 18)
    model = transformers_model(params, SMALL, dtype)
    logits = model(torch.tensor(ids[None, :-1])).logits[0]
    torch.nn.functional.cross_entropy(logits, torch.tensor(ids[1:])).backward()
    theirs = {name: parameter.grad.numpy() for name, parameter in model.named_parameters()}
    module = jax_model.gpt2_in_jax()

    def loss(params):
        logits = module.gpt2(ids[:-1], **params, n_head=3)
        return optax.softmax_cross_entropy_with_integer_labels(logits, ids[1:]).mean()

    with jax.enable_x64(dtype == "float64"):
        ours = jax.tree.map(np.asarray, jax.jit(jax.grad(loss))(params))
    assert relative(ours["wte"], theirs["transformer.wte.weight"]) < tolerance
    assert relative(ours["wpe"], theirs["transformer.wpe.weight"]) < tolerance
    assert relative(ours["ln_f"]["g"], theirs["transformer.ln_f.weight"]) < tolerance
    for layer, block in enumerate(ours["blocks"]):
        h = f"transformer.h.{layer}."
        for part, name in (("attn", "c_attn"), ("attn", "c_proj"), ("mlp", "c_fc"), ("mlp", "c_proj")):
            assert relative(block[part][name]["w"], theirs[f"{h}{part}.{name}.weight"]) < tolerance
            assert relative(block[part][name]["b"], theirs[f"{h}{part}.{name}.bias"]) < tolerance
        for name in ("ln_1", "ln_2"):
            assert relative(block[name]["g"], theirs[f"{h}{name}.weight"]) < tolerance
            assert relative(block[name]["b"], theirs[f"{h}{name}.bias"]) < tolerance


def test_dropout_drops_and_scales_only_with_a_key(packages):
    import jax

    module = jax_model.gpt2_in_jax()
    dropout = jax_model.Dropout(module, 0.25)
    params = random_params(SMALL)
    without = gpt2.gpt2([1, 2, 3], **params, n_head=3)
    assert relative(np.asarray(module.gpt2(np.array([1, 2, 3]), **params, n_head=3)), without) < 2e-6
    dropout.key = jax.random.key(0)
    assert not np.allclose(module.gpt2(np.array([1, 2, 3]), **params, n_head=3), without)
    ones = dropout.dropping(lambda: jax.numpy.ones(10000))
    dropped, again = ones(), ones()
    assert (dropped != again).any()  # every call drops other numbers
    assert set(np.unique(dropped)) == {np.float32(0), np.float32(1 / 0.75)}
    assert abs(float(dropped.mean()) - 1) < 0.03


# -------------------------------------------------------------------------------------------------------- training


@pytest.mark.slow
def test_four_steps_lower_the_loss_and_the_model_runs(train, text, tmp_path, capsys):
    out = tmp_path / "models" / "new"
    plot = tmp_path / "loss.png"
    assert train("--eval_every", 1, "--plot", plot, out=out) == 0
    encoder, hparams, params = load_encoder_hparams_and_params("new", out.parent)
    assert hparams == {"n_vocab": 280, "n_ctx": 16, "n_embd": 12, "n_head": 3, "n_layer": 2}
    assert {path.name for path in out.iterdir()} == {*FILES, "history.json"} - {META}
    assert not out.with_name("new.training").exists()
    assert run_main("utils.py", "new", "--models_dir", out.parent).status == 0
    _, held_out = split(text.read_text(encoding="utf-8"), 0.1)
    before = loss_per_char(held_out, encoder, initial_params(hparams, 0), hparams)
    after = loss_per_char(held_out, encoder, params, hparams)
    assert after < before - 0.05
    pattern = r"held-out loss (\S+) bits per byte \((\S+) nats per character\)"
    printed = [float(x) for x in re.search(pattern, capsys.readouterr().out).groups()]
    expected = [bits_per_byte(after, held_out), after]  # the text has letters of two and three bytes
    assert printed == pytest.approx(expected, abs=1e-3)  # JAX in batches and NumPy agree about the loss
    (tmp_path / "held_out.txt").write_text(held_out, encoding="utf-8", newline="\n")
    scored = run_main("picogpt score", tmp_path / "held_out.txt", "--model", out, "--no_bos").out.splitlines()
    assert float(scored[1].split()[5]) == pytest.approx(printed[0], abs=1e-3)  # `score` prints the same number
    assert plot.read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"


@pytest.mark.slow
def test_a_resumed_run_ends_in_the_same_bytes(train, tmp_path, monkeypatch, capsys):
    settings = ["--eval_every", 2, "--seed", 7]
    through, broken = tmp_path / "m" / "through", tmp_path / "m" / "broken"
    assert train(*settings, out=through) == 0
    monkeypatch.setattr(loop, "batch", interrupted_at(3, draw := loop.batch))
    assert train(*settings, out=broken) == 130
    resumable = f"interrupted: --resume continues from step 2, the last evaluation, in {broken}.training\n"
    assert capsys.readouterr().err.endswith(resumable)
    assert not broken.exists()
    monkeypatch.setattr(loop, "batch", draw)
    with pytest.raises(FileExistsError, match="--resume"):
        train(*settings, out=broken)
    with pytest.raises(ValueError, match="begun with seed = 7, not 8"):
        train(*settings[:-1], 8, "--resume", out=broken)
    assert train(*settings, "--resume", out=broken) == 0
    assert not broken.with_name("broken.training").exists()
    for path in through.iterdir():
        if path.name != "history.json":  # it has times
            assert path.read_bytes() == (broken / path.name).read_bytes(), path.name
    histories = [json.loads((folder / "history.json").read_text(encoding="utf-8")) for folder in (through, broken)]
    for row in histories[0]["evaluations"] + histories[1]["evaluations"]:
        assert row.pop("seconds") > 0
    assert histories[0] == histories[1]


def test_early_stopping_waits_for_its_patience():
    history = [{"held_out": loss} for loss in (3.0, 2.0, 2.1, 2.2)]
    assert not loop.stalled(history, 3)
    assert loop.stalled(history, 2)
    assert not loop.stalled(history, 0)


@pytest.mark.slow
@pytest.mark.parametrize(("name", "method"), [("loss", "step"), ("held-out loss", "held_out_loss")])
def test_a_loss_that_is_not_a_number_keeps_the_last_good_state(train, tmp_path, monkeypatch, name, method):
    class Diverging(jax_model.Trainer):
        def __init__(self, args):
            super().__init__(args)
            function, calls = getattr(self, method), iter(range(1, 9))

            def nan_at_the_third(*args):
                result = function(*args)
                if next(calls) < 3:
                    return result
                return (*result[:-1], math.nan) if method == "step" else math.nan

            setattr(self, method, nan_at_the_third)

    monkeypatch.setattr(loop, "Trainer", Diverging)
    with pytest.raises(ValueError, match=f"the {name} is nan at step 3: lower --lr; .* has the last good state"):
        train("--eval_every", 1)
    assert not (tmp_path / "m").exists()
    with np.load(tmp_path / "m.training" / "state.npz") as state:
        assert json.loads(str(state["history"]))[-1]["step"] == 2
        assert all(np.isfinite(state[name]).all() for name in state.files if name != "history")


@pytest.mark.slow
def test_a_run_that_diverges_at_once_saves_nothing(train, tmp_path, monkeypatch):
    import jax

    def huge(hparams, seed):
        return jax.tree.map(lambda x: x * np.float32(1e30), initial_params(hparams, seed))

    monkeypatch.setattr(command, "initial_params", huge)
    with pytest.raises(ValueError, match="loss is (nan|inf) at step 1: lower --lr; nothing was saved"):
        train("--eval_every", 1)
    assert [path.name for path in tmp_path.iterdir()] == ["text.txt"]


# -------------------------------------------------------------------------------------------------------- signals


@pytest.fixture
def handler_of_sigterm() -> Iterator[Callable[..., None]]:
    """Let SIGTERM raise SystemExit during a test."""

    def leave(number: int, frame: Any) -> None:
        sys.exit(128 + number)

    before = signal.signal(signal.SIGTERM, leave)
    yield leave
    signal.signal(signal.SIGTERM, before)


def test_a_signal_waits_until_it_is_let_through_and_a_second_one_does_not(handler_of_sigterm):
    done = []

    def work(*steps: Any) -> None:
        with jax_model.signals_held_back() as let_through:
            for step in steps:
                let_through() if step == "let through" else signal.raise_signal(step)
                done.append(step)

    for number, error in ((signal.SIGINT, KeyboardInterrupt), (signal.SIGTERM, SystemExit)):
        for steps, n_done in ((("let through", number, "let through"), 2), ((number, number), 1), ((number,), 1)):
            done.clear()
            with pytest.raises(error):
                work(*steps)
            assert len(done) == n_done
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    assert signal.getsignal(signal.SIGTERM) is handler_of_sigterm


def test_ctrl_c_is_not_lost_while_jax_compiles(train, tmp_path, monkeypatch, capsys):
    """Python reports an exception that JAX calls back into, and goes on, or crashes."""

    class Losing(jax_model.Trainer):
        def __init__(self, args):
            with contextlib.suppress(KeyboardInterrupt):
                signal.raise_signal(signal.SIGINT)
            super().__init__(args)

    def fail(*args):
        raise AssertionError("the training must not begin")

    monkeypatch.setattr(loop, "Trainer", Losing)
    monkeypatch.setattr(loop, "batch", fail)
    assert train() == 130
    assert capsys.readouterr().err.endswith("interrupted before the first evaluation: nothing was saved\n")
    assert [path.name for path in tmp_path.iterdir()] == ["text.txt"]
