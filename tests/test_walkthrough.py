"""Build docs/walkthrough.* again from its source, and compare it with what is committed.

The Markdown and the notebook must be equal, character by character: their numbers are rounded, so that other versions
of NumPy and other processors give the same text. The pixels of a picture depend on the version of matplotlib, and are
not compared. Each picture's file holds the numbers and words that it draws, as a comment. These are compared, the
numbers with a tolerance, and so is the size of the picture.
"""

from __future__ import annotations

import importlib.util
import inspect
import json
import re
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from helpers import ENVIRONMENT, ROOT

import gpt2

DOCS = ROOT / "docs"
PAGE = (DOCS / "walkthrough.md").read_text(encoding="utf-8")
NOTEBOOK = json.loads((DOCS / "walkthrough.ipynb").read_text(encoding="utf-8"))
PICTURES = sorted(path.name for path in (DOCS / "walkthrough").iterdir())


@pytest.fixture(scope="module")
def builder() -> ModuleType:
    for name in ("jupytext", "nbclient", "ipykernel", "matplotlib"):
        pytest.importorskip(name)
    spec = importlib.util.spec_from_file_location("build_walkthrough", DOCS / "build_walkthrough.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def built(builder: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("docs")
    builder.build(folder)
    return folder


def without_pixels(notebook: Any) -> Any:
    """Replace the pictures in a notebook by a word."""
    for cell in notebook["cells"]:
        for output in cell.get("outputs", []):
            if "image/png" in output.get("data", {}):
                output["data"]["image/png"] = "pixels"
    return notebook


@pytest.mark.slow
def test_the_markdown_is_what_its_source_builds(built):
    assert (built / "walkthrough.md").read_text(encoding="utf-8") == PAGE


@pytest.mark.slow
def test_the_notebook_is_what_its_source_builds(built):
    again = json.loads((built / "walkthrough.ipynb").read_text(encoding="utf-8"))
    assert without_pixels(again) == without_pixels(NOTEBOOK)


@pytest.mark.slow
def test_the_pictures_are_those_of_the_markdown(built):
    shown = re.findall(r"\]\(walkthrough/(.*?)\)", PAGE)
    assert sorted(shown) == PICTURES == sorted(path.name for path in (built / "walkthrough").iterdir())
    assert len(set(shown)) == 4


@pytest.mark.slow
@pytest.mark.parametrize("name", PICTURES)
def test_a_picture_draws_the_same_numbers(built, name):
    pil = pytest.importorskip("PIL.Image")
    with pil.open(built / "walkthrough" / name) as new, pil.open(DOCS / "walkthrough" / name) as old:
        assert new.size == old.size
        assert new.size[0] == 650
        pairs = list(zip(json.loads(new.text["Comment"]), json.loads(old.text["Comment"]), strict=True))
    assert any(theirs["numbers"] for _, theirs in pairs)
    for ours, theirs in pairs:
        assert ours["words"] == theirs["words"]
        for a, b in zip(ours["numbers"], theirs["numbers"], strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-3)


def functions_of_the_model() -> list[str]:
    source = (ROOT / "gpt2.py").read_text(encoding="utf-8")
    (section,) = re.findall(
        r"^# -+ the model, bottom up\n(.*?)^# -+ choosing a token$", source, re.MULTILINE | re.DOTALL
    )
    return re.findall(r"^def (\w+)", section, re.MULTILINE)


def test_every_function_of_the_model_is_shown_with_its_source():
    names = functions_of_the_model()
    assert (names[0], names[-1], len(names)) == ("gelu", "gpt2", 14)
    choosing = ["greedy", "sample", "token_probs", "penalize", "keep_largest", "keep_top_k", "keep_top_p"]
    for name in [*names, *choosing, "generate", "empty_cache", "n_shared", "Context"]:
        assert f"\n{inspect.getsource(getattr(gpt2, name)).rstrip()}\n" in PAGE, name


def test_the_notebook_holds_nothing_of_the_machine_that_built_it():
    assert set(NOTEBOOK["metadata"]) == {"kernelspec", "language_info"}
    assert NOTEBOOK["metadata"]["language_info"] == {"name": "python"}
    assert set().union(*(cell["metadata"] for cell in NOTEBOOK["cells"])) == {"name", "tags"}
    text = json.dumps(without_pixels(NOTEBOOK))
    for path in {str(ROOT), sys.prefix, str(Path.home()), "/tmp/", "/home/"} - {"/"}:
        assert path not in text, path


@pytest.mark.parametrize("folder", [ROOT, DOCS, DOCS / "walkthrough"], ids=lambda folder: folder.name)
def test_the_notebook_finds_the_repository(folder):
    first = next(cell for cell in NOTEBOOK["cells"] if cell["cell_type"] == "code")
    done = subprocess.run(
        [sys.executable, "-"],
        input="".join(first["source"]),
        capture_output=True,
        text=True,
        env=ENVIRONMENT,
        cwd=folder,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout == "".join(first["outputs"][0]["text"])


@pytest.mark.slow
@pytest.mark.parametrize(
    ("cell", "error"),
    [
        ("assert 1 == 2", "AssertionError"),
        ("import warnings\nwarnings.warn('odd')", "can't show"),
        ("1 + 1", "can't show"),
    ],
)
def test_nothing_is_written_if_a_cell_fails_or_warns(builder, tmp_path, monkeypatch, cell, error):
    source = tmp_path / "source.py"
    source.write_text(f"# %% [markdown]\n# Text.\n\n# %%\n{cell}\n", encoding="utf-8")
    monkeypatch.setattr(builder, "SOURCE", source)
    folder = tmp_path / "docs"
    folder.mkdir()
    with pytest.raises(Exception, match=error):
        builder.build(folder)
    assert list(folder.iterdir()) == []
