"""What training computes: AdamW against PyTorch's, losses, averages, seconds, and which windows are drawn."""

from __future__ import annotations

import argparse
import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock

import numpy as np
import pytest
from helpers import random_params, their_gpt2

from picogpt import jax_model
from picogpt.train import loop
from picogpt.train.text import Part, batch

ARGS = argparse.Namespace(
    steps=9, warmup=3, lr=0.01, weight_decay=0.3, average=0.9, dropout=0.0, n_ctx=4, batch_size=2, n_head=1, seed=0
)


def rate(step: int) -> float:
    """Rise to the peak in `warmup` steps, then fall along a cosine to 1/20 of it."""
    if step < ARGS.warmup:
        return ARGS.lr * step / ARGS.warmup
    fallen = (1 + math.cos(math.pi * (step - ARGS.warmup) / (ARGS.steps - ARGS.warmup))) / 2
    return ARGS.lr * (fallen * 0.95 + 0.05)


def test_several_steps_equal_pytorch_s_adamw(packages, rng):
    torch = pytest.importorskip("torch")
    import jax
    import optax

    start = {"w": rng.standard_normal((3, 4), np.float32), "b": rng.standard_normal(4, np.float32)}
    ours: Any = jax.tree.map(jax.numpy.array, start)
    optimizer = jax_model.make_optimizer(ARGS)
    state = optimizer.init(ours)
    theirs = {name: torch.tensor(array, requires_grad=True) for name, array in start.items()}
    groups = [
        {"params": [theirs["w"]], "weight_decay": ARGS.weight_decay},
        {"params": [theirs["b"]], "weight_decay": 0.0},  # only matrices decay
    ]
    adamw = torch.optim.AdamW(groups, betas=(0.9, 0.99), eps=1e-8)
    for step in range(ARGS.steps + 2):  # the rate stays at its end
        size = 0.01 if step % 2 else 10.0  # the norm of large gradients becomes 1
        gradients = {name: size * rng.standard_normal(array.shape, np.float32) for name, array in start.items()}
        updates, state = optimizer.update(jax.tree.map(jax.numpy.array, gradients), state, ours)
        ours = optax.apply_updates(ours, updates)
        for name, gradient in gradients.items():
            theirs[name].grad = torch.tensor(gradient)
        torch.nn.utils.clip_grad_norm_(list(theirs.values()), 1.0)
        for group in adamw.param_groups:
            group["lr"] = rate(min(step, ARGS.steps))
        adamw.step()
        for name in start:
            np.testing.assert_allclose(ours[name], theirs[name].detach().numpy(), rtol=0, atol=2e-6, err_msg=f"{step}")


def nats(params: Any, ids: list[int]) -> float:
    """Return the sum of the losses of all ids but the first, by a forward pass that is not gpt2.py's."""
    logits = their_gpt2(ids[:-1], **params, n_head=1).astype(np.float64)
    return float((np.log(np.exp(logits).sum(axis=-1)) - logits[range(len(ids) - 1), ids[1:]]).sum())


def test_the_losses_and_the_average_of_a_step(packages):
    import jax

    hparams = {"n_vocab": 7, "n_ctx": 4, "n_embd": 2, "n_head": 1, "n_layer": 1}
    params, before = random_params(hparams, seed=1), random_params(hparams, seed=2)
    trainer = jax_model.Trainer(argparse.Namespace(**vars(ARGS) | {"warmup": 0}))
    arrays, old = (jax.tree.map(jax.numpy.array, tree) for tree in (params, before))
    for n in (2, 5, 6, 9, 11, 13):  # full and short last windows, and a last row that is unused, or not
        ids = np.arange(n) * 3 % 7
        windows = [ids[start : start + 5].tolist() for start in range(0, n - 1, 4)]  # each scores 4 ids at most
        expected = sum(nats(params, window) for window in windows)
        assert trainer.held_out_loss(arrays, ids) == pytest.approx(expected, abs=1e-4)
    texts = np.array([[1, 2, 3, 4, 0], [5, 6, 0, 1, 1]])
    state = trainer.optimizer.init(arrays)
    new, _, average, loss = trainer.step(arrays, state, old, texts[:, :-1], texts[:, 1:], jax.random.key(0))
    assert float(loss) == pytest.approx(sum(nats(params, text) for text in texts.tolist()) / 8, abs=1e-5)
    assert sum(nats(jax.tree.map(np.asarray, new), text) for text in texts.tolist()) / 8 < float(loss) - 0.002
    jax_model.make_optimizer(argparse.Namespace(**vars(ARGS) | {"warmup": 9}))  # as many as there are steps
    expected = jax.tree.map(lambda old, x: 0.9 * old + 0.1 * np.asarray(x), before, new)
    for found, value in zip(jax.tree.leaves(average), jax.tree.leaves(expected)):
        np.testing.assert_allclose(found, value, rtol=0, atol=1e-6)  # nine tenths of the old one


def test_every_window_can_be_drawn_and_steps_draw_different_ones():
    ids = np.arange(6)
    starts = [batch(ids, 4, 1, 0, step)[0][0, 0] for step in range(50)]
    assert set(starts) == {0, 1}  # the last window ends with the last id as its target
    assert (batch(ids, 4, 1, 0, 1)[1][:, -1] <= 5).all()
    ids = np.arange(1000)
    first, again, other, seeded = (batch(ids, 4, 8, *at)[0].tolist() for at in ((0, 1), (0, 1), (0, 2), (1, 1)))
    assert first == again
    assert first != other
    assert first != seeded


@pytest.fixture
def run(packages: None) -> loop.Run:
    """Return a run without a model, whose arguments are ARGS."""
    run = loop.Run(argparse.Namespace(**vars(ARGS), eval_every=4, patience=0, out=Path("m"), source=None), {})
    run.parts = [Part(np.arange(500), 1000, 1100), Part(np.arange(500), 250, 260)]
    return run


def test_each_step_has_its_own_windows_and_its_own_random_key(run):
    import jax

    calls: list[Any] = []

    def step(params: Any, state: Any, ema: Any, inputs: Any, targets: Any, key: Any) -> Any:
        calls.append((inputs.tolist(), jax.random.key_data(key).tolist()))
        return params, state, ema, len(calls)

    run.tree = {"params": 0, "state": 0, "ema": 0}
    run.trainer = SimpleNamespace(step=step)
    assert run.steps(range(3), mock.Mock(), lambda: None) == 2.0  # the mean of 1, 2 and 3
    assert len({str(windows) for windows, _ in calls}) == len({str(key) for _, key in calls}) == 3


def test_a_resumed_run_goes_on_with_its_steps_and_seconds_and_losses_are_per_byte(run, monkeypatch):
    clock, left, asked = iter([10.0, 12.0, 16.0, 20.0]), list[float](), list[range]()
    monkeypatch.setattr(loop, "time", SimpleNamespace(monotonic=lambda: next(clock)))
    monkeypatch.setattr(run, "steps", lambda steps, *_: asked.append(steps) or 3.0)
    monkeypatch.setattr(run, "save", run.history.append)
    monkeypatch.setattr(run, "report", left.append)
    run.history.append({"step": 3, "training": 4.0, "held_out": 4.0, "seconds": 100.0})
    run.tree, run.trainer = {"ema": 0}, SimpleNamespace(held_out_loss=lambda params, ids: 500.0)
    run.loop(lambda: None)
    assert asked == [range(3, 4), range(4, 8), range(8, 9)]
    assert left == [10.0, pytest.approx(1.2), 0.0]
    assert [row["seconds"] for row in run.history] == [100.0, 102.0, 106.0, 110.0]
    losses = {"training": 3.0 * 500 / 1100 / math.log(2), "held_out": 500 / 260 / math.log(2)}
    assert run.history[-1] == {"step": 9, **losses, "seconds": 110.0}
    assert run.parts[1].nats_per_char(losses["held_out"]) == pytest.approx(500 / 250)
