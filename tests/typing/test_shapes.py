"""A wrong shape is refused: by mypy and pyright before the program runs, and by check_shapes.py while the tests run."""

from __future__ import annotations

import ast
import functools
import importlib.util
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
from picogpt import batch
from picogpt.checkpoints.writing import initial_params
from picogpt.typing import shapes
from utils import SIZES

pytestmark = pytest.mark.usefixtures("checked_shapes")

SOURCE = (ROOT / "gpt2.py").read_text(encoding="utf-8")
BATCH = (ROOT / "picogpt" / "batch.py").read_text(encoding="utf-8")
VOCABULARY = (ROOT / "picogpt" / "typing" / "shapes.py").read_text(encoding="utf-8")

# What a mistake replaces in gpt2.py, and by what: the checkers have to refuse that line, and no other. If a mistake is
# seen in other lines than its own, these follow.
MISTAKES = {
    "c_fc and c_proj swapped": (
        "linear(gelu(linear(x, **c_fc)), **c_proj)",
        "linear(gelu(linear(x, **c_proj)), **c_fc)",
    ),
    "c_fc and c_proj swapped by the caller": (
        "ffn(layer_norm(x, **ln_2), **mlp)",
        'ffn(layer_norm(x, **ln_2), c_fc=mlp["c_proj"], c_proj=mlp["c_fc"])',
    ),
    "the vocabulary matrix not transposed": ("**ln_f), wte.T)", "**ln_f), wte)"),
    "a [n_vocab, n_embd] matrix where [n_embd, n_vocab] belongs": (
        "matmul(layer_norm(x[..., first:, :], **ln_f), wte.T)",
        "linear(layer_norm(x[..., first:, :], **ln_f), wte, wte.T[0])",
    ),
    "position and token embeddings exchanged": (
        "out = gpt2(new, **self.params,",
        'p = self.params; out = gpt2(new, p["wpe"], p["wte"], p["blocks"], p["ln_f"],',
    ),
    "embeddings added to logits": (
        "return matmul(layer_norm(x[..., first:, :], **ln_f),",
        "return wte[inputs] + matmul(layer_norm(x[..., first:, :], **ln_f),",
    ),
    "a bias of the wrong width": ("linear(x, **c_fc)", 'linear(x, w=c_fc["w"], b=c_proj["b"])'),
    "layer norm's parameters of another width": (
        "layer_norm(x, **ln_2)",
        'layer_norm(x, g=ln_2["g"], b=mlp["c_fc"]["b"])',
    ),
    "layer norm of the wide activations": ("linear(gelu(", "linear(layer_norm("),
    "query and value exchanged": (
        "softmax((q / math.sqrt(q.shape[-1])) @ k.swapaxes(-1, -2) + mask) @ v",
        "softmax((v / math.sqrt(v.shape[-1])) @ k.swapaxes(-1, -2) + mask) @ q",
    ),
    "query and value exchanged by the caller": (
        "attention(some_q, some_k, some_v,",
        "attention(some_v, some_k, some_q,",
    ),
    "keys against queries": (
        "(q / math.sqrt(q.shape[-1])) @ k.swapaxes(-1, -2)",
        "(k / math.sqrt(k.shape[-1])) @ q.swapaxes(-1, -2)",
    ),
    "keys against queries by the caller": ("attention(some_q, some_k, some_v,", "attention(some_k, some_q, some_v,"),
    "the keys not transposed": ("@ k.swapaxes(-1, -2) + mask", "@ k + mask"),
    "heads merged twice": (
        "linear(merge_heads(causal_attention(q, k, v))",
        "linear(merge_heads(merge_heads(causal_attention(q, k, v)))",
    ),
    "heads not merged": ("linear(merge_heads(causal_attention(q, k, v))", "linear(causal_attention(q, k, v)"),
    "one layer's weights where another's belong": (
        "np.split(linear(x, **c_attn), 3",
        "np.split(linear(x, **c_proj), 3",
    ),
    "merged heads in the cache": ("n_past:n_keys, :] = k, v", "n_past:n_keys, :] = merge_heads(k), v"),
    "all logits where the last row belongs": ("choose(context.logits(ids)[-1],", "choose(context.logits(ids),"),
    "columns of the queries where rows belong": ("q[..., rows, :], k", "q[..., :, rows], k"),
    "columns of the cache where rows belong": ("cache[..., :n_keys, :]", "cache[..., :, :n_keys]"),
    "keys against queries in a block": (
        "q[..., rows, :], k[..., seen, :], v",
        "k[..., rows, :], q[..., seen, :], v",
        "causal_mask(some_q, some_k) if",
        "attention(some_q, some_k, some_v, mask)",
    ),
    "the mask transposed": (
        "causal_mask(some_q, some_k) if",
        "causal_mask(some_q, some_k).T if",
        "attention(some_q, some_k, some_v, mask)",
    ),
    "a mask of keys against queries": (
        "causal_mask(some_q, some_k) if",
        "causal_mask(some_k, some_q) if",
        "causal_mask(some_q, some_k) if",
        "attention(some_q, some_k, some_v, mask)",
    ),
    "heads split without changing the axes": ("n_head, -1).swapaxes(-2, -3)", "n_head, -1)"),
    "heads merged without changing the axes": ("return x.swapaxes(-2, -3).reshape(*x", "return x.reshape(*x"),
    "columns of a batch's weights where rows belong": ("np.tensordot(x, w, 1)", "np.tensordot(x, w.T, 1)"),
    "the penalty of one number where each has its own": ("seen, new, axis=-1)", "seen, penalized, axis=-1)"),
    "the picked logits where all belong": ("    return penalized\n", "    return old\n"),
    "a sum that loses its axis": ("exp_x.sum(axis=-1, keepdims=True)", "exp_x.sum(axis=-1)"),
    "a function of NumPy whose shapes nobody wrote down": ("np.tanh(x", "np.sinh(x"),
    "a wrong comment behind an argument": (
        "c_fc,  # type: Linear[n_embd, n_hidden]",
        "c_fc,  # type: Linear[n_hidden, n_embd]",
        "linear(gelu(linear(x, **c_fc)), **c_proj)",
        "ffn(layer_norm(x, **ln_2), **mlp)",
    ),
    "the comments of two arguments exchanged": (
        "    wte,  # type: Matrix[n_vocab, n_embd]\n    wpe,  # type: Matrix[n_ctx, n_embd]\n",
        "    wte,  # type: Matrix[n_ctx, n_embd]\n    wpe,  # type: Matrix[n_vocab, n_embd]\n",
        "matmul(layer_norm(x[..., first:, :], **ln_f), wte.T)",
        "out = gpt2(new, **self.params,",
    ),
    "a wrong result under the comments of the arguments": (
        "    # type: (...) -> Matrix[Any, n_vocab]",
        "    # type: (...) -> Matrix[Any, n_embd]",
        "return matmul(layer_norm(x[..., first:, :], **ln_f), wte.T)",
        "return check_finite(out)",
    ),
}
BATCH_MISTAKES = {  # the same in picogpt/batch.py
    "a layer where all of them belong": ("cache=cache, n_logits=1)[:, 0]", "cache=cache[0], n_logits=1)[:, 0]"),
    "layers where rows of the batch belong": ("kv = cache[:, :, : len(rows)]", "kv = cache[: len(rows)]"),
    "all logits where the row of a sample belongs": ("(logits[row], texts", "(logits, texts"),
}
PLANTED = {name: (SOURCE, *mistake) for name, mistake in MISTAKES.items()}
PLANTED |= {name: (BATCH, *mistake) for name, mistake in BATCH_MISTAKES.items()}
# A mistake in gpt2.py may be refused for what it leads to. These are refused for what they are, or accepted.
OPERATORS = """
from gpt2 import attention, ffn, layer_norm, linear, softmax
from picogpt.typing import shaped_numpy as np
from picogpt.typing.shaped_numpy import Heads, Ids, Matrix, Vector
from picogpt.typing.shapes import Linear, d_head, n_ctx, n_embd, n_hidden, n_seq, n_vocab

def check(
    x: Matrix[n_seq, n_embd], y: Matrix[n_seq, n_vocab], w: Matrix[n_embd, n_hidden],
    b: Vector[n_embd], c: Vector[n_hidden],
    q: Heads[n_seq, d_head], k: Heads[n_ctx, d_head], m: Matrix[n_seq, n_ctx],
    up: Linear[n_embd, n_hidden], down: Linear[n_hidden, n_embd], i: Ids[n_seq],
) -> None:
    x + x - x * b / 2
    x + y  # refused
    x * c  # refused
    x + softmax(x).sum(axis=-1, keepdims=True)
    x + y.sum(axis=-1, keepdims=True)  # refused
    x @ w @ w.T + x
    x @ w.T  # refused
    x @ w + x  # refused
    linear(x, w, c) @ w.T
    linear(x, w, b)  # refused
    linear(x, w.T, b)  # refused
    linear(x, **down)  # refused
    linear(linear(x, **up), **down) + x
    linear(linear(x, **up), **up)  # refused
    ffn(x, up, down) + ffn(x, c_fc=up, c_proj=down)
    ffn(x, down, up)  # refused
    layer_norm(x, b, c)  # refused
    layer_norm(y, b, b)  # refused
    attention(q, k, k, m) + attention(q, q, q, 0.0)
    attention(q, k, q, m)  # refused
    attention(q, k, k, m.T)  # refused
    q @ k.swapaxes(-1, -2) + m
    q @ k  # refused
    k @ q.swapaxes(-1, -2) + m  # refused
    x.mean()  # refused
    np.where(b, b, c) + b  # refused
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
    """A folder with gpt2.py and picogpt/batch.py as they are, and one copy for every mistake."""
    folder = tmp_path_factory.mktemp("copies")
    for name, source in (("right", SOURCE), ("right_batch", BATCH), ("operators", OPERATORS)):
        (folder / f"{name}.py").write_text(source, encoding="utf-8")
    for name, (source, old, new, *_) in PLANTED.items():
        assert source.count(old) == 1, name
        (folder / f"{stem(name)}.py").write_text(source.replace(old, new), encoding="utf-8")
    return folder


def stem(name: str) -> str:
    return re.sub(r"\W+", "_", name)


def refused_lines(name: str) -> set[int]:
    source, old, _, *others = PLANTED[name]
    return {source[: source.index(text)].count("\n") + 1 for text in others or [old]}


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


@pytest.mark.parametrize("name", PLANTED)
def test_mypy_refuses_the_line(name, by_mypy):
    assert lines_of(by_mypy).get(stem(name)) == refused_lines(name), by_mypy


@pytest.mark.parametrize("name", PLANTED)
def test_pyright_refuses_the_line(name, by_pyright):
    assert by_pyright.get(stem(name)) == refused_lines(name)


def test_both_refuse_wrong_operands(by_mypy, by_pyright):
    refused = {i for i, line in enumerate(OPERATORS.split("\n"), 1) if line.endswith("# refused")}
    assert lines_of(by_mypy).get("operators") == refused
    assert by_pyright.get("operators") == refused


def test_both_accept_what_is_right(by_mypy, by_pyright):
    assert not lines_of(by_mypy).keys() & {"right", "right_batch"}
    assert not by_pyright.keys() & {"right", "right_batch"}


# ------------------------------------------------------------------------------------------------------ at run time


def zeros(*shape: int, dtype: Any = np.float32) -> np.ndarray:
    return np.zeros(shape, dtype)


def linear(n_in: int, n_out: int, width: int | None = None) -> dict[str, np.ndarray]:
    return {"w": zeros(n_in, n_out), "b": zeros(n_out if width is None else width)}


HEADS = zeros(2, 3, 4), zeros(2, 5, 4), zeros(2, 5, 4)  # a query, keys and values: 2 heads, 3 queries, 5 keys, 4 wide

# NumPy itself would let most of these pass.
WRONG_CALLS: dict[str, Callable[[], Any]] = {
    "linear: b has 1 where n_out is 3": lambda: gpt2.linear(zeros(4, 2), zeros(2, 3), zeros(1)),
    "linear: w has 5 where n_in is 2": lambda: gpt2.linear(zeros(4, 2), zeros(5, 3), zeros(3)),
    "linear: b is float64 where others are float32": lambda: gpt2.linear(
        zeros(4, 2), zeros(2, 3), zeros(3, dtype=np.float64)
    ),
    "layer_norm: g has too few axes: ()": lambda: gpt2.layer_norm(zeros(4, 2), zeros(), zeros(2)),
    "layer_norm: x is int64": lambda: gpt2.layer_norm(zeros(4, 2, dtype=np.int64), zeros(2), zeros(2)),
    "ffn: c_fc['b'] has 1 where n_hidden is 8": lambda: gpt2.ffn(zeros(4, 2), linear(2, 8, 1), linear(8, 2)),
    "ffn: n_hidden is 4 n_embd, but 6 is not 8": lambda: gpt2.ffn(zeros(4, 2), linear(2, 6), linear(6, 2)),
    "attention: v has 1 where n_head is 2": lambda: gpt2.attention(*HEADS[:2], zeros(1, 5, 4), 0.0),
    "attention: v has 6 where n_keys is 5": lambda: gpt2.attention(*HEADS[:2], zeros(2, 6, 4), 0.0),
    "attention: k has 7 where d_head is 4": lambda: gpt2.attention(HEADS[0], zeros(2, 5, 7), HEADS[2], 0.0),
    "attention: mask has 1 where n_keys is 5": lambda: gpt2.attention(*HEADS, zeros(3, 1)),
    "attention: mask has 5 where n_seq is 3": lambda: gpt2.attention(*HEADS, zeros(5, 3)),
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
    "mha: cache has 3, not 2": lambda: gpt2.mha(
        zeros(1, 8), linear(8, 24), linear(8, 8), 2, cache=zeros(3, 2, 9, 4), n_past=0
    ),
    "mha: n_embd is n_head times d_head, but 8 is not 10": lambda: gpt2.mha(
        zeros(1, 8), linear(8, 24), linear(8, 8), 2, cache=zeros(2, 2, 9, 5), n_past=0
    ),
    "merge_heads: n_embd is n_head times d_head, but": lambda: shaped_like("merge_heads", lambda x: zeros(3, 9))(
        HEADS[0]
    ),
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
    with pytest.raises(ShapeError, match=re.escape(message)):
        WRONG_CALLS[message]()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda logits: logits[:, :-1], "result has 49 where n_vocab is 50"),
        (lambda logits: logits.astype(np.float64), "result is float64 where others are float32"),
    ],
)
def test_a_context_is_checked_too(monkeypatch, change, message):
    params, forward = initial_params(ODD | {"n_vocab": 50}, seed=1), gpt2.gpt2
    monkeypatch.setattr(gpt2, "gpt2", lambda *args, **kwargs: change(forward(*args, **kwargs)))
    with pytest.raises(ShapeError, match=message):
        list(gpt2.generate([1, 2], params, 3, 2))


def test_wrong_ids_and_a_wrong_tree_are_refused():
    params = initial_params(ODD, seed=1)
    gpt2.gpt2([1, 2], **params, n_head=3)
    with pytest.raises(ShapeError, match="inputs is float64"):
        gpt2.gpt2([1.0, 2.0], **params, n_head=3)
    params["blocks"][1]["ln_2"]["g"] = zeros(1)
    with pytest.raises(ShapeError, match=re.escape("blocks[1]['ln_2']['g'] has 1 where n_embd is 21")):
        gpt2.gpt2([1, 2], **params, n_head=3)
    with pytest.raises(ShapeError, match="result has 2 where n_layer is 3"):
        shaped_like("empty_cache", lambda params, n_head, n_ctx: zeros(2, 2, 3, 4, 7))(
            {**initial_params(ODD | {"n_layer": 3}, 1)}, 3, 4
        )


@pytest.mark.parametrize("name", [name for name in MISTAKES if "comment" in name])
def test_a_wrong_comment_is_refused(name, copies):
    spec = importlib.util.spec_from_file_location(stem(name), copies / f"{stem(name)}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    with pytest.raises(ShapeError, match=r"has 84 where n_embd is 21|has 300 where (n_vocab is 17|n_embd is 21)"):
        check_shapes.watch(module).gpt2([1, 2], **initial_params(ODD, seed=1), n_head=3)


@pytest.mark.parametrize("change", [lambda logits: logits[..., :0], lambda logits: logits.astype(np.float64)])
def test_a_batch_is_checked_too(monkeypatch, change):
    params, forward = initial_params(ODD, seed=1), gpt2.gpt2
    monkeypatch.setattr(gpt2, "gpt2", lambda *args, **kwargs: change(forward(*args, **kwargs)))
    with pytest.raises(ShapeError, match="^grow: "):
        list(batch.generate_batch([1, 2], params, 3, 2, [gpt2.greedy]))


def test_every_function_has_a_type_comment_and_those_with_arrays_are_checked():
    """Functions whose comments name no shape are the few that have none."""
    names = list(check_shapes.signatures(str(ROOT / "gpt2.py")))
    assert len(names) == sum(isinstance(node, ast.FunctionDef) for node in ast.walk(ast.parse(SOURCE)))
    without = [name for name in names if "." not in name and not hasattr(getattr(gpt2, name), "__wrapped__")]
    assert without == ["n_shared", "stop_before", "parse_args", "main"]


@pytest.mark.parametrize(
    "missing",
    ["def f(x, y):\n    # type: (...) -> int", "def f(\n    x,  # type: int\n    y):\n    # type: (...) -> int"],
)
def test_a_missing_comment_is_refused(missing):
    (node,) = ast.parse(f"{missing}\n    return 1\n", type_comments=True).body
    with pytest.raises(AssertionError, match=re.escape("f needs a type for each of ['x', 'y', 'return']")):
        check_shapes.types_of(node)


# ------------------------------------------------------------------------------------------------------ the vocabulary

# A dimension's name, its value in 124M, and how it follows from others.
DIMENSIONS = re.findall(r'^(\w+) = NewType\("\1", int\)  # (?:(\d+)(?: = ([^:]+))?: )?', VOCABULARY, re.MULTILINE)


def test_the_values_of_the_vocabulary_are_those_of_124m():
    hparams = SIZES["124M"]
    n_embd = hparams["n_embd"]
    derived = {"n_hidden": ("4 n_embd", 4 * n_embd), "n_qkv": ("3 n_embd", 3 * n_embd)}
    derived["d_head"] = "n_embd / n_head", n_embd // hparams["n_head"]
    assert {name: int(value) for name, value, text in DIMENSIONS if value and not text} == hparams
    assert {name: (text, int(value)) for name, value, text in DIMENSIONS if text} == derived


def test_all_of_the_vocabulary_is_exported():
    """gpt2.py imports it with a star, since linters do not see names in comments."""
    texts = [text for types in check_shapes.signatures(str(ROOT / "gpt2.py")).values() for text in types.values()]
    builtin = {"None", "int", "float", "str", "list", "tuple", "np", "random", "Generator"}
    assert set(re.findall(r"\b[a-zA-Z]\w+", " ".join(texts))) == {*shapes.__all__, *builtin}


def test_the_page_quotes_gpt2():
    page = (ROOT / "docs" / "shapes.md").read_text(encoding="utf-8")
    (block,) = re.findall(r"^```python\n(.*?)^```", page, re.DOTALL | re.MULTILINE)
    assert [function.split("(")[0] for function in block.split("\n\n\n")] == ["def merge_heads", "def ffn"]
    assert all(f"\n{function.strip()}\n" in SOURCE for function in block.split("\n\n\n"))
