"""The names and layouts of other programs' dumps: transformers, TransformerLens and llm.c, as the names of `trace`.

transformers (a model's output with output_hidden_states and output_attentions): hidden_states[0] is the embedding, [i]
the output of layer i - 1, and the last one comes after ln_f. TransformerLens (run_with_cache): names of hooks, such as
blocks.0.attn.hook_pattern. llm.c (train_gpt2.py): the file gpt2_124M_debug_state.bin.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from picogpt.checkpoints.writing import arrays_of
from picogpt.command_line import UsageError

if TYPE_CHECKING:
    from picogpt.typing.shapes import Params

Array = np.ndarray[Any, np.dtype[Any]]
Take = Callable[[Array], Array]

# TransformerLens's hooks of a layer that have our values, in our layout. `HEADS` are [n_seq, n_head, d_head] there.
HOOKS = {
    "attn.hook_attn_scores": "attn/scores",
    "attn.hook_pattern": "attn/probs",
    "hook_attn_out": "attn/c_proj",
    "hook_resid_mid": "mid",
    "mlp.hook_pre": "mlp/c_fc",
    "mlp.hook_post": "mlp/gelu",
    "hook_mlp_out": "mlp/c_proj",
    "hook_resid_post": "out",
}
HEADS = {"attn.hook_q": "attn/q", "attn.hook_k": "attn/k", "attn.hook_v": "attn/v", "attn.hook_z": "attn/heads"}
NORMS = {"ln1.hook_normalized": "ln_1", "ln2.hook_normalized": "ln_2"}  # see `scaled`
SAME = {"input_ids": "inputs", "tokens": "inputs", "hook_tokens": "inputs", "last_hidden_state": "ln_f"}


class Item(NamedTuple):
    """An array of a file that has one of our values. `take` makes it ours, but for a batch axis of 1."""

    name: str
    source: str
    take: Take


class Text(NamedTuple):
    """What other layouts need to become ours: the parameters, and the ids and the first position of the main pass."""

    params: Params
    ids: Array
    n_past: int

    @property
    def wpe(self) -> Array:
        """The position embeddings of the ids."""
        return np.asarray(self.params["wpe"])[self.n_past : self.n_past + self.ids.shape[-1]]

    @property
    def wte(self) -> Array:
        """The token embeddings of the ids."""
        return np.asarray(self.params["wte"])[self.ids]


def items_of(source: str, text: Text) -> list[Item]:
    """Return what an array of a transformers or TransformerLens dump has. An unknown name has nothing."""
    if source in SAME:
        return [Item(SAME[source], source, same)]
    n_layer = len(text.params["blocks"])
    if match := re.fullmatch(r"(hidden_states|attentions)(?:[._/-]?(\d+))?", source):
        return stacked(source, match[1], match[2], n_layer)
    match = re.fullmatch(r"blocks\.(\d+)\.(.+)", source)
    if match and int(match[1]) < n_layer:
        return hooked(source, int(match[1]), match[2], text)
    if source == "ln_final.hook_normalized":
        return [Item("ln_f", source, functools.partial(scaled, **text.params["ln_f"]))]
    if source == "hook_embed":  # we have only the sum of both: the other half is ours
        return [Item("embedding", source, functools.partial(plus, text.wpe))]
    if source == "hook_pos_embed":
        return [Item("embedding", source, functools.partial(plus, text.wte))]
    return []


def stacked(source: str, kind: str, number: str | None, n_layer: int) -> list[Item]:
    """Return the items of hidden_states or attentions: a single one of them, or all in one array."""
    layers = range(n_layer)
    if kind == "attentions":
        names = [f"h{layer}/attn/probs" for layer in layers]
    else:
        names = ["embedding", *(f"h{layer}/out" for layer in layers[:-1]), "ln_f"]
    if number:
        return [Item(name, source, same) for name in names[int(number) : int(number) + 1]]
    return [Item(name, source, functools.partial(nth, i, len(names), source)) for i, name in enumerate(names)]


def hooked(source: str, layer: int, hook: str, text: Text) -> list[Item]:
    """Return the item of a hook in a layer, or none if we have no such value."""
    take: Take = same
    if hook == "hook_resid_pre":
        return [Item(f"h{layer - 1}/out" if layer else "embedding", source, same)]
    if hook in NORMS:
        take = functools.partial(scaled, **text.params["blocks"][layer]["ln_1" if hook.startswith("ln1") else "ln_2"])
    elif hook in HEADS:
        take = swapped
    name = (HOOKS | HEADS | NORMS).get(hook)
    return [Item(f"h{layer}/{name}", source, take)] if name else []


def same(array: Array) -> Array:
    return array


def nth(i: int, n: int, source: str, array: Array) -> Array:
    """Return the i-th of n arrays in one. Raises UsageError if there are not n."""
    if array.ndim == 0 or len(array) != n:
        raise UsageError(f"{source} is {list(array.shape)}, but its first axis must be {n} long: the model's layers")
    return np.asarray(array[i])


def scaled(array: Array, g: Any, b: Any) -> Array:
    """Apply a layer norm's gain and bias, unless the rows have them already, so that their mean is not 0.

    TransformerLens's LayerNorm calls its hook before or after both, depending on its version. An array of a wrong shape
    is left as it is, to be refused later.
    """
    is_bare = array.shape[-1:] == g.shape and np.abs(array.mean(axis=-1)).max() <= 1e-4 * np.abs(array).max()
    return array * g + b if is_bare else array


def plus(other: Array, array: Array) -> Array:
    """Add the other half of the embedding. An array of a wrong shape is left as it is, to be refused later."""
    return array + other if array.shape[-2:] == other.shape[-2:] else array


def swapped(array: Array) -> Array:
    """Turn [n_seq, n_head, d_head] into [n_head, n_seq, d_head]."""
    return array.swapaxes(-2, -3) if array.ndim > 2 else array


class DebugState:
    """llm.c's debug_state.bin, with the interface of np.load's result.

    A header of 256 int32: 20240327, the version, the batch size B and the length T. Then the ids and the targets, int32
    [B, T] each, the logits, float32 [B, T, n_vocab], their mean loss, one float32, and the gradients, which are not
    read. All are little-endian. Source: write_state in llm.c's train_gpt2.py.
    """

    MAGIC = 20240327
    HEADER = 1024  # bytes
    files: Sequence[str] = ("inputs", "targets", "logits", "loss")

    def __init__(self, path: Path):
        """Open a file that begins with MAGIC. Raises UsageError if it ends within the header or the ids."""
        self.path = path
        header = np.fromfile(path, "<i4", 4)
        self.shape = tuple(int(n) for n in header[2:])
        self.n_ids = int(np.prod(self.shape, dtype=np.int64)) if len(self.shape) == 2 else 0
        if min(self.shape, default=0) < 0 or not 0 < self.n_ids <= (path.stat().st_size - self.HEADER) // 8:
            raise UsageError(f"{path} is no complete debug_state.bin: its batch is {list(self.shape)}")

    def fit(self, params: Params) -> None:
        """Set the size of the vocabulary. Raises UsageError unless the file's size is that of this model's state."""
        self.n_vocab, n_embd = params["wte"].shape
        n_params = sum(array.size for _, array in arrays_of(params))
        padded = n_params + -self.n_vocab % 128 * n_embd  # version 2 pads the vocabulary of the gradients
        before = self.HEADER + 4 * (2 * self.n_ids + self.n_ids * self.n_vocab + 1)
        sizes = {before + 4 * n for n in (n_params, padded)}
        if (size := self.path.stat().st_size) not in sizes:
            raise UsageError(
                f"{self.path} has {size:,} bytes, but for this model and {list(self.shape)} ids a debug_state.bin has "
                f"{max(sizes):,}: it is of another model, or not complete"
            )

    def __getitem__(self, name: str) -> Array:
        if name in ("inputs", "targets"):
            start = self.HEADER + (4 * self.n_ids if name == "targets" else 0)
            return np.fromfile(self.path, "<i4", self.n_ids, offset=start).reshape(self.shape)
        start, n_logits = self.HEADER + 8 * self.n_ids, self.n_ids * self.n_vocab
        if name == "loss":
            return np.fromfile(self.path, "<f4", 1, offset=start + 4 * n_logits)
        return np.memmap(self.path, "<f4", "r", start, (*self.shape, self.n_vocab))

    def __enter__(self) -> DebugState:
        return self

    def __exit__(self, *error: object) -> None:
        """There is nothing to close: each read opens the file."""
