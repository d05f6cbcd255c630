"""Test the protocols of LAMBADA against transformers' logits, against lm-evaluation-harness, and by hand."""

from __future__ import annotations

import argparse
import json
import math
from pathlib import Path

import numpy as np
import pytest
from helpers import ROOT
from hypothesis import given
from hypothesis import strategies as st

from encoder import get_encoder
from picogpt.command_line import UsageError
from picogpt.evaluate.lambada import PROTOCOLS, STOP_WORDS, stop_word_ids
from picogpt.scoring.windows import Scores

DATA = Path(__file__).parent / "passages.jsonl"
TEXTS = [json.loads(line)["text"] for line in DATA.read_text(encoding="utf-8").splitlines()]


def expected(log_probs_of, pairs, excluded=()):
    """Return accuracy and perplexity by the definition, from pairs of the ids of a context and of its last word."""
    right, nats = 0, 0.0
    for context, word in pairs:
        rows = log_probs_of([*context, *word[:-1]])[len(context) - 1 :]
        nats -= sum(rows[range(len(word)), word])
        allowed = rows.copy()
        allowed[0, list(excluded)] = -np.inf
        right += allowed.argmax(axis=-1).tolist() == word
    return {"accuracy": 100 * right / len(pairs), "perplexity": pytest.approx(math.exp(nats / len(pairs)), rel=1e-4)}


def with_counts(figures, pairs):
    return figures | {"tokens": sum(len(word) for _, word in pairs), "examples": len(pairs)}


def words_of(encoder, before, texts=TEXTS):
    """Return the ids of each context and of its last word, found in the ids of the whole text."""
    pairs = []
    for text in texts:
        ids, n_word = encoder.encode(text), 1
        while encoder.decode(ids[-n_word:])[:1] != " ":
            n_word += 1
        pairs.append(([*before, *ids[:-n_word]], ids[-n_word:]))
    return pairs


@pytest.mark.parametrize("with_bos", [None, True, False])
def test_openai(tiny, score, options, log_probs_of, bos, with_bos):
    figures = PROTOCOLS["openai"](DATA, tiny, score, options(bos=with_bos))
    pairs = words_of(tiny.encoder, [] if with_bos is False else [bos])
    assert figures == with_counts(expected(log_probs_of, pairs), pairs)
    assert 0 < figures["accuracy"] < 100
    assert max(len(word) for _, word in pairs) > 3


def test_stop_words(tiny, score, options, log_probs_of, bos, tmp_path):
    figures = PROTOCOLS["stop-words"](DATA, tiny, score, options())
    spelled = {" " + word for word in STOP_WORDS.split()} | {" " + word.title() for word in STOP_WORDS.split()}
    excluded = [id for id in range(tiny.hparams["n_vocab"]) if tiny.encoder.decode([id]) in spelled]
    assert len(excluded) > 90
    assert excluded == stop_word_ids(tiny.encoder)
    pairs = words_of(tiny.encoder, [bos])
    assert figures == with_counts(expected(log_probs_of, pairs, excluded), pairs)
    without = PROTOCOLS["openai"](DATA, tiny, score, options())
    assert without["perplexity"] == figures["perplexity"]
    changed = []
    for text in TEXTS:
        (tmp_path / "one").write_text(json.dumps({"text": text}))
        right = [
            PROTOCOLS[name](tmp_path / "one", tiny, score, options())["accuracy"] for name in ("openai", "stop-words")
        ]
        changed += [(text.split()[-1], *right)] * (right[0] != right[1])
    assert changed == [("thee", 0, 100), ("be", 100, 0)]  # " thee" comes right after " you"; " be" is a stop word


def test_last_token(tiny, score, options, log_probs_of, bos):
    figures = PROTOCOLS["last-token"](DATA, tiny, score, options())
    pairs = [([bos, *ids[:-1]], ids[-1:]) for ids in map(tiny.encoder.encode, TEXTS)]
    assert figures == with_counts(expected(log_probs_of, pairs), pairs)
    assert figures["tokens"] == len(TEXTS)


def test_plain(tiny, score, options, log_probs_of, bos, tmp_path):
    texts = ["i wo n't go , '' said the king", "he is dead"]
    (tmp_path / "plain.txt").write_text("\n".join(texts) + " \n\n", encoding="utf-8")
    figures = PROTOCOLS["plain"](tmp_path / "plain.txt", tiny, score, options())
    pairs = words_of(tiny.encoder, [bos], texts)
    assert figures == with_counts(expected(log_probs_of, pairs), pairs)


def test_harness_against_the_harness_itself(tiny, score, options, log_probs_of, tmp_path):
    lm_eval = pytest.importorskip("lm_eval")
    yaml = pytest.importorskip("yaml")
    from lm_eval.api.instance import Instance
    from lm_eval.api.metrics import mean, perplexity
    from lm_eval.api.model import TemplateLM
    from lm_eval.utils import apply_template

    class Theirs(TemplateLM):
        eot_token_id = 0
        tokenizer_name = "tiny"

        def tok_encode(self, text, **settings):
            return tiny.encoder.encode(text)

        def _loglikelihood_tokens(self, requests, **settings):
            results = []
            for _, context, word in requests:
                rows = log_probs_of([*context, *word])[len(context) - 1 : -1]
                results.append((rows[range(len(word)), word].sum(), rows.argmax(axis=-1).tolist() == word))
            return results

        generate_until = loglikelihood_rolling = None

    texts = [*TEXTS, "Two spaces before the  end", "a line\n end"]
    rule = (Path(lm_eval.__file__).parent / "tasks" / "lambada" / "lambada_openai.yaml").read_text()
    rule = {name: rule for name, rule in yaml.safe_load(rule).items() if name.startswith("doc_to_")}
    pairs = [
        [apply_template(rule[name], {"text": text}) for name in ("doc_to_text", "doc_to_target")] for text in texts
    ]
    requests = [Instance("loglikelihood", {}, tuple(pair), 0) for pair in pairs]
    logs, greedy = zip(*Theirs().loglikelihood(requests, disable_tqdm=True))
    (tmp_path / "data").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts), encoding="utf-8")
    figures = PROTOCOLS["harness"](tmp_path / "data", tiny, score, options())
    assert figures["accuracy"] == 100 * mean(greedy) > 0
    assert figures["perplexity"] == pytest.approx(perplexity(logs), rel=1e-4)


def test_a_vocabulary_of_two_words_by_hand(tiny, options, tmp_path):
    """The first word has probability 1/4 and is not the likeliest. The second has 1/2 times 1/8, and both are."""
    (tmp_path / "data").write_text('{"text": "x king"}\n{"text": "x, and y lord"}\n', encoding="utf-8")
    given = [Scores(np.log([1 / 4]), np.array([2])), Scores(np.log([1 / 2, 1 / 8]), np.array([1, 1]))]
    figures = PROTOCOLS["openai"](tmp_path / "data", tiny, lambda windows: given, options())
    assert figures["accuracy"] == 50
    assert figures["perplexity"] == pytest.approx(math.sqrt(4 * 16))


@given(st.lists(st.text(st.sampled_from(" \n\tab'sé—,.漢1"), max_size=6), min_size=2).map(" ".join))
def test_a_context_and_a_word_have_the_ids_of_the_whole(text):
    encode = get_encoder("tiny", ROOT / "models").encode
    text = text.rstrip()
    context, space, word = text.rpartition(" ")
    assert encode(context) + encode(space + word) == encode(text)


def test_a_long_context_loses_its_beginning(tiny, score, options, log_probs_of, bos, tmp_path):
    long = "word " * 300 + "by word"
    (tmp_path / "data").write_text(json.dumps({"text": long}), encoding="utf-8")
    ((context, word),) = words_of(tiny.encoder, [bos], [long])
    for n in (256, 5):
        pair = (context[-(n + 1 - len(word)) :], word)
        figures = PROTOCOLS["openai"](tmp_path / "data", tiny, score, options(max_context=n))
        assert figures == with_counts(expected(log_probs_of, [pair]), [pair])


def test_limit_takes_the_first_passages(tiny, score, options, tmp_path):
    lines = DATA.read_text(encoding="utf-8").splitlines(keepends=True)
    (tmp_path / "two").write_text("".join(lines[:2]), encoding="utf-8")
    (tmp_path / "more").write_text("".join(lines[:2]) + "not read\n", encoding="utf-8")
    for name in ("openai", "harness", "stop-words", "last-token"):
        two = PROTOCOLS[name](tmp_path / "two", tiny, score, options())
        assert PROTOCOLS[name](tmp_path / "more", tiny, score, options(limit=2)) == two
        assert two["examples"] == 2


def test_blanks_and_a_byte_order_mark_are_no_part_of_a_passage(tiny, score, options, tmp_path):
    text = DATA.read_text(encoding="utf-8").replace('"}', r' \t \n"}')
    (tmp_path / "data").write_text("\n" + text.replace("\n", "\n \n"), encoding="utf-8-sig")
    (tmp_path / "plain").write_text("he is dead\n\nhe is gone", encoding="utf-8-sig")
    (tmp_path / "same").write_text("he is dead\nhe is gone", encoding="utf-8")
    for limit in (None, 2):
        files = (tmp_path / "data", DATA)
        blank, same = (PROTOCOLS["openai"](file, tiny, score, options(limit=limit)) for file in files)
        assert blank == same
    plain = [PROTOCOLS["plain"](tmp_path / name, tiny, score, options()) for name in ("plain", "same")]
    assert plain[0] == plain[1]


@pytest.mark.parametrize(
    ("protocol", "content", "words"),
    [
        ("openai", "", "data is empty"),
        ("openai", " \n\n", "data is empty"),
        ("plain", "", "data is empty"),
        ("openai", '{"text": "a b"}\n{"text": "a', "data:2: not JSON: Unterminated string"),
        ("openai", "plain text\n", "data:1: not JSON: Expecting value"),
        ("openai", "[" * 100_000, "data:1: not JSON: "),
        ("stop-words", '{"text": "a b"}\n\n{"text": "ab"}', "data:3: there is no space"),
        ("harness", '{"txt": "a b"}', "data:1: not a JSON object with a text in the field 'text'"),
        ("last-token", '{"text": 5}', "data:1: not a JSON object with a text in the field 'text'"),
        ("openai", '["text"]', "data:1: not a JSON object"),
        ("openai", '{"text": "a b"}\n{"text": "word"}', "data:2: there is no space"),
        ("openai", '{"text": " word"}', "data:1: there is no space"),
        ("openai", '{"text": ""}', "data:1: there is no space"),
        ("harness", '{"text": "word"}', "data:1: there is no text before"),
        ("last-token", '{"text": ""}', "data:1: there is no token to score"),
        ("openai", r'{"text": "a \ud800"}', "data:1: character 1 of the text is a lone surrogate"),
        ("plain", '{"text": "a b"}', "data:1: a JSON object, but the protocol plain reads plain text"),
        (
            "openai",
            json.dumps({"text": "a " + "漢" * 99}),
            "data:1: 298 tokens are to be scored, but the model reads 256",
        ),
    ],
)
def test_a_wrong_file_is_named_with_its_line(tiny, options, tmp_path, protocol, content, words):
    (tmp_path / "data").write_text(content, encoding="utf-8")
    with pytest.raises(UsageError) as error:
        PROTOCOLS[protocol](tmp_path / "data", tiny, None, options())
    assert words in str(error.value)
    assert str(error.value).startswith(str(tmp_path / "data"))


def test_a_file_that_is_not_utf_8(tiny, options, tmp_path):
    (tmp_path / "data").write_bytes(b'{"text": "a \xff"}')
    for protocol in PROTOCOLS.values():
        with pytest.raises(UsageError, match="data is not UTF-8: byte 12 is 0xff"):
            protocol(tmp_path / "data", tiny, None, options())


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_a_context_beyond_the_model_is_refused(tiny, options, protocol):
    with pytest.raises(UsageError, match="--max_context 257 is more than the model's n_ctx = 256"):
        PROTOCOLS[protocol](DATA, tiny, None, options(max_context=257))


def test_the_harness_puts_nothing_in_front(tiny, score, options):
    assert PROTOCOLS["harness"](DATA, tiny, score, options()) == PROTOCOLS["openai"](
        DATA, tiny, score, options(bos=False)
    )


def test_a_vocabulary_without_end_of_text(tiny, options):
    model = tiny._replace(encoder=argparse.Namespace(encoder={}))
    with pytest.raises(UsageError, match="--no_bos"):
        PROTOCOLS["openai"](DATA, model, None, options())
