"""Build docs/walkthrough.* again from its source, and compare it with what is committed.

The Markdown and the notebook must be equal, character by character: their numbers are rounded, so that other versions
of NumPy and other processors give the same text. The pixels of a picture depend on the version of matplotlib, and are
not compared. Each picture's file holds the numbers and words that it draws, as a comment. These are compared, the
numbers with a tolerance, and so is the size of the picture.

The blocks of the Markdown are also run one after another, as a reader does who types them: with NumPy and the packages
of the light set-up, and without what only a notebook has. The notebook runs with these packages and Jupyter.
"""

from __future__ import annotations

import ast
import base64
import importlib.util
import inspect
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from helpers import ENVIRONMENT, ROOT, shared

import encoder
import gpt2

DOCS = ROOT / "docs"
PAGE = (DOCS / "walkthrough.md").read_text(encoding="utf-8")
NOTEBOOK = json.loads((DOCS / "walkthrough.ipynb").read_text(encoding="utf-8"))
PICTURES = sorted(path.name for path in (DOCS / "walkthrough").iterdir())
BLOCK = re.compile(r"^```python\n(.*?)^```\n(?:\n```text\n(.*?)^```\n)?", re.MULTILINE | re.DOTALL)
BLOCKS = [(block[1], block[2] or "") for block in BLOCK.finditer(PAGE)]  # each with what is printed below it
CELLS = ["".join(cell["source"]) for cell in NOTEBOOK["cells"] if cell["cell_type"] == "code"]
HEAVY = ("matplotlib", "jupytext", "nbformat", "jax", "torch", "tensorflow", "transformers", "optax", "tokenizers")

# Runs blocks of code, which come as JSON on stdin, in one empty namespace. Prints what each of them prints, as JSON.
RUN_BLOCKS = """
import contextlib, io, json, sys
blocks, names, printed = json.load(sys.stdin), {"__name__": "__main__"}, []
for block in blocks:
    with contextlib.redirect_stdout(io.StringIO()) as out:
        exec(compile(block, "<block>", "exec"), names)
    printed.append(out.getvalue())
model = [name for name in NAMES if names[name].__globals__ is not names]
print(json.dumps({"printed": printed, "elsewhere": model}))
"""


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


def shown_functions() -> list[Any]:
    """The functions of the model and what generates a text with them, and two of the tokenizer."""
    names = functions_of_the_model()
    assert (names[0], names[-1], len(names)) == ("gelu", "gpt2", 14)
    found = [getattr(gpt2, name) for name in [*names, "greedy", "generate", "empty_cache", "n_shared", "Context"]]
    return [*found, encoder.bytes_to_unicode, encoder.merge]


def test_every_function_of_the_model_is_shown_with_its_source():
    for function in shown_functions():
        source = inspect.getsource(function).rstrip()
        assert f"\n{source}\n" in PAGE, function
        assert any(f"\n{source}\n" in f"\n{cell}\n" for cell in CELLS), function  # so a reader can change it


def definitions(name: str, text: str) -> list[ast.FunctionDef]:
    return [node for node in ast.parse(text).body if isinstance(node, ast.FunctionDef) and node.name == name]


def test_the_simple_mha_is_that_of_gpt2_without_the_cache():
    (ours,) = (found for block, _ in BLOCKS[:-1] for found in definitions("mha", block) if not ast.get_docstring(found))
    (theirs,) = definitions("mha", inspect.getsource(gpt2.mha))
    assert ast.dump(ours.args) == ast.dump(theirs.args)
    docstring, *lines = theirs.body
    assert isinstance(docstring, ast.Expr)
    without = [node for node in lines if not isinstance(node, ast.If)]
    assert len(lines) - len(without) == 1
    assert [ast.dump(node) for node in ours.body] == [ast.dump(node) for node in without]


def run_blocks(blocks: list[str], folder: Path, *names: str, **env: str) -> dict[str, list[str]]:
    """Run blocks in one empty namespace, in a process of its own. Return what each prints.

    "elsewhere" lists those of the names whose functions do not look up other functions in that namespace.
    """
    done = subprocess.run(
        [sys.executable, "-c", RUN_BLOCKS.replace("NAMES", repr(names))],
        input=json.dumps(blocks),
        capture_output=True,
        text=True,
        env=ENVIRONMENT | env,
        cwd=folder,
    )
    if done.returncode:
        raise RuntimeError(done.stderr)
    assert done.stderr == ""
    return json.loads(done.stdout)


@pytest.fixture(scope="module")
def light(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder for PYTHONPATH with which none of the HEAVY packages can be imported."""
    folder = tmp_path_factory.mktemp("light")
    for name in HEAVY:
        (folder / f"{name}.py").write_text(f"raise ImportError('no {name} in the light set-up')\n", encoding="utf-8")
    return folder


def test_every_block_prints_what_is_shown_below_it(tmp_path, light):
    """Outside the clone, which is in the path as the README says for notebooks in other folders."""
    assert len(BLOCKS) > 55
    assert sum(1 for _, shown in BLOCKS if shown) > 30
    assert PAGE.count("```python") == len(BLOCKS)
    assert PAGE.count("```text") == sum(1 for _, shown in BLOCKS if shown)
    path = os.pathsep.join([str(light), str(ROOT)])
    result = run_blocks([code for code, _ in BLOCKS], tmp_path, *functions_of_the_model(), PYTHONPATH=path)
    for (code, shown), printed in zip(BLOCKS, result["printed"], strict=True):
        assert "\n".join(map(str.rstrip, printed.splitlines())) == shown.rstrip(), code
    assert result["elsewhere"] == []


def test_the_first_block_says_where_to_stand(tmp_path):
    with pytest.raises(RuntimeError) as error:
        run_blocks([BLOCKS[0][0]], tmp_path)
    assert error.value.args[0].splitlines()[-1] == (
        f'FileNotFoundError: {tmp_path} is not in a clone of picogpt. First: import os; os.chdir("/path/to/picogpt")'
    )
    go = f"import os; os.chdir({str(DOCS)!r})"
    assert run_blocks([go, BLOCKS[0][0]], tmp_path)["printed"] == ["", BLOCKS[0][1]]


@pytest.mark.parametrize("text", ["To be, or not to be", "Good night"])
def test_the_blocks_run_with_another_text(tmp_path, text):
    blocks = [code.replace("The king is dead. Long live the", text) for code, _ in BLOCKS]
    assert blocks != [code for code, _ in BLOCKS]
    printed = run_blocks(blocks, tmp_path, PYTHONPATH=str(ROOT))["printed"]
    assert "all logits differ by less than 0.0001:          True" in "".join(printed)
    assert "False" not in "".join(printed)


def test_a_changed_function_takes_effect_in_those_above_it(tmp_path):
    """Behind the block that defines it, a reader puts another one of the same name."""
    (gelu,) = (i for i, (code, _) in enumerate(BLOCKS) if code.startswith("def gelu(") and "0.044715" in code)
    blocks = [code for code, _ in BLOCKS]
    changed = [*blocks[: gelu + 1], "def gelu(x):\n    return np.maximum(x, 0)\n", *blocks[gelu + 1 :]]
    as_shown = [shown for _, shown in BLOCKS]
    printed = run_blocks(changed, tmp_path, PYTHONPATH=str(ROOT))["printed"]
    del printed[gelu + 1]
    (logits,) = (i for i, shown in enumerate(as_shown) if shown.startswith("(9, 1024)"))
    assert printed[: gelu + 1] == as_shown[: gelu + 1]
    assert "' king'   logit 8.03  probability 0.154" in as_shown[logits]
    assert "probability 0.169" in printed[logits]


def shown(output: Any) -> str:
    """What a cell printed, or a table that it displayed."""
    return output.get("text") or output["data"]["text/markdown"]


@pytest.mark.slow
def test_the_notebook_needs_only_the_light_set_up_and_jupyter(builder, light, tmp_path, monkeypatch):
    """In a kernel without the HEAVY packages, it shows the same, and the stored pictures."""
    import nbformat

    notebook, stored = (nbformat.reads(json.dumps(NOTEBOOK), as_version=4) for _ in range(2))
    for cell in notebook.cells:
        if cell.cell_type == "code":
            cell.outputs = []
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(light), str(ROOT)]))
    builder.execute(notebook, tmp_path)
    n_pictures = 0
    for cell, old in zip(notebook.cells, stored.cells, strict=True):
        for ours, theirs in zip(cell.get("outputs", []), old.get("outputs", []), strict=True):
            if picture := ours.get("data", {}).get("image/png"):
                file = DOCS / "walkthrough" / f"{cell.metadata['name']}.png"
                assert base64.b64decode(picture) == file.read_bytes()
                n_pictures += 1
            else:
                assert shown(ours) == shown(theirs) != ""
    assert n_pictures == len(PICTURES)


def test_openai_s_tokenizer_cuts_the_sentence_as_the_page_says():
    theirs = encoder.get_encoder("openai-117M", shared("openai-117M").parent)
    (tokens,) = re.findall(r"eight tokens instead of\s+nine: (.*?)\. To see", PAGE, re.DOTALL)
    named = re.findall(r"`(.+?)`\s\((\d+)\)", tokens)
    ids = theirs.encode("The king is dead. Long live the")
    assert [(theirs.decode([id]), str(id)) for id in ids] == named
    assert len(ids) == 8


def test_the_notebook_holds_nothing_of_the_machine_that_built_it():
    assert set(NOTEBOOK["metadata"]) == {"kernelspec", "language_info"}
    assert NOTEBOOK["metadata"]["language_info"] == {"name": "python"}
    assert set().union(*(cell["metadata"] for cell in NOTEBOOK["cells"])) == {"jupyter", "name", "tags"}
    assert [cell["metadata"].get("jupyter", {"source_hidden": True}) for cell in NOTEBOOK["cells"]] == [
        {"source_hidden": True}
    ] * len(NOTEBOOK["cells"])
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
