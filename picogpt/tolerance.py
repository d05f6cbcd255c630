"""How far two implementations of the same formula may differ: the limits of `compare`, and its measure.

`trace` uses the measure, too, with limits of its own.

Rounding errors are smaller than the tolerance: at most 5e-14 in float64 and 3e-5 in float32 were measured, relative to
the largest number of a result. A wrong formula exceeds it by far on one of the inputs, at least in float64.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

Array = np.ndarray[Any, np.dtype[Any]]

TOLERANCE = {"float32": 1e-4, "float64": 1e-12}


def difference(ours: Array, theirs: Array) -> tuple[float, float]:
    """Return the largest absolute difference, and that difference divided by the largest number in theirs.

    NaN and infinity count as infinitely different. The relative difference ignores errors up to the smallest normal
    number, because a library may round the denormal numbers below it to 0, as TensorFlow does. Raises ValueError if
    shapes or dtypes differ.
    """
    if ours.shape != theirs.shape or ours.dtype != theirs.dtype:
        raise ValueError(f"{ours.dtype} {list(ours.shape)} instead of {theirs.dtype} {list(theirs.shape)}")
    smallest = float(np.finfo(ours.dtype).smallest_normal)
    with np.errstate(invalid="ignore", over="ignore"):
        absolute = float(np.abs(ours.astype(np.float64) - theirs.astype(np.float64)).max(initial=0))
    if not math.isfinite(absolute):
        return math.inf, math.inf
    return absolute, max(absolute - smallest, 0) / max(float(np.abs(theirs).max(initial=0)), smallest)
