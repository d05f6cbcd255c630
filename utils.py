"""Open GPT-2 checkpoints as OpenAI published them: read the weights without TensorFlow, verify them, download them.

    python utils.py 124M        download missing files, verify every byte, and print the model's hyperparameters

A model is a folder, models_dir/model_size, with seven files. `encoder.json` and `vocab.bpe` belong to the tokenizer
(encoder.py). `hparams.json` holds the hyperparameters, such as the number of layers. The other four are a TensorFlow
checkpoint: `checkpoint` holds its name, `model.ckpt.index` lists the tensors, `model.ckpt.data-00000-of-00001` holds
their numbers, and `model.ckpt.meta` holds a graph that only TensorFlow uses.

This file has five parts: open a model, read the checkpoint, verify it, download it, and the command line. Each part
begins with its main function. To understand GPT-2, the first part is enough.
"""

from __future__ import annotations

import _signal  # type: ignore[import-not-found]  # the part of `signal` that imports nothing
import sys

if sys.version_info < (3, 10):  # noqa: UP036, since this line is for whoever starts it with an older Python
    raise SystemExit(f"picogpt needs Python 3.10 or newer, but this is Python {sys.version.split()[0]}")
if __name__ == "__main__" and _signal.getsignal(_signal.SIGINT) is _signal.default_int_handler:
    _signal.signal(_signal.SIGINT, _signal.SIG_DFL)  # before `run` begins, Ctrl-C ends the program silently

import argparse
import contextlib
import errno
import functools
import hashlib
import io
import itertools
import json
import math
import mmap
import os
import re
import signal
import stat
import textwrap
import threading
import time
import unicodedata
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple
from urllib.parse import unquote_to_bytes

import numpy as np

if sys.platform == "win32":
    import msvcrt
else:
    import fcntl

from encoder import Encoder, get_encoder

if TYPE_CHECKING:
    from picogpt.typing.shapes import Params

    Array = np.ndarray[Any, np.dtype[Any]]

SIZES = {  # the hyperparameters of the models that OpenAI published, by their number of parameters
    size: {"n_vocab": 50257, "n_ctx": 1024, "n_embd": n_embd, "n_head": n_head, "n_layer": n_layer}
    for size, n_embd, n_head, n_layer in (
        ("124M", 768, 12, 12),
        ("355M", 1024, 16, 24),
        ("774M", 1280, 20, 36),
        ("1558M", 1600, 25, 48),
    )
}
TOKENIZER_FILES = ("encoder.json", "vocab.bpe")
INDEX, META, DATA = "model.ckpt.index", "model.ckpt.meta", "model.ckpt.data-00000-of-00001"
FILES = ("checkpoint", *TOKENIZER_FILES, "hparams.json", INDEX, META, DATA)
HPARAMS = ("n_vocab", "n_ctx", "n_embd", "n_head", "n_layer")


# ----------------------------------------------------------------------------------------------------- open a model
#
# This part goes from a model's name to everything that `gpt2.gpt2` needs. A learner can skip `read_json`,
# `regular_file` and `check_...`, which only make sure that wrong files are refused with a clear message.


def load_encoder_hparams_and_params(
    model_size: str, models_dir: str | Path = "models"
) -> tuple[Encoder, dict[str, int], Params]:
    """Return the tokenizer, the hyperparameters and the parameters of a model.

    `model_size` is the name of a folder in models_dir, or the path of a folder. One of OpenAI's SIZES is downloaded if
    it is not there. What is relative is searched for in the current folder, then beside this file.

    The parameters are read-only, because they are the mapped file itself: copy an array before you change it, as in
    `params["wte"] = params["wte"].copy()`, or all of them with copy.deepcopy. Raises OSError (files, network) or
    ValueError (contents of files) with a message of one line.
    """
    folder = ensure_downloaded(model_size, models_dir)
    encoder = load_encoder(folder)
    hparams, params = load_hparams_and_params(folder)
    n_tokens, n_vocab = len(encoder.encoder), hparams["n_vocab"]
    if n_tokens != n_vocab:
        raise ValueError(f"{folder}: encoder.json has {n_tokens} tokens, but hparams.json has n_vocab = {n_vocab}")
    return encoder, hparams, params


def load_encoder(folder: Path) -> Encoder:
    """Return the tokenizer of the model in a folder. Logs a warning if its list of merges seems to be cut short.

    Raises OSError or ValueError, also if a folder with the name of one of SIZES does not have OpenAI's merges.
    """
    for name in TOKENIZER_FILES:
        regular_file(folder / name)
    encoder = get_encoder(folder.name, folder.parent)
    if encoder.is_openai:  # the tokenizer has compared the sha256 of its merges with OpenAI's
        return encoder
    if folder.name in SIZES:
        raise ValueError(
            f"{folder}: encoder.json and vocab.bpe are not OpenAI's of {folder.name}: one of them is damaged. "
            "Delete both, and they are downloaded again, or give a model of your own another name"
        )
    merged = {pair.replace(" ", "") for pair in encoder.ranks}
    unmade = [token for token in encoder.encoder if len(token) > 1 and token not in merged]
    if lost := [token for token in unmade if not re.fullmatch(r"<.*>|\[.*\]", token)]:  # <|endoftext|> has no merge
        text = f"no merge makes {len(lost):,} tokens of encoder.json, such as {lost[0]!r}"
        log(f"{folder / 'vocab.bpe'}: {text}; if it is cut short, the tokens of every text are wrong")
    return encoder


def load_hparams_and_params(folder: Path) -> tuple[dict[str, int], Params]:
    """Return the hyperparameters and the parameters of the model in a folder. The tokenizer's files may be missing."""
    hparams = load_hparams(folder / "hparams.json")
    check_published(hparams, folder)
    return hparams, load_gpt2_params_from_tf_ckpt(checkpoint_prefix(folder), hparams)


def load_hparams(path: Path) -> dict[str, int]:
    """Read the five hyperparameters of a model. Raises OSError, or ValueError naming the file and the wrong value."""
    hparams = read_json(path)
    for name in HPARAMS:
        value = hparams.get(name)
        if type(value) is not int or not 0 < value < 1 << 31:
            raise ValueError(f"{path}: {name} is {value!r}, not a positive whole number")
    if hparams["n_embd"] % hparams["n_head"]:
        raise ValueError(f"{path}: n_embd = {hparams['n_embd']} is not a multiple of n_head = {hparams['n_head']}")
    return hparams


def check_published(hparams: dict[str, int], folder: Path) -> None:
    """Raise ValueError if a folder has the name of one of SIZES, but hyperparameters that differ from OpenAI's.

    In another folder, log a warning if n_head is not OpenAI's for this shape. It changes the text, but no tensor's
    shape. It is no error, because a model that was not made from OpenAI's may have any n_head.
    """
    path, known = folder / "hparams.json", SIZES.get(folder.name, hparams)
    for name in HPARAMS:
        if hparams[name] != known[name]:
            raise ValueError(
                f"{path}: {name} is {hparams[name]}, but {known[name]} in OpenAI's {folder.name}. "
                "Delete the file to download it again, or give a model of your own another name"
            )
    for size, known in SIZES.items():
        same = [name for name in ("n_embd", "n_layer", "n_head") if hparams[name] == known[name]]
        if same == ["n_embd", "n_layer"]:
            text = f"but {known['n_head']} in OpenAI's {size} and in models made from it"
            log(f"{path}: n_head is {hparams['n_head']}, {text}; with a wrong n_head, the text is wrong")


def regular_file(path: Path, limit: float = 1 << 24) -> Path:
    """Return the path of a regular file of at most `limit` bytes. Raises OSError or ValueError if it is something else.

    Reading a device or a pipe might never end. OpenAI's largest file besides the weights has two million bytes.
    """
    status = path.stat()
    if not stat.S_ISREG(status.st_mode):
        raise ValueError(f"{path} is not a regular file")
    if status.st_size > limit:
        raise ValueError(f"{path} has {status.st_size:,} bytes, but such a file has at most {limit:,}")
    return path


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object from a file. Raises OSError, or ValueError naming the file."""
    text = regular_file(path).read_bytes()
    try:
        content = json.loads(text.decode("utf-8"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is not JSON: {error}") from None
    if not isinstance(content, dict):
        raise ValueError(f"{path} is not a JSON object")
    return content


def checkpoint_prefix(folder: Path) -> Path:
    """Return the path that the names of the checkpoint's files begin with, such as models/124M/model.ckpt.

    The file `checkpoint` names it, because training scripts choose other names, such as model-1000. Without that file,
    it is model.ckpt or the only one that is there. Raises OSError or ValueError, for example if there are several.
    """
    with contextlib.suppress(FileNotFoundError, UnicodeDecodeError):
        text = regular_file(folder / "checkpoint").read_text(encoding="utf-8")
        if match := re.search(r'^model_checkpoint_path: *"([^"\0-\x1f]+)"', text, re.MULTILINE):
            return folder / (re.split(r"[/\\]", match[1])[-1] or "model.ckpt")
    names = sorted(path.name.removesuffix(".index") for path in folder.glob("*.index"))
    if not names or "model.ckpt" in names or (folder / "model.ckpt").exists():
        return folder / "model.ckpt"
    if len(names) > 1:
        raise FileNotFoundError(f"{folder / 'checkpoint'} does not name one of {', '.join(names)}")
    return folder / names[0]


def load_gpt2_params_from_tf_ckpt(tf_ckpt_path: str | Path, hparams: dict[str, int]) -> Params:
    """Return the parameters of a checkpoint as nested dictionaries with the checkpoint's own names.

    `tf_ckpt_path` is the checkpoint's prefix, such as models/124M/model.ckpt. The arrays are read-only views of the
    data file, so opening a model takes no time and no memory. Only an unusual checkpoint is copied, by TensorFlow.
    Raises OSError when a file can't be read, and ValueError when it is broken or does not fit the hyperparameters.
    """
    prefix = Path(tf_ckpt_path)
    try:
        tensors = read_plain(prefix)
    except NeedsTensorFlow as reason:
        tensors = read_by_tensorflow(prefix, reason)
    found = {name[len("model/") :]: tensor for name, tensor in tensors.items() if name.startswith("model/")}
    check_tensors(found, hparams, f"{prefix}.index")
    # Not checked: a type checker can't know which names the dictionary has, but `check_tensors` does.
    return nest({name: found[name] for name in expected_shapes(hparams)}, hparams["n_layer"])  # type: ignore[return-value]


def check_tensors(found: dict[str, Array], hparams: dict[str, int], source: str) -> None:
    """Raise ValueError unless these are the tensors that the hyperparameters imply, in one floating-point type."""
    n_layer = hparams["n_layer"]
    if n_layer > len(found):  # before `expected_shapes` makes a list of a billion layers
        raise ValueError(f"{source} has {len(found)} tensors, but hparams.json has n_layer = {n_layer}")
    for name, shape in expected_shapes(hparams).items():
        if name not in found:
            raise ValueError(f"{source} has no tensor model/{name}, which hparams.json implies")
        if found[name].shape != shape:
            raise ValueError(f"{source}: model/{name} is {found[name].shape}, but hparams.json implies {shape}")
        if found[name].dtype.kind != "f":
            raise ValueError(f"{source}: model/{name} is {found[name].dtype}, but {FLOATS}")
        if found[name].dtype != found["wte"].dtype:
            raise ValueError(f"{source}: model/{name} is {found[name].dtype}, but model/wte is {found['wte'].dtype}")
    if beyond := [name for name in found if name.startswith(f"h{n_layer}/")]:
        raise ValueError(f"{source} has model/{beyond[0]}, but hparams.json has n_layer = {n_layer}")


def expected_shapes(hparams: dict[str, int]) -> dict[str, tuple[int, ...]]:
    """Return the shape of every tensor of a GPT-2 with these hyperparameters, by its name without `model/`.

    >>> shapes = expected_shapes({"n_vocab": 50257, "n_ctx": 1024, "n_embd": 768, "n_head": 12, "n_layer": 12})
    >>> shapes["wte"], shapes["h11/attn/c_attn/w"], sum(math.prod(shape) for shape in shapes.values())
    ((50257, 768), (1, 768, 2304), 124439808)
    """
    e = hparams["n_embd"]
    linears = {"attn/c_attn": (e, 3 * e), "attn/c_proj": (e, e), "mlp/c_fc": (e, 4 * e), "mlp/c_proj": (4 * e, e)}
    shapes: dict[str, tuple[int, ...]] = {"wte": (hparams["n_vocab"], e), "wpe": (hparams["n_ctx"], e)}
    norms = ["ln_f"]
    for layer in range(hparams["n_layer"]):
        norms += [f"h{layer}/ln_1", f"h{layer}/ln_2"]
        for name, (n_in, n_out) in linears.items():
            shapes[f"h{layer}/{name}/w"] = (1, n_in, n_out)
            shapes[f"h{layer}/{name}/b"] = (n_out,)
    return shapes | {f"{norm}/{part}": (e,) for norm in norms for part in "gb"}


def nest(tensors: dict[str, Array], n_layer: int) -> dict[str, Any]:
    """Turn the checkpoint's flat names into nested dictionaries. Nothing is copied.

    The checkpoint stores each weight matrix as [1, n_in, n_out]; the leading 1 is dropped.

    >>> nest({"h0/ln_1/g": np.ones(2, int), "wte": np.zeros((1, 2), int)}, n_layer=1)
    {'blocks': [{'ln_1': {'g': array([1, 1])}}], 'wte': array([[0, 0]])}
    """
    params: dict[str, Any] = {"blocks": [{} for _ in range(n_layer)]}
    for name, tensor in tensors.items():
        *path, last = name.split("/")
        place = params
        if match := re.fullmatch(r"h(\d+)", path[0]) if path else None:
            place, path = params["blocks"][int(match[1])], path[1:]
        for key in path:
            place = place.setdefault(key, {})
        place[last] = tensor.reshape(tensor.shape[1:]) if last == "w" else tensor
    return params


# ---------------------------------------------------------------------------------------------- read the checkpoint
#
# A TensorFlow V2 checkpoint has an index and one or more data files, called shards. The index is a sorted table in
# LevelDB's format: its keys are the tensors' names, its values are protocol buffers with type, shape and place. The
# shards hold the raw little-endian numbers. `read_plain` and `view` show the idea. A learner can skip everything from
# `read_index` on, which takes the index apart byte by byte.
#
# Formats: TensorFlow's core/util/tensor_bundle, core/protobuf/tensor_bundle.proto, core/lib/io/table_format.txt.


def read_plain(prefix: Path) -> dict[str, Array]:
    """Return all tensors of an uncompressed V2 checkpoint by name, as read-only views of its data files."""
    index = prefix.with_name(prefix.name + ".index")
    if not index.exists() and prefix.exists():
        raise NeedsTensorFlow(f"{prefix} is a V1 checkpoint")
    entries, n_shards = read_index(index)
    entries_of_model = {name: entry for name, entry in entries.items() if name.startswith("model/")}
    maps = [map_file(path, entries_in_shard(entries, i)) for i, path in enumerate(data_paths(prefix, n_shards))]
    tensors = {}
    for name, entry in entries_of_model.items():  # training scripts add variables of other types, which we don't need
        try:
            tensors[name] = view(entry, maps)
        except ValueError as error:
            raise ValueError(f"{index}: {name}: {error}") from None
    return tensors


def data_paths(prefix: Path, n_shards: int) -> Iterator[Path]:
    """Yield the paths of a checkpoint's data files, one by one, since a damaged index may claim billions of them."""
    for shard in range(n_shards):
        yield prefix.with_name(f"{prefix.name}.data-{shard:05d}-of-{n_shards:05d}")


def entries_in_shard(entries: dict[str, Entry], shard: int) -> dict[str, Entry]:
    """Return the entries of the tensors that lie in one data file."""
    return {name: entry for name, entry in entries.items() if entry.shard == shard}


def map_file(path: Path, entries: dict[str, Entry]) -> mmap.mmap | bytes:
    """Map a data file into memory, read-only. Raises ValueError when its length is not as its index says."""
    expected = 0
    for offset, size in sorted((entry.offset, entry.size) for entry in entries.values()):
        if offset < expected:
            raise ValueError(f"{path}: its index describes tensors that overlap, at byte {offset:,}")
        expected = offset + size
    with open(regular_file(path, math.inf), "rb") as file:
        length = os.fstat(file.fileno()).st_size
        if length != expected:
            raise ValueError(f"{path} has {length:,} bytes, but its index describes {expected:,}")
        if not length:
            return b""
        mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    with contextlib.suppress(AttributeError, OSError):  # Linux only: large pages save 15 % of the time of a 1558M token
        mapped.madvise(mmap.MADV_HUGEPAGE)
    return mapped


STRING, BFLOAT16 = 7, 14
DTYPES = {1: "<f4", 2: "<f8", 3: "<i4", 9: "<i8", 19: "<f2"}  # NumPy's names for TensorFlow's DataType numbers
FLOATS = "gpt2.py computes with float32, float16 or float64 only: convert the checkpoint to one of these"


def view(entry: Entry, maps: list[mmap.mmap | bytes]) -> Array:
    """Return a tensor as an array that reads from the mapped data file.

    Raises ValueError for a type that NumPy does not have, and when shape and size do not fit together.
    """
    if entry.dtype not in DTYPES:
        kind = "bfloat16" if entry.dtype == BFLOAT16 else f"of TensorFlow's type {entry.dtype}"
        raise ValueError(f"it is {kind}, but {FLOATS}")
    dtype = np.dtype(DTYPES[entry.dtype])
    if not 0 <= entry.shard < len(maps) or entry.size != math.prod(entry.shape) * dtype.itemsize:
        raise ValueError(f"shape {entry.shape} does not fit {entry.size} bytes in shard {entry.shard} of {len(maps)}")
    return np.ndarray(entry.shape, dtype, maps[entry.shard], entry.offset)  # type: ignore[no-any-return]


class NeedsTensorFlow(ValueError):
    """Raised for a checkpoint that TensorFlow can read but this file can't."""


def read_by_tensorflow(prefix: Path, reason: NeedsTensorFlow) -> dict[str, Array]:
    """Return the model's tensors of any checkpoint by name, read by TensorFlow. `reason` says why that is necessary.

    TensorFlow ends its whole process at some damaged files, and writes lines about itself to stderr. For both reasons
    it runs in a process of its own, which writes a plain checkpoint to a temporary folder.
    """
    import importlib.util
    import subprocess
    import tempfile

    if importlib.util.find_spec("tensorflow") is None:
        raise ValueError(f"{reason}. Reading it takes TensorFlow, which is not installed: pip install tensorflow")
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:  # Windows keeps a mapped file
        plain = Path(folder) / prefix.name
        done = subprocess.run([sys.executable, "-c", REWRITE, prefix, plain], capture_output=True, check=False)
        if done.returncode:
            lines = ["it crashes", *done.stderr.decode("utf-8", "replace").splitlines()]
            message = lines[-1] if done.returncode == 1 else lines[0]
            raise ValueError(f"{reason}, and TensorFlow can't read it: {message}")
        try:
            return {name: tensor.copy() for name, tensor in read_plain(plain).items()}
        except ValueError as error:
            raise ValueError(str(error).replace(folder, str(prefix.parent))) from None


REWRITE = """
import sys
sys.path = [place for place in sys.path if place]  # without the current folder, which may be a stranger's
try:
    import tensorflow as tf
    reader = tf.train.load_checkpoint(sys.argv[1])
    names = sorted(name for name in reader.get_variable_to_shape_map() if name.startswith("model/"))
    tensors = [reader.get_tensor(name) for name in names]
    tf.raw_ops.SaveV2(prefix=sys.argv[2], tensor_names=names, shape_and_slices=[""] * len(names), tensors=tensors)
except Exception as error:
    sys.exit((str(error) or type(error).__name__).splitlines()[0])
"""


class Entry(NamedTuple):
    """The index entry of a tensor: type, shape, and the bytes offset to offset + size of a shard with their CRC-32C."""

    dtype: int
    shape: tuple[int, ...]
    shard: int
    offset: int
    size: int
    crc: int


def read_index(path: str | Path) -> tuple[dict[str, Entry], int]:
    """Return the entry of every tensor by name, and the number of data files, from an index file.

    Every block's checksum is checked. Raises OSError, ValueError naming the file and its fault, or NeedsTensorFlow.
    """
    table = regular_file(Path(path)).read_bytes()
    try:
        return parse_table(table)
    except NeedsTensorFlow as error:
        raise NeedsTensorFlow(f"{path} {error}") from None
    except ValueError as error:
        raise ValueError(f"{path} {error}") from None
    except TypeError:  # a number where bytes should be
        raise ValueError(f"{path} holds a broken protocol buffer") from None


MAX_ENTRIES, MAX_BYTES = 100_000, 1000  # in an index, and in the name or in the description of one tensor


def parse_table(table: bytes) -> tuple[dict[str, Entry], int]:
    """Parse an index file. Its footer points to a block that points to the blocks with the header and the entries."""
    if len(table) < 48 or table[-8:] != (0xDB4775248B80FB57).to_bytes(8, "little"):
        raise ValueError("is not the index of a TensorFlow V2 checkpoint, or is truncated")
    footer = table[-48:]
    list(block(table, footer))  # the meta index is not used, but its checksum must be right, too
    _, at = varint(footer, 0)
    _, at = varint(footer, at)
    pairs = (pair for handle in handles(table, footer[at:]) for pair in block(table, handle))
    entries = dict(first := list(itertools.islice(pairs, MAX_ENTRIES + 1)))
    if len(first) > MAX_ENTRIES:
        raise ValueError(f"has more than {MAX_ENTRIES:,} entries")
    header = dict(fields(entries.pop(b"", b"")))
    if header.get(2, 0) != 0:
        raise NeedsTensorFlow("is big-endian")
    if not isinstance(n_shards := header.get(1, 1), int):
        raise ValueError("holds a broken protocol buffer")
    return {name.decode(): parse_entry(entry) for name, entry in entries.items()}, n_shards


def parse_handle(handle: bytes) -> tuple[int, int]:
    """Return the offset and the size of a block, and ignore what may follow them."""
    offset, at = varint(handle, 0)
    return offset, varint(handle, at)[0]


def handles(table: bytes, handle: bytes) -> Iterator[bytes]:
    """Yield the handles of blocks that a block holds. Raises ValueError if two of them overlap or are not in order."""
    end = 0
    for _, value in block(table, handle):
        offset, size = parse_handle(value)
        if offset < end:
            raise ValueError(f"is damaged: the block at byte {offset} is listed twice, or overlaps the one before")
        end = offset + size + 5
        yield value


def block(table: bytes, handle: bytes) -> Iterator[tuple[bytes, bytes]]:
    """Yield the keys and values of one block of the table. `handle` holds the block's offset and size.

    A key is stored without the beginning that it shares with the key before it.
    """
    offset, size = parse_handle(handle)
    content, trailer = table[offset : offset + size + 1], table[offset + size + 1 : offset + size + 5]
    if len(trailer) < 4:
        raise ValueError("is truncated: a block lies beyond its end")
    if crc32c(content) != unmask(int.from_bytes(trailer, "little")):
        raise ValueError(f"is damaged: the checksum of the block at byte {offset} is wrong")
    if content[-1] != 0:
        raise NeedsTensorFlow("has compressed blocks")
    end = size - 4 - 4 * int.from_bytes(content[size - 4 : size], "little")
    at, key = 0, b""
    while at < end:
        shared, at = varint(content, at)
        unshared, at = varint(content, at)
        length, at = varint(content, at)
        if shared > len(key) or at + unshared + length > end or max(shared + unshared, length) > MAX_BYTES:
            raise ValueError(f"is damaged: an entry of the block at byte {offset} does not fit")
        key = key[:shared] + content[at : at + unshared]
        at += unshared + length
        yield key, content[at - length : at]


def parse_entry(message: bytes) -> Entry:
    """Parse a BundleEntryProto, which describes one tensor."""
    found: dict[int, Any] = {}
    for number, value in fields(message):
        if number == 7:
            raise NeedsTensorFlow("has tensors in slices")
        found[number] = value
    dims = [dict(fields(dim)).get(1, 0) for number, dim in fields(found.get(2, b"")) if number == 2]
    numbers = [found.get(number, 0) for number in (1, 3, 4, 5, 6)]
    if not all(isinstance(number, int) for number in (*dims, *numbers)):
        raise ValueError("holds a broken protocol buffer")
    dtype, shard, offset, size, crc = numbers
    return Entry(dtype, tuple(dims), shard, offset, size, unmask(crc))


def fields(message: bytes) -> Iterator[tuple[int, Any]]:
    """Yield the number and the value of each field of a protocol buffer message. A value is an integer or bytes.

    >>> list(fields(b"\\x08\\x96\\x01" + b"\\x12\\x02hi"))
    [(1, 150), (2, b'hi')]
    """
    at = 0
    while at < len(message):
        tag, at = varint(message, at)
        kind = tag & 7
        if kind == 0:
            value, at = varint(message, at)
            yield tag >> 3, value
            continue
        size, at = varint(message, at) if kind == 2 else ({1: 8, 5: 4}.get(kind, -1), at)
        if size < 0 or at + size > len(message):
            raise ValueError("holds a broken protocol buffer")
        part = message[at : at + size]
        yield tag >> 3, part if kind == 2 else int.from_bytes(part, "little")
        at += size


def varint(data: bytes, at: int) -> tuple[int, int]:
    """Read the varint at a position, and return its value and the position after it. Each byte holds 7 of its bits.

    >>> varint(b"\\x96\\x01", 0)
    (150, 2)
    """
    value = 0
    for shift in range(0, 70, 7):
        if at >= len(data):
            raise ValueError("ends in the middle of a number")
        value |= (data[at] & 0x7F) << shift
        at += 1
        if data[at - 1] < 0x80:
            return value, at
    raise ValueError("holds a number of more than 64 bits")


# --------------------------------------------------------------------------------------------------- verify the files
#
# OpenAI published no checksums, but the index of a checkpoint holds the CRC-32C of every tensor. A learner can skip
# `crc_words` and `crc_tables`: they only make the checksum fast in NumPy (seconds instead of minutes for 500 MB).
#
# CRC-32C: RFC 3720, appendix B.4.


def verify(prefix: Path) -> str:
    """Check every byte of a checkpoint's data, and return a text that says so. Raises ValueError for a damaged file."""
    try:
        entries, n_shards = read_index(prefix.with_name(prefix.name + ".index"))
    except (NeedsTensorFlow, FileNotFoundError):
        return f"{prefix.name} was read by TensorFlow, which checks it as it reads"
    verify_data(data_paths(prefix, n_shards), entries)
    count = sum(math.prod(entry.shape) for entry in entries.values())
    return f"{len(entries)} tensors, {count:,} numbers; all checksums are right"


def verify_data(paths: Iterable[Path], entries: dict[str, Entry]) -> None:
    """Check the length of the data files and the checksum of every tensor. Raises ValueError at the first wrong one.

    Tensors of text are not checked: GPT-2 has none, and TensorFlow computes their checksums in another way.
    """
    from tqdm import tqdm

    for shard, path in enumerate(paths):
        inside = entries_in_shard(entries, shard)
        data = np.frombuffer(map_file(path, inside), np.uint8)
        with tqdm(None, f"checking {visible(path.name)}", len(data), unit="B", unit_scale=True, disable=None) as bar:
            for name, entry in inside.items():
                if entry.dtype == STRING:
                    continue
                if crc32c(data[entry.offset : entry.offset + entry.size], bar.update) != entry.crc:
                    raise ValueError(f"{path} is damaged: the checksum of {name} differs from the index")


SHA256 = {  # of OpenAI's files: the tokenizer is the same for all sizes
    "encoder.json": "196139668be63f3b5d6574427317ae82f612a97c5d1cdaf36ed2256dbf636783",
    "vocab.bpe": "1ce1664773c50f3e0cc8842619a93edc4624525b728b188a9e0be33b7726adc5",
    "124M/checkpoint": "dd1b025d2e155283f5e300ce95bf6d5b6bc0f7fe010db73daa6975eb896ab9cb",
    "124M/model.ckpt.index": "71916f763f9746f9b2a06b12d91996cf1084ae008d0424543d39391c5f2dc687",
    "124M/model.ckpt.meta": "4668c448fa11531fd6700460487f73e82d3272960cea942252f8744bf225c77b",
}


def check_file(path: Path, name: str, folder: Path) -> None:
    """Raise ValueError unless the file at `path` is what a file of this name should be.

    A download at `path` does not have its name yet. If the folder's name is one of SIZES, the file must be OpenAI's.
    """
    if name == DATA:
        return verify_data([path], read_index(folder / INDEX)[0])
    data, size = regular_file(path).read_bytes(), folder.name
    known = SHA256.get(name, SHA256.get(f"{size}/{name}")) if size in SIZES else None
    if known and hashlib.sha256(data).hexdigest() != known:
        raise ValueError(f"{folder / name} is not OpenAI's file: its sha256 differs")
    shapes = {f"model/{key}": shape for key, shape in expected_shapes(SIZES[size]).items()} if size in SIZES else {}
    if name == "hparams.json":
        hparams = load_hparams(path)
        if size in SIZES:
            check_published(hparams, folder)
    if name == INDEX:
        entries, _ = read_index(path)
        if shapes and shapes != {key: entry.shape for key, entry in entries.items()}:
            raise ValueError(f"{folder / name} does not list the tensors of OpenAI's {size}")
    prefix = b"model.ckpt" if shapes else b'[^"]+'
    if name == "checkpoint" and not re.fullmatch(rb'model_checkpoint_path: "%b"\n(\w+: .+\n)*' % prefix, data):
        raise ValueError(f"{folder / name} does not name a checkpoint; it may be an error page")
    if name == META and not (is_graph(data) and all(key.encode() in data for key in shapes)):
        raise ValueError(f"{folder / name} is not a graph of the model; it may be an error page, or cut short")


def is_graph(data: bytes) -> bool:
    """Return whether bytes are a MetaGraphDef, whose field 1 is meta_info_def."""
    try:
        return 1 in dict(fields(data))
    except ValueError:
        return False


def crc32c(data: Any, progress: Callable[[int], Any] = lambda n: None) -> int:
    """Return the CRC-32C (Castagnoli) checksum of bytes. `progress` is called with each number of bytes done.

    >>> hex(crc32c(b"123456789"))
    '0xe3069283'
    """
    data = np.frombuffer(data, dtype=np.uint8)
    state, head = 0xFFFFFFFF, len(data) % 4
    for byte in data[:head].tolist():
        state ^= byte
        for _ in range(8):
            state = (state >> 1) ^ (state & 1) * 0x82F63B78
    words = data[head:].view("<u4")
    for start in range(0, len(words), 1 << 22):
        chunk = words[start : start + (1 << 22)]
        state = crc_words(chunk, state)
        progress(chunk.nbytes)
    return state ^ 0xFFFFFFFF


def crc_words(words: Array, state: int) -> int:
    """Return the state of the CRC after more 32-bit words, which are cut into lanes and computed side by side.

    A CRC is linear, so every lane can start at 0. To join two lanes at the end, the state of the left one is moved on
    by as many zero words as the right one has, and xored with the state of the right one. Zero words in front of
    everything change nothing; they fill up the first lane.
    """
    low, high = crc_tables()
    length = 1 << (len(words).bit_length() // 2)
    n_lanes = 1 << (-(-len(words) // length) - 1).bit_length()
    lanes = np.zeros(n_lanes * length, dtype=np.uint32)
    lanes[len(lanes) - len(words) :] = words
    lanes[len(lanes) - len(words)] ^= np.uint32(state)
    # The 32 unit vectors pass through a lane of zero words, too. The results are the matrix that moves any state on.
    unit = np.uint32(1) << np.arange(32, dtype=np.uint32)
    states = np.concatenate([np.zeros(n_lanes, dtype=np.uint32), unit])
    for column in lanes.reshape(n_lanes, length).T:
        states[:n_lanes] ^= column
        states = low[states & 0xFFFF] ^ high[states >> 16]
    states, moved = states[:n_lanes], states[n_lanes:]

    def move(x: Array) -> Any:
        return np.bitwise_xor.reduce(np.where(x[:, None] & unit, moved, np.uint32(0)), axis=1)

    while len(states) > 1:
        states = move(states[0::2]) ^ states[1::2]
        moved = move(moved)
    return int(states[0])


@functools.lru_cache(maxsize=1)
def crc_tables() -> tuple[Array, Array]:
    """Return two tables of 65536 entries: each half of a 32-bit state, moved on by the four bytes of a zero word."""
    high = np.arange(1 << 16, dtype=np.uint32)
    for _ in range(16):
        high = (high >> 1) ^ (high & 1) * np.uint32(0x82F63B78)
    return high[high & 0xFFFF] ^ (high >> 16), high


def unmask(masked: int) -> int:
    """Return a CRC from its stored form. TensorFlow rotates it by 15 bits and adds a constant (table_format.txt)."""
    rotated = (masked - 0xA282EAD8) & 0xFFFFFFFF
    return (rotated >> 17 | rotated << 15) & 0xFFFFFFFF


# ---------------------------------------------------------------------------------------------------------- download
#
# A file gets its name only when it is complete and checked; until then it is called <name>.partial. An interrupted
# download is continued from that file, if the server still has the same version of it, which <name>.version.partial
# tells. A learner can skip everything after `download_gpt2_files`: it is about broken connections, servers that give
# wrong answers, and two processes that download at once.


def ensure_downloaded(model_size: str, models_dir: str | Path, files: tuple[str, ...] = FILES) -> Path:
    """Return the folder of a model. If it is one of SIZES, download those of the files that are missing.

    A relative models_dir is searched for in the current folder, then beside this file; downloads go to the current
    folder. If models_dir has no folder model_size, a model_size such as models/tiny or tiny/ may be the path of one.
    Paths are searched for in the same places, and nothing is downloaded to them. Raises FileNotFoundError listing the
    models that exist, or DownloadError.
    """
    places = Path(), Path(__file__).parent
    here, beside = (place / models_dir for place in places)
    is_path = Path(model_size).name not in (model_size, "", "..")
    for folder in (here / model_size, beside / model_size, *(place / model_size for place in places if is_path)):
        missing = [name for name in files if not (folder / name).exists()] if model_size in SIZES else []
        if folder.is_dir() and folder not in (here, beside) and not missing:
            return folder
    if model_size in SIZES:
        download_gpt2_files(model_size, here / model_size, files)
        return here / model_size
    searched = dict.fromkeys((here.absolute(), beside.absolute()))
    there = sorted({path.parent.name for place in searched for path in place.glob("*/hparams.json")})
    no_folder = (
        f"there is no folder {model_size!r}, and no such model" if is_path else f"there is no model {model_size!r}"
    )
    raise FileNotFoundError(
        f"{no_folder} in {' or '.join(map(str, searched))}, only {', '.join(there) or 'nothing'}; "
        f"{', '.join(SIZES)} can be downloaded"
    )


ADDRESS = "https://openaipublic.blob.core.windows.net/gpt-2/models"  # PICOGPT_MIRROR in the environment replaces it
TIMEOUT = (10, 30)  # seconds to wait for a connection, and for the next byte
PAUSES = (1, 2, 4)  # seconds before each further attempt; one that brings new bytes starts the count again
LONGEST = {  # the most bytes that a server may send for a file: more than any of OpenAI's has
    "checkpoint": 1 << 12,
    "encoder.json": 1 << 21,
    "vocab.bpe": 1 << 20,
    "hparams.json": 1 << 12,
    INDEX: 1 << 16,
    "model.ckpt.meta": 1 << 22,
    DATA: 1 << 33,
}


class DownloadError(OSError):
    """Raised when a download can't be completed. The message says what to do instead."""


class WrongLength(ValueError):
    """Raised when a server announces a length that a file can't have. What it sent before is kept."""


def download_gpt2_files(model_size: str, model_dir: str | Path, files: tuple[str, ...] = FILES) -> None:
    """Download OpenAI's files of a size into a folder, one process at a time. Files that exist stay as they are.

    Raises ValueError for an unknown size, and DownloadError (an OSError) when the network or the server fails.
    """
    if model_size not in SIZES:
        raise ValueError(f"unknown size {model_size!r}: OpenAI published {', '.join(SIZES)}")
    folder = Path(model_dir)
    address, auth = mirror()
    try:
        with locked(folder):
            for name in files:
                if not (folder / name).exists():  # another process may have downloaded it while this one waited
                    fetch(f"{address}/{model_size}/{name}", folder / name, auth)
    except DownloadError as error:
        raise DownloadError(
            f"{error}. Without a network, use --model_size tiny, which comes with picogpt, copy the seven files "
            f"({', '.join(FILES)}) to {folder}, or set PICOGPT_MIRROR to an address with the files {model_size}/<file>"
        ) from None


def mirror() -> tuple[str, tuple[str, str] | None]:
    """Return the address to download from, and the user's name and password if PICOGPT_MIRROR has them before an @.

    Without them, the address may appear in messages. Where it is not clear which part is the password, UsageError is
    raised, which does not show the address.
    """
    address = os.environ.get("PICOGPT_MIRROR", "").strip().rstrip("/") or ADDRESS
    match = re.fullmatch(r"(https?://)(?:([^/?#]*)@(?!.*@)|(?!.*:.*@))([^?#]+)", address, re.IGNORECASE)
    if not match:
        raise UsageError(
            "PICOGPT_MIRROR is not an address such as https://example.org/gpt-2 (a / ? # or @ in its name or password "
            "must be written as %2F %3F %23 or %40)"
        )
    if match[2] is None:
        return address, None
    user, _, password = os.fsencode(match[2]).partition(b":")
    # requests turns text into Latin-1, so this sends the bytes as they are
    return match[1] + match[3], (unquote_to_bytes(user).decode("latin-1"), unquote_to_bytes(password).decode("latin-1"))


def fetch(url: str, path: Path, auth: tuple[str, str] | None = None) -> None:
    """Download one file, check it, and give it its name. Raises DownloadError after four attempts without new bytes."""
    import requests

    partial, lengths = path.with_name(path.name + ".partial"), possible_lengths(path)
    failures, best = 0, length_of(partial)
    while error := attempt(url, path, partial, lengths, auth):
        if isinstance(error, requests.RequestException) and isinstance(error, ValueError):  # the address is malformed
            failures = len(PAUSES)
        if length_of(partial) > best:  # new bytes arrived, so start counting the failures again
            failures, best = 0, length_of(partial)
        if failures == len(PAUSES):
            stale = path.name == DATA and not isinstance(error, requests.RequestException)
            hint = f". If the server has new files, delete the old {path.with_name(INDEX)}" if stale else ""
            raise DownloadError(f"can't download {url}: {reason(error)}{hint}")
        pause = PAUSES[failures]
        failures += 1
        log(f"{path.name}: {reason(error)}; attempt {failures + 1} in {pause} s")
        time.sleep(pause)


def attempt(url: str, path: Path, partial: Path, lengths: range, auth: tuple[str, str] | None) -> Exception | None:
    """Try once to download a file and to give it its name. Return the error if another attempt may help."""
    import requests

    try:
        receive(url, partial, lengths, auth)
        check_file(partial, path.name, path.parent)
        partial.with_suffix(VERSION).unlink(missing_ok=True)
        os.replace(partial, path)
        return None
    except (requests.RequestException, ValueError) as caught:
        error = caught.with_traceback(None)  # a traceback would keep the file open
    if not isinstance(error, (requests.RequestException, WrongLength)) or not length_of(partial):
        discard(partial)  # the contents are wrong, or nothing came
    return error


def possible_lengths(path: Path) -> range:
    """Return the lengths that a file of this name can have, so that a wrong server can't fill the disk.

    The data file has the one length that the index beside it describes. Raises ValueError when that is damaged.
    """
    if path.name != DATA:
        return range(1, LONGEST[path.name] + 1)
    try:
        entries, _ = read_index(path.with_name(INDEX))
    except ValueError as error:
        raise ValueError(f"{error}: delete it, and the next try downloads it again") from None
    length = max((entry.offset + entry.size for entry in entries_in_shard(entries, 0).values()), default=0)
    return range(length, min(length, LONGEST[DATA]) + 1)


VERSION = ".version.partial"  # replaces .partial in the name of the file that has the version of a partial file


def receive(url: str, partial: Path, lengths: range, auth: tuple[str, str] | None) -> None:
    """Append the missing bytes to a partial file.

    Raises requests' exceptions or WrongLength when another attempt may help, ValueError when that has to start anew,
    and DownloadError when none will help.
    """
    import requests

    have, version = unfinished(partial)
    with ask(url, have, version, auth) as response:
        have, total = parse_range(response, url, partial, have, version)
        if have and have == total:
            return
        if total is not None and total not in lengths:
            limit = f"{'at most ' if len(lengths) != 1 else ''}{lengths.stop - 1:,}"
            raise WrongLength(f"{url} has {total:,} bytes, but {limit} are expected")
        save(response, partial, have, total, lengths.stop - 1)
    if total is not None and length_of(partial) != total:
        raise requests.ConnectionError(f"{url} broke off at {length_of(partial):,} of {total:,} bytes")


def save(response: Any, partial: Path, have: int, total: int | None, limit: int) -> None:
    """Append the body of a response to the first `have` bytes of a partial file."""
    from tqdm import tqdm

    bar = tqdm(desc=partial.stem, total=total, initial=have, unit="B", unit_scale=True, unit_divisor=1024)
    with bar, open(partial, "ab" if have else "wb", opener=open_regular) as file:
        if not have:  # the version is written while the file is empty, so they never contradict each other
            with open(partial.with_suffix(VERSION), "wb", opener=open_regular) as version_file:
                write(version_file, version_of(response).encode("latin-1"))
        for chunk in response.iter_content(1 << 16):
            if file.tell() + len(chunk) > limit:
                raise ValueError(
                    f"{partial.stem} goes on after {file.tell():,} bytes, but at most {limit:,} are expected"
                )
            write(file, chunk)
            bar.update(len(chunk))


def ask(url: str, have: int, version: str, auth: tuple[str, str] | None) -> Any:
    """Request a file from byte `have` on, or all of it if the server has another version by now."""
    import requests

    headers = {"Accept-Encoding": "identity"} | ({"Range": f"bytes={have}-"} if have else {})
    headers |= {"If-Range": version} if have and version else {}
    hooks = {"response": skip_redirect}
    try:
        return requests.get(url, headers=headers, auth=auth, stream=True, timeout=TIMEOUT, hooks=hooks)
    except ValueError as error:
        if isinstance(error, requests.RequestException):
            raise
        raise requests.ConnectionError(f"the server redirects to a wrong address: {error}") from None


def skip_redirect(response: Any, **_: Any) -> None:
    """Close a response that redirects to another address. Otherwise requests would keep all of its body in memory."""
    if response.is_redirect:
        response.close()


def parse_range(response: Any, url: str, partial: Path, have: int, version: str) -> tuple[int, int | None]:
    """Return the byte that a response starts at, after byte `have` was asked for, and the length of the whole file.

    The length is None if the server does not say it. A server may ignore the range and start at byte 0. One that
    ignores If-Range and sends the rest of another version than `version` makes the next attempt start anew.
    """
    import requests

    span, length = response.headers.get("Content-Range", ""), response.headers.get("Content-Length", "")
    size, answer = span.rpartition("/")[2], f"{response.status_code} {response.reason}"[:200]
    if response.status_code in (206, 416) and version and version_of(response) not in (version, ""):
        discard(partial)
        raise requests.ConnectionError(f"{url} has changed on the server")
    if response.status_code == 416 and have and span == f"bytes */{have}":  # nothing is missing
        return have, have
    if response.status_code == 416 or (response.status_code == 206 and not span.startswith(f"bytes {have}-")):
        discard(partial)
        raise requests.ConnectionError(f"{url}: asked for byte {have} on, the server answered {span or 'nothing'}")
    if 400 <= response.status_code < 500 and response.status_code not in (408, 429):
        raise DownloadError(f"{url}: the server answers {answer}")
    if not response.ok:  # requests' own error would show the address that the server redirected to
        raise requests.HTTPError(answer)
    if response.status_code != 206:
        have, size = 0, length
    return have, int(size[:20]) if size.isdecimal() else None  # int refuses thousands of digits


def version_of(response: Any) -> str:
    """Return the header that differs between two versions of a file: a strong ETag or Last-Modified (RFC 9110, 8.8).

    It is "" if there is none. A file that was modified in the second of the answer may be modified in it once more.
    """
    etag, modified, date = (response.headers.get(name, "") for name in ("ETag", "Last-Modified", "Date"))
    return etag if etag.startswith('"') else "" if modified == date else modified


def unfinished(partial: Path) -> tuple[int, str]:
    """Return how many bytes of a partial file can be used, and their version.

    Without a version, only those of the data file can, because its checksums tell whether two versions were joined.
    """
    version = ""
    with contextlib.suppress(FileNotFoundError), open(partial.with_suffix(VERSION), "rb", opener=open_regular) as file:
        version = file.read(1000).decode("latin-1")
    if not re.fullmatch(r'"[!#-~]+"|[A-Za-z0-9 ,:+-]+', version):  # these are the characters that headers can have
        version = ""
    return length_of(partial) if version or partial.stem == DATA else 0, version


def discard(partial: Path) -> None:
    """Remove a partial file and its version."""
    partial.unlink(missing_ok=True)
    partial.with_suffix(VERSION).unlink(missing_ok=True)


def length_of(path: Path) -> int:
    """Return the length of a file that we write, or 0 if there is none. Raises FileExistsError for a link or device."""
    try:
        status = path.lstat()
    except FileNotFoundError:
        return 0
    if not stat.S_ISREG(status.st_mode) or status.st_nlink > 1:
        raise FileExistsError(errno.EEXIST, "this is a link, a folder or a device; remove it", str(path))
    return status.st_size


def open_regular(path: str, flags: int) -> int:
    """Open a file that we write, for `opener=` of `open`. Links are not followed."""
    length_of(Path(path))
    return os.open(path, flags | getattr(os, "O_NOFOLLOW", 0), 0o666)  # Windows has only the check above


def write(file: Any, data: bytes) -> None:
    """Write to a file. If that fails, for example on a full disk, the error names the file."""
    try:
        file.write(data)
    except OSError as error:
        raise OSError(error.errno, error.strerror, file.name) from None


def reason(error: Exception) -> str:
    """Return the first line of an error's text, without passwords and the names of objects that urllib3 adds."""
    text = str(error).splitlines()[0] if str(error) else type(error).__name__
    if match := re.search(r"Caused by \w+\([\"'](.*)[\"']\)\)$", text):
        text = match[1]
    return re.sub(r"<[^<>]*object at 0x[0-9a-f]+>:? ?|HTTPS?Connection(Pool)?\(.*?\): ?|(?<=//)[^/\s]*@", "", text)[
        :300
    ]


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Let one process at a time work in a folder. The system frees the lock when the process ends, even if killed.

    The folder and its parents are made if they are missing, and removed if they are empty at the end.
    """
    path = folder / ".lock"
    while True:
        made = [place for place in (folder, *folder.parents) if not place.exists()]
        folder.mkdir(parents=True, exist_ok=True)  # in the loop: a process whose download fails removes the folder
        try:
            file = open(path, "a+b", opener=open_regular)  # noqa: SIM115, since an error in the block is another one
        except FileNotFoundError:  # another process has removed the folder just now
            continue
        with file:
            wait_for_lock(file.fileno(), folder)
            if not is_still(file.fileno(), path):
                continue  # the process before us has removed this file, and others would lock a new one
            try:
                return (yield)
            finally:
                with contextlib.suppress(OSError):  # Windows does not remove an open file; it stays, empty
                    path.unlink()
                    for place in made:
                        place.rmdir()


def is_still(descriptor: int, path: Path) -> bool:
    """Return whether an open file is the one that has this name now."""
    try:
        return os.path.samestat(os.fstat(descriptor), path.lstat())
    except FileNotFoundError:
        return False


def wait_for_lock(descriptor: int, folder: Path) -> None:
    """Lock an open file, and say so if this has to wait for another process."""
    try:
        lock(descriptor, wait=False)
    except OSError:
        log(f"waiting for another process that is downloading to {folder}")
        lock(descriptor, wait=True)


def lock(descriptor: int, wait: bool) -> None:
    """Lock an open file against other processes. If it is locked already, wait or raise OSError."""
    if sys.platform == "win32":
        while True:
            try:
                return msvcrt.locking(descriptor, msvcrt.LK_LOCK if wait else msvcrt.LK_NBLCK, 1)
            except OSError:  # LK_LOCK gives up after ten seconds
                if not wait:
                    raise
    else:
        fcntl.flock(descriptor, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB)


# -------------------------------------------------------------------------------------------------- the command line
#
# `run` turns a function into a well-behaved command, for gpt2.py and for every tool in picogpt/. A learner can skip all
# of this part; `main` shows how the parts above work together.


def main(argv: list[str] | None = None) -> int:
    """Download the missing files of a model, verify all of them, and print the model's hyperparameters."""
    parser = Parser(
        prog="python utils.py",
        description="Download the missing files of a model, verify every byte, and print the model's hyperparameters.",
        epilog="examples:\n  python utils.py 124M\n  python utils.py my-finetuned-model --models_dir ~/models",
    )
    models_dir = "the folder with the models; a relative one is also searched for beside utils.py (default: models)"
    parser.add_argument("model_size", help=f"{', '.join(SIZES)}, or a folder: its name in --models_dir, or its path")
    parser.add_argument("--models_dir", default="models", metavar="FOLDER", help=models_dir)
    args = parser.parse_args(argv)
    folder = ensure_downloaded(args.model_size, args.models_dir)
    encoder, hparams, params = load_encoder_hparams_and_params(folder.name, folder.parent)
    for name in FILES[:-1]:  # the data file, which takes longest, comes last
        if (folder / name).exists():
            check_file(folder / name, name, folder)
    weights = verify(checkpoint_prefix(folder))
    known = all(hashlib.sha256((folder / name).read_bytes()).hexdigest() == SHA256[name] for name in TOKENIZER_FILES)
    print(f"{folder}: " + ", ".join(f"{name} {hparams[name]}" for name in HPARAMS))
    print(f"tokenizer: {len(encoder.encoder):,} tokens, {'' if known else 'not '}OpenAI's files")
    print(f"weights: {params['wte'].dtype}, {weights}")
    return 0


class UsageError(ValueError):
    """Raised when the user asked for something impossible. The exit status is 2; for other errors it is 1."""


class Parser(argparse.ArgumentParser):
    """Parse a command line whose errors are one line each. A prompt may begin with -h, so only -h alone asks for help.

    `prog` is the command as a user types it, such as "python -m picogpt train".
    """

    def __init__(self, prog: str | None = None, **settings: Any):
        prog = prog or f"python {Path(sys.argv[0]).name}"
        settings["description"] = textwrap.fill(settings.get("description", ""), 78, break_on_hyphens=False)
        super().__init__(prog, add_help=False, formatter_class=argparse.RawDescriptionHelpFormatter, **settings)
        self.add_argument("--help", action="help", help="show this text and exit")

    def parse_args(self, args: Any = None, namespace: Any = None) -> argparse.Namespace:  # type: ignore[override]
        args = sys.argv[1:] if args is None else args
        parsed: argparse.Namespace = super().parse_args(["--help"] if args == ["-h"] else args, namespace)
        return parsed

    def _get_values(self, action: argparse.Action, arg_strings: list[str]) -> Any:
        """Take the value of --option=-- as any other. Before Python 3.13, argparse removes the first "--" in a list."""
        is_value = bool(action.option_strings) and arg_strings == ["--"]
        values = super()._get_values(action, arg_strings)
        return super()._get_values(action, ["--", "--"]) if is_value and not values else values

    def _get_option_tuples(self, option_string: str) -> Any:
        """Find the options that a word may mean. Take --to-hf as --to_hf, since other programs write names so."""
        name, *value = option_string.split("=", 1)
        if name.startswith("--"):
            option_string = "=".join(["--" + name[2:].replace("-", "_"), *value])
        return super()._get_option_tuples(option_string)

    def error(self, message: str) -> Any:
        name = self.prog.removeprefix("python ").removeprefix("-m ")
        log(f"{name}: {message} (try --help)")
        self.exit(2)


def number(
    low: float, high: float = math.inf, kind: type[float] = float, open_low: bool = False
) -> Callable[[str], float]:
    """Return a function for `type=` of an option. It parses a number and refuses one that is not from low to high.

    >>> number(0, 1)("0.5")
    0.5
    >>> number(0, kind=int)("-1")
    Traceback (most recent call last):
    argparse.ArgumentTypeError: '-1' is not a whole number at least 0
    """

    def parse(text: str) -> float:
        try:
            value = kind(text)
        except ValueError:
            value = math.nan
        if not (low < value if open_low else low <= value) or not value <= high or value == math.inf:
            name = "a whole number" if kind is int else "a number"
            limits = f"{'above' if open_low else 'at least'} {low:g}"
            if high < math.inf:
                limits += f" and at most {high:g}"
            raise argparse.ArgumentTypeError(f"{text!r} is not {name} {limits}")
        return value

    return parse


def read_prompt(text: str, longest: int = 1 << 24) -> str:
    """Return the prompt from the command line. "-" reads it from standard input, without its last line end.

    Raises UsageError when it is not valid UTF-8, or has more than `longest` bytes: the output of `yes` has no end.
    """
    if text == "-":
        if sys.stdin is None:
            raise UsageError("standard input is closed")
        if len(data := sys.stdin.buffer.read(longest + 1)) > longest:
            raise UsageError(f"standard input has more than {longest:,} bytes")
        return re.sub(r"\r?\n\Z", "", decode_utf8(data, "standard input"))
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise UsageError(f"the prompt is not valid UTF-8: character {error.start} is {text[error.start]!r}") from None
    return text


def check_size(encoder: Encoder, prompt: str, n_ctx: int) -> None:
    """Raise UsageError if a prompt has too many bytes for a context of n_ctx tokens, however it is encoded.

    Encoding 10 MB would take a minute. Up to 100 KB are quick to encode, and then a message can give the exact number.
    """
    if (n_bytes := len(prompt.encode("utf-8"))) <= 100_000:
        return
    n_tokens = math.ceil(n_bytes / max(map(len, encoder.encoder)))  # each character of a token stands for one byte
    if n_tokens > n_ctx + 1:  # one more than n_ctx is allowed if none is generated
        raise UsageError(
            f"the prompt has {n_bytes:,} bytes, and therefore {n_tokens:,} tokens or more, "
            f"but the model's context is n_ctx = {n_ctx}"
        )


def read_text(path: Path, megabytes: int = 1000) -> str:
    """Return the text of a file, with line ends as \\n. Raises OSError, or UsageError if it is too long or not UTF-8.

    The file may be a pipe, such as <(cat TEXT). A device may have no end, so that at most 1 MB is read from it.
    """
    with open(path, "rb") as file:
        if stat.S_ISCHR(os.fstat(file.fileno()).st_mode):
            megabytes = 1
        data = b"".join(itertools.islice(iter(lambda: file.read(1 << 20), b""), megabytes + 1))
    if len(data) > megabytes << 20:
        raise UsageError(f"{path} has more than {megabytes:,} MB, the most that is read of such a file")
    return re.sub(r"\r\n?", "\n", decode_utf8(data, str(path)))


def decode_utf8(data: bytes, source: str) -> str:
    """Decode UTF-8. Raises UsageError naming the source and its first wrong byte."""
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise UsageError(f"{source} is not UTF-8: byte {error.start} is 0x{data[error.start]:02x}") from None


def visible(text: str, keep: str = "") -> str:
    r"""Return a text without characters that could steer or deceive a terminal: they become escapes such as \x1b.

    These are control characters, formats such as "from right to left" or a space of no width, line and paragraph
    separators, and lone surrogates. Those in `keep`, such as "\n\t", stay.

    >>> print(visible("\x1b[2J two\nlines \u202e漢"))
    \x1b[2J two\nlines \u202e漢
    """
    hidden = {"Cc", "Cf", "Cs", "Zl", "Zp"}  # Unicode's general categories of these characters
    return "".join(
        repr(char)[1:-1] if unicodedata.category(char) in hidden and char not in keep else char for char in text
    )


def shown(text: str) -> str:
    """Return what to print of a model's text: all of it, unchanged, but `visible` if stdout is a terminal.

    The two joiners stay in both cases, since they belong to words in Persian and Hindi, and to many emoji.
    """
    return visible(text, keep="\n\t\u200c\u200d") if sys.stdout.isatty() else text


def log(message: str, keep: str = "") -> None:
    """Print a message for the user to stderr, because stdout is for results only.

    It becomes `visible`, and therefore one line, whatever names and values are in it, except for characters in `keep`.
    """
    print(visible(message, keep), file=sys.stderr, flush=True)


def free_memory(group: Path = Path("/sys/fs/cgroup")) -> int:
    """Return how many bytes of memory this process can take before the system has to swap or to kill.

    On macOS, which has no simple way to ask, this is all the memory of the machine.
    """
    if sys.platform == "win32":
        import ctypes

        status = (ctypes.c_uint64 * 8)(64)  # a MEMORYSTATUSEX: its own size, the total and the available bytes, ...
        ctypes.windll.kernel32.GlobalMemoryStatusEx(ctypes.byref(status))
        return int(status[2])
    limits = [os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")]
    with contextlib.suppress(OSError):
        limits += [1024 * int(kb) for kb in re.findall(r"MemAvailable: *(\d+) kB", Path("/proc/meminfo").read_text())]
    with contextlib.suppress(OSError, ValueError):  # a container's limit, which is "max" where there is none
        limit, used = int((group / "memory.max").read_text()), (group / "memory.stat").read_text()
        limits += [limit - int(anonymous) for anonymous in re.findall(r"^anon (\d+)$", used, re.MULTILINE)]
    return min(limits)


def run(main: Callable[[], int]) -> int:
    """Call `main` and return the exit status. An error is one line on stderr; Ctrl-C and a closed pipe are silent."""
    prepare_streams()
    try:
        with signals_as_exceptions():
            return flushed(main)
    except KeyboardInterrupt:
        status = 130
    except BrokenPipeError:
        status = 141
    except MemoryError as error:
        log(f"{Path(sys.argv[0]).name}: not enough memory" + (f": {error}" if str(error) else ""))
        status = 1
    except (OSError, ValueError) as error:
        text = f"{error.filename}: {error.strerror}" if isinstance(error, OSError) and error.filename else str(error)
        log(f"{Path(sys.argv[0]).name}: {text}")
        status = 2 if isinstance(error, UsageError) else 1
    try:
        sys.stdout.flush()
    except OSError:
        if sys.__stdout__ and sys.stdout is sys.__stdout__:  # Python would try once more at exit, and complain
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.__stdout__.fileno())
    return status


def prepare_streams() -> None:
    """Make sure that printing works: where a stream is closed, and whatever encoding PYTHONIOENCODING asks for."""
    for name, errors in {"stdin": "strict", "stdout": "replace", "stderr": "backslashreplace"}.items():
        stream = getattr(sys, name)
        if stream is None and name != "stdin":  # print would fail, or send errors to stdout
            setattr(sys, name, open(os.devnull, "w", encoding="utf-8"))  # noqa: SIM115
        if isinstance(stream, io.TextIOWrapper):  # a notebook's stream has no encoding to set
            with contextlib.suppress(io.UnsupportedOperation):  # something was read from stdin already
                stream.reconfigure(errors=errors)
            try:
                "a".encode(stream.encoding, errors)
            except UnicodeError:  # an encoding that is not meant for text, such as idna
                stream.reconfigure(encoding="utf-8", errors=errors)


@contextlib.contextmanager
def signals_as_exceptions() -> Iterator[None]:
    """Turn Ctrl-C into KeyboardInterrupt, and SIGTERM and SIGHUP into SystemExit, so that no half-written file stays.

    A handler is set where there is none. Afterwards, Python's own is in place again for Ctrl-C, which would otherwise
    end a notebook's kernel in which a command has run.
    """
    names = [name for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)]
    handled = [number for name in names if signal.getsignal(number := getattr(signal, name)) is signal.SIG_DFL]
    hook, sys.unraisablehook = sys.unraisablehook, signal_again
    with contextlib.suppress(ValueError):  # Python sets handlers in the main thread only
        for number in handled:
            signal.signal(number, raise_for_signal)
    try:
        yield
    finally:
        sys.unraisablehook = hook
        with contextlib.suppress(ValueError):
            for number in handled:
                signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)


def raise_for_signal(number: int, frame: Any) -> None:
    """Raise the exception of a signal."""
    raise KeyboardInterrupt if number == signal.SIGINT else SystemExit(128 + number)


def signal_again(ignored: sys.UnraisableHookArgs) -> None:
    """Send a signal once more if Python ignored its exception, as it does in a progress bar's `__del__`."""
    error = ignored.exc_value
    if isinstance(error, (KeyboardInterrupt, SystemExit)):
        number = signal.SIGINT if isinstance(error, KeyboardInterrupt) else int(error.code or 0) - 128
        threading.Timer(0.05, signal.raise_signal, [number]).start()
    else:
        sys.__unraisablehook__(ignored)


def flushed(main: Callable[[], int]) -> int:
    """Call `main` and return its exit status, after everything that it printed was really written."""
    try:
        status = main()
    except SystemExit as error:  # argparse and the signals above
        status = int(error.code or 0)
    sys.stdout.flush()
    return status


if __name__ == "__main__":
    sys.exit(run(main))
