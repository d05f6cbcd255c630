"""Summarize the scores of texts: bits per byte, perplexity per token and per word."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

from picogpt.terminal_text import fit_middle, n_columns


def perplexity(nats: float, n: int) -> float:
    """Return e to the power of the nats for each of n units. It is infinite from e^709 on, as in any float64."""
    return math.exp(nats / n) if nats / n < 709 else math.inf


def bits(nats: float, n: int) -> float:
    """Return the bits for each of n units."""
    return nats / math.log(2) / n


def finite(figures: Mapping[str, float]) -> dict[str, float | None]:
    """Return figures for JSON, which has neither nan nor infinity: they become null."""
    return {name: value if math.isfinite(value) else None for name, value in figures.items()}


class Summary(NamedTuple):
    """The size of a text, and -log(p) of all its scored tokens together, in nats."""

    tokens: int  # those that were scored
    words: int
    characters: int
    bytes: int
    nats: float

    @classmethod
    def of(cls, text: str, log_probs: Iterable[float]) -> Summary:
        """Summarize a text. White space separates its words. The sum of the logarithms is rounded only once.

        >>> Summary.of("Où est-il?", [-1.5, -2.0])
        Summary(tokens=2, words=2, characters=10, bytes=11, nats=3.5)
        """
        values = list(log_probs)
        return cls(len(values), len(text.split()), len(text), len(text.encode("utf-8")), 0.0 - math.fsum(values))

    @classmethod
    def total(cls, summaries: Iterable[Summary]) -> Summary:
        """Add up several summaries."""
        tokens, words, characters, n_bytes, nats = zip(*summaries)
        return cls(sum(tokens), sum(words), sum(characters), sum(n_bytes), math.fsum(nats))

    @property
    def bits_per_byte(self) -> float:
        """Return the bits that an ideal compressor with this model would need for each byte of the text."""
        return bits(self.nats, self.bytes) if self.bytes else math.nan

    def perplexity(self, n: int) -> float:
        """Return e to the power of the nats for each of n units, such as tokens or words.

        It is the number of equally likely choices that would be as hard to predict. Without units, it is nan.

        >>> Summary(4, 2, 9, 9, nats=4 * math.log(10)).perplexity(4)
        10.0
        """
        return perplexity(self.nats, n) if n else math.nan

    def figures(self) -> dict[str, float]:
        """Return all figures by name."""
        return {
            **self._asdict(),
            "bits per byte": self.bits_per_byte,
            "perplexity per token": self.perplexity(self.tokens),
            "perplexity per word": self.perplexity(self.words),
        }


COLUMNS = ("tokens", "words", "bytes", "nats", "bits/byte", "ppl/token", "ppl/word")
LEAST = 12  # columns that a name gets in any case


def table(rows: Sequence[tuple[str, Summary]], width: int | None) -> list[str]:
    """Return the lines of a table with a row for each text, under a line of headings.

    Each name comes first, and is cut in its middle if the table would be wider than `width`; None cuts no name.
    """
    cells = [COLUMNS, *(figures(summary) for _, summary in rows)]
    widths = [max(map(len, column)) for column in zip(*cells)]
    names = ["text", *(name for name, _ in rows)]
    room = max(map(n_columns, names))
    if width is not None:
        room = min(room, max(LEAST, width - sum(widths) - len(widths)))
    lines = zip((fit_middle(name, room) for name in names), cells)
    return [" ".join([name, *(cell.rjust(n) for cell, n in zip(row, widths))]) for name, row in lines]


def figures(summary: Summary) -> tuple[str, ...]:
    """Return the cells of a text's row."""
    counts = (str(n) for n in (summary.tokens, summary.words, summary.bytes))
    perplexities = (short(summary.perplexity(n)) for n in (summary.tokens, summary.words))
    return (*counts, f"{summary.nats:.2f}", f"{summary.bits_per_byte:.4f}", *perplexities)


def short(number: float) -> str:
    """Return a perplexity in at most 9 characters, and "-" for one that does not exist.

    One above a million only says that the model can't predict the text. --json has all its digits.

    >>> short(29.4117), short(53102.7), short(1_000_000.1), short(math.nan)
    ('29.41', '53102.70', '>1000000', '-')
    """
    return "-" if math.isnan(number) else f"{number:.2f}" if number < 999_999.995 else ">1000000"
