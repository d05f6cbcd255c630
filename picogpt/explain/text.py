"""Turn tokens into text that is safe to show in a terminal, a picture or a page, and list the merges behind a token."""

from __future__ import annotations

import itertools
import math
import unicodedata
from collections.abc import Sequence

from encoder import CHAR_TO_BYTE, Encoder, merge
from picogpt import command_line
from picogpt.terminal_text import n_columns


def visible(token: bytes) -> str:
    r"""Turn a token's bytes into visible characters, so that different tokens look different.

    A space becomes "·". Some characters become a Python escape: control and format characters, a combining mark at the
    beginning, and bytes that are only a part of a character.
    Example: visible(b" caf\xc3\xa9") = "·café"; visible(b"\xc3\n") = r"\xc3\n"
    """
    text = token.decode("utf-8", errors="surrogateescape")
    return "".join(visible_char(char, first=i == 0) for i, char in enumerate(text))


def visible_char(char: str, first: bool) -> str:
    if char == " ":
        return "·"
    if "\udc80" <= char <= "\udcff":  # surrogateescape puts bytes here that are not valid UTF-8
        return f"\\x{ord(char) - 0xDC00:02x}"
    if char.isprintable() and char not in "\\·" and not (first and unicodedata.category(char).startswith("M")):
        return char
    if char < "\x80":
        return char.encode("unicode_escape").decode()
    return escaped(char)


def escaped(char: str) -> str:
    r"""Return a character as \u and its code: escaped("中") = "\u4e2d". The form \x is kept for single bytes."""
    return f"\\u{ord(char):04x}" if char <= "\uffff" else f"\\U{ord(char):08x}"


def in_context(tokens: Sequence[bytes]) -> list[str]:
    r"""Turn the tokens of a text into visible characters. The tokens that share a character are named as its parts.

    A token may hold only some bytes of a character, which say nothing by themselves. The text tells which character it
    is. A space separates such a part from the rest, and can't be taken for one of the text, which is shown as "·".
    Example: in_context([b" \xe4\xbd", b"\xa0"]) = ["· 你 1/2", "你 2/2"]
    """
    owners = [token for token, held in enumerate(tokens) for _ in held]  # the token that holds each byte of the text
    pieces: list[list[str]] = [[""] for _ in tokens]
    at = 0
    for char in b"".join(tokens).decode("utf-8", errors="surrogateescape"):
        size = len(char.encode("utf-8", errors="surrogateescape"))
        holders = list(dict.fromkeys(owners[at : at + size]))
        at += size
        for part, token in enumerate(holders, 1):
            if len(holders) > 1:
                pieces[token] += [f"{visible_char(char, first=True)} {part}/{len(holders)}", ""]
            else:
                pieces[token][-1] += visible_char(char, first=not pieces[token][-1])
    return [" ".join(filter(None, found)) for found in pieces]


def one_line(text: str, width: int) -> str:
    """Put a text on one line of at most this many columns: its beginning, without characters that can't be seen."""
    return fit(command_line.visible(" ".join(text.split())), width).rstrip()


def decimals(x: float, digits: int) -> str:
    """Format a number with this many decimals: decimals(2.345, 1) = "2.3"; decimals(math.inf, 1) = "∞" """
    return f"{x:.{digits}f}".replace("inf", "∞")


def percent(p: float) -> str:
    """Write a probability in at most 7 characters: percent(0.123) = "12.3 %" """
    return "-" if math.isnan(p) else "<0.1 %" if 0 < p < 0.0005 else f"{100 * p:.1f} %"


def fit(text: str, width: int) -> str:
    """Make a text exactly this many columns wide: add spaces, or cut it and end it with an ellipsis."""
    if n_columns(text) > width:
        ends = itertools.accumulate(map(n_columns, text))
        text = text[: sum(end < width for end in ends)] + "…"
    return text + " " * (width - n_columns(text))


def merges_of(symbol: str, ranks: dict[str, int]) -> list[tuple[str, str]]:
    """List the merges that build a symbol of the vocabulary from single bytes, in the order of the merge list.

    To find the last merge, `merge` runs without the pairs that would complete the symbol, so it stops at two parts.
    The same is then done with each part.
    Example: merges_of("low", {"l o": 0, "lo w": 1}) = [("l", "o"), ("lo", "w")]
    """
    found, to_split = [], [symbol]
    while to_split:
        symbol = to_split.pop()
        inside = {symbol[i:k] for i, k in itertools.combinations(range(len(symbol) + 1), 2)} - {symbol}
        pairs = (f"{part[:j]} {part[j:]}" for part in inside for j in range(1, len(part)))
        parts = merge(symbol, {pair: ranks[pair] for pair in pairs if pair in ranks})
        if len(parts) == 2:
            found.append((parts[0], parts[1]))
            to_split += parts
    return sorted(set(found), key=lambda pair: ranks[" ".join(pair)])


def visible_merges(encoder: Encoder, id: int) -> list[str]:
    """List the merges that build a token as visible text: ["t+h", "th+e", "·+the"] for " the".

    A single byte has none, and neither has a special token.
    """

    def shown(symbol: str) -> str:
        return visible(symbol.translate(CHAR_TO_BYTE).encode("latin-1"))

    token = encoder.decoder[id]
    merges = [] if token in encoder.special_tokens else merges_of(token, encoder.ranks)
    return [f"{shown(left)}+{shown(right)}" for left, right in merges]
