"""Tokens as text that can be shown anywhere: on a terminal, in a picture, on a page; and how each was merged."""

from __future__ import annotations

import unicodedata

from encoder import CHAR_TO_BYTE, Encoder, merge


def visible(token: bytes) -> str:
    r"""A token's bytes as characters that can be seen. Different tokens look different.

    A space is "·"; what has no glyph of its own, or would change what stands beside it, is escaped as in Python:
    control and format characters, a mark with nothing to stand on, bytes that are only a part of a character.
    Example: visible(b" caf\xc3\xa9") = "·café"; visible(b"\xc3\n") = r"\xc3\n"
    """
    text = token.decode("utf-8", errors="surrogateescape")
    return "".join(visible_char(char, first=i == 0) for i, char in enumerate(text))


def visible_char(char: str, first: bool) -> str:
    if char == " ":
        return "·"
    if "\udc80" <= char <= "\udcff":  # where surrogateescape puts a byte that is not UTF-8
        return f"\\x{ord(char) - 0xDC00:02x}"
    if char.isprintable() and char not in "\\·" and not (first and unicodedata.category(char).startswith("M")):
        return char
    if char < "\x80":
        return char.encode("unicode_escape").decode()
    return escaped(char)


def escaped(char: str) -> str:
    r"""escaped("中") = "\u4e2d": never the two digits that stand for a byte."""
    return f"\\u{ord(char):04x}" if char <= "\uffff" else f"\\U{ord(char):08x}"


def decimals(x: float, digits: int) -> str:
    """decimals(1.25, 1) = "1.2"; decimals(math.inf, 1) = "∞" """
    return f"{x:.{digits}f}".replace("inf", "∞")


def n_columns(text: str) -> int:
    """How many columns of a terminal a text takes: Chinese and emoji two, marks none."""
    widths = {"W": 2, "F": 2}
    return sum(
        0 if unicodedata.category(char) in ("Mn", "Me") else widths.get(unicodedata.east_asian_width(char), 1)
        for char in text
    )


def fit(text: str, width: int) -> str:
    """A text in exactly this many columns: filled up with spaces, or cut with an ellipsis."""
    if n_columns(text) > width:
        while n_columns(text) > width - 1:
            text = text[:-1]
        text += "…"
    return text + " " * (width - n_columns(text))


def merges_of(symbol: str, ranks: dict[str, int]) -> list[tuple[str, str]]:
    """The merges that make a symbol of the vocabulary from its bytes, in the order in which they are made.

    `merge` itself is asked for the last one: kept from making the symbol, it stops at the two parts. A rank equal to
    the number of merges is its word for "not in the list".
    Example: merges_of("low", {"l o": 0, "lo w": 1}) = [("l", "o"), ("lo", "w")]
    """
    found, whole = [], [symbol]
    while whole:
        symbol = whole.pop()
        splits = (f"{symbol[:i]} {symbol[i:]}" for i in range(1, len(symbol)))
        parts = merge(list(symbol), ranks | {pair: len(ranks) for pair in splits if pair in ranks})
        if len(parts) == 2:
            found.append((parts[0], parts[1]))
            whole += parts
    return sorted(set(found), key=lambda pair: ranks[" ".join(pair)])


def visible_merges(encoder: Encoder, id: int) -> list[str]:
    """How a token was merged: ["t+h", "th+e", "·+the"] for " the"; nothing for a single byte."""

    def seen(symbol: str) -> str:
        return visible(symbol.translate(CHAR_TO_BYTE).encode("latin-1"))

    return [f"{seen(left)}+{seen(right)}" for left, right in merges_of(encoder.decoder[id], encoder.cache.ranks)]
