"""One thread of BLAS for small models, whose products are too short to be shared between the cores.

On a busy machine, threads that wait for each other take many times the processor time of the work itself. OpenBLAS
reads the number of its threads when NumPy is imported, so this module looks at the sizes of files only.
"""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from pathlib import Path

SMALL = 30_000_000  # bytes of weights, up to which one thread is at least as fast: docs/speed.md has the measurement


def one_thread_for_small_models(argv: Sequence[str]) -> None:
    """Tell OpenBLAS to use one thread if the command line names a small model. The user's own number stays."""
    models = ["models", *values_of(argv, r"--models[_-]dir[=\0]")][-1]
    for name in values_of(argv, r"--model(?:[_-]size)?[=\0]|-m[=\0]?")[-1:]:
        if all(is_small(models, model) for model in name.split(",")):
            os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")


def values_of(argv: Sequence[str], option: str) -> list[str]:
    """Return the values of an option. `option` is a regular expression of what is before them, up to = or a space."""
    return re.findall(rf"\0(?:{option})([^\0]*)", "\0".join(argv))


def is_small(models_dir: str, model: str) -> bool:
    """Return whether a model is there, and has weights of at most SMALL bytes."""
    places = [place / folder for place in (Path(), Path(__file__).parent.parent) for folder in (models_dir, "")]
    return 0 < next(filter(None, (weights_size(place / model) for place in places if model)), 0) <= SMALL


def weights_size(folder: Path) -> int:
    """Return the size of the weights in a folder in bytes, or 0 if there are none."""
    return sum(path.stat().st_size for ending in ("*.data-*", "*.safetensors") for path in folder.glob(ending))
