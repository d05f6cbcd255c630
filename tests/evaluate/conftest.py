"""What the tests of protocols share: the bundled model, its twin in transformers, and options."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from helpers import ROOT, their_logits, transformers_model

from encoder import END_OF_TEXT
from picogpt.scoring.windows import score_windows
from picogpt.scoring.work import Model
from utils import load_encoder_hparams_and_params


@pytest.fixture(scope="session")
def tiny() -> Model:
    """Return the bundled model."""
    folder = ROOT / "models" / "tiny"
    return Model(folder, *load_encoder_hparams_and_params("tiny", str(folder.parent)))


@pytest.fixture(scope="session")
def log_probs_of(tiny: Model) -> Callable[[list[int]], np.ndarray]:
    """Return a function from ids to the log-probabilities of every next token, by transformers: [n_seq, n_vocab]."""
    model = transformers_model(tiny.params, tiny.hparams, "float32")

    def log_probs(ids: list[int]) -> np.ndarray:
        logits = their_logits(model, ids).astype(np.float64)
        return logits - np.log(np.exp(logits).sum(axis=-1, keepdims=True))

    return log_probs


@pytest.fixture
def score(tiny: Model) -> Callable[..., Any]:
    """Return the function that scores windows with the bundled model."""
    return lambda windows: score_windows(windows, tiny.params, tiny.hparams["n_head"])


@pytest.fixture
def bos(tiny: Model) -> int:
    """Return the id of <|endoftext|>."""
    return tiny.encoder.encoder[END_OF_TEXT]


@pytest.fixture
def options() -> Callable[..., argparse.Namespace]:
    """Return a function that makes the options of `evaluate`, with those that are given."""
    return lambda **given: argparse.Namespace(
        **{"stride": None, "max_context": None, "bos": None, "limit": None} | given
    )
