"""Open GPT-2 checkpoints as OpenAI published them: read the weights without TensorFlow, verify them, download them.

    python utils.py 124M        download missing files, verify every byte, and print the model's hyperparameters

A model is a folder. `hparams.json` holds the hyperparameters, such as the number of layers; `encoder.json` and
`vocab.bpe` belong to the tokenizer (encoder.py). The weights are a TensorFlow checkpoint: `checkpoint` holds its name,
`model.ckpt.index` lists the tensors, `model.ckpt.data-00000-of-00001` holds their numbers, and `model.ckpt.meta` holds
a graph that only TensorFlow uses. To understand GPT-2, the first part of this file, which opens a model, is enough.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import importlib
import json
import math
import mmap
import os
import re
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from encoder import Encoder, get_encoder

if TYPE_CHECKING:
    from picogpt.typing.shapes import Params

    Array = np.ndarray[Any, np.dtype[Any]]
    Model = tuple[Encoder, dict[str, int], Params]

HPARAMS = ("n_vocab", "n_ctx", "n_embd", "n_head", "n_layer")
SHAPES = {"124M": (768, 12, 12), "355M": (1024, 16, 24), "774M": (1280, 20, 36), "1558M": (1600, 25, 48)}
SIZES: dict[str, dict[str, int]] = {size: dict(zip(HPARAMS, (50257, 1024, *shape))) for size, shape in SHAPES.items()}
NAMES = dict(zip(["gpt2", "gpt2-medium", "gpt2-large", "gpt2-xl", "117M", "345M", "762M", "1542M"], 2 * [*SIZES]))
TOKENIZER_FILES = ("encoder.json", "vocab.bpe")
INDEX, META, DATA = "model.ckpt.index", "model.ckpt.meta", "model.ckpt.data-00000-of-00001"
FILES = ("checkpoint", *TOKENIZER_FILES, "hparams.json", INDEX, META, DATA)
ADVICE = "Delete what is damaged, and it is downloaded again; give a model of your own another name"

# ----------------------------------------------------------------------------------------------------- open a model


def load_encoder_hparams_and_params(model_size: str, models_dir: str | Path = "models") -> Model:
    """Return the tokenizer, the hyperparameters and the parameters of a model, which may be downloaded first.

    The parameters are read-only, because they are the mapped file itself: copy an array before you change it, as in
    `params["wte"] = params["wte"].copy()`, or all of them with copy.deepcopy. Raises OSError (files, network) or
    ValueError (contents of files) with a message of one line.
    """
    folder = ensure_downloaded(model_size, models_dir)
    if reader := foreign(folder):
        return reader.open_model(folder, models_dir)  # type: ignore[no-any-return]
    encoder = load_encoder(folder)
    hparams, params = load_hparams_and_params(folder)
    if len(encoder.encoder) != hparams["n_vocab"]:
        raise ValueError(f"{folder} has {len(encoder.encoder)} tokens, but its n_vocab is {hparams['n_vocab']}")
    return encoder, hparams, params


def load_encoder(folder: Path) -> Encoder:
    """Return the tokenizer of the model in a folder. If the folder is named as one of SIZES, it must be OpenAI's."""
    if reader := foreign(folder):
        return reader.open_encoder(folder, folder.parent)  # type: ignore[no-any-return]
    encoder = get_encoder(folder.name, folder.parent)
    if folder.name in SIZES and not encoder.is_openai:
        raise ValueError(f"{folder}: encoder.json and vocab.bpe are not OpenAI's. {ADVICE}")
    return encoder


def load_hparams_and_params(folder: Path) -> tuple[dict[str, int], Params]:
    """Return the hyperparameters and the parameters of the model in a folder."""
    if reader := foreign(folder):
        return reader.open_model(folder, folder.parent)[1:]  # type: ignore[no-any-return]
    hparams = load_hparams(folder / "hparams.json")
    if hparams != SIZES.get(folder.name, hparams):
        raise ValueError(f"{folder / 'hparams.json'} is not OpenAI's: {hparams}. {ADVICE}")
    return hparams, load_gpt2_params_from_tf_ckpt(checkpoint_prefix(folder), hparams)


def foreign(folder: Path) -> Any:
    """Return the module that opens a folder in another layout than OpenAI's, such as Hugging Face's, or else None."""
    has = [(folder / name).exists() for name in ("hparams.json", "config.json", "model.safetensors")]
    return beside("foreign", f"{folder} is not in OpenAI's layout") if any(has) and not has[0] else None


def beside(module: str, reason: object) -> Any:
    """Return a module of picogpt/checkpoints/, which opens what this file can't. `reason` says what that is."""
    try:
        return importlib.import_module(f"picogpt.checkpoints.{module}")
    except ModuleNotFoundError:
        raise ImportError(f"{reason}: to open it, put the project's folder picogpt/ beside utils.py") from None


def load_hparams(path: Path) -> dict[str, int]:
    """Read the five hyperparameters of a model. Raises OSError, or ValueError naming the file and the wrong value."""
    content = read_json(path)
    for name in HPARAMS:
        if type(content.get(name)) is not int or not 0 < content[name] < 1 << 31:
            raise ValueError(f"{path}: {name} is {content.get(name)!r}, not a positive whole number")
    if content["n_embd"] % content["n_head"]:
        raise ValueError(f"{path}: n_embd = {content['n_embd']} is not a multiple of n_head = {content['n_head']}")
    return {name: content[name] for name in HPARAMS}


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object from a file. Raises OSError, or ValueError naming the file."""
    try:
        return {**json.loads(path.read_text(encoding="utf-8"))}
    except (TypeError, ValueError, RecursionError) as error:
        raise ValueError(f"{path} is not a JSON object: {error}") from None


def checkpoint_prefix(folder: Path) -> Path:
    """Return the path that the names of the checkpoint's files begin with, such as models/124M/model.ckpt."""
    with contextlib.suppress(FileNotFoundError, UnicodeDecodeError):
        text = (folder / "checkpoint").read_text(encoding="utf-8")
        if match := re.search(r'^model_checkpoint_path: *"(?:.*[/\\])?([^"/\\]+)"', text, re.MULTILINE):
            return folder / match[1]
    names = [path.name.removesuffix(".index") for path in folder.glob("*.index")]
    return folder / (names[0] if len(names) == 1 else "model.ckpt")


def load_gpt2_params_from_tf_ckpt(tf_ckpt_path: str | Path, hparams: dict[str, int]) -> Params:
    """Return the parameters of a checkpoint as nested dictionaries with the checkpoint's own names.

    `tf_ckpt_path` is the checkpoint's prefix, such as models/124M/model.ckpt. The arrays are read-only views of the
    data file, so opening takes no time and no memory. Raises OSError, or ValueError if the files do not fit hparams.
    """
    prefix, n_layer = Path(tf_ckpt_path), hparams["n_layer"]
    try:
        tensors = read_tensors(prefix)
    except NeedsTensorFlow as reason:
        tensors = beside("tensorflow_reader", reason).read_by_tensorflow(prefix, reason)
    if n_layer > len(tensors) or f"h{n_layer}/ln_1/g" in tensors:
        raise ValueError(f"{prefix}.index has {len(tensors)} tensors, which do not fit n_layer = {n_layer}")
    for name, shape in expected_shapes(hparams).items():
        if name not in tensors or (tensors[name].shape, tensors[name].dtype) != (shape, tensors["wte"].dtype):
            found = f"{tensors[name].dtype} {tensors[name].shape}" if name in tensors else "missing, or of another type"
            raise ValueError(f"{prefix}.index: model/{name} is {found}, but hparams.json implies one dtype and {shape}")
    return nest({name: tensors[name] for name in expected_shapes(hparams)}, n_layer)  # type: ignore[return-value]


def expected_shapes(hparams: dict[str, int]) -> dict[str, tuple[int, ...]]:
    """Return the shape of every tensor of a model by its name: in 124M, 148 tensors with 124,439,808 numbers."""
    e = hparams["n_embd"]
    linears = {"attn/c_attn": (e, 3 * e), "attn/c_proj": (e, e), "mlp/c_fc": (e, 4 * e), "mlp/c_proj": (4 * e, e)}
    shapes: dict[str, tuple[int, ...]] = {"wte": (hparams["n_vocab"], e), "wpe": (hparams["n_ctx"], e)}
    norms = ["ln_f"]
    for layer in range(hparams["n_layer"]):
        norms += [f"h{layer}/ln_1", f"h{layer}/ln_2"]
        for name, (n_in, n_out) in linears.items():
            shapes |= {f"h{layer}/{name}/w": (1, n_in, n_out), f"h{layer}/{name}/b": (n_out,)}
    return shapes | {f"{norm}/{part}": (e,) for norm in norms for part in "gb"}


def nest(tensors: dict[str, Array], n_layer: int) -> dict[str, Any]:
    """Turn h0/attn/c_attn/w into blocks[0]["attn"]["c_attn"]["w"], without the leading 1 of each [1, n_in, n_out]."""
    params: dict[str, Any] = {"blocks": [{} for _ in range(n_layer)]}
    for name, tensor in tensors.items():
        *path, last = re.sub(r"^h(\d+)/", r"blocks/\1/", name).split("/")
        place: Any = params
        for key in path:
            place = place[int(key)] if key.isdigit() else place.setdefault(key, {})
        place[last] = tensor.reshape(tensor.shape[1:]) if last == "w" else tensor
    return params


# ---------------------------------------------------------------------------------------------- read the checkpoint
#
# The data files of a TensorFlow V2 checkpoint hold the raw little-endian numbers. Its index is a sorted table in
# LevelDB's format, from the tensors' names to protocol buffers with type, shape and place. Formats: TensorFlow's
# core/util/tensor_bundle, core/protobuf/tensor_bundle.proto and core/lib/io/table_format.txt.

DTYPES = {1: "<f4", 2: "<f8", 19: "<f2"}  # NumPy's names for TensorFlow's floating-point types


class Entry(NamedTuple):
    """Type and shape of a tensor, its data file, and the bytes offset to offset + size of it with their CRC-32C."""

    dtype: int
    shape: tuple[int, ...]
    file: str
    offset: int
    size: int
    crc: int


class NeedsTensorFlow(ValueError):
    """Raised for a checkpoint that TensorFlow can read but this file can't."""


def read_tensors(prefix: Path) -> dict[str, Array]:
    """Return the floats named model/… of an uncompressed V2 checkpoint, as read-only views of its data files."""
    index = prefix.with_name(prefix.name + ".index")
    if not index.exists() and prefix.exists():
        raise NeedsTensorFlow(f"{prefix} is a V1 checkpoint")
    entries, tensors = read_index(index), {}
    maps = {file: map_file(prefix.with_name(file), entries) for file in {entry.file for entry in entries.values()}}
    for name, entry in entries.items():
        if name.startswith("model/") and entry.dtype in DTYPES:
            dtype = np.dtype(DTYPES[entry.dtype])
            if entry.size != math.prod(entry.shape) * dtype.itemsize:
                raise ValueError(f"{index}: {name} has {entry.size} bytes, which do not fit its shape {entry.shape}")
            tensor: Array = np.ndarray(entry.shape, dtype, maps[entry.file], entry.offset)  # float16 would overflow
            tensors[name.removeprefix("model/")] = tensor.astype(np.float32) if dtype == np.float16 else tensor
    return tensors


def n_bytes(entries: dict[str, Entry], file: str) -> int:
    """Return the length that a data file must have."""
    return max((entry.offset + entry.size for entry in entries.values() if entry.file == file), default=0)


def map_file(path: Path, entries: dict[str, Entry]) -> mmap.mmap:
    """Map a data file, or a partial one, into memory, read-only. Raises ValueError when its length is wrong."""
    length, expected = path.stat().st_size, n_bytes(entries, path.name.removesuffix(".partial"))
    if length != expected:
        raise ValueError(f"{path} has {length:,} bytes, but its index describes {expected:,}")
    with open(path, "rb") as file:
        mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    with contextlib.suppress(AttributeError, OSError):  # Linux only: large pages save 15 % of the time of a 1558M token
        mapped.madvise(mmap.MADV_HUGEPAGE)
    return mapped


def read_index(path: Path) -> dict[str, Entry]:
    """Return the entry of every tensor from an index file. Raises OSError, ValueError or NeedsTensorFlow."""
    table = path.read_bytes()
    if table[-8:] != (0xDB4775248B80FB57).to_bytes(8, "little"):
        raise ValueError(f"{path} is not the index of a TensorFlow V2 checkpoint, or is cut short")
    try:
        _, at = varint(table, len(table) - 48)  # the footer: offset and size of a block that is empty, …
        _, at = varint(table, at)  # … and of one that lists the places of all other blocks
        messages = {key: dict(fields(m)) for _, place in block(table, table[at:]) for key, m in block(table, place)}
        header = messages.pop(b"", {})
        if header.get(2) or any(7 in message for message in messages.values()):
            raise NeedsTensorFlow("is big-endian, or has tensors in slices")
        stem, n_files = path.name.removesuffix(".partial").removesuffix(".index"), header.get(1, 1)
        return {key.decode("utf-8", "replace"): parse_entry(m, stem, n_files) for key, m in messages.items()}
    except IndexError:
        raise ValueError(f"{path} is damaged") from None
    except ValueError as error:
        raise type(error)(f"{path} {error}") from None


def block(table: bytes, place: bytes) -> Iterator[tuple[bytes, bytes]]:
    """Yield the keys and values of a block of the table. `place` begins with the block's offset and size."""
    offset, at = varint(place, 0)
    size, _ = varint(place, at)
    content, stored = table[offset : offset + size + 1], table[offset + size + 1 : offset + size + 5]
    if crc32c(content) != unmask(int.from_bytes(stored, "little")):
        raise ValueError(f"is damaged: the checksum of the block at byte {offset} is wrong")
    if content[-1] != 0:
        raise NeedsTensorFlow("has compressed blocks")
    end = size - 4 - 4 * int.from_bytes(content[size - 4 : size], "little")  # behind it are places to start at
    at, key = 0, b""
    while at < end:
        n_shared, at = varint(content, at)
        n_new, at = varint(content, at)
        length, at = varint(content, at)
        key = key[:n_shared] + content[at : at + n_new]  # stored without what it shares with the key before it
        at += n_new + length
        yield key, content[at - length : at]


def parse_entry(message: dict[int, Any], stem: str, n_files: int) -> Entry:
    """Return the entry that the fields of a BundleEntryProto describe."""
    shape = tuple(dict(fields(dim)).get(1, 0) for number, dim in fields(message.get(2, b"")) if number == 2)
    dtype, shard, offset, size, crc = (message.get(number, 0) for number in (1, 3, 4, 5, 6))
    return Entry(dtype, shape, f"{stem}.data-{shard:05d}-of-{n_files:05d}", offset, size, unmask(crc))


def fields(message: bytes) -> Iterator[tuple[int, Any]]:
    """Yield the number and the value of each field of a protocol buffer message. A value is an integer or bytes."""
    at = 0
    while at < len(message):
        tag, at = varint(message, at)
        if tag & 7 == 5:  # four bytes
            value: Any = int.from_bytes(message[at : at + 4], "little")
            at += 4
        else:
            value, at = varint(message, at)
        if tag & 7 == 2:  # this was the length of bytes
            value, at = message[at : at + value], at + value
        yield tag >> 3, value


def varint(data: bytes, at: int) -> tuple[int, int]:
    """Read the varint at a position, and return its value and the position after it. Each byte holds 7 of its bits."""
    value = shift = 0
    while data[at] >= 0x80:
        value |= (data[at] & 0x7F) << shift
        at, shift = at + 1, shift + 7
    return value | data[at] << shift, at + 1


# --------------------------------------------------------------------------------------------------- verify the files

SHA256 = {  # of OpenAI's files: the tokenizer is the same for all sizes
    "encoder.json": "196139668be63f3b5d6574427317ae82f612a97c5d1cdaf36ed2256dbf636783",
    "vocab.bpe": "1ce1664773c50f3e0cc8842619a93edc4624525b728b188a9e0be33b7726adc5",
    "124M/hparams.json": "d9d56e4121c427164e0c55c6f03c08e1daf9002b9b672825112d19097b680318",
    f"124M/{INDEX}": "71916f763f9746f9b2a06b12d91996cf1084ae008d0424543d39391c5f2dc687",
    f"124M/{DATA}": "2060c885360cc0cf41d7a6dbc4d24b5127aae20260c8b5ae521b5a6578407118",
}
MARKS = {"checkpoint": b'model_checkpoint_path: "model.ckpt"\n', META: b"model/wte"}  # error pages don't hold these


def check_file(path: Path, name: str, folder: Path) -> None:
    """Raise ValueError unless `path`, which may be a partial file, is the file `name` of OpenAI's model `folder`."""
    size, known = folder.name, SHA256.get(name, SHA256.get(f"{folder.name}/{name}"))
    index = read_index(path if name == INDEX else folder / INDEX) if name in (INDEX, DATA) else {}
    data: Any = map_file(path, index) if name == DATA else path.read_bytes()
    is_right = known is None or hashlib.sha256(data).hexdigest() == known
    if name == DATA:
        verify_data(path, index)
    elif name == INDEX:
        shapes = {f"model/{key}": shape for key, shape in expected_shapes(SIZES[size]).items()}
        is_right = is_right and shapes == {key: entry.shape for key, entry in index.items()}
    elif name == "hparams.json":
        is_right = load_hparams(path) == SIZES[size] and (is_right or data[-1:] != b"\n")  # some copies lack this
    elif name not in TOKENIZER_FILES:
        is_right = is_right and name in MARKS and MARKS[name] in data
    if not is_right:
        raise ValueError(f"{path} is not OpenAI's file" + (f". {ADVICE}" if path.name == name else ""))


def verify_data(path: Path, entries: dict[str, Entry]) -> None:
    """Check the length of a data file, and the checksum of every tensor in it. Raises ValueError for a wrong one."""
    from tqdm import tqdm

    data, file = np.frombuffer(map_file(path, entries), np.uint8), path.name.removesuffix(".partial")
    with tqdm(None, f"checking {file}", len(data), unit="B", unit_scale=True, disable=None) as bar:
        for name, entry in entries.items():
            if entry.file == file and entry.dtype != 7:  # text, whose checksum is another one
                if crc32c(data[entry.offset : entry.offset + entry.size]) != entry.crc:
                    raise ValueError(f"{path} is damaged: the checksum of {name} differs from the index")
                bar.update(entry.size)


def crc32c(data: Any) -> int:
    """Return the CRC-32C (RFC 3720, B.4) of bytes: 0xe3069283 for b"123456789"."""
    data = np.frombuffer(data, np.uint8)
    message = np.frombuffer(b"Td\x1fd", np.uint8)  # turns a state of 0 into 0xFFFFFFFF, with which the CRC begins
    for start in range(0, len(data), 1 << 20):
        message = shortened(np.concatenate([message, data[start : start + (1 << 20)]]))
    state, table = 0, list(range(256))  # the state to which the byte 0 moves each state of 8 bits
    for _ in range(8):
        table = [number >> 1 ^ (number & 1) * 0x82F63B78 for number in table]
    for byte in message.tolist():
        state = state >> 8 ^ table[(state ^ byte) & 0xFF]
    return state ^ 0xFFFFFFFF


def shortened(message: Array) -> Array:
    """Return at most 5685 bytes with the CRC of a longer message, whose state begins at 0. Changes the message.

    The CRC is the remainder of a division by a polynomial, which divides x^5685 + x^1362 + x^426 + 1, also with all
    exponents times 8, 64 or 512. So the remainder stays when the first byte is taken away and xored to those 4323 =
    5685 - 1362, 5259 and 5685 bytes later. 4323 bytes, or pieces of 8 or 64 bytes in place of bytes, do so at once.
    """
    for unit in (64, 8, 1):
        at = 0
        while (size := min(len(message) - at - 5685 * unit, 4323 * unit)) > 0:
            for step in (4323, 5259, 5685):
                message[at + step * unit :][:size] ^= message[at : at + size]
            at += size
        message = message[at:]
    return message


def unmask(masked: int) -> int:
    """Return a CRC from its stored form. TensorFlow rotates it by 15 bits and adds a constant (table_format.txt)."""
    rotated = (masked - 0xA282EAD8) & 0xFFFFFFFF
    return (rotated >> 17 | rotated << 15) & 0xFFFFFFFF


# ---------------------------------------------------------------------------------------------------------- download

ADDRESS = "https://openaipublic.blob.core.windows.net/gpt-2/models"  # PICOGPT_MIRROR in the environment replaces it
TIMEOUT, PAUSES = (10, 30), (1, 2, 4)  # seconds: for a connection and for the next byte; before each further try


def ensure_downloaded(model_size: str, models_dir: str | Path = "models", files: tuple[str, ...] = FILES) -> Path:
    """Return the folder of a model: a name in models_dir, or a path. Download missing files if it is one of SIZES.

    What is relative is searched for in the current folder, then beside this file; downloads go to the current folder.
    Raises FileNotFoundError listing the models that exist, or OSError when the network or the server fails.
    """
    here, beside, short = Path(), Path(__file__).parent, model_size.removeprefix("openai-community/")
    parents, size = [here / models_dir, beside / models_dir], NAMES.get(short, short)
    is_path = Path(model_size).name not in (model_size, "", "..")
    for parent in (*parents, here, beside) if is_path else parents:
        for folder in (parent / model_size, parent / size):
            is_own = size not in SIZES or folder.name not in SIZES or foreign(folder)
            is_complete = is_own or all((folder / name).exists() for name in files if name != META)
            if folder.is_dir() and folder != parent and is_complete:
                return folder
    if size in SIZES:
        download_gpt2_files(parents[0] / size, files)
        return parents[0] / size
    there = sorted({path.parent.name for parent in parents for path in parent.glob("*/*.json")})
    places = " or ".join(dict.fromkeys(str(parent.absolute()) for parent in parents))
    known = f"only {', '.join(there) or 'nothing'}; {', '.join(SIZES)} can be downloaded"
    raise FileNotFoundError(f"there is no model {model_size!r} in {places}, {known}")


def download_gpt2_files(folder: Path, files: tuple[str, ...] = FILES) -> None:
    """Download OpenAI's files of a size, which is the folder's name. Files that exist stay, and must be OpenAI's."""
    address = os.environ.get("PICOGPT_MIRROR", "").strip().rstrip("/") or ADDRESS
    if not re.fullmatch(r"https?://([^/?#@]*@[^@?#]+|(?!.*:.*@)[^?#]+)", address):  # don't print it: is it a password?
        raise ValueError("PICOGPT_MIRROR is no address such as https://name:password@example.org (%40 is @, %2F is /)")
    for path in sorted(folder.glob("*")):  # a model of the user's own must not be mixed with OpenAI's
        if path.name in FILES[:-1] or path.suffix == ".index":
            check_file(path, path.name, folder)
    folder.mkdir(parents=True, exist_ok=True)
    with locked(folder):  # one process at a time
        for name in files:
            if not (folder / name).exists():  # another process may have downloaded it while this one waited
                download(f"{address}/{folder.name}/{name}", folder / name)


def download(url: str, path: Path) -> None:
    """Ask for what is missing of a file, write it to NAME.partial, check it, and give it its name: in four tries."""
    import requests

    partial = path.with_name(path.name + ".partial")
    for pause in (*PAUSES, None):
        is_received = False
        try:
            receive(url, partial)
            is_received = True
            check_file(partial, path.name, path.parent)
            return os.replace(partial, path)
        except (requests.RequestException, ValueError) as caught:
            error, is_hopeless = one_line(caught), isinstance(caught, ValueError) and not is_received
        except OSError as caught:  # a full disk does not say which file it means
            raise OSError(f"{partial}: {caught.strerror or caught}") from None
        if is_received:  # but wrong. Windows can remove it only here, because the exception's traceback maps the file
            partial.unlink()
        if pause is None or is_hopeless:
            ways = "use --model_size tiny, or set PICOGPT_MIRROR, or save a model by `hf download openai-community/gpt2"
            raise OSError(f"can't download {one_line(url)}: {error}. You can {ways} --local-dir models/gpt2`")
        import logging

        logging.getLogger("picogpt").warning("%s: %s; next try in %s s", path.name, error, pause)
        time.sleep(pause)


def receive(url: str, partial: Path) -> None:
    """Append the missing bytes to a partial data file, or write a small one. Raises ValueError if no try can help."""
    import requests
    from tqdm import tqdm

    total = n_bytes(read_index(partial.with_name(INDEX)), DATA) if partial.stem == DATA else 0  # 0: not known
    have = partial.stat().st_size if total and partial.exists() else 0
    if have and have == total:
        return  # only the check was interrupted
    headers = {"Accept-Encoding": "identity"} | ({"Range": f"bytes={have}-"} if 0 < have < total else {})
    with requests.get(url, headers=headers, stream=True, timeout=TIMEOUT) as response:
        code, length = response.status_code, response.headers.get("Content-Length", "")
        answer = f"the server answers {code} {response.reason}"
        if 400 <= code < 500 and code not in (408, 416, 429):
            raise ValueError(answer)
        have = have if code == 206 else 0
        expected = have + int(length) if length.isdecimal() and "Content-Encoding" not in response.headers else total
        is_page = response.headers.get("Content-Type", "").startswith("text/html")
        if code not in (200, 206) or is_page or (total and expected != total):
            raise requests.HTTPError(f"{answer}, with {'a web page' if is_page else f'{expected:,} bytes'}")
        bar = tqdm(desc=partial.stem, total=expected or None, initial=have, unit="B", unit_scale=True)
        with bar, open(partial, "ab" if have else "wb") as file:
            for chunk in response.iter_content(1 << 16):
                bar.update(file.write(chunk))
    if expected not in (0, partial.stat().st_size):
        raise requests.ConnectionError(f"broke off at {partial.stat().st_size:,} of {expected:,} bytes")


def one_line(error: Exception | str) -> str:
    """Return an error or an address in one line, without passwords and the names of urllib3's objects."""
    hidden = r"<[^<>]* at 0x\w+>[:,] |HTTPS?Connection(Pool)?\(.*?\): |(?<=//)[^/]*@"
    text = re.sub(hidden, "", " ".join(str(error).split()))
    return re.sub(r".*Caused by \w+\((.*)\)\)$", r"\1", text).strip("\"'")


def locked(folder: Path) -> Any:
    """Wait until no other process has locked a folder. The lock ends with the file that is returned, or the process."""
    file, is_waiting = open(folder / ".lock", "ab"), False  # noqa: SIM115  # it stays: a new one would be another lock
    system = importlib.import_module("msvcrt" if os.name == "nt" else "fcntl")
    while True:
        try:
            if os.name == "nt":
                system.locking(file.fileno(), system.LK_NBLCK, 1)
            else:
                system.flock(file, system.LOCK_EX | system.LOCK_NB)
            return file
        except (BlockingIOError, PermissionError):  # another process has it; Windows raises the second one
            if not is_waiting:
                import logging

                logging.getLogger("picogpt").warning("waiting for another process that is downloading to %s", folder)
            is_waiting = True
            time.sleep(0.2)
        except OSError:  # this file system has no locks
            return file


# -------------------------------------------------------------------------------------------------- the command line


def main(argv: list[str] | None = None) -> None:
    """Download the missing files of a model, verify every byte, and print the model's hyperparameters."""
    parser = argparse.ArgumentParser(usage=argparse.SUPPRESS, description=main.__doc__)
    parser.add_argument("model_size", help=f"{', '.join(SIZES)}, or a folder: its name in --models_dir, or its path")
    parser.add_argument("--models_dir", default="models", help="the folder with the models (default: models)")
    folder = ensure_downloaded(**vars(parser.parse_args(argv)))
    encoder, hparams, params = load_encoder_hparams_and_params(folder.name, folder.parent)
    for name in FILES[:-1] if folder.name in SIZES and not foreign(folder) else ():
        if (folder / name).exists():
            check_file(folder / name, name, folder)
    prefix, weights = checkpoint_prefix(folder), "read by TensorFlow, which verifies them, or without checksums"
    with contextlib.suppress(FileNotFoundError, NeedsTensorFlow):
        entries = read_index(prefix.with_name(f"{prefix.name}.index"))
        for file in {entry.file for entry in entries.values()}:
            verify_data(prefix.with_name(file), entries)
        count = sum(math.prod(entry.shape) for entry in entries.values())
        weights = f"{len(entries)} tensors, {count:,} numbers; all checksums are right"
    print(f"{folder}: " + ", ".join(f"{name} {hparams[name]}" for name in HPARAMS))
    print(f"tokenizer: {len(encoder.encoder):,} tokens, {'' if encoder.is_openai else 'not '}OpenAI's files")
    print(f"weights: {params['wte'].dtype}, {weights}" + "\nnext: python -m picogpt facts" * (folder.name == "124M"))
    if unmade := [token for token in encoder.special_tokens if not re.fullmatch(r"<.*>|\[.*\]", token)]:
        print(f"no merge makes {len(unmade)} tokens, such as {unmade[0]!r}: is vocab.bpe cut short?", file=sys.stderr)
    for size, (n_embd, n_head, n_layer) in SHAPES.items():
        if (hparams["n_embd"], hparams["n_layer"]) == (n_embd, n_layer) and hparams["n_head"] != n_head:
            print(f"n_head is {hparams['n_head']}, but {n_head} in OpenAI's {size} and its fine-tunes", file=sys.stderr)


if __name__ == "__main__":
    try:
        main()
    except (KeyboardInterrupt, BrokenPipeError):  # Ctrl-C, or a reader such as `head` that has left
        os._exit(130)
    except (ImportError, OSError, ValueError) as error:
        sys.exit(f"utils.py: {error}")
