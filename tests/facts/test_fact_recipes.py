"""Each kind of fact: its recipe equals transformers, which computes the same fact in its own way."""

from __future__ import annotations

import doctest
import math

import pytest
from fact_cases import FACTS

from picogpt.command_line import UsageError
from picogpt.facts import recipes
from picogpt.facts.recipes import KINDS, compared, compute

TOLERANCE = 2e-5  # for float32 beside transformers' float64


def test_examples_in_docstrings():
    assert doctest.testmod(recipes).failed == 0


def test_every_kind_is_tested():
    assert {fact["kind"] for fact in FACTS.values()} == set(KINDS)


@pytest.mark.parametrize("name", FACTS)
def test_a_recipe_equals_transformers(name, tiny, oracle, data, request):
    fact = FACTS[name]
    path = data / fact["data"] if "data" in fact else None
    is_in_file = fact["published"] == "file"
    if is_in_file:
        request.getfixturevalue("example")  # transformers' values are in this file
    ours, published, *_ = compute(fact | {"tolerance": math.inf}, tiny, path)
    theirs = published if is_in_file else oracle.values(fact, path)
    assert len(ours) == len(theirs)
    for a, b in zip(ours, theirs):
        assert (a == pytest.approx(b, rel=TOLERANCE, abs=TOLERANCE)) if isinstance(b, float) else a == b


def test_a_continuation_may_be_published_as_a_text(tiny, oracle):
    fact = {"kind": "greedy", "prompt": "To be, or not to", "published": [0] * 9}
    text = tiny.encoder.decode(oracle.values(fact))
    assert compute(fact | {"published": text}, tiny).agrees
    assert not compute(fact | {"published": text[:-1] + "?"}, tiny).agrees


def test_other_tokens_of_the_same_text_are_the_same_continuation(tiny, monkeypatch):
    text = "the king"
    letters = [id for letter in text for id in tiny.encoder.encode(letter)]
    n = len(tiny.encoder.encode(text))
    monkeypatch.setattr(recipes.gpt2, "generate", lambda ids, params, n_head, n: letters if n < 8 else None)
    assert n < len(letters)
    assert compute({"kind": "greedy", "prompt": "Hail", "published": text}, tiny).agrees


@pytest.mark.parametrize(
    ("ours", "published", "tolerance", "worst", "agrees"),
    [
        ([1.0], [1.25], 0.25, 0, True),
        ([1.0], [1.25], 0.24, 0, False),
        ([1.0, 2.0], [1.1, 2.2], 0.5, 1, True),
        ([1.0, 2.0], [1.1, 2.2], [0.05, 0.5], 0, False),
        ([math.nan], [1.0], 9.0, 0, False),
        ([math.inf], [1.0], 9.0, 0, False),
        ([1.0, math.nan, 1.0], [1.0, 1.0, 1.0], 9.0, 1, False),
        ([5, 6], [5, 7], 9.0, 1, False),
        ([" a", 0.5], [" b", 0.5], 9.0, 0, False),
    ],
)
def test_comparing(ours, published, tolerance, worst, agrees):
    assert compared(ours, published, tolerance)[3:] == (worst, agrees)


def test_lists_of_different_lengths_are_an_error_of_ours():
    with pytest.raises(ValueError, match="zip"):
        compared([1.0], [1.0, 2.0], 1.0)


def test_a_token_of_a_fact_is_one_token(tiny):
    fact = FACTS["differences"] | {"prompts": [["He is", " king", " zebra"]]}
    with pytest.raises(UsageError, match="' zebra' is . tokens, not one"):
        compute(fact, tiny)


def test_an_example_in_another_format_says_what_is_missing(tiny, tmp_path):
    (tmp_path / "ex.js").write_text("export const ex = {};\n", encoding="utf-8")
    with pytest.raises(UsageError, match="ex.js has no numbers called block_0_attn_head_0_attn_scaled"):
        compute(FACTS["an example"] | {"tolerance": 1.0}, tiny, tmp_path / "ex.js")
