"""The hyperparameters of the four models that OpenAI published."""

from __future__ import annotations

SHAPES = {  # the size's name: (n_embd, n_head, n_layer)
    "124M": (768, 12, 12),
    "355M": (1024, 16, 24),
    "774M": (1280, 20, 36),
    "1558M": (1600, 25, 48),
}


def hparams_of(size: str) -> dict[str, int]:
    """Return the hyperparameters of one of OpenAI's sizes, as its hparams.json has them."""
    n_embd, n_head, n_layer = SHAPES[size]
    return {"n_vocab": 50257, "n_ctx": 1024, "n_embd": n_embd, "n_head": n_head, "n_layer": n_layer}
