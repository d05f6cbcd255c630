"""OpenAI's byte-level byte pair encoding (BPE), the tokenizer of GPT-2: from text to token ids and back.

    >>> encoder = get_encoder("tiny")
    >>> encoder.encode("Hello world")
    [39, 414, 78, 885]
    >>> encoder.decode([39, 414, 78, 885])
    'Hello world'

Encoding takes three steps:

1. A regular expression cuts the text into pieces: a word with the space before it, a number, punctuation, white space.
2. Each piece is turned into UTF-8 bytes, and each byte is written as one visible character: a space becomes Ġ, a line
   feed Ċ. The vocabulary files can then be plain text, and every text can be encoded, because all 256 bytes are tokens.
3. Within a piece, two neighbouring symbols are joined into one, again and again. The list of merges says which pairs
   may be joined, and the pair that stands first in the list goes first. The symbols that remain are the tokens. The
   vocabulary gives each of them an id.

`python -m picogpt tokens "Hello world"` prints the tokens of a text.

Sources: Sennrich et al. 2016, "Neural Machine Translation of Rare Words with Subword Units" (BPE); Radford et al. 2019,
"Language Models are Unsupervised Multitask Learners", section 2.2 (BPE on bytes). A model's folder holds two files for
the tokenizer: `encoder.json` maps each token to its id, and `vocab.bpe` lists the merges in order.
"""

from __future__ import annotations

import codecs
import hashlib
import heapq
import json
import re
from collections.abc import Collection, Iterable, Iterator
from itertools import chain, pairwise
from pathlib import Path

# A piece is the end of an English contraction such as 'll, or white space, or a run of letters, of digits or of other
# signs with at most one space before it. Of several spaces, the last belongs to the word that follows. Merges join only
# symbols of the same piece.
PIECES = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"

END_OF_TEXT = "<|endoftext|>"

# The sha256 of the 50,000 merges in OpenAI's vocab.bpe. With this list, merging the bytes of any token gives that one
# token (a test checks them all), so a piece that is a token needs no merging. Other lists do not promise that.
OPENAI_MERGES = "04e3597d7996f292ca9b8b7285ca4d58a6ae171ac47d73fc7140ceb0c7a6bbc0"

Pair = tuple[int, str, str]  # the rank of a merge, which is its place in the list, and its left and right symbol


def bytes_to_unicode() -> dict[int, str]:
    """Return the visible character that stands for each byte: its own if it has one, else the next from U+0100 on.

    >>> [bytes_to_unicode()[byte] for byte in b"a b"]
    ['a', 'Ġ', 'b']
    """
    visible = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    hidden = [byte for byte in range(256) if byte not in visible]
    return {byte: chr(byte) for byte in visible} | {byte: chr(256 + i) for i, byte in enumerate(hidden)}


BYTE_TO_CHAR = bytes_to_unicode()
CHAR_TO_BYTE = {ord(char): byte for byte, char in BYTE_TO_CHAR.items()}

# The ids of pieces with at most CACHED_CHARS characters are kept, CACHED_PIECES of them at most. For a piece of
# LONG_SYMBOLS bytes or more, `merge_long` is faster than `merge` (measured on random letters: both are equal at 128).
CACHED_CHARS, CACHED_PIECES, LONG_SYMBOLS = 32, 1 << 17, 128


def merge(symbols: list[str], ranks: dict[str, int]) -> list[str]:
    """Join neighbouring symbols in the order of the merges. `ranks` maps "left right" to its place in the list.

    >>> merge(["l", "o", "w"], {"l o": 0, "lo w": 1})
    ['low']
    """
    none = len(ranks)  # the rank of a pair that may not be joined: behind all others
    pairs = [ranks.get(f"{a} {b}", none) for a, b in pairwise(symbols)]
    while pairs and (rank := min(pairs)) != none:
        while rank in pairs:  # join every occurrence, from the left, before looking for the next best pair
            i = pairs.index(rank)
            joined = symbols[i] = symbols[i] + symbols.pop(i + 1)
            del pairs[i]
            if i > 0:
                pairs[i - 1] = ranks.get(f"{symbols[i - 1]} {joined}", none)
            if i < len(pairs):
                pairs[i] = ranks.get(f"{joined} {symbols[i + 1]}", none)
    return symbols


def push_pair(
    i: int, a: str, b: str, ranks: dict[str, int], positions_by_rank: dict[int, list[int]], heap: list[Pair]
) -> None:
    """Record that the pair a, b stands at position i. A pair that is not in the list of merges is left out.

    `positions_by_rank` holds the positions of each pair, and `heap` gives the pairs in the order of their ranks.
    """
    rank = ranks.get(f"{a} {b}")
    if rank in positions_by_rank:
        positions_by_rank[rank].append(i)
    elif rank is not None:
        positions_by_rank[rank] = [i]
        heapq.heappush(heap, (rank, a, b))


def merge_long(symbols: list[str], ranks: dict[str, int]) -> list[str]:
    """Do what `merge` does, in O(n log n) instead of O(n²) time, because a word may have a million letters.

    `left` and `right` hold the position of each symbol's neighbours. A reader can skip this function: it changes the
    time, not the result. The positions of a pair need no sorting. Their order matters only between equal symbols that
    follow each other, as in "aa aa aa", and these arise from the same merges, which go from left to right.
    """
    n, heap = len(symbols), list[Pair]()
    left, right, positions_by_rank = list(range(-1, n)), list(range(1, n + 1)), dict[int, list[int]]()
    for i, (a, b) in enumerate(pairwise(symbols)):
        push_pair(i, a, b, ranks, positions_by_rank, heap)
    while heap:
        rank, a, b = heapq.heappop(heap)
        for i in positions_by_rank.pop(rank):
            j = right[i]
            if j == n or symbols[i] != a or symbols[j] != b:
                continue  # one of the two symbols has already been joined to its other neighbour
            symbols[i], symbols[j] = a + b, ""
            k = right[i] = right[j]
            left[k] = i
            if left[i] >= 0:
                push_pair(left[i], symbols[left[i]], a + b, ranks, positions_by_rank, heap)
            if k < n:
                push_pair(i, a + b, symbols[k], ranks, positions_by_rank, heap)
    return [symbol for symbol in symbols if symbol]


class PieceCache(dict[str, list[int]]):
    """A dictionary from each piece that occurred to its ids. Looking up a new piece computes its ids.

    The cache is emptied when it is full, so that its memory stays bounded.
    """

    def __init__(self, encoder: dict[str, int], ranks: dict[str, int]):
        super().__init__()
        self.encoder, self.ranks = encoder, ranks
        digest = hashlib.sha256("\n".join(ranks).encode("utf-8")).hexdigest()
        known = digest == OPENAI_MERGES and len(encoder) == len(ranks) + 257 and END_OF_TEXT in encoder
        self.known_tokens: Collection[str] = encoder if known else ()

    def __missing__(self, piece: str) -> list[int]:
        symbols = piece.encode("utf-8").decode("latin-1").translate(BYTE_TO_CHAR)
        if symbols in self.known_tokens:
            merged = [symbols]
        else:
            merged = (merge if len(symbols) < LONG_SYMBOLS else merge_long)(list(symbols), self.ranks)
        ids = [self.encoder[symbol] for symbol in merged]
        if len(piece) <= CACHED_CHARS:
            if len(self) >= CACHED_PIECES:
                self.clear()
            self[piece] = ids
        return ids


class Encoder:
    """Encode text as token ids and decode ids as text.

    It takes a vocabulary {token: id} and the merges ["left right", …] in their order. Raises ValueError when the two
    can't belong together.
    """

    def __init__(self, encoder: dict[str, int], bpe_merges: list[str]):
        import regex  # the standard library's re does not know \p{L}, "any letter"

        check_vocabulary(encoder, bpe_merges)
        self.encoder = encoder
        self.decoder = dict(zip(encoder.values(), encoder))
        self.pieces = regex.compile(PIECES)
        self.cache = PieceCache(encoder, dict(zip(bpe_merges, range(len(bpe_merges)))))

    def encode(self, text: str, allowed_special: Collection[str] = ()) -> list[int]:
        """Return the ids of any text.

        "<|endoftext|>" in the text is encoded like any other text, unless `allowed_special` holds it. Raises ValueError
        for a lone surrogate, which is half of a UTF-16 pair and can't be written in UTF-8.
        """
        if isinstance(allowed_special, str):
            raise ValueError(f"allowed_special must be a set of tokens, not the text {allowed_special!r}")
        for special in allowed_special:
            if special not in self.encoder:
                raise ValueError(f"{special!r} is not a token of this vocabulary")
        if allowed_special:
            parts = re.split("(" + "|".join(map(re.escape, allowed_special)) + ")", text)
            return [
                id for part in parts for id in ([self.encoder[part]] if part in allowed_special else self.encode(part))
            ]
        try:
            return list(chain.from_iterable(map(self.cache.__getitem__, self.pieces.findall(text))))
        except UnicodeEncodeError:
            at = next(i for i, char in enumerate(text) if "\ud800" <= char <= "\udfff")
            raise ValueError(
                f"character {at} of the text is a lone surrogate, {text[at]!r}: not valid Unicode"
            ) from None

    def token_bytes(self, id: int) -> bytes:
        """Return the bytes that one token stands for. They may be only a part of a character."""
        return self._bytes([id])

    def _bytes(self, ids: Iterable[int]) -> bytes:
        try:
            tokens = "".join(map(self.decoder.__getitem__, ids))
        except KeyError as error:
            raise ValueError(f"{error} is not a token id: the vocabulary has 0 to {len(self.decoder) - 1}") from None
        return tokens.translate(CHAR_TO_BYTE).encode("latin-1")

    def decode(self, ids: Iterable[int]) -> str:
        """Return the text of the ids. Bytes that are not UTF-8 become U+FFFD. Raises ValueError for an unknown id."""
        return self._bytes(ids).decode("utf-8", errors="replace")

    def decode_stream(self, ids: Iterable[int]) -> Iterator[str]:
        """Yield the text of the ids piece by piece as they come. The bytes of a character wait until it is complete."""
        utf8 = codecs.getincrementaldecoder("utf-8")(errors="replace")
        for id in ids:
            yield utf8.decode(self.token_bytes(id))
        yield utf8.decode(b"", final=True)


def check_vocabulary(encoder: dict[str, int], bpe_merges: list[str]) -> None:
    """Raise ValueError unless every text has ids, every id has a text, and every merge makes a token."""
    if not isinstance(encoder, dict) or not set(map(type, encoder.values())) <= {int}:
        raise ValueError("encoder.json is not a JSON object that maps each token to its id")
    if sorted(encoder.values()) != list(range(len(encoder))):
        raise ValueError(f"encoder.json: the ids must be 0 to {len(encoder) - 1}, each used exactly once")
    alphabet = set(BYTE_TO_CHAR.values())
    if missing := alphabet - encoder.keys():
        raise ValueError(f"encoder.json has no token for {len(missing)} of the 256 bytes, {min(missing)!r} among them")
    if unknown := set("".join(encoder)) - alphabet:
        raise ValueError(f"encoder.json has a token with the character {min(unknown)!r}, which stands for no byte")
    if malformed := [line for line in bpe_merges if line.count(" ") != 1 or line[0] == " " or line[-1] == " "]:
        raise ValueError(f"vocab.bpe: the merge {malformed[0]!r} is not two symbols with one space between them")
    if strange := set("\n".join(bpe_merges).replace(" ", "").split("\n")) - encoder.keys() - {""}:
        raise ValueError(f"vocab.bpe: a merge makes the token {min(strange)!r}, which is not in the vocabulary")


def read_merges(path: Path) -> list[str]:
    """Return the merges in a vocab.bpe (Hugging Face: merges.txt), without the line that gives the version."""
    lines = path.read_text(encoding="utf-8").rstrip("\n").split("\n")
    return lines[1:] if lines[0].startswith("#version") else lines


def get_encoder(model_name: str, models_dir: str | Path = "models") -> Encoder:
    """Return the tokenizer in the folder models_dir/model_name.

    Raises OSError when a file can't be read, and ValueError naming the file when its contents are wrong.
    """
    folder = Path(models_dir) / model_name
    path = folder / "encoder.json"
    try:
        vocabulary = json.loads(path.read_text(encoding="utf-8"))
        path = folder / "vocab.bpe"
        merges = read_merges(path)
        path = folder  # from here on, an error is about both files
        return Encoder(vocabulary, merges)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path}: {error}") from None
