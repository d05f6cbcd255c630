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
from collections.abc import Collection, Iterable, Iterator, Sequence
from itertools import pairwise
from pathlib import Path

# A piece is a run of letters, of digits or of other signs with at most one space before it, or the end of an English
# contraction such as 'll, or white space. Of several spaces, the last belongs to the word that follows.
PIECES = r" ?\p{L}+|'(?:s|t|re|ve|m|ll|d)| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"

END_OF_TEXT = "<|endoftext|>"  # it stood between the documents that GPT-2 learned from

# The sha256 of the 50,000 merges in OpenAI's vocab.bpe. With this list, merging the bytes of any token gives that one
# token (a test checks them all), so a piece that is a token needs no merging. Other lists do not promise that.
OPENAI_MERGES = "04e3597d7996f292ca9b8b7285ca4d58a6ae171ac47d73fc7140ceb0c7a6bbc0"

# The ids of pieces with at most CACHED_CHARS characters are kept, CACHED_PIECES of them at most. From LONG_WORD bytes
# on, `merge_long` is faster than `merge` (measured on random letters).
CACHED_CHARS, CACHED_PIECES, LONG_WORD = 32, 1 << 17, 12


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


def byte_chars(text: str) -> str:
    """Write each byte of a text, in UTF-8, as its visible character. Example: byte_chars(" é") = "ĠÃ©" """
    return text.encode("utf-8").decode("latin-1").translate(BYTE_TO_CHAR)


def merge(symbols: Sequence[str], ranks: dict[str, int]) -> list[str]:
    """Join neighbouring symbols in the order of the merges. `ranks` maps "left right" to its place in the list.

    >>> merge(["l", "o", "w"], {"l o": 0, "lo w": 1})
    ['low']
    """
    while pairs := [pair for pair in map(" ".join, pairwise(symbols)) if pair in ranks]:
        left, right = min(pairs, key=lambda pair: ranks[pair]).split()
        # Join this pair wherever it stands. With a space on both sides of each symbol, only whole symbols are replaced.
        spaced = "".join(f" {symbol} " for symbol in symbols)
        symbols = spaced.replace(f" {left}  {right} ", f" {left}{right} ").split()
    return list(symbols)


def merge_long(word: str, ranks: dict[str, int]) -> list[str]:
    """Do what `merge` does in O(n log n) instead of O(n²) time, because a word may have a million letters.

    A reader can skip this function: it changes the time, not the result. It looks for new pairs only beside a symbol
    that was just joined. `places` maps each pair to the positions where it was seen, and `heap` gives the pairs in the
    order of their ranks. The positions need no sorting: their order matters only between equal symbols that follow each
    other, as in "aa aa aa", and these arise from the same merges, which go from left to right.
    """
    begins, ends = [*word, ""], [*word, ""]  # the symbol that begins, or ends, at each position; "" outside the word
    places, heap = dict[str, list[int]](), list[tuple[int, str, str]]()

    def add(left: str, right: str, i: int) -> None:
        pair = f"{left} {right}"
        if pair in places:
            places[pair].append(i)
        elif pair in ranks:
            places[pair] = [i]
            heapq.heappush(heap, (ranks[pair], left, right))

    for i, (left, right) in enumerate(pairwise(word)):
        add(left, right, i)
    while heap:
        _, left, right = heapq.heappop(heap)
        joined = left + right
        for i in places.pop(f"{left} {right}"):
            middle, end = i + len(left), i + len(joined)
            if begins[i] == left and begins[middle] == right:  # else one was joined to its other neighbour before
                begins[middle] = ""
                begins[i] = ends[end - 1] = joined
                before, after = ends[i - 1], begins[end]
                add(before, joined, i - len(before))
                add(joined, after, i)
    return [symbol for symbol in begins if symbol]


class Encoder:
    """Encode text as token ids and decode ids as text.

    It takes a vocabulary {token: id}, the merges ["left right", …] in their order, and, if there are any, tokens such as
    "<|user|>" that are added to the vocabulary {text: id}. Raises ValueError when these can't belong together.
    `special_tokens` holds the added tokens and those that no merge makes, such as "<|endoftext|>".
    """

    def __init__(self, encoder: dict[str, int], bpe_merges: list[str], added: dict[str, int] | None = None):
        import regex  # the standard library's re does not know \p{L}, "any letter"

        added = added or {}
        check_vocabulary(encoder, bpe_merges, added)
        self.pieces = regex.compile(PIECES)
        self.ranks = {pair: rank for rank, pair in enumerate(dict.fromkeys(bpe_merges))}  # the first of equal merges
        self.encoder = encoder | added
        self.decoder = {id: token for token, id in encoder.items()} | {
            id: byte_chars(text) for text, id in added.items()
        }
        made = {*BYTE_TO_CHAR.values(), *(pair.replace(" ", "") for pair in self.ranks)}
        self.special_tokens = {self.decode([id]): id for token, id in encoder.items() if token not in made} | added
        self.is_openai = hashlib.sha256("\n".join(self.ranks).encode("utf-8")).hexdigest() == OPENAI_MERGES
        self.known_tokens = made if self.is_openai else set()
        self.cache = dict[str, list[int]]()

    def encode(self, text: str, allowed_special: Collection[str] = ()) -> list[int]:
        """Return the ids of any text.

        "<|endoftext|>" in the text is encoded like any other text, unless `allowed_special` holds it. Raises ValueError
        for a lone surrogate, which is half of a UTF-16 pair and can't be written in UTF-8.
        """
        if isinstance(allowed_special, str):
            raise ValueError(f"allowed_special must be a set of tokens, not the text {allowed_special!r}")
        for special in allowed_special:
            if special not in self.special_tokens:
                raise ValueError(f"{special!r} is not a special token of this vocabulary")
        try:
            text.encode("utf-8")
        except UnicodeEncodeError as error:
            at = error.start
            raise ValueError(
                f"character {at} of the text is a lone surrogate, {text[at]!r}: not valid Unicode"
            ) from None
        ids: list[int] = []
        longest_first = sorted(allowed_special, key=len, reverse=True)
        for part in re.split(f"({'|'.join(map(re.escape, longest_first))})", text) if longest_first else [text]:
            if part in allowed_special:
                ids.append(self.special_tokens[part])
            else:
                for piece in self.pieces.findall(part):
                    ids += self.cache.get(piece) or self.piece_ids(piece)
        return ids

    def piece_ids(self, piece: str) -> list[int]:
        """Return the ids of a piece. Keep them if it is short, since most words of a text occur again.

        The cache is emptied when it is full, so that its memory stays bounded.
        """
        word = byte_chars(piece)
        if word in self.known_tokens:
            tokens = [word]
        else:
            tokens = merge(word, self.ranks) if len(word) < LONG_WORD else merge_long(word, self.ranks)
        ids = [self.encoder[token] for token in tokens]
        if len(piece) <= CACHED_CHARS:
            if len(self.cache) >= CACHED_PIECES:
                self.cache.clear()
            self.cache[piece] = ids
        return ids

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


def check_vocabulary(encoder: dict[str, int], bpe_merges: list[str], added: dict[str, int] | None = None) -> None:
    """Raise ValueError unless every text has ids, every id has a text, and every merge makes a token."""
    if not isinstance(encoder, dict) or not set(map(type, encoder.values())) <= {int}:
        raise ValueError("encoder.json is not a JSON object that maps each token to its id")
    ids = (encoder | (added or {})).values()
    if sorted(ids) != list(range(len(ids))):
        raise ValueError(f"encoder.json: the ids must be 0 to {len(ids) - 1}, each used exactly once")
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
    path = folder = Path(models_dir) / model_name
    try:
        path = folder / "encoder.json"
        vocabulary = json.loads(path.read_text(encoding="utf-8"))
        path = folder / "vocab.bpe"
        merges = read_merges(path)
        path = folder  # from here on, an error is about both files
        return Encoder(vocabulary, merges)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None
