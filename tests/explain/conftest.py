"""The fixtures that the tests of picogpt/explain share."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from helpers import as_dtype

from explain import MODELS, PROMPT
from picogpt import Inside, look_inside
from picogpt.explain import command
from utils import load_encoder_hparams_and_params


@pytest.fixture(scope="session")
def tiny() -> tuple[Any, dict[str, int], Any]:
    """The model in the repository, in float64: encoder, hparams, params."""
    encoder, hparams, params = load_encoder_hparams_and_params("tiny", MODELS)
    return encoder, hparams, as_dtype(params, np.float64)


@pytest.fixture(scope="session")
def inside() -> Inside:
    """The numbers for PROMPT. Do not write to them."""
    return look_inside(PROMPT, "tiny", MODELS)


@pytest.fixture(scope="session")
def odd() -> Inside:
    """The numbers for a text with a character of three tokens. Do not write to them."""
    return look_inside("a你", "tiny", MODELS)


@pytest.fixture
def explain(capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[str, str]]:
    """Run the command on models/tiny and return what it writes to stdout and stderr."""

    def run(*arguments: Any) -> tuple[str, str]:
        words = [*map(str, arguments), "--model_size", "tiny", "--models_dir", str(MODELS)]
        assert command.main(words) == 0
        return tuple(capsys.readouterr())

    return run
