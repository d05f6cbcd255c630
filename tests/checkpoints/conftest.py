"""A Hugging Face folder, for the tests of the conversion."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from helpers import ODD, random_params, transformers_model


@pytest.fixture(scope="module")
def source(models_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Make a folder with a small GPT-2 that transformers saved, and its tokenizer. Tests must not change it."""
    folder = tmp_path_factory.mktemp("hf") / "small"
    transformers_model(random_params(ODD), ODD, "float32").save_pretrained(folder)
    shutil.copy(models_dir / "odd" / "encoder.json", folder / "vocab.json")
    shutil.copy(models_dir / "odd" / "vocab.bpe", folder / "merges.txt")
    return folder


@pytest.fixture
def small(source: Path, tmp_path: Path) -> Path:
    """Copy that folder, so that a test can break something in it."""
    return Path(shutil.copytree(source, tmp_path / "small"))
