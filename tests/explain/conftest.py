"""The fixtures that the tests of picogpt/explain share."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from browser import start_chromium
from helpers import as_dtype

from explain import MODELS, PROMPT
from explain.browser import Reader
from picogpt import Inside, look_inside, page
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


MOUSE = "--blink-settings=primaryHoverType=2,availableHoverTypes=2"  # a headless Chromium has none


@pytest.fixture(scope="session")
def chromium():
    running = start_chromium(MOUSE)
    yield running
    running.quit()


@pytest.fixture
def opened(chromium, tmp_path):
    """Open a page in the browser. In the end, check that it logged no error and asked for nothing but its own file."""
    readers = []

    def open_page(seen, title="tiny", **first):
        path = tmp_path / f"{len(readers)}.html"
        path.write_text(page(seen, title, **first), encoding="utf-8")
        readers.append(Reader(chromium, path))
        return readers[-1]

    yield open_page
    assert chromium.get_log("browser") == []
    (reader,) = readers
    assert {address for address in reader.requests() if not address.startswith("data:")} == {reader.path.as_uri()}
    assert reader("return performance.getEntriesByType('resource').length") == 0


@pytest.fixture
def reader(opened, inside):
    return opened(inside, layer=3, head=0)
