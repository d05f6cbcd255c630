"""Score token ids: the log-probability that a model gives each of them, given the ids before it.

Nothing here is a forward pass: each window of ids goes through `gpt2.gpt2`, several short ones at once, and a long one
in pieces that share a key/value cache, so that the logits of a whole window never exist at the same time.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, cast

import numpy as np

import gpt2
from picogpt.command_line import UsageError
from picogpt.notebook import ids_array, load
from picogpt.parallel import on_cores

if TYPE_CHECKING:
    from picogpt.notebook import AnyModel
    from picogpt.typing.shapes import Params

Array = np.ndarray[Any, np.dtype[Any]]

N_ROWS = 256  # positions in one call of gpt2. In 124M, their logits take 51 MB for each core, and 512 are 3 % faster
N_SHARED = 128  # ids in common from which on windows share work. Shorter ones are faster side by side, in one batch
N_BLOCK = 16  # rows of logits that are turned into log-probabilities at once: they fit into a processor's cache


class Window(NamedTuple):
    """Ids, of which the last n_targets are scored. The others are context only.

    The model reads all but the last id, so a model with n_ctx positions takes at most n_ctx + 1 of them. The ids in
    `excluded` do not count in the rank of the first target, as if the model could not choose them there.
    """

    ids: Array  # [n_seq + 1]
    n_targets: int
    excluded: Sequence[int] = ()


class Scores(NamedTuple):
    """The scores of some tokens, in their order.

    log_probs: natural logarithms of their probabilities, in float64.
    ranks: 1 for a token that the model finds the likeliest, 2 for the second. Ties go to the lower id, as in `greedy`.
    """

    log_probs: Array  # [n_targets]
    ranks: Array  # [n_targets]


def windows(ids: Array, n_ctx: int, stride: int | None = None, max_context: int | None = None) -> Iterator[Window]:
    """Cut a text into windows that together score every id but the first exactly once.

    A window spans max_context ids (default: n_ctx), those that it scores included. The next one begins `stride` ids
    later and scores the ids that are new. So with a stride of 1, each id is scored given the max_context - 1 ids before
    it, and a larger stride takes fewer windows, but leaves some ids with less context. With stride = max_context, which
    is the default, the windows are disjoint, and each also reads the one id before it.

    >>> [(window.ids.tolist(), window.n_targets) for window in windows(np.arange(6), n_ctx=4, stride=2)]
    [([0, 1, 2, 3], 3), ([2, 3, 4, 5], 2)]
    >>> [(window.ids.tolist(), window.n_targets) for window in windows(np.arange(6), n_ctx=3)]
    [([0, 1, 2, 3], 3), ([3, 4, 5], 2)]

    Raises UsageError, a ValueError, as `check_sizes` does.
    """
    span = n_ctx if max_context is None else max_context
    stride = span if stride is None else stride
    check_sizes(stride, span, n_ctx)
    n_inputs = max(span - 1, stride)
    n_scored = 1  # the first id is never scored
    for begin in itertools.count(0, stride):
        if n_scored >= len(ids):
            return
        window = ids[begin : begin + n_inputs + 1]
        yield Window(window, begin + len(window) - n_scored)
        n_scored = begin + len(window)


def check_sizes(stride: int, max_context: int, n_ctx: int) -> None:
    """Raise UsageError unless 1 <= stride <= max_context and 2 <= max_context <= n_ctx.

    A window of one id would hold nothing but what it scores. Only a model with n_ctx = 1 has such windows.
    """
    if not (1 <= stride <= max_context <= n_ctx and min(2, n_ctx) <= max_context):
        raise UsageError(
            f"max_context is {max_context} and stride is {stride}, but 1 <= stride <= max_context and "
            f"2 <= max_context <= n_ctx = {n_ctx} must hold"
        )


def rolling_windows(ids: Array, n_ctx: int) -> Iterator[Window]:
    """Yield lm-evaluation-harness's windows: each scores the next n_ctx ids, and the last is filled up with context.

    Source: get_rolling_token_windows with context_len=1, and make_disjoint_window, in lm_eval/utils.py.

    >>> [(window.ids.tolist(), window.n_targets) for window in rolling_windows(np.arange(7), n_ctx=4)]
    [([0, 1, 2, 3, 4], 4), ([2, 3, 4, 5, 6], 2)]
    """
    for begin in range(1, len(ids), n_ctx):
        end = min(begin + n_ctx, len(ids))
        yield Window(ids[max(0, end - n_ctx - 1) : end], end - begin)


def target_scores(logits: Array, targets: Array, excluded: Sequence[int] = ()) -> Scores:
    """Return the log-probabilities and ranks of one target for each row of logits. [n_rows, n_vocab] -> 2 x [n_rows]

    In the first row, the ids in `excluded` do not count in the rank. The logits are overwritten.
    """
    log_probs, ranks = np.empty(len(targets)), np.empty(len(targets), np.int64)
    for start in range(0, len(targets), N_BLOCK):
        rows, ids = logits[start : start + N_BLOCK], targets[start : start + N_BLOCK, None]
        target = np.take_along_axis(rows, ids, axis=-1)
        ahead = rows.shape[-1] - np.count_nonzero(rows <= target, axis=-1)  # so NaN is never the likeliest
        for row in np.flatnonzero(np.count_nonzero(rows == target, axis=-1) > 1):  # equal logits: a rare case
            ahead[row] += np.count_nonzero(rows[row, : ids[row, 0]] == target[row, 0])
        if start == 0 and len(excluded):
            others, id, logit = np.unique(excluded), ids[0, 0], target[0, 0]
            ahead[0] -= np.count_nonzero((rows[0, others] > logit) | (rows[0, others] == logit) & (others < id))
        largest = rows.max(axis=-1, keepdims=True)
        rows -= largest
        sums = np.exp(rows, out=rows).sum(axis=-1, keepdims=True)
        block = slice(start, start + len(ids))
        log_probs[block] = (target.astype(np.float64) - largest - np.log(sums.astype(np.float64)))[:, 0]
        ranks[block] = ahead + 1
    return Scores(log_probs, ranks)


def score_windows(
    windows: Sequence[Window], params: Params, n_head: int, progress: Callable[[int], Any] = lambda n: None
) -> list[Scores]:
    """Return the scores of each window's targets, in the order of the windows.

    Windows that follow each other and have a long beginning in common, such as the answers to one question, share the
    work for it. `progress` is called with the number of targets whenever some are scored. Raises ValueError for a
    window with fewer than n_targets + 1 ids or more than n_ctx + 1, and for an id that is not in the vocabulary;
    FloatingPointError for logits that are not finite.
    """
    check(windows, len(params["wpe"]), len(params["wte"]))
    groups = list(families(windows))
    alone = [group[0] for group in groups if len(group) == 1]
    work: list[tuple[Callable[..., Iterator[Scores]], list[int]]]
    work = [(score_family, group) for group in groups if len(group) > 1]
    work += [(score_batch, batch) for batch in batches(windows, alone)]
    scores: dict[int, Scores] = {}

    @np.errstate(over="ignore", invalid="ignore")  # `check_finite` finds what comes of it
    def score_some(score_group: Callable[..., Iterator[Scores]], group: list[int]) -> None:
        for i, scored in zip(group, score_group([windows[i] for i in group], params, n_head)):
            scores[i] = scored
            progress(windows[i].n_targets)

    for _ in on_cores(score_some, work, pass_bytes(params, n_head)):
        pass
    return [scores[i] for i in range(len(windows))]


def pass_bytes(params: Params, n_head: int) -> int:
    """Return about how much memory it takes to score a window: keys and values, and the logits of N_ROWS positions."""
    wte = np.asarray(params["wte"])
    keys_and_values = gpt2.empty_cache(params, n_head, len(params["wpe"])).nbytes  # reserves addresses, and no memory
    return int(keys_and_values + 2 * N_ROWS * len(wte) * wte.itemsize)  # the layers take less than the logits


def check(windows: Sequence[Window], n_ctx: int, n_vocab: int) -> None:
    """Raise ValueError unless the model can score these windows."""
    for ids, n_targets, _ in windows:
        if not 1 <= n_targets < len(ids) <= n_ctx + 1:
            raise ValueError(f"a window of {len(ids)} ids with {n_targets} to score, but n_ctx is {n_ctx}")
        if not 0 <= ids.min() <= ids.max() < n_vocab:
            raise ValueError(f"the ids are {ids.min()} to {ids.max()}, but the vocabulary has 0 to {n_vocab - 1}")


def families(windows: Sequence[Window], n_shared: int = N_SHARED) -> Iterator[list[int]]:
    """Yield the indices of all windows, grouped so that neighbours with a long beginning in common stay together."""
    family: list[int] = []
    for i, window in enumerate(windows):
        if family and not share_beginning(windows[family[-1]], window, n_shared):
            yield family
            family = []
        family.append(i)
    if family:
        yield family


def share_beginning(a: Window, b: Window, n_shared: int) -> bool:
    """Return whether two windows have n_shared ids in common before their targets, and at least half of their ids."""
    if max(a.n_targets, b.n_targets) > N_ROWS:  # `score_family` computes all logits at once
        return False
    contexts = [window.ids[: len(window.ids) - window.n_targets].tolist() for window in (a, b)]
    return gpt2.n_shared(*contexts) >= max(n_shared, len(a.ids) / 2, len(b.ids) / 2)


def score_family(family: Sequence[Window], params: Params, n_head: int) -> Iterator[Scores]:
    """Yield the scores of windows with the same beginning, which goes through the model only once."""
    context = gpt2.Context(params, n_head, max(len(window.ids) for window in family))
    for ids, n_targets, excluded in family:
        logits = context.logits(ids[:-1].tolist(), n_targets)
        yield target_scores(np.asarray(logits), ids[len(ids) - n_targets :], excluded)


def batches(windows: Sequence[Window], indices: Sequence[int], n_rows: int = N_ROWS) -> Iterator[list[int]]:
    """Yield lists of indices of windows to score together: of similar length, n_rows positions with padding."""
    batch: list[int] = []
    for i in sorted(indices, key=lambda i: -len(windows[i].ids)):
        if batch and (len(batch) + 1) * (len(windows[batch[0]].ids) - 1) > n_rows:
            yield batch
            batch = []
        batch.append(i)
    if batch:
        yield batch


def score_batch(batch: Sequence[Window], params: Params, n_head: int, n_rows: int = N_ROWS) -> Iterator[Scores]:
    """Yield the scores of windows that go through the model side by side. Short ones are padded on the right.

    No position sees the padding, because attention is causal. A long window goes through the model in pieces of n_rows.
    """
    n_seq = max(len(window.ids) for window in batch) - 1
    inputs = np.zeros((len(batch), n_seq), np.intp)
    for padded, window in zip(inputs, batch):
        padded[: len(window.ids) - 1] = window.ids[:-1]
    first = min(len(window.ids) - 1 - window.n_targets for window in batch)  # no logits are needed before this position
    cache = gpt2.empty_cache(params, n_head, n_seq, (len(batch),)) if n_seq > n_rows else None
    scores: list[list[Scores]] = [[] for _ in batch]
    for start in range(0, n_seq, n_rows):
        piece = inputs[:, start : start + n_rows]
        stop = start + piece.shape[1]
        n_logits = max(0, stop - max(start, first))
        logits = gpt2.gpt2(piece, **params, n_head=n_head, cache=cache, n_past=start, n_logits=n_logits)
        if n_logits:
            gpt2.check_finite(logits)
        for row, (ids, n_targets, excluded) in enumerate(batch):
            begin, end = max(stop - n_logits, len(ids) - 1 - n_targets), min(stop, len(ids) - 1)
            if begin < end:
                rows = slice(begin - stop + n_logits, end - stop + n_logits)
                of_first = excluded if not scores[row] else ()
                scores[row].append(target_scores(np.asarray(logits)[row, rows], ids[begin + 1 : end + 1], of_first))
        del logits  # before the next piece's are made
    yield from map(joined, scores)


def joined(parts: Sequence[Scores]) -> Scores:
    """Return the scores of several pieces or windows as one."""
    return Scores(*(np.concatenate(part) for part in zip(*parts)))


def score(
    text: str | Iterable[int],
    model: AnyModel | Params = "124M",
    n_head: int | None = None,
    stride: int | None = None,
    max_context: int | None = None,
    models_dir: str | Path = "models",
) -> Array:
    """Return the natural log-probability of every token but the first, given those before it. -> [n_seq - 1]

    `text` is a text or its ids. The model is what `picogpt.load` takes; with n_head, it is the parameters alone, and
    `text` ids. A text that is longer than the model's n_ctx is scored in `windows`, whose stride and length can be
    chosen. To score the first token of a text, too, put the id of <|endoftext|> before its ids. Raises ValueError for
    an id that is not in the vocabulary or not a whole number, and for a stride or length that is out of range;
    TypeError for what is no text or no model.

    >>> score("To be, or not to be", "tiny").round(2).tolist()
    [-3.28, -5.4, -4.74, -4.0, -3.22, -2.04]
    """
    if n_head is not None and (isinstance(text, str) or not isinstance(n_head, (int, np.integer))):
        raise TypeError("n_head belongs to ids and parameters; a model in memory is (encoder, hparams, params)")
    if n_head is None:
        loaded = load(cast("AnyModel", model), models_dir=models_dir)
        text, params, n_head = loaded.ids(text), loaded.params, loaded.n_head
    else:
        params = cast("Params", model)
    parts = list(windows(ids_array(text), len(params["wpe"]), stride, max_context))
    return np.concatenate([np.empty(0), *(scored.log_probs for scored in score_windows(parts, params, n_head))])
