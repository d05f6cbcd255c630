"""The fixtures of the tests of `trace`, the tool."""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from helpers import Result, run_main

PROMPT = "ROMEO:\nWhat light"


@pytest.fixture(scope="session")
def traced() -> Callable[..., Result]:
    """Return a function that runs the tool with the model tiny."""
    return functools.partial(run_main, "picogpt trace", "--model_size", "tiny")


@pytest.fixture(scope="session")
def ours(tmp_path_factory: pytest.TempPathFactory, traced: Callable[..., Any]) -> Path:
    """Return a file that the tool has written for PROMPT, with two decoding steps. Tests must not write to it."""
    path = tmp_path_factory.mktemp("trace") / "ours.npz"
    assert traced(PROMPT, "--decode", 2, "--out", path).status == 0
    return path
