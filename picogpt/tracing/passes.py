"""The forward passes that `trace` records: their order, their shapes, and running them."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple, cast, overload

import numpy as np

import gpt2
from picogpt.command_line import UsageError
from picogpt.tracing.names import meanings, shape_of
from picogpt.tracing.recorder import trace

if TYPE_CHECKING:
    from picogpt.typing.shapes import Params

Array = np.ndarray[Any, np.dtype[Any]]


class Pass(NamedTuple):
    """A forward pass over n_seq ids, after n_past others. Its values have names that begin with the prefix."""

    prefix: str
    n_past: int
    n_seq: int


def plan(n_prompt: int, n_past: int, n_decode: int) -> list[Pass]:
    """Return the passes to record: over the first n_past ids, over the rest of the prompt, and over each new id."""
    past = [Pass("past/", 0, n_past)] if n_past else []
    steps = [Pass(f"step{step + 1}/", n_prompt + step, 1) for step in range(n_decode)]
    return [*past, Pass("", n_past, n_prompt - n_past), *steps]


def check_lengths(n_prompt: int, n_past: int, n_decode: int, n_ctx: int) -> None:
    """Raise UsageError if the prompt is too short for n_past, or the context for all decoding steps."""
    if n_past >= n_prompt:
        raise UsageError(f"--n_past {n_past} leaves no id of the prompt to trace: it has {n_prompt}")
    if n_prompt + n_decode > n_ctx:
        raise UsageError(f"{n_prompt} ids and {n_decode} decoding steps, but the model's context is n_ctx = {n_ctx}")


def shapes_of(passes: Sequence[Pass], hparams: Mapping[str, int]) -> dict[str, tuple[int, ...]]:
    """Return the names and shapes of all values, in the order of computation."""
    sizes = {**hparams, "d_head": hparams["n_embd"] // hparams["n_head"]}
    return {
        one.prefix + name: shape_of(name, sizes | {"n_seq": one.n_seq, "n_past": one.n_past, "n_logits": one.n_seq})
        for one in passes
        for name in meanings(hparams["n_layer"])
    }


def memory_of(passes: Sequence[Pass], hparams: Mapping[str, int], itemsize: int) -> int:
    """Return how many bytes the values take at most. A pass is kept until the next one has ended."""
    sizes = [itemsize * sum(map(math.prod, shapes_of([one], hparams).values())) for one in passes]
    return max(a + b for a, b in zip([0, *sizes], sizes))


class Runner:
    """Runs passes one after another. Several share a cache. A single one has none, as when a model reads a text."""

    def __init__(self, params: Params, n_head: int, passes: Sequence[Pass]):
        self.params, self.n_head, last = params, n_head, passes[-1]
        n_ctx = last.n_past + last.n_seq
        self.cache = gpt2.empty_cache(params, n_head, n_ctx) if len(passes) > 1 else None

    def run(self, one: Pass, ids: Any) -> dict[str, Array]:
        """Run a pass over its ids, and return the names and values of all that it computes."""
        with trace() as t:
            gpt2.gpt2(ids, **self.params, n_head=self.n_head, cache=self.cache, n_past=one.n_past)
        return {one.prefix + name: value for name, value in t.items()}


def recorded(ids: Any, params: Params, n_head: int, passes: Sequence[Pass]) -> Iterator[dict[str, Array]]:
    """Run the passes, and yield the names and values of each. The ids after the prompt are the likeliest ones.

    The ids may have a batch axis if there is one pass.
    """
    ids, last, runner = np.asarray(ids), passes[-1], Runner(params, n_head, passes)
    for one in passes:
        end = one.n_past + one.n_seq
        values = runner.run(one, ids[..., one.n_past : end])
        if end == ids.shape[-1] < last.n_past + last.n_seq:
            new = gpt2.greedy(gpt2.check_finite(values[f"{one.prefix}logits"][-1]), ids.tolist())
            ids = np.append(ids, new)
        yield values


class Blocks(Sequence[Any]):
    """The parameters of all layers, each of which is converted when it is read: a large model fits only once."""

    def __init__(self, blocks: Sequence[Any], convert: Callable[[Array], Array]):
        self.blocks, self.convert = blocks, convert

    def __len__(self) -> int:
        return len(self.blocks)

    @overload
    def __getitem__(self, index: int) -> Any: ...

    @overload
    def __getitem__(self, index: slice) -> Blocks: ...

    def __getitem__(self, index: int | slice) -> Any:
        if isinstance(index, slice):
            return Blocks(self.blocks[index], self.convert)
        return converted(self.blocks[index], self.convert)


def converted(params: Any, convert: Callable[[Array], Array]) -> Params:
    """Return the parameters, or a part of them, with each array converted: those of the layers only while in use."""
    if not isinstance(params, Mapping):
        return cast("Params", convert(params))
    parts = {name: value for name, value in params.items() if name != "blocks"}
    blocks = {"blocks": Blocks(params["blocks"], convert)} if "blocks" in params else {}
    return cast("Params", {name: converted(value, convert) for name, value in parts.items()} | blocks)
