"""Compare traced values with those that another implementation has written to an NPZ file under the same names."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

import gpt2
from picogpt.command_line import UsageError
from picogpt.scoring.reading import at, json_object
from picogpt.tolerance import TOLERANCE, difference
from picogpt.tracing.names import TABLES, meaning, shortened

Array = np.ndarray[Any, np.dtype[Any]]

HIDDEN = -1000.0  # exp of a score below this is 0, so any such number masks as well as -inf does


class Dump:
    """Another implementation's NPZ file. Its arrays are read one at a time, and nothing in it is unpickled."""

    def __init__(self, path: Path, file: Any):
        self.path, self.file = path, file
        self.names = [name for name in file.files if name not in TABLES]

    def array(self, name: str) -> Array:
        """Return an array. Raises UsageError if it can't be read."""
        try:
            array = self.file[name]
        except Exception as error:  # NumPy, zipfile, the decompressors and tokenize have a dozen types between them
            reason = "it holds pickled objects" if "allow_pickle" in str(error) else " ".join(str(error).split())
            raise UsageError(f"{self.path}: {name} can't be read: {reason}") from None
        if not isinstance(array, np.ndarray):
            raise UsageError(f"{self.path}: {name} is not an array in NPY format")
        return array

    @functools.cached_property
    def about(self) -> dict[str, Any]:
        """What contents.json says about the file, or {} if it has no such text. Raises UsageError if it is damaged."""
        if "contents.json" not in self.file.files:
            return {}
        with at(f"{self.path}: contents.json"):
            return json_object(self.array("contents.json").tobytes())

    def ids(self) -> list[Any] | None:
        """Return the prompt's ids, or None if the file does not say."""
        if isinstance(ids := self.about.get("ids"), list):
            return ids
        inputs = [self.array(name) for name in ("past/inputs", "inputs") if name in self.names]
        if "inputs" not in self.names or any(array.ndim != 1 for array in inputs):
            return None
        return [id for array in inputs for id in array.tolist()]

    def check(self, shapes: Mapping[str, tuple[int, ...]], dtype: np.dtype[Any]) -> None:
        """Raise UsageError unless the file has some of these values, all of them with the right shape and dtype."""
        if "past/inputs" in self.names and "past/inputs" not in shapes:
            length = self.array("past/inputs").size
            raise UsageError(f"{self.path} was made with --n_past {length}: give it here, too")
        if not set(shapes) & set(self.names):
            raise UsageError(
                f"{self.path} has no value of this trace, such as {list(shapes)[-1]}: it has {listed(self.names)}"
            )
        for name in (name for name in shapes if name in self.names):
            array, is_ids = self.array(name), meaning(name) == meaning("inputs")
            fits = array.dtype.kind in "iu" if is_ids else array.dtype == dtype
            if array.shape != shapes[name] or not fits:
                kind = "of integers" if is_ids else dtype
                raise UsageError(
                    f"{self.path}: {name} is {array.dtype} {list(array.shape)}, but must be {kind} {list(shapes[name])}"
                )


@contextlib.contextmanager
def opened(path: Path) -> Iterator[Dump]:
    """Open another implementation's file. Raises OSError, or UsageError if it is not an NPZ file."""
    try:
        file = np.load(path, allow_pickle=False)
    except OSError:
        raise
    except Exception:  # see Dump.array
        file = None
    if not isinstance(file, np.lib.npyio.NpzFile):
        raise UsageError(f"{path} is not an NPZ file, a zip file of arrays as np.savez writes it")
    with file:
        yield Dump(path, file)


def other_text(dump: Dump, model: str, prompt: str, ids: Sequence[int]) -> tuple[list[str], bool]:
    """Return lines that tell how the dump's model, prompt and ids differ, and whether the ids do."""
    lines = []
    if dump.about.get("model", model) != model:
        lines.append(f"another model: ours {model!r}, theirs {dump.about['model']!r}")
    if isinstance(theirs := dump.about.get("prompt"), str) and theirs != prompt:
        start = gpt2.n_shared(prompt, theirs)  # type: ignore[arg-type]  # it takes any sequences
        pieces = [repr(text[start : start + 20]) for text in (prompt, theirs)]
        lines.append(f"another prompt: from character {start} on, ours {pieces[0]}, theirs {pieces[1]}")
    other_ids = dump.ids()
    if other_ids is None or other_ids == list(ids):
        return lines, False
    start = gpt2.n_shared(ids, other_ids)
    pieces = [str(side[start]) if start < len(side) else f"none after {start} ids" for side in (ids, other_ids)]
    return [*lines, f"other ids: at position {start}, ours {pieces[0]}, theirs {pieces[1]}"], True


class Difference(NamedTuple):
    """How far a value differs. `relative` is divided by the largest number in theirs, as in `compare`."""

    name: str
    absolute: float
    relative: float
    tolerance: float
    place: tuple[int, ...]  # where the difference is largest
    ours: float
    theirs: float

    def lines(self) -> list[str]:
        """Describe the difference."""
        sides = f"ours {self.ours:.9g}, theirs {self.theirs:.9g}, {self.absolute:.2g} apart"
        return [
            f"the first value that differs: {self.name}, {meaning(self.name)}",
            f"  relative difference {self.relative:.2g}, but the tolerance is {self.tolerance:g}",
            f"  largest at {list(self.place)}: {sides}",
        ]


def measured(name: str, ours: Array, theirs: Array) -> Difference:
    """Return how far two arrays of the same shape differ. Ids must be equal. A masked score counts as -inf."""
    tolerance = TOLERANCE.get(ours.dtype.name, 0.0)
    a, b = (array if array.dtype.kind == "f" else array.astype(np.float64) for array in (ours, theirs))
    if name.endswith("attn/scores"):
        masked = np.isneginf(a) & (b < HIDDEN)
        a, b = np.where(masked, 0, a), np.where(masked, 0, b)
    absolute, relative = difference(a, b)
    with np.errstate(invalid="ignore"):
        distance = np.nan_to_num(np.abs(a.astype(np.float64) - b), nan=np.inf, posinf=np.inf)
    place = tuple(int(i) for i in np.unravel_index(distance.argmax(), distance.shape))
    return Difference(name, absolute, relative, tolerance, place, ours[place].item(), theirs[place].item())


class Comparison:
    """A comparison of passes with a dump, one pass after another. `first` is the first value that differs, if any."""

    def __init__(self, dump: Dump, names: Iterable[str]):
        self.dump, self.names = dump, list(names)
        self.compared: list[Difference] = []
        self.first: Difference | None = None

    def add(self, values: Mapping[str, Array]) -> None:
        """Compare those of these values that the dump has. NaN differs from every number."""
        for name, ours in values.items():
            if name not in self.dump.names:
                continue
            found = measured(name, ours, self.dump.array(name))
            self.compared.append(found)
            if self.first is None and found.relative > found.tolerance:
                self.first = found

    def lines(self) -> list[str]:
        """Return the report: what was compared, what was not, and the first value that differs."""
        lines = [f"{len(self.compared)} of {len(self.names)} values compared with {self.dump.path}"]
        if missing := [name for name in self.names if name not in self.dump.names]:
            lines.append(f"missing there: {', '.join(shortened(missing, self.names))}")
        if unknown := [name for name in self.dump.names if name not in self.names]:
            lines.append(f"not in this trace: {listed(shortened(unknown, self.dump.names))}")
        if self.first is None:
            furthest = max(self.compared, key=lambda found: found.relative)
            limit = self.compared[-1].tolerance
            return [
                *lines,
                f"all agree: the largest relative difference is {furthest.relative:.2g}, in {furthest.name}"
                f" (tolerance {limit:g})",
            ]
        n_wrong = sum(found.relative > found.tolerance for found in self.compared)
        return [*lines, *self.first.lines(), f"{n_wrong} of {len(self.compared)} values differ"]


def listed(names: Sequence[str], n: int = 8) -> str:
    """Return the first n names as one text, and how many more there are."""
    more = f" and {len(names) - n} more" if len(names) > n else ""
    return ", ".join(names[:n]) + more if names else "no arrays"
