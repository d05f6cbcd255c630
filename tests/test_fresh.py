"""Run each tool in a process of its own, where only the tool itself imports libraries.

In the tests' own process, what one test imports is there for all others. NumPy, for example, knows bfloat16 only after
ml_dtypes is imported, which JAX does in the tests of other tools.
"""

from __future__ import annotations

import json
import shutil
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers import ODD, ROOT, random_params, run_command, skip_without

from picogpt.__main__ import TOOLS
from picogpt.checkpoints.huggingface import config_settings, state_dict
from utils import FILES, META, load_hparams_and_params

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
    "models": [],
    "score": ["-", *TINY],
    "tokens": ["Hello", *TINY],
    "trace": ["Hello", "--out", OUT, *TINY],
    "train": [ROOT / "README.md", "--out", OUT, *SHAPE, "--steps", 2, "--eval_every", 1],
}
NEEDS = {
    "convert --to_hf": ("safetensors",),
    "explain --png": ("matplotlib",),
    "train": ("jax", "optax", "tokenizers"),
}
SLOW = ("explain --png", "train")


def test_every_tool_is_here():
    """Other tests run bench, compare and lm_eval in such a process. random_weights would write half a gigabyte."""
    assert {name.split()[0] for name in COMMANDS} | {"bench", "compare", "lm_eval", "random_weights"} == set(TOOLS)


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


def write_bfloat16(path: Path, tensors: dict[str, np.ndarray]) -> None:
    """Write the upper halves of float32 numbers as a safetensors file, without a library."""
    parts, entries, start = [], {}, 0
    for name, array in tensors.items():
        parts.append((array.view(np.uint32) >> 16).astype("<u2").tobytes())
        entries[name] = {"dtype": "BF16", "shape": array.shape, "data_offsets": [start, start + len(parts[-1])]}
        start += len(parts[-1])
    header = json.dumps(entries).encode()
    path.write_bytes(struct.pack("<Q", len(header)) + header + b"".join(parts))


@pytest.mark.slow
def test_convert_reads_bfloat16(tmp_path, models_dir):
    skip_without("safetensors", "ml_dtypes")
    folder = tmp_path / "hf"
    folder.mkdir()
    params = random_params(ODD)
    write_bfloat16(folder / "model.safetensors", state_dict(params))
    (folder / "config.json").write_text(json.dumps({"model_type": "gpt2"} | config_settings(ODD)))
    shutil.copy(models_dir / "odd" / "encoder.json", folder / "vocab.json")
    shutil.copy(models_dir / "odd" / "vocab.bpe", folder / "merges.txt")
    result = run_command("picogpt convert", folder, tmp_path / "ours")
    assert result.status == 0, result
    assert result.out.endswith("float32; 300 tokens (from bfloat16, exactly)\n")
    assert {path.name for path in (tmp_path / "ours").iterdir()} == set(FILES) - {META}
    ours = state_dict(load_hparams_and_params(tmp_path / "ours")[1])
    for name, array in state_dict(params).items():
        assert (ours[name].view(np.uint32) == array.view(np.uint32) & 0xFFFF0000).all(), name
