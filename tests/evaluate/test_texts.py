"""Test the protocols that score a text whole, each against a computation that shares no code with it."""

from __future__ import annotations

import argparse
import doctest
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers import random_params, shared, their_gpt2, transformers_model
from hypothesis import given
from hypothesis import strategies as st

from encoder import END_OF_TEXT, get_encoder
from picogpt.command_line import UsageError
from picogpt.evaluate import detokenize, texts, wikitext
from picogpt.evaluate.texts import ENWIK8, ONE_BILLION_WORDS, PTB, TEXT8, WIKITEXT
from picogpt.evaluate.wikitext import harness_text, overlapping_windows, pages
from picogpt.scoring.windows import Scores, score_windows
from picogpt.scoring.work import Model

HPARAMS = {"n_vocab": 1024, "n_ctx": 17, "n_embd": 21, "n_head": 3, "n_layer": 2}
N_CTX = HPARAMS["n_ctx"]
ENCODER = get_encoder("tiny", Path(__file__).parents[2] / "models")
MODEL = Model(Path("made-up"), ENCODER, HPARAMS, random_params(HPARAMS, scale=0.2))
END = ENCODER.encoder[END_OF_TEXT]

WIKI = """ 
 = Blue kettle = 
 
 The kettle , a well @-@ known " <unk> " of 1 @,@ 500 parts , isn 't ours . 
 
 = = Use = = 
 
 It holds 2 @.@ 5 litres ( 88 oz ) . 
 
 = Red pan = 
 
 The pans ' lids are N cm wide : 5 ° C hot . 
"""
WIKI_NATURAL = """
= Blue kettle =

The kettle, a well-known "<unk>" of 1,500 parts, isn't ours.

= = Use = =

It holds 2.5 litres (88 oz).

= Red pan =

The pans' lids are N cm wide: 5 ° C hot.
"""
WIKI_WORDS, WIKI_LINES = 4 + 20 + 5 + 11 + 4 + 14, 12


def options(**given: Any) -> argparse.Namespace:
    return argparse.Namespace(**{"stride": None, "max_context": None, "bos": True, "limit": None} | given)


def run(
    protocol, text: str | bytes, tmp_path: Path, score=None, model: Model = MODEL, **given: Any
) -> dict[str, float]:
    """Return the figures of a protocol for a text. It must score all windows in one call."""
    path, calls = tmp_path / "data.txt", []
    path.write_bytes(text if isinstance(text, bytes) else text.encode("utf-8"))

    def score_once(windows):
        calls.append(len(windows))
        return (score or (lambda windows: score_windows(windows, model.params, HPARAMS["n_head"])))(windows)

    figures = protocol(path, model, score_once, options(**given))
    assert len(calls) == 1
    return figures


def one_bit(windows):
    """Score each target with the probability 1/2, so that the nats are ln 2 for each token."""
    return [Scores(np.full(window.n_targets, -math.log(2)), np.ones(window.n_targets)) for window in windows]


@pytest.fixture
def logits_of():
    """Return a function from ids to logits: a forward pass that shares no code with gpt2.py."""
    return lambda ids: their_gpt2(ids, **MODEL.params, n_head=HPARAMS["n_head"])


def nats_of(ids, logits_of, context=lambda i: (i - 1) % N_CTX + 1) -> float:
    """Return the nats of all ids but the first, each by a pass of its own, given the context(i) ids before it."""
    total = 0.0
    for i in range(1, len(ids)):
        logits = logits_of(ids[i - context(i) : i])[-1].astype(np.float64)
        total += np.log(np.exp(logits - logits.max()).sum()) + logits.max() - logits[ids[i]]
    return float(total)


def by_words(nats, n_tokens, n_words, n_lines, n_bytes, n_documents=1):
    return {
        "perplexity": pytest.approx(math.exp(nats / (n_words + n_lines)), rel=1e-4),
        "perplexity without line ends": pytest.approx(math.exp(nats / n_words), rel=1e-4),
        "perplexity per token": pytest.approx(math.exp(nats / n_tokens), rel=1e-4),
        "bits per byte": pytest.approx(nats / math.log(2) / n_bytes, rel=1e-4),
        "nats": pytest.approx(nats, rel=1e-5),
        "tokens": n_tokens,
        "words": n_words,
        "line ends": n_lines,
        "bytes": n_bytes,
        "documents": n_documents,
    }


@pytest.mark.parametrize("module", [detokenize, wikitext])
def test_the_examples_in_the_docstrings(module):
    results = doctest.testmod(module)
    assert results.failed == 0
    assert results.attempted >= 2


@pytest.mark.parametrize(("bos", "before"), [(True, [END]), (False, [])])
def test_wikitext_paper_scores_natural_text_by_original_words(bos, before, logits_of, tmp_path):
    ids = before + ENCODER.encode(WIKI_NATURAL)
    figures = run(WIKITEXT["paper"], WIKI, tmp_path, bos=bos)
    assert figures == by_words(nats_of(ids, logits_of), len(ids) - 1, WIKI_WORDS, WIKI_LINES, len(WIKI.encode()))


def test_stride_and_max_context_are_those_of_the_windows(logits_of, tmp_path):
    figures = run(WIKITEXT["paper"], WIKI, tmp_path, stride=1, max_context=6)
    expected = nats_of([END, *ENCODER.encode(WIKI_NATURAL)], logits_of, lambda i: min(i, 5))
    assert figures["nats"] == pytest.approx(expected, rel=1e-5)


def test_perplexities_by_hand(tmp_path):
    """Each token has the probability 1/2, so perplexities are powers of 2."""
    n_tokens = len(ENCODER.encode("\n= A =\n\na-bit.\n"))
    figures = run(WIKITEXT["paper"], " \n = A = \n \n a @-@ bit . \n", tmp_path, one_bit)
    assert (figures["words"], figures["line ends"], figures["bytes"]) == (7, 4, 26)
    assert figures["perplexity"] == pytest.approx(2 ** (n_tokens / 11))
    assert figures["perplexity without line ends"] == pytest.approx(2 ** (n_tokens / 7))
    assert figures["perplexity per token"] == pytest.approx(2)
    assert figures["bits per byte"] == pytest.approx(n_tokens / 26)


def test_a_perplexity_beyond_float64_is_infinite(tmp_path):
    def score(windows):
        return [Scores(np.full(window.n_targets, -800.0), np.ones(window.n_targets)) for window in windows]

    assert run(WIKITEXT["paper"], WIKI, tmp_path, score)["perplexity"] == math.inf


@pytest.mark.parametrize("name", WIKITEXT)
def test_limit_is_a_number_of_articles(name, tmp_path):
    first = WIKI[: WIKI.index(" = Red pan")]
    figures, whole = (run(WIKITEXT[name], WIKI, tmp_path, limit=n) for n in (1, 2))
    alone = run(WIKITEXT[name], first.removeprefix(" \n"), tmp_path)
    if name == "harness":  # between two pages, the line end belongs to neither
        alone = run(WIKITEXT[name], first.removeprefix(" \n").removesuffix("\n"), tmp_path)
    assert figures == alone
    assert whole == run(WIKITEXT[name], WIKI.removeprefix(" \n"), tmp_path)
    assert whole["tokens"] > figures["tokens"]


def test_wikitext_harness_scores_each_page_with_the_harnesss_rules(logits_of, tmp_path):
    kettle = (
        '= Blue kettle =\n\nThe kettle, a well-known "<unk>" of 1,500 parts, isn \'t ours.\n\n'
        "== Use ==\n\nIt holds 2.5 litres (88 oz).\n"
    )
    pan = "= Red pan =\n\nThe pans' lids are 1 cm wide: 5°C hot.\n"
    # The harness squeezes what stands between two single quotes, and takes spaces off around line ends only.
    first, second = pages(WIKI, Path("data.txt"))
    assert harness_text(first).strip() == kettle.strip()
    assert harness_text(second).strip() == pan.strip()
    nats, n_tokens = 0.0, 0
    for page in (first, second):
        ids = [END, *ENCODER.encode(harness_text(page))]
        n = len(ids) - 1
        last = (n - 1) // N_CTX * N_CTX  # the last window reaches back to be full
        nats += nats_of(
            ids, logits_of, lambda i, n=n, last=last: i - max(0, n - N_CTX) if i > last else (i - 1) % N_CTX + 1
        )
        n_tokens += n
    figures = run(WIKITEXT["harness"], WIKI, tmp_path)
    n_words, n_bytes = 1 + 40 + 1 + 1 + 18 + 1, len(first.encode()) + len(second.encode())
    assert figures == {
        "perplexity": pytest.approx(math.exp(nats / n_words), rel=1e-4),
        "perplexity per token": pytest.approx(math.exp(nats / n_tokens), rel=1e-4),
        "perplexity per byte": pytest.approx(math.exp(nats / n_bytes), rel=1e-4),
        "bits per byte": pytest.approx(nats / math.log(2) / n_bytes, rel=1e-4),
        "nats": pytest.approx(nats, rel=1e-5),
        "tokens": n_tokens,
        "words": n_words,
        "bytes": n_bytes,
        "documents": 2,
    }


def test_wikitext_harness_equals_the_code_of_the_harness(tmp_path):
    pytest.importorskip("lm_eval")
    from lm_eval.api.metrics import bits_per_byte, weighted_perplexity
    from lm_eval.tasks.wikitext.preprocess_wikitext import process_results, wikitext_detokenizer
    from lm_eval.utils import get_rolling_token_windows, make_disjoint_window

    results = []
    for page in pages(WIKI, Path("data.txt")):
        ids = ENCODER.encode(wikitext_detokenizer({"page": page}))
        rolling = map(make_disjoint_window, get_rolling_token_windows(ids, END, N_CTX, context_len=1))
        nats = 0.0
        for context, targets in rolling:
            both = [*context, *targets]
            logits = their_gpt2(both[:-1], **MODEL.params, n_head=HPARAMS["n_head"])[-len(targets) :].astype(np.float64)
            nats += sum(np.log(np.exp(row).sum()) - row[id] for row, id in zip(logits, targets))
        results.append(process_results({"page": page}, (-nats,)))
    figures = run(WIKITEXT["harness"], WIKI, tmp_path)
    word, byte, bits = (
        [result[name] for result in results] for name in ("word_perplexity", "byte_perplexity", "bits_per_byte")
    )
    assert figures["perplexity"] == pytest.approx(weighted_perplexity(word), rel=1e-4)
    assert figures["perplexity per byte"] == pytest.approx(weighted_perplexity(byte), rel=1e-4)
    assert figures["bits per byte"] == pytest.approx(bits_per_byte(bits), rel=1e-4)


HARNESS_PIECES = ["a", "s", "N", "7", "'s", "/' 7/", "@-@", "@,@", "@.@", *":;.!?,()[]{}\"'=°", "= =", "\n", " ", " "]


@given(
    st.lists(st.sampled_from([*HARNESS_PIECES, "\t", "é"]), max_size=30).map(" ".join)
    | st.text("as'\"([{)]} .,=@-N\n", max_size=40)
)
def test_the_harnesss_detokenizer_on_any_text(text):
    preprocess = pytest.importorskip("lm_eval.tasks.wikitext.preprocess_wikitext")
    assert harness_text(text) == preprocess.wikitext_detokenizer({"page": text})


def test_the_harnesss_detokenizer_on_the_validation_set():
    preprocess = pytest.importorskip("lm_eval.tasks.wikitext.preprocess_wikitext")
    path = shared("text/wikitext-2-valid.txt")
    documents = pages(path.read_text(encoding="utf-8"), path)
    assert len(documents) == 60
    for page in documents:
        assert harness_text(page) == preprocess.wikitext_detokenizer({"page": page})


@pytest.mark.parametrize(("stride", "span"), [(None, None), (None, 12), (5, 12), (17, 17), (4, 5), (1, 2), (3, None)])
def test_wikitext_stride_equals_the_loop_of_the_documentation(stride, span, tmp_path):
    """The loop as transformers' documentation describes it, with the losses that transformers computes."""
    model = transformers_model(MODEL.params, HPARAMS, "float32")
    import torch

    text = "\n\n".join(row if row.strip() else "" for row in WIKI.splitlines(keepends=True))
    ids = torch.tensor([ENCODER.encode(text)])
    size, step = span or N_CTX, stride or (span or N_CTX) // 2
    losses, weights, end = [], [], 0
    for begin in range(0, ids.shape[1], step):
        piece = ids[:, begin : begin + size]
        n_new = begin + piece.shape[1] - end
        labels = piece.clone()
        labels[:, : piece.shape[1] - n_new] = -100
        with torch.no_grad():
            losses.append(model(piece, labels=labels).loss.item())
        weights.append(n_new - 1)
        end = begin + piece.shape[1]
        if end == ids.shape[1]:
            break
    pairs = [(loss, weight) for loss, weight in zip(losses, weights) if weight]
    expected = math.exp(sum(loss * weight for loss, weight in pairs) / sum(weights)) if sum(weights) else None
    figures = run(WIKITEXT["stride"], WIKI, tmp_path, stride=stride, max_context=span)
    assert figures["documented perplexity"] == pytest.approx(expected, rel=1e-4)
    disjoint = -(-ids.shape[1] // size)
    assert figures["tokens"] == ids.shape[1] - (disjoint if step == size else 1)


def test_wikitext_stride_counts_each_token_once(logits_of, tmp_path):
    ids = ENCODER.encode("\n\n".join(row if row.strip() else "" for row in WIKI.splitlines(keepends=True)))
    figures = run(WIKITEXT["stride"], WIKI, tmp_path, stride=4, max_context=9)
    expected = nats_of(ids, logits_of, lambda i: i if i < 9 else 5 + (i - 9) % 4)
    assert figures["nats"] == pytest.approx(expected, rel=1e-5)
    assert figures["perplexity per token"] == pytest.approx(math.exp(expected / (len(ids) - 1)), rel=1e-4)


@given(st.integers(0, 40), st.integers(1, 9), st.data())
def test_overlapping_windows_score_each_id_that_has_context(n, span, data):
    stride = data.draw(st.integers(1, span))
    scored = []
    for ids, n_targets, _ in overlapping_windows(np.arange(n), span, stride):
        assert 0 < n_targets < len(ids) <= span
        scored += ids[len(ids) - n_targets :].tolist()
    assert scored == [i for i in range(n) if (i % span if stride == span else i) > 0]


def test_penn_treebank(logits_of, tmp_path):
    text = " the boss of <unk> inc. does n't like mr. kettle 's plan \n it cost $ N million \n"
    natural = "the boss of <unk> inc. doesn't like mr. kettle's plan\nit cost $N million\n"
    ids = [END, *ENCODER.encode(natural)]
    figures = run(PTB["paper"], text, tmp_path)
    assert figures == by_words(nats_of(ids, logits_of), len(ids) - 1, 12 + 5, 2, len(text))
    assert run(PTB["paper"], text, tmp_path, limit=1)["words"] == 12


def test_one_billion_words_scores_each_sentence_by_itself(logits_of, tmp_path):
    text = "He didn 't say why .\n\nThe well-known pan ( $ 3 ) , he said , is hot .\n"
    naturals = ["He didn't say why.\n", "The well-known pan ($3), he said, is hot.\n"]
    documents = [[END, *ENCODER.encode(natural)] for natural in naturals]
    nats = sum(nats_of(ids, logits_of) for ids in documents)
    n_tokens = sum(len(ids) - 1 for ids in documents)
    figures = run(ONE_BILLION_WORDS["paper"], text, tmp_path)
    assert figures == by_words(nats, n_tokens, 6 + 14, 2, len(text) - 1, 2)
    limited = run(ONE_BILLION_WORDS["paper"], text, tmp_path, limit=1)
    assert (limited["documents"], limited["words"]) == (1, 6)
    without = run(ONE_BILLION_WORDS["paper"], text, tmp_path, bos=False)
    assert (without["tokens"], without["words"]) == (n_tokens - 2, 20)


def test_text8(logits_of, tmp_path):
    text = " the kettle of one nine zero five is blue and th"
    ids = [END, *ENCODER.encode(text)]
    nats = nats_of(ids, logits_of)
    figures = run(TEXT8["paper"], text, tmp_path)
    assert figures["bits per character"] == pytest.approx(nats / math.log(2) / len(text), rel=1e-4)
    assert figures["perplexity per word"] == pytest.approx(math.exp(nats / 11), rel=1e-4)
    assert (figures["tokens"], figures["characters"], figures["words"]) == (len(ids) - 1, len(text), 11)


@pytest.mark.parametrize(
    ("begin", "end"), [(0, None), (1, None), (2, None), (3, None), (4, -4), (0, -1), (0, -2), (0, -3)]
)
def test_enwik8_scores_exactly_the_bytes_where_a_cut_divides_a_character(begin, end, logits_of, tmp_path):
    data = "😀<page> <title>Zoë’s €</title> 漢字 😀".encode()[begin:end]
    seen = []

    def score(windows):
        seen.extend(windows)
        return score_windows(windows, MODEL.params, HPARAMS["n_head"])

    figures = run(ENWIK8["paper"], data, tmp_path, score)
    ids = [END] + [int(id) for window in seen for id in window.ids[len(window.ids) - window.n_targets :]]
    assert b"".join(map(ENCODER.token_bytes, ids[1:])) == data
    nats = nats_of(ids, logits_of)
    assert figures["bits per byte"] == pytest.approx(nats / math.log(2) / len(data), rel=1e-4)
    assert (figures["bytes"], figures["tokens"]) == (len(data), len(ids) - 1)


def test_of_the_published_size_only_the_end_is_the_test_set(tmp_path, monkeypatch):
    monkeypatch.setattr(texts, "PUBLISHED", 9000)
    monkeypatch.setattr(texts, "TEST_SET", 4000)
    letters = b"ab cde fgh" * 1000
    for size, expected in ((9000, 4000), (8999, 8999), (9001, 9001)):
        assert run(TEXT8["paper"], letters[:size], tmp_path, one_bit)["characters"] == expected
    figures = run(
        ENWIK8["paper"], b"\xff" * 5000 + letters[:4000], tmp_path, one_bit
    )  # what is not read does not matter
    assert figures["bytes"] == 4000
    assert run(ENWIK8["paper"], letters[:9000], tmp_path, one_bit, limit=2)["bytes"] == 2000
    assert (
        run(TEXT8["paper"], b"A" * 5000 + b"b" * 2000 + b"C" * 2000, tmp_path, one_bit, limit=2)["characters"] == 2000
    )


def test_a_byte_order_mark_is_no_text(tmp_path):
    for protocol, text in ((TEXT8["paper"], b"the end"), (ENWIK8["paper"], b"<page>"), (PTB["paper"], b"the end")):
        assert run(protocol, b"\xef\xbb\xbf" + text, tmp_path) == run(protocol, text, tmp_path)


def test_the_published_size_is_a_hundred_million(tmp_path):
    with open(tmp_path / "big", "wb") as file:
        file.seek(95_000_000 - 1)
        file.write(b"X" + b"ab " * 1_666_666 + b"cd")
    figures = TEXT8["paper"](tmp_path / "big", MODEL, one_bit, options(limit=1))
    assert figures["characters"] == 1000


BAD_TEXTS = {
    "empty": (b"", WIKITEXT["paper"], "is empty"),
    "blank": (b" \n\n", PTB["paper"], "is empty"),
    "blank text8": (b"  ", TEXT8["paper"], "is empty"),
    "no UTF-8": (b"a \xff b .", ONE_BILLION_WORDS["paper"], "is not UTF-8: byte 2 is 0xff"),
    "UTF-16": (" = A = \n".encode("utf-16"), WIKITEXT["harness"], "is not UTF-8"),
    "no heading": (b" = = A = = \n a \n", WIKITEXT["harness"], "no line is a top heading"),
    "no heading for the paper": (b"A text.\n", WIKITEXT["paper"], "no line is a top heading"),
    "no heading for stride": (b"A text.\n", WIKITEXT["stride"], "no line is a top heading"),
    "an end of line": (b"<page>\xc3\n", ENWIK8["paper"], "byte 6 is 0xc3"),
    "capitals": (b" it is N \n No , it was n't \n", PTB["paper"], "line 2 has 'No'"),
    "not tokenized": (b"This is a sentence, and natural.\n", ONE_BILLION_WORDS["paper"], "not tokenized"),
    "digit": (b"the year 1905", TEXT8["paper"], "found b'1'"),
    "line end": (b"the end\n", TEXT8["paper"], "found b'\\n'"),
    "é": ("é".encode(), TEXT8["paper"], "found b'\\xc3'"),
    "byte": (b"<page>\xff</page>", ENWIK8["paper"], "byte 6 is 0xff"),
    "late byte": (b"\xa9<page></page>\x80", ENWIK8["paper"], "byte 14 is 0x80"),
    "many bytes": (b"\x80\x80\x80\x80<page>", ENWIK8["paper"], "byte 3 is 0x80"),
}


@pytest.mark.parametrize("name", BAD_TEXTS)
def test_a_wrong_file_is_named_in_one_line(name, tmp_path):
    text, protocol, message = BAD_TEXTS[name]
    with pytest.raises(UsageError) as caught:
        run(protocol, text, tmp_path)
    assert message in str(caught.value)
    assert "data.txt" in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("protocol", [PTB["paper"], TEXT8["paper"], ENWIK8["paper"]])
def test_one_token_without_anything_before_it_is_refused(protocol, tmp_path):
    with pytest.raises(UsageError, match=r"data.txt has only one token"):
        run(protocol, "a", tmp_path, bos=False)


def test_one_token_after_the_end_of_text_is_scored(logits_of, tmp_path):
    assert run(TEXT8["paper"], "a", tmp_path)["nats"] == pytest.approx(
        nats_of([END, *ENCODER.encode("a")], logits_of), rel=1e-5
    )


OUT_OF_RANGE = [{"stride": 18}, {"stride": 6, "max_context": 5}, {"max_context": 18}, {"stride": 0}, {"max_context": 1}]


@pytest.mark.parametrize("given", OUT_OF_RANGE)
def test_a_stride_out_of_range_is_refused(given, tmp_path):
    with pytest.raises(UsageError, match="1 <= stride <= max_context and 2 <= max_context <= n_ctx = 17"):
        run(WIKITEXT["stride"], WIKI, tmp_path, **given)


def test_a_vocabulary_without_the_end_of_text(tmp_path):
    class Vocabulary:
        encoder = {name: id for name, id in ENCODER.encoder.items() if id != END}  # noqa: RUF012
        encode = ENCODER.encode

    model = MODEL._replace(encoder=Vocabulary())
    with pytest.raises(UsageError, match=r"which the vocabulary of made-up lacks"):
        run(WIKITEXT["harness"], WIKI, tmp_path, model=model)
    without = run(WIKITEXT["paper"], WIKI, tmp_path, model=model, bos=False)
    assert without == run(WIKITEXT["paper"], WIKI, tmp_path, bos=False)
    for bos in (True, None):
        with pytest.raises(UsageError, match=r"the vocabulary of made-up has no <.endoftext.> .*--no_bos"):
            run(WIKITEXT["paper"], WIKI, tmp_path, model=model, bos=bos)


@pytest.mark.parametrize("end", ["\r\n", "\r"])
def test_a_file_with_other_line_ends_is_the_same_text(end, tmp_path):
    assert run(WIKITEXT["paper"], WIKI.replace("\n", end), tmp_path) == run(WIKITEXT["paper"], WIKI, tmp_path)


def test_a_missing_file_is_an_os_error(tmp_path):
    for task in (WIKITEXT, PTB, TEXT8, ENWIK8, ONE_BILLION_WORDS):
        for protocol in task.values():
            with pytest.raises(OSError, match=r"missing.txt"):
                protocol(tmp_path / "missing.txt", MODEL, one_bit, options())
