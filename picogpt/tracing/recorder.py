"""Record the intermediate values of gpt2.py's forward pass, or replace them, by layer and name.

    with trace() as t:
        gpt2.gpt2(ids, **params, n_head=12)
    t["h3/attn/probs"]

gpt2.py has no code for this. While a trace runs, the functions in TRACED are replaced in the module by wrappers. Each
wrapper calls its function once and keeps the arguments or result. Values that stay within a function, such as the
variance in a layer norm, can't be recorded in this way. Neither can the calls of a function that was imported by its
name, so the forward pass has to be called as `gpt2.gpt2`.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

import gpt2
from picogpt.tracing.names import contents, table
from picogpt.tracing.replacing import Change, replacement, resolved

Array = np.ndarray[Any, np.dtype[Any]]

# The functions of gpt2.py whose results are recorded as they are, with the names of their results in one layer. Methods
# of `Trace` with the same names record the other four functions.
RESULTS = {
    "layer_norm": ("ln_1", "ln_2"),
    "linear": ("attn/c_attn", "attn/c_proj", "mlp/c_fc", "mlp/c_proj"),
    "gelu": ("mlp/gelu",),
    "merge_heads": ("attn/merged",),
}
TRACED = ("gpt2", "transformer_block", "causal_attention", "softmax", *RESULTS)

BY_NAME = "trace sees only forward passes that are called as gpt2.gpt2(…), after `import gpt2`"
EMPTY = f"no forward pass has been traced: {BY_NAME}. Copies of gpt2.py, for example in a notebook, are not recorded"


class Trace(Mapping[str, Array]):
    """The values of forward passes. t[name] is a value of the last pass; t.passes has all passes in order.

    print(t) shows the names, shapes and meanings of the last pass, and t.items() gives its names and values. Calls
    outside a forward pass are not recorded, and neither are calls that a replacement makes.
    """

    def __init__(self, replace: Mapping[str, Change] | None = None, keep: bool = True):
        self.replace, self.keep = dict(replace or {}), keep
        self.passes: list[dict[str, Array]] = []
        self.in_pass, self.paused = False, False  # paused while a replacement runs

    # ------------------------------------------------------------------------------------------- reading what it holds

    @property
    def last(self) -> dict[str, Array]:
        """The values of the last pass. Raises KeyError, which says why, if there is none."""
        if not self.passes:
            raise KeyError(EMPTY)
        return self.passes[-1]

    def __getitem__(self, name: str) -> Array:
        if name not in self.last:
            raise KeyError(f"no value is called {name!r}: print the trace to see all names")
        return self.last[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self.last)

    def __len__(self) -> int:
        return len(self.passes[-1]) if self.passes else 0

    __eq__, __hash__ = object.__eq__, object.__hash__  # a Mapping's own == can't compare arrays

    def __repr__(self) -> str:
        if not self.passes:
            return f"<Trace: {EMPTY}>"
        n = len(self.passes)
        return f"<Trace of {n} forward pass{'es, of which this is the last' if n > 1 else ''}>\n{table(contents(self))}"

    # ------------------------------------------------------------------------------------------------------- replacing

    def changed(self, name: str, value: Array) -> Array:
        """Return the value, or its replacement. Raises ValueError if that is None, or has another shape or dtype."""
        for change in self.changes.get(name, ()):
            self.paused = True
            try:
                value = replacement(change, name, value)
            finally:
                self.paused = False
        return value

    # ------------------------------------------------------------------------------------------------------- recording

    def record(self, name: str, value: Array, copy: bool = False) -> Array:
        """Record a value of the current layer and return it, after replacing it if `replace` has its name."""
        value = self.changed(self.prefix + name, value)
        if self.keep:
            self.passes[-1][self.prefix + name] = value.copy() if copy else value
        return value

    def begin(self, prefix: str, results: Mapping[str, Sequence[str]]) -> None:
        """Set the prefix of the names that follow, and the names that each function's results get one by one."""
        self.prefix, self.results = prefix, {function: iter(names) for function, names in results.items()}

    # ------------------------------------------------------------- wrappers for gpt2.py's functions, from the top down

    def call(self, name: str, function: Any, *args: Any, **kwargs: Any) -> Any:
        """Call a function of gpt2.py, and record its values if a forward pass made the call.

        Raises RuntimeError in a forward pass that began unseen: its values would be neither recorded nor replaced.
        """
        if name == "transformer_block" and not (self.in_pass or self.paused):
            raise RuntimeError(BY_NAME)
        if self.paused or not (self.in_pass or name == "gpt2"):
            return function(*args, **kwargs)
        if name in RESULTS:
            return self.result(name, function, *args, **kwargs)
        return getattr(self, name)(function, *args, **kwargs)

    def gpt2(self, function: Any, inputs: Any, wte: Any, wpe: Any, blocks: Any, *args: Any, **kwargs: Any) -> Any:
        self.changes = resolved(self.replace, len(blocks))
        self.passes += [{}] if self.keep else []
        self.in_pass, self.layer = True, 0
        self.begin("", {"layer_norm": ["ln_f"]})
        try:
            ids = self.record("inputs", np.array(inputs))
            return self.record("logits", function(ids, wte, wpe, blocks, *args, **kwargs))
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

    def causal_attention(self, function: Any, q: Array, k: Array, v: Array, **kwargs: Any) -> Any:
        """Record the arguments and the result, and the scores and probabilities of all queries together.

        gpt2.py computes blocks of queries one after another. A replacement of scores or probs gets all queries at once.
        """
        q = self.record("attn/q", q)
        k = self.record("attn/k", k, copy=True)  # a view of the cache, which a later pass may overwrite
        v = self.record("attn/v", v, copy=True)
        self.blocks: dict[str, list[Array]] = {"attn/scores": [], "attn/probs": []}
        if any(self.prefix + name in self.changes for name in self.blocks):
            kwargs["n_block"] = max(q.shape[-2], 1)
        heads = function(q, k, v, **kwargs)
        for (name, blocks), fill in zip(self.blocks.items() if self.keep else (), (-np.inf, 0)):
            self.passes[-1][self.prefix + name] = assembled(blocks, k.shape[-2], fill)
        return self.record("attn/heads", heads)

    def softmax(self, function: Any, scores: Array) -> Any:
        scores = self.changed(f"{self.prefix}attn/scores", scores)
        probs = self.changed(f"{self.prefix}attn/probs", function(scores))
        if self.keep:
            self.blocks["attn/scores"].append(scores)
            self.blocks["attn/probs"].append(probs)
        return probs


def assembled(blocks: list[Array], n_keys: int, fill: float) -> Array:
    """Join blocks of rows into one array. Each is as wide as the keys that its queries see; `fill` pads the rest."""
    widths = [[(0, 0)] * (block.ndim - 1) + [(0, n_keys - block.shape[-1])] for block in blocks]
    padded = [np.pad(block, width, constant_values=fill) for block, width in zip(blocks, widths)]
    return np.concatenate(padded, axis=-2)


@contextlib.contextmanager
def trace(replace: Mapping[str, Change] | None = None, keep: bool = True) -> Iterator[Trace]:
    """Record every forward pass of gpt2.py within a `with` block, as a `Trace`. Outputs stay the same bit for bit.

    `replace` maps names to functions. Such a function gets a copy of the value and returns the value to continue with,
    of the same shape and dtype, which is then the recorded one. For example, this switches off head 3 of layer 2:

        def without(heads): heads[..., 3, :, :] = 0; return heads
        with trace({"h2/attn/heads": without}): logits = gpt2.gpt2(ids, **params, n_head=12)

    A name may be a pattern of the module fnmatch: "h*/attn/heads" stands for the heads of all layers. A function with
    two parameters gets the name, too: (value, name). If several functions fit a name, they follow each other.

    With keep=False, values are replaced but not recorded, so that many passes take no more memory than one.

    A layer whose scores or probs are replaced computes all queries as one block, which may round differently. Traces
    may be nested, and each of them records. The module is changed for all threads.

    The forward pass raises ValueError before it computes anything if `replace` has a name that the model lacks, and
    TypeError if it has something else than a function.
    """
    recorder = Trace(replace, keep)
    functions = {name: getattr(gpt2, name) for name in TRACED}
    for name, function in functions.items():
        setattr(gpt2, name, functools.partial(recorder.call, name, function))
    try:
        yield recorder
    finally:
        for name, function in functions.items():
            setattr(gpt2, name, function)
