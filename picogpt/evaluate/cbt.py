"""The Children's Book Test, CBT: choose the word that was left out (Hill et al. 2016, "The Goldilocks Principle").

A file, such as cbtest_CN_valid_2000ex.txt, has one question after another, with an empty line between them. A question
has 21 lines that begin with their number and a space. Lines 1 to 20 are sentences of a book. Line 21 holds the next
sentence, with XXXXX in place of one word, then a tab, the word, two tabs, and the choices with | between them. The name
says which words are left out: common nouns (CN), named entities (NE), verbs (V) or prepositions (P).

The figures in GPT-2's paper are those of the validation files, with 2,000 questions, because one book of the test files
is in the model's training data (Radford et al. 2019, section 3.2).
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np

from picogpt.evaluate.corpora import Protocol, Score, read_lines, readable
from picogpt.scoring.reading import at
from picogpt.scoring.windows import Window
from picogpt.scoring.work import Model, begin

N_LINES = 21
GAP = "XXXXX"

# How the tokenization of the Penn Treebank is undone: patterns, and what replaces them.
RULES = [
    (r"`` ?| ?''", '"'),
    (r"` ?", "'"),
    (r"-L[RSC]B- ?", "("),
    (r" ?-R[RSC]B-", ")"),
    (r" (?=[.,!?;:%])", ""),
    (r" (?=n't\b|'(?:s|ll|re|ve|m|d)\b|'(?: |$))", ""),
]


class Question(NamedTuple):
    """A question: the place of its last sentence, its context, the sentence with the gap, and the possible words."""

    place: str
    context: str
    sentence: str
    answer: str
    choices: list[str]


def paper(data: Path, model: Model, score: Score, args: argparse.Namespace) -> dict[str, float]:
    """Choose the word with which the rest of the sentence is the likeliest, without PTB's tokenization.

    1. The 20 sentences and the sentence with the gap are joined by spaces, once for each choice, which fills the gap.
    2. The tokenization of the Penn Treebank (PTB) is undone: `` and '' become ", -LRB- and -RRB- become parentheses,
       and the spaces before . , ! ? ; : % n't 's 'll 're 've 'm 'd and just inside quotation marks and parentheses are
       removed.
    3. Each text is encoded, with <|endoftext|> in front (--no_bos leaves it out).
    4. The log-probabilities of all tokens are added, from the first one in which the texts differ to the end of the
       sentence. This is the choice, and the rest of the sentence given the choice; what stands before has the same
       probability in all texts. The sum is not divided by the number of tokens.
    5. If the texts are too long for the model, or for --max_context, they all lose the same tokens at their beginning,
       <|endoftext|> included.
    6. accuracy: the percentage of questions where the choice with the largest sum is the answer. Of equal sums, the
       choice that is listed first wins.

    Source: section 3.2 of GPT-2's paper, which computes "the probability of each choice and the rest of the sentence
    conditioned on this choice", and says that "a de-tokenizer was applied to remove PTB style tokenization artifacts".
    Unknown: the rules of that de-tokenizer, how the sentences were joined, and what stood in front.
    """
    return accuracy(data, model, score, args, detokenize)


def raw(data: Path, model: Model, score: Score, args: argparse.Namespace) -> dict[str, float]:
    """Do as the protocol paper does, but leave the text as it is in the file.

    Source: section 3.2 of GPT-2's paper, without its de-tokenizer.
    """
    return accuracy(data, model, score, args, lambda text: text)


PROTOCOLS: dict[str, Protocol] = {"paper": paper, "raw": raw}


def detokenize(text: str) -> str:
    """Return a text without the tokenization of the Penn Treebank.

    >>> detokenize("`` I wo n't , '' he said -LRB- twice -RRB- .")
    '"I won\\'t," he said (twice).'
    """
    for pattern, replacement in RULES:
        text = re.sub(pattern, replacement, text)
    return text


def accuracy(
    data: Path, model: Model, score: Score, args: argparse.Namespace, clean: Callable[[str], str]
) -> dict[str, float]:
    """Return the percentage of questions that the model answers right. `clean` is applied to each text."""
    n_readable, before = readable(model, args), begin(model, args.bos)
    asked: list[Question] = []
    windows: list[Window] = []
    for question in questions(data, args.limit):
        filled = [question.sentence.replace(GAP, choice) for choice in question.choices]
        with at(question.place):
            texts = [model.encoder.encode(clean(f"{question.context} {sentence}")) for sentence in filled]
            windows += choice_windows([before + ids for ids in texts], n_readable)
        asked.append(question)
    sums = iter([float(scored.log_probs.sum()) for scored in score(windows)])
    right = 0
    for question in asked:
        best = int(np.nanargmax([next(sums) for _ in question.choices]))  # argmax would choose NaN
        right += question.choices[best] == question.answer
    n_tokens = sum(window.n_targets for window in windows)
    return {"accuracy": 100 * right / len(asked), "tokens": n_tokens, "examples": len(asked)}


def questions(data: Path, limit: int | None) -> Iterator[Question]:
    """Yield the questions of a file. Raises UsageError for a file of another format, or with a part of a question."""
    lines = read_lines(data)
    for start in range(0, len(lines), N_LINES)[:limit]:
        sentences = []
        for i, (place, line) in enumerate(lines[start : start + N_LINES], 1):
            with at(place):
                mark, _, sentence = line.partition(" ")
                if mark != str(i):
                    raise ValueError(f"line {i} of a question begins with {i} and a space, not with {line[:20]!r}")
                sentences.append(sentence.strip())
        with at(place):
            if i < N_LINES:
                raise ValueError(f"the file ends here, in line {i} of a question, which has {N_LINES}")
            yield question_of(place, sentences)


def question_of(place: str, sentences: list[str]) -> Question:
    """Return a question from its 21 sentences. Raises ValueError if the last one has no gap, answer and choices."""
    fields = [field.strip() for field in sentences[-1].split("\t") if field.strip()]
    if len(fields) != 3:
        raise ValueError("the last line of a question is a sentence, an answer and choices, with tabs between them")
    sentence, answer, choices = fields[0], fields[1], fields[2].split("|")
    if GAP not in sentence:
        raise ValueError(f"there is no {GAP} in the last sentence of the question")
    if answer not in choices:
        raise ValueError(f"the answer {answer!r} is none of the choices")
    return Question(place, " ".join(sentences[:-1]), sentence, answer, choices)


def choice_windows(texts: list[list[int]], n_readable: int) -> list[Window]:
    """Return a window for each text that scores it from where the texts differ. All begin with the same ids.

    Raises ValueError if the texts have nothing in common, or differ for longer than the model can read.
    """
    shortest = min(map(len, texts))
    n_same = next((i for i in range(shortest) if len({ids[i] for ids in texts}) > 1), shortest - 1)
    n_differ = max(map(len, texts)) - n_same
    if n_same < 1:
        raise ValueError("there is no text before the choices")
    if n_differ > n_readable:
        raise ValueError(f"a choice and what follows have {n_differ} tokens, but the model reads {n_readable} at most")
    first = max(0, n_same + n_differ - (n_readable + 1))
    return [Window(np.array(ids[first:], np.intp), len(ids) - n_same) for ids in texts]
