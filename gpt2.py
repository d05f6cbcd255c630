# /// script
# requires-python = ">=3.10"
# dependencies = ["numpy>=1.26", "regex", "requests", "tqdm"]
# ///
"""GPT-2 in NumPy: the model, built from the bottom up, and a command line that continues a text.

    python gpt2.py "Alan Turing theorized that computers would one day become" --n_tokens_to_generate 40

A text is cut into tokens: words or parts of words, each with a number, its id. From the ids of a text, the model scores
every token of its vocabulary as the next one. To generate text, choose a token by its score, add its id, and repeat.

Inside the model, each position of the text is a vector of n_embd numbers, which begins as the embedding of its token.
The layers, `transformer_block`, change these vectors one after another: attention (`mha`) brings in information from
earlier positions, and the feed-forward network (`ffn`) works on each position by itself. Both add their results to the
vectors instead of replacing them, so that no layer loses what earlier layers have found.

Read this file from top to bottom. Each function uses only those above it, from `gelu` to `gpt2`, which turns token
ids into logits, the scores of the next token. Choosing a token comes next, then generating text, then the command line.

The comment under each `def` gives the shapes. Matrix[n_seq, n_embd] is an array of n_seq rows and n_embd columns: one
row for each token of the input. Heads[n_seq, d_head] has one more axis in front, which it does not name: it is an array
[n_head, n_seq, d_head], one matrix for each attention head. Type checkers read these comments; the names are explained
in picogpt/typing/shapes.py. Every function of the model also takes further leading axes, such as a batch axis, and
every result has the dtype of the parameters.

The parameters have their names in OpenAI's checkpoint: c_attn, c_fc and c_proj are linear layers with a weight w and a
bias b, ln_1, ln_2 and ln_f are layer norms with a gain g and a bias b, and mlp is the feed-forward network.

The model is described in Radford et al. 2019, "Language Models are Unsupervised Multitask Learners", section 2.3, which
builds on Radford et al. 2018 (GPT) and Vaswani et al. 2017 ("Attention Is All You Need").
"""

import _signal as signal  # type: ignore[import-not-found]  # the part of `signal` that imports nothing
import sys

if sys.version_info < (3, 10):  # noqa: UP036
    sys.exit("gpt2.py needs Python 3.10 or newer, but this is Python " + sys.version.split()[0])
if __name__ == "__main__" and "__file__" in globals() and signal.getsignal(signal.SIGINT) is signal.default_int_handler:
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # before `run` begins, Ctrl-C ends the program silently

import functools
import itertools
import math
import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from picogpt.typing import shaped_numpy as np  # NumPy's functions, with the shapes of what they take and return
    from picogpt.typing.shapes import *  # noqa: F403  (the names in the comments under `def`)
else:
    import numpy as np

# -------------------------------------------------------------------------------------------- the model, bottom up


def gelu(x):
    # type: (Matrix[n_seq, n_hidden]) -> Matrix[n_seq, n_hidden]
    """Gaussian error linear unit: a smooth max(x, 0), in the tanh form of GPT-2 (Hendrycks & Gimpel 2016).

    Between two linear layers, it keeps them from being equal to a single linear layer.

    >>> gelu(np.array([-1, 0, 1])).round(4).tolist()
    [-0.1588, 0.0, 0.8412]
    """
    c = math.sqrt(2 / math.pi)  # a Python float, because a NumPy scalar would turn float32 into float64
    return 0.5 * x * (1 + np.tanh(x * (c + 0.044715 * c * (x * x))))  # tanh(c (x + 0.044715 x³)), faster than x**3


def softmax(x):
    # type: (Array) -> Array
    """Turn scores into probabilities: positive numbers that sum to 1 along the last axis.

    >>> softmax(np.array([0, math.log(3)])).round(4).tolist()
    [0.25, 0.75]
    """
    exp_x = np.exp(x - x.max(axis=-1, keepdims=True))  # subtracting keeps the result, and exp can't overflow
    return exp_x / exp_x.sum(axis=-1, keepdims=True)


def layer_norm(x, g, b, eps=1e-5):
    # type: (Matrix[n_seq, n_embd], Vector[n_embd], Vector[n_embd], float) -> Matrix[n_seq, n_embd]
    """Give each row mean 0 and variance 1, then scale it by g and shift it by b (Ba et al. 2016).

    So the numbers stay in the same range in every layer. eps keeps a constant row from being divided by 0.
    """
    n_embd = x.shape[-1]
    centred = x - x.sum(axis=-1, keepdims=True) / n_embd  # sum is faster than mean for one row
    variance = (centred * centred).sum(axis=-1, keepdims=True) / n_embd  # [n_seq, 1]
    return centred / np.sqrt(variance + eps) * g + b


def matmul(x, w):
    # type: (Matrix[n_seq, n_in], Matrix[n_in, n_out]) -> Matrix[n_seq, n_out]
    """Compute x @ w, reading w once for all texts of a batch. NumPy's @ would read it again for each text."""
    return x @ w if x.ndim == 2 else np.tensordot(x, w, 1)


def linear(x, w, b):
    # type: (Matrix[n_seq, n_in], Matrix[n_in, n_out], Vector[n_out]) -> Matrix[n_seq, n_out]
    return matmul(x, w) + b


def ffn(x, c_fc, c_proj):
    # type: (Matrix[n_seq, n_embd], Linear[n_embd, n_hidden], Linear[n_hidden, n_embd]) -> Matrix[n_seq, n_embd]
    """Feed-forward network: widen each position to n_hidden = 4 n_embd numbers, and narrow it to n_embd again."""
    return linear(gelu(linear(x, **c_fc)), **c_proj)  # [n_seq, n_embd] -> [n_seq, n_hidden] -> [n_seq, n_embd]


def attention(q, k, v, mask):
    # type: (Heads[n_seq, d_head], Heads[n_keys, d_head], Heads[n_keys, d_head], Matrix[n_seq, n_keys] | float) -> Heads[n_seq, d_head]
    """Average the values v for each query in q, weighted by how well the keys k match it (Vaswani et al. 2017, eq. 1).

    The query of a position says what it looks for, the key what it offers, and the value what it passes on. A score is
    the dot product of a query and a key, divided by √d_head, since long vectors have large products and softmax would
    choose a single key. The mask is added to the scores: 0 where a query may look, -inf where it may not.
    """
    # q @ k^T: [n_head, n_seq, d_head] @ [n_head, d_head, n_keys] -> [n_head, n_seq, n_keys]
    # probs @ v: [n_head, n_seq, n_keys] @ [n_head, n_keys, d_head] -> [n_head, n_seq, d_head]
    return softmax((q / math.sqrt(q.shape[-1])) @ k.swapaxes(-1, -2) + mask) @ v


def causal_mask(q, k):
    # type: (Heads[n_seq, d_head], Heads[n_keys, d_head]) -> Matrix[n_seq, n_keys]
    """Let each position see itself and those before it, but not the tokens to predict: 0 up to the diagonal, then -inf.

    The queries are the last n_seq of the n_keys positions, so the same formula serves a prompt and the steps after it.
    """
    n_seq, n_keys = q.shape[-2], k.shape[-2]
    return np.triu(np.full((n_seq, n_keys), -math.inf, q.dtype), k=n_keys - n_seq + 1)  # triu's k is a diagonal


def causal_attention(q, k, v):
    # type: (Heads[n_seq, d_head], Heads[n_keys, d_head], Heads[n_keys, d_head]) -> Heads[n_seq, d_head]
    return attention(q, k, v, causal_mask(q, k) if q.shape[-2] > 1 else 0.0)  # a single query sees every key


def blockwise_attention(q, k, v, n_block=96):
    # type: (Heads[n_seq, d_head], Heads[n_keys, d_head], Heads[n_keys, d_head], int) -> Heads[n_seq, d_head]
    """Causal attention with less work: each block of n_block queries skips the keys after its last query."""
    n_seq, n_past = q.shape[-2], k.shape[-2] - q.shape[-2]  # n_past keys belong to positions before the first query
    blocks = []
    for start in range(0, n_seq, n_block):
        rows, seen = slice(start, start + n_block), slice(n_past + start + n_block)
        blocks.append(causal_attention(q[..., rows, :], k[..., seen, :], v[..., seen, :]))
    return np.concatenate(blocks, axis=-2)  # back to [n_head, n_seq, d_head]


def split_heads(x, n_head):
    # type: (Matrix[n_seq, n_embd], int) -> Heads[n_seq, d_head]
    """Cut each row into n_head parts, one for each attention head, so that each head works with its own matrix."""
    return x.reshape(*x.shape[:-1], n_head, -1).swapaxes(-2, -3)  # [n_seq, n_head, d_head] -> [n_head, n_seq, d_head]


def merge_heads(x):
    # type: (Heads[n_seq, d_head]) -> Matrix[n_seq, n_embd]
    """Undo `split_heads`."""
    return x.swapaxes(-2, -3).reshape(*x.shape[:-3], x.shape[-2], -1)  # -> [n_seq, n_head, d_head] -> [n_seq, n_embd]


def mha(x, c_attn, c_proj, n_head, cache=None, n_past=0):
    # type: (Matrix[n_seq, n_embd], Linear[n_embd, n_qkv], Linear[n_embd, n_embd], int, KV | None, int) -> Matrix[n_seq, n_embd]
    """Multi-head attention: the only place where positions exchange information. c_proj mixes the results of the heads.

    Queries, keys and values all come from x, in one product with c_attn. With a cache, the keys and values of the
    n_past positions before x are read from there instead of being computed again.
    """
    qkv = np.split(linear(x, **c_attn), 3, axis=-1)  # [n_seq, n_embd] -> [n_seq, 3 n_embd] -> 3 x [n_seq, n_embd]
    q, k, v = (split_heads(part, n_head) for part in qkv)  # -> 3 x [n_head, n_seq, d_head]
    if cache is not None:
        n_keys = n_past + x.shape[-2]
        cache[..., n_past:n_keys, :] = k, v  # cache: [2, ..., n_head, n_ctx, d_head]
        k, v = cache[..., :n_keys, :]  # -> 2 x [n_head, n_keys, d_head]
    return linear(merge_heads(blockwise_attention(q, k, v)), **c_proj)  # -> [n_seq, n_embd]


def transformer_block(x, mlp, attn, ln_1, ln_2, n_head, cache=None, n_past=0):
    # type: (Matrix[n_seq, n_embd], Mlp, Attn, Norm, Norm, int, KV | None, int) -> Matrix[n_seq, n_embd]
    """Attention, then the feed-forward network (mlp). Each reads a normalized copy of x and adds its result to x."""
    x = x + mha(layer_norm(x, **ln_1), **attn, n_head=n_head, cache=cache, n_past=n_past)
    return x + ffn(layer_norm(x, **ln_2), **mlp)


def gpt2(inputs, wte, wpe, blocks, ln_f, n_head, cache=None, n_past=0, n_logits=None):
    # type: (IdsLike[n_seq], Matrix[n_vocab, n_embd], Matrix[n_ctx, n_embd], Sequence[Block], Norm, int, Cache | None, int, int | None) -> Matrix[Any, n_vocab]
    """The forward pass, from token ids to logits: row i scores the tokens that may follow inputs[: i + 1].

    wte holds a vector for each token, its embedding; the transpose also turns the last layer's output into logits (tied
    weights). wpe holds an embedding for each position, because attention compares vectors only, not positions. With a
    cache (see `empty_cache`), the inputs follow n_past positions whose keys and values are in it, and add their own.
    n_logits=1 scores only the last position. This skips most of the largest product. Raises ValueError above n_ctx.
    """
    inputs = np.asarray(inputs)
    n_seq = inputs.shape[-1]
    if n_past + n_seq > len(wpe):
        raise ValueError(f"{n_past + n_seq} positions, but the model was trained on n_ctx = {len(wpe)}")
    x = wte[inputs] + wpe[n_past : n_past + n_seq]  # [n_seq] -> [n_seq, n_embd]
    for layer, block in enumerate(blocks):
        x = transformer_block(x, **block, n_head=n_head, cache=None if cache is None else cache[layer], n_past=n_past)
    if n_logits is not None:
        x = x[..., max(0, n_seq - n_logits) :, :]  # -> [n_logits, n_embd]
    return matmul(layer_norm(x, **ln_f), wte.T)  # -> [n_seq or n_logits, n_vocab]


# ------------------------------------------------------------------------------------------------ choosing a token


def penalize(logits, ids, repetition_penalty):
    # type: (Vector[n_vocab], Sequence[int], float) -> Vector[n_vocab]
    """Make the tokens in ids less likely, by the same factor however often they occur (Keskar et al. 2019, 4.1)."""
    seen = np.asarray(ids, dtype=np.intp)  # type: Ids[n_seq]
    old = np.take_along_axis(logits, seen, axis=-1)
    new = np.where(old > 0, old / repetition_penalty, old * repetition_penalty)  # dividing raises a negative logit
    penalized = logits.copy()
    np.put_along_axis(penalized, seen, new, axis=-1)
    return penalized


def keep_largest(logits, n):
    # type: (Vector[n_vocab], Ids[Any]) -> Vector[n_vocab]
    """Set all but the n largest logits to -inf. Ties keep the lower id. n, [..., 1], has a number for each row."""
    smallest = np.take_along_axis(np.sort(logits), -n, axis=-1)  # sort is ascending, so index -n is the n-th largest
    larger, tied = logits > smallest, logits == smallest
    n_tied = n - np.count_nonzero(larger, axis=-1, keepdims=True)  # how many logits equal to `smallest` are kept
    return np.where(larger | (tied & (np.cumsum(tied, axis=-1) <= n_tied)), logits, -math.inf)


def keep_top_k(logits, top_k):
    # type: (Vector[n_vocab], int) -> Vector[n_vocab]
    """Set all but the top_k largest logits to -inf. Ties keep the lower id, and top_k = 0 keeps all.

    >>> keep_top_k(np.array([1.0, 3.0, 2.0]), top_k=2).tolist()
    [-inf, 3.0, 2.0]
    """
    if not 0 < top_k < logits.shape[-1]:
        return logits
    return keep_largest(logits, np.full((*logits.shape[:-1], 1), top_k))


def keep_top_p(logits, top_p):
    # type: (Vector[n_vocab], float) -> Vector[n_vocab]
    """Keep the fewest likeliest tokens that together reach probability top_p, and set the other logits to -inf.

    top_p = 0 keeps one token, and top_p = 1 keeps all. This is nucleus sampling (Holtzman et al. 2020, 3.1).
    """
    if top_p >= 1:
        return logits
    cumulative = np.cumsum(softmax(np.sort(logits)[..., ::-1]), axis=-1)  # from the likeliest token on
    n_below = np.count_nonzero(cumulative[..., :-1] < top_p, axis=-1, keepdims=True)
    return keep_largest(logits, n_below + 1)


def token_probs(logits, ids, temperature, top_k, top_p, repetition_penalty):
    # type: (Vector[n_vocab], Sequence[int], float, int, float, float) -> Vector[n_vocab]
    """Compute the probabilities, in float64, from which the token after ids is drawn.

    Temperature 0 gives probability 1 to the token with the largest logit. Ties go to the lower id. Like the functions
    above, this takes many rows of logits at once: leading axes, which ids must have, too.
    """
    logits = penalize(logits.astype(np.float64), ids, repetition_penalty)
    logits = logits - logits.max(axis=-1, keepdims=True)  # a tiny temperature then overflows to -inf, never to inf
    if temperature == 0:
        return np.where(np.arange(logits.shape[-1]) == np.argmax(logits, axis=-1, keepdims=True), 1.0, 0.0)
    with np.errstate(over="ignore"):
        logits = logits / temperature
    return softmax(keep_top_p(keep_top_k(logits, top_k), top_p))


def sample(logits, ids, rng, temperature=1.0, top_k=0, top_p=1.0, repetition_penalty=1.0):
    # type: (Vector[n_vocab], Sequence[int], np.random.Generator, float, int, float, float) -> int
    """Draw the id that follows ids at random. The same state of the generator rng draws the same id."""
    cumulative = np.cumsum(token_probs(logits, ids, temperature, top_k, top_p, repetition_penalty), axis=-1)
    drawn = rng.random() * cumulative[-1]  # from 0 to 1, or to what rounding made of 1
    return int(np.searchsorted(cumulative, drawn, side="right"))  # the first id whose cumulative probability is above


def greedy(logits, ids):
    # type: (Vector[n_vocab], Sequence[int]) -> int
    """Choose the likeliest id. Ties go to the lower id. ids is unused, but every `choose` function gets it."""
    return int(np.argmax(logits))


# ------------------------------------------------------------------------------------------------------ generating


def check_finite(logits):
    # type: (Array) -> Array
    """Return the logits. Raise FloatingPointError if one is not finite: no token can be chosen by NaN."""
    if not np.isfinite([logits.min(), logits.max()]).all():
        raise FloatingPointError("the logits are not finite: the weights are damaged, or too large for their dtype")
    return logits


def empty_cache(params, n_head, n_ctx, batch=()):
    # type: (Params, int, int, tuple[int, ...]) -> Cache
    """Allocate a cache for the keys and values of n_ctx positions: [n_layer, 2, *batch, n_head, n_ctx, d_head].

    No position sees later ones. The keys and values of a text therefore stay the same when it grows, and can be kept.
    """
    wpe = params["wpe"]
    return np.empty((len(params["blocks"]), 2, *batch, n_head, n_ctx, wpe.shape[1] // n_head), wpe.dtype)


def n_shared(a, b):
    # type: (Sequence[int], Sequence[int]) -> int
    """Return the length of the common prefix of two sequences of ids.

    >>> n_shared([1, 2, 3], [1, 2, 4, 5])
    2
    """
    return next((i for i, (x, y) in enumerate(zip(a, b)) if x != y), min(len(a), len(b)))


class Context:
    """Token ids and a cache of their keys and values, so that no position is computed twice.

    `logits` takes all ids of a text, finds the prefix that is in the cache, and computes only the rest. The same call
    therefore continues a text, goes back in it, or starts another text with the same beginning.
    """

    def __init__(self, params, n_head, n_ctx=None):
        # type: (Params, int, int | None) -> None
        """Make an empty context with room for n_ctx ids (default: as many as the model has positions)."""
        self.params, self.n_head = params, n_head
        self.n_ctx = len(params["wpe"]) if n_ctx is None else n_ctx
        self.cache = empty_cache(params, n_head, self.n_ctx)
        self.ids = []  # type: list[int]

    def logits(self, ids, n_logits=1):
        # type: (Sequence[int], int) -> Matrix[Any, n_vocab]
        """Score the tokens that may follow each of the last n_logits ids, and keep the ids. -> [n_logits, n_vocab]

        Raises ValueError if there are fewer than n_logits ids, or more than the context has room for.
        """
        if not 1 <= n_logits <= len(ids) <= self.n_ctx:
            raise ValueError(
                f"{len(ids)} ids for {n_logits} rows of logits: "
                f"each row needs an id, and the context has room for {self.n_ctx} ids"
            )
        ids = list(ids)
        n_past = n_shared(self.ids, ids[: len(ids) - n_logits])  # the last n_logits are computed, known or not
        self.ids = ids[:n_past]  # if Ctrl-C interrupts the next line, self.ids still fits the cache
        new = gpt2(ids[n_past:], **self.params, n_head=self.n_head, cache=self.cache, n_past=n_past, n_logits=n_logits)
        self.ids = ids
        return new


def check_lengths(n_prompt, n_tokens_to_generate, n_ctx):
    # type: (int, int, int) -> None
    """Raise ValueError unless the new tokens fit into n_ctx. The last of them needs no room: it is never an input."""
    n_fit = n_ctx - n_prompt + 1
    if n_prompt == 0:
        raise ValueError("the prompt is empty, but the model needs at least 1 token to continue")
    if n_tokens_to_generate < 0:
        raise ValueError(f"{n_tokens_to_generate} tokens to generate are fewer than 0")
    if n_tokens_to_generate > n_fit:
        room = f"only {n_fit} fit" if n_fit > 0 else f"the prompt alone is {n_prompt - n_ctx} too long"
        raise ValueError(
            f"{n_prompt} prompt tokens + {n_tokens_to_generate} to generate exceed the context of {n_ctx}: {room}"
        )


def checked_ids(inputs, params, n_tokens_to_generate):
    # type: (Iterable[int], Params, int) -> list[int]
    """Return the ids of a prompt as a new list. Raises ValueError if the model can't continue it by so many tokens."""
    ids, n_vocab = list(inputs), len(params["wte"])
    check_lengths(len(ids), n_tokens_to_generate, len(params["wpe"]))
    if not 0 <= min(ids) <= max(ids) < n_vocab:
        raise ValueError(f"the ids are {min(ids)} to {max(ids)}, but the vocabulary has 0 to {n_vocab - 1}")
    return ids


def generate(inputs, params, n_head, n_tokens_to_generate, choose=None):
    # type: (Iterable[int], Params, int, int, Choose | None) -> Iterator[int]
    """Yield the ids that continue inputs, one by one. inputs itself does not change.

    choose(logits, ids so far) picks each id; the default is `greedy`. When the first id is asked for, this raises
    ValueError if prompt and new tokens exceed n_ctx, or if an id is not in the vocabulary.
    """
    ids = checked_ids(inputs, params, n_tokens_to_generate)
    context = Context(params, n_head, len(ids) + n_tokens_to_generate - 1)
    for _ in range(n_tokens_to_generate):
        logits = context.logits(ids)[-1]  # [1, n_vocab] -> [n_vocab]
        ids.append((choose or greedy)(logits, ids))
        yield ids[-1]


def generate_batch(inputs, params, n_head, n_tokens_to_generate, choose, ended=None, batch_size=64):
    # type: (Iterable[int], Params, int, int, Sequence[Choose], Ended | None, int) -> Iterator[tuple[int, int]]
    """Yield pairs (sample, id): as many continuations of inputs as choose has functions, which grow side by side.

    Sample i is what `generate` yields with choose[i], except that logits differ by rounding: then ids can differ where
    two logits tie within rounding, or where a random number falls on the border between two tokens. A sample also ends
    when ended(its new ids) is true. inputs is computed once. Each step reads the weights once for all samples of a
    batch, which are at most batch_size; the others wait until the batch is done. Raises ValueError as `generate` does.
    """
    if batch_size < 1:
        raise ValueError(f"batch_size is {batch_size}, but a batch has at least 1 sample")
    ids = checked_ids(inputs, params, n_tokens_to_generate)
    n_rows, n_prompt = min(batch_size, len(choose)), len(ids)
    if n_rows == 0 or n_tokens_to_generate == 0:
        return
    cache = empty_cache(params, n_head, n_prompt + n_tokens_to_generate - 1, (n_rows,))
    logits = gpt2(ids, **params, n_head=n_head, cache=cache[:, :, 0], n_logits=1)  # [1, n_vocab]
    cache[:, :, 1:, :, :n_prompt] = cache[:, :, :1, :, :n_prompt]  # every row of a batch begins with the prompt
    for first in range(0, len(choose), n_rows):
        texts = {sample: list(ids) for sample in range(len(choose))[first : first + n_rows]}
        yield from grow(texts, n_tokens_to_generate, logits, cache, params, n_head, choose, ended)


def grow(texts, n_new, logits, cache, params, n_head, choose, ended):
    # type: (dict[int, list[int]], int, Matrix[Any, n_vocab], Cache, Params, int, Sequence[Choose], Ended | None) -> Iterator[tuple[int, int]]
    """Append up to n_new ids to each text of a batch, and yield pairs (sample, id).

    texts maps each sample to its ids, which are the prompt's at first. The cache has a row for each sample, and holds
    the prompt already. logits, [1, n_vocab], scores the tokens that may follow the prompt.
    """
    rows, n_prompt = list(texts), len(next(iter(texts.values())))  # row r of the batch belongs to the sample rows[r]
    logits = np.repeat(logits, len(rows), axis=0)  # [1, n_vocab] -> [n_rows, n_vocab]
    for n_past in range(n_prompt, n_prompt + n_new):  # n_past ids are in the cache
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
        logits = gpt2(new, **params, n_head=n_head, cache=cache[:, :, : len(rows)], n_past=n_past, n_logits=1)[:, 0]


# ------------------------------------------------------------------------------------------------ the command line


EXAMPLES = """examples:
  python gpt2.py "Alan Turing theorized that computers would one day become" \\
    --n_tokens_to_generate 40
  python gpt2.py "Once upon a time" --temperature 0.8 --top_p 0.95 \\
    --seed 1 --stop "The end"
  cat story.txt | python gpt2.py - --model_size 355M > continuation.txt
  python gpt2.py "" --temperature 1 --end_of_text --n_tokens_to_generate 1024

many samples, and a file for each of them (here with the program csplit):
  python gpt2.py "Once upon a time" --n_samples 16 --temperature 0.9 \\
    > samples.txt
  csplit --elide-empty-files samples.txt '/^--- [0-9]* of 16$/' '{*}'"""


def parse_args(argv=None):
    # type: (list[str] | None) -> Namespace
    """Read the options; --help lists them."""
    from utils import Parser, number

    purpose = "Continue a prompt with GPT-2. The text goes to stdout, everything else to stderr."
    parser = Parser(prog="python gpt2.py", description=purpose, epilog=EXAMPLES)
    whole, add, model = number(0, kind=int), parser.add_argument, "124M, 355M, 774M, 1558M, or a folder's name or path"
    several = number(1, 10**5, kind=int)
    add("prompt", help='the text to continue, - to read it from standard input, or "" to begin a new document')
    add("--n_tokens_to_generate", type=whole, default=40, metavar="N", help="tokens to add (default: 40)")
    add("--model_size", default="124M", metavar="NAME", help=f"{model} (default: 124M)")
    add("--models_dir", default="models", metavar="FOLDER", help="the folder with the models (default: models)")
    add("--temperature", type=number(0), default=0.0, metavar="T", help="0: likeliest token (default); above 0: sample")
    add("--top_k", type=whole, default=0, metavar="K", help="sample from the K likeliest; 0: from all (default)")
    add("--top_p", type=number(0, 1), default=1.0, metavar="P", help="sample from the likeliest that sum to P or more")
    add("--repetition_penalty", type=number(0.01, 100), default=1.0, metavar="R", help="above 1: fewer repetitions")
    add("--seed", type=whole, default=None, metavar="S", help="the same seed gives the same text")
    add("--stop", default=None, metavar="TEXT", help="stop where this text would begin")
    add("--end_of_text", action="store_true", help="stop where the model ends the document, at <|endoftext|>")
    add("--n_samples", type=several, default=1, metavar="N", help='continue N times; "--- 3 of N" begins sample 3')
    add("--batch_size", type=several, default=64, metavar="N", help="make at most N samples at once (default: 64)")
    args = parser.parse_args(argv)
    if args.stop == "":
        parser.error("argument --stop: the text is empty")
    return args


def stop_before(pieces, stop):
    # type: (Iterable[str], str | None) -> Iterator[str]
    """Pass on pieces of text until `stop` comes. An end that may be the beginning of `stop` is held back.

    >>> list(stop_before(["one t", "wo th", "ree"], stop="three"))
    ['one ', 'two ', '']
    """
    held = ""
    for piece in pieces:
        held += piece
        if stop is not None and stop in held:
            yield held[: held.index(stop)]
            return
        n_held = 0 if stop is None else max(n for n in range(len(stop)) if held.endswith(stop[:n]))
        yield held[: len(held) - n_held]
        held = held[len(held) - n_held :]
    yield held


def first_ids(encoder, prompt):
    # type: (Encoder, str) -> list[int]
    """Return the ids of a prompt. An empty one begins a document, as OpenAI's samples without a prompt did."""
    from encoder import END_OF_TEXT
    from utils import UsageError

    if prompt:
        return encoder.encode(prompt)
    if END_OF_TEXT not in encoder.encoder:
        raise UsageError(f"the prompt is empty, and this model has no token {END_OF_TEXT} to begin a document with")
    return [encoder.encoder[END_OF_TEXT]]


def last_id(encoder, args):
    # type: (Encoder, Namespace) -> int | None
    """Return the id that ends a text: <|endoftext|> if --end_of_text or --stop asks for it, or None."""
    from encoder import END_OF_TEXT
    from utils import UsageError

    if args.end_of_text and END_OF_TEXT not in encoder.encoder:
        raise UsageError(f"--end_of_text: this model has no token {END_OF_TEXT}")
    return encoder.encoder.get(END_OF_TEXT) if args.end_of_text or args.stop == END_OF_TEXT else None


def text_pieces(new_ids, encoder, args):
    # type: (Iterable[int], Encoder, Namespace) -> Iterator[str]
    """Yield the text of new ids piece by piece, up to the end that --stop or --end_of_text ask for."""
    from utils import shown

    ids = itertools.takewhile(lambda id: id != args.last_id, new_ids)
    return map(shown, stop_before(encoder.decode_stream(ids), args.stop))


def warn(args, prompt):
    # type: (Namespace, str) -> None
    """Warn on stderr about inputs that are allowed but probably a mistake."""
    from utils import log

    if not prompt:
        log("the prompt is empty: the text begins a new document, after <|endoftext|>")
    if prompt.endswith(" "):
        log("warning: the prompt ends in a space, which makes the text worse: GPT-2's tokens begin with a space")
    defaults = {"top_k": 0, "top_p": 1.0, "seed": None, "n_samples": 1}
    unused = [name for name, default in defaults.items() if getattr(args, name) != default]
    if args.temperature == 0 and unused:
        effect = "gives the same text each time" if unused[0] == "n_samples" else "has no effect"
        log(f"warning: --{unused[0]} {effect} without a --temperature above 0")


def log_speed(n_prompt, times):
    # type: (int, list[float]) -> None
    """Print the speed to stderr. times holds the clock at the start and after each new token, in seconds."""
    if len(times) > 1:
        rate = f", then {(len(times) - 2) / (times[-1] - times[1]):.1f} tokens/s" if len(times) > 2 else ""
        print(f"[{n_prompt} prompt token{'s' * (n_prompt != 1)} in {times[1] - times[0]:.2f} s{rate}]", file=sys.stderr)


def choosers(args):
    # type: (Namespace) -> list[Choose]
    """Return the functions that pick the ids of each sample: `greedy`, or `sample` with the command line's options.

    Each sample has a generator of its own, so that it does not depend on how many others there are.
    """
    if args.temperature == 0 and args.repetition_penalty == 1:
        return [greedy] * args.n_samples
    settings = {name: getattr(args, name) for name in ("temperature", "top_k", "top_p", "repetition_penalty")}
    seed = np.random.SeedSequence(args.seed)
    seeds = [seed, *seed.spawn(args.n_samples - 1)]
    return [functools.partial(sample, rng=np.random.default_rng(seed), **settings) for seed in seeds]


def timed(ids, times):
    # type: (Iterable[int], list[float]) -> Iterator[int]
    """Pass on the ids, and append the time to times when the text of each has been printed."""
    for id in ids:
        yield id
        times.append(time.perf_counter())  # whoever prints the text comes back for the next id


def print_text(ids, encoder, params, n_head, args):
    # type: (list[int], Encoder, Params, int, Namespace) -> None
    """Generate one continuation of ids, and print its text as it comes."""
    new_ids = generate(ids, params, n_head, args.n_tokens_to_generate, choosers(args)[0])
    times = [time.perf_counter()]
    for text in text_pieces(timed(new_ids, times), encoder, args):
        print(text, end="", flush=True)
    print(flush=True)
    log_speed(len(ids), times)


def is_complete(new_ids, encoder, args):
    # type: (Sequence[int], Encoder, Namespace) -> bool
    """Return whether a sample has all its tokens, or ends with <|endoftext|> or the text of --stop."""
    if len(new_ids) in (0, args.n_tokens_to_generate):
        return bool(len(new_ids) == args.n_tokens_to_generate)
    stop = (args.stop or "").encode("utf-8", "surrogatepass")
    tail = new_ids[-len(stop) :] if stop else []  # each token has at least one byte, so stop has no more tokens
    return bool(new_ids[-1] == args.last_id or (stop and stop in b"".join(map(encoder.token_bytes, tail))))


def in_order(pairs, n_samples, ended):
    # type: (Iterable[tuple[int, int]], int, Ended) -> Iterator[list[int]]
    """Collect the pairs (sample, id) of `generate_batch`. Yield a sample's ids when it and those before it have ended.

    >>> list(in_order([(0, 5), (1, 6), (0, 7), (1, 8)], 2, lambda ids: len(ids) == 2))
    [[5, 7], [6, 8]]
    """
    samples = [[] for _ in range(n_samples)]  # type: list[list[int]]
    n_yielded = 0
    for sample, id in pairs:
        samples[sample].append(id)
        while n_yielded < n_samples and ended(samples[n_yielded]):
            yield samples[n_yielded]
            samples[n_yielded] = []  # free its memory
            n_yielded += 1
    yield from samples[n_yielded:]


def check_memory(n_rows, params, n_head, n_ctx):
    # type: (int, Params, int, int) -> int
    """Return how many bytes a batch takes. Raises UsageError if less memory is free."""
    from utils import UsageError, free_memory

    free, n_vocab = free_memory(), len(params["wte"])
    row = empty_cache(params, n_head, n_ctx).nbytes  # np.empty only reserves addresses, and takes no memory yet
    row += 2 * n_vocab * params["wte"].dtype.itemsize  # the logits of two steps exist at the same time
    if n_rows * row > free:
        advice = f"--batch_size {free // row} fits" if free >= row else "not even one sample fits"
        raise UsageError(
            f"{n_rows} samples at once need {n_rows * row / 1e6:,.0f} MB for keys, values and logits, "
            f"but only {free / 1e6:,.0f} MB of memory are free: {advice}"
        )
    return n_rows * row


def print_samples(ids, encoder, params, n_head, args):
    # type: (list[int], Encoder, Params, int, Namespace) -> None
    """Generate several continuations of ids side by side. Print each whole, in order, after a line with its number."""
    from tqdm import tqdm

    from utils import log

    n_new, n_rows = args.n_tokens_to_generate, min(args.n_samples, args.batch_size)
    size = check_memory(n_rows, params, n_head, len(ids) + n_new - 1)
    log(f"[{args.n_samples} samples, {n_rows} at once: {size / 1e6:,.0f} MB of keys, values and logits]")
    start, n_tokens, ended = time.perf_counter(), 0, functools.partial(is_complete, encoder=encoder, args=args)
    pairs = generate_batch(ids, params, n_head, n_new, choosers(args), ended, n_rows)
    bar = tqdm(pairs, "sampling", args.n_samples * n_new, unit="token", leave=False, disable=None)
    for number, new_ids in enumerate(in_order(bar, args.n_samples, ended), 1):
        tqdm.write(f"--- {number} of {args.n_samples}\n" + "".join(text_pieces(new_ids, encoder, args)))
        sys.stdout.flush()
        n_tokens += len(new_ids)
    log(f"[{n_tokens / (time.perf_counter() - start):.1f} tokens/s, all samples together]")


def main(argv=None):
    # type: (list[str] | None) -> int
    """Turn a prompt into ids, generate the ids that follow, and print their text."""
    from utils import UsageError, check_size, load_encoder_hparams_and_params, read_prompt

    args = parse_args(argv)
    prompt = read_prompt(args.prompt)
    if not prompt and args.prompt == "-":
        raise UsageError('standard input is empty (to begin a new document, give "" as the prompt)')
    encoder, hparams, params = load_encoder_hparams_and_params(args.model_size, args.models_dir)
    check_size(encoder, prompt, hparams["n_ctx"])
    ids, args.last_id = first_ids(encoder, prompt), last_id(encoder, args)
    try:
        check_lengths(len(ids), args.n_tokens_to_generate, hparams["n_ctx"])
    except ValueError as error:
        raise UsageError(str(error)) from None
    warn(args, prompt)
    (print_text if args.n_samples == 1 else print_samples)(ids, encoder, params, hparams["n_head"], args)
    return 0


if __name__ == "__main__" and "__file__" in globals():  # not when the file is pasted into a notebook
    from utils import run

    sys.exit(run(main))
