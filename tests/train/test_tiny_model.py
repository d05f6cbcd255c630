"""Test the model in the repository, which `train` made."""

from __future__ import annotations

import pytest
from helpers import ROOT, loss_per_char, shared

import gpt2
from encoder import BYTE_TO_CHAR, merge
from picogpt.train.text import split
from utils import FILES, META, load_encoder_hparams_and_params

TINY = ROOT / "models" / "tiny"


def test_tiny_is_small_and_in_openai_s_layout():
    assert {path.name for path in TINY.iterdir()} == set(FILES) - {META}
    assert sum(path.stat().st_size for path in TINY.iterdir()) <= 6_000_000


def test_tiny_continues_exactly():
    encoder, hparams, params = load_encoder_hparams_and_params("tiny", TINY.parent)
    ids = gpt2.generate(encoder.encode("ROMEO:"), params, hparams["n_head"], 40)
    assert encoder.decode(ids) == (
        "\nI have been a borne, and I have been a born.\n\nROMEO:\nI will not be a sad, and I'll tell thee,\nI'll tell"
    )


def test_tiny_s_every_token_is_reached():
    encoder, _, _ = load_encoder_hparams_and_params("tiny", TINY.parent)
    for id in range(len(encoder.encoder) - 1):
        text = encoder.token_bytes(id).decode("latin-1").translate(BYTE_TO_CHAR)
        assert merge(list(text), encoder.ranks) == [text]


def loss_of_tiny(text: str) -> float:
    encoder, hparams, params = load_encoder_hparams_and_params("tiny", TINY.parent)
    return loss_per_char(text, encoder, params, hparams)


def test_tiny_s_loss_on_a_text_of_our_own():
    ours = (
        "Good morrow, cousin. What news from the court?\nThe king is sick, my lord, and will not speak;\n"
        "His servants weep, and all the doors are shut.\nThen let us ride before the night is come.\n"
    )
    assert loss_of_tiny(ours) == pytest.approx(1.0737, abs=1e-4)
    assert loss_of_tiny(ours[::-1]) > 3  # it tells English from its mirror image


@pytest.mark.slow
def test_tiny_s_held_out_loss():
    _, held_out = split(shared("text/tinyshakespeare.txt").read_text(encoding="utf-8"), 0.1)
    assert loss_of_tiny(held_out) == pytest.approx(1.5107, abs=5e-5)
