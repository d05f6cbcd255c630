"""What a training step computes: AdamW against PyTorch's, the average of the weights, and which windows are drawn."""

from __future__ import annotations

import argparse
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers import random_params

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


def test_the_average_keeps_nine_tenths_of_itself(packages):
    import jax

    hparams = {"n_vocab": 7, "n_ctx": 4, "n_embd": 2, "n_head": 1, "n_layer": 1}
    params, before = random_params(hparams, seed=1), random_params(hparams, seed=2)
    trainer = jax_model.Trainer(ARGS)
    arrays = jax.tree.map(jax.numpy.array, params)
    ids = np.array([[1, 2, 3, 4], [5, 6, 0, 1]])
    new, _, average, _ = trainer.step(
        arrays, trainer.optimizer.init(arrays), jax.tree.map(jax.numpy.array, before), ids, ids, jax.random.key(0)
    )
    expected = jax.tree.map(lambda old, x: 0.9 * old + 0.1 * np.asarray(x), before, new)
    for found, value in zip(jax.tree.leaves(average), jax.tree.leaves(expected)):
        np.testing.assert_allclose(found, value, rtol=0, atol=1e-6)


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


def test_each_step_has_its_own_windows_and_its_own_random_key(packages):
    import jax

    calls: list[Any] = []

    class Fake:
        def step(self, params: Any, state: Any, ema: Any, inputs: Any, targets: Any, key: Any) -> Any:
            calls.append((inputs.tolist(), jax.random.key_data(key).tolist()))
            return params, state, ema, 1.0

    class Bar:
        def update(self) -> None:
            pass

    run = loop.Run(argparse.Namespace(**vars(ARGS), out=Path("m"), source=None), {})
    run.tree, run.trainer = {"params": 0, "state": 0, "ema": 0}, Fake()  # type: ignore[assignment]
    run.parts = [Part(np.arange(500), 500)]
    assert run.steps(range(3), Bar(), lambda: None) == 1.0
    assert len({str(windows) for windows, _ in calls}) == len({str(key) for _, key in calls}) == 3
