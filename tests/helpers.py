"""Helpers of several test files: run a command, make small models, compare with Hugging Face's GPT-2."""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
import io
import os
import runpy
import subprocess
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple
from unittest import mock

import numpy as np
import pytest

from encoder import Encoder
from picogpt import command_line, score
from picogpt.__main__ import TOOLS
from picogpt.checkpoints.huggingface import config_settings, state_dict
from picogpt.tensorflow_process import shared_process
from utils import expected_shapes, nest

ROOT = Path(__file__).parent.parent
SHARED = ROOT.parent / "shared"  # reference files that a stranger's clone does not have

ODD = {"n_vocab": 300, "n_ctx": 17, "n_embd": 21, "n_head": 3, "n_layer": 2}  # its tokens are mostly single bytes
SMALL = {"n_vocab": 101, "n_ctx": 17, "n_embd": 21, "n_head": 3, "n_layer": 3}

HOSTILE = "\x1b]0;title\x07\x1b[2J\r\x08\x7f\x9b31m\u202egnp.exe\u2066\u200b\ufeff\u2028\x85"  # steers a terminal
HARMLESS = r"\x1b]0;title\x07\x1b[2J\r\x08\x7f\x9b31m\u202egnp.exe\u2066\u200b\ufeff\u2028\x85"  # what is shown of it

# The environment of a plain shell. PYTHONUNBUFFERED, for example, would hide a missing flush.
ENVIRONMENT = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")} | {
    "PYTHONUTF8": "1",
    "PYTHONIOENCODING": "utf-8",
}


class Result(NamedTuple):
    """The exit status of a command, and what it wrote to stdout and to stderr."""

    status: int
    out: str
    err: str


def command(name: str, *args: Any) -> list[Any]:
    """Return the command line of a script ("gpt2.py") or of a tool ("picogpt train"), by the name in its messages."""
    start = ["-m", *name.split()] if name.startswith("picogpt ") else [name]
    return [sys.executable, *start, *(arg if isinstance(arg, bytes) else str(arg) for arg in args)]


def run_command(name: str, *args: Any, stdin: bytes = b"", cwd: Path = ROOT, timeout: int = 120, **env: str) -> Result:
    """Run a script or a tool in a process of its own."""
    words, settings = command(name, *args), ENVIRONMENT | env
    done = subprocess.run(words, input=stdin, capture_output=True, env=settings, cwd=cwd, timeout=timeout, check=False)
    return Result(done.returncode, decoded(done.stdout), decoded(done.stderr))


def run_main(name: str, *args: Any, stdin: bytes = b"") -> Result:
    """Run a script or a tool in this process, in a fiftieth of the time. NumPy's warnings are errors in a tool."""
    out, err = (io.TextIOWrapper(io.BytesIO(), encoding="utf-8", newline="\n") for _ in range(2))
    with (
        contextlib.redirect_stdout(out),
        contextlib.redirect_stderr(err),
        mock.patch.object(sys, "stdin", io.TextIOWrapper(io.BytesIO(stdin), encoding="utf-8")),
        mock.patch.object(sys, "argv", [name, *map(str, args)]),
        warnings.catch_warnings(),
        np.errstate(),
    ):
        warnings.simplefilter("error", RuntimeWarning)
        if name.startswith("picogpt "):
            status = command_line.run(importlib.import_module(TOOLS[name.split()[1]][0]).main)
        else:
            status = run_script(ROOT / name)
        out.flush()
        err.flush()
    return Result(status, out.buffer.getvalue().decode("utf-8"), err.buffer.getvalue().decode("utf-8"))


def run_script(path: Path) -> int:
    """Run a file as `python FILE` does, and return its exit status."""
    try:
        runpy.run_path(str(path), run_name="__main__")
    except SystemExit as stop:
        if isinstance(stop.code, str):
            print(stop.code, file=sys.stderr)
            return 1
        return stop.code or 0
    return 0


def decoded(data: bytes) -> str:
    return data.decode("utf-8").replace(os.linesep, "\n")


def read_to_the_end(terminal: int) -> bytes:
    """Return all that was written to a pseudo-terminal whose other side is closed. One os.read may give only a part."""
    data = b""
    with contextlib.suppress(OSError):  # Linux says so at the end, instead of returning nothing
        while part := os.read(terminal, 1 << 16):
            data += part
    return data


def assert_error(result: Result, status: int, *words: str) -> None:
    """Assert that a command failed with one line on stderr that holds these words, and no traceback."""
    assert (result.status, result.out) == (status, ""), result
    assert result.err.count("\n") == 1, result.err
    assert result.err.endswith("\n")
    assert "Traceback" not in result.err
    for word in words:
        assert word in result.err


def model_options(folder: Path) -> list[Any]:
    """Return the options that choose the model in a folder."""
    return ["--models_dir", folder.parent, "--model_size", folder.name]


def shared(name: str) -> Path:
    """Return a file or folder of the reference data, or skip the test if it is missing."""
    if not (SHARED / name).exists():
        pytest.skip(f"needs ../shared/{name}")
    return SHARED / name


def committed(folder: Path) -> Path:
    """Make a repository of a folder, and commit all files in it."""
    me = ["-c", "user.name=me", "-c", "user.email=me@example.com", "-c", "commit.gpgsign=false"]
    for words in (["init", "-q"], ["add", "-A"], [*me, "commit", "-qm", "all"]):
        subprocess.run(["git", *words], cwd=folder, check=True)
    return folder


def skip_without(*modules: str) -> None:
    """Skip the test if a module is not installed. `pytest.importorskip` would import TensorFlow beside PyTorch."""
    for module in modules:
        if importlib.util.find_spec(module) is None:
            pytest.skip(f"needs {module}: requirements-dev.txt")


def run_tensorflow(function: Callable[..., Any], *args: Any) -> Any:
    """Call a function of tensorflow_oracle.py in TensorFlow's own process. Skip the test if it is not installed."""
    skip_without("tensorflow")
    return shared_process().call(function, *args)


def random_params(
    hparams: dict[str, int], dtype: Any = np.float32, seed: int = 0, scale: float = 0.3
) -> dict[str, Any]:
    """Return parameters whose numbers are all random and large enough to matter, biases and gains too."""
    rng = np.random.default_rng(seed)
    tensors = {name: rng.standard_normal(shape) * scale for name, shape in expected_shapes(hparams).items()}
    return nest({name: tensor.astype(dtype) for name, tensor in tensors.items()}, hparams["n_layer"])


def transformers_model(params: dict[str, Any], hparams: dict[str, int], dtype: str) -> Any:
    """Return Hugging Face's GPT-2 with our parameters."""
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    config = transformers.GPT2Config(**config_settings(hparams), attn_implementation="eager")
    model = transformers.GPT2LMHeadModel(config).to(getattr(torch, dtype)).eval()
    state = state_dict(params, "transformer.")
    tensors = {name: torch.tensor(np.asarray(array)) for name, array in state.items()}
    missing, unexpected = model.load_state_dict(tensors, strict=False)
    assert set(missing) <= {"lm_head.weight"}, missing
    assert not unexpected
    return model


def their_gpt2(inputs, wte, wpe, blocks, ln_f, n_head):
    """A forward pass with the interface of picoGPT and its own functions: an oracle that knows nothing of gpt2.py."""

    def linear(x, w, b):
        return x @ w + b

    def norm(x, g, b):
        return g * (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-5) + b

    def attend(q, k, v):
        scores = np.exp(q @ k.T / np.sqrt(q.shape[-1])) * np.tri(len(q))
        return scores / scores.sum(-1, keepdims=True) @ v

    x = wte[inputs] + wpe[range(len(inputs))]
    for block in blocks:
        qkv = np.split(linear(norm(x, **block["ln_1"]), **block["attn"]["c_attn"]), 3 * n_head, axis=-1)
        heads = [attend(*qkv[head::n_head]) for head in range(n_head)]
        x = x + linear(np.hstack(heads), **block["attn"]["c_proj"])
        y = linear(norm(x, **block["ln_2"]), **block["mlp"]["c_fc"])
        y = 0.5 * y * (1 + np.tanh(np.sqrt(2 / np.pi) * (y + 0.044715 * y**3)))
        x = x + linear(y, **block["mlp"]["c_proj"])
    return norm(x, **ln_f) @ wte.T


def their_logits(model: Any, ids: Any) -> np.ndarray:
    """Return the logits of Hugging Face's GPT-2."""
    import torch

    with torch.no_grad():
        return model(torch.tensor(np.asarray(ids)[None])).logits[0].numpy()


def relative(ours: np.ndarray, theirs: np.ndarray) -> float:
    """Return the largest difference, divided by the largest number in theirs."""
    assert ours.dtype == theirs.dtype
    assert ours.shape == theirs.shape
    return float(np.abs(ours - theirs).max() / np.abs(theirs).max())


def as_dtype(tree: Any, dtype: Any) -> Any:
    """Return nested parameters with every array converted to a type."""
    if isinstance(tree, dict):
        return {key: as_dtype(value, dtype) for key, value in tree.items()}
    return [as_dtype(value, dtype) for value in tree] if isinstance(tree, list) else tree.astype(dtype)


def loss_per_char(text: str, encoder: Encoder, params: dict[str, Any], hparams: dict[str, int]) -> float:
    """Return the loss of a text in nats per character, without <|endoftext|> before it."""
    return -float(score(encoder.encode(text), params, hparams["n_head"]).sum()) / len(text)


def bits_per_byte(nats_per_char: float, text: str) -> float:
    """Turn the loss of a text from nats per character into bits per byte of UTF-8."""
    return nats_per_char / np.log(2) * len(text) / len(text.encode("utf-8"))
