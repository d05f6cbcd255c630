"""Text for explain's tables, pictures and pages: the prompt on one line, numbers, and the merges behind a token."""

from __future__ import annotations

import itertools

from encoder import CHAR_TO_BYTE, Encoder, merge
from picogpt import command_line
from picogpt.terminal_text import fit, visible


def one_line(text: str, width: int) -> str:
    """Put a text on one line of at most this many columns: its beginning, without characters that can't be seen."""
    return fit(command_line.visible(" ".join(text.split())), width).rstrip()


def decimals(x: float, digits: int) -> str:
    """Format a number with this many decimals: decimals(2.345, 1) = "2.3"; decimals(math.inf, 1) = "∞" """
    return f"{x:.{digits}f}".replace("inf", "∞")


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
