"""Another implementation's file for `trace --against`: what it holds, and whether that can be compared."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

import gpt2
from picogpt.command_line import UsageError
from picogpt.scoring.reading import at, json_object
from picogpt.tracing.formats import SAME, DebugState, Item, Text, items_of, same
from picogpt.tracing.names import TABLES, meaning

Array = np.ndarray[Any, np.dtype[Any]]


class Dump:
    """Another implementation's file. Its arrays are read one at a time, and nothing in it is unpickled."""

    def __init__(self, path: Path, file: Any):
        self.path, self.file = path, file
        self.names = [name for name in file.files if name not in TABLES and not name.endswith("/")]  # no folders
        self.array = functools.lru_cache(2)(self.read)  # hidden_states and attentions hold the arrays of all layers

    def read(self, name: str) -> Array:
        """Return an array. Raises UsageError if it can't be read."""
        try:
            array = self.file[name]
        except Exception as error:  # NumPy, zipfile, the decompressors and tokenize have a dozen types between them
            reason = "it holds pickled objects" if "allow_pickle" in str(error) else " ".join(str(error).split())
            raise UsageError(f"{self.path}: {name} can't be read: {reason}") from None
        if not isinstance(array, np.ndarray):
            raise UsageError(f"{self.path}: {name} is not an array in NPY format")
        return array.astype(array.dtype.newbyteorder("="), copy=False)  # Java writes the other byte order

    @functools.cached_property
    def about(self) -> dict[str, Any]:
        """What contents.json says about the file, or {} if it has no such text. Raises UsageError if it is damaged."""
        if "contents.json" not in self.file.files:
            return {}
        with at(f"{self.path}: contents.json"):
            return json_object(self.array("contents.json").tobytes())

    def ids(self) -> Array | None:
        """Return the prompt's ids, perhaps with a batch axis, or None if the file does not say."""
        if isinstance(ids := self.about.get("ids"), list):
            with contextlib.suppress(ValueError):
                return np.array(ids)
        name = next((name for name in ("inputs", *SAME) if name in self.names and SAME.get(name) != "ln_f"), None)
        if not name:
            return None
        arrays = [self.array(one) for one in ("past/inputs", name) if one in self.names]
        if any(array.ndim not in (1, 2) or array.dtype.kind not in "iu" for array in arrays):
            return None
        with contextlib.suppress(ValueError):
            ids = np.concatenate(arrays, axis=-1)
            return ids[0] if ids.ndim == 2 and len(ids) == 1 else ids
        return None

    def text_ids(self, params: Any) -> Array:
        """Return the file's ids, as the text to trace. Raises UsageError if there are none, or if they are wrong."""
        ids = self.ids()
        if ids is None or ids.size == 0 or ids.dtype.kind not in "iu":
            raise UsageError(f"{self.path} does not say its ids: give the PROMPT")
        for row in np.atleast_2d(ids).tolist():
            with at(str(self.path)):
                gpt2.checked_ids(row, params, 0)
        return ids

    def checked_items(self, shapes: Mapping[str, tuple[int, ...]], text: Text) -> list[Item]:
        """Return what the file has of our values and of the loss, each in our layout.

        Raises UsageError unless it has some, all of them with the right shape and type of numbers.
        """
        if "past/inputs" in self.names and "past/inputs" not in shapes:
            length = self.array("past/inputs").size
            raise UsageError(f"{self.path} was made with --n_past {length}: give it here, too")
        if isinstance(self.file, DebugState):
            self.file.fit(text.params)
        found = []
        for name in self.names:
            is_ours = name in shapes or (name == "loss" and text.ids.shape[-1] > 1)
            found += [Item(name, name, same)] if is_ours else items_of(name, text)
        for item in found:
            self.value(item, shapes.get(item.name, ()))
        if all(meaning(item.name) == meaning("inputs") for item in found):  # ids alone prove nothing
            raise UsageError(
                f"{self.path} has no value of this trace, such as {list(shapes)[-1]}: it has {listed(self.names)}"
            )
        return found

    def value(self, item: Item, shape: tuple[int, ...]) -> Array:
        """Return one of our values as the file has it. Raises UsageError if it has another shape or type of numbers."""
        array = self.array(item.source)
        with at(str(self.path)):
            array = item.take(array)
        is_ids = meaning(item.name) == meaning("inputs")
        fits = array.dtype.kind in "iu" if is_ids else array.dtype in (np.float32, np.float64)
        if array.shape not in (shape, (1, *shape)) or not fits:
            kind, is_hook = "of integers" if is_ids else "float32 or float64", "hook_" in item.source
            advice = " (TransformerLens puts <|endoftext|> before a text unless prepend_bos=False)" if is_hook else ""
            raise UsageError(
                f"{self.path}: {item.source} is {array.dtype} {list(array.shape)}, but must be {kind} "
                f"{list(shape)}{advice}"
            )
        return array.reshape(shape)

    def targets(self, ids: Array, n_vocab: int) -> Array:
        """Return the ids that the file's loss is about: its array `targets`, or each next id, as in transformers.

        Raises UsageError if they are wrong.
        """
        if "targets" not in self.names:
            return ids[..., 1:]
        targets = self.array("targets")
        targets = targets[0] if targets.shape == (1, *ids.shape) else targets
        if targets.shape != ids.shape or targets.dtype.kind not in "iu":
            found, shape = f"targets is {targets.dtype} {list(targets.shape)}", list(ids.shape)
            raise UsageError(f"{self.path}: {found}, but must be of integers {shape}")
        if not 0 <= targets.min() <= targets.max() < n_vocab:
            raise UsageError(f"{self.path}: targets has ids outside 0 to {n_vocab - 1}")
        return targets


@contextlib.contextmanager
def opened(path: Path) -> Iterator[Dump]:
    """Open another implementation's file. Raises OSError, or UsageError if it is neither NPZ nor a debug_state.bin."""
    if path.is_file() and np.fromfile(path, "<i4", 1).tolist() == [DebugState.MAGIC]:
        yield Dump(path, DebugState(path))
        return
    try:
        file = np.load(path, allow_pickle=False)
    except OSError:
        raise
    except Exception:  # see Dump.read
        file = None
    if not isinstance(file, np.lib.npyio.NpzFile):
        raise UsageError(f"{path} is not an NPZ file, a zip file of arrays as np.savez writes it")
    with file:
        yield Dump(path, file)


def other_text(dump: Dump, model: str, prompt: str | None, ids: Sequence[int]) -> tuple[list[str], bool]:
    """Return lines that tell how the dump's model, prompt and ids differ, and whether the ids do.

    Without a prompt, the dump's own ids are compared.
    """
    lines = []
    if dump.about.get("model", model) != model:
        lines.append(f"another model: ours {model!r}, theirs {dump.about['model']!r}")
    if prompt is None:
        return lines, False
    if isinstance(theirs := dump.about.get("prompt"), str) and theirs != prompt:
        start = gpt2.n_shared(prompt, theirs)  # type: ignore[arg-type]  # it takes any sequences
        pieces = [repr(text[start : start + 20]) for text in (prompt, theirs)]
        lines.append(f"another prompt: from character {start} on, ours {pieces[0]}, theirs {pieces[1]}")
    found = dump.ids()
    if found is None or np.array_equal(found, ids):
        return lines, False
    if found.ndim == 2:
        return [*lines, f"other ids: {len(found)} texts there, but one PROMPT: leave it out to read all"], True
    other_ids = found.tolist()
    start = gpt2.n_shared(ids, other_ids)
    pieces = [str(side[start]) if start < len(side) else f"none after {start} ids" for side in (ids, other_ids)]
    return [*lines, f"other ids: at position {start}, ours {pieces[0]}, theirs {pieces[1]}"], True


def listed(names: Sequence[str], n: int = 8) -> str:
    """Return the first n names as one text, and how many more there are."""
    more = f" and {len(names) - n} more" if len(names) > n else ""
    return ", ".join(names[:n]) + more if names else "no arrays"
