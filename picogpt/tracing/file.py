"""Write traced values to an NPZ file, one pass after another. docs/trace.md describes the format."""

from __future__ import annotations

import json
import zipfile
from collections.abc import Mapping
from typing import Any

import numpy as np

from picogpt.tracing.names import contents, joined

Array = np.ndarray[Any, np.dtype[Any]]
TABLES = ("contents", "contents.json")  # the arrays of a file that are no values


class Writer:
    """An NPZ file in the making. Each pass is written at once, so that it need not stay in memory."""

    def __init__(self, archive: zipfile.ZipFile):
        self.archive = archive
        self.rows: list[tuple[str, str, str, str]] = []  # name, shape, dtype, meaning

    def add(self, values: Mapping[str, Array]) -> None:
        """Write these values."""
        for name, value in values.items():
            write_array(self.archive, name, value)
        self.rows += contents(values).tolist()

    def finish(self, about: Mapping[str, Any]) -> None:
        """Write the table of contents in both forms. The JSON text begins with `about`."""
        arrays = [
            {"name": name, "shape": json.loads(shape), "dtype": dtype, "meaning": meaning}
            for name, shape, dtype, meaning in self.rows
        ]
        text = json.dumps({**about, "arrays": arrays})
        write_array(self.archive, "contents", joined(self.rows))
        write_array(self.archive, "contents.json", np.frombuffer(text.encode("ascii"), np.uint8))


def write_array(archive: zipfile.ZipFile, name: str, array: Array) -> None:
    """Add an array to an NPZ file, row by row (in C's order), whatever its order in memory is."""
    with archive.open(f"{name}.npy", "w", force_zip64=True) as member:
        np.lib.format.write_array(member, np.ascontiguousarray(array), allow_pickle=False)
