"""OpenAI's byte-level byte pair encoding (BPE), the tokenizer of GPT-2: from text to token ids and back.

    >>> encoder = get_encoder("tiny")
    >>> encoder.encode("Hello world")
    [39, 414, 78, 885]
    >>> encoder.decode([39, 414, 78, 885])
    'Hello world'

1. A regular expression cuts the text into pieces: a word with the space before it, a number, punctuation, white space.
2. Each piece is turned into UTF-8 bytes, and each byte is written as one visible character: a space becomes Ġ, a line
   feed Ċ. The vocabulary files can then be plain text, and every text can be encoded, because all 256 bytes are tokens.
3. Within a piece, two neighbouring symbols are joined into one, again and again. The list of merges says which pairs
   may be joined, and the pair that stands first in the list goes first. The symbols that remain are the tokens.

A model's folder holds the vocabulary, encoder.json, which gives each token its id, and the list of merges, vocab.bpe.
Sources: Sennrich et al. 2016, "Neural Machine Translation of Rare Words with Subword Units" (BPE); Radford et al. 2019,
"Language Models are Unsupervised Multitask Learners", section 2.2 (BPE on bytes).
"""

from __future__ import annotations

import codecs
import functools
import hashlib
import heapq
import json
import re
from collections.abc import Collection, Iterable, Iterator, Sequence
from itertools import pairwise
from pathlib import Path

# A piece is a run of letters, of digits or of other signs with at most one space before it, or the end of an English
# contraction such as 'll, or white space. Of several spaces, the last belongs to the word that follows.
PIECES = r" ?\p{L}+|'(?:s|t|re|ve|m|ll|d)| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
END_OF_TEXT = "<|endoftext|>"  # stood between the documents that GPT-2 learned from

# The sha256 of OpenAI's 50,000 merges. With them, merging the bytes of any token gives that one token (a test checks
# them all), so a piece that is a token needs no merging. Other lists of merges do not promise that.
OPENAI_MERGES = "04e3597d7996f292ca9b8b7285ca4d58a6ae171ac47d73fc7140ceb0c7a6bbc0"

LONG_WORD = 64  # bytes: from here on, `merge_long` is faster than `merge`, and the ids are not kept
CACHED_PIECES = 1 << 17  # the ids of this many pieces are kept at most, which bounds the memory


def bytes_to_unicode() -> dict[int, str]:
    """Return the visible character of each byte: its own, or the next one from U+0100 on, such as "Ġ" for a space."""
    visible = {byte: chr(byte) for byte in range(256) if chr(byte).isprintable() and chr(byte) != " "}
    hidden = [byte for byte in range(256) if byte not in visible]
    return visible | {byte: chr(256 + i) for i, byte in enumerate(hidden)}


BYTE_TO_CHAR = bytes_to_unicode()
CHAR_TO_BYTE = {ord(char): byte for byte, char in BYTE_TO_CHAR.items()}


def merge(symbols: Sequence[str], ranks: dict[str, int]) -> list[str]:
    """Join neighbouring symbols in the order of the merges. `ranks` maps "left right" to its place in the list.

    >>> merge(["l", "o", "w"], {"l o": 0, "lo w": 1})
    ['low']
    """
    never = float("inf")  # the rank of a pair that is not in the list: behind all others
    symbols = ["", *symbols, ""]  # the empty symbols join with nothing, so the loop needs no rule for the two ends
    pair_ranks = [ranks.get(f"{a} {b}", never) for a, b in pairwise(symbols)]
    while (best := min(pair_ranks)) < never:
        while best in pair_ranks:  # join every occurrence, from the left, before looking for the next best pair
            i = pair_ranks.index(best)
            joined = symbols[i] = symbols[i] + symbols.pop(i + 1)
            del pair_ranks[i]
            pair_ranks[i - 1] = ranks.get(f"{symbols[i - 1]} {joined}", never)
            pair_ranks[i] = ranks.get(f"{joined} {symbols[i + 1]}", never)
    return symbols[1:-1]


def merge_long(symbols: Sequence[str], ranks: dict[str, int]) -> list[str]:
    """Do what `merge` does in O(n log n) instead of O(n²) time, because a word may have a million letters.

    A reader can skip this function. The symbols must be single characters. `places` holds the positions of each pair,
    and `heap` gives the pairs in the order of their ranks. New pairs arise only beside a symbol that was just joined.
    Positions need no sorting: their order matters only in runs such as "aa aa aa", which arise from left to right.
    """
    begins, ends = [*symbols, ""], [*symbols, ""]  # the symbol that begins, or ends, at each position; "" if none
    places, heap = dict[str, list[int]](), list[tuple[int, str, str]]()

    def add(left: str, right: str, i: int) -> None:
        pair = f"{left} {right}"
        if pair in places:
            places[pair].append(i)
        elif pair in ranks:
            places[pair] = [i]
            heapq.heappush(heap, (ranks[pair], left, right))

    for i, (left, right) in enumerate(pairwise(symbols)):
        add(left, right, i)
    while heap:
        _, left, right = heapq.heappop(heap)
        joined = left + right
        for i in places.pop(f"{left} {right}"):
            middle, end = i + len(left), i + len(joined)
            if begins[i] == left and begins[middle] == right:  # else one was joined to its other neighbour before
                begins[i], begins[middle], ends[end - 1] = joined, "", joined
                add(ends[i - 1], joined, i - len(ends[i - 1]))
                add(joined, begins[end], i)
    return [symbol for symbol in begins if symbol]


class Encoder:
    """Encode text as token ids and decode ids as text.

    It takes the vocabulary {token: id} and the merges ["left right", …] in their order. Raises ValueError if they can't
    belong together. Tokens that no merge makes, such as "<|endoftext|>", are `special_tokens`.
    """

    def __init__(self, encoder: dict[str, int], bpe_merges: list[str]):
        import regex  # the standard library's re does not know \p{L}, "any letter"

        self.special_tokens = check_vocabulary(encoder, bpe_merges)
        self.encoder, self.decoder = encoder, dict(zip(encoder.values(), encoder))
        self.ranks = {pair: rank for rank, pair in enumerate(dict.fromkeys(bpe_merges))}  # the first of equal merges
        self.is_openai = hashlib.sha256("\n".join(self.ranks).encode("utf-8")).hexdigest() == OPENAI_MERGES
        self.pieces, self.cache = regex.compile(PIECES), dict[str, list[int]]()

    def __repr__(self) -> str:
        return f"<Encoder: {len(self.encoder):,} tokens, {len(self.ranks):,} merges, is_openai={self.is_openai}>"

    def encode(self, text: str, allowed_special: Collection[str] = ()) -> list[int]:
        """Return the ids of any text. A special token in it is ordinary text, unless `allowed_special` holds it."""
        if unknown := set(allowed_special) - self.special_tokens.keys():
            raise ValueError(f"{min(unknown)!r} is not a special token of this vocabulary")
        if lone := re.search(r"[\ud800-\udfff]", text):  # half of a UTF-16 pair, which UTF-8 can't hold
            raise ValueError(f"character {lone.start()} of the text is a lone surrogate: {lone[0]!r}, not Unicode")
        ids = list[int]()
        longest_first = "|".join(map(re.escape, sorted(allowed_special, key=len, reverse=True)))
        for part in re.split(f"({longest_first})", text) if allowed_special else [text]:
            if part in allowed_special:
                ids.append(self.special_tokens[part])
            else:
                for piece in self.pieces.findall(part):
                    ids += self.cache.get(piece) or self.piece_ids(piece)
        return ids

    def piece_ids(self, piece: str) -> list[int]:
        """Return the ids of one piece. Keep them unless it is long, since most words of a text occur again."""
        word = piece.encode("utf-8").decode("latin-1").translate(BYTE_TO_CHAR)  # one visible character for each byte
        is_token = self.is_openai and word in self.encoder and word not in self.special_tokens
        symbols = [word] if is_token else (merge if len(word) < LONG_WORD else merge_long)(word, self.ranks)
        ids = [self.encoder[symbol] for symbol in symbols]
        if len(word) < LONG_WORD:
            if len(self.cache) >= CACHED_PIECES:
                self.cache.clear()
            self.cache[piece] = ids
        return ids

    def token_bytes(self, id: int) -> bytes:
        """Return the bytes that one token stands for. They may be only a part of a character."""
        if (token := self.decoder.get(id)) is None:
            raise ValueError(f"{id!r} is not a token id: the vocabulary has 0 to {len(self.decoder) - 1}")
        return token.encode() if token in self.special_tokens else token.translate(CHAR_TO_BYTE).encode("latin-1")

    def decode(self, ids: Iterable[int]) -> str:
        """Return the text of the ids. Bytes that are not UTF-8 become U+FFFD. Raises ValueError for an unknown id."""
        return b"".join(map(functools.cache(self.token_bytes), ids)).decode("utf-8", errors="replace")

    def decode_stream(self, ids: Iterable[int]) -> Iterator[str]:
        """Yield the text of the ids piece by piece as they come. The bytes of a character wait until it is complete."""
        utf8 = codecs.getincrementaldecoder("utf-8")(errors="replace")
        for id in ids:
            yield utf8.decode(self.token_bytes(id))
        yield utf8.decode(b"", final=True)


def check_vocabulary(encoder: dict[str, int], bpe_merges: list[str]) -> dict[str, int]:
    """Return the tokens that no merge makes. Raise ValueError unless every text has ids and every id has a text."""
    if not isinstance(encoder, dict) or set(encoder.values()) != set(range(len(encoder))):
        raise ValueError("encoder.json is not a JSON object that gives its n tokens the ids 0 to n - 1, each once")
    merges = "\n".join(bpe_merges)
    if bpe_merges and (malformed := re.search(r"^(?!\S+ \S+$).*", merges, re.MULTILINE)):
        raise ValueError(f"vocab.bpe: the merge {malformed[0]!r} is not two symbols with one space between them")
    made = {*BYTE_TO_CHAR.values(), *merges.replace(" ", "").split()}
    if missing := made - encoder.keys():
        raise ValueError(f"encoder.json has no token {min(missing)!r}, which is a byte or made by a merge of vocab.bpe")
    return {token: id for token, id in encoder.items() if token not in made}


def read_merges(path: Path) -> list[str]:
    """Return the merges in a vocab.bpe (Hugging Face: merges.txt), without the line that gives the version."""
    lines = path.read_text(encoding="utf-8").rstrip("\n").split("\n")
    return lines[1:] if lines[0].startswith("#version") else lines


def get_encoder(model_name: str, models_dir: str | Path = "models") -> Encoder:
    """Return the tokenizer in the folder models_dir/model_name. Raises OSError, or ValueError that names the file."""
    folder = path = Path(models_dir) / model_name
    try:
        vocabulary = json.loads((path := folder / "encoder.json").read_text(encoding="utf-8"))
        merges = read_merges(path := folder / "vocab.bpe")
        path = folder  # from here on, an error is about both files
        return Encoder(vocabulary, merges)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{path}: {error}") from None
