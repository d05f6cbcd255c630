"""Check a function that a reader wrote in the place of one of gpt2.py's: the exercises of the walkthrough use this."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any
from unittest import mock

import numpy as np

import gpt2
from picogpt.tracing.against import HIDDEN
from picogpt.tracing.names import meaning
from picogpt.tracing.recorder import Trace, trace

if TYPE_CHECKING:
    from picogpt.typing.shapes import Params

Array = np.ndarray[Any, np.dtype[Any]]

TOLERANCE = 1e-4  # relative to an array's largest number, which rounding in float32 stays far below


def check(name: str, yours: Callable[..., Any], ids: Sequence[int], params: Params, n_head: int) -> str:
    """Run the model as it is, and with your function in the place of the one called `name`. Say which array differs.

    Of all arrays that pass between the functions of gpt2.py, the answer names the first that is not the same up to
    rounding. Raises AttributeError if gpt2.py has no such function, and what your function raises.
    """
    with trace() as expected:
        gpt2.gpt2(ids, **params, n_head=n_head)
    error = None
    with mock.patch.object(gpt2, name, yours), trace() as found, np.errstate(all="ignore"):
        try:
            gpt2.gpt2(ids, **params, n_head=n_head)
        except Exception as raised:  # an array of a wrong shape, which was recorded, explains it better
            error = raised
    for array in found:
        if answer := compared(array, found, expected):
            return answer
    if error is not None:
        raise error
    return f"All {len(expected)} arrays of the model are the same with your {name}."


def compared(name: str, found: Trace, expected: Trace) -> str | None:
    """Return how an array differs from the expected one, or None if it is the same up to rounding."""
    value, right = np.asarray(found[name]), expected[name]
    begin = f"The first array that differs is {name}:\n{meaning(name)}"
    if value.shape != right.shape or value.dtype != right.dtype:
        kind = "None" if value.dtype == object else f"{value.dtype} {list(value.shape)}"
        return f"{begin}\nYours is {kind} instead of {right.dtype} {list(right.shape)}."
    with np.errstate(invalid="ignore"):
        same = (value == right) | (np.isneginf(right) & (value < HIDDEN))
        distance = np.nan_to_num(np.where(same, 0, np.abs(value - right)), nan=np.inf)
    if distance.max() <= TOLERANCE * np.abs(right[np.isfinite(right)]).max():
        return None
    place = tuple(int(i) for i in np.unravel_index(distance.argmax(), distance.shape))
    at = f"At {list(place)}, yours is {value[place]:.4g} instead of {right[place]:.4g}."
    return f"{begin}\n{at}"
