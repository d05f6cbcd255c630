"""Record the intermediate values of gpt2.py's forward pass, or replace them, by layer and name.

    python -m picogpt trace "Not all heroes wear capes." --out activations.npz

    with trace() as t:
        gpt2.gpt2(ids, **params, n_head=12)
    t["h3/attn/probs"]

gpt2.py has no code for this. While a trace runs, the functions in TRACED are replaced in the module by wrappers. Each
wrapper calls its function once and keeps the arguments or result. Values that stay within a function, such as the
variance in a layer norm, can't be recorded in this way.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

import gpt2
from picogpt.files import new_file
from picogpt.options import add_force, add_model_options, add_prompt, prompt_ids
from utils import HPARAMS, Parser, ensure_downloaded, load_encoder, load_hparams_and_params, read_prompt

Array = np.ndarray[Any, np.dtype[Any]]
Change = Callable[[Array], Array]

# All names in the order of computation. Those of LAYER come once for each layer, after h0/, h1/ and so on.
BEFORE = {
    "inputs": "token ids [n_seq]",
    "embedding": "token embeddings + position embeddings [n_seq, n_embd]",
}
LAYER = {
    "ln_1": "layer norm of the layer's input [n_seq, n_embd]",
    "attn/c_attn": "queries, keys and values of all heads side by side [n_seq, 3 n_embd]",
    "attn/q": "queries [n_head, n_seq, d_head]",
    "attn/k": "keys, with those from the cache first [n_head, n_past + n_seq, d_head]",
    "attn/v": "values, with those from the cache first [n_head, n_past + n_seq, d_head]",
    "attn/scores": "q / sqrt(d_head) @ k^T, -inf where masked [n_head, n_seq, n_past + n_seq]",
    "attn/probs": "softmax of scores, 0 where masked [n_head, n_seq, n_past + n_seq]",
    "attn/heads": "probs @ v [n_head, n_seq, d_head]",
    "attn/merged": "heads side by side [n_seq, n_embd]",
    "attn/c_proj": "output of attention, which is added to the layer's input [n_seq, n_embd]",
    "mid": "the layer's input + attn/c_proj [n_seq, n_embd]",
    "ln_2": "layer norm of mid [n_seq, n_embd]",
    "mlp/c_fc": "hidden layer before gelu [n_seq, 4 n_embd]",
    "mlp/gelu": "gelu of mlp/c_fc [n_seq, 4 n_embd]",
    "mlp/c_proj": "output of the feed-forward network, which is added to mid [n_seq, n_embd]",
    "out": "mid + mlp/c_proj, the next layer's input [n_seq, n_embd]",
}
AFTER = {
    "ln_f": "layer norm of the last layer's output, only the rows that n_logits keeps [n_logits, n_embd]",
    "logits": "ln_f @ wte^T [n_logits, n_vocab]",
}

# The functions of gpt2.py whose results are recorded as they are, with the names of their results in one layer. Methods
# of `Trace` with the same names record the other four functions.
RESULTS = {
    "layer_norm": ("ln_1", "ln_2"),
    "linear": ("attn/c_attn", "attn/c_proj", "mlp/c_fc", "mlp/c_proj"),
    "gelu": ("mlp/gelu",),
    "merge_heads": ("attn/merged",),
}
TRACED = ("gpt2", "transformer_block", "blockwise_attention", "softmax", *RESULTS)


def meanings(n_layer: int) -> dict[str, str]:
    """Return the names of all values of a forward pass and their meanings, in the order of computation."""
    layers = {f"h{layer}/{name}": text for layer in range(n_layer) for name, text in LAYER.items()}
    return BEFORE | layers | AFTER


class Trace:
    """The values of forward passes. t[name] is a value of the last pass; t.passes has all passes in order.

    Calls outside a forward pass are not recorded, and neither are calls that a replacement makes.
    """

    def __init__(self, replace: Mapping[str, Change] | None = None):
        self.replace = dict(replace or {})
        self.passes: list[dict[str, Array]] = []
        self.in_pass, self.paused = False, False  # paused while a replacement runs

    def __getitem__(self, name: str) -> Array:
        if not self.passes:
            raise KeyError(f"{name}: no forward pass has been traced")
        return self.passes[-1][name]

    def check(self, n_layer: int) -> None:
        """Raise ValueError if a replacement has a name that the model lacks, or that can't be replaced."""
        names = meanings(n_layer)
        for name in self.replace:
            if name not in names:
                raise ValueError(f"nothing to replace is called {name!r}; with {n_layer} layers: {', '.join(names)}")
            if name.endswith("/mid"):  # computed within transformer_block, and no function returns it
                raise ValueError(f"{name} can't be replaced, it is a sum: replace {name[:-3]}attn/c_proj")

    def changed(self, name: str, value: Array) -> Array:
        """Return the value, or its replacement. Raises ValueError if the replacement has another shape or dtype."""
        if name not in self.replace:
            return value
        self.paused = True
        try:
            new = np.asarray(self.replace[name](value.copy(order="K")))
        finally:
            self.paused = False
        if new.shape != value.shape or new.dtype != value.dtype:
            raise ValueError(
                f"{name} is {value.dtype} {list(value.shape)}, but its replacement {new.dtype} {list(new.shape)}"
            )
        return new

    def record(self, name: str, value: Array, copy: bool = False) -> Array:
        """Record a value of the current layer and return it, after replacing it if `replace` has its name."""
        value = self.changed(self.prefix + name, value)
        self.passes[-1][self.prefix + name] = value.copy() if copy else value
        return value

    def begin(self, prefix: str, results: Mapping[str, Sequence[str]]) -> None:
        """Set the prefix of the names that follow, and the names that each function's results get one by one."""
        self.prefix, self.results = prefix, {function: iter(names) for function, names in results.items()}

    # ------------------------------------------------------------- wrappers for gpt2.py's functions, from the top down

    def call(self, name: str, function: Any, *args: Any, **kwargs: Any) -> Any:
        """Call a function of gpt2.py, and record its values if a forward pass made the call."""
        if self.paused or not (self.in_pass or name == "gpt2"):
            return function(*args, **kwargs)
        if name in RESULTS:
            return self.result(name, function, *args, **kwargs)
        return getattr(self, name)(function, *args, **kwargs)

    def gpt2(self, function: Any, inputs: Any, *args: Any, **kwargs: Any) -> Any:
        self.check(len(kwargs["blocks"] if "blocks" in kwargs else args[2]))
        self.passes.append({})
        self.in_pass, self.layer = True, 0
        self.begin("", {"layer_norm": ["ln_f"]})
        try:
            inputs = self.record("inputs", np.array(inputs))
            return self.record("logits", function(inputs, *args, **kwargs))
        finally:
            self.in_pass = False

    def transformer_block(self, function: Any, x: Array, *args: Any, **kwargs: Any) -> Any:
        if self.layer == 0:
            x = self.record("embedding", x)
        self.begin(f"h{self.layer}/", RESULTS)
        out = self.record("out", function(x, *args, **kwargs))
        self.layer += 1
        self.begin("", {"layer_norm": ["ln_f"]})
        return out

    def result(self, name: str, function: Any, x: Array, *args: Any, **kwargs: Any) -> Any:
        """Record the result of one of RESULTS, and also its argument where no function returns that value."""
        result_name = next(self.results[name])
        if result_name == "ln_2":
            self.record("mid", x)
        if result_name == "ln_f" and self.layer == 0:  # the model has no layers
            x = self.record("embedding", x)
        return self.record(result_name, function(x, *args, **kwargs))

    def blockwise_attention(self, function: Any, q: Array, k: Array, v: Array, **kwargs: Any) -> Any:
        """Record the arguments and the result, and the scores and probabilities of all queries together.

        gpt2.py computes blocks of queries one after another. A replacement of scores or probs gets all queries at once.
        """
        q = self.record("attn/q", q)
        k = self.record("attn/k", k, copy=True)  # a view of the cache, which a later pass may overwrite
        v = self.record("attn/v", v, copy=True)
        self.blocks: dict[str, list[Array]] = {"attn/scores": [], "attn/probs": []}
        if any(self.prefix + name in self.replace for name in self.blocks):
            kwargs["n_block"] = max(q.shape[-2], 1)
        heads = function(q, k, v, **kwargs)
        for (name, blocks), fill in zip(self.blocks.items(), (-np.inf, 0)):
            self.passes[-1][self.prefix + name] = assembled(blocks, k.shape[-2], fill)
        return self.record("attn/heads", heads)

    def softmax(self, function: Any, scores: Array) -> Any:
        scores = self.changed(f"{self.prefix}attn/scores", scores)
        probs = self.changed(f"{self.prefix}attn/probs", function(scores))
        self.blocks["attn/scores"].append(scores)
        self.blocks["attn/probs"].append(probs)
        return probs


def assembled(blocks: list[Array], n_keys: int, fill: float) -> Array:
    """Join blocks of rows into one array. Each is as wide as the keys that its queries see; `fill` pads the rest."""
    widths = [[(0, 0)] * (block.ndim - 1) + [(0, n_keys - block.shape[-1])] for block in blocks]
    padded = [np.pad(block, width, constant_values=fill) for block, width in zip(blocks, widths)]
    return np.concatenate(padded, axis=-2)


@contextlib.contextmanager
def trace(replace: Mapping[str, Change] | None = None) -> Iterator[Trace]:
    """Record every forward pass of gpt2.py within a `with` block, as a `Trace`. Outputs stay the same bit for bit.

    `replace` maps names to functions. Such a function gets a copy of the value and returns the value to continue with,
    of the same shape and dtype, which is then the recorded one. For example, this switches off head 3 of layer 2:

        def without(heads): heads[..., 3, :, :] = 0; return heads
        with trace({"h2/attn/heads": without}): logits = gpt2.gpt2(ids, **params, n_head=12)

    A layer whose scores or probs are replaced computes all queries as one block, which may round differently. Traces
    may be nested, and each of them records. The module is changed for all threads.

    The forward pass raises ValueError before it computes anything if `replace` has a name that the model lacks.
    """
    recorder = Trace(replace)
    functions = {name: getattr(gpt2, name) for name in TRACED}
    try:
        for name, function in functions.items():
            setattr(gpt2, name, functools.partial(recorder.call, name, function))
        yield recorder
    finally:
        for name, function in functions.items():
            setattr(gpt2, name, function)


# ------------------------------------------------------------------------------------------------------------ the tool


def contents(values: dict[str, Array], n_layer: int) -> Array:
    """Return the table of contents of a forward pass, in the order of computation.

    It is a structured array of strings with the fields name, shape, dtype and meaning. np.load needs no pickle for it.
    """
    texts = meanings(n_layer)
    rows = [(name, str(list(values[name].shape)), str(values[name].dtype), texts[name]) for name in texts]
    widths = [max(map(len, column)) for column in zip(*rows)]
    names = ("name", "shape", "dtype", "meaning")
    return np.array(rows, dtype=[(name, f"U{width}") for name, width in zip(names, widths)])


def table(rows: Array) -> str:
    """Format the table of contents as text."""
    lines = [[str(field) for field in row] for row in rows.tolist()]
    widths = [max(map(len, column)) for column in zip(*lines)]
    return "\n".join("  ".join(map(str.ljust, line, widths)).rstrip() for line in lines)


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = Parser(
        prog="python -m picogpt trace",
        description="Write all intermediate values of one forward pass to an NPZ file, and print a table of them.",
        epilog="""examples:
  python -m picogpt trace "Not all heroes wear capes." --out activations.npz
  python -m picogpt trace - --out romeo.npz --model_size tiny < prompt.txt

In Python: with np.load("activations.npz") as file: file["h0/attn/probs"]; file["contents"] is the table, a structured
array with the fields name, shape, dtype and meaning, in the order of computation.""",
    )
    add_prompt(parser)
    parser.add_argument("--out", type=Path, required=True, metavar="FILE.npz", help="the file to write")
    add_force(parser)
    add_model_options(parser)
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> int:
    args = parse_args(argv)
    prompt = read_prompt(args.prompt)
    with new_file(args.out, args.force) as file:
        folder = ensure_downloaded(args.model_size, args.models_dir)
        hparams, params = load_hparams_and_params(folder)
        ids = prompt_ids(load_encoder(folder), prompt, hparams["n_ctx"])
        with trace() as t:
            gpt2.gpt2(ids, **params, n_head=hparams["n_head"])
        rows = contents(t.passes[0], hparams["n_layer"])
        arrays: dict[str, Any] = {name: t[name] for name in rows["name"].tolist()}
        np.savez(file, contents=rows, **arrays)
    print(f"{args.model_size}: " + ", ".join(f"{name} {hparams[name]}" for name in HPARAMS))
    print(table(rows))
    print(f"{args.out}: {len(rows)} arrays, {args.out.stat().st_size:,} bytes")
    return 0
