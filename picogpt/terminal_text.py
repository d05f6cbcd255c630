"""Measure text in the columns of a terminal."""

from __future__ import annotations

import unicodedata


def n_columns(text: str) -> int:
    """Count the columns that a text takes in a terminal: two for Chinese and emoji, none for combining marks.

    The two joiners take none, either. Source: Unicode Standard Annex 11, "East Asian Width".
    """
    widths = {"W": 2, "F": 2}
    return sum(
        0
        if unicodedata.category(char) in ("Mn", "Me") or char in "\u200c\u200d"
        else widths.get(unicodedata.east_asian_width(char), 1)
        for char in text
    )
