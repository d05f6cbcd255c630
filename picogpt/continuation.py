"""What programs that continue texts share: drawing an id, the ends of a text, and the memory of many side by side."""

from __future__ import annotations

import argparse
import itertools
from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

import gpt2
from encoder import END_OF_TEXT, Encoder
from picogpt.command_line import UsageError, check_memory, free_memory

if TYPE_CHECKING:
    from picogpt.typing.shapes import Params


def first_ids(encoder: Encoder, prompt: str) -> list[int]:
    """Return the ids of a prompt. An empty one begins a document, as OpenAI's samples without a prompt did."""
    if not prompt and END_OF_TEXT not in encoder.encoder:
        raise UsageError(f"the prompt is empty, and this model has no token {END_OF_TEXT} to begin a document with")
    return encoder.encode(prompt) if prompt else [encoder.encoder[END_OF_TEXT]]


def last_id(encoder: Encoder, args: argparse.Namespace) -> int | None:
    """Return the id that ends a text: <|endoftext|> if --end_of_text or --stop asks for it, or None."""
    if args.end_of_text and END_OF_TEXT not in encoder.encoder:
        raise UsageError(f"--end_of_text: this model has no token {END_OF_TEXT}")
    return encoder.encoder.get(END_OF_TEXT) if args.end_of_text or args.stop == END_OF_TEXT else None


def draw(logits: Any, ids: Sequence[int], rng: np.random.Generator, **settings: float) -> int:
    """Draw the id that follows ids, with the probabilities of `gpt2.sample`, but so that rounding hardly ever matters.

    All ids run a race: each takes a random time, exponential with mean 1, divided by its probability. An id wins as
    often as its probability says. Only where two ids arrive at practically the same time, rounding decides.
    `gpt2.sample` has one random number fall between tens of thousands of borders, which are all moved by rounding.
    """
    if settings.get("temperature") == 0:
        return gpt2.sample(logits, ids, rng, **settings)  # type: ignore[arg-type]
    names = {"temperature": 1.0, "top_k": 0, "top_p": 1.0, "repetition_penalty": 1.0}
    probs = gpt2.token_probs(logits, ids, **names | settings)  # type: ignore[arg-type]
    return int(np.argmax(probs / rng.standard_exponential(len(probs))))


def is_over(new_ids: Sequence[int], encoder: Encoder, end: int | None, stops: Sequence[str]) -> bool:
    """Return whether the last of the new ids is the id `end`, or completes one of the texts in `stops`."""
    if not new_ids:
        return False
    for stop in filter(None, stops):
        stop_bytes = stop.encode("utf-8", "surrogatepass")
        tail = new_ids[-len(stop_bytes) :]  # each token has at least one byte, so stop has no more tokens
        if stop_bytes in b"".join(map(encoder.token_bytes, tail)):
            return True
    return bool(new_ids[-1] == end)


def text_pieces(new_ids: Iterable[int], encoder: Encoder, end: int | None, stops: Sequence[str]) -> Iterator[str]:
    """Yield the text of new ids piece by piece, up to the id `end` or the first of the texts in `stops`."""
    pieces = encoder.decode_stream(itertools.takewhile(lambda id: id != end, new_ids))
    for stop in filter(None, stops):
        pieces = gpt2.stop_before(pieces, stop)
    return pieces


def row_bytes(params: Params, n_head: int, n_ctx: int) -> int:
    """Return the memory that each row of a batch takes: keys and values of n_ctx positions, and logits."""
    wte = np.asarray(params["wte"])
    row = gpt2.empty_cache(params, n_head, n_ctx).nbytes  # np.empty only reserves addresses, and takes no memory yet
    return row + 2 * len(wte) * wte.itemsize  # the logits of two steps exist at the same time


def rows_that_fit(most: int, params: Params, n_head: int, n_ctx: int) -> int:
    """Return how many rows of a batch fit into the free memory: at least 1, which is tried in any case."""
    return max(1, min(most, free_memory() // row_bytes(params, n_head, n_ctx)))


def check_batch(n_rows: int, params: Params, n_head: int, n_ctx: int) -> str:
    """Return how much memory a batch takes, in a sentence. Raises UsageError if less is free."""
    row = row_bytes(params, n_head, n_ctx)
    n_fit = free_memory() // row
    advice = f"--batch_size {n_fit} fits" if n_fit else "not even one sample fits"
    return check_memory(f"making {n_rows} samples at once", n_rows * row, advice)
