"""Run each tool in a process of its own, where only the tool itself imports libraries.

In the tests' own process, what one test imports is there for all others.
"""

from __future__ import annotations

from typing import Any

import pytest
from helpers import ROOT, run_command, skip_without

from picogpt.__main__ import TOOLS

OUT = "OUT.npz"  # stands for a file or folder that the command makes, of any kind
TINY = ["--model_size", "tiny"]
SHAPE = ["--n_vocab", 300, "--n_ctx", 8, "--n_embd", 8, "--n_head", 2, "--n_layer", 1]
COMMANDS: dict[str, list[Any]] = {
    "chat": TINY,
    "convert --to_hf": [ROOT / "models" / "tiny", "--out", OUT],
    "evaluate lambada": ["--data", ROOT / "tests" / "evaluate" / "passages.jsonl", "--json", OUT, *TINY],
    "explain": ["Hello", *TINY],
    "explain --html": [OUT, "Hello", *TINY],
    "explain --png": [OUT, "Hello", *TINY],
    "generate": ["Hello", *TINY],
    "generate --prompts": [ROOT / "tests" / "evaluate" / "passages.jsonl", "--field", "text", "--out", OUT, *TINY],
    "models": [],
    "score": ["-", *TINY],
    "tokens": ["Hello", *TINY],
    "trace": ["Hello", "--out", OUT, *TINY],
    "train": [ROOT / "README.md", "--out", OUT, *SHAPE, "--steps", 2, "--eval_every", 1],
}
NEEDS = {"explain --png": ("matplotlib",), "train": ("jax", "optax", "tokenizers")}
SLOW = ("explain --png", "train")


def test_every_tool_is_here():
    """Other tests run four of the others in such a process. random_weights would write half a gigabyte."""
    others = {"bench", "compare", "facts", "lm_eval", "random_weights"}
    assert {name.split()[0] for name in COMMANDS} | others == set(TOOLS)


@pytest.mark.parametrize("name", [pytest.param(n, marks=[pytest.mark.slow] if n in SLOW else []) for n in COMMANDS])
def test_a_tool_imports_what_it_needs(tmp_path, name):
    skip_without(*NEEDS.get(name, ()))
    tool, *option = name.split()
    out = tmp_path / OUT
    words = [out if word is OUT else word for word in COMMANDS[name]]
    result = run_command(f"picogpt {tool}", *option, *words, stdin=b"Hello\n")
    assert result.status == 0, result
    assert "Traceback" not in result.err
    assert out.exists() == (OUT in COMMANDS[name])
