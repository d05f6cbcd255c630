"""Compare traced values with another implementation's, each within a multiple of its own rounding.

Our forward pass runs in float64 and several times in float32 on the same ids. The largest distance is the rounding of
each value: what float32 leaves uncertain there. A port that is right rounds about as much, in another way. A wrong one
is further away from the float64 pass. docs/trace.md tells how MULTIPLE was chosen.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple, cast

import numpy as np

from picogpt.tolerance import difference
from picogpt.tracing.dump import Dump, listed
from picogpt.tracing.formats import Item, Text
from picogpt.tracing.names import meaning, shortened
from picogpt.tracing.passes import Pass, Runner, converted

if TYPE_CHECKING:
    from picogpt.typing.shapes import Params

Array = np.ndarray[Any, np.dtype[Any]]

MULTIPLE = 10  # a value may be this many times its own rounding away from the float64 pass
FLOOR = 2 * float(np.finfo(np.float32).eps)  # the least rounding that is assumed: by chance, it may be 0
N_NUDGED = 2  # more float32 passes, since the rounding of a value with few numbers may be small by chance
HIDDEN = -1000.0  # exp of a score below this is 0, so any such number masks as well as -inf does


class Difference(NamedTuple):
    """How far a value is from our float64 pass. `relative` and `rounding` are divided by its largest number there."""

    name: str
    source: str  # its name in the file
    relative: float
    rounding: float  # of the dtype in the file; 0 for ids, which must be equal
    place: tuple[int, ...]  # where the difference is largest
    ours: float
    theirs: float

    @property
    def times(self) -> float:
        """The difference in units of the rounding."""
        return self.relative / self.rounding if self.rounding else math.inf if self.relative else 0.0

    @property
    def differs(self) -> bool:
        """Whether this can't be rounding. What is not finite always differs."""
        return not (math.isfinite(self.rounding) and self.relative <= MULTIPLE * self.rounding)

    def lines(self) -> list[str]:
        """Describe the difference."""
        there = f" ({self.source} there)" if self.source != self.name else ""
        limit = "rounding can't explain it" if self.rounding else "ids must be equal"
        if math.isfinite(self.times):
            limit = f"{self.times:.3g} times its rounding, {self.rounding:.2g}; the limit is {MULTIPLE} times"
        sides = f"ours {self.ours:.9g}, theirs {self.theirs:.9g}, {abs(self.ours - self.theirs):.2g} apart"
        return [
            f"the first value that differs: {self.name}{there}, {meaning(self.name)}",
            f"  relative difference {self.relative:.2g}: {limit}",
            f"  largest at {list(self.place)}: {sides}",
        ]


def rounding_of(precise: Array, singles: Iterable[Array]) -> float:
    """Return how far float32 passes are from our float64 pass at most, divided by the largest number there.

    It is 0 for ids.
    """
    if precise.dtype.kind != "f":
        return 0.0
    masked = np.isneginf(precise)
    ours, *others = (np.where(masked, 0, array.astype(np.float64)) for array in (precise, *singles))
    return max(FLOOR, *(difference(other, ours)[1] for other in others))


def nudged(params: Params, seed: int) -> Params:
    """Return the parameters with embeddings that differ in their last bits, which changes all roundings on the way."""
    rng, parts = np.random.default_rng(seed), {}
    for name in ("wte", "wpe"):
        array = np.asarray(params[name], np.float32)
        up = rng.integers(0, 2, array.shape, np.int8).astype(bool)
        parts[name] = np.nextafter(array, np.where(up, np.float32(np.inf), np.float32(-np.inf)))
    return cast("Params", {**params, **parts})


def is_single(values: Array) -> bool:
    """Return whether all of these numbers are float32, which lists and JSON files hold as float64."""
    with np.errstate(over="ignore", invalid="ignore"):
        return np.array_equal(values.astype(np.float32), values, equal_nan=True)


def measured(item: Item, theirs: Array, precise: Array, rounding: float) -> Difference:
    """Return how far a value is from our float64 pass (`precise`), beside what rounding does to it in float32.

    Ids must be equal. A masked score counts as -inf.
    """
    a, b = precise.astype(np.float64), theirs.astype(np.float64)
    if precise.dtype.kind == "f":
        if not is_single(theirs):
            rounding *= float(np.finfo(np.float64).eps / np.finfo(np.float32).eps)
        if item.name.endswith("attn/scores"):
            hidden = np.isneginf(a) & (b < HIDDEN)
            a, b = np.where(hidden, 0, a), np.where(hidden, 0, b)
    with np.errstate(invalid="ignore", over="ignore"):
        distance = np.nan_to_num(np.abs(a - b), nan=np.inf, posinf=np.inf)
    place = tuple(int(i) for i in np.unravel_index(distance.argmax(), distance.shape))
    numbers = precise[place].item(), theirs[place].item()
    return Difference(item.name, item.source, difference(b, a)[1], rounding, place, *numbers)


def advice(item: Item, theirs: Array, ours: Array) -> list[str]:
    """Say what TransformerLens does to weights, if this is a value of its own or looks like that."""
    is_centred = [bool(np.abs(x.mean(axis=-1)).max() <= 1e-5 * np.abs(x).max()) for x in (theirs, ours) if x.ndim > 1]
    if theirs.dtype == np.float64 and np.allclose(theirs, ours, rtol=0, atol=1e-6 * np.abs(ours).max()):
        return ["  only float32's rounding apart: if the port computes in float32, save its numbers as float32"]
    seen = "each row there has mean 0, but not ours: " if is_centred == [True, False] else ""
    if not (seen or "hook_" in item.source):
        return []
    return [
        f"  {seen}TransformerLens changes the weights, unless HookedTransformer.from_pretrained_no_processing is used"
    ]


def mean_loss(logits: Array, targets: Array) -> Array:
    """Return the mean cross-entropy of the targets [..., n], in nats, from logits [..., n or more, n_vocab]."""
    rows = logits[..., : targets.shape[-1], :]
    rows = rows - rows.max(axis=-1, keepdims=True)
    chosen = np.take_along_axis(rows, targets[..., None], axis=-1)[..., 0]
    return np.asarray((np.log(np.exp(rows).sum(axis=-1)) - chosen).mean())


class Comparison:
    """A comparison of passes with a dump, one pass after another. `first` is the first value that differs, if any."""

    def __init__(
        self, dump: Dump, shapes: Mapping[str, tuple[int, ...]], text: Text, n_head: int, passes: Sequence[Pass]
    ):
        """Raises UsageError if the dump's values can't be compared."""
        self.arguments = dump, shapes, text, n_head, passes
        self.dump, self.shapes, self.text, self.names = dump, shapes, text, list(shapes)
        self.items: dict[str, list[Item]] = {}
        for item in dump.checked_items(shapes, text):
            self.items.setdefault(item.name, []).append(item)
        self.targets = dump.targets(text.ids, len(text.params["wte"])) if "loss" in self.items else None
        double, single = (
            converted(text.params, functools.partial(np.asarray, dtype=dtype)) for dtype in (np.float64, np.float32)
        )
        self.double, self.single = Runner(double, n_head, passes), Runner(single, n_head, passes)
        self.nudged = [Runner(nudged(single, seed), n_head, passes) for seed in range(N_NUDGED)]
        self.runs: list[tuple[Pass, Array]] = []  # the passes so far, with their ids
        self.compared: list[Difference] = []
        self.first: Difference | None = None
        self.advice: list[str] = []
        self.weights = ""  # says in the report how our weights were changed

    def add(self, one: Pass, values: Mapping[str, Array]) -> None:
        """Compare the values of a pass that the dump has. NaN differs from every number."""
        self.runs.append((one, values[f"{one.prefix}inputs"]))
        precise = self.double.run(*self.runs[-1])
        single = dict(values) if values[f"{one.prefix}logits"].dtype == np.float32 else self.single.run(*self.runs[-1])
        singles = [single, *(runner.run(*self.runs[-1]) for runner in self.nudged)]
        if not one.prefix and self.targets is not None:
            for found in (precise, *singles):
                found["loss"] = mean_loss(found["logits"], self.targets)
        for name, ours in precise.items():
            rounding = rounding_of(ours, [found[name] for found in singles])
            for item in self.items.get(name, ()):
                theirs = self.dump.value(item, ours.shape)
                self.compared.append(measured(item, theirs, ours, rounding))
                if self.first is None and self.compared[-1].differs:
                    self.first, self.advice = self.compared[-1], advice(item, theirs, ours)

    def best(self) -> Comparison:
        """Return this comparison, or one with our weights rounded to float16 if the port agrees further with that."""
        if self.first is None:
            return self
        dump, shapes, text, n_head, passes = self.arguments
        rounded = text._replace(params=converted(text.params, to_float16))
        other = Comparison(dump, shapes, rounded, n_head, passes)
        other.weights = " (with our weights rounded to float16, as the port's seem to be)"
        with np.errstate(all="ignore"):  # a large weight may become infinite
            for one, ids in self.runs:
                other.add(one, other.single.run(one, ids))
        order = [found.name for found in self.compared]
        further = other.first is None or order.index(other.first.name) > order.index(self.first.name)
        return other if further else self

    def lines(self) -> list[str]:
        """Return the report: what was compared, what was not, and the first value that differs."""
        there = {found.name for found in self.compared} - {"loss"}
        lines = [f"{len(there)} of {len(self.names)} values compared with {self.dump.path}{self.weights}"]
        if missing := [name for name in self.names if name not in there]:
            lines.append(f"missing there: {', '.join(shortened(missing, self.names))}")
        known = {item.source for items in self.items.values() for item in items}
        if unknown := [name for name in self.dump.names if name not in known and name != "targets"]:
            lines.append(f"not in this trace: {listed(shortened(unknown, self.dump.names))}")
        if self.first is None:
            worst = max(self.compared, key=lambda found: found.times)
            furthest = f"the furthest is {worst.name}, {worst.times:.2g} times its rounding in float32"
            return [*lines, f"all agree: {furthest} (the limit is {MULTIPLE} times)"]
        n_wrong = len({found.name for found in self.compared if found.differs})
        total = f"{n_wrong} of {len({found.name for found in self.compared})} values differ"
        return [
            *lines,
            *self.first.lines(),
            *self.unseen(self.first),
            *self.advice,
            f"{total}; docs/porting.md lists usual causes by the first of them",
        ]

    def unseen(self, first: Difference) -> list[str]:
        """Return a line about the values that the file lacks between the last one that agrees and the first wrong."""
        there = {found.name for found in self.compared}
        end = self.names.index(first.name) if first.name in self.names else len(self.names)
        start = max((i + 1 for i in range(end) if self.names[i] in there), default=0)
        if start == end:
            return []
        since = f"after {self.names[start - 1]}, which agrees" if start else "before it"
        return [f"  not in the file, and perhaps wrong already: {listed(self.names[start:end])} ({since})"]


def to_float16(array: Array) -> Array:
    """Round to float16, and return the result as float32."""
    return np.asarray(array).astype(np.float16).astype(np.float32)
