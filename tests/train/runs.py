"""The settings of small training runs, and how to interrupt one."""

from __future__ import annotations

from typing import Any

# All tests train with the same shape and schedule where they can: XLA then compiles the step once for all of them.
SHAPE = ["--n_vocab", "280", "--n_ctx", "16", "--n_embd", "12", "--n_head", "3", "--n_layer", "2"]
SCHEDULE = ["--batch_size", "4", "--warmup", "1", "--steps", "4"]
SCHEDULE += ["--lr", "0.01", "--average", "0.5", "--dropout", "0.2"]
SETTINGS = [*SHAPE, *SCHEDULE]


def interrupted(*args: Any) -> Any:
    """Stand for any function, and be interrupted by Ctrl-C."""
    raise KeyboardInterrupt


def interrupted_at(step: int, draw: Any) -> Any:
    """Return the function `batch`, but Ctrl-C comes when it draws for this step (from 0 on)."""

    def batch(ids: Any, n_ctx: int, size: int, seed: int, at: int) -> Any:
        return interrupted() if at == step else draw(ids, n_ctx, size, seed, at)

    return batch
