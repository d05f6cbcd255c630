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
    models = ["models", *values_of(argv, "--models_dir")][-1]
    for name in values_of(argv, "-m|--model|--model_size"):
        if all(n_bytes(models, model) <= SMALL for model in name.split(",")):
            os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")


def values_of(argv: Sequence[str], names: str) -> list[str]:
    """Return the values of an option: those of --model tiny and --model=tiny."""
    words = "\0".join(argv)
    return re.findall(rf"(?:^|\0)(?:{names})[=\0]([^\0]*)", words)


def n_bytes(models_dir: str, model: str) -> float:
    """Return the size of a model's weights, or infinity if there is no such model."""
    for place in (Path(), Path(__file__).parent.parent):
        for folder in (place / models_dir / model, place / model):
            files = [*folder.glob("*.data-*"), *folder.glob("*.safetensors")] if model else []
            if files:
                return sum(path.stat().st_size for path in files)
    return float("inf")
