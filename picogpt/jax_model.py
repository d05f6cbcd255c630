"""Train gpt2.py's own functions with JAX: the model in JAX, dropout, the optimizer and one training step.

There is no second model: gpt2.py is loaded again with `np` replaced by `jax.numpy`, and JAX differentiates its
functions. Dropout, which only training needs, is wrapped around two of these functions.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib.util
import signal
from collections.abc import Callable, Iterator
from functools import partial
from types import ModuleType
from typing import Any

import numpy as np

import gpt2
from picogpt.scoring.windows import windows

Array = np.ndarray[Any, np.dtype[Any]]


def gpt2_in_jax() -> ModuleType:
    """Load gpt2.py once more, as a module of its own that computes with jax.numpy."""
    import jax.numpy

    spec = importlib.util.spec_from_file_location("gpt2_in_jax", gpt2.__file__)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    module.np = jax.numpy  # type: ignore[attr-defined]
    return module


class Dropout:
    """Dropout for the functions mha and ffn of a JAX gpt2 module (Srivastava et al. 2014).

    Each number of their output becomes 0 with probability `rate`, and the others are divided by 1 - rate, which keeps
    the expected value. This happens only while `key` is set: training sets it while JAX traces the training step.
    """

    def __init__(self, module: ModuleType, rate: float):
        self.rate, self.key, self.n_calls = rate, None, 0
        for name in ("mha", "ffn"):
            setattr(module, name, self.dropping(getattr(module, name)))

    def dropping(self, function: Any) -> Any:
        import jax

        def wrapped(*args: Any, **kwargs: Any) -> Any:
            x = function(*args, **kwargs)
            if self.key is None or self.rate == 0:
                return x
            self.n_calls += 1  # so that every call drops different numbers
            kept = jax.random.bernoulli(jax.random.fold_in(self.key, self.n_calls), 1 - self.rate, x.shape)
            return jax.numpy.where(kept, x / (1 - self.rate), 0)

        return wrapped


def make_optimizer(args: argparse.Namespace) -> Any:
    """Return AdamW with clipped gradients, a warm-up and a cosine decay to 1/20 of the peak, as is usual for GPTs."""
    import jax
    import optax

    n_steps = max(args.steps, args.warmup + 1)
    rate = optax.warmup_cosine_decay_schedule(0.0, args.lr, args.warmup, n_steps, args.lr / 20)
    is_matrix = partial(jax.tree.map, lambda x: x.ndim > 1)  # Biases and gains do not decay.
    adamw = optax.adamw(rate, b2=0.99, weight_decay=args.weight_decay, mask=is_matrix)
    return optax.chain(optax.clip_by_global_norm(1.0), adamw)


class Trainer:
    """The functions that JAX compiles for training: one step, and the loss of held-out windows."""

    def __init__(self, args: argparse.Namespace):
        import jax
        import optax

        module = gpt2_in_jax()
        dropout = Dropout(module, args.dropout)
        self.n_ctx, self.optimizer = args.n_ctx, make_optimizer(args)

        def losses(params: Any, inputs: Any, targets: Any) -> Any:
            logits = module.gpt2(inputs, **params, n_head=args.n_head)
            return optax.softmax_cross_entropy_with_integer_labels(logits, targets)

        def step(params: Any, state: Any, ema: Any, inputs: Any, targets: Any, key: Any) -> Any:
            dropout.key, dropout.n_calls = key, 0
            loss, gradients = jax.value_and_grad(lambda p: losses(p, inputs, targets).mean())(params)
            dropout.key = None
            updates, state = self.optimizer.update(gradients, state, params)
            params = optax.apply_updates(params, updates)
            ema = jax.tree.map(lambda average, x: average + (1 - args.average) * (x - average), ema, params)
            return params, state, ema, loss

        self.step = jax.jit(step, donate_argnums=(0, 1, 2))
        self.sum_losses = jax.jit(lambda params, x, y, weight: jax.numpy.sum(losses(params, x, y) * weight))

    def held_out_loss(self, params: Any, ids: Array) -> float:
        """Return the sum of the losses of all ids but the first, 16 windows at a time.

        Every window is padded to n_ctx ids, because JAX compiles each shape anew. The padding has weight 0.
        """

        def padded(*arrays: Array) -> list[Array]:
            return [np.pad(array, (0, self.n_ctx - len(array))) for array in arrays]

        cut = (window.ids for window in windows(ids, self.n_ctx))
        pairs = [padded(part[:-1], part[1:], np.ones(len(part) - 1, np.float32)) for part in cut]
        total = 0.0
        for start in range(0, len(pairs), 16):
            x, y, weight = (np.stack(arrays) for arrays in zip(*pairs[start : start + 16]))
            total += float(self.sum_losses(params, x, y, weight))
        return total


@contextlib.contextmanager
def signals_held_back() -> Iterator[Callable[[], None]]:
    """Hold Ctrl-C, SIGTERM and SIGHUP back, and yield a function that lets those through that have come.

    An exception that a signal raises while JAX compiles gets lost in it, or ends the process with signal 11. A second
    signal of the same kind is let through at once.
    """
    came: list[int] = []
    handlers: dict[int, Any] = {}

    def hold(number: int, frame: Any) -> None:
        came.append(number)
        if came.count(number) > 1:
            handlers[number](number, frame)

    def let_through() -> None:
        for number in came:
            handlers[number](number, None)

    for name in ("SIGINT", "SIGTERM", "SIGHUP"):
        number = getattr(signal, name, None)  # Windows has no SIGHUP
        if number is not None and callable(handler := signal.getsignal(number)):
            with contextlib.suppress(ValueError):  # Python sets handlers in the main thread only
                signal.signal(number, hold)
                handlers[number] = handler
    try:
        yield let_through
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
    let_through()
