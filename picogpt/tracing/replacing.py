"""Which functions replace which values of a forward pass: the names that `trace` is given, looked up in the model."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from fnmatch import fnmatchcase
from typing import Any

import numpy as np

from picogpt.tracing.names import meanings

Array = np.ndarray[Any, np.dtype[Any]]
Change = Callable[..., Array]  # takes (value) or (value, name)


def resolved(replace: Mapping[str, Change], n_layer: int) -> dict[str, list[Change]]:
    """Return the replacements of each name. Raises ValueError if one fits no name, or a sum, which can't be replaced.

    A pattern such as "h*/attn/heads" stands for all names that it fits, but never for a sum. Raises TypeError if a
    replacement is not a function.
    """
    names = list(meanings(n_layer))
    changes: dict[str, list[Change]] = {}
    for pattern, change in replace.items():
        if not callable(change):
            raise TypeError(f"the replacement of {pattern!r} is not a function")
        found = [name for name in names if fnmatchcase(name, pattern)]
        if not found:
            raise ValueError(f"nothing to replace is called {pattern!r}; with {n_layer} layers: {', '.join(names)}")
        replaceable = [name for name in found if not name.endswith("/mid")]
        if not replaceable:  # it is computed within transformer_block, and no function returns it
            raise ValueError(f"{pattern} can't be replaced, it is a sum: replace {pattern[:-3]}attn/c_proj")
        for name in replaceable:
            changes.setdefault(name, []).append(change)
    return changes


def replacement(change: Change, name: str, value: Array) -> Array:
    """Return what a function makes of a copy of a value. Raises ValueError if that is None, or has another type."""
    copy = value.copy(order="K")
    result = change(copy, name) if takes_name(change) else change(copy)
    if result is None:
        raise ValueError(f"{name}: its replacement is None: the function must return an array")
    new = np.asarray(result)
    if new.shape != value.shape or new.dtype != value.dtype:
        raise ValueError(
            f"{name} is {value.dtype} {list(value.shape)}, but its replacement {new.dtype} {list(new.shape)}"
        )
    return new


def takes_name(change: Change) -> bool:
    """Return whether a replacement takes (value, name): whether it has two parameters without defaults."""
    try:
        parameters = inspect.signature(change).parameters.values()
    except ValueError:  # some functions that are written in C don't tell
        return False
    kinds = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    return sum(p.default is p.empty and p.kind in kinds for p in parameters) == 2
