"""LAMBADA: predict the last word of a passage (Paperno et al. 2016, "The LAMBADA dataset", ACL).

There are two files with the same 5,153 test passages. lambada_test_plain_text.txt, by the authors of the dataset, has
a passage on each line: in small letters, with spaces around the punctuation ("do n't"). lambada_test.jsonl, which
OpenAI published (issue 131 of openai/gpt-2), has {"text": passage} on each line, with the letters and the punctuation
of the books.

The same weights are reported with 26 % to 47 % of the words right, because the protocols differ. GPT-2's paper (Radford
et al. 2019, section 3.3) says only this: predict the last word; "we use a version of the dataset without
preprocessing"; a stop-word filter raises the accuracy of the largest model from 52.66 % to 63.24 %, which is the figure
in its table. OpenAI's code was never published (issue 343 of openai/gpt-2).
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from pathlib import Path

from encoder import Encoder
from picogpt.command_line import UsageError
from picogpt.evaluate.corpora import Protocol, Score, read_lines, readable, total, window_of
from picogpt.scoring.reading import at, field_of
from picogpt.scoring.results import perplexity
from picogpt.scoring.windows import Window
from picogpt.scoring.work import Model, begin

Passage = tuple[str, str]  # its place in the file, and its text

# English function words: articles, pronouns, prepositions, conjunctions, auxiliary verbs and the commonest adverbs.
STOP_WORDS = """
a an the this that these those some any no every each all both either neither such another other
i me my mine myself you your yours yourself he him his himself she her hers herself it its itself we us our ours
ourselves they them their theirs themselves who whom whose which what one
of in to for with on at by from into onto upon about over under between among through during before after above below
against without within toward towards across behind beyond near off out up down around along
and or but nor so yet if because as than though although while until unless since when where whether why how
am is are was were be been being do does did doing done have has had having will would shall should can could may might
must ought not only just very too also even still then there here again ever never more most much many
"""


def openai(data: Path, model: Model, score: Score, args: argparse.Namespace) -> dict[str, float]:
    """Score the whole last word of each passage of OpenAI's JSON Lines file, with the text as it is.

    1. Each line of the file is a JSON object. Its field "text" is the passage, to which nothing is done except that
       white space at its end is removed.
    2. The last word is what follows the last space, together with this space. The context is all before it, with
       <|endoftext|> in front (--no_bos leaves it out). Both are encoded separately. That gives the same ids as encoding
       the whole passage, because GPT-2's tokens never span the space before a word.
    3. A context that is too long for the model, or for --max_context, loses its beginning, <|endoftext|> included.
    4. accuracy: the percentage of passages where every token of the word is the model's likeliest one, given the
       context and the tokens of the word before it. That is to say, greedy decoding finds the word. It is not checked
       whether the model would end the word there.
    5. perplexity: exp of minus the mean log-probability of the words. That of a word is the sum over its tokens.

    Sources: section 3.3 of GPT-2's paper; issue 131 of openai/gpt-2, from which the file is. Unknown: whether OpenAI
    put <|endoftext|> in front. One of its members supposes in issue 131 that curly quotation marks became straight, and
    that a line feed was put in front. The accuracy in the paper's table is that with a stop-word filter: compare it
    with the protocol stop-words.
    """
    return word_figures(word_windows(json_passages(data, args.limit), model, args), score)


def harness(data: Path, model: Model, score: Score, args: argparse.Namespace) -> dict[str, float]:
    """Follow the rule of lm-evaluation-harness's task lambada_openai, on the same JSON Lines file.

    1. The passage, the field "text", is split at its last space. The space and what follows it are the continuation.
    2. White space at the end of the context moves to the continuation. The context and the whole passage are encoded,
       and the tokens of the continuation are those that the whole passage has after as many tokens as the context has.
    3. Nothing is put in front of the context. If it is too long, it loses its beginning.
    4. accuracy: the percentage of passages where every token of the continuation is the likeliest one.
    5. perplexity: exp of minus the mean log-probability of the continuations.

    Source: lm-evaluation-harness 0.4, tasks/lambada/lambada_openai.yaml and `_encode_pair` in api/model.py. Its issue
    2159 reports 32.56 % and 40.06 for 124M. Two differences: white space at the end of a passage is removed here, and
    a passage of a single word is an error, while the harness gives it <|endoftext|> as its context.
    """
    return word_figures(harness_windows(json_passages(data, args.limit), model, args), score)


def stop_words(data: Path, model: Model, score: Score, args: argparse.Namespace) -> dict[str, float]:
    """Do as the protocol openai does, but never predict a stop word as the last word.

    All steps are those of openai, with one difference in the accuracy: at the first token of the last word, tokens that
    spell a stop word with a space before it, in small letters or with a capital, count as impossible. The prediction
    begins with the likeliest of all other tokens. A last word whose first token is such a token is therefore always
    wrong: one that is a stop word, but also a longer one, such as " anvil" where a vocabulary splits it into " an" and
    "vil". Stop words of several tokens, and punctuation, are not excluded. The perplexity stays that of openai.

    The stop words are the list STOP_WORDS in picogpt/evaluate/lambada.py, made for this purpose.

    Source: section 3.3 of GPT-2's paper, which adds "a stop-word filter" because most wrong predictions continue the
    sentence and can't end it. Unknown: the list, whether it works on tokens or on words, and whether the paper's
    perplexity is filtered, too.
    """
    excluded = stop_word_ids(model.encoder)
    return word_figures(word_windows(json_passages(data, args.limit), model, args, excluded), score)


def last_token(data: Path, model: Model, score: Score, args: argparse.Namespace) -> dict[str, float]:
    """Score only the last token of each passage of OpenAI's JSON Lines file.

    All steps are those of openai, but the target is one token: the last of the passage. Where the last word has several
    tokens, the context holds its beginning, which makes the task easier, and different for every vocabulary.

    Source: a comment in issue 131 of openai/gpt-2 reports 46.89 % for 117M with this rule. Unknown: whether the
    table of the paper, with its 45.99 %, used it.
    """
    n_readable, before, windows = readable(model, args), begin(model, args.bos), []
    for place, text in json_passages(data, args.limit):
        with at(place):
            ids = model.encoder.encode(text)
            windows.append(window_of(before + ids[:-1], ids[-1:], n_readable))
    return word_figures(windows, score)


def plain(data: Path, model: Model, score: Score, args: argparse.Namespace) -> dict[str, float]:
    """Do as the protocol openai does, with the plain text file: a passage on each line.

    Nothing is done to the text: its letters are small, and spaces stand around the punctuation.

    Source: Paperno et al. 2016, whose authors published this file. Issue 491 of huggingface/transformers reports 26 %
    for 117M with such a rule.
    """
    return word_figures(word_windows(plain_passages(data, args.limit), model, args), score)


PROTOCOLS: dict[str, Protocol] = {
    "openai": openai,
    "harness": harness,
    "stop-words": stop_words,
    "last-token": last_token,
    "plain": plain,
}


def json_passages(data: Path, limit: int | None) -> Iterator[Passage]:
    """Yield the passages of a JSON Lines file. Raises UsageError for a line without a text in its field "text"."""
    for place, line in read_lines(data)[:limit]:
        with at(place):
            text = field_of(line, "text")
        yield place, text.rstrip()


def plain_passages(data: Path, limit: int | None) -> Iterator[Passage]:
    """Yield the lines of a text file. Raises UsageError if it is a JSON Lines file."""
    for place, line in read_lines(data)[:limit]:
        if line.startswith('{"'):
            raise UsageError(f"{place}: a JSON object, but the protocol plain reads plain text")
        yield place, line.rstrip()


def word_windows(
    passages: Iterator[Passage], model: Model, args: argparse.Namespace, excluded: Sequence[int] = ()
) -> list[Window]:
    """Return a window for each passage that scores its last word."""
    n_readable, before, windows = readable(model, args), begin(model, args.bos), []
    for place, text in passages:
        with at(place):
            context, space, word = text.rpartition(" ")
            if not context:
                raise ValueError("there is no space, and so no context before the last word")
            encode = model.encoder.encode
            windows.append(window_of(before + encode(context), encode(space + word), n_readable, excluded))
    return windows


def harness_windows(passages: Iterator[Passage], model: Model, args: argparse.Namespace) -> list[Window]:
    """Return a window for each passage that scores its last word, split as lm-evaluation-harness does."""
    n_readable, windows = readable(model, args), []
    for place, text in passages:
        with at(place):
            context = text.rpartition(" ")[0].rstrip()
            ids, n_context = model.encoder.encode(text), len(model.encoder.encode(context))
            windows.append(window_of(ids[:n_context], ids[n_context:], n_readable))
    return windows


def stop_word_ids(encoder: Encoder) -> list[int]:
    """Return the ids of the tokens that spell a whole stop word with a space before it."""
    spellings = {f" {word}" for stop_word in STOP_WORDS.split() for word in (stop_word, stop_word.capitalize())}
    return sorted(ids[0] for ids in map(encoder.encode, spellings) if len(ids) == 1)


def word_figures(windows: Sequence[Window], score: Score) -> dict[str, float]:
    """Score the windows, and return the accuracy in percent and the perplexity per word."""
    scores = score(windows)
    right = sum(
        bool((scored.ranks == 1).all()) and window.ids[-window.n_targets] not in window.excluded
        for window, scored in zip(windows, scores)
    )
    nats, n_tokens = total(scores)
    n = len(windows)
    return {"accuracy": 100 * right / n, "perplexity": perplexity(nats, n), "tokens": n_tokens, "examples": n}
