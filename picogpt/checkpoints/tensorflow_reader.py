"""Let TensorFlow read checkpoints that utils.py can't: of the older format V1, compressed, big-endian, or in slices."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import numpy as np

from picogpt.tensorflow_process import TensorFlowError, TensorFlowProcess

Array = np.ndarray[Any, np.dtype[Any]]


def read_by_tensorflow(prefix: Path, reason: Exception) -> dict[str, Array]:
    """Return the floating-point variables model/NAME by NAME, from a checkpoint that utils.py can't read.

    float16 and bfloat16 become float32, exactly. `reason` says why utils.py can't read it. Raises ValueError if
    TensorFlow is not installed, or can't read it either.
    """
    if importlib.util.find_spec("tensorflow") is None:
        raise ValueError(f"{reason}. Reading it takes TensorFlow, which is not installed: pip install tensorflow")
    with TensorFlowProcess() as process:
        try:
            tensors: dict[str, Array] = process.call(read_tensors, str(prefix))
        except TensorFlowError as error:
            raise ValueError(f"{reason}, and TensorFlow can't read it: {error}") from None
    return tensors


def read_tensors(prefix: str) -> dict[str, Array]:
    """Do in TensorFlow's process what `read_by_tensorflow` promises."""
    import tensorflow as tf

    reader = tf.train.load_checkpoint(prefix)
    tensors = {}
    for name, dtype in reader.get_variable_to_dtype_map().items():
        if name.startswith("model/") and dtype.is_floating:
            tensor = reader.get_tensor(name)
            tensors[name.removeprefix("model/")] = tensor.astype(np.float32) if dtype.size < 4 else tensor
    return tensors
