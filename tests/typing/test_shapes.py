"""A wrong shape is refused: by mypy and pyright before the program runs, and by check_shapes.py while the tests run."""

from __future__ import annotations

import ast
import functools
import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import check_shapes
import numpy as np
import pytest
from check_shapes import ShapeError
from helpers import ODD, ROOT

import gpt2
from picogpt.checkpoints.random_weights import hparams_of
from picogpt.checkpoints.writing import initial_params

pytestmark = pytest.mark.usefixtures("checked_shapes")

SOURCE = (ROOT / "gpt2.py").read_text(encoding="utf-8")
README = (ROOT / "README.md").read_text(encoding="utf-8")
VOCABULARY = (ROOT / "picogpt" / "typing" / "shapes.py").read_text(encoding="utf-8")

# What a mistake replaces in gpt2.py, and by what: the checkers have to refuse that line, and no other.
MISTAKES = {
    "c_fc and c_proj swapped": (
        "linear(gelu(linear(x, **c_fc)), **c_proj)",
        "linear(gelu(linear(x, **c_proj)), **c_fc)",
    ),
    "c_fc and c_proj swapped by the caller": (
        "ffn(layer_norm(x, **ln_2), **mlp)",
        'ffn(layer_norm(x, **ln_2), c_fc=mlp["c_proj"], c_proj=mlp["c_fc"])',
    ),
    "the vocabulary matrix not transposed": ("**ln_f) @ np.transpose(wte)", "**ln_f) @ wte"),
    "a [Vocab, Embd] matrix where [Embd, Vocab] belongs": (
        "layer_norm(x, **ln_f) @ np.transpose(wte)",
        "linear(layer_norm(x, **ln_f), wte, np.transpose(wte)[0])",
    ),
    "position and token embeddings exchanged": (
        "logits = gpt2(chunk, **params,",
        'logits = gpt2(chunk, params["wpe"], params["wte"], params["blocks"], params["ln_f"],',
    ),
    "embeddings added to logits": (
        "return layer_norm(x, **ln_f) @",
        "return wte[inputs] + layer_norm(x, **ln_f) @",
    ),
    "a bias of the wrong width": ("linear(x, **c_fc)", 'linear(x, w=c_fc["w"], b=c_proj["b"])'),
    "layer norm's parameters of another width": (
        "layer_norm(x, **ln_2)",
        'layer_norm(x, g=ln_2["g"], b=mlp["c_fc"]["b"])',
    ),
    "layer norm of the wide activations": ("linear(gelu(", "linear(layer_norm("),
    "query and value exchanged": (
        "softmax(q / math.sqrt(q.shape[-1]) @ np.swapaxes(k, -1, -2) + mask) @ v",
        "softmax(v / math.sqrt(v.shape[-1]) @ np.swapaxes(k, -1, -2) + mask) @ q",
    ),
    "query and value exchanged by the caller": ("attention(q, k, v, 0.0)", "attention(v, k, q, 0.0)"),
    "keys against queries": (
        "softmax(q / math.sqrt(q.shape[-1]) @ np.swapaxes(k, -1, -2)",
        "softmax(k / math.sqrt(k.shape[-1]) @ np.swapaxes(q, -1, -2)",
    ),
    "keys against queries by the caller": ("attention(q, k, v, 0.0)", "attention(k, q, v, 0.0)"),
    "the keys not transposed": ("@ np.swapaxes(k, -1, -2) + mask", "@ k + mask"),
    "heads merged twice": (
        "linear(merge_heads(causal_attention(q, k, v))",
        "linear(merge_heads(merge_heads(causal_attention(q, k, v)))",
    ),
    "heads not merged": ("linear(merge_heads(causal_attention(q, k, v))", "linear(causal_attention(q, k, v)"),
    "one layer's weights where another's belong": (
        "split_heads(linear(x, **c_attn), 3 * n_head)",
        "split_heads(linear(x, **c_proj), 3 * n_head)",
    ),
    "merged heads in the cache": ("cache[0, ..., n_past:n, :] = k", "cache[0, ..., n_past:n, :] = merge_heads(k)"),
    "all logits where the last row belongs": ("    return logits[-1]", "    return logits"),
    "columns of the queries where rows belong": ("q[..., start:stop, :], k", "q[..., :, start:stop], k"),
    "columns of the cache where rows belong": ("cache[1, ..., :n, :]", "cache[1, ..., :, :n]"),
    "keys against queries in a block": (
        "attention(q[..., start:stop, :], k[..., :seen, :], v",
        "attention(k[..., start:stop, :], q[..., :seen, :], v",
    ),
    "the mask transposed": ("v[..., :seen, :], mask))", "v[..., :seen, :], np.transpose(mask)))"),
    "heads split without changing the axes": (
        "return np.swapaxes(np.reshape(x, (*x.shape[:-1], n_head, x.shape[-1] // n_head)), -2, -3)",
        "return np.reshape(x, (*x.shape[:-1], n_head, x.shape[-1] // n_head))",
    ),
    "heads merged without changing the axes": ("return np.reshape(rows, (", "return np.reshape(x, ("),
    "the picked logits where all belong": ("    return penalized\n", "    return penalized[seen]\n"),
    "a sum that loses its axis": ("exp_x.sum(axis=-1, keepdims=True)", "exp_x.sum(axis=-1)"),
    "a function of NumPy whose shapes nobody wrote down": ("x @ w + b", "np.add(x @ w, b)"),
}
# A mistake in gpt2.py may be refused for what it leads to. These are refused for what they are, or accepted.
OPERATORS = """
from gpt2 import attention, ffn, layer_norm, linear, softmax
from picogpt.typing import shaped_numpy as np
from picogpt.typing.shaped_numpy import Heads, Ids, Matrix, Vector
from picogpt.typing.shapes import DHead, Embd, Hidden, Keys, Linear, Seq, Vocab

def check(
    x: Matrix[Seq, Embd], y: Matrix[Seq, Vocab], w: Matrix[Embd, Hidden], b: Vector[Embd], c: Vector[Hidden],
    q: Heads[Seq, DHead], k: Heads[Keys, DHead], m: Matrix[Seq, Keys],
    up: Linear[Embd, Hidden], down: Linear[Hidden, Embd], i: Ids[Seq],
) -> None:
    x + x - x * b / 2
    x + y  # refused
    x * c  # refused
    x + softmax(x).sum(axis=-1, keepdims=True)
    x + y.sum(axis=-1, keepdims=True)  # refused
    x @ w @ np.transpose(w) + x
    x @ np.transpose(w)  # refused
    x @ w + x  # refused
    linear(x, w, c) @ np.transpose(w)
    linear(x, w, b)  # refused
    linear(x, np.transpose(w), b)  # refused
    linear(x, **down)  # refused
    linear(linear(x, **up), **down) + x
    linear(linear(x, **up), **up)  # refused
    ffn(x, up, down) + ffn(x, c_fc=up, c_proj=down)
    ffn(x, down, up)  # refused
    layer_norm(x, b, c)  # refused
    layer_norm(y, b, b)  # refused
    attention(q, k, k, m) + attention(q, q, q, 0.0)  # refused
    attention(q, k, k, np.transpose(m))  # refused
    q @ np.swapaxes(k, -1, -2) + m
    q @ k  # refused
    k @ np.swapaxes(q, -1, -2) + m  # refused
    x.mean()  # refused
    np.where(x, x, y) + x  # refused
    np.cumsum(x)  # refused
    i / 2  # refused
"""

Errors = dict[str, set[int]]  # by the name of a file's mistake: the lines with errors


def lines_of(output: str) -> Errors:
    """The errors that mypy prints."""
    found: Errors = {}
    for stem, line in re.findall(r"^.*?(\w+)\.py:(\d+): error", output, re.MULTILINE):
        found.setdefault(stem, set()).add(int(line))
    return found


@pytest.fixture(scope="module")
def copies(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with gpt2.py as it is, and one copy for every mistake."""
    folder = tmp_path_factory.mktemp("copies")
    (folder / "right.py").write_text(SOURCE, encoding="utf-8")
    (folder / "operators.py").write_text(OPERATORS, encoding="utf-8")
    for name, (old, new) in MISTAKES.items():
        assert SOURCE.count(old) == 1, name
        (folder / f"{stem(name)}.py").write_text(SOURCE.replace(old, new), encoding="utf-8")
    return folder


def stem(name: str) -> str:
    return re.sub(r"\W+", "_", name)


def line_of(name: str) -> int:
    return SOURCE[: SOURCE.index(MISTAKES[name][0])].count("\n") + 1


def run(*command: str, env: dict[str, str]) -> str:
    line, env = [sys.executable, "-m", *command], os.environ | env
    done = subprocess.run(line, capture_output=True, text=True, encoding="utf-8", cwd=ROOT, env=env)
    assert done.returncode in (0, 1), done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def by_mypy(copies: Path) -> str:
    pytest.importorskip("mypy", reason="mypy is not installed")
    files = map(str, sorted(copies.glob("*.py")))
    return run("mypy", "--cache-dir", str(copies / "cache"), *files, env={"MYPYPATH": str(ROOT)})


@pytest.fixture(scope="module")
def by_pyright(copies: Path) -> Errors:
    pytest.importorskip("pyright", reason="pyright is not installed")
    settings = re.search(r"\[tool.pyright\]\n(.*?)\n\n", (ROOT / "pyproject.toml").read_text(encoding="utf-8"), re.S)[1]
    off = dict.fromkeys(re.findall(r"^(report\w+) = false", settings, re.MULTILINE), False)
    config = {"include": ["*.py"], "extraPaths": [str(ROOT)]} | off
    (copies / "pyrightconfig.json").write_text(json.dumps(config), encoding="utf-8")
    found: Errors = {}
    output = run(
        *("pyright", "-p", str(copies), "--pythonpath", sys.executable, "--outputjson"),
        env={"PYRIGHT_PYTHON_IGNORE_WARNINGS": "1"},
    )
    for error in json.loads(output)["generalDiagnostics"]:
        if error["severity"] == "error":
            found.setdefault(Path(error["file"]).stem, set()).add(error["range"]["start"]["line"] + 1)
    return found


@pytest.mark.parametrize("name", MISTAKES)
def test_mypy_refuses_the_line(name, by_mypy):
    assert lines_of(by_mypy).get(stem(name)) == {line_of(name)}, by_mypy


@pytest.mark.parametrize("name", MISTAKES)
def test_pyright_refuses_the_line(name, by_pyright):
    assert by_pyright.get(stem(name)) == {line_of(name)}


def test_both_refuse_wrong_operands(by_mypy, by_pyright):
    refused = {i for i, line in enumerate(OPERATORS.split("\n"), 1) if line.endswith("# refused")}
    assert lines_of(by_mypy).get("operators") == refused
    assert by_pyright.get("operators") == refused


def test_both_accept_what_is_right(by_mypy, by_pyright):
    assert "right" not in lines_of(by_mypy)
    assert "right" not in by_pyright


def test_the_readme_shows_what_mypy_says(by_mypy, copies):
    section = README.split("## Shapes")[1].split("\n## ")[0]
    (signature,) = re.findall(r"^def .*$", section, re.MULTILINE)
    (mistake,) = re.findall(r"^ {4}return .*$", section, re.MULTILINE)
    (error,) = re.findall(r"^ {4}(gpt2\.py:.*)$", section, re.MULTILINE)
    name = stem("the vocabulary matrix not transposed")
    assert signature in SOURCE
    assert mistake in (copies / f"{name}.py").read_text(encoding="utf-8").split("\n")
    said = [line.rpartition(name)[2] for line in by_mypy.splitlines() if f"{name}.py" in line]
    assert said == [error.removeprefix("gpt2")]


# ------------------------------------------------------------------------------------------------------ at run time


def zeros(*shape: int, dtype: Any = np.float32) -> np.ndarray:
    return np.zeros(shape, dtype)


def linear(n_in: int, n_out: int, width: int | None = None) -> dict[str, np.ndarray]:
    return {"w": zeros(n_in, n_out), "b": zeros(n_out if width is None else width)}


HEADS = zeros(2, 3, 4), zeros(2, 5, 4), zeros(2, 5, 4)  # a query, keys and values: 2 heads, 3 queries, 5 keys, 4 wide

# NumPy itself would let most of these pass.
WRONG_CALLS: dict[str, Callable[[], Any]] = {
    "linear: b has 1 where Out is 3": lambda: gpt2.linear(zeros(4, 2), zeros(2, 3), zeros(1)),
    "linear: w has 5 where In is 2": lambda: gpt2.linear(zeros(4, 2), zeros(5, 3), zeros(3)),
    "linear: b is float64 where others are float32": lambda: gpt2.linear(
        zeros(4, 2), zeros(2, 3), zeros(3, dtype=np.float64)
    ),
    "layer_norm: g has too few axes: ()": lambda: gpt2.layer_norm(zeros(4, 2), zeros(), zeros(2)),
    "layer_norm: x is int64": lambda: gpt2.layer_norm(zeros(4, 2, dtype=np.int64), zeros(2), zeros(2)),
    "ffn: c_fc['b'] has 1 where Hidden is 8": lambda: gpt2.ffn(zeros(4, 2), linear(2, 8, 1), linear(8, 2)),
    "ffn: Hidden is 4 Embd, but 6 is not 8": lambda: gpt2.ffn(zeros(4, 2), linear(2, 6), linear(6, 2)),
    "attention: v has 1 where Head is 2": lambda: gpt2.attention(*HEADS[:2], zeros(1, 5, 4), 0.0),
    "attention: v has 6 where Keys is 5": lambda: gpt2.attention(*HEADS[:2], zeros(2, 6, 4), 0.0),
    "attention: k has 7 where DHead is 4": lambda: gpt2.attention(HEADS[0], zeros(2, 5, 7), HEADS[2], 0.0),
    "attention: mask has 1 where Keys is 5": lambda: gpt2.attention(*HEADS, zeros(3, 1)),
    "attention: mask has 5 where Seq is 3": lambda: gpt2.attention(*HEADS, zeros(5, 3)),
    "attention: v has the leading axes (1,) where others have (7,)": lambda: gpt2.attention(
        zeros(7, 2, 3, 4), zeros(7, 2, 5, 4), zeros(1, 2, 5, 4), 0.0
    ),
    "layer_norm: g has the leading axes (4,), which NumPy": lambda: gpt2.layer_norm(
        zeros(4, 4, 2), zeros(4, 2), zeros(4, 2)
    ),
    "attention: mask has the leading axes (2,), which NumPy": lambda: gpt2.attention(
        zeros(2, 2, 3, 4), zeros(2, 2, 5, 4), zeros(2, 2, 5, 4), zeros(2, 3, 5)
    ),
    "greedy: logits has the leading axes (4,), which NumPy": lambda: gpt2.greedy(zeros(4, 2), []),
    "attention: q is a list, not an array": lambda: gpt2.attention([[1.0]], *HEADS[1:], 0.0),
    "remember: Keys is n_past + Seq, but 9 is not 3": lambda: shaped_like(
        "remember", lambda k, v, cache, n_past: (cache[0], cache[1])
    )(zeros(2, 1, 4), zeros(2, 1, 4), zeros(2, 2, 9, 4), 2),
    "remember: cache has 3, not 2": lambda: gpt2.remember(zeros(2, 1, 4), zeros(2, 1, 4), zeros(3, 2, 9, 4), 0),
    "merge_heads: Embd is Head times DHead, but": lambda: shaped_like("merge_heads", lambda x: zeros(3, 9))(HEADS[0]),
    "gelu: result has (3,) where Array is (4,)": lambda: shaped_like("gelu", lambda x: x[1:])(zeros(4)),
    "softmax: result is float64 where others are float32": lambda: shaped_like("softmax", np.float64)(zeros(4)),
    "linear: result has the leading axes () where others have (7,)": lambda: shaped_like(
        "linear", lambda x, w, b: x[0] @ w + b
    )(zeros(7, 4, 2), zeros(2, 3), zeros(3)),
}


def shaped_like(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
    """A wrong function, checked as the one of gpt2.py that has this name."""

    @functools.wraps(getattr(gpt2, name).__wrapped__)
    def wrong(*args: Any) -> Any:
        return function(*args)

    return check_shapes.checked(wrong)


@pytest.mark.parametrize("message", WRONG_CALLS)
def test_a_wrong_call_is_refused(message):
    with pytest.raises(ShapeError, match=re.escape(f"gpt2.{message}")):
        WRONG_CALLS[message]()


def test_wrong_ids_and_a_wrong_tree_are_refused():
    params = initial_params(ODD, seed=1)
    gpt2.gpt2([1, 2], **params, n_head=3)
    with pytest.raises(ShapeError, match="inputs is float64"):
        gpt2.gpt2([1.0, 2.0], **params, n_head=3)
    params["blocks"][1]["ln_2"]["g"] = zeros(1)
    with pytest.raises(ShapeError, match=re.escape("blocks[1]['ln_2']['g'] has 1 where Embd is 21")):
        gpt2.gpt2([1, 2], **params, n_head=3)
    with pytest.raises(ShapeError, match="result has 2 where Layer is 3"):
        shaped_like("empty_cache", lambda params, n_head, n_ctx: zeros(2, 2, 3, 4, 7))(
            {**initial_params(ODD | {"n_layer": 3}, 1)}, 3, 4
        )


def test_every_function_with_an_array_is_checked():
    """Those whose annotations name no shape are the few that have none."""
    functions = {node.name: node for node in ast.parse(SOURCE).body if isinstance(node, ast.FunctionDef)}
    without = [name for name in functions if not hasattr(getattr(gpt2, name), "__wrapped__")]
    assert without == ["check_lengths", "parse_args", "stop_before", "warn", "stamp", "say_speed", "main"]
    for name in set(functions) - set(without):
        for arg in functions[name].args.args:
            assert arg.annotation is not None, (name, arg.arg)
            assert "Any" not in ast.unparse(arg.annotation), (name, arg.arg)


# ------------------------------------------------------------------------------------------------------ the vocabulary


# Name, the text's name or how it follows from others, 124M's value.
DIMENSIONS = re.findall(r'^(\w+) = NewType\("\1", int\)  # (?:([^:,]+)(?:, (\d+))?: )?', VOCABULARY, re.MULTILINE)


def test_the_legend_of_gpt2_is_the_vocabulary():
    legend = gpt2.__doc__.split("values for the smallest model (124M):\n\n")[1].split("\n\n")[0]
    rows = {}
    for line in legend.splitlines():
        text, name, value, meaning = line[4:13].strip(), line[13:20].strip(), line[20:27].strip(), line[28:]
        rows[name] = (text or meaning.split(",")[0], value)
    assert rows.pop("") == ("n_past", "")
    assert rows.pop("Room") == ("positions that a cache has room for", "")
    assert rows.pop("Picked") == ("entries that were picked out of others", "")
    assert rows == {name: (text, value) for name, text, value in DIMENSIONS if name not in ("Room", "Picked")}


def test_the_values_of_the_vocabulary_are_those_of_124m():
    size = {text: int(value) for _, text, value in DIMENSIONS if value}
    hparams = hparams_of("124M")
    n_embd = hparams["n_embd"]
    assert size == hparams | {
        "4 n_embd": 4 * n_embd,
        "3 n_embd": 3 * n_embd,
        "d_head": n_embd // hparams["n_head"],
    }
