"""The probabilities of the tokens that `generate` chooses, and of their alternatives: --show_probs and --logprobs.

A `Recorder` takes the place of the function that chooses a token. It sees the logits that the model has computed for
it, so no second forward pass is needed.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import IO, TYPE_CHECKING, Any, NamedTuple

import numpy as np

import gpt2
from encoder import Encoder
from picogpt.command_line import log
from picogpt.files import new_file
from picogpt.options import sampling_settings
from picogpt.terminal_text import fit, in_context, n_columns, percent, visible, width_of_terminal

if TYPE_CHECKING:
    from picogpt.typing.shapes import Choose

Array = np.ndarray[Any, np.dtype[Any]]

TOP = 5  # the tokens that are listed as alternatives
COLUMN = 18  # the width of a token in the table
PLAIN = {"temperature": 1.0, "top_k": 0, "top_p": 1.0, "repetition_penalty": 1.0}  # the model's own distribution


class Token(NamedTuple):
    """A token that was chosen, with what the model computed at its place.

    log_prob: the natural logarithm of its probability in the model's own distribution, that of temperature 1.
    rank: 1 if it is the likeliest token there, 2 if it is the second. Ties go to the lower id, as in `gpt2.greedy`.
    sampling_prob: its probability in the distribution from which it was drawn, by the settings of sampling.
    top: the ids and log-probabilities of the TOP + 1 likeliest tokens, the likeliest first.
    """

    id: int
    log_prob: float
    rank: int
    sampling_prob: float
    top: list[tuple[int, float]]


class Recorder:
    """A `choose` for `gpt2.generate`: it leaves the choice to another one, and keeps a `Token` for each id."""

    def __init__(self, choose: Choose, settings: Mapping[str, Any]):
        self.choose, self.settings = choose, dict(settings)
        self.tokens: list[Token] = []

    def __call__(self, logits: Any, ids: Sequence[int]) -> int:
        id = self.choose(logits, ids)
        self.tokens.append(examined(id, logits, ids, self.settings))
        return id


def log_softmax(logits: Array) -> Array:
    """Turn logits into natural log-probabilities, in float64. [n_vocab] -> [n_vocab]"""
    shifted = logits.astype(np.float64) - float(logits.max())
    return shifted - math.log(np.exp(shifted).sum())


def likeliest(scores: Array, top: int) -> Array:
    """Return the ids of the top largest scores, the largest first; ties keep the lower id. [n_vocab] -> [top]"""
    ids = np.flatnonzero(scores >= np.partition(scores, -top)[-top])
    return ids[np.argsort(-scores[ids], kind="stable")[:top]]


def examined(id: int, logits: Array, ids: Sequence[int], settings: Mapping[str, Any]) -> Token:
    """Return what the logits say about the token `id` that was chosen after ids, and about the likeliest ones."""
    log_probs = log_softmax(logits)
    rank = 1 + np.count_nonzero(logits > logits[id]) + np.count_nonzero(logits[:id] == logits[id])
    if settings == PLAIN:
        drawn = math.exp(log_probs[id])
    elif settings["temperature"] == 0:
        drawn = 1.0
    else:
        drawn = float(gpt2.token_probs(logits, ids, **settings)[id])  # type: ignore[arg-type]
    top = [(int(i), float(log_probs[i])) for i in likeliest(logits, min(TOP + 1, len(logits)))]
    return Token(id, float(log_probs[id]), int(rank), drawn, top)


# ------------------------------------------------------------------------------------------------------ for people


def table(name: str, tokens: Sequence[Token], encoder: Encoder, width: int, with_drawn: bool) -> Iterator[str]:
    """Yield a line for each token: its probability, its rank, and as many of the likeliest others as the width allows.

    `name` is the heading of the tokens. `with_drawn` adds the probability with which each was drawn.
    """
    drawn = f" {'drawn':>7}" if with_drawn else ""
    yield f"   #  {name:{COLUMN}} {'prob.':>7}{drawn} {'rank':>6}   likeliest others"
    texts = in_context([encoder.token_bytes(token.id) for token in tokens])
    for i, (text, token) in enumerate(zip(texts, tokens), 1):
        drawn = f" {percent(token.sampling_prob):>7}" if with_drawn else ""
        line = f"{i:4}  {fit(text, COLUMN)} {percent(math.exp(token.log_prob)):>7}{drawn} {token.rank:>6} "
        for other, log_prob in [pair for pair in token.top if pair[0] != token.id][:TOP]:
            more = f"  {visible(encoder.token_bytes(other))} {percent(math.exp(log_prob))}"
            if n_columns(line + more) > width:
                break
            line += more
        yield line.rstrip()


# ---------------------------------------------------------------------------------------------------- for programs


def named(id: int, log_prob: float, encoder: Encoder) -> dict[str, Any]:
    """Return what --logprobs says about each token. A part of a character has the text "�" and its exact bytes."""
    data = encoder.token_bytes(id)
    return {"id": id, "token": data.decode("utf-8", "replace"), "bytes": list(data), "logprob": log_prob}


def entry(sample: int, token: Token, encoder: Encoder) -> dict[str, Any]:
    """Return the line of --logprobs for a token, as an object."""
    figures = {"rank": token.rank, "sampling_prob": token.sampling_prob}
    top = [named(*pair, encoder) for pair in token.top[:TOP]]
    return {"sample": sample, **named(token.id, token.log_prob, encoder), **figures, "top_logprobs": top}


class Report:
    """Shows and writes the tokens of each sample, as the command line asks for with --show_probs and --logprobs."""

    def __init__(self, args: argparse.Namespace, file: IO[bytes] | None):
        self.show, self.file, self.settings = args.show_probs, file, sampling_settings(args)
        self.recorders: list[Recorder] = []

    def watch(self, choosers: Sequence[Choose]) -> list[Recorder]:
        """Return functions that choose as these do, one for each sample, and whose tokens `add` reports."""
        self.recorders = [Recorder(choose, self.settings) for choose in choosers]
        return self.recorders

    def add(self, sample: int, encoder: Encoder) -> None:
        """Report the tokens of a sample, whose numbers begin at 1, and forget them."""
        recorder = self.recorders[sample - 1]
        tokens, recorder.tokens = recorder.tokens, []
        if self.file:
            entries = [entry(sample, token, encoder) for token in tokens]
            lines = [json.dumps(found, ensure_ascii=False, allow_nan=False) + "\n" for found in entries]
            self.file.write("".join(lines).encode("utf-8"))
        if self.show and tokens:
            name = f"token of sample {sample}" if len(self.recorders) > 1 else "token"
            with_drawn = self.settings != PLAIN and self.settings["temperature"] > 0
            for line in table(name, tokens, encoder, width_of_terminal(), with_drawn):
                log(line)


@contextlib.contextmanager
def reporting(args: argparse.Namespace) -> Iterator[Report]:
    """Open the file of --logprobs, and return the report of a command line's tokens.

    Ctrl-C keeps the file, with the tokens that were reported, if there are any. Any other error leaves none. Raises
    OSError as `new_file` does.
    """
    if args.logprobs is None:
        yield Report(args, None)
        return
    stopped = None
    with new_file(args.logprobs, args.force) as file:
        try:
            yield Report(args, file)
        except KeyboardInterrupt as error:
            if not file.tell():  # nothing was reported: an older file stays
                raise
            stopped = error
    if stopped:
        raise stopped
