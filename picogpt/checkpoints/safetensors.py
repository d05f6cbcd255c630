"""Read and write safetensors files, in which most models on the Hugging Face hub are stored, with NumPy alone.

A file holds the length of its header in 8 bytes, the header as JSON, and then the numbers of all tensors, row by row
and little-endian. The header gives the type and the shape of each tensor, and where its bytes begin and end:

    {"wpe.weight": {"dtype": "F32", "shape": [1024, 768], "data_offsets": [0, 3145728]}, "__metadata__": {}}

Source: the README of safetensors.
"""

from __future__ import annotations

import contextlib
import json
import math
import mmap
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

Array = np.ndarray[Any, np.dtype[Any]]

DTYPES = {"F32": "<f4", "F64": "<f8", "F16": "<f2", "BF16": "<u2"}  # bfloat16, which NumPy lacks, as its two bytes


class StoredTensor(NamedTuple):
    """A tensor in a mapped file. Its bytes begin at `offset`. The dtype may be one that NumPy does not have."""

    dtype: str
    shape: tuple[int, ...]
    file: mmap.mmap
    offset: int

    def read(self) -> Array:
        """Return a read-only view of the file. float16 and bfloat16, with which NumPy is slow, become float32 copies.

        A bfloat16 is the upper half of a float32. Matrix products of numbers at odd addresses are slow, so these are
        copied, too; files of today have none.
        """
        array: Array = np.ndarray(self.shape, DTYPES[self.dtype], self.file, self.offset)
        if self.dtype == "BF16":
            wide = array.astype(np.uint32)
            wide <<= 16
            return wide.view(np.float32)
        if self.dtype == "F16":
            return array.astype(np.float32)
        return array if array.flags.aligned else array.copy()


def read_safetensors(path: Path) -> dict[str, StoredTensor]:
    """Map a file, and return its tensors by name. Raises OSError, or ValueError for another or an incomplete file."""
    with open(path, "rb") as file:
        length, begin = os.fstat(file.fileno()).st_size, file.read(60)
        data = 8 + int.from_bytes(begin[:8], "little")  # where the numbers begin
        if data > length:
            raise ValueError(f"{path} is not a safetensors file: {what_it_is(begin)}")
        mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    with contextlib.suppress(AttributeError, OSError):  # Linux only: large pages, as in utils.map_file
        mapped.madvise(mmap.MADV_HUGEPAGE)
    tensors, end = {}, data
    try:
        for name, entry in json.loads(mapped[8:data].decode("utf-8")).items():
            if name == "__metadata__":
                continue
            first, last = (data + offset for offset in entry["data_offsets"])
            tensor = tensors[name] = StoredTensor(entry["dtype"], tuple(entry["shape"]), mapped, first)
            size = np.dtype(DTYPES.get(tensor.dtype, "V0")).itemsize * math.prod(tensor.shape)
            if tensor.dtype in DTYPES and size != last - first:
                raise ValueError(f"{name} has {last - first:,} bytes, not {size:,}")
            end = max(end, last)
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise ValueError(f"{path}: its header is damaged: {error}") from None
    if length != end:
        raise ValueError(f"{path} has {length:,} bytes, but its header describes {end:,}: download or save it again")
    return tensors


def what_it_is(begin: bytes) -> str:
    """Say what a file is that begins with these bytes, and what to do about it."""
    if begin.startswith(b"version https://git-lfs"):
        return "it only tells Git LFS where the weights are; `git lfs pull` in its folder downloads them"
    return f"it begins with {begin[:20].decode('ascii', 'replace')!r}; download or save it again"


def write_safetensors(path: Path, tensors: Mapping[str, Array]) -> None:
    """Write tensors of type float32 or float64 by name."""
    from tqdm import tqdm

    names, header, end = {dtype: name for name, dtype in DTYPES.items()}, {}, 0
    for name, array in tensors.items():
        dtype = names[array.dtype.newbyteorder("<").str]
        header[name] = {"dtype": dtype, "shape": array.shape, "data_offsets": (end, end := end + array.nbytes)}
    # transformers before version 5 refuses a file without the format. Spaces make the numbers begin at a multiple of 8.
    text = json.dumps({"__metadata__": {"format": "pt"}, **header}).encode()
    text += b" " * (-len(text) % 8)
    bar = tqdm(None, "writing", end, unit="B", unit_scale=True, leave=False, disable=None)
    try:
        with open(path, "wb") as file, bar:
            file.write(len(text).to_bytes(8, "little") + text)
            for array in tensors.values():
                file.write(np.ascontiguousarray(array, array.dtype.newbyteorder("<")).data)
                bar.update(array.nbytes)
    except OSError as error:  # that of a full disk does not know the file's name
        error.filename = str(path)
        raise
