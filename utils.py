"""OpenAI's GPT-2 checkpoints: download them, check them, and open them without TensorFlow and without copying.

    python utils.py 124M        download what is missing, verify every byte, print what was found

A model is a folder `models_dir/model_size` of seven files. The weights are a TensorFlow V2 checkpoint, a "bundle":
`model.ckpt.index` says what lies where, `model.ckpt.data-…` is the tensors' raw little-endian bytes, one after another.
The index is a sorted table in LevelDB's format whose values are protocol buffers. Formats: TensorFlow's
`core/util/tensor_bundle`, `core/lib/io/table_format.txt`, `core/protobuf/tensor_bundle.proto`; CRC-32C: RFC 3720, B.4.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import hashlib
import json
import math
import mmap
import os
import re
import signal
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from encoder import Encoder, get_encoder

if TYPE_CHECKING:
    from picogpt.typing.shapes import Params

    Array = np.ndarray[Any, np.dtype[Any]]

SIZES = ("124M", "355M", "774M", "1558M")
ADDRESS = "https://openaipublic.blob.core.windows.net/gpt-2/models"  # the environment's PICOGPT_MIRROR goes first
TOKENIZER_FILES = ("encoder.json", "vocab.bpe")
INDEX, DATA = "model.ckpt.index", "model.ckpt.data-00000-of-00001"
FILES = ("checkpoint", *TOKENIZER_FILES, "hparams.json", INDEX, "model.ckpt.meta", DATA)
SHA256 = {
    "encoder.json": "196139668be63f3b5d6574427317ae82f612a97c5d1cdaf36ed2256dbf636783",
    "vocab.bpe": "1ce1664773c50f3e0cc8842619a93edc4624525b728b188a9e0be33b7726adc5",
}
HPARAMS = ("n_vocab", "n_ctx", "n_embd", "n_head", "n_layer")

TIMEOUT = (10, 30)  # seconds to connect, and without a byte
PAUSES = (1, 2, 4)  # seconds before each new attempt; after that many without progress it is over


class UsageError(ValueError):
    """What the user typed can't be done: exit status 2, where other errors are 1."""


class NeedsTensorFlow(ValueError):
    """A checkpoint that TensorFlow can read and this file can't."""


# ------------------------------------------------------------------------------------------------------- checksums


@functools.lru_cache(maxsize=1)
def crc_tables() -> tuple[Array, Array]:
    """What the low and the high half of a 32-bit state contribute after four bytes: two times 65536 entries."""
    high = np.arange(1 << 16, dtype=np.uint32)
    for _ in range(16):
        high = (high >> 1) ^ (high & 1) * np.uint32(0x82F63B78)
    return high[high & 0xFFFF] ^ (high >> 16), high


def crc_words(words: Array, state: int) -> int:
    """The CRC register after 32-bit words, computed in parallel lanes: the sum of 500 MB takes seconds in NumPy.

    A CRC is linear, so that lanes started at 0 can be joined: the left one, moved on by as many zero words as the right
    one is long, xor the right one. Zero words in front change nothing and fill up the first lane.
    """
    low, high = crc_tables()
    length = 1 << (len(words).bit_length() // 2)
    n_lanes = 1 << (-(-len(words) // length) - 1).bit_length()
    lanes = np.zeros(n_lanes * length, dtype=np.uint32)
    lanes[len(lanes) - len(words) :] = words
    lanes[len(lanes) - len(words)] ^= np.uint32(state)
    # Unit vectors go along as 32 more lanes of zero words: what comes out is the matrix that moves a state on.
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


def crc32c(data: Any, progress: Callable[[int], Any] = lambda n: None) -> int:
    """CRC-32C (Castagnoli) of a bytes-like object. crc32c(b"123456789") = 0xE3069283"""
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


def unmask(masked: int) -> int:
    """Undo TensorFlow's masking of a stored CRC (rotated by 15 bits, plus a constant), table_format.txt."""
    rotated = (masked - 0xA282EAD8) & 0xFFFFFFFF
    return (rotated >> 17 | rotated << 15) & 0xFFFFFFFF


# ----------------------------------------------------------------------------------------- the index of a checkpoint


class Entry(NamedTuple):
    """Where a tensor lies: bytes offset to offset + size of a shard, and their CRC-32C."""

    dtype: int
    shape: tuple[int, ...]
    shard: int
    offset: int
    size: int
    crc: int


STRING = 7
DTYPES = {1: "<f4", 2: "<f8", 3: "<i4", 9: "<i8", 19: "<f2"}  # TensorFlow's DataType numbers


def varint(data: bytes, at: int) -> tuple[int, int]:
    """A protocol buffer's variable-length integer at a position, and the position behind it."""
    value = 0
    for shift in range(0, 70, 7):
        if at >= len(data):
            raise ValueError("ends in the middle of a number")
        value |= (data[at] & 0x7F) << shift
        at += 1
        if data[at - 1] < 0x80:
            return value, at
    raise ValueError("holds a number of more than 64 bits")


def fields(message: bytes) -> Iterator[tuple[int, Any]]:
    """The fields of a protocol buffer message: its number and an integer, or bytes where it has a length."""
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


def block(table: bytes, handle: bytes) -> Iterator[tuple[bytes, bytes]]:
    """The keys and values of one block; handle says where it lies. A key may share a prefix with the last one."""
    offset, at = varint(handle, 0)
    size, _ = varint(handle, at)
    content, trailer = table[offset : offset + size + 1], table[offset + size + 1 : offset + size + 5]
    if len(trailer) < 4:
        raise ValueError("is truncated: a block lies beyond its end")
    if crc32c(content) != unmask(int.from_bytes(trailer, "little")):
        raise ValueError(f"is damaged: checksum of the block at byte {offset}")
    if content[-1] != 0:
        raise NeedsTensorFlow("has compressed blocks")
    end = size - 4 - 4 * int.from_bytes(content[size - 4 : size], "little")
    at, key = 0, b""
    while at < end:
        shared, at = varint(content, at)
        unshared, at = varint(content, at)
        length, at = varint(content, at)
        if shared > len(key) or at + unshared + length > end:
            raise ValueError(f"is damaged: an entry of the block at byte {offset} does not fit")
        key = key[:shared] + content[at : at + unshared]
        at += unshared + length
        yield key, content[at - length : at]


def parse_entry(message: bytes) -> Entry:
    """A BundleEntryProto."""
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


def read_index(path: str | Path) -> tuple[dict[str, Entry], int]:
    """The tensors that an index file lists, by name, and the number of data files (shards).

    Every block's checksum is checked. Raises OSError, ValueError naming the file and its fault, or NeedsTensorFlow.
    """
    table = Path(path).read_bytes()
    try:
        if len(table) < 48 or table[-8:] != (0xDB4775248B80FB57).to_bytes(8, "little"):
            raise ValueError("is not the index of a TensorFlow V2 checkpoint, or is truncated")
        footer = table[-48:]
        list(block(table, footer))  # the meta index: unused, but its checksum counts
        _, at = varint(footer, 0)
        _, at = varint(footer, at)
        handle = footer[at:]
        entries = dict(pair for _, inner in block(table, handle) for pair in block(table, inner))
        header = dict(fields(entries.pop(b"", b"")))
        if header.get(2, 0) != 0:
            raise NeedsTensorFlow("is big-endian")
        if not isinstance(n_shards := header.get(1, 1), int):
            raise ValueError("holds a broken protocol buffer")
        return {name.decode(): parse_entry(entry) for name, entry in entries.items()}, n_shards
    except NeedsTensorFlow as error:
        raise NeedsTensorFlow(f"{path} {error}") from None
    except ValueError as error:
        raise ValueError(f"{path} {error}") from None
    except TypeError:
        raise ValueError(f"{path} holds a broken protocol buffer") from None


# ------------------------------------------------------------------------------------------------- opening a model


def data_path(prefix: Path, shard: int, n_shards: int) -> Path:
    """The file that holds a shard of the checkpoint with this prefix."""
    return prefix.with_name(f"{prefix.name}.data-{shard:05d}-of-{n_shards:05d}")


def map_file(path: Path, inside: list[Entry]) -> mmap.mmap | bytes:
    """Map a data file into memory, read-only. Raises ValueError when its length is not what the index says."""
    expected = max((entry.offset + entry.size for entry in inside), default=0)
    with open(path, "rb") as file:
        length = os.fstat(file.fileno()).st_size
        if length != expected:
            raise ValueError(f"{path} has {length:,} bytes, but its index describes {expected:,}")
        if not length:
            return b""
        mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    with contextlib.suppress(AttributeError, OSError):  # Linux has it: a token of 1558M took 15 % less time
        mapped.madvise(mmap.MADV_HUGEPAGE)
    return mapped


def entries_in_shard(entries: dict[str, Entry], shard: int) -> dict[str, Entry]:
    return {name: entry for name, entry in entries.items() if entry.shard == shard}


def view(entry: Entry, maps: list[mmap.mmap | bytes]) -> Array:
    """A tensor as an array that reads from the mapped file. Raises ValueError, or NeedsTensorFlow for its dtype."""
    if entry.dtype not in DTYPES:
        raise NeedsTensorFlow(f"has a tensor of TensorFlow's dtype {entry.dtype}")
    dtype = np.dtype(DTYPES[entry.dtype])
    if not 0 <= entry.shard < len(maps) or entry.size != math.prod(entry.shape) * dtype.itemsize:
        raise ValueError(f"shape {entry.shape} does not fit {entry.size} bytes in shard {entry.shard} of {len(maps)}")
    return np.ndarray(entry.shape, dtype, maps[entry.shard], entry.offset)  # type: ignore[no-any-return]


def expected_shapes(hparams: dict[str, int]) -> dict[str, tuple[int, ...]]:
    """Every tensor of a GPT-2 of these hyper-parameters, by the checkpoint's names without `model/`."""
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
    """{"h0/ln_1/g": …} as {"blocks": [{"ln_1": {"g": …}}]}; every w loses its leading 1, nothing is copied."""
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


def read_plain(prefix: Path) -> dict[str, Array]:
    """All tensors of a plain V2 checkpoint, as read-only views of its data files."""
    if not prefix.with_name(prefix.name + ".index").exists() and prefix.exists():
        raise NeedsTensorFlow(f"{prefix} is a V1 checkpoint")
    entries, n_shards = read_index(prefix.with_name(prefix.name + ".index"))
    maps = [
        map_file(data_path(prefix, shard, n_shards), [*entries_in_shard(entries, shard).values()])
        for shard in range(n_shards)
    ]
    tensors = {}
    for name, entry in entries.items():
        try:
            tensors[name] = view(entry, maps)
        except NeedsTensorFlow as error:
            if name.startswith("model/"):
                raise NeedsTensorFlow(f"{prefix} {error}: {name}") from None
        except ValueError as error:
            raise ValueError(f"{prefix}.index: {name}: {error}") from None
    return tensors


def read_by_tensorflow(prefix: Path, reason: NeedsTensorFlow) -> dict[str, Array]:
    """All tensors of any checkpoint, copied by TensorFlow."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    try:
        import tensorflow as tf
    except ImportError:
        raise ValueError(f"{reason}: that takes TensorFlow to read, and it is not installed") from None
    try:
        reader = tf.train.load_checkpoint(str(prefix))
        return {name: reader.get_tensor(name) for name in reader.get_variable_to_shape_map()}
    except (tf.errors.OpError, RuntimeError, TypeError) as error:  # whatever TensorFlow says, in one line
        raise ValueError(f"{reason}, and TensorFlow can't read it: {str(error).splitlines()[0]}") from None


def load_gpt2_params_from_tf_ckpt(tf_ckpt_path: str | Path, hparams: dict[str, int]) -> Params:
    """The parameters of the checkpoint with this prefix (models/124M/model.ckpt), nested by its own names.

    Arrays are read-only views of the mapped data file where TensorFlow is not needed. Raises OSError for a missing
    file, ValueError for one that is broken or does not belong to these hyper-parameters.
    """
    prefix = Path(tf_ckpt_path)
    try:
        tensors = read_plain(prefix)
    except NeedsTensorFlow as reason:
        tensors = read_by_tensorflow(prefix, reason)
    found = {name[len("model/") :]: tensor for name, tensor in tensors.items() if name.startswith("model/")}
    if hparams["n_layer"] > len(found):
        raise ValueError(
            f"{prefix}.index has {len(found)} tensors, but hparams.json says n_layer = {hparams['n_layer']}"
        )
    shapes = expected_shapes(hparams)
    for name, shape in shapes.items():
        if name not in found:
            raise ValueError(f"{prefix}.index has no tensor model/{name}, which hparams.json implies")
        if found[name].shape != shape:
            raise ValueError(f"{prefix}.index: model/{name} is {found[name].shape}, but hparams.json implies {shape}")
        if found[name].dtype != found["wte"].dtype or found[name].dtype.kind != "f":
            raise ValueError(f"{prefix}.index: model/{name} is {found[name].dtype}, model/wte {found['wte'].dtype}")
    if beyond := [name for name in found if name.startswith(f"h{hparams['n_layer']}/")]:
        raise ValueError(f"{prefix}.index has model/{beyond[0]}, but hparams.json says n_layer = {hparams['n_layer']}")
    # A checker has to believe the loop above.
    return nest({name: found[name] for name in shapes}, hparams["n_layer"])  # type: ignore[return-value]


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object from a file. Raises OSError, or ValueError naming the file."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is not JSON: {error}") from None
    if not isinstance(content, dict):
        raise ValueError(f"{path} is not a JSON object")
    return content


def load_hparams(path: Path) -> dict[str, int]:
    """The five hyper-parameters. Raises OSError or ValueError naming the file and the value."""
    hparams = read_json(path)
    for name in HPARAMS:
        value = hparams.get(name)
        if type(value) is not int or not 0 < value < 1 << 31:
            raise ValueError(f"{path}: {name} is {value!r}, not a positive whole number")
    if hparams["n_embd"] % hparams["n_head"]:
        raise ValueError(f"{path}: n_embd = {hparams['n_embd']} is no multiple of n_head = {hparams['n_head']}")
    return hparams


def checkpoint_prefix(folder: Path) -> Path:
    """Where the folder's checkpoint lies: the name that its `checkpoint` file gives (fine-tuned: model-1000)."""
    with contextlib.suppress(OSError, UnicodeDecodeError):
        text = (folder / "checkpoint").read_text(encoding="utf-8")
        if match := re.search(r'^model_checkpoint_path: *"([^"]+)"', text, re.MULTILINE):
            return folder / (re.split(r"[/\\]", match[1])[-1] or "model.ckpt")
    return folder / "model.ckpt"


def load_hparams_and_params(folder: Path) -> tuple[dict[str, int], Params]:
    """What a model's folder holds, apart from the tokenizer."""
    hparams = load_hparams(folder / "hparams.json")
    return hparams, load_gpt2_params_from_tf_ckpt(checkpoint_prefix(folder), hparams)


def load_encoder_hparams_and_params(
    model_size: str, models_dir: str | Path = "models"
) -> tuple[Encoder, dict[str, int], Params]:
    """Everything that `gpt2` needs of the model models_dir/model_size, downloaded first where it is one of SIZES.

    Raises OSError (files, network) or ValueError (contents), each naming what is wrong in one line.
    """
    folder = ensure_downloaded(model_size, models_dir)
    encoder = get_encoder(model_size, models_dir)
    hparams, params = load_hparams_and_params(folder)
    if len(encoder.encoder) != hparams["n_vocab"]:
        raise ValueError(
            f"{folder}: encoder.json has {len(encoder.encoder)} tokens, hparams.json n_vocab = {hparams['n_vocab']}"
        )
    return encoder, hparams, params


def ensure_downloaded(model_size: str, models_dir: str | Path, files: tuple[str, ...] = FILES) -> Path:
    """The folder of a model, after downloading those of its files that are missing, if it is one of SIZES.

    Any other folder may hold a checkpoint of another name and has to be there. Raises OSError saying what there is.
    """
    folder = Path(models_dir) / model_size
    if model_size in SIZES:
        if missing := [name for name in files if not (folder / name).exists()]:
            download_gpt2_files(model_size, folder, tuple(missing))
    elif not folder.is_dir() or folder == Path(models_dir):
        there = sorted(path.parent.name for path in Path(models_dir).glob("*/hparams.json"))
        raise FileNotFoundError(
            f"no model {model_size!r} in {Path(models_dir).absolute()}: it has {', '.join(there) or 'none'}; "
            f"{', '.join(SIZES)} can be downloaded"
        )
    return folder


# ------------------------------------------------------------------------------------------------------ downloading


class DownloadError(OSError):
    """A download that can't be completed, and what to do instead."""


def log(message: str) -> None:
    print(message, file=sys.stderr, flush=True)


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Let one process at a time into a folder. The system frees the lock when the process ends, however it ends."""
    path = folder / ".lock"
    while True:
        folder.mkdir(parents=True, exist_ok=True)  # a process that got nothing may just have removed it
        with open(path, "a+b") as file:
            try:
                lock(file.fileno(), wait=False)
            except OSError:
                log(f"waiting for another process that is downloading to {folder}")
                lock(file.fileno(), wait=True)
            if not is_still(file.fileno(), path):
                continue  # whoever had the lock has removed its file, and newcomers lock another
            try:
                return (yield)
            finally:
                with contextlib.suppress(OSError):  # Windows does not remove an open file: it stays, empty
                    path.unlink()


def is_still(descriptor: int, path: Path) -> bool:
    """Whether an open file is the one that has this name now."""
    try:
        return os.path.samestat(os.fstat(descriptor), path.stat())
    except FileNotFoundError:
        return False


def lock(descriptor: int, wait: bool) -> None:
    """Lock an open file against other processes; raises OSError when it is taken and we don't wait."""
    if sys.platform == "win32":
        import msvcrt

        while True:
            try:
                return msvcrt.locking(descriptor, msvcrt.LK_LOCK if wait else msvcrt.LK_NBLCK, 1)
            except OSError:  # LK_LOCK gives up after ten seconds
                if not wait:
                    raise
    import fcntl

    fcntl.flock(descriptor, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB)


def receive(url: str, partial: Path) -> None:
    """One attempt: append to the partial file what it lacks. Raises requests' exceptions, or DownloadError for good."""
    import requests
    from tqdm import tqdm

    have = partial.stat().st_size if partial.exists() else 0
    headers = {"Accept-Encoding": "identity"} | ({"Range": f"bytes={have}-"} if have else {})
    with requests.get(url, headers=headers, stream=True, timeout=TIMEOUT) as response:
        have, total = parse_range(response, url, partial, have)
        if have and have == total:
            return
        bar = tqdm(desc=url.rsplit("/", 1)[-1], total=total, initial=have, unit="B", unit_scale=True, unit_divisor=1024)
        with bar, open(partial, "ab" if have else "wb") as file:
            for chunk in response.iter_content(1 << 16):
                write(file, chunk)
                bar.update(len(chunk))
    if total is not None and partial.stat().st_size != total:
        raise requests.ConnectionError(f"{url} broke off at {partial.stat().st_size:,} of {total:,} bytes")


def parse_range(response: Any, url: str, partial: Path, have: int) -> tuple[int, int | None]:
    """From which byte on an answer to "all from byte `have` on" is, and how long the file is, if it says so."""
    import requests

    span, length = response.headers.get("Content-Range", ""), response.headers.get("Content-Length", "")
    size = span.rpartition("/")[2]
    if response.status_code == 416 and have and span == f"bytes */{have}":
        return have, have
    if response.status_code == 416 or (response.status_code == 206 and not span.startswith(f"bytes {have}-")):
        partial.unlink(missing_ok=True)
        raise requests.ConnectionError(f"{url}: asked for byte {have} on, the server answered {span or 'nothing'}")
    if 400 <= response.status_code < 500 and response.status_code not in (408, 429):
        raise DownloadError(f"{url}: the server answers {response.status_code} {response.reason}")
    response.raise_for_status()
    if response.status_code != 206:
        have, size = 0, length
    return have, int(size) if size.isdecimal() else None


def write(file: Any, data: bytes) -> None:
    try:
        file.write(data)
    except OSError as error:  # no space left: say where
        raise OSError(error.errno, error.strerror, file.name) from None


def fetch(url: str, path: Path, check: Callable[[Path], None]) -> None:
    """Download to a partial file, resuming what an earlier run left; check it; only then give it its name."""
    import requests

    partial = path.with_name(path.name + ".partial")
    failures, best = 0, partial.stat().st_size if partial.exists() else 0
    while True:
        try:
            receive(url, partial)
            check(partial)
            return os.replace(partial, path)
        except (requests.RequestException, ValueError) as caught:
            error = caught.with_traceback(None)  # whose frames hold the file open
        if isinstance(error, requests.RequestException) and isinstance(error, ValueError):  # no address at all
            failures = len(PAUSES)
        elif isinstance(error, ValueError):
            partial.unlink(missing_ok=True)
        have = partial.stat().st_size if partial.exists() else 0
        if have > best:  # a line that drops now and then gets there in the end
            failures, best = 0, have
        if failures == len(PAUSES):
            raise DownloadError(f"can't download {url}: {reason(error)}")
        pause = PAUSES[failures]
        failures += 1
        log(f"{path.name}: {reason(error)}; attempt {failures + 1} in {pause} s")
        time.sleep(pause)


def reason(error: Exception) -> str:
    """The first line of an error, without what urllib3 wraps around the cause."""
    text = str(error).splitlines()[0] if str(error) else type(error).__name__
    if match := re.search(r"Caused by \w+\([\"'](.*)[\"']\)\)$", text):
        text = match[1]
    return re.sub(r"<[^<>]*object at 0x[0-9a-f]+>:? ?|HTTPS?Connection(Pool)?\(.*?\): ?", "", text)[:300]


def check_file(path: Path, name: str, folder: Path) -> None:
    """Raise ValueError unless a downloaded file is what its name says; folder holds those that came before it."""
    if name in SHA256 and hashlib.sha256(path.read_bytes()).hexdigest() != SHA256[name]:
        raise ValueError(f"{folder / name} is not OpenAI's file: its sha256 differs")
    if name == "hparams.json":
        load_hparams(path)
    if name == INDEX:
        read_index(path)
    if name == "checkpoint" and not re.fullmatch(rb'model_checkpoint_path: "[^"]+"\n(\w+: .+\n)*', path.read_bytes()):
        raise ValueError(f"{folder / name} does not name a checkpoint: an error page?")
    if name == "model.ckpt.meta" and 1 not in dict(fields(path.read_bytes())):  # a MetaGraphDef's meta_info_def
        raise ValueError(f"{folder / name} is not a graph: an error page?")
    if name == DATA:
        entries, _ = read_index(folder / INDEX)
        verify_data([path], entries)


def verify_data(paths: list[Path], entries: dict[str, Entry]) -> None:
    """Check the length of the data files and the checksum of every tensor in them; raises ValueError on the first.

    Text tensors, which no GPT-2 needs, are passed over: TensorFlow computes their checksums from something else.
    """
    from tqdm import tqdm

    for shard, path in enumerate(paths):
        inside = entries_in_shard(entries, shard)
        data = np.frombuffer(map_file(path, [*inside.values()]), np.uint8)
        bar = tqdm(desc=f"checking {path.name}", total=len(data), unit="B", unit_scale=True, disable=None)
        with bar:
            for name, entry in inside.items():
                if entry.dtype == STRING:
                    continue
                if crc32c(data[entry.offset : entry.offset + entry.size], bar.update) != entry.crc:
                    raise ValueError(f"{path} is damaged: the checksum of {name} differs from the index")


def verify(prefix: Path) -> str:
    """Check every byte of a checkpoint's data and say what was checked. Raises ValueError for a damaged file."""
    try:
        entries, n_shards = read_index(prefix.with_name(prefix.name + ".index"))
    except (NeedsTensorFlow, FileNotFoundError):
        return f"{prefix.name} was read by TensorFlow, which checks it as it reads"
    verify_data([data_path(prefix, shard, n_shards) for shard in range(n_shards)], entries)
    count = sum(math.prod(entry.shape) for entry in entries.values())
    return f"{len(entries)} tensors, {count:,} numbers; all checksums are right"


def download_gpt2_files(model_size: str, model_dir: str | Path, files: tuple[str, ...] = FILES) -> None:
    """Download OpenAI's files of a size into a folder, one process at a time; files that are there stay as they are.

    Raises ValueError for an unknown size, DownloadError (an OSError) when the network or the server does not let it.
    """
    if model_size not in SIZES:
        raise ValueError(f"unknown size {model_size!r}: OpenAI published {', '.join(SIZES)}")
    folder = Path(model_dir)
    address = os.environ.get("PICOGPT_MIRROR", "").rstrip("/") or ADDRESS
    try:
        with locked(folder):
            for name in files:
                if name == DATA and (folder / INDEX).exists():
                    read_index(folder / INDEX)  # what the data are checked against
                if not (folder / name).exists():  # another process may have been faster
                    check = functools.partial(check_file, name=name, folder=folder)
                    fetch(f"{address}/{model_size}/{name}", folder / name, check)
    except DownloadError as error:
        raise DownloadError(
            f"{error}. Without network: use --model_size tiny, which comes with picogpt, copy the seven files into "
            f"{folder}, or name a mirror in the environment variable PICOGPT_MIRROR"
        ) from None
    finally:
        with contextlib.suppress(OSError):  # where nothing came, nothing stays
            folder.rmdir()


# ------------------------------------------------------------------------------------------------- the command line


class Parser(argparse.ArgumentParser):
    """Errors are one line, as everywhere else, and -h is no option: a prompt may begin so."""

    def __init__(self, **settings: Any):
        super().__init__(add_help=False, formatter_class=argparse.RawDescriptionHelpFormatter, **settings)
        self.add_argument("--help", action="help", help="show this and leave")

    def error(self, message: str) -> Any:
        self.exit(2, f"{self.prog}: {' '.join(message.splitlines())}\n")


def number(
    low: float, high: float = math.inf, kind: type[float] = float, open_low: bool = False
) -> Callable[[str], float]:
    """A parser of a finite number from low to high, which names the limits when it refuses one."""

    def parse(text: str) -> float:
        try:
            value = kind(text)
        except ValueError:
            value = math.nan
        if not (low < value if open_low else low <= value) or not value <= high or value == math.inf:
            name = "a whole number" if kind is int else "a number"
            limits = f"{'above' if open_low else 'at least'} {low:g}" + (
                f" and at most {high:g}" if high < math.inf else ""
            )
            raise argparse.ArgumentTypeError(f"{text!r} is not {name} {limits}")
        return value

    return parse


def read_prompt(text: str) -> str:
    """The prompt from the command line, or from standard input where it is "-", without its last line end.

    Raises UsageError when it is not valid UTF-8.
    """
    if text == "-":
        if sys.stdin is None:
            raise UsageError("standard input is closed")
        try:
            return re.sub(r"\r?\n\Z", "", sys.stdin.buffer.read().decode("utf-8"))
        except UnicodeDecodeError as error:
            raise UsageError(
                f"standard input is not UTF-8: byte {error.start} is 0x{error.object[error.start]:02x}"
            ) from None
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise UsageError(f"the prompt is not valid UTF-8: character {error.start} is {text[error.start]!r}") from None
    return text


def read_text(path: Path) -> str:
    """A text file. Raises UsageError naming the byte when it is not UTF-8."""
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise UsageError(f"{path} is not UTF-8: byte {error.start} is 0x{error.object[error.start]:02x}") from None


def run(main: Callable[[], int]) -> int:
    """Run a command line to its exit status: an error is one line on stderr, Ctrl-C and a closed pipe are silent."""
    if sys.stdout is None:  # closed by whoever started us
        sys.stdout = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115
    if sys.stderr is None:  # or print would send to stdout what is not meant for it
        sys.stderr = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115
    sys.stdout.reconfigure(errors="replace")  # type: ignore[union-attr]
    for name in ("SIGTERM", "SIGHUP"):  # as sys.exit, so that nothing half-written stays
        if hasattr(signal, name) and signal.getsignal(number_of := getattr(signal, name)) is signal.SIG_DFL:
            signal.signal(number_of, lambda number_of, frame: sys.exit(128 + number_of))
    try:
        return flushed(main)
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:
        status = 141
    except (OSError, ValueError) as error:
        text = f"{error.filename}: {error.strerror}" if isinstance(error, OSError) and error.filename else str(error)
        log(f"{Path(sys.argv[0]).name}: {text}")
        status = 2 if isinstance(error, UsageError) else 1
    try:
        sys.stdout.flush()
    except OSError:  # or Python tries once more at exit, and complains
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return status


def flushed(main: Callable[[], int]) -> int:
    """main's exit status, after what it printed has really been written."""
    try:
        status = main()
    except SystemExit as error:  # argparse
        status = int(error.code or 0)
    sys.stdout.flush()
    return status


def main(argv: list[str] | None = None) -> int:
    """Download what is missing of a model, verify all of it, and print what it is."""
    parser = Parser(
        description="Download a model's missing files, verify every byte of it, and print what was found.",
        epilog="examples:\n  python utils.py 124M\n  python utils.py my-finetuned-model --models_dir ~/models",
    )
    parser.add_argument("model_size", help=f"one of {', '.join(SIZES)}, or a folder of --models_dir")
    parser.add_argument("--models_dir", default="models", help="where the models are (default: %(default)s)")
    args = parser.parse_args(argv)
    folder = ensure_downloaded(args.model_size, args.models_dir)
    encoder, hparams, params = load_encoder_hparams_and_params(args.model_size, args.models_dir)
    for name in FILES[:-1]:  # the data file comes last, and takes longest
        if (folder / name).exists() and (args.model_size in SIZES or name not in SHA256):
            check_file(folder / name, name, folder)
    weights = verify(checkpoint_prefix(folder))
    known = [hashlib.sha256((folder / name).read_bytes()).hexdigest() == SHA256[name] for name in TOKENIZER_FILES]
    print(f"{folder}: " + ", ".join(f"{name} {hparams[name]}" for name in HPARAMS))
    print(f"tokenizer: {len(encoder.encoder):,} tokens, " + ("OpenAI's files" if all(known) else "not OpenAI's files"))
    print(f"weights: {params['wte'].dtype}, {weights}")
    return 0


if __name__ == "__main__":
    sys.exit(run(main))
