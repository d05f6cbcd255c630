"""The tokenizer: compared with tiktoken and Hugging Face's tokenizers, streamed, and with broken vocabularies."""

from __future__ import annotations

import doctest
import json
import random
from collections.abc import Iterator

import pytest
from helpers import ROOT, SHARED, shared
from hypothesis import given, settings
from hypothesis import strategies as st

import encoder as bpe
from encoder import BYTE_TO_CHAR, Encoder, get_encoder, merge, merge_long

TRICKY = [
    "",
    " ",
    "  ",
    "\n",
    "\r\n \t\n  x",
    "\0",
    "a\0b",
    '"y is ?"',
    "I'M SURE'LL we'll They'RE don't'd 's'S",
    "trailing space ",
    "   leading",
    "x" * 300,
    "naïve café Ærøskøbing ß ſ İ",
    "日本語の文章、漢字とかな。中文字符 한국어 텍스트",
    "שלום עולם مرحبا بالعالم ‏‎",
    "👩‍👩‍👧‍👦 🏳️‍🌈 👍🏽 🇩🇪 𝔘𝔫𝔦𝔠𝔬𝔡𝔢",
    "e\u0301 o\u0308 Z\u0351\u036b\u0343",
    "\u00a0\u2003\u3000 nbsp",
    "①②③ ½ ४५६ Ⅷ 12345 1,000.5",
    "a\u200bb\ufeffc",
    "<|endoftext|> and <|endoftext|>",
    "def f(x):\n\treturn x  # comment\n\n\n    y",
    "http://example.com/?a=b&c=%20",
    "\x7f\x80\x85\xa0\xad\uffff\U0010ffff",
]


@pytest.fixture(scope="module")
def openai() -> Encoder:
    return get_encoder(shared("openai-117M").name, SHARED)


@pytest.fixture(scope="module")
def theirs(openai):
    """Return tiktoken's and Hugging Face's tokenizer, made from the same files so that nothing is downloaded."""
    tiktoken, tokenizers = pytest.importorskip("tiktoken"), pytest.importorskip("tokenizers")
    ranks = {openai.token_bytes(id): id for id in range(50256)}
    one = tiktoken.Encoding(
        "gpt2",
        pat_str=r"""'(?:[sdmt]|ll|ve|re)| ?\p{L}++| ?\p{N}++| ?[^\s\p{L}\p{N}]++|\s++$|\s+(?!\S)|\s""",
        mergeable_ranks=ranks,
        special_tokens={"<|endoftext|>": 50256},
    )
    folder = SHARED / "openai-117M"
    two = tokenizers.ByteLevelBPETokenizer.from_file(str(folder / "encoder.json"), str(folder / "vocab.bpe"))
    return one, two


# ---------------------------------------------------------------------------------- ids, with OpenAI's vocabulary


@pytest.mark.parametrize("text", TRICKY, ids=range(len(TRICKY)))
def test_tricky_texts(openai, theirs, text):
    ids = openai.encode(text)
    assert ids == theirs[0].encode_ordinary(text)
    assert ids == theirs[1].encode(text).ids
    assert openai.decode(ids) == text
    assert "".join(openai.decode_stream(ids)) == text


@pytest.mark.slow
@pytest.mark.parametrize("name", ["tinyshakespeare.txt", "wikitext-2-valid.txt"])
def test_a_megabyte_of_english(openai, theirs, name):
    text = shared("text/" + name).read_text(encoding="utf-8")
    ids = openai.encode(text)
    assert ids == theirs[0].encode_ordinary(text)
    assert ids == theirs[1].encode(text).ids
    assert openai.decode(ids) == text


@settings(max_examples=600, deadline=None)
@given(st.text(st.characters(exclude_categories=["Cs", "Cn"]), max_size=60))
def test_any_text_equals_tiktoken(openai, theirs, text):
    ids = openai.encode(text)
    assert ids == theirs[0].encode_ordinary(text)
    assert openai.decode(ids) == text


@settings(max_examples=300, deadline=None)
@given(
    st.lists(st.sampled_from(["'", "s", "LL", "t", " ", "  ", "\n", "é", "1", "ab", "!", "?", "漢", "🙂"]), max_size=20)
)
def test_any_mixture_of_kinds_equals_tiktoken(openai, theirs, parts):
    assert openai.encode("".join(parts)) == theirs[0].encode_ordinary("".join(parts))


def test_long_words_equal_tiktoken(openai, theirs):
    rng = random.Random(0)
    for length in (127, 128, 129, 1000, 20000):
        word = "".join(rng.choices("abcdefghijklmnopqrstuvwxyz", k=length))
        assert openai.encode(word) == theirs[0].encode_ordinary(word)
    assert openai.encode("a" * 5000) == theirs[0].encode_ordinary("a" * 5000)


def test_every_token_is_reached(openai):
    for id in range(50256):
        symbols = list(openai.token_bytes(id).decode("latin-1").translate(BYTE_TO_CHAR))
        assert [openai.encoder[symbol] for symbol in merge(symbols, openai.cache.ranks)] == [id]


def test_known_ids(openai):
    assert openai.encode("Hello world") == [15496, 995]
    assert openai.encode("Not all heroes wear capes.") == [3673, 477, 10281, 5806, 1451, 274, 13]
    assert openai.encode("<|endoftext|>") == [27, 91, 437, 1659, 5239, 91, 29]
    assert openai.encode("a<|endoftext|>b", allowed_special={"<|endoftext|>"}) == [64, 50256, 65]
    assert openai.decode([50256]) == "<|endoftext|>"


# ------------------------------------------------------------------------------- everywhere, with a small vocabulary


MERGES = ["l o", "lo w", "Ġ lo", "Ġ low", "Ã ©", "a a", "aa a", "aa aa", "e r", "ðŁ ĺ", "ð Ł"]


def small(merges: list[str] = MERGES) -> Encoder:
    tokens = [*BYTE_TO_CHAR.values(), *dict.fromkeys(m.replace(" ", "") for m in merges), "<|endoftext|>"]
    return Encoder({token: id for id, token in enumerate(tokens)}, merges)


def test_each_byte_has_a_visible_character():
    """Python's own idea of what can be printed gives the same table as the three ranges in encoder.py."""
    visible = {byte: chr(byte) for byte in range(256) if chr(byte).isprintable() and chr(byte) != " "}
    hidden = (byte for byte in range(256) if byte not in visible)
    assert bpe.bytes_to_unicode() == visible | {byte: chr(256 + i) for i, byte in enumerate(hidden)}


def openai_merge(symbols: list[str], ranks: dict[str, int]) -> list[str]:
    """Merge as the definition says: join every occurrence of the best pair from the left, until no pair has a rank."""
    while True:
        pairs = [(ranks[f"{a} {b}"], a, b) for a, b in zip(symbols, symbols[1:]) if f"{a} {b}" in ranks]
        if not pairs:
            return symbols
        _, first, second = min(pairs)
        joined, i = [], 0
        while i < len(symbols):
            if symbols[i : i + 2] == [first, second]:
                joined.append(first + second)
                i += 2
            else:
                joined.append(symbols[i])
                i += 1
        symbols = joined


@pytest.mark.parametrize("letters", ["a", "ab", "abc"])
def test_both_merges_join_runs_of_equal_symbols_from_the_left(letters):
    """The merges are parts of a word that is repeated, in any order, so that equal symbols follow each other."""
    rng = random.Random(5)
    for _ in range(400):
        base = "".join(rng.choices(letters, k=rng.randint(1, 5)))
        word = "".join(rng.choices(letters, k=2)) + base * 6
        parts = {word[i:j] for i in range(len(word)) for j in range(i + 2, i + 8)}
        lines = sorted({f"{part[:i]} {part[i:]}" for part in parts for i in range(1, len(part))})
        ranks = {line: rank for rank, line in enumerate(rng.sample(lines, min(len(lines), 12)))}
        expected = openai_merge(list(word), ranks)
        assert merge(list(word), ranks) == expected
        assert merge_long(list(word), ranks) == expected


@settings(max_examples=500, deadline=None)
@given(st.text("abc", max_size=40), st.data())
def test_both_merges_do_what_the_definition_says(word, data):
    """Any list of merges will do, even in an order that no training would give."""
    part = st.text("abc", min_size=1, max_size=3)
    lines = data.draw(st.lists(st.tuples(part, part).map(" ".join), unique=True, max_size=12))
    ranks = {line: rank for rank, line in enumerate(lines)}
    expected = openai_merge(list(word), ranks)
    assert merge(list(word), ranks) == expected
    assert merge_long(list(word), ranks) == expected


def test_every_occurrence_of_a_pair_is_joined_before_a_pair_that_this_makes():
    ranks = {"ab a": 0, "a b": 1}  # joining the first "a b" makes the better pair "ab a"
    assert merge(list("abab"), ranks) == ["ab", "ab"]
    assert merge_long(list("abab"), ranks) == ["ab", "ab"]


def test_a_token_that_the_merges_do_not_reach_is_not_used():
    """With OpenAI's merges a piece that is a token needs no merging, but not with any others."""
    assert [*map(small(["o w", "l o", "lo w"]).decode, [[256], [258]])] == ["ow", "low"]
    assert small(["o w", "l o", "lo w"]).encode("low") == [ord("l") - 33, 256]


def test_openai_s_merges_with_another_vocabulary_are_merged():
    folder = shared("openai-117M")
    vocabulary = json.loads((folder / "encoder.json").read_text(encoding="utf-8"))
    merges = bpe.read_merges(folder / "vocab.bpe")
    assert Encoder(vocabulary, merges).cache.known_tokens
    more = vocabulary | {"zqzqzq": len(vocabulary)}
    assert 50257 not in Encoder(more, merges).encode("zqzqzq")
    del more["<|endoftext|>"]
    assert not Encoder({token: id for id, token in enumerate(more)}, merges).cache.known_tokens


@given(st.text(st.characters(exclude_categories=["Cs"])))
def test_round_trip(text):
    tokenizer = small()
    ids = tokenizer.encode(text)
    assert tokenizer.decode(ids) == text
    assert tokenizer.decode(iter(ids)) == text
    assert "".join(tokenizer.decode_stream(ids)) == text


@given(st.lists(st.integers(0, 255)))
def test_streaming_never_emits_half_a_character(ids):
    tokenizer = small()
    pieces = list(tokenizer.decode_stream(ids))
    assert "".join(pieces) == tokenizer.decode(ids)
    complete = tokenizer.encode("🙂")
    assert list(tokenizer.decode_stream(complete)) == ["", *[""] * (len(complete) - 2), "🙂", ""]
    assert list(tokenizer.decode_stream(complete[:-1]))[-1] == "\ufffd"


@pytest.mark.parametrize("text", ["a😀b", "漢字", "é", "👩‍👩‍👧 e\u0301", "مرحبا", "\U0010ffff\x00\x7f\x80"])
def test_streaming_shows_each_character_as_soon_as_it_is_complete(text):
    tokenizer = small()
    given: list[int] = []

    def source() -> Iterator[int]:
        for id in tokenizer.encode(text):
            given.append(id)
            yield id

    shown = ""
    for piece in tokenizer.decode_stream(source()):
        shown += piece
        assert shown == b"".join(map(tokenizer.token_bytes, given)).decode("utf-8", errors="ignore")
    assert shown == text


def test_examples_in_docstrings(monkeypatch):
    """The documentation of encoder.py uses the model that comes with the repository."""
    monkeypatch.chdir(ROOT)
    results = doctest.testmod(bpe)
    assert results.attempted >= 5
    assert results.failed == 0


def test_special_tokens_only_where_allowed():
    tokenizer = small()
    end = tokenizer.encoder["<|endoftext|>"]
    assert end not in tokenizer.encode("a<|endoftext|>b")
    assert tokenizer.encode("a<|endoftext|>", {"<|endoftext|>"})[-1] == end
    with pytest.raises(ValueError, match="'<x>' is not a token"):
        tokenizer.encode("a", {"<x>"})
    with pytest.raises(ValueError, match="must be a set of tokens, not the text 'all'"):
        tokenizer.encode("a", "all")


@pytest.mark.parametrize("text", ["\ud800", "ab\udfffc", "x" * 200 + "\udc80"])
def test_lone_surrogates_are_refused_with_their_place(text):
    at = next(i for i, char in enumerate(text) if "\ud800" <= char <= "\udfff")
    with pytest.raises(ValueError, match=f"character {at} of the text is a lone surrogate"):
        small().encode(text)


@pytest.mark.parametrize("id", [-1, 10**6, 2.5])
def test_unknown_ids_are_refused(id):
    with pytest.raises(ValueError, match="is not a token id: the vocabulary has 0 to"):
        small().decode([0, id])


def test_the_cache_is_bounded(monkeypatch):
    monkeypatch.setattr(bpe, "CACHED_PIECES", 50)
    tokenizer = small()
    for i in range(1000):
        tokenizer.encode(f"word{'x' * (i % 7)} {i}")
        assert len(tokenizer.cache) <= 50
    tokenizer.encode("y" * 5000)
    assert max(map(len, tokenizer.cache)) <= bpe.CACHED_CHARS


def test_a_long_word_takes_linear_time():
    """The lookups are counted, since times vary: a quadratic algorithm would need 400 million here."""

    class Counting(dict):
        lookups = 0

        def get(self, key, default=None):
            self.lookups += 1
            return super().get(key, default)

    rng = random.Random(1)
    word = rng.choices(["l", "o", "w", "a"], k=20000)
    ranks = Counting({merge: rank for rank, merge in enumerate(MERGES)})
    merge_long(word, ranks)
    assert 20000 < ranks.lookups < 100000


# ------------------------------------------------------------------------------------------------- broken vocabularies


def write(folder, vocabulary: str, merges: str):
    (folder / "m").mkdir(exist_ok=True)
    (folder / "m" / "encoder.json").write_text(vocabulary, encoding="utf-8")
    (folder / "m" / "vocab.bpe").write_text(merges, encoding="utf-8")


def test_files_are_utf8_and_line_ends_may_be_windows(tmp_path):
    tokenizer = small()
    write(tmp_path, json.dumps(tokenizer.encoder, ensure_ascii=False), "#version: 0.2\n" + "\n".join(MERGES) + "\n")
    path = tmp_path / "m" / "vocab.bpe"
    expected = tokenizer.encode("lower é aaaa 🙂")
    assert get_encoder("m", tmp_path).encode("lower é aaaa 🙂") == expected
    path.write_bytes(path.read_bytes().replace(b"\n", b"\r\n"))
    assert get_encoder("m", tmp_path).encode("lower é aaaa 🙂") == expected


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda e: e.pop("a"), "ids must be 0 to 266"),
        (lambda e: e.update(a=e["b"]), "ids must be 0 to 267"),
        (lambda e: e.update(a="7"), "not a JSON object"),
        (lambda e: e.update(a=True), "not a JSON object"),
        (lambda e: e.update({"b b": e.pop("aa")}), "stands for no byte"),
        (lambda e: e.update({"xx": e.pop("a")}), "no token for 1 of the 256 bytes"),
        (lambda e: e.update({"xx": e.pop("low")}), "'low', which is not in the vocabulary"),
    ],
)
def test_a_vocabulary_that_can_not_be_is_refused(tmp_path, change, message):
    vocabulary = small().encoder
    change(vocabulary)
    write(tmp_path, json.dumps(vocabulary), "\n".join(MERGES))
    with pytest.raises(ValueError, match=message) as error:
        get_encoder("m", tmp_path)
    assert str(tmp_path / "m") in str(error.value)


@settings(max_examples=200, deadline=None)
@given(st.integers(0, 10**9), st.binary(min_size=1, max_size=3), st.booleans(), st.booleans())
def test_fuzzed_files_give_an_error_or_a_right_answer(tmp_path_factory, at, junk, truncate, which):
    folder = tmp_path_factory.mktemp("fuzz")
    write(folder, json.dumps(small().encoder), "#version: 0.2\n" + "\n".join(MERGES) + "\n")
    path = folder / "m" / ("encoder.json" if which else "vocab.bpe")
    data = path.read_bytes()
    at %= len(data)
    path.write_bytes(data[:at] + junk + (b"" if truncate else data[at + len(junk) :]))
    try:
        tokenizer = get_encoder("m", folder)
    except ValueError as error:
        assert "m" in str(error)
        return
    text = "lower LOW é aaaaa 🙂 \0"
    assert tokenizer.decode(tokenizer.encode(text)) == text
