"""Record, or change, what flows through gpt2.py's own functions, by layer and name.

    python -m picogpt trace "Not all heroes wear capes." --out activations.npz

    with trace() as t:
        gpt2.gpt2(ids, **params, n_head=12)
    t["h3/attn/probs"]

gpt2.py knows nothing of it: while a trace runs, the names in its module stand for wrappers that call the functions they
found there, once each, and keep what goes in and comes out. What a single function computes on its way (the variance in
a layer norm, say) never has a name in that module and is not recorded.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

import gpt2
from encoder import Encoder, get_encoder
from picogpt.files import new_file
from utils import HPARAMS, Parser, UsageError, ensure_downloaded, load_hparams_and_params, read_prompt

Array = np.ndarray[Any, np.dtype[Any]]
Change = Callable[[Array], Array]

# Every name, in the order of computation; those of LAYER come once for each layer, behind h0/, h1/, …
BEFORE = {
    "inputs": "token ids [n_seq]",
    "embedding": "wte[inputs] + wpe[n_past:] [n_seq, n_embd]",
}
LAYER = {
    "ln_1": "layer norm of the layer's input [n_seq, n_embd]",
    "attn/c_attn": "queries, keys, values of all heads side by side [n_seq, 3 n_embd]",
    "attn/q": "queries [n_head, n_seq, d_head]",
    "attn/k": "keys, those from the cache first [n_head, n_past + n_seq, d_head]",
    "attn/v": "values, likewise [n_head, n_past + n_seq, d_head]",
    "attn/scores": "q / sqrt(d_head) @ k^T, -inf where masked [n_head, n_seq, n_past + n_seq]",
    "attn/probs": "softmax of scores, 0 where masked [n_head, n_seq, n_past + n_seq]",
    "attn/heads": "probs @ v [n_head, n_seq, d_head]",
    "attn/merged": "the heads side by side [n_seq, n_embd]",
    "attn/c_proj": "what attention adds to the layer's input [n_seq, n_embd]",
    "mid": "the layer's input + attn/c_proj [n_seq, n_embd]",
    "ln_2": "layer norm of mid [n_seq, n_embd]",
    "mlp/c_fc": "[n_seq, 4 n_embd]",
    "mlp/gelu": "gelu of mlp/c_fc [n_seq, 4 n_embd]",
    "mlp/c_proj": "what the feed-forward network adds to mid [n_seq, n_embd]",
    "out": "mid + mlp/c_proj, the next layer's input [n_seq, n_embd]",
}
AFTER = {
    "ln_f": "layer norm of the last layer's output, the rows that n_logits asks for [n_logits, n_embd]",
    "logits": "ln_f @ wte^T [n_logits, n_vocab]",
}
FIXED = {"mid": "attn/c_proj"}  # passes through no function as a result: change what it is the sum of


def meanings(n_layer: int) -> dict[str, str]:
    """The names of a forward pass and what they mean, in the order of computation."""
    layers = {f"h{layer}/{name}": text for layer in range(n_layer) for name, text in LAYER.items()}
    return BEFORE | layers | AFTER


class Pass:
    """One forward pass on its way: what it has recorded, and the names that the next calls will get."""

    def __init__(self) -> None:
        self.values: dict[str, Array] = {}
        self.layer = 0
        self.prefix = ""
        self.norms = iter(("ln_f",))
        self.linears: Iterator[str] = iter(())
        self.blocks: dict[str, list[Array]] = {}  # of queries, while attention computes them one after another


class Trace:
    """What `trace` gives: t[name] is a value of the last forward pass, t.passes has all passes, in order.

    Calls outside a forward pass are not recorded, nor what a replacement calls. Traces may be nested: each records,
    also one inside a replacement of another. The module is changed for all threads.
    """

    def __init__(self, replace: Mapping[str, Change] | None = None):
        self.replace = dict(replace or {})
        self.passes: list[dict[str, Array]] = []
        self.now: Pass | None = None
        self.busy = False
        self.found: dict[str, Any] = {}

    def __getitem__(self, name: str) -> Array:
        if not self.passes:
            raise KeyError(f"{name}: no forward pass has been traced")
        return self.passes[-1][name]

    def __enter__(self) -> Trace:
        if self.found:
            raise RuntimeError("this trace is running already; another one can be nested in it")
        for name in HOOKS:
            self.found[name] = getattr(gpt2, name)
            setattr(gpt2, name, self.wrapped(name))
        return self

    def __exit__(self, *exception: object) -> None:
        """Put back what was there, and nothing over a trace that began later and is still running."""
        found, self.found = self.found, {}
        for name, function in found.items():
            if getattr(getattr(gpt2, name), "trace", None) is self:
                setattr(gpt2, name, unwrapped(function))

    def wrapped(self, name: str) -> Any:
        """What stands in gpt2.py for a function while this trace runs, and passes calls on when it doesn't."""
        function, hook = self.found[name], HOOKS[name]

        def wrapper(*args: Any, **kwargs: Any) -> Any:
            if not self.found or self.busy or (self.now is None and name != "gpt2"):
                return function(*args, **kwargs)
            return hook(self, function, *args, **kwargs)

        wrapper.trace, wrapper.function = self, function  # type: ignore[attr-defined]
        return wrapper

    # ------------------------------------------------------------------------------------------------- recording

    def note(self, name: str | None, value: Array, copy: bool = False) -> Array:
        """Record a value under its layer and name, after it was changed if it is to be; return what flows on."""
        assert self.now is not None
        if name is None:
            return value
        name = self.now.prefix + name
        value = self.changed(name, value)
        self.now.values[name] = value.copy() if copy else value
        return value

    def changed(self, name: str, value: Array) -> Array:
        if name not in self.replace:
            return value
        self.busy = True  # what the replacement itself calls is neither recorded nor replaced
        try:
            new = np.asarray(self.replace[name](value.copy(order="K")))
        finally:
            self.busy = False
        if new.shape != value.shape or new.dtype != value.dtype:
            raise ValueError(
                f"{name} is {value.dtype} {list(value.shape)}, but its replacement {new.dtype} {list(new.shape)}"
            )
        return new

    def check(self, n_layer: int) -> None:
        """Raise ValueError for a replacement that nothing would use."""
        names = meanings(n_layer)
        for name in self.replace:
            layer, _, last = name.rpartition("/")
            if name not in names:
                raise ValueError(f"nothing to replace is called {name!r}; with {n_layer} layers: {', '.join(names)}")
            if last in FIXED:
                raise ValueError(f"{name} can't be replaced, it is a sum: replace {layer}/{FIXED[last]}")

    # --------------------------------------------------- one method for each of gpt2.py's functions, from the top down

    def gpt2(self, function: Any, inputs: Any, *args: Any, **kwargs: Any) -> Any:
        self.check(len(kwargs["blocks"] if "blocks" in kwargs else args[2]))
        self.now = Pass()
        self.passes.append(self.now.values)
        try:
            inputs = self.note("inputs", np.array(inputs))
            return self.note("logits", function(inputs, *args, **kwargs))
        finally:
            self.now = None

    def transformer_block(self, function: Any, x: Array, *args: Any, **kwargs: Any) -> Any:
        now = self.now
        assert now is not None
        if now.layer == 0:
            x = self.note("embedding", x)
        now.prefix, now.norms = f"h{now.layer}/", iter(("ln_1", "ln_2"))
        out = self.note("out", function(x, *args, **kwargs))
        now.layer += 1
        now.prefix, now.norms = "", iter(("ln_f",))
        return out

    def layer_norm(self, function: Any, x: Array, *args: Any, **kwargs: Any) -> Any:
        assert self.now is not None
        name = next(self.now.norms, None)
        if name == "ln_2":
            self.note("mid", x)
        if name == "ln_f" and self.now.layer == 0:  # a model without layers
            x = self.note("embedding", x)
        return self.note(name, function(x, *args, **kwargs))

    def mha(self, function: Any, *args: Any, **kwargs: Any) -> Any:
        assert self.now is not None
        self.now.linears = iter(("attn/c_attn", "attn/c_proj"))
        return function(*args, **kwargs)

    def ffn(self, function: Any, *args: Any, **kwargs: Any) -> Any:
        assert self.now is not None
        self.now.linears = iter(("mlp/c_fc", "mlp/c_proj"))
        return function(*args, **kwargs)

    def linear(self, function: Any, *args: Any, **kwargs: Any) -> Any:
        assert self.now is not None
        name = next(self.now.linears, None)
        return self.note(name, function(*args, **kwargs))

    def gelu(self, function: Any, x: Array) -> Any:
        return self.note("mlp/gelu", function(x))

    def merge_heads(self, function: Any, x: Array) -> Any:
        return self.note("attn/merged", function(x))

    def blockwise_attention(self, function: Any, q: Array, k: Array, v: Array) -> Any:
        """The blocks of queries that it computes one after another are put together to one square each."""
        now = self.now
        assert now is not None
        q = self.note("attn/q", q)
        k, v = (
            self.note(name, x, copy=True) for name, x in (("attn/k", k), ("attn/v", v))
        )  # the cache goes on changing
        now.blocks = {"attn/scores": [], "attn/probs": []}
        replaced = any(now.prefix + name in self.replace for name in now.blocks)
        # A replacement sees all queries at once, as one block.
        heads = function(q, k, v, n_block=max(q.shape[-2], 1)) if replaced else function(q, k, v)
        for name, fill in (("attn/scores", -np.inf), ("attn/probs", 0)):
            now.values[now.prefix + name] = assembled(now.blocks[name], k.shape[-2], fill)
        now.blocks = {}
        return self.note("attn/heads", heads)

    def softmax(self, function: Any, scores: Array) -> Any:
        now = self.now
        assert now is not None
        if not now.blocks:
            return function(scores)
        scores = self.changed(f"{now.prefix}attn/scores", scores)
        now.blocks["attn/scores"].append(scores)
        probs = self.changed(f"{now.prefix}attn/probs", function(scores))
        now.blocks["attn/probs"].append(probs)
        return probs


HOOKS: dict[str, Callable[..., Any]] = {
    name: getattr(Trace, name)
    for name in (
        "gpt2",
        "transformer_block",
        "layer_norm",
        "mha",
        "ffn",
        "linear",
        "gelu",
        "merge_heads",
        "blockwise_attention",
        "softmax",
    )
}


def unwrapped(function: Any) -> Any:
    """What is behind the wrappers of traces that have ended: they may end in any order."""
    while (owner := getattr(function, "trace", None)) is not None and not owner.found:
        function = function.function
    return function


def assembled(blocks: list[Array], n_k: int, fill: float) -> Array:
    """Blocks of rows, each as wide as the keys its queries see, as one array n_k wide; fill stands for the rest."""
    if len(blocks) == 1 and blocks[0].shape[-1] == n_k:
        return blocks[0]
    widths = [[(0, 0)] * (block.ndim - 1) + [(0, n_k - block.shape[-1])] for block in blocks]
    padded = [np.pad(block, width, constant_values=fill) for block, width in zip(blocks, widths)]
    return np.concatenate(padded, axis=-2)


def trace(replace: Mapping[str, Change] | None = None) -> Trace:
    """A context that records every forward pass of gpt2.py within it, as a `Trace`. Outputs stay the same bit for bit.

    replace maps names to functions that get a copy of the value and return what flows on instead, of the same shape and
    dtype; what is recorded is what flowed on. Example, without head 3 of layer 2:

        def without(heads): heads[..., 3, :, :] = 0; return heads
        with trace({"h2/attn/heads": without}): logits = gpt2.gpt2(ids, **params, n_head=12)

    Where scores or probs are replaced, that layer computes all queries as one block, which may round differently.
    Raises ValueError for a name that the model does not have, before it computes anything.
    """
    return Trace(replace)


# ------------------------------------------------------------------------------------------------------------ the tool


def contents(values: dict[str, Array], n_layer: int) -> Array:
    """The table of contents of a pass: name, shape, dtype and meaning, in the order of computation; no pickle."""
    texts = meanings(n_layer)
    rows = [(name, str(list(values[name].shape)), str(values[name].dtype), texts[name]) for name in texts]
    widths = [max(map(len, column)) for column in zip(*rows)]
    names = ("name", "shape", "dtype", "meaning")
    return np.array(rows, dtype=[(name, f"U{width}") for name, width in zip(names, widths)])


def table(rows: Array) -> str:
    """The table of contents as text."""
    lines = [[str(field) for field in row] for row in rows.tolist()]
    widths = [max(map(len, column)) for column in zip(*lines)]
    return "\n".join("  ".join(map(str.ljust, line, widths)).rstrip() for line in lines)


def prompt_ids(encoder: Encoder, prompt: str, n_ctx: int) -> list[int]:
    """The prompt's ids. Raises UsageError when there are none, or more than the model has positions."""
    ids = encoder.encode(prompt)
    if not ids:
        raise UsageError("the prompt is empty")
    if len(ids) > n_ctx:
        raise UsageError(f"the prompt has {len(ids)} tokens, but the model's context is n_ctx = {n_ctx}")
    return ids


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = Parser(
        prog="picogpt trace",
        description="Write every intermediate of one forward pass to an NPZ file, and its table of contents to stdout.",
        epilog="""examples:
  python -m picogpt trace "Not all heroes wear capes." --out activations.npz
  python -m picogpt trace - --out romeo.npz --model_size tiny < prompt.txt

In Python: with np.load("activations.npz") as file: file["h0/attn/probs"]; file["contents"] is the table, a structured
array with the fields name, shape, dtype and meaning, in the order of computation.""",
    )
    add = parser.add_argument
    add("prompt", help="the text, or - for standard input (without its last line end)")
    add("--out", type=Path, required=True, metavar="FILE.npz", help="the file to write; replaced when it is complete")
    add("--model_size", default="124M", help="124M, 355M, 774M, 1558M or a folder of --models_dir (default: 124M)")
    add("--models_dir", default="models", help="where the models are, or go (default: models)")
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> int:
    args = parse_args(argv)
    prompt = read_prompt(args.prompt)
    with new_file(args.out) as file:
        folder = ensure_downloaded(args.model_size, args.models_dir)
        hparams, params = load_hparams_and_params(folder)
        ids = prompt_ids(get_encoder(folder.name, folder.parent), prompt, hparams["n_ctx"])
        with trace() as t:
            gpt2.gpt2(ids, **params, n_head=hparams["n_head"])
        rows = contents(t.passes[0], hparams["n_layer"])
        arrays: dict[str, Any] = {name: t[name] for name in rows["name"].tolist()}
        np.savez(file, contents=rows, **arrays)
    print(f"{args.model_size}: " + ", ".join(f"{name} {hparams[name]}" for name in HPARAMS))
    print(table(rows))
    print(f"{args.out}: {len(rows)} arrays, {args.out.stat().st_size:,} bytes")
    return 0
