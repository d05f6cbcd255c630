"""Write TensorFlow V2 checkpoints byte by byte, good ones and unusual ones, without TensorFlow."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import google_crc32c

DTYPES = {"float32": 1, "float64": 2, "int32": 3, "int64": 9, "bool": 10, "float16": 19}  # TensorFlow's numbers
MAGIC = (0xDB4775248B80FB57).to_bytes(8, "little")


def varint(n: int) -> bytes:
    return bytes([n]) if n < 128 else bytes([n & 127 | 128]) + varint(n >> 7)


def field(number: int, value: int | bytes) -> bytes:
    if isinstance(value, int):
        return varint(number << 3) + varint(value)
    return varint(number << 3 | 2) + varint(len(value)) + value


def masked(data: bytes) -> bytes:
    """Return the CRC-32C of data in its stored form."""
    crc = google_crc32c.value(data)
    return (((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF).to_bytes(4, "little")


def entry_of(
    dtype: int, shape: tuple[int, ...], offset: int, size: int, shard: int = 0, crc: bytes = bytes(4)
) -> bytes:
    """Return the index entry of a tensor. Without `crc`, its checksum is wrong."""
    dims = b"".join(field(2, field(1, n)) for n in shape)
    numbers = field(1, dtype) + field(2, dims) + field(3, shard) + field(4, offset)
    return numbers + field(5, size) + varint(6 << 3 | 5) + crc


def table_block(pairs: list[tuple[bytes, bytes]], kind: bytes = b"\0") -> bytes:
    """Return a block of a table with its trailer. Keys leave out the beginning they share with the key before them."""
    content, last = b"", b""
    for key, value in pairs:
        shared = next((i for i, (a, b) in enumerate(zip(key, last)) if a != b), min(len(key), len(last)))
        content += varint(shared) + varint(len(key) - shared) + varint(len(value)) + key[shared:] + value
        last = key
    content += bytes(4) + (1).to_bytes(4, "little") + kind  # one restart point, at 0
    return content + masked(content)


def snappy_block(pairs: list[tuple[bytes, bytes]]) -> bytes:
    """Return a block in Snappy's compression, as one literal: the simplest thing that the format allows."""
    content = table_block(pairs)[:-5]
    content = varint(len(content)) + b"\xf4" + (len(content) - 1).to_bytes(2, "little") + content + b"\1"
    return content + masked(content)


def table_of(*blocks: bytes, magic: bytes = MAGIC) -> bytes:
    """Return a table of these blocks of entries, with its meta index, its index and its footer."""
    handles, data = [], b""
    for i, block in enumerate(blocks):
        handles.append((b"\xff%d" % i, varint(len(data)) + varint(len(block) - 5)))
        data += block
    meta, index = table_block([]), table_block(handles)
    footer = varint(len(data)) + varint(len(meta) - 5) + varint(len(data + meta)) + varint(len(index) - 5)
    return data + meta + index + footer.ljust(40, b"\0") + magic


def header(n_shards: int = 1, **more: int) -> bytes:
    return field(1, n_shards) + field(2, more.get("endianness", 0)) + field(3, field(1, 1))


def write_model(
    folder: Path, hparams: dict[str, Any], tensors: dict[str, Any], n_shards: int = 1
) -> dict[bytes, bytes]:
    """Write hparams.json and a checkpoint of these tensors, each third of them into another shard. Return its index."""
    pairs, shards = {b"": header(n_shards)}, [b""] * n_shards
    for i, (name, array) in enumerate(sorted(tensors.items())):
        shard, data = i * n_shards // len(tensors), array.tobytes()
        dtype = DTYPES[array.dtype.name]
        pairs[name.encode()] = entry_of(dtype, array.shape, len(shards[shard]), len(data), shard, masked(data))
        shards[shard] += data
    for shard, data in enumerate(shards):
        (folder / f"model.ckpt.data-{shard:05d}-of-{n_shards:05d}").write_bytes(data)
    write_index(folder, pairs)
    (folder / "hparams.json").write_text(json.dumps(hparams), encoding="utf-8")
    return pairs


def write_index(folder: Path, pairs: dict[bytes, bytes]) -> None:
    """Write an index of two blocks, and the file `checkpoint`."""
    ordered = sorted(pairs.items())
    half = len(ordered) // 2
    (folder / "model.ckpt.index").write_bytes(table_of(table_block(ordered[:half]), table_block(ordered[half:])))
    (folder / "checkpoint").write_text('model_checkpoint_path: "model.ckpt"\n', encoding="utf-8")
