"""Test scoring: windows that cover a text, and scores against their definition and against transformers."""

from __future__ import annotations

import numpy as np
import pytest
from helpers import ODD, ROOT, SMALL, random_params, their_logits, transformers_model
from hypothesis import given, settings
from hypothesis import strategies as st

import gpt2
from picogpt import score
from picogpt.command_line import UsageError
from picogpt.scoring import windows as scoring
from picogpt.scoring.windows import Window, rolling_windows, score_windows, target_scores, windows

N_CTX, N_HEAD = SMALL["n_ctx"], SMALL["n_head"]


@pytest.fixture
def few_rows(monkeypatch):
    """Cut even the short windows of the tests into pieces, of 5 positions."""
    for function in (scoring.batches, scoring.score_batch):
        monkeypatch.setattr(function, "__defaults__", (5,))


def log_softmax(logits):
    logits = logits.astype(np.float64)
    return logits - np.log(np.exp(logits - logits.max()).sum()) - logits.max()


def definition(ids, params, before, logits_of=None):
    """Return the log-probability of each id but the first by a pass of its own, given before(i) ids before it."""
    logits_of = logits_of or (lambda part: gpt2.gpt2(part, **params, n_head=N_HEAD))
    return np.array([log_softmax(logits_of(ids[i - before(i) : i])[-1])[ids[i]] for i in range(1, len(ids))])


@given(st.integers(0, 40), st.integers(1, 9), st.data())
def test_every_id_but_the_first_is_scored_once_with_the_context_that_its_window_gives(n, n_ctx, data):
    span = data.draw(st.integers(min(2, n_ctx), n_ctx))
    stride = data.draw(st.integers(1, span))
    scored = []
    for window in windows(np.arange(n), n_ctx, stride, span):
        ids, n_targets = window.ids.tolist(), window.n_targets
        assert ids == list(range(ids[0], ids[-1] + 1))
        assert 1 <= n_targets < len(ids) <= n_ctx + 1
        assert ids[0] == 0 or len(ids) - n_targets >= max(1, span - stride) or ids[-1] == n - 1
        assert len(ids) <= max(span, stride + 1)
        scored += ids[len(ids) - n_targets :]
    assert scored == list(range(1, n))


@given(st.integers(0, 40), st.integers(1, 9))
@settings(deadline=None)  # importing the harness takes a second
def test_the_harnesss_windows_for_any_length(n, n_ctx):
    lm_eval = pytest.importorskip("lm_eval.utils")
    theirs = map(lm_eval.make_disjoint_window, lm_eval.get_rolling_token_windows(list(range(1, n + 1)), 0, n_ctx, 1))
    ours = rolling_windows(np.arange(n + 1), n_ctx)
    assert [(ids.tolist(), n_targets) for ids, n_targets, _ in ours] == [
        ([*context, *targets], len(targets)) for context, targets in theirs
    ]


@pytest.mark.parametrize(("stride", "span"), [(0, 5), (6, 5), (1, 18), (18, None), (-1, None), (1, 1)])
def test_a_stride_or_length_out_of_range_is_refused(stride, span):
    sizes = f"max_context is {span or 17} and stride is {stride}, but 1 <= stride <= max_context and 2 <= max_context"
    with pytest.raises(UsageError, match=f"^{sizes} <= n_ctx = 17 must hold$"):
        list(windows(np.arange(5), 17, stride, span))


def test_a_model_of_one_position_has_windows_of_one_id():
    first, second = windows(np.arange(3), 1)
    assert (first.ids.tolist(), second.ids.tolist()) == ([0, 1], [1, 2])


def test_ids_may_come_from_anywhere_but_are_whole_numbers():
    params = random_params(SMALL)
    expected = score([5, 6, 7], params, N_HEAD).tolist()
    for ids in (iter([5, 6, 7]), range(5, 8), (5, 6, 7), np.array([5, 6, 7], np.uint8)):
        assert score(ids, params, N_HEAD).tolist() == expected
    for ids in ([5.5, 6.5], np.array([5.0, 6.0]), ["5"], [[5], [6]]):
        with pytest.raises(ValueError, match=r"ids must be whole numbers in one dimension, not \S+ of shape"):
            score(ids, params, N_HEAD)


@pytest.mark.parametrize("n", [0, 1])
def test_a_text_without_a_second_token_has_no_scores(n):
    assert score([5] * n, random_params(SMALL), N_HEAD).tolist() == []


@pytest.mark.parametrize(
    ("stride", "span", "before"),
    [
        (None, None, lambda i: (i - 1) % 17 + 1),  # disjoint: 1 to 17 ids before each
        (1, None, lambda i: min(i, 16)),  # the definition
        (1, 5, lambda i: min(i, 4)),
        (1, 2, lambda i: 1),
        (4, 9, lambda i: i if i < 9 else 5 + (i - 9) % 4),
        (None, 6, lambda i: (i - 1) % 6 + 1),
    ],
)
@pytest.mark.parametrize("pieces", [False, True])
@pytest.mark.parametrize("by_transformers", [False, True])
def test_scores_are_log_probabilities_given_the_ids_before(stride, span, before, pieces, by_transformers, request):
    if pieces:
        request.getfixturevalue("few_rows")
    params, ids = random_params(SMALL), np.random.default_rng(0).integers(0, 101, 47).tolist()
    logits_of = None
    if by_transformers:
        model = transformers_model(params, SMALL, "float32")
        logits_of = lambda part: their_logits(model, part)  # noqa: E731
    expected = definition(ids, params, before, logits_of)
    scores = score(ids, params, N_HEAD, stride, span)
    assert scores.dtype == np.float64
    assert scores == pytest.approx(expected, rel=2e-5)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_target_scores_of_every_type(dtype, rng):
    logits = (rng.standard_normal((40, 300)) * 20).astype(dtype)
    targets = rng.integers(0, 300, 40)
    logits[3] = logits[3, 7]  # all equal: the lower ids go first
    log_probs, ranks = target_scores(logits.copy(), targets)
    for row, target, log_prob, rank in zip(logits, targets, log_probs, ranks):
        assert log_prob == pytest.approx(log_softmax(row)[target], rel=1e-6, abs=1e-6)
        assert np.argsort(-row, kind="stable")[rank - 1] == target


def test_excluded_ids_do_not_count_in_the_rank_of_the_first_target(rng):
    for _ in range(50):
        logits = rng.integers(0, 5, (20, 12)).astype(np.float32)  # many are equal
        targets, excluded = rng.integers(0, 12, 20), rng.integers(0, 12, 4).tolist()
        log_probs, ranks = target_scores(logits.copy(), targets, excluded)
        without = target_scores(logits.copy(), targets)
        order = [id for id in np.argsort(-logits[0], kind="stable") if id not in excluded or id == targets[0]]
        assert order[ranks[0] - 1] == targets[0]
        assert (ranks[1:] == without.ranks[1:]).all()
        assert (log_probs == without.log_probs).all()


@pytest.mark.parametrize("way", ["whole", "in pieces", "as a family"])
def test_each_window_has_its_own_excluded_ids(way, request, monkeypatch, rng):
    if way == "in pieces":
        request.getfixturevalue("few_rows")
    if way == "as a family":
        monkeypatch.setattr(scoring.families, "__defaults__", (8,))
    params, ids = random_params(SMALL), rng.integers(0, 101, 17)
    logits = gpt2.gpt2(ids[:-1], **params, n_head=N_HEAD)
    order = np.argsort(-logits[-8])  # of the first of eight targets
    many = [Window(np.array([*ids[:-8], order[5], *ids[-7:]]), 8, order[:n].tolist()) for n in range(6)]
    assert len(list(scoring.families(many))) == (1 if way == "as a family" else 6)
    scores = score_windows(many, params, N_HEAD)
    assert [scored.ranks[0] for scored in scores] == [6, 5, 4, 3, 2, 1]
    assert all((scored.ranks[1:] == scores[0].ranks[1:]).all() for scored in scores)


def test_ids_beyond_16_bits():
    params = random_params({"n_vocab": 70_000, "n_ctx": 3, "n_embd": 2, "n_head": 1, "n_layer": 1})
    ids = np.array([1, 32_768, 65_536])
    (scores,) = score_windows([Window(ids, 2)], params, 1)
    logits = gpt2.gpt2(ids, **params, n_head=1)[:2].astype(np.float64)
    expected = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    np.testing.assert_allclose(scores.log_probs, expected[[0, 1], ids[1:]], atol=1e-5)
    assert scores.ranks.tolist() == [1 + int((row > row[id]).sum()) for row, id in zip(logits, ids[1:])]


def test_nan_is_never_the_likeliest():
    logits = np.array([[np.nan, 1, 2], [np.nan, 1, 2]], np.float32)
    assert target_scores(logits, np.array([0, 2])).ranks.tolist() == [4, 2]


@pytest.mark.parametrize("n", [5, 40])
def test_logits_that_are_not_finite_are_refused(n):
    params = random_params(SMALL)
    params["wte"][7, 3] = np.nan
    with pytest.raises(FloatingPointError, match="not finite"):
        score([1] * n, params, N_HEAD)


def test_logits_far_apart_neither_overflow_nor_become_infinite():
    scores = target_scores(np.array([[1e30, -1e30, 0]], np.float32), np.array([0]))
    assert scores.log_probs.tolist() == [0]
    assert target_scores(np.array([[200, -200, 0]], np.float32), np.array([1])).log_probs[0] == pytest.approx(-400)


@pytest.mark.parametrize("pieces", [False, True])
def test_windows_of_different_lengths_side_by_side_equal_each_alone(pieces, request, rng):
    if pieces:
        request.getfixturevalue("few_rows")
    params = random_params(SMALL)
    lengths = [2, 18, 3, 9, 9, 5, 12, 2, 18]
    many = [Window(rng.integers(0, 101, n), int(rng.integers(1, n))) for n in lengths]
    seen = []
    together = score_windows(many, params, N_HEAD, seen.append)
    assert sum(seen) == sum(window.n_targets for window in many)
    for window, scores in zip(many, together):
        logits = gpt2.gpt2(window.ids[:-1], **params, n_head=N_HEAD)
        expected = [log_softmax(row)[id] for row, id in zip(logits, window.ids[1:])]
        assert scores.log_probs == pytest.approx(expected[len(expected) - window.n_targets :], rel=2e-5)
        best = logits.argmax(axis=-1) == window.ids[1:]
        assert (scores.ranks == 1).tolist() == best[len(best) - window.n_targets :].tolist()


def test_windows_with_the_same_beginning_share_its_work(monkeypatch, rng):
    params, beginning = random_params(SMALL), rng.integers(0, 101, 9)
    answers = [rng.integers(0, 101, n) for n in (2, 1, 4, 1)]
    many = [Window(np.array([1, 2, 3]), 2), *(Window(np.append(beginning, part), len(part)) for part in answers)]
    many += [Window(np.arange(12), 3)]
    apart = [score_windows([window], params, N_HEAD)[0] for window in many]
    monkeypatch.setattr(scoring.families, "__defaults__", (8,))
    assert list(scoring.families(many)) == [[0], [1, 2, 3, 4], [5]]
    sizes, gpt2_gpt2 = [], gpt2.gpt2
    monkeypatch.setattr(gpt2, "gpt2", lambda ids, **rest: sizes.append(np.size(ids)) or gpt2_gpt2(ids, **rest))
    for ours, theirs in zip(score_windows(many, params, N_HEAD), apart):
        assert ours.log_probs == pytest.approx(theirs.log_probs, rel=2e-5)
        assert ours.ranks.tolist() == theirs.ranks.tolist()
    assert sizes[:4] == [10, 1, 4, 1]


@pytest.mark.parametrize(
    ("ids", "n_targets"), [([1, 2], 2), ([1, 300], 1), ([-1, 2], 1), ([1] * 19, 1), ([], 0), ([1, 2], 0)]
)
def test_what_the_model_cannot_score_is_refused(ids, n_targets):
    with pytest.raises(ValueError, match="ids"):
        score_windows([Window(np.array(ids, int), n_targets)], random_params(ODD), ODD["n_head"])


@pytest.mark.usefixtures("few_rows")
def test_the_logits_of_a_window_never_exist_whole(monkeypatch):
    sizes = []

    def watched(*args, **settings):
        logits = gpt2_gpt2(*args, **settings)
        sizes.append(logits.size)
        return logits

    gpt2_gpt2 = gpt2.gpt2
    monkeypatch.setattr(gpt2, "gpt2", watched)
    score(list(range(30)), random_params(SMALL), N_HEAD)
    assert max(sizes) == 5 * SMALL["n_vocab"]
    assert sum(sizes) == 29 * SMALL["n_vocab"]


def test_the_example_in_the_docstring(monkeypatch):
    import doctest

    monkeypatch.chdir(ROOT)
    assert doctest.testmod(scoring).failed == 0
