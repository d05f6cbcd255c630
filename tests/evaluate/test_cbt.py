"""Test the Children's Book Test: reading its files, choosing by transformers' logits, and cutting long contexts."""

from __future__ import annotations

import doctest

import numpy as np
import pytest

from picogpt.command_line import UsageError
from picogpt.evaluate import cbt
from picogpt.evaluate.cbt import PROTOCOLS, detokenize
from picogpt.scoring.windows import Scores

SENTENCES = ["`` Go ! ''", "I do n't .", "The king -LRB- so -RRB- !"]
QUERIES = [
    ("`` Where is the XXXXX ? ''", "king", "king|zebra|sea|queen|cart|dog|hat|egg|fox|tree"),
    ("My XXXXX , I am thy friend .", "lord", "book|lord|heart|lamp|pen|cup|road|cat|ship|toe"),
    ("It is the XXXXX", "cats", "cat|cats"),
]


def question(sentence, answer, choices, n_words=1):
    lines = [f"{i} {SENTENCES[i % 3] if n_words == 1 else 'so ' * n_words + '.'}" for i in range(1, 21)]
    return "\n".join([*lines, f"21 {sentence}\t{answer}\t\t{choices}"]) + "\n\n"


@pytest.fixture
def data(tmp_path):
    path = tmp_path / "cbtest_CN_test_2500ex.txt"
    path.write_text("".join(question(*query) for query in QUERIES), encoding="utf-8")
    return path


def expected_choice(log_probs_of, encode, before, context, query, clean, cut=0):
    """Return the index of the choice whose whole text is the likeliest, all tokens added."""
    sums = []
    for choice in query[2].split("|"):
        ids = [*before, *encode(clean(f"{context} {query[0].replace('XXXXX', choice)}"))][cut:]
        rows = log_probs_of(ids[:-1])
        sums.append(rows[range(len(rows)), ids[1:]].sum())
    return int(np.argmax(sums))


def by_hand(text):
    for token in (",", ".", "!", "?", "n't", "'s"):
        text = text.replace(f" {token}", token)
    return text.replace("`` ", '"').replace(" ''", '"').replace("-LRB- ", "(").replace(" -RRB-", ")")


@pytest.mark.parametrize("protocol", ["paper", "raw"])
@pytest.mark.parametrize("with_bos", [None, False])
def test_the_likeliest_text_wins(tiny, score, options, log_probs_of, bos, data, protocol, with_bos):
    clean = by_hand if protocol == "paper" else str
    context = clean(" ".join(SENTENCES[i % 3] for i in range(1, 21)))
    before = [] if with_bos is False else [bos]
    n_ids = len(before) + len(tiny.encoder.encode(context))
    options = options(bos=with_bos)
    assert n_ids < 240  # nothing is cut off
    wanted = [expected_choice(log_probs_of, tiny.encoder.encode, before, context, q, clean) for q in QUERIES]
    for chosen in range(4):
        lines = data.read_text(encoding="utf-8")
        for i, (sentence, answer, choices) in enumerate(QUERIES):
            new = choices.split("|")[wanted[i] if i < chosen else wanted[i] - 1]
            lines = lines.replace(f"{sentence}\t{answer}\t", f"{sentence}\t{new}\t")
        data.with_name("new").write_text(lines, encoding="utf-8")
        figures = PROTOCOLS[protocol](data.with_name("new"), tiny, score, options)
        assert figures["accuracy"] == pytest.approx(100 * chosen / 3)
        assert figures["examples"] == 3


def test_the_sums_by_hand(tiny, options, data):
    """Each question gets log-probabilities of our own, so that the answers win in the first and in the third."""
    best = [0, 3, 1]
    seen = []

    def score(windows):
        seen.append(list(windows))
        numbers = iter(windows)
        scores = []
        for (_, _, choices), winner in zip(QUERIES, best):
            for i in range(len(choices.split("|"))):
                n = next(numbers).n_targets
                scores.append(Scores(np.full(n, (-1.0 if i == winner else -1.1) / n), np.ones(n, int)))
        return scores

    figures = PROTOCOLS["paper"](data, tiny, score, options())
    assert figures["accuracy"] == pytest.approx(100 * 2 / 3)
    (windows,) = seen  # one call, with the choices of a question side by side
    assert len(windows) == 22
    assert figures["tokens"] == sum(window.n_targets for window in windows)
    for start, stop in ((0, 10), (10, 20), (20, 22)):
        prefixes = {tuple(window.ids[: -window.n_targets]) for window in windows[start:stop]}
        assert len(prefixes) == 1
        assert len({window.ids[-window.n_targets] for window in windows[start:stop]}) > 1 or start == 20
        assert min(window.n_targets for window in windows[start:stop]) > 0
    cat, cats = (tiny.encoder.decode(window.ids[-window.n_targets :].tolist()) for window in windows[20:22])
    assert cats == cat + "s"  # one text ends where the other goes on, and still has a token to score


@pytest.mark.parametrize("max_context", [None, 40])
def test_a_long_context_is_cut_at_the_same_place_for_all_choices(tiny, score, options, tmp_path, max_context):
    path = tmp_path / "data"
    path.write_text(question(*QUERIES[0], n_words=40), encoding="utf-8")
    seen = []
    PROTOCOLS["paper"](
        path, tiny, lambda windows: seen.extend(windows) or score(windows), options(max_context=max_context)
    )
    n = max_context or 256
    assert max(len(window.ids) for window in seen) == n + 1
    assert len({tuple(window.ids[: -window.n_targets]) for window in seen}) == 1
    whole = tiny.encoder.encode(" ".join(["so " * 40 + "."] * 20).replace(" .", ".") + ' "Where is the king?"')
    assert seen[0].ids.tolist() == whole[-len(seen[0].ids) :]


def test_of_equal_sums_the_first_choice_wins(tiny, options, data):
    equal = lambda windows: [Scores(np.zeros(w.n_targets), np.ones(w.n_targets)) for w in windows]  # noqa: E731
    assert PROTOCOLS["paper"](data, tiny, equal, options())["accuracy"] == pytest.approx(100 / 3)


def test_a_sum_that_is_nan_is_never_chosen(tiny, options, data):
    """The answer to each question has NaN. (Logits that are not finite are refused before.)"""
    answers = [choice == answer for _, answer, choices in QUERIES for choice in choices.split("|")]

    def score(windows):
        return [Scores(np.full(w.n_targets, np.nan if is_it else -1.0), None) for w, is_it in zip(windows, answers)]

    assert PROTOCOLS["paper"](data, tiny, score, options())["accuracy"] == 0


def test_limit_takes_the_first_questions(tiny, score, options, data):
    data.write_text(data.read_text(encoding="utf-8") + "not read", encoding="utf-8")
    assert PROTOCOLS["raw"](data, tiny, score, options(limit=2))["examples"] == 2


def test_what_a_file_says_in_either_line_end(tmp_path):
    text = question(*QUERIES[1])
    (tmp_path / "data").write_bytes((text + text).rstrip().replace("\n", "\r\n").encode())
    first, second = cbt.questions(tmp_path / "data", None)
    assert [place.rpartition(":")[2] for place in (first.place, second.place)] == ["21", "43"]
    assert first[1:] == second[1:]
    assert first.sentence == QUERIES[1][0]
    assert first.choices == QUERIES[1][2].split("|")
    assert first.context == " ".join(SENTENCES[i % 3] for i in range(1, 21))


@pytest.mark.parametrize(
    ("tokenized", "natural"),
    [
        ("`` I 'll go , '' said he ; `` I 've time ! ''", '"I\'ll go," said he; "I\'ve time!"'),
        ("We do n't -LRB- 5 % of us -RRB- know : why ?", "We don't (5% of us) know: why?"),
        ("He said : ` Come ! ' and went to James ' house .", "He said: 'Come!' and went to James' house."),
        ("the 'dor 'safe -- nothing here", "the 'dor 'safe -- nothing here"),
        ("", ""),
    ],
)
def test_detokenize(tokenized, natural):
    assert detokenize(tokenized) == natural


def test_the_example_in_the_docstring():
    assert doctest.testmod(cbt).failed == 0


GOOD = question(*QUERIES[0])


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("", "data is empty"),
        ("Once upon a time\n", ":1: line 1 of a question begins with 1 and a space, not with 'Once upon a time'"),
        (GOOD.replace("\n7 ", "\n8 "), ":7: line 7 of a question begins with 7 and a space, not with"),
        (GOOD + "1 a\n2 b\n", ":24: the file ends here, in line 2 of a question, which has 21"),
        (GOOD + GOOD.replace("\t\t", " "), ":43: the last line of a question is a sentence, an answer and choices"),
        (GOOD.replace("XXXXX", "it"), ":21: there is no XXXXX"),
        (GOOD.replace("\tking\t", "\tlion\t"), ":21: the answer 'lion' is none of the choices"),
        (question("XXXXX " + "漢" * 99, "a", "a|b"), ":21: a choice and what follows have 2"),
    ],
)
def test_a_wrong_file_is_named_with_its_line(tiny, options, tmp_path, content, words):
    (tmp_path / "data").write_text(content, encoding="utf-8")
    with pytest.raises(UsageError) as error:
        PROTOCOLS["paper"](tmp_path / "data", tiny, None, options())
    assert words in str(error.value)
    assert str(error.value).startswith(str(tmp_path / "data"))


def test_a_context_beyond_the_model_is_refused(tiny, options, data):
    with pytest.raises(UsageError, match="--max_context 257 is more than"):
        PROTOCOLS["paper"](data, tiny, None, options(max_context=257))
