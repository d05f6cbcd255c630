"""Train gpt2.py's own functions with JAX: the model in JAX, dropout, the optimizer and one training step.

There is no second model: gpt2.py is loaded again with `np` replaced by `jax.numpy`, and JAX differentiates its
functions. Dropout, which only training needs, is wrapped around two of these functions.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib.util
import math
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
        self.n_ctx, self.batch_size, self.optimizer = args.n_ctx, args.batch_size, make_optimizer(args)
        self.n_rows = min(16, args.batch_size)  # held-out windows at a time, so that they need less memory than a step

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

        self.compiled_step = jax.jit(step, donate_argnums=(0, 1, 2))
        self.compiled_sum = jax.jit(lambda params, x, y, weight: jax.numpy.sum(losses(params, x, y) * weight))

    def shapes(self, params: Any) -> dict[str, Any]:
        """Return the shapes and types of what a run keeps, without arrays: it takes no memory.

        These are the parameters, the optimizer's state, the exponential moving average (ema) of the parameters, and the
        average that had the lowest held-out loss so far. `params` gives the shapes; the numbers become float32.
        """
        import jax

        shapes = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, np.float32), params)
        state = jax.eval_shape(self.optimizer.init, shapes)
        return {"params": shapes, "state": state, "ema": shapes, "best": shapes}

    def compile(self, params: Any) -> int:
        """Compile both functions for parameters of these shapes. Return how many bytes of memory training takes.

        XLA plans all memory of a function when it compiles it, and takes it only when the function is called.
        """
        import jax

        shapes, key = self.shapes(params), jax.random.key(0)
        params, state = shapes["params"], shapes["state"]
        ids, rows = (jax.ShapeDtypeStruct((n, self.n_ctx), np.int32) for n in (self.batch_size, self.n_rows))
        weight = jax.ShapeDtypeStruct(rows.shape, np.float32)
        self.compiled_step = self.compiled_step.lower(params, state, params, ids, ids, key).compile()
        self.compiled_sum = self.compiled_sum.lower(params, rows, rows, weight).compile()
        kept = sum(math.prod(x.shape) * x.dtype.itemsize for x in jax.tree.leaves(shapes))
        plans = [f.memory_analysis() for f in (self.compiled_step, self.compiled_sum)]  # None on some processors
        return int(kept + max(getattr(plan, "temp_size_in_bytes", 0) for plan in plans))

    def step(self, params: Any, state: Any, ema: Any, inputs: Array, targets: Array, key: Any) -> Any:
        """Train one step on [batch_size, n_ctx] ids. Return new params, state and ema, and the loss in nats per token.

        The old params, state and ema can't be used any more: the new ones take their memory.
        """
        return self.compiled_step(params, state, ema, inputs, targets, key)

    def held_out_loss(self, params: Any, ids: Array) -> float:
        """Return the sum of the losses of all ids but the first, n_rows windows at a time, in nats.

        Windows are padded to n_ctx ids, and there are empty ones in the last rows: a compiled function takes arrays of
        one shape only. The padding has weight 0.
        """

        def padded(*arrays: Array) -> list[Array]:
            return [np.pad(array, (0, self.n_ctx - len(array))) for array in arrays]

        cut = [window.ids for window in windows(ids, self.n_ctx)]
        cut += [ids[:1]] * (-len(cut) % self.n_rows)
        pairs = [padded(part[:-1], part[1:], np.ones(len(part) - 1, np.float32)) for part in cut]
        total = 0.0
        for start in range(0, len(pairs), self.n_rows):
            x, y, weight = (np.stack(arrays) for arrays in zip(*pairs[start : start + self.n_rows]))
            total += float(self.compiled_sum(params, x, y, weight))
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
