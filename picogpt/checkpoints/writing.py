"""Make a model's parameters, and write its folder in OpenAI's layout: seven files, a TensorFlow V2 checkpoint."""

from __future__ import annotations

import contextlib
import functools
import json
import math
import os
import re
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from encoder import BYTE_TO_CHAR, END_OF_TEXT
from utils import HPARAMS, expected_shapes, nest

Array = np.ndarray[Any, np.dtype[Any]]


def initial_params(hparams: dict[str, int], seed: int) -> dict[str, Any]:
    """Random parameters as GPT-2's: normal, deviation 0.02, and 1/√(2 n_layer) of that where a branch ends."""
    rng = np.random.default_rng(seed)
    tensors: dict[str, Array] = {}
    for name, shape in expected_shapes(hparams).items():
        scale = 0.02 / math.sqrt(2 * hparams["n_layer"]) if name.endswith("c_proj/w") else 0.02
        if name.endswith("/g"):
            tensors[name] = np.ones(shape, np.float32)
        elif name.endswith("/b"):
            tensors[name] = np.zeros(shape, np.float32)
        else:
            tensors[name] = rng.standard_normal(shape, dtype=np.float32) * scale
    return nest(tensors, hparams["n_layer"])


def flatten(params: Mapping[str, Any]) -> dict[str, Array]:
    """The inverse of utils.nest: {"model/h0/attn/c_attn/w": [1, n_in, n_out], …}."""
    flat: dict[str, Array] = {}

    def walk(tree: Any, name: str) -> None:
        if isinstance(tree, dict):
            for key, branch in tree.items():
                walk(branch, f"{name}/{key}")
        else:
            flat[name] = np.asarray(tree)[None] if name.endswith("/w") else np.asarray(tree)

    for key, branch in params.items():
        if key == "blocks":
            for layer, block in enumerate(branch):
                walk(block, f"model/h{layer}")
        else:
            walk(branch, f"model/{key}")
    return flat


@contextlib.contextmanager
def quiet_stderr() -> Iterator[None]:
    """TensorFlow's C++ writes to the file descriptor itself before its own log levels are in force."""
    sys.stderr.flush()
    kept = os.dup(2)
    try:
        with open(os.devnull, "wb") as nowhere:
            os.dup2(nowhere.fileno(), 2)
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)


@functools.cache
def tensorflow() -> Any:
    """The module. Raises OSError where there is none."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    try:
        with quiet_stderr():
            import tensorflow as tf

            tf.constant(0)  # what it has to say about the processor, it says now
    except ImportError:
        raise OSError("TensorFlow is needed, for Python below 3.14: see requirements.txt") from None
    return tf


def write_merges(path: Path, merges: list[str]) -> None:
    path.write_text("#version: 0.2\n" + "".join(f"{m}\n" for m in merges), encoding="utf-8", newline="\n")


def write_tokenizer(folder: Path, merges: list[str]) -> None:
    """encoder.json and vocab.bpe for merges ["left right", …], ids as OpenAI's: bytes, merges, <|endoftext|>."""
    tokens = [*BYTE_TO_CHAR.values(), *(merge.replace(" ", "") for merge in merges), END_OF_TEXT]
    encoder = {token: id for id, token in enumerate(tokens)}
    (folder / "encoder.json").write_text(json.dumps(encoder), encoding="utf-8", newline="\n")
    write_merges(folder / "vocab.bpe", merges)


def write_checkpoint(folder: Path, hparams: dict[str, int], params: dict[str, Any]) -> None:
    """hparams.json, checkpoint, model.ckpt.index, .data-00000-of-00001 and .meta, by TensorFlow. Raises OSError."""
    tf, tensors = tensorflow(), flatten(params)
    names = sorted(tensors)
    if set(names) != {f"model/{name}" for name in expected_shapes(hparams)}:
        raise ValueError("the parameters are not those of a GPT-2 of these hyper-parameters")
    try:
        tf.raw_ops.SaveV2(
            prefix=str(folder / "model.ckpt"),
            tensor_names=names,
            shape_and_slices=[""] * len(names),
            tensors=[tensors[name] for name in names],
        )
    except tf.errors.OpError as error:  # no space left, say
        message = re.sub(r"\{\{.*?\}\} |\[Op:.*", "", error.message).strip()  # without the names of its own nodes
        raise OSError(f"TensorFlow can't write {message}") from None
    with tf.Graph().as_default():
        v1 = tf.compat.v1
        for name in names:
            v1.get_variable(name, tensors[name].shape, tensors[name].dtype, use_resource=False)
        v1.train.export_meta_graph(str(folder / "model.ckpt.meta"), saver_def=v1.train.Saver().as_saver_def())
    (folder / "checkpoint").write_text(
        'model_checkpoint_path: "model.ckpt"\nall_model_checkpoint_paths: "model.ckpt"\n',
        encoding="utf-8",
        newline="\n",
    )
    own = {name: hparams[name] for name in HPARAMS}
    (folder / "hparams.json").write_text(json.dumps(own, indent=2) + "\n", encoding="utf-8", newline="\n")
