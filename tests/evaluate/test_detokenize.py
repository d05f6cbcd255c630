"""Test the detokenizers: natural text comes out, and the tokens come back exactly."""

from __future__ import annotations

import re

import pytest
from helpers import shared
from hypothesis import example, given
from hypothesis import strategies as st

from picogpt.evaluate.detokenize import ONE_BILLION_WORDS, PENN_TREEBANK, WIKITEXT, detokenize, tokenize

STYLES = {"wikitext": WIKITEXT, "1bw": ONE_BILLION_WORDS, "ptb": PENN_TREEBANK}
PIECES = ["a", "B", "dogs", "Mr.", "U.S.", "x.y", "7", "1,5", "a-b", "n't", "don't", "ca", "s", "N", "é", "<unk>", " "]
MARKS = [*"()[]{}\"“”‘’'`.,;:!?%/—–-$£#=@\\&*", "--", "...", "'s", "'t", "'re", "@-@", "@,@", "@.@", "...."]
TOKENS = st.lists(
    st.sampled_from([*PIECES[:-1], *MARKS]) | st.text("ab1.,'\"-@()\\$/—N<>é", min_size=1, max_size=6), max_size=25
)

WIKI_LINES = [
    ("= Blue kettle =", "= Blue kettle ="),
    ("= = The kettle 's use ( 1900 – 05 ) = =", "= = The kettle's use (1900–05) = ="),
    ("a well @-@ known , red / brown <unk> @-@ pan .", "a well-known, red/brown <unk>-pan."),
    ("1 @,@ 500 of 2 @.@ 5 m ; 5 % for $ 3 ?", "1,500 of 2.5 m; 5% for $3?"),
    ('" Come , " he said to the " <unk> " ( not me ) .', '"Come," he said to the "<unk>" (not me).'),
    ("the boys ' pans aren 't John 's , but ' ours ' .", "the boys' pans aren't John's, but 'ours'."),
    (
        "Mr. H. Pan of the U.S. came to St. Ives at 5 a.m. today .",
        "Mr. H. Pan of the U.S. came to St. Ives at 5 a.m. today.",
    ),
    ("They left the U.S. .", "They left the U.S. ."),  # "U.S.." would come back as one token
    ("one - two , three - four ...", "one - two, three - four..."),
    ("a-b 1,5 don't .", "\\a-b \\1,5 \\don't ."),  # tokens that the rules would split
]


@pytest.mark.parametrize(("tokens", "natural"), WIKI_LINES)
def test_natural_text_of_wikitext(tokens, natural):
    assert detokenize(tokens, WIKITEXT) == natural
    assert tokenize(natural, WIKITEXT) == tokens


def test_hyphens_and_numbers_stay_whole_in_one_billion_words():
    tokens = 'He said : " It isn \'t a well-known , $ 1.5 or 1,500 pan -- yet . "'
    natural = 'He said: "It isn\'t a well-known, $1.5 or 1,500 pan -- yet."'
    assert detokenize(tokens, ONE_BILLION_WORDS) == natural
    assert tokenize(natural, ONE_BILLION_WORDS) == tokens


def test_contractions_of_the_penn_treebank():
    tokens = "mr. <unk> does n't say he 'll sell the u.s. company 's $ N million of bonds wo n't he"
    natural = "mr. <unk> doesn't say he'll sell the u.s. company's $N million of bonds won't he"
    assert detokenize(tokens, PENN_TREEBANK) == natural
    assert tokenize(natural, PENN_TREEBANK) == tokens


@pytest.mark.parametrize("style", STYLES)
@given(st.lists(TOKENS, max_size=3))
@example([["\\"], ["\\\\", "a"], ["", ""]])
@example([["'", "'", '"', '"', "'s"]])
def test_the_tokens_of_any_line_come_back(style, lines):
    text = "\n".join(" ".join(token for token in line if token) for line in lines)
    natural = detokenize(text, STYLES[style])
    assert tokenize(natural, STYLES[style]) == text
    assert natural.count("\n") == text.count("\n")


@pytest.mark.parametrize("style", STYLES)
def test_two_texts_never_become_the_same(style):
    """All lines of up to three of these tokens: they would share a natural text if the way back were not exact."""
    tokens = ["a", "-", "@-@", "a-a", "'", "'s", "a's", ".", "a.", "\\", "\\a", "n't", '"', "("]
    lines = [[a, b, c] for a in tokens for b in ["", *tokens] for c in ["", *tokens] if b or not c]
    texts = [" ".join(filter(None, line)) for line in lines]
    assert len({detokenize(text, STYLES[style]) for text in texts}) == len(set(texts)) == len(texts)


@pytest.mark.timeout(30)
def test_a_line_of_thousands_of_marks_is_not_slow():
    """All tokens of this line belong together, but no chunk may hold a-b, which would come back as three tokens."""
    text = " ".join(["a-b", "/"] * 1000)
    assert tokenize(detokenize(text, WIKITEXT), WIKITEXT) == text


def test_the_validation_set_of_wikitext_comes_back_byte_by_byte_and_is_natural():
    original = shared("text/wikitext-2-valid.txt").read_text(encoding="utf-8")
    natural = detokenize(original, WIKITEXT)
    lines = tokenize(natural, WIKITEXT).split("\n")
    assert "\n".join(f" {line} " if line else " " for line in lines[:-1]) + "\n" == original
    artefact = re.compile(r"@|\\| [,.;:!?%)\]}](?![^ ])|(?<![^ ])[(\[{$] | [\"'](?![^ ])| 's(?![^ ])")
    paragraphs = [line for line in natural.split("\n") if line and not line.startswith("=")]
    assert all(artefact.search(line) for line in ["a .", "a @-@ b", "( a", 'a " b', "a 's"])
    assert len(paragraphs) == 1841
    assert sum(not artefact.search(line) for line in paragraphs) >= 1822
