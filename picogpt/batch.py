"""Generate many texts side by side, through gpt2.py's forward pass: continuations of one prompt, or of several.

for sample, id in generate_batch(ids, params, n_head, 40, [greedy, greedy]): ...
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import gpt2

if TYPE_CHECKING:
    from picogpt.typing import shaped_numpy as np
    from picogpt.typing.shapes import Cache, Choose, Ended, Matrix, Params, n_vocab
else:
    import numpy as np

N_POSITIONS = 512  # positions of prompts in one call of gpt2, unless a single prompt is longer


def generate_batch(
    inputs: Iterable[int],
    params: Params,
    n_head: int,
    n_tokens_to_generate: int,
    choose: Sequence[Choose],
    ended: Ended | None = None,
    batch_size: int = 64,
) -> Iterator[tuple[int, int]]:
    """Yield pairs (sample, id): as many continuations of inputs as choose has functions, which grow side by side.

    Sample i is what `generate` yields with choose[i], except that logits differ by rounding: then ids can differ where
    two logits tie within rounding, or where a random number falls on the border between two tokens. A sample also ends
    when ended(its new ids) is true. inputs is computed once. Each step reads the weights once for all samples of a
    batch, which are at most batch_size; the others wait until the batch is done. Raises ValueError as `generate` does.
    """
    ids = gpt2.checked_ids(inputs, params, n_tokens_to_generate)
    prompts = [ids] * len(choose)
    yield from generate_each(prompts, params, n_head, n_tokens_to_generate, choose, ended, batch_size)


def generate_each(
    prompts: Sequence[Sequence[int]],
    params: Params,
    n_head: int,
    n_tokens_to_generate: int,
    choose: Sequence[Choose],
    ended: Ended | None = None,
    batch_size: int = 64,
) -> Iterator[tuple[int, int]]:
    """Yield pairs (i, id): the ids that continue prompts[i], chosen by choose[i], as `generate_batch` does for one.

    All prompts have the same number of ids, because a row of a batch has no positions of its own. Neighbours that are
    equal are computed once. Raises ValueError for prompts of different lengths, too.
    """
    if batch_size < 1:
        raise ValueError(f"batch_size is {batch_size}, but a batch has at least 1 sample")
    different = [gpt2.checked_ids(ids, params, n_tokens_to_generate) for ids, _ in itertools.groupby(prompts)]
    n_rows, n_prompt = min(batch_size, len(prompts)), len(different[0]) if different else 0
    if any(len(ids) != n_prompt for ids in different):
        raise ValueError("the prompts of a batch differ in their numbers of ids")
    if n_rows == 0 or n_tokens_to_generate == 0:
        return
    cache = gpt2.empty_cache(params, n_head, n_prompt + n_tokens_to_generate - 1, (n_rows,))
    known, found = None, read(different, params, n_head)
    for first in range(0, len(prompts), n_rows):
        texts = {i: list(prompts[i]) for i in range(len(prompts))[first : first + n_rows]}
        scores = []
        for row, ids in enumerate(texts.values()):
            if ids != known:
                keys_and_values, logits = next(found)
                known = list(ids)
            cache[:, :, row : row + 1, :, :n_prompt] = keys_and_values
            scores.append(logits)
        yield from grow(
            texts, n_tokens_to_generate, np.concatenate(scores, axis=0), cache, params, n_head, choose, ended
        )


def read(prompts: Sequence[list[int]], params: Params, n_head: int) -> Iterator[tuple[Any, Any]]:
    """Yield keys and values [n_layer, 2, 1, n_head, n_prompt, d_head] and logits [1, n_vocab] for each prompt.

    The prompts have equal lengths. Short ones go through the model side by side.
    """
    n_prompt = len(prompts[0])
    n_together = max(1, N_POSITIONS // n_prompt)
    for first in range(0, len(prompts), n_together):
        some = prompts[first : first + n_together]
        cache = gpt2.empty_cache(params, n_head, n_prompt, (len(some),))
        logits = gpt2.gpt2(some, **params, n_head=n_head, cache=cache, n_logits=1)[:, 0]  # [n_prompts, n_vocab]
        for row in range(len(some)):
            yield cache[:, :, row : row + 1], logits[row : row + 1]


def grow(
    texts: dict[int, list[int]],
    n_new: int,
    logits: Matrix[Any, n_vocab],
    cache: Cache,
    params: Params,
    n_head: int,
    choose: Sequence[Choose],
    ended: Ended | None,
) -> Iterator[tuple[int, int]]:
    """Append up to n_new ids to each text of a batch, and yield pairs (sample, id).

    texts maps each sample to its ids, which are a prompt's at first. The cache has a row for each sample, and holds the
    prompts already. logits, [n_rows, n_vocab], scores the tokens that may follow the prompts.
    """
    rows, n_prompt = list(texts), len(next(iter(texts.values())))  # row r of the batch belongs to the sample rows[r]
    for n_past in range(n_prompt, n_prompt + n_new):  # n_past ids are in the cache
        gpt2.check_finite(logits)
        for row, sample in enumerate(rows):
            texts[sample].append(choose[sample](logits[row], texts[sample]))
            yield sample, texts[sample][-1]
        for row in reversed(range(len(rows))):
            if ended is not None and ended(texts[rows[row]][n_prompt:]):
                moved = rows.pop()
                if row < len(rows):  # the last row takes the place of the one that leaves
                    rows[row], cache[:, :, row] = moved, cache[:, :, len(rows)]
        if not rows or n_past == n_prompt + n_new - 1:
            return
        new = [texts[sample][-1:] for sample in rows]  # [n_rows, 1]
        kv = cache[:, :, : len(rows)]
        logits = gpt2.gpt2(new, **params, n_head=n_head, cache=kv, n_past=n_past, n_logits=1)[:, 0]


def generate_sliding(
    inputs: Iterable[int], params: Params, n_head: int, n_tokens_to_generate: int, choose: Choose
) -> Iterator[int]:
    """Yield ids as `generate` does, but go on beyond the context: where it is full, only its newest half is kept.

    Positions are absolute in GPT-2, so what is kept is computed anew. A prompt that is too long is cut in the same way.
    """
    ids, n_ctx = list(inputs), len(params["wpe"])
    while n_tokens_to_generate > 0:
        if len(ids) > n_ctx:
            ids = ids[-max(n_ctx // 2, 1) :]
        n_new = min(n_tokens_to_generate, n_ctx - len(ids) + 1)
        for id in gpt2.generate(ids, params, n_head, n_new, choose):
            ids.append(id)
            yield id
        n_tokens_to_generate -= n_new
