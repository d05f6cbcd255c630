"""The protocols of texts that are scored whole: WikiText, the Penn Treebank, text8, enwik8, One Billion Words.

Radford et al. 2019 (GPT-2), section 3.1, gives the figures, and only these rules: the log-probability of a data set is
divided by its number of units, which are words, characters or bytes, and invertible detokenizers remove what tokenizing
left behind. The code was not published. Each protocol says what else it had to choose.
"""

from __future__ import annotations

import argparse
import codecs
import os
import re
from pathlib import Path

from encoder import BYTE_TO_CHAR
from picogpt.command_line import UsageError, decode_utf8
from picogpt.evaluate.corpora import (
    Protocol,
    Score,
    count_words,
    per_token,
    read_corpus,
    scores_of,
    take,
    total,
    windows_of,
    word_figures,
)
from picogpt.evaluate.detokenize import ONE_BILLION_WORDS as BILLION_STYLE
from picogpt.evaluate.detokenize import PENN_TREEBANK, detokenize
from picogpt.evaluate.wikitext import WIKITEXT
from picogpt.scoring.results import bits, perplexity
from picogpt.scoring.work import Model

PUBLISHED = 100_000_000  # bytes of text8 and of enwik8
TEST_SET = 5_000_000  # the last of them
UNIT = 1000  # bytes that --limit counts as one document in these two, which are not divided into any


def penn_treebank(data: Path, model: Model, score: Score, args: argparse.Namespace) -> dict[str, float]:
    """Score the Penn Treebank, in Mikolov's version for language models (ptb.test.txt).

    1. That version has no capitals and no punctuation, N for numbers, and <unk> for rare words. An invertible
       detokenizer joins contractions, "'s" and "$" to their words. Nothing else can be undone.
    2. The file is one document, since its sentences are in the order of the newspaper: <|endoftext|> before the first
       if `bos` is set, and a line end after each.
    3. The log-probability is summed over windows by `stride` and `max_context`, and divided by the number of words.
       A line end counts as one, as in the literature: 82,430 tokens, the usual size of the test set, are 78,669 words
       and 3,761 lines.

    Unknown: what the paper's detokenizer restored beyond that, such as capitals, whether it counts line ends, and how
    its windows overlap. `limit` is a number of lines.

    Raises UsageError if the file is in another form.
    """
    text = first_lines(read_corpus(data), args)
    for number, line in enumerate(text.split("\n"), 1):
        if wrong := [word for word in line.split(" ") if word != "N" and word.lower() != word]:
            raise UsageError(
                f"{data} is not the Penn Treebank in Mikolov's version, which has no capitals but N: "
                f"line {number} has {wrong[0]!r}"
            )
    parts = windows_of(model.encoder.encode(detokenize(text, PENN_TREEBANK)), model, args)
    return word_figures(*total(scores_of(parts, score, data)), text, 1)


def one_billion_words(data: Path, model: Model, score: Score, args: argparse.Namespace) -> dict[str, float]:
    """Score the One Billion Word Benchmark, such as news.en.heldout-00000-of-00050 (Chelba et al. 2013).

    1. A line is a tokenized sentence. It becomes natural text by an invertible detokenizer.
    2. Each sentence is a document of its own, because the benchmark shuffled them: <|endoftext|> before it if `bos` is
       set, and its line end behind it. The paper counts this preprocessing among the most destructive, because it
       removes all structure beyond a sentence, and explains GPT-2's poor result by it.
    3. The log-probability is summed, and divided by the number of words. The end of a sentence counts as one, because
       it is predicted like a word. It is the line end here.

    Unknown: which of the held-out files the paper used, whether it scored sentences by themselves, and what stood for
    the end of a sentence. `limit` is a number of sentences. Without `bos`, the first token of every sentence is left
    out of the sum, while its word is counted.

    Raises UsageError if no token is a comma or a period, as in a file that was not tokenized.
    """
    text = first_lines(read_corpus(data), args)
    if not {",", "."} & {word for line in text.split("\n") for word in line.split(" ")}:
        raise UsageError(f'{data} is not tokenized: nowhere do "," or "." stand between spaces')
    lines = [line for line in re.findall(r"[^\n]*\n|[^\n]+", text) if line.strip()]
    documents = [model.encoder.encode(detokenize(line, BILLION_STYLE)) for line in lines]
    parts = [part for ids in documents for part in windows_of(ids, model, args)]
    return word_figures(*total(scores_of(parts, score, data)), "".join(lines), len(lines))


def text8(data: Path, model: Model, score: Score, args: argparse.Namespace) -> dict[str, float]:
    """Score text8: Wikipedia in small letters and spaces, in bits for each character (Mahoney 2011).

    1. The published file has 100,000,000 characters, of which the last 5,000,000 are the test set by custom. They are
       taken if the file has exactly that size. Any other file is taken whole. The first word may be cut.
    2. This is one document, <|endoftext|> before it if `bos` is set. Nothing is detokenized.
    3. The log-probability is summed over windows by `stride` and `max_context`, and divided by the characters.

    Unknown: which part the paper scored, and what its detokenizer did with a text in which numbers are spelled out and
    punctuation is missing. `limit` is a number of thousands of characters from the beginning of the test set.

    Raises UsageError if the file has a character that is neither a space nor one of a to z.
    """
    text = read_test_set(data, args)
    if found := re.search(rb"[^a-z ]", text):
        raise UsageError(f"{data} is not text8, which has only the letters a to z and spaces: found {found[0]!r}")
    words = text.decode("ascii")
    parts = windows_of(model.encoder.encode(words), model, args)
    nats, n_tokens = total(scores_of(parts, score, data))
    return {
        "bits per character": bits(nats, len(words)),
        "characters": len(words),
        "perplexity per word": perplexity(nats, max(count_words(words), 1)),
        **per_token(nats, n_tokens),
        "words": count_words(words),
    }


def enwik8(data: Path, model: Model, score: Score, args: argparse.Namespace) -> dict[str, float]:
    """Score enwik8: Wikipedia's XML, in bits for each byte (Mahoney 2011).

    1. The published file has 100,000,000 bytes, of which the last 5,000,000 are the test set by custom. They are taken
       if the file has exactly that size. Any other file is taken whole.
    2. The tokenizer takes text, so the bytes are decoded as UTF-8, which all of enwik8 is. Only at the two ends, a cut
       may leave up to three bytes of a character. Each of them becomes the token of that single byte, so that the ids
       stand for exactly the bytes of the test set.
    3. This is one document, <|endoftext|> before it if `bos` is set. Nothing is detokenized.
    4. The log-probability is summed over windows by `stride` and `max_context`, and divided by the bytes.

    Unknown: which part the paper scored, and whether it changed the XML. `limit` is a number of thousands of bytes from
    the beginning of the test set.

    Raises UsageError if the bytes are not UTF-8, apart from cuts at both ends.
    """
    text = read_test_set(data, args)
    parts = windows_of(ids_of_bytes(text, model, data), model, args)
    nats, n_tokens = total(scores_of(parts, score, data))
    return {"bits per byte": bits(nats, len(text)), **per_token(nats, n_tokens), "bytes": len(text)}


def first_lines(text: str, args: argparse.Namespace) -> str:
    """Return as many lines as --limit leaves, with their ends."""
    return "".join(take(re.findall(r"[^\n]*\n|[^\n]+", text), args))


def read_test_set(data: Path, args: argparse.Namespace) -> bytes:
    """Return the last TEST_SET bytes of a file that has the published size, and otherwise all of it.

    Only what --limit leaves is read, without a byte order mark. Raises OSError, and UsageError if there is nothing.
    """
    with open(data, "rb") as file:
        if os.fstat(file.fileno()).st_size == PUBLISHED:
            file.seek(PUBLISHED - TEST_SET)
        text = file.read(-1 if args.limit is None else args.limit * UNIT).removeprefix(codecs.BOM_UTF8)
    if not text.strip():
        raise UsageError(f"{data} is empty: there is no text to score")
    return text


def ids_of_bytes(data: bytes, model: Model, source: Path) -> list[int]:
    """Return ids that stand for exactly these bytes. At both ends, up to three may be part of a character.

    Raises UsageError for any other byte that is not UTF-8.
    """
    head = re.findall(rb"^[\x80-\xbf]{0,3}", data)[0]  # bytes inside a character are 0x80 to 0xbf
    tail = re.findall(rb"(?:[\xc2-\xdf]|[\xe0-\xef][\x80-\xbf]?|[\xf0-\xf4][\x80-\xbf]{0,2})?\Z", data[-3:])[0]
    core = data[len(head) : len(data) - len(tail)]
    text = decode_utf8(b"?" * len(head) + core, f"the test set in {source}")[len(head) :]
    single = {byte: model.encoder.encoder[BYTE_TO_CHAR[byte]] for byte in {*head, *tail}}
    return [*(single[byte] for byte in head), *model.encoder.encode(text), *(single[byte] for byte in tail)]


PTB: dict[str, Protocol] = {"paper": penn_treebank}
TEXT8: dict[str, Protocol] = {"paper": text8}
ENWIK8: dict[str, Protocol] = {"paper": enwik8}
ONE_BILLION_WORDS: dict[str, Protocol] = {"paper": one_billion_words}

__all__ = ["ENWIK8", "ONE_BILLION_WORDS", "PTB", "TEXT8", "WIKITEXT"]
