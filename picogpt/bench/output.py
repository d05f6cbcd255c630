"""Print the table of `bench`, row by row."""

from __future__ import annotations

import os
import sys

import numpy as np

from picogpt.bench.timing import Row

HEADER = f"{'':29} {'median':>6} {'':8} {'low–high':>11}"  # 80 columns are enough for this and every row


def short(x: float) -> str:
    """Write a positive number in at most five characters, with three digits or as a whole number.

    >>> short(0.0123), short(1.5), short(1234.5), short(123456.0)
    ('0.012', '1.5', '1234', '123k')
    """
    if x < 0.001:
        return f"{x:.0e}"
    if x < 1:
        return f"{x:.3f}"
    return f"{x:.3g}" if x < 99.5 else f"{x:.0f}" if x < 99_999.5 else f"{x / 1000:.0f}k"


def line(row: Row) -> str:
    """Return a row of the table as text. The peers stand indented below the work that they share."""
    name, remark = row["name"], ""
    if "ratio" in row:
        name = "  " + name.rpartition(": ")[2]
        remark = f"{row['ratio']:.2f}x ours" if row["unit"] == "MiB" else f"ours {row['ratio']:.2f}x as fast"
    elif "share" in row:
        remark = f"{row['share']:.0%} of {row['limit']}"
    spread = f"{short(row['low'])}–{short(row['high'])}"
    return f"{name:29} {short(row['median']):>6} {row['unit']:8} {spread:>11}  {remark}".rstrip()


def environment(rounds: int) -> str:
    """Describe in a line what the figures depend on."""
    versions = f"Python {sys.version.split()[0]}, NumPy {np.__version__}"
    return f"{os.cpu_count()} processors, {versions}, {rounds} round{'s' * (rounds != 1)}"


def print_line(text: str) -> None:
    """Print a line above the progress bar, and let it out of Python's buffer at once."""
    from tqdm import tqdm

    tqdm.write(text)
    sys.stdout.flush()
