r"""Turn tokenized text into natural text, and exactly back.

Benchmarks for models with a vocabulary of words come as tokens with a space between each two: "a well @-@ known word ,
isn 't it ?". GPT-2 learned from natural text, "a well-known word, isn't it?", and predicts that far better.

The way back makes this fair. If each natural text has one tokenized text, and every tokenized text is reached, then the
probability of the natural text counts for the tokenized one, and the model's log-probability of the data set is exact:
nothing was made easier by throwing information away. Radford et al. 2019 (GPT-2), section 3.1, report their results
with "invertible de-tokenizers", which have never been published. These here are our own.

A natural text is a line of chunks with spaces between them. `tokenize` splits each chunk by itself, by a fixed list of
rules. `detokenize` joins tokens to chunks as English is written, splits each chunk again, and keeps it only if the same
tokens come back. Otherwise their spaces stay. A single token that the rules would split gets a backslash in front,
which says that the rest of the chunk is one token. So the way back is exact for all lines of tokens, by construction.

>>> natural = detokenize('The " red @-@ brown " fox ( 3 @,@ 000 m ) isn \'t here .', WIKITEXT)
>>> print(natural)
The "red-brown" fox (3,000 m) isn't here.
>>> print(tokenize(natural, WIKITEXT))
The " red @-@ brown " fox ( 3 @,@ 000 m ) isn 't here .
>>> print(detokenize("he is n't in the u.s. says the <unk> 's agent", PENN_TREEBANK))
he isn't in the u.s. says the <unk>'s agent
>>> print(detokenize("a red-brown fox @-@ in one token", WIKITEXT))
a \red-brown fox-in one token
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import NamedTuple

ESCAPE = "\\"  # in front of a token that the rules would split
LONGEST = 16  # tokens in one chunk, so that a line of thousands of slashes does not take hours

ABBREVIATIONS = (
    "Mr Mrs Ms Dr Prof Rev Hon St Ste Jr Sr Bros Co Corp Inc Ltd Gen Col Maj Capt Lt Sgt Cpl Gov Sen Rep "
    "No Nos vs var pp Vol etc Jan Feb Mar Apr Aug Sept Oct Nov Dec"
)
ABBREVIATION = re.compile(rf"[^\W\d_]\.|\w[\w.]*\.\w+\.|(?:{'|'.join(ABBREVIATIONS.split())})\.")


class Style(NamedTuple):
    """How a data set was tokenized. "before" and "after" are about the space on that side of a token.

    splits: patterns and replacements that put spaces into a chunk, one after another.
    none_before: tokens that are joined to the one before them.
    none_after: tokens that are joined to the one behind them.
    written: how a token is written in natural text if it differs. These tokens are joined on both sides.
    suffix: a pattern of tokens that are the end of a word, such as 's.
    periods: whether a period at the end of a word is a token, unless it belongs to an abbreviation.
    """

    splits: tuple[tuple[re.Pattern[str], str], ...]
    none_before: frozenset[str]
    none_after: frozenset[str]
    written: dict[str, str]
    suffix: re.Pattern[str]
    periods: bool


def rules(*splits: tuple[str, str]) -> tuple[tuple[re.Pattern[str], str], ...]:
    """Return the patterns compiled."""
    return tuple((re.compile(pattern), replacement) for pattern, replacement in splits)


# Punctuation, and apostrophes as in "isn 't", "John 's", "the boys '". A chunk has no spaces but those put in by rules
# before, so that (?<![^ ]) means the start of a word, and (?![^ ]) its end.
MOSES = (
    (r"([()\[\]{}\"“”;:!?%/—$£]|\.\.+)", r" \1 "),
    (r"(?<=\d)–(?=\d)", " – "),
    (r"(?<![^ ])'(?=[^ ])", "' "),
    (r"(?<=[^ ])'(?=[.,]?(?![^ ]))", " ' "),
    (r"(?<=[\w>])'(?=[^\W\d_])", " '"),
)
FINAL_COMMA = (r"(?<=[^ @]),(?![^ ])", " ,")
NONE_BEFORE = frozenset([*",.;:!?%)]}”", "...", "...."])
NONE_AFTER = frozenset("([{“$£")

# Merity et al. 2016, section 4: the tokenizer of Moses, with @-@, @,@ and @.@ for what stands inside a word or number.
WIKITEXT = Style(
    rules(
        *MOSES,
        (r"(?<=[^ @])-(?=[^ @])", " @-@ "),
        (r"(?<=[^ @]),(?=[^ @])", " @,@ "),
        FINAL_COMMA,
        (r"(?<=[\d>])\.(?=[\d<])", " @.@ "),
    ),
    NONE_BEFORE,
    NONE_AFTER,
    {"@-@": "-", "@,@": ",", "@.@": ".", "/": "/", "—": "—"},
    re.compile(r"'[^\W\d_].*"),
    True,
)
# Chelba et al. 2013: as above, but hyphens and numbers stay whole.
ONE_BILLION_WORDS = Style(
    rules(*MOSES, FINAL_COMMA), NONE_BEFORE, NONE_AFTER, {"/": "/"}, re.compile(r"'[^\W\d_].*"), True
)
# Mikolov's version of the Penn Treebank has no punctuation. Its contractions are those of the Treebank: "does n't".
PENN_TREEBANK = Style(
    rules((r"^([$#])(?=.)", r"\1 "), (r"(?<=.)(n't|'(?:s|re|ve|ll|d|m)|(?<=s)')$", r" \1")),
    frozenset(),
    frozenset("$#"),
    {},
    re.compile(r"n't|'(?:s|re|ve|ll|d|m)"),
    False,
)


def tokenize(natural: str, style: Style) -> str:
    """Return the tokens of a natural text with a space between each two. Line ends stay."""
    lines = natural.split("\n")
    return "\n".join(" ".join(token for chunk in line.split(" ") for token in split(chunk, style)) for line in lines)


def detokenize(text: str, style: Style) -> str:
    """Return the natural text of tokenized text, from which `tokenize` gets it back.

    Line ends stay. Spaces at both ends of a line, as in WikiText, do not, nor does a second space between tokens.
    """
    return "\n".join(" ".join(chunks(line, style)) for line in text.split("\n"))


def split(chunk: str, style: Style) -> list[str]:
    """Return the tokens of one chunk of natural text."""
    if chunk.startswith(ESCAPE):
        return [chunk[1:]]
    for pattern, replacement in style.splits:
        chunk = pattern.sub(replacement, chunk)
    words = [word for word in chunk.split(" ") if word]
    return [token for word in words for token in (without_period(word) if style.periods else [word])]


def without_period(word: str) -> list[str]:
    """Return a word, and its period as a second token if it ends a sentence rather than an abbreviation."""
    is_sentence_end = word.endswith(".") and word.strip(".") and not ABBREVIATION.fullmatch(word)
    return [word[:-1], "."] if is_sentence_end else [word]


def chunks(line: str, style: Style) -> Iterator[str]:
    """Yield the chunks of natural text for a line of tokens."""
    tokens = [token for token in line.split(" ") if token]
    group: list[str] = []
    for token, is_joined in zip(tokens, joined_to_previous(tokens, style)):
        if not is_joined:
            yield from checked(group, style)
            group = []
        group.append(token)
    yield from checked(group, style)


def joined_to_previous(tokens: list[str], style: Style) -> Iterator[bool]:
    """Yield for each token whether natural text has no space before it."""
    is_open = {'"': False, "'": False}
    is_joined = False  # by the token before
    for before, token, after in zip(["", *tokens], tokens, [*tokens[1:], ""]):
        is_suffix = bool(style.suffix.fullmatch(token)) and re.search(r"[\w>]$", before) is not None
        is_end = is_suffix or token in style.none_before
        is_quote = token in is_open
        if is_quote:
            is_possessive = token == "'" and not is_open[token] and before.endswith("s") and after not in is_open
            is_end = is_open[token] or is_possessive
            is_open[token] = not is_end
        is_range = token == "–" and before[-1:].isdigit() and after[:1].isdigit()
        yield bool(before and (is_joined or is_end or is_range or token in style.written))
        is_joined = token in style.none_after or token in style.written or is_range or (is_quote and not is_end)


def checked(group: list[str], style: Style) -> Iterator[str]:
    """Yield the tokens as one chunk, or as several if they would not come back from one."""
    while group:
        for n in range(min(len(group), LONGEST), 0, -1):
            chunk = "".join(style.written.get(token, token) for token in group[:n])
            if n > 1 and split(chunk, style) == group[:n]:
                break
        else:
            chunk = alone(group[0], style)
        yield chunk
        group = group[n:]


def alone(token: str, style: Style) -> str:
    """Return a token as a chunk of its own."""
    return token if split(token, style) == [token] else ESCAPE + token
