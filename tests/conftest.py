"""What several test files share: where reference data may be, and small models made on the spot."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).parent.parent
SHARED = ROOT.parent / "shared"  # reference files that a stranger's clone does not have
sys.path.insert(0, str(ROOT))
os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"
os.environ["CUDA_VISIBLE_DEVICES"] = ""

from check_shapes import watch  # noqa: E402

import gpt2  # noqa: E402
from picogpt import train  # noqa: E402
from picogpt.random_weights import hparams_of, write_random_model  # noqa: E402

watch(gpt2)  # before a test file takes a function out of it
load_gpt2_in_jax = train.gpt2_in_jax
train.gpt2_in_jax = lambda: watch(load_gpt2_in_jax())

ODD = {"n_vocab": 300, "n_ctx": 17, "n_embd": 21, "n_head": 3, "n_layer": 2}  # with the 256 bytes as its tokens


def shared(name: str) -> Path:
    """A file or folder of the reference data; the test is skipped, saying so, where it is not there."""
    if not (SHARED / name).exists():
        pytest.skip(f"needs ../shared/{name}")
    return SHARED / name


@pytest.fixture(scope="session")
def models_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of models with a small one in it, named odd: do not write to it."""
    pytest.importorskip("tensorflow", reason="TensorFlow writes the test's checkpoints")
    folder = tmp_path_factory.mktemp("models")
    (folder / "odd").mkdir()
    write_random_model(folder / "odd", ODD, seed=1)
    return folder


@pytest.fixture(scope="session")
def full_size(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model of the full 124M shape with random weights, and OpenAI's tokenizer where that is there."""
    pytest.importorskip("tensorflow", reason="TensorFlow writes the test's checkpoints")
    folder = tmp_path_factory.mktemp("full") / "124M"
    folder.mkdir()
    tokenizer = SHARED / "openai-117M"
    write_random_model(folder, hparams_of("124M"), seed=2, tokenizer=tokenizer if tokenizer.exists() else None)
    return folder


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(0)


@pytest.fixture
def damaged(models_dir: Path, tmp_path: Path) -> Callable[[str], Path]:
    """A copy of the small model, for tests that break something in it: damaged() is its folder."""
    import shutil

    def copy(name: str = "odd") -> Path:
        return Path(shutil.copytree(models_dir / "odd", tmp_path / "models" / name))

    return copy
