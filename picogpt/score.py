"""Measure how well a model predicts a text."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np

import gpt2
from encoder import Encoder

if TYPE_CHECKING:
    from picogpt.typing.shapes import Params

Array = np.ndarray[Any, np.dtype[Any]]


def windows(ids: Array, n_ctx: int) -> Iterator[tuple[Array, Array]]:
    """Cut ids into consecutive windows of at most n_ctx inputs and their targets, the ids that follow each input.

    Every id but the first is a target exactly once. windows([1, 2, 3, 4], 2) gives [1, 2] -> [2, 3] and [3] -> [4].
    """
    for start in range(0, len(ids) - 1, n_ctx):
        stop = min(start + n_ctx, len(ids) - 1)
        yield ids[start:stop], ids[start + 1 : stop + 1]


def token_losses(ids: Array, params: Params, n_head: int) -> Array:
    """Return the loss -log(p) of every id but the first, in nats and float64. [n_seq] -> [n_seq - 1]

    The model predicts the ids window by window, and each window begins without context.
    """
    losses = [np.empty(0)]
    for inputs, targets in windows(ids, len(params["wpe"])):
        logits = gpt2.gpt2(inputs, **params, n_head=n_head)
        probs = np.asarray(gpt2.softmax(logits.astype(np.float64)))
        losses.append(-np.log(probs[np.arange(len(targets)), targets]))
    return np.concatenate(losses)


def loss_per_char(text: str, encoder: Encoder, params: Params, hparams: dict[str, int]) -> float:
    """Return the loss of a text in nats per character: the sum of its tokens' losses divided by its characters.

    Unlike the loss per token, it can be compared between models whose tokenizers differ.
    """
    losses = token_losses(np.array(encoder.encode(text)), params, hparams["n_head"])
    return float(losses.sum()) / len(text)
