"""The tokenizer: compared with tiktoken and Hugging Face's tokenizers, streamed, and with broken vocabularies."""

from __future__ import annotations

import doctest
import json
import random
import time
import unicodedata
from collections.abc import Iterator
from itertools import pairwise

import pytest
from helpers import ROOT, SHARED, shared
from hypothesis import given, settings
from hypothesis import strategies as st

import encoder as bpe
from encoder import BYTE_TO_CHAR, END_OF_TEXT, Encoder, get_encoder, merge, merge_long

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


SIGNS = ["'s", "'LL", "'ve", "  ", "\r\n", *"'' \n\t\xa0\u2003\u3000\x85\x1c|<"]
MARKS = "\u0301\u0351\u200d\ufe0f\u20e3\u200b\ufeff\xad½Ⅷ४ǅʰſİ"
BLOCKS = [(0x20, 0x7F), (0, 0x100), (0x100, 0x3000), (0x3000, 0xD800), (0xE000, 0x10000), (0x10000, 0x110000)]


def odd_string(rng: random.Random) -> str:
    """Mix characters of every plane, white space, contractions, combining marks and repetitions.

    Characters that Unicode has not assigned are left out: later versions, which libraries may know, make some letters.
    """

    def part() -> str:
        kind = rng.random()
        if kind < 0.4:
            return rng.choice(SIGNS if kind < 0.3 else MARKS)
        low, high = rng.choice(BLOCKS)
        chars = [chr(rng.randrange(low, high)) for _ in range(rng.randint(1, 5))]
        return "".join(char for char in chars if unicodedata.category(char) != "Cn")

    return "".join(part() * rng.choice((1, 1, 1, 1, 2, 7)) for _ in range(rng.randint(0, 12)))


def test_odd_strings_equal_tiktoken(openai, theirs):
    rng = random.Random(1)
    for _ in range(3000):
        text = odd_string(rng)
        ids = openai.encode(text)
        assert ids == theirs[0].encode_ordinary(text), repr(text)
        assert openai.decode(ids) == text


def test_long_words_equal_tiktoken(openai, theirs):
    rng = random.Random(0)
    for length in (bpe.LONG_WORD - 1, bpe.LONG_WORD, 1000, 20000):
        for letters in ("abcdefghijklmnopqrstuvwxyz", "0123456789", "!?.,-", "a", "ab", " ", "漢字", "🙂"):
            word = "".join(rng.choices(letters, k=length))
            assert openai.encode(word) == theirs[0].encode_ordinary(word)


def test_every_token_is_reached(openai):
    for id in range(50256):
        symbols = list(openai.token_bytes(id).decode("latin-1").translate(BYTE_TO_CHAR))
        assert [openai.encoder[symbol] for symbol in merge(symbols, openai.ranks)] == [id]


def test_known_ids(openai):
    assert openai.encode("Hello world") == [15496, 995]
    assert openai.encode("Not all heroes wear capes.") == [3673, 477, 10281, 5806, 1451, 274, 13]
    assert openai.encode("<|endoftext|>") == [27, 91, 437, 1659, 5239, 91, 29]
    assert openai.encode("a<|endoftext|>b", allowed_special={"<|endoftext|>"}) == [64, 50256, 65]
    assert openai.decode([50256]) == "<|endoftext|>"


def test_openai_s_merges_are_known_and_need_no_merging(openai, monkeypatch):
    assert openai.is_openai
    assert openai.special_tokens == {END_OF_TEXT: 50256}
    assert not small().is_openai
    more = Encoder(openai.encoder | {"zqzqzq": 50257}, list(openai.ranks))
    assert more.special_tokens == {END_OF_TEXT: 50256, "zqzqzq": 50257}
    assert 50257 not in more.encode("zqzqzq")
    monkeypatch.setattr(bpe, "merge", None)
    assert more.encode("Hello world") == [15496, 995]


# ------------------------------------------------------------------------------- everywhere, with a small vocabulary


MERGES = ["l o", "lo w", "Ġ lo", "Ġ low", "Ã ©", "a a", "aa a", "aa aa", "e r", "ðŁ ĺ", "ð Ł"]


def small(merges: list[str] = MERGES, special: tuple[str, ...] = (END_OF_TEXT,)) -> Encoder:
    tokens = [*BYTE_TO_CHAR.values(), *dict.fromkeys(m.replace(" ", "") for m in merges), *special]
    return Encoder({token: id for id, token in enumerate(tokens)}, merges)


def test_each_byte_has_a_visible_character():
    """These are the three ranges of OpenAI's encoder.py. The other bytes follow from U+0100 on."""
    visible = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    hidden = [byte for byte in range(256) if byte not in visible]
    assert {byte: chr(byte) for byte in visible} | dict(zip(hidden, map(chr, range(256, 324)))) == BYTE_TO_CHAR


def merged_by_definition(symbols: list[str], merges: list[str]) -> list[str]:
    """Join every occurrence of the pair that stands first in the list, from the left, until no pair is in the list."""
    while found := [merges.index(f"{a} {b}") for a, b in pairwise(symbols) if f"{a} {b}" in merges]:
        pair = merges[min(found)].split(" ")
        i = 0
        while i < len(symbols):
            if symbols[i : i + 2] == pair:
                symbols = [*symbols[:i], "".join(pair), *symbols[i + 2 :]]
            i += 1
    return symbols


def assert_both_merge(word: str, merges: list[str]) -> None:
    ranks = {line: rank for rank, line in enumerate(merges)}
    expected = merged_by_definition(list(word), merges)
    assert merge(list(word), ranks) == expected
    assert merge_long(list(word), ranks) == expected


@pytest.mark.parametrize("letters", ["a", "ab", "abc"])
def test_both_merges_join_runs_of_equal_symbols_from_the_left(letters):
    """The merges are parts of a word that is repeated, in any order, so that equal symbols follow each other."""
    rng = random.Random(5)
    for _ in range(400):
        base = "".join(rng.choices(letters, k=rng.randint(1, 5)))
        word = "".join(rng.choices(letters, k=2)) + base * 6
        parts = {word[i:j] for i in range(len(word)) for j in range(i + 2, i + 8)}
        lines = sorted({f"{part[:i]} {part[i:]}" for part in parts for i in range(1, len(part))})
        assert_both_merge(word, rng.sample(lines, min(len(lines), 12)))


def test_every_occurrence_of_a_pair_is_joined_before_a_pair_that_this_makes():
    assert_both_merge("abab", ["ab a", "a b"])  # joining the first "a b" makes the better pair "ab a"
    assert merge(list("abab"), {"ab a": 0, "a b": 1}) == ["ab", "ab"]


def test_a_merge_that_is_listed_twice_keeps_its_first_place():
    assert small(["a b", "a b", "c d"]).encode("abcd") == [256, 257]
    assert small(["a b", "b c", "a b"]).encode("abc") == [256, ord("c") - 33]
    rng = random.Random(2)
    for _ in range(300):
        tokens, merges = list("abcd"), list[str]()
        for _ in range(8):
            merges.append(f"{rng.choice(tokens)} {rng.choice(tokens)}")
            tokens.append(merges[-1].replace(" ", ""))
        merges = [*merges, *rng.choices(merges, k=4)]
        rng.shuffle(merges)
        tokenizer, word = small(merges), "".join(rng.choices("abcd", k=rng.choice([5, 30, 100])))
        assert [tokenizer.decoder[id] for id in tokenizer.encode(word)] == merged_by_definition(list(word), merges)


def test_a_token_that_the_merges_do_not_reach_is_not_used():
    """With OpenAI's merges a piece that is a token needs no merging, but not with any others."""
    assert [*map(small(["o w", "l o", "lo w"]).decode, [[256], [258]])] == ["ow", "low"]
    assert small(["o w", "l o", "lo w"]).encode("low") == [ord("l") - 33, 256]


def test_the_tiny_model_s_ids_are_those_of_the_definition():
    tokenizer = get_encoder("tiny", ROOT / "models")
    merges = list(tokenizer.ranks)
    for word in {piece for text in TRICKY for piece in tokenizer.pieces.findall(text)}:
        symbols = [*word.encode("utf-8").decode("latin-1").translate(BYTE_TO_CHAR)]
        expected = [tokenizer.encoder[symbol] for symbol in merged_by_definition(symbols, merges)]
        assert tokenizer.encode(word) == expected == tokenizer.encode(word)  # the second time from the cache


@given(st.text(st.characters(exclude_categories=["Cs"])))
def test_round_trip(text):
    tokenizer = small()
    ids = tokenizer.encode(text)
    assert tokenizer.decode(ids) == text
    assert tokenizer.decode(iter(ids)) == text
    assert "".join(tokenizer.decode_stream(ids)) == text


@given(st.lists(st.integers(0, 255)))
def test_streaming_gives_the_text_of_any_bytes(ids):
    assert "".join(small().decode_stream(ids)) == small().decode(ids)


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


def test_the_repr_tells_sizes_and_whose_merges_they_are():
    assert repr(get_encoder("tiny", ROOT / "models")) == "<Encoder: 1,024 tokens, 767 merges, is_openai=False>"


def test_examples_in_docstrings(monkeypatch):
    """The documentation of encoder.py uses the model that comes with the repository."""
    monkeypatch.chdir(ROOT)
    results = doctest.testmod(bpe)
    assert results.attempted >= 4
    assert results.failed == 0


# ----------------------------------------------------------------------------------------------------- special tokens


SPECIAL = (END_OF_TEXT, "<|user|>", "<|user|>!", "zwölf Töne", "\n\nYou:", "漢", "<|low|>")


def test_special_tokens_stand_in_the_vocabulary_as_in_the_text():
    tokenizer = small(special=SPECIAL)
    ids = {token: 256 + len(MERGES) + i for i, token in enumerate(SPECIAL)}
    assert tokenizer.special_tokens == ids
    for token, id in ids.items():
        text = f"low {token}{token} low"
        assert tokenizer.encode(text, allowed_special=[token]).count(id) == 2
        assert id not in tokenizer.encode(text, allowed_special=[END_OF_TEXT] if token != END_OF_TEXT else [])
        assert tokenizer.encode(token, allowed_special=tokenizer.special_tokens) == [id]
        assert tokenizer.decode([id]) == token
        assert tokenizer.token_bytes(id) == token.encode("utf-8")
        assert "".join(tokenizer.decode_stream(tokenizer.encode(text, tokenizer.special_tokens))) == text


def test_of_two_special_tokens_at_one_place_the_longer_is_found():
    tokenizer = small(special=SPECIAL)
    for allowed in (["<|user|>", "<|user|>!"], ["<|user|>!", "<|user|>"]):
        assert tokenizer.encode("<|user|>!", allowed) == [tokenizer.encoder["<|user|>!"]]
    assert tokenizer.encode("<|user|>!", ["<|user|>"]) == [tokenizer.encoder["<|user|>"], ord("!") - 33]


@pytest.mark.parametrize(("allowed", "named"), [({"<x>"}, "<x>"), ([END_OF_TEXT, "low"], "low"), ("all", "a")])
def test_only_special_tokens_can_be_allowed(allowed, named):
    with pytest.raises(ValueError, match=f"'{named}' is not a special token"):
        small().encode("a", allowed)


@pytest.mark.parametrize("text", ["\ud800", "ab\udfffc", "x" * 200 + "\udc80", f"a{END_OF_TEXT}b{END_OF_TEXT}c\ud8ff"])
def test_lone_surrogates_are_refused_with_their_place(text):
    at = next(i for i, char in enumerate(text) if "\ud800" <= char <= "\udfff")
    for allowed in ((), {END_OF_TEXT}):
        with pytest.raises(ValueError, match=f"character {at} of the text is a lone surrogate"):
            small().encode(text, allowed)


@pytest.mark.parametrize("id", [-1, 10**6, 2.5])
def test_unknown_ids_are_refused(id):
    with pytest.raises(ValueError, match=r"(-1|1000000|2.5) is not a token id: the vocabulary has 0 to 267"):
        small().decode([0, id])


# -------------------------------------------------------------------------------------------------- time and memory


def test_the_cache_is_bounded(monkeypatch):
    monkeypatch.setattr(bpe, "CACHED_PIECES", 50)
    tokenizer = small()
    for i in range(1000):
        tokenizer.encode(f"word{'x' * (i % 7)} {i}")
        assert 0 < len(tokenizer.cache) <= 50
    tokenizer.encode("y" * 5000)
    assert max(map(len, tokenizer.cache)) <= bpe.LONG_WORD


def test_a_word_is_merged_once(monkeypatch):
    tokenizer = small()
    ids = tokenizer.encode(" lower")
    monkeypatch.setattr(bpe, "merge", None)
    assert tokenizer.encode(" lower lower") == ids * 2


def test_a_long_word_takes_linear_time():
    """The lookups are counted, since times vary: a quadratic algorithm would need 400 million here."""

    class Counting(dict[str, int]):
        lookups = 0

        def __contains__(self, key: object) -> bool:
            self.lookups += 1
            return super().__contains__(key)

        def get(self, key, default=None):
            raise AssertionError("this is `merge`, which takes quadratic time")

    tokenizer = small()
    tokenizer.ranks = Counting(tokenizer.ranks)
    ids = tokenizer.encode("".join(random.Random(1).choices("lowa", k=20000)))
    assert len(ids) < 20000 < tokenizer.ranks.lookups < 100000


@pytest.mark.slow
def test_a_million_letters_take_seconds(openai):
    """It takes less than 3 s. The limit is wider, because the machine may be busy."""
    text = "".join(random.Random(0).choices("abcdefghijklmnopqrstuvwxyz", k=10**6))
    before = time.process_time()
    assert openai.decode(openai.encode(text)) == text
    assert time.process_time() - before < 12


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
    path.write_text("# #\na b\n", encoding="utf-8")  # not a line that gives the version
    assert bpe.read_merges(path) == ["# #", "a b"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda e: e.pop("b"), "encoder.json is not a JSON object that gives its n tokens the ids 0 to n - 1"),
        (lambda e: e.update(a=e["b"]), "ids 0 to n - 1"),
        (lambda e: e.update(a="7"), "ids 0 to n - 1"),
        (lambda e: e.update({"xx": e.pop("a")}), "encoder.json has no token 'a', which is a byte or made by a merge"),
        (lambda e: e.update({"xx": e.pop("low")}), "encoder.json has no token 'low'"),
    ],
)
def test_a_vocabulary_that_can_not_be_is_refused(tmp_path, change, message):
    vocabulary = small().encoder
    change(vocabulary)
    write(tmp_path, json.dumps(vocabulary), "\n".join(MERGES))
    with pytest.raises(ValueError, match=message) as error:
        get_encoder("m", tmp_path)
    assert str(tmp_path / "m") in str(error.value)


@pytest.mark.parametrize("line", ["low", "l o w", " lo", "lo ", "l  o"])
def test_a_merge_that_is_not_two_symbols_is_refused(line):
    with pytest.raises(ValueError, match=f"the merge '{line}' is not two symbols with one space between them"):
        Encoder(small().encoder, [*MERGES, line])


def test_a_vocabulary_may_have_no_merges():
    assert small([]).encode("low") == [ord(letter) - 33 for letter in "low"]


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
