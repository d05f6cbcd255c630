"""Test scoring: windows that cover a text, and losses against their definition."""

from __future__ import annotations

import numpy as np
import pytest
from helpers import ROOT, SMALL, random_params
from hypothesis import given
from hypothesis import strategies as st

import gpt2
from picogpt.score import loss_per_char, token_losses, windows
from utils import load_encoder_hparams_and_params


@given(st.integers(0, 40), st.integers(1, 9))
def test_every_id_but_the_first_is_a_target_once_and_follows_its_input(n, n_ctx):
    pairs = list(windows(np.arange(n), n_ctx))
    assert [id for _, targets in pairs for id in targets.tolist()] == list(range(1, n))
    assert all((inputs + 1 == targets).all() and 1 <= len(inputs) <= n_ctx for inputs, targets in pairs)


def test_losses_are_negative_log_probabilities_within_each_window():
    params, ids = random_params(SMALL), np.random.default_rng(0).integers(0, 101, 40)  # windows of 17, 17 and 5
    losses = token_losses(ids, params, 3)
    assert losses.dtype == np.float64
    for i in range(39):
        logits = gpt2.gpt2(ids[i - i % 17 : i + 1], **params, n_head=3)[-1].astype(np.float64)
        assert losses[i] == pytest.approx(np.log(np.exp(logits).sum()) - logits[ids[i + 1]], rel=1e-5)


def test_the_loss_per_character_divides_the_sum_by_the_characters():
    encoder, hparams, params = load_encoder_hparams_and_params("tiny", ROOT / "models")
    text = "Good morrow, cousin — what news?"
    losses = token_losses(np.array(encoder.encode(text)), params, hparams["n_head"])
    assert loss_per_char(text, encoder, params, hparams) == pytest.approx(losses.sum() / len(text))
    assert token_losses(np.array([5]), params, hparams["n_head"]).tolist() == []
