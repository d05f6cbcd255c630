"""The fixtures that several test files share."""

from __future__ import annotations

import os
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

# One thread for each program: most models here are small, and threads that wait for each other take longer than the
# work itself, on a busy machine many times as long. The libraries read this when they are first imported.
os.environ |= {"OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
os.environ |= {"TF_CPP_MIN_LOG_LEVEL": "3", "CUDA_VISIBLE_DEVICES": ""}

# What a user would find again, such as chat's history, is kept in this folder, and never in the real user's.
os.environ["XDG_STATE_HOME"] = (STATE := tempfile.TemporaryDirectory(prefix="picogpt-state-")).name

import numpy as np
import pytest
from check_shapes import watch
from helpers import ODD, SHARED

import gpt2
from encoder import Encoder, get_encoder
from picogpt import batch, jax_model
from picogpt.checkpoints.writing import write_random_model
from utils import SIZES, load_encoder_hparams_and_params


@pytest.fixture(scope="session", autouse=True)
def no_tensorflow_here() -> Iterator[None]:
    """Check that nothing imported TensorFlow: with triton, which PyTorch brings on Linux, it ends the process."""
    yield
    assert "tensorflow" not in sys.modules


@pytest.fixture
def checked_shapes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Check every call of the model's functions, and of their copies in JAX, against the shapes in their signatures.

    Not under mutation, where each function has dozens of copies: wrapping them takes longer than the tests.
    """
    if "MUTANT_UNDER_TEST" in os.environ:
        return
    for module in (gpt2, batch):
        for name, function in list(vars(module).items()):
            monkeypatch.setattr(module, name, function)  # put back what `watch` replaces
        watch(module)
    load = jax_model.gpt2_in_jax
    monkeypatch.setattr(jax_model, "gpt2_in_jax", lambda: watch(load()))


@pytest.fixture(scope="session")
def models_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder of models with a small one in it, named odd. Tests must not write to it."""
    folder = tmp_path_factory.mktemp("models")
    (folder / "odd").mkdir()
    write_random_model(folder / "odd", ODD, seed=1)
    return folder


@pytest.fixture(scope="session")
def full_size(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of a model with the shape of 124M, random weights, and OpenAI's tokenizer if it is there."""
    folder = tmp_path_factory.mktemp("full") / "random-124M"
    folder.mkdir()
    tokenizer = SHARED / "openai-117M"
    openai = get_encoder(tokenizer.name, tokenizer.parent) if tokenizer.exists() else None
    write_random_model(folder, SIZES["124M"], seed=2, tokenizer=openai)
    return folder


@pytest.fixture
def rng() -> np.random.Generator:
    """Return a random number generator that is the same in every run."""
    return np.random.default_rng(0)


@pytest.fixture
def damaged(models_dir: Path, tmp_path: Path) -> Callable[[str], Path]:
    """Return a function that copies the small model, for tests that break something in it, and returns the folder."""

    def copy(name: str = "odd") -> Path:
        return Path(shutil.copytree(models_dir / "odd", tmp_path / "models" / name))

    return copy


@pytest.fixture(scope="session")
def odd(models_dir: Path) -> Path:
    """Return the folder of the small model."""
    return models_dir / "odd"


@pytest.fixture(scope="session")
def loaded(odd: Path) -> tuple[Encoder, dict[str, int], Any]:
    """Return the small model's tokenizer, hyperparameters and parameters."""
    return load_encoder_hparams_and_params(odd.name, odd.parent)


@pytest.fixture(scope="session")
def continued(loaded: tuple[Encoder, dict[str, int], Any]) -> Callable[[str, int], str]:
    """Return a function that continues a prompt with the small model, without any command line."""
    encoder, hparams, params = loaded

    def text(prompt: str, n: int) -> str:
        return encoder.decode(gpt2.generate(encoder.encode(prompt), params, hparams["n_head"], n))

    return text
