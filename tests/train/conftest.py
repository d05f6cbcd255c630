"""The fixtures of the training tests: JAX with quick compilation, a text, and what the command line runs."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from runs import SETTINGS

from picogpt.train import command


@pytest.fixture(scope="session")
def compiled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder in which JAX keeps what it has compiled, for all modules of tests."""
    return tmp_path_factory.mktemp("jax")


@pytest.fixture(scope="module")
def compiler(compiled: Path) -> Iterator[None]:
    """Let JAX compile with little optimization, and only once for equal steps: these tests mostly wait for XLA."""
    jax = pytest.importorskip("jax", reason="training needs jax: requirements-train.txt")
    settings = {
        "jax_disable_most_optimizations": True,
        "jax_compilation_cache_dir": str(compiled),
        "jax_persistent_cache_min_compile_time_secs": 0,
        "jax_persistent_cache_min_entry_size_bytes": -1,
    }
    before = {name: jax.config.values[name] for name in settings}
    for name, value in settings.items():
        jax.config.update(name, value)
    yield
    for name, value in before.items():
        jax.config.update(name, value)


@pytest.fixture
def packages(compiler: None) -> None:
    """Skip the test if a package that training needs is missing."""
    for name in ("optax", "tokenizers"):
        pytest.importorskip(name, reason=f"training needs {name}: requirements-train.txt")


@pytest.fixture
def text(tmp_path: Path) -> Path:
    rng = np.random.default_rng(0)
    words = [*"the cat sat on a mat and looked at every bird that came by".split(), "—", "ö"]  # noqa: SIM905
    path = tmp_path / "text.txt"
    path.write_text(" ".join(rng.choice(words, 3000)), encoding="utf-8")
    return path


@pytest.fixture
def train(packages: None, text: Path, tmp_path: Path) -> Callable[..., int]:
    """Return a function that trains on the text, with the small settings and further arguments, to the folder `out`."""

    def run(*args: Any, out: Path | str = tmp_path / "m", text: Path | str = text, settings: Any = SETTINGS) -> int:
        return command.main([str(text), "--out", str(out), *settings, *map(str, args)])

    return run
