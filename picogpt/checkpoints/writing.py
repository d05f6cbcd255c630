"""Write a model's folder in OpenAI's layout: seven files, among them a TensorFlow V2 checkpoint.

The parameters come from training, from another layout, or at random from `initial_params`.
"""

from __future__ import annotations

import contextlib
import functools
import itertools
import json
import math
import os
import re
import shutil
import sys
import threading
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from encoder import BYTE_TO_CHAR, END_OF_TEXT
from picogpt.options import require
from utils import HPARAMS, TOKENIZER_FILES, expected_shapes, nest

Array = np.ndarray[Any, np.dtype[Any]]


# -------------------------------------------------------------------------------------------------------- parameters


def initial_params(hparams: dict[str, int], seed: int) -> dict[str, Any]:
    """Draw random float32 parameters to start training from: normal weights (deviation 0.02), gains 1, biases 0.

    Each layer adds to x twice, through its two c_proj. Their weights are divided by √(2 n_layer), so that x does not
    grow with the number of layers (Radford et al. 2019, section 2.3).
    """
    from tqdm import tqdm

    rng = np.random.default_rng(seed)
    tensors: dict[str, Array] = {}
    for name, shape in tqdm(expected_shapes(hparams).items(), "drawing", unit="tensor", leave=False, disable=None):
        scale = 0.02 / math.sqrt(2 * hparams["n_layer"]) if name.endswith("c_proj/w") else 0.02
        if name.endswith("/g"):
            tensors[name] = np.ones(shape, np.float32)
        elif name.endswith("/b"):
            tensors[name] = np.zeros(shape, np.float32)
        else:
            tensors[name] = rng.standard_normal(shape, dtype=np.float32) * scale
    return nest(tensors, hparams["n_layer"])


def arrays_of(params: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield the arrays of the parameters, or of any part of them, by names such as h0/attn/c_attn/w."""
    for name, value in params.items():
        if name == "blocks":
            for layer, block in enumerate(value):
                yield from arrays_of(block, f"{prefix}h{layer}/")
        elif isinstance(value, Mapping):
            yield from arrays_of(value, f"{prefix}{name}/")
        else:
            yield prefix + name, value


def flatten(params: Mapping[str, Any]) -> dict[str, Array]:
    """Return the parameters by the checkpoint's own names, {"model/h0/attn/c_attn/w": [1, n_in, n_out], …}.

    This is the inverse of `utils.nest`: each w gets its leading 1 back.
    """
    arrays = ((name, np.asarray(array)) for name, array in arrays_of(params))
    return {f"model/{name}": array[None] if name.endswith("/w") else array for name, array in arrays}


# --------------------------------------------------------------------------------------------------------- tokenizer


def made_up_merges(n: int) -> list[str]:
    """Return n merges of two bytes each, for a vocabulary of the right size when OpenAI's files are not there."""
    return [f"{a} {b}" for a, b in itertools.islice(itertools.product(BYTE_TO_CHAR.values(), repeat=2), n)]


def write_merges(path: Path, merges: list[str]) -> None:
    """Write merges ["left right", …] as vocab.bpe, which Hugging Face calls merges.txt."""
    path.write_text("#version: 0.2\n" + "".join(f"{m}\n" for m in merges), encoding="utf-8", newline="\n")


def write_tokenizer(folder: Path, merges: list[str]) -> None:
    """Write encoder.json and vocab.bpe. Ids go in OpenAI's order: the 256 bytes, the merges, <|endoftext|>."""
    tokens = [*BYTE_TO_CHAR.values(), *(merge.replace(" ", "") for merge in merges), END_OF_TEXT]
    encoder = {token: id for id, token in enumerate(tokens)}
    (folder / "encoder.json").write_text(json.dumps(encoder), encoding="utf-8", newline="\n")
    write_merges(folder / "vocab.bpe", merges)


# -------------------------------------------------------------------------------------------------------- checkpoint


def write_checkpoint(folder: Path, hparams: dict[str, int], params: dict[str, Any]) -> None:
    """Let TensorFlow write the checkpoint's four files, then write hparams.json.

    Raises ValueError if the parameters do not belong to these hyperparameters, and OSError if TensorFlow is not
    installed or can't write, for example to a full disk.
    """
    tensors = flatten(params)
    if tensors.keys() != {f"model/{name}" for name in expected_shapes(hparams)}:
        raise ValueError("the parameters are not those of a GPT-2 with these hyper-parameters")
    write_tensors(folder / "model.ckpt", tensors)
    state = 'model_checkpoint_path: "model.ckpt"\nall_model_checkpoint_paths: "model.ckpt"\n'
    (folder / "checkpoint").write_text(state, encoding="utf-8", newline="\n")
    own = {name: hparams[name] for name in HPARAMS}
    (folder / "hparams.json").write_text(json.dumps(own, indent=2) + "\n", encoding="utf-8", newline="\n")


def write_tensors(prefix: Path, tensors: dict[str, Array]) -> None:
    """Write PREFIX.index, PREFIX.data-00000-of-00001, and PREFIX.meta with the graph that TensorFlow 1 asks for."""
    tf, names = tensorflow(), sorted(tensors)
    arrays = [tensors[name] for name in names]
    try:
        with show_writing(prefix.parent, sum(array.nbytes for array in arrays)):
            tf.raw_ops.SaveV2(
                prefix=str(prefix), tensor_names=names, shape_and_slices=[""] * len(names), tensors=arrays
            )
    except tf.errors.OpError as error:
        message = re.sub(r"\{\{.*?\}\} |\[Op:.*", "", error.message).strip()  # without its own names of its nodes
        raise OSError(f"TensorFlow can't write {message}") from None
    with tf.Graph().as_default():
        v1 = tf.compat.v1
        for name in names:
            v1.get_variable(name, tensors[name].shape, tensors[name].dtype, use_resource=False)
        v1.train.export_meta_graph(f"{prefix}.meta", saver_def=v1.train.Saver().as_saver_def())


def require_tensorflow() -> None:
    """Raise OSError if TensorFlow is not installed. Tools call this before their work, which TensorFlow ends."""
    require("tensorflow", purpose="only TensorFlow can write the checkpoint of a model; it needs Python below 3.14")


@contextlib.contextmanager
def show_writing(folder: Path, n_bytes: int) -> Iterator[None]:
    """Show a bar on stderr while the block writes n_bytes of weights into a folder.

    TensorFlow and safetensors write all tensors in one call. Therefore a thread watches the sizes of the files.
    """
    from tqdm import tqdm

    def size() -> int:
        paths = [Path(entry.path) for entry in os.scandir(folder)]
        return sum(path.stat().st_size for path in paths if path.is_file())

    def watch() -> None:
        while not done.wait(0.1):
            with contextlib.suppress(OSError):  # a file got its final name in the meantime
                bar.update(min(size() - before, n_bytes) - bar.n)

    done, before = threading.Event(), size()
    with tqdm(None, "writing", n_bytes, unit="B", unit_scale=True, leave=False, disable=None) as bar:
        thread = threading.Thread(target=watch)
        if not bar.disable:
            thread.start()
        try:
            yield
        finally:
            done.set()
            if not bar.disable:
                thread.join()
        bar.update(n_bytes - bar.n)


@functools.cache
def tensorflow() -> Any:
    """Import TensorFlow without its start-up messages, and return it. Raises OSError if it can't be imported."""
    require_tensorflow()
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    try:
        with quiet_stderr():
            import tensorflow as tf

            tf.constant(0)  # makes TensorFlow report on the processor now, while stderr is silenced
    except ImportError as error:
        raise OSError(f"tensorflow is installed, but can't be imported: {str(error).splitlines()[0][:300]}") from None
    return tf


@contextlib.contextmanager
def quiet_stderr() -> Iterator[None]:
    """Silence stderr's file descriptor: TensorFlow's C++ code writes to it before TensorFlow sets its log level."""
    sys.stderr.flush()
    kept = os.dup(2)
    try:
        with open(os.devnull, "wb") as nowhere:
            os.dup2(nowhere.fileno(), 2)
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)


def write_random_model(folder: Path, hparams: dict[str, int], seed: int, tokenizer: Path | None = None) -> None:
    """Write all seven files of a model with random weights into an existing folder.

    The tokenizer's two files are copied from the folder `tokenizer`; without it, a vocabulary is made up.
    """
    if tokenizer is None:
        write_tokenizer(folder, made_up_merges(hparams["n_vocab"] - 257))
    else:
        for name in TOKENIZER_FILES:
            shutil.copyfile(tokenizer / name, folder / name)
    write_checkpoint(folder, hparams, initial_params(hparams, seed))
