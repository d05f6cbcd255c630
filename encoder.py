"""OpenAI's byte-level byte pair encoding (BPE): text to token ids and back.

    python encoder.py "Not all heroes wear capes."

1. A regular expression cuts the text into pieces: words with the space before them, numbers, punctuation, white space.
2. Each piece becomes UTF-8 bytes, and each of the 256 bytes is written as one visible character, so that the vocabulary
   is a file of plain strings: a space is Ġ, a line feed Ċ.
3. Within a piece the pair of neighbours that stands first in the list of merges is joined, again and again, until no
   pair is left that the list has. What remains are the tokens; the vocabulary gives each its id.

Sources: Sennrich et al. 2016, "Neural Machine Translation of Rare Words with Subword Units" (BPE); Radford et al. 2019,
section 2.2 (on bytes). The files are `encoder.json` (token to id) and `vocab.bpe` (the merges in order).
"""

from __future__ import annotations

import codecs
import hashlib
import heapq
import json
import re
import sys
from collections.abc import Collection, Iterable, Iterator
from itertools import chain, pairwise
from pathlib import Path

# The pieces that merges never cross: English contractions, letters, digits, other signs, each with at most one space
# before it, then white space, whose last character stays with the word that follows.
PIECES = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"

END_OF_TEXT = "<|endoftext|>"

# sha256 of the 50,000 lines of OpenAI's vocab.bpe. Of these a test knows that BPE makes every token of the token's own
# bytes, so that a piece which is a token needs no merging; a list from elsewhere may reach it by no path of merges.
OPENAI_MERGES = "04e3597d7996f292ca9b8b7285ca4d58a6ae171ac47d73fc7140ceb0c7a6bbc0"

Pair = tuple[int, str, str]  # a merge's rank, its left and its right symbol


def bytes_to_unicode() -> dict[int, str]:
    """The visible character for each of the 256 bytes: itself where it is visible, else the next one from U+0100 on."""
    visible = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    hidden = [byte for byte in range(256) if byte not in visible]
    return {byte: chr(byte) for byte in visible} | {byte: chr(256 + i) for i, byte in enumerate(hidden)}


BYTE_TO_CHAR = bytes_to_unicode()
CHAR_TO_BYTE = {ord(char): byte for byte, char in BYTE_TO_CHAR.items()}

# Pieces of text of up to CACHED_CHARS characters are remembered, CACHED_PIECES of them at most. From LONG_SYMBOLS bytes
# on `merge_long` is the faster one (measured on random letters: equal at 128).
CACHED_CHARS, CACHED_PIECES, LONG_SYMBOLS = 32, 1 << 17, 128


def merge(symbols: list[str], ranks: dict[str, int]) -> list[str]:
    """Join neighbouring symbols in the order of the merges; ranks maps "left right" to a merge's place in the list.

    Example: merge(["l", "o", "w"], {"l o": 0}) = ["lo", "w"]
    """
    none = len(ranks)
    pairs = [ranks.get(f"{a} {b}", none) for a, b in pairwise(symbols)]
    while pairs and (rank := min(pairs)) != none:
        while rank in pairs:  # every occurrence, from the left, before any pair that this one makes possible
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
    """Put the pair of symbols a, b at position i into the list of its rank, if it has one; the heap orders ranks."""
    rank = ranks.get(f"{a} {b}")
    if rank in positions_by_rank:
        positions_by_rank[rank].append(i)
    elif rank is not None:
        positions_by_rank[rank] = [i]
        heapq.heappush(heap, (rank, a, b))


def merge_long(symbols: list[str], ranks: dict[str, int]) -> list[str]:
    """The same as `merge` in time that grows as n, not n²: slower on a word, and a million letters stay possible.

    Positions wait in one list per rank, the ranks in a heap; left and right link each symbol to its neighbours.
    """
    n, heap = len(symbols), list[Pair]()
    left, right, positions_by_rank = list(range(-1, n)), list(range(1, n + 1)), dict[int, list[int]]()
    for i, (a, b) in enumerate(pairwise(symbols)):
        push_pair(i, a, b, ranks, positions_by_rank, heap)
    while heap:
        rank, a, b = heapq.heappop(heap)
        for i in sorted(positions_by_rank.pop(rank)):
            j = right[i]
            if j == n or symbols[i] != a or symbols[j] != b:
                continue  # one of the two has been joined to its other neighbour in the meantime
            symbols[i], symbols[j] = a + b, ""
            k = right[i] = right[j]
            left[k] = i
            if left[i] >= 0:
                push_pair(left[i], symbols[left[i]], a + b, ranks, positions_by_rank, heap)
            if k < n:
                push_pair(i, a + b, symbols[k], ranks, positions_by_rank, heap)
    return [symbol for symbol in symbols if symbol]


class PieceCache(dict[str, list[int]]):
    """The ids of the pieces met so far; looking up a new one computes it. Emptied when full: memory stays bounded."""

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
    """Text to ids and back, with a vocabulary {token: id} and the merges ["left right", …] in their order.

    Example: encoder.encode("Hello world") = [15496, 995]; encoder.decode([15496, 995]) = "Hello world".
    Raises ValueError when vocabulary and merges can't belong together.
    """

    def __init__(self, encoder: dict[str, int], bpe_merges: list[str]):
        import regex  # re has no \p{L}

        check_vocabulary(encoder, bpe_merges)
        self.encoder = encoder
        self.decoder = dict(zip(encoder.values(), encoder))
        self.pieces = regex.compile(PIECES)
        self.cache = PieceCache(encoder, dict(zip(bpe_merges, range(len(bpe_merges)))))

    def encode(self, text: str, allowed_special: Collection[str] = ()) -> list[int]:
        """The ids of any text. "<|endoftext|>" in it is text like any other, unless allowed_special holds it.

        Raises ValueError for a lone surrogate (half of a UTF-16 pair, which UTF-8 can't express).
        """
        if isinstance(allowed_special, str):
            raise ValueError(f"allowed_special is a set of tokens, not the text {allowed_special!r}")
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
        """The bytes that one token stands for: possibly only a part of a character."""
        return self._bytes([id])

    def _bytes(self, ids: Iterable[int]) -> bytes:
        try:
            tokens = "".join(map(self.decoder.__getitem__, ids))
        except KeyError as error:
            raise ValueError(f"{error} is not a token id: the vocabulary has 0 to {len(self.decoder) - 1}") from None
        return tokens.translate(CHAR_TO_BYTE).encode("latin-1")

    def decode(self, ids: Iterable[int]) -> str:
        """The text of the ids; bytes that are not UTF-8 become U+FFFD. Raises ValueError for an unknown id."""
        return self._bytes(ids).decode("utf-8", errors="replace")

    def decode_stream(self, ids: Iterable[int]) -> Iterator[str]:
        """The same text, piece by piece as the ids come: half a character waits for its other half, or for the end."""
        utf8 = codecs.getincrementaldecoder("utf-8")(errors="replace")
        for id in ids:
            yield utf8.decode(self.token_bytes(id))
        yield utf8.decode(b"", final=True)


def check_vocabulary(encoder: dict[str, int], bpe_merges: list[str]) -> None:
    """Raise ValueError unless every text gets ids, every id gets a text, and every merge makes a token."""
    if not isinstance(encoder, dict) or not set(map(type, encoder.values())) <= {int}:
        raise ValueError("encoder.json: not a JSON object of token: id")
    if sorted(encoder.values()) != list(range(len(encoder))):
        raise ValueError(
            f"encoder.json: the ids of its {len(encoder)} tokens are not 0 to {len(encoder) - 1}, each once"
        )
    alphabet = set(BYTE_TO_CHAR.values())
    if missing := alphabet - encoder.keys():
        raise ValueError(f"encoder.json: no token for {len(missing)} of the 256 bytes, {min(missing)!r} among them")
    if unknown := set("".join(encoder)) - alphabet:
        raise ValueError(f"encoder.json: a token holds {min(unknown)!r}, which stands for no byte")
    if malformed := [line for line in bpe_merges if line.count(" ") != 1 or line[0] == " " or line[-1] == " "]:
        raise ValueError(f"vocab.bpe: the merge {malformed[0]!r} is not two symbols with a space between")
    if strange := set("\n".join(bpe_merges).replace(" ", "").split("\n")) - encoder.keys() - {""}:
        raise ValueError(f"vocab.bpe: a merge makes {min(strange)!r}, which is not in the vocabulary")


def read_merges(path: Path) -> list[str]:
    """Return the merges in a vocab.bpe (Hugging Face: merges.txt), without the line that gives the version."""
    lines = path.read_text(encoding="utf-8").rstrip("\n").split("\n")
    return lines[1:] if lines[0].startswith("#version") else lines


def get_encoder(model_name: str, models_dir: str | Path = "models") -> Encoder:
    """The tokenizer of models_dir/model_name. Raises OSError or ValueError naming the file that is at fault."""
    folder = Path(models_dir) / model_name
    vocabulary, merges = folder / "encoder.json", folder / "vocab.bpe"
    reading = vocabulary
    try:
        encoder = json.loads(vocabulary.read_text(encoding="utf-8"))
        reading = merges
        bpe_merges = read_merges(merges)
        reading = folder
        return Encoder(encoder, bpe_merges)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{reading}: {error}") from None


def main(argv: list[str] | None = None) -> int:
    """Print the tokens of a text, one a line: id, and the bytes it stands for."""
    from utils import TOKENIZER_FILES, Parser, ensure_downloaded, read_prompt

    parser = Parser(
        description="Show how GPT-2 cuts a text into tokens.",
        epilog='examples:\n  python encoder.py "Not all heroes wear capes."\n  echo "Ünïcödé" | python encoder.py -',
    )
    parser.add_argument("text", help="the text, or - for standard input")
    parser.add_argument("--model_size", default="124M", help="whose vocabulary (default: %(default)s)")
    parser.add_argument("--models_dir", default="models", help="where the models are (default: %(default)s)")
    args = parser.parse_args(argv)
    text = read_prompt(args.text)
    ensure_downloaded(args.model_size, args.models_dir, TOKENIZER_FILES)
    encoder = get_encoder(args.model_size, args.models_dir)
    for id in encoder.encode(text):
        token = encoder.token_bytes(id)
        try:
            print(f"{id:>6}  {token.decode()!r}")
        except UnicodeDecodeError:  # a part of a character
            print(f"{id:>6}  {token!r}")
    return 0


if __name__ == "__main__":
    from utils import run

    sys.exit(run(main))
