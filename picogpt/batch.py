"""Generate many continuations of one prompt side by side, through gpt2.py's forward pass.

for sample, id in generate_batch(ids, params, n_head, 40, [greedy, greedy]): ...
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import gpt2

if TYPE_CHECKING:
    from picogpt.typing import shaped_numpy as np
    from picogpt.typing.shapes import Cache, Choose, Ended, Matrix, Params, n_vocab
else:
    import numpy as np


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
    if batch_size < 1:
        raise ValueError(f"batch_size is {batch_size}, but a batch has at least 1 sample")
    ids = gpt2.checked_ids(inputs, params, n_tokens_to_generate)
    n_rows, n_prompt = min(batch_size, len(choose)), len(ids)
    if n_rows == 0 or n_tokens_to_generate == 0:
        return
    cache = gpt2.empty_cache(params, n_head, n_prompt + n_tokens_to_generate - 1, (n_rows,))
    logits = gpt2.gpt2(ids, **params, n_head=n_head, cache=cache[:, :, 0], n_logits=1)  # [1, n_vocab]
    cache[:, :, 1:, :, :n_prompt] = cache[:, :, :1, :, :n_prompt]  # every row of a batch begins with the prompt
    for first in range(0, len(choose), n_rows):
        texts = {sample: list(ids) for sample in range(len(choose))[first : first + n_rows]}
        yield from grow(texts, n_tokens_to_generate, logits, cache, params, n_head, choose, ended)


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

    texts maps each sample to its ids, which are the prompt's at first. The cache has a row for each sample, and holds
    the prompt already. logits, [1, n_vocab], scores the tokens that may follow the prompt.
    """
    rows, n_prompt = list(texts), len(next(iter(texts.values())))  # row r of the batch belongs to the sample rows[r]
    logits = np.repeat(logits, len(rows), axis=0)  # [1, n_vocab] -> [n_rows, n_vocab]
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
