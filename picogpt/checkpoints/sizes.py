"""The hyperparameters of the four models that OpenAI published."""

from __future__ import annotations

from utils import SIZES


def hparams_of(size: str) -> dict[str, int]:
    """Return the hyperparameters of one of OpenAI's sizes, as its hparams.json has them."""
    return dict(SIZES[size])
