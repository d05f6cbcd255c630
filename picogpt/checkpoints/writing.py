"""Write a model's folder in OpenAI's layout, with a TensorFlow V2 checkpoint. Only `write_graph` needs TensorFlow.

The parameters come from training, from another layout, or at random from `initial_params`.
"""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from encoder import BYTE_TO_CHAR, END_OF_TEXT, Encoder
from gpt2 import n_shared
from picogpt.tensorflow_process import TensorFlowError, TensorFlowProcess
from utils import DTYPES, HPARAMS, TOKENIZER_FILES, crc32c, expected_shapes, nest

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


def tokenizer_of(merges: list[str]) -> Encoder:
    """Return the tokenizer with these merges. Ids go in OpenAI's order: the 256 bytes, the merges, <|endoftext|>."""
    tokens = [*BYTE_TO_CHAR.values(), *(merge.replace(" ", "") for merge in merges), END_OF_TEXT]
    return Encoder({token: id for id, token in enumerate(tokens)}, merges)


def write_tokenizer(
    folder: Path, encoder: Encoder, names: tuple[str, ...] = TOKENIZER_FILES, n_tokens: int | None = None
) -> None:
    """Write the vocabulary, or its first n_tokens, in the order of the ids, and the merges. `names` are the files'."""
    vocabulary = {encoder.decoder[id]: id for id in range(n_tokens or len(encoder.decoder))}
    merges = "#version: 0.2\n" + "".join(f"{merge}\n" for merge in encoder.ranks)
    for name, text in zip(names, (json.dumps(vocabulary), merges)):
        (folder / name).write_text(text, encoding="utf-8", newline="\n")


# ------------------------------------------------------------------------------------------------------------- model


def write_random_model(folder: Path, hparams: dict[str, int], seed: int, tokenizer: Encoder | None = None) -> None:
    """Write the files of a model with random weights into an existing folder. Without a tokenizer, one is made up."""
    write_tokenizer(folder, tokenizer or tokenizer_of(made_up_merges(hparams["n_vocab"] - 257)))
    write_checkpoint(folder, hparams, initial_params(hparams, seed))


def write_checkpoint(folder: Path, hparams: dict[str, int], params: dict[str, Any], meta: bool = False) -> None:
    """Write a checkpoint and hparams.json: everything but the tokenizer. With `meta`, TensorFlow writes its graph.

    Raises OSError naming a file that can't be written, for example because the disk is full.
    """
    write_tensors(folder / "model.ckpt", flatten(params))
    state = 'model_checkpoint_path: "model.ckpt"\nall_model_checkpoint_paths: "model.ckpt"\n'
    (folder / "checkpoint").write_text(state, encoding="utf-8", newline="\n")
    own = {name: hparams[name] for name in HPARAMS}
    (folder / "hparams.json").write_text(json.dumps(own, indent=2) + "\n", encoding="utf-8", newline="\n")
    if meta:
        write_graph(folder / "model.ckpt")


# -------------------------------------------------------------------------------------------------------- checkpoint
#
# The data file has the tensors' numbers, one tensor after the other. The index is a sorted table in LevelDB's format
# with a protocol buffer for each tensor. utils.py reads both, and names the sources of the formats. Where they leave a
# choice, we choose as TensorFlow does, so that the files have the same bytes as those of its SaveV2.

DTYPE_NUMBERS = {np.dtype(name): number for number, name in DTYPES.items()}
HEADER = b"\x08\x01\x1a\x02\x08\x01"  # a BundleHeaderProto: one data file (field 1), version 1 of the format (field 3)
MAGIC = (0xDB4775248B80FB57).to_bytes(8, "little")  # ends every table


def write_tensors(prefix: Path, tensors: Mapping[str, Array]) -> None:
    """Write tensors by name into PREFIX.index and PREFIX.data-00000-of-00001. At most one is copied in memory."""
    from tqdm import tqdm

    path = prefix.with_name(f"{prefix.name}.data-00000-of-00001")
    pairs = [(b"", HEADER)]
    n_bytes = sum(array.nbytes for array in tensors.values())
    bar = tqdm(None, "writing", n_bytes, unit="B", unit_scale=True, leave=False, disable=None)
    try:
        with open(path, "wb") as file, bar:
            for name, array in sorted(tensors.items()):
                data = np.ascontiguousarray(array).reshape(-1).view(np.uint8)
                pairs.append((name.encode(), entry(array, file.tell(), crc32c(data))))
                file.write(data.data)
                bar.update(len(data))
        path = prefix.with_name(f"{prefix.name}.index")
        path.write_bytes(table(pairs))
    except OSError as error:  # that of a full disk does not know the file's name
        error.filename = str(path)
        raise


def entry(array: Array, offset: int, crc: int) -> bytes:
    """Return the BundleEntryProto of a tensor, whose numbers begin at byte `offset` of the data file."""
    shape = b"".join(field(2, field(1, n)) for n in array.shape)
    data = field(4, offset) + field(5, array.nbytes) + varint(6 << 3 | 5) + mask(crc)
    return field(1, DTYPE_NUMBERS[array.dtype]) + field(2, shape) + data


def field(number: int, value: int | bytes) -> bytes:
    """Return a field of a protocol buffer. Numbers that are 0 are left out.

    >>> field(1, 150), field(2, b"hi"), field(3, 0)
    (b'\\x08\\x96\\x01', b'\\x12\\x02hi', b'')
    """
    if isinstance(value, bytes):
        return varint(number << 3 | 2) + varint(len(value)) + value
    return varint(number << 3) + varint(value) if value else b""


def varint(n: int) -> bytes:
    """Return a number as a varint, the inverse of `utils.varint`: varint(150) = b"\\x96\\x01"."""
    return bytes([n]) if n < 128 else bytes([n & 127 | 128]) + varint(n >> 7)


def mask(crc: int) -> bytes:
    """Return a CRC in its stored form, the inverse of `utils.unmask`."""
    return ((crc >> 15 | crc << 17) + 0xA282EAD8 & 0xFFFFFFFF).to_bytes(4, "little")


def table(pairs: list[tuple[bytes, bytes]]) -> bytes:
    """Return a table of sorted keys and values: a block with them, an empty one, the list of blocks, and a footer.

    LevelDB begins a new block after some bytes (TensorFlow: 256 KB, which hundreds of layers would fill), but need not.
    """
    data, empty = block(pairs), block([])
    behind = bytes([pairs[-1][0][0] + 1])  # a key behind all others: "n" if the last one is "model/wte"
    blocks = block([(behind, place(0, data))])
    footer = place(len(data), empty) + place(len(data) + len(empty), blocks)
    return data + empty + blocks + footer.ljust(40, b"\0") + MAGIC


def block(pairs: list[tuple[bytes, bytes]]) -> bytes:
    """Return a block of keys and values with its type (0) and its checksum.

    A key is stored without the beginning that it shares with the key before it. At every 16th key, a whole one is
    stored. The end of the block lists the places of these.
    """
    content, restarts, last = b"", [0], b""
    for i, (key, value) in enumerate(pairs):
        if i and i % 16 == 0:
            restarts.append(len(content))
            last = b""
        shared = n_shared(last, key)
        content += varint(shared) + varint(len(key) - shared) + varint(len(value)) + key[shared:] + value
        last = key
    content += b"".join(number.to_bytes(4, "little") for number in (*restarts, len(restarts))) + b"\0"
    return content + mask(crc32c(content))


def place(offset: int, block: bytes) -> bytes:
    """Return the place of a block: its offset, and its size without its type and checksum."""
    return varint(offset) + varint(len(block) - 5)


def write_graph(prefix: Path) -> None:
    """Write PREFIX.meta: a graph with the variables of a checkpoint, which TensorFlow 1 can import. Raises OSError."""
    with TensorFlowProcess() as process:
        try:
            process.call(export_graph, str(prefix))
        except TensorFlowError as error:
            raise OSError(f"TensorFlow can't write {prefix.name}.meta: {error}") from None


def export_graph(prefix: str) -> None:
    """Do in TensorFlow's process what `write_graph` promises."""
    import tensorflow as tf

    v1, reader = tf.compat.v1, tf.train.load_checkpoint(prefix)
    dtypes = reader.get_variable_to_dtype_map()
    with tf.Graph().as_default():
        for name, shape in sorted(reader.get_variable_to_shape_map().items()):
            v1.get_variable(name, shape, dtypes[name], use_resource=False)
        v1.train.export_meta_graph(f"{prefix}.meta", saver_def=v1.train.Saver().as_saver_def())
