"""Switch parts of a model off, or take their output from another text: heads, attention, MLPs and whole layers.

    chosen = parts("9.9,10.mlp")
    with trace(changes((chosen, instead_of(chosen, "zero", params, n_head)))):
        logits = gpt2.gpt2(ids, **params, n_head=n_head)

9.9 is head 9 of layer 9, 9.attn the attention of layer 9, 9.mlp its MLP (the feed-forward network), and 9 the whole
layer, that is both. 9.9@-1 is the head at the last position only. What a part gives to the rest of the model is
replaced by an array, its source: zeros, its bias, its mean, or what it gave for another text (activation patching).
`trace` does the replacing, so the forward pass is gpt2.py's.
"""

from __future__ import annotations

import argparse
import functools
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

import gpt2
from picogpt.command_line import UsageError
from picogpt.tracing.recorder import trace
from picogpt.tracing.replacing import Array, Change

if TYPE_CHECKING:
    from picogpt.typing.shapes import Params

Sources = Mapping[str, Array]  # what to put into the values of these names; each is broadcast to the value's shape
KINDS = ("head", "layer", "mlp", "attn")  # of parts that `all_parts` lists


class Part(NamedTuple):
    """A part of a model: a head by its number, "attn" or "mlp" of a layer, or "layer"; at all positions or at one."""

    layer: int
    which: int | str
    position: int | None = None  # negative numbers count from the end

    def __str__(self) -> str:
        of_layer = "" if self.which == "layer" else f".{self.which}"
        return f"{self.layer}{of_layer}" + ("" if self.position is None else f"@{self.position}")

    @property
    def names(self) -> list[str]:
        """The names, as in `trace`, of what the part gives to the rest of the model."""
        if isinstance(self.which, int):
            return [f"h{self.layer}/attn/heads"]
        return [f"h{self.layer}/{name}/c_proj" for name in ("attn", "mlp") if self.which in (name, "layer")]

    @property
    def place(self) -> tuple[Any, ...]:
        """Where the part is in the values of these names: [..., n_seq, n_embd], or [..., n_head, n_seq, d_head]."""
        rows = slice(None) if self.position is None else slice(self.position, self.position + 1 or None)
        return (..., *([self.which] if isinstance(self.which, int) else []), rows, slice(None))


def overlap(a: Part, b: Part, n_seq: int) -> bool:
    """Return whether two parts have something in common: a head is within its layer's attention."""
    pieces = [{"attn", "mlp"} if part.which == "layer" else {part.which} for part in (a, b)]
    is_same = bool(pieces[0] & pieces[1]) or any(
        isinstance(head.which, int) and "attn" in other for head, other in ((a, pieces[1]), (b, pieces[0]))
    )
    positions = [None if part.position is None else part.position % n_seq for part in (a, b)]
    return a.layer == b.layer and is_same and (None in positions or positions[0] == positions[1])


def parts(text: str) -> list[Part]:
    """Parse parts with commas between them. Raises ArgumentTypeError, as it is the `type` of an option.

    >>> parts("9.9,10@-1")
    [Part(layer=9, which=9, position=None), Part(layer=10, which='layer', position=-1)]
    """
    found = []
    for word in text.split(","):
        match = re.fullmatch(r"(\d+)(?:\.(\d+|attn|mlp))?(?:@(-?\d+))?", word.strip(), re.ASCII)
        if not match:
            examples = "9.9 (a head), 9.attn, 9.mlp or 9 (a layer); 9.9@-1 is the head at the last token only"
            raise argparse.ArgumentTypeError(f"{word!r} is no part of a model, such as {examples}")
        layer, which, position = match.groups(default="")
        found.append(
            Part(int(layer), int(which) if which.isdigit() else which or "layer", int(position) if position else None)
        )
    return found


def all_parts(kind: str, n_layer: int, n_head: int) -> list[Part]:
    """Return all parts of a kind: every head, or the attention, the MLP or all of every layer."""
    return [Part(layer, which) for layer in range(n_layer) for which in (range(n_head) if kind == "head" else [kind])]


def check_parts(chosen: Iterable[Part], option: str, model: str, hparams: Mapping[str, int]) -> None:
    """Raise UsageError for a part that the model does not have."""
    for part in chosen:
        if part.layer >= hparams["n_layer"]:
            raise UsageError(f"{option} {part}: {model} has layers 0 to {hparams['n_layer'] - 1}")
        if isinstance(part.which, int) and part.which >= hparams["n_head"]:
            raise UsageError(f"{option} {part}: {model} has heads 0 to {hparams['n_head'] - 1}")


def check_positions(chosen: Iterable[Part], option: str, n_seq: int) -> None:
    """Raise UsageError for a part at a position that a text of n_seq tokens does not have."""
    for part in chosen:
        if part.position is not None and not -n_seq <= part.position < n_seq:
            raise UsageError(f"{option} {part}: the text has tokens 0 to {n_seq - 1}")


# ------------------------------------------------------------------------------------------------------- replacing


def changes(*groups: tuple[Iterable[Part], Sources]) -> dict[str, Change]:
    """Return what `trace` shall replace so that each part gives what the sources of its group say."""
    found: dict[str, list[tuple[Array, tuple[Any, ...]]]] = {}
    for chosen, sources in groups:
        for part in chosen:
            for name in part.names:
                found.setdefault(name, []).append((sources[name], part.place))
    return {name: functools.partial(put, pairs) for name, pairs in found.items()}


def put(pairs: Iterable[tuple[Array, tuple[Any, ...]]], value: Array) -> Array:
    """Write each source into its place in a value. Processes can send this function to each other."""
    for source, place in pairs:
        value[place] = np.broadcast_to(source, value.shape)[place]
    return value


# --------------------------------------------------------------------------------------------------------- sources


def instead_of(
    chosen: Iterable[Part], instead: str, params: Params, n_head: int, texts: Iterable[Sequence[int] | Array] = ()
) -> dict[str, Array]:
    """Return what parts give that are switched off: "zero", their "bias", or their "mean" over texts of ids."""
    names = sorted({name for part in chosen for name in part.names})
    if instead == "mean":
        return means(names, params, n_head, texts)
    if instead == "bias":
        return {name: bias(name, params, n_head) for name in names}
    return dict.fromkeys(names, np.zeros(()))


def bias(name: str, params: Params, n_head: int) -> Array:
    """Return what a part adds whatever the text is. -> [n_head, 1, d_head] for heads, otherwise [1, n_embd]

    Of a head, this is the bias of its values in c_attn, because attention weights sum to 1. TransformerLens moves this
    bias behind the heads, to the output of attention, so that what it calls zero is this. Of attention, it is the same
    of all heads, after c_proj. Of an MLP, it is the bias of its c_proj.
    """
    layer, *_ = name[1:].split("/")
    block: Any = params["blocks"][int(layer)]
    if name.endswith("mlp/c_proj"):
        return np.asarray(block["mlp"]["c_proj"]["b"])[None]
    of_values: Any = np.split(block["attn"]["c_attn"]["b"], 3)[2][None]  # [1, n_embd]
    found: Any = (
        gpt2.split_heads(of_values, n_head)
        if name.endswith("attn/heads")
        else gpt2.linear(of_values, **block["attn"]["c_proj"])
    )
    return np.asarray(found)


def means(
    names: Iterable[str], params: Params, n_head: int, texts: Iterable[Sequence[int] | Array]
) -> dict[str, Array]:
    """Return the means of values over all positions of some texts, with an axis of length 1 for the positions.

    Every text of ids has at most n_ctx of them, and goes through the model once.
    """
    sums: dict[str, Any] = dict.fromkeys(names, 0.0)
    n = 0

    def add(value: Array, name: str) -> Array:
        sums[name] = sums[name] + value.sum(axis=-2, keepdims=True, dtype=np.float64)
        return value

    with trace(dict.fromkeys(sums, add), keep=False):
        for ids in texts:
            gpt2.gpt2(ids, **params, n_head=n_head, n_logits=0)
            n += len(ids)
    return {name: total / n for name, total in sums.items()}


def recorded(chosen: Iterable[Part], params: Params, n_head: int, ids: Sequence[int]) -> dict[str, Array]:
    """Return what parts give when the model reads another text: the sources for activation patching."""
    with trace() as t:
        gpt2.gpt2(ids, **params, n_head=n_head, n_logits=0)
    return {name: t[name] for part in chosen for name in part.names}
