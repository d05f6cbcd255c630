# /// script
# requires-python = ">=3.10"
# dependencies = ["numpy>=1.26", "regex", "requests", "tqdm"]
# ///
"""GPT-2 in NumPy: the model, built from the bottom up, and a command line that continues a text.

    python gpt2.py "Alan Turing theorized that computers would one day become"

A text is cut into tokens: words or parts of words, each with a number, its id. From the ids of a
text, the model computes a score for each token of its vocabulary, the logit: the higher it is, the
likelier this token comes next. To generate text, choose a token, append its id, and repeat.

Inside the model, each position of the text is a vector of n_embd numbers. It begins as a learned
vector, the embedding of its token. The layers, `transformer_block`, change it one after another:
attention (`mha`) brings in information from earlier positions, and the feed-forward network (`ffn`)
works on each position by itself. Both add their results to the vectors instead of replacing them.

Read this file from top to bottom: each function uses only those above it. The `type:` comments give
shapes. Matrix[n_seq, n_embd] has a row for each of n_seq tokens, and n_embd columns. Heads[n_seq,
d_head] is such a matrix for each attention head: an array [n_head, n_seq, d_head]. A batch axis may
come before these. The parameters have their names in the checkpoint: a linear layer (c_…) is a dict
of weights w and a bias b, a layer norm (ln_…) one of a gain g and a bias b.
Source: Radford et al. 2019, "Language Models are Unsupervised Multitask Learners".
"""

import argparse
import math
import os
import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # for mypy and pyright, which check the shapes in the comments
    from picogpt.typing import shaped_numpy as np
    from picogpt.typing.shapes import *  # noqa: F403
else:
    import numpy as np

# ------------------------------------------------------------------------- the model, bottom up


def gelu(x):
    # type: (Matrix[n_seq, n_hidden]) -> Matrix[n_seq, n_hidden]
    """Gaussian error linear unit: a smooth max(x, 0), in its tanh form (Hendrycks & Gimpel 2016).

    Without it, two linear layers in a row could be replaced by a single one.

    >>> gelu(np.array([-1, 0, 1])).round(4).tolist()
    [-0.1588, 0.0, 0.8412]
    """
    c = math.sqrt(2 / math.pi)  # a Python float: a NumPy scalar would turn float32 into float64
    return 0.5 * x * (1 + np.tanh(x * (c + 0.044715 * c * (x * x))))  # c (x + 0.044715 x³)


def softmax(x):
    # type: (Array) -> Array
    """Turn scores into probabilities: positive numbers that sum to 1 along the last axis."""
    exp_x = np.exp(x - x.max(axis=-1, keepdims=True))  # so exp can't overflow; same result
    return exp_x / exp_x.sum(axis=-1, keepdims=True)


def layer_norm(x, g, b, eps=1e-5):
    # type: (Matrix[n_seq, n_embd], Vector[n_embd], Vector[n_embd], float) -> Matrix[n_seq, n_embd]
    """Give each row mean 0 and variance 1, then scale it by g and shift it by b (Ba et al. 2016).

    So the numbers stay in the same range in every layer. eps avoids a division by 0.
    """
    n_embd = x.shape[-1]
    centred = x - x.sum(axis=-1, keepdims=True) / n_embd  # sum is faster than mean for one row
    variance = (centred * centred).sum(axis=-1, keepdims=True) / n_embd  # [n_seq, 1]
    return centred / np.sqrt(variance + eps) * g + b


def matmul(x, w):
    # type: (Matrix[n_seq, n_in], Matrix[n_in, n_out]) -> Matrix[n_seq, n_out]
    """Compute x @ w, reading w once for all texts of a batch. NumPy's @ reads it for each text."""
    return x @ w if x.ndim == 2 else np.tensordot(x, w, 1)


def linear(x, w, b):
    # type: (Matrix[n_seq, n_in], Matrix[n_in, n_out], Vector[n_out]) -> Matrix[n_seq, n_out]
    y = matmul(x, w)
    y += b  # in place, which saves the time of a second large array
    return y


def ffn(
    x,  # type: Matrix[n_seq, n_embd]
    c_fc,  # type: Linear[n_embd, n_hidden]
    c_proj,  # type: Linear[n_hidden, n_embd]
):
    # type: (...) -> Matrix[n_seq, n_embd]
    """Feed-forward network: widen each position to n_hidden = 4 n_embd numbers, and narrow it."""
    return linear(gelu(linear(x, **c_fc)), **c_proj)  # -> [n_seq, n_hidden] -> [n_seq, n_embd]


def attention(
    q,  # type: Heads[n_seq, d_head]
    k,  # type: Heads[n_keys, d_head]
    v,  # type: Heads[n_keys, d_head]
    mask,  # type: Matrix[n_seq, n_keys] | float
):
    # type: (...) -> Heads[n_seq, d_head]
    """Average the values v for each query in q, weighted by how well their keys k match it.

    The query of a position says what it looks for, the key what it offers, and the value what it
    passes on. A score is the dot product of a query and a key, divided by √d_head: longer vectors
    have larger products, and softmax would choose a single key. The mask is added to the scores: 0
    where a query may look, -inf where it may not (Vaswani et al. 2017, equation 1).
    """
    # scores: [n_head, n_seq, d_head] @ [n_head, d_head, n_keys] -> [n_head, n_seq, n_keys]
    return softmax((q / math.sqrt(q.shape[-1])) @ k.swapaxes(-1, -2) + mask) @ v


def causal_mask(q, k):
    # type: (Heads[n_seq, d_head], Heads[n_keys, d_head]) -> Matrix[n_seq, n_keys]
    """Let each position see itself and those before it: 0 where it may look, -inf elsewhere.

    The queries are those of the last n_seq of the n_keys positions, in every block and step.
    """
    n_seq, n_keys = q.shape[-2], k.shape[-2]
    return np.triu(np.full((n_seq, n_keys), -math.inf, q.dtype), k=n_keys - n_seq + 1)


def causal_attention(
    q,  # type: Heads[n_seq, d_head]
    k,  # type: Heads[n_keys, d_head]
    v,  # type: Heads[n_keys, d_head]
    n_block=96,  # type: int
):
    # type: (...) -> Heads[n_seq, d_head]
    """Let no query see a later key, and save time: a block of n_block queries skips those keys."""
    n_seq, n_past = q.shape[-2], k.shape[-2] - q.shape[-2]  # n_past keys are before the first query
    blocks = []
    for start in range(0, n_seq, n_block):
        rows, seen = slice(start, start + n_block), slice(n_past + start + n_block)
        some_q, some_k, some_v = q[..., rows, :], k[..., seen, :], v[..., seen, :]
        mask = causal_mask(some_q, some_k) if n_seq > 1 else 0.0  # a single query sees every key
        blocks.append(attention(some_q, some_k, some_v, mask))
    return np.concatenate(blocks, axis=-2)  # -> [n_head, n_seq, d_head]


def split_heads(x, n_head):
    # type: (Matrix[n_seq, n_embd], int) -> Heads[n_seq, d_head]
    """Cut each row into n_head parts, one for each head, so that each head has its own matrix."""
    return x.reshape(*x.shape[:-1], n_head, -1).swapaxes(-2, -3)  # via [n_seq, n_head, d_head]


def merge_heads(x):
    # type: (Heads[n_seq, d_head]) -> Matrix[n_seq, n_embd]
    """Undo `split_heads`."""
    return x.swapaxes(-2, -3).reshape(*x.shape[:-3], x.shape[-2], -1)


def mha(
    x,  # type: Matrix[n_seq, n_embd]
    c_attn,  # type: Linear[n_embd, n_qkv]
    c_proj,  # type: Linear[n_embd, n_embd]
    n_head,  # type: int
    cache=None,  # type: KV | None
    n_past=0,  # type: int
):
    # type: (...) -> Matrix[n_seq, n_embd]
    """Multi-head attention: the only place where positions exchange information.

    Queries, keys and values all come from x, in one product with c_attn. c_proj mixes the results
    of the heads. With a cache, the keys and values of the n_past positions before x are read from
    there instead of being computed again.
    """
    qkv = np.split(linear(x, **c_attn), 3, axis=-1)  # -> [n_seq, n_qkv] -> 3 x [n_seq, n_embd]
    q, k, v = (split_heads(part, n_head) for part in qkv)  # -> 3 x [n_head, n_seq, d_head]
    if cache is not None:  # [2, ..., n_head, n_ctx, d_head]
        n_keys = n_past + x.shape[-2]
        cache[0, ..., n_past:n_keys, :], cache[1, ..., n_past:n_keys, :] = k, v
        k, v = cache[..., :n_keys, :]  # -> 2 x [n_head, n_keys, d_head]
    return linear(merge_heads(causal_attention(q, k, v)), **c_proj)  # -> [n_seq, n_embd]


def transformer_block(
    x,  # type: Matrix[n_seq, n_embd]
    mlp,  # type: Mlp
    attn,  # type: Attn
    ln_1,  # type: Norm
    ln_2,  # type: Norm
    n_head,  # type: int
    cache=None,  # type: KV | None
    n_past=0,  # type: int
):
    # type: (...) -> Matrix[n_seq, n_embd]
    """Attention, then the feed-forward network (mlp). Each reads a normalized x and adds to x."""
    x = x + mha(layer_norm(x, **ln_1), **attn, n_head=n_head, cache=cache, n_past=n_past)
    return x + ffn(layer_norm(x, **ln_2), **mlp)


def gpt2(
    inputs,  # type: IdsLike[n_seq]
    wte,  # type: Matrix[n_vocab, n_embd]
    wpe,  # type: Matrix[n_ctx, n_embd]
    blocks,  # type: Sequence[Block]
    ln_f,  # type: Norm
    n_head,  # type: int
    cache=None,  # type: Cache | None
    n_past=0,  # type: int
    n_logits=None,  # type: int | None
):
    # type: (...) -> Matrix[Any, n_vocab]
    """The forward pass, from ids to logits: row i scores the tokens that may follow inputs[:i + 1].

    wte holds a vector for each token; its transpose turns the last layer's output into logits (tied
    weights). wpe holds a vector for each position, because attention does not see positions. With
    a cache (see `empty_cache`), the inputs follow n_past positions whose keys and values are in it.
    n_logits=1 scores only the last position, which skips most of the largest matrix product.
    """
    inputs = np.array(inputs, ndmin=1)  # with an axis, so that wte[inputs] can refuse a text
    n_seq = inputs.shape[-1]
    if n_past + n_seq > len(wpe):
        raise ValueError(f"{n_past + n_seq} positions, but the model has n_ctx = {len(wpe)}")
    x = wte[inputs] + wpe[n_past : n_past + n_seq]  # [n_seq] -> [n_seq, n_embd]
    for block, kv in zip(blocks, [None] * len(blocks) if cache is None else cache):
        x = transformer_block(x, **block, n_head=n_head, cache=kv, n_past=n_past)
    first = 0 if n_logits is None else max(0, n_seq - n_logits)
    return matmul(layer_norm(x[..., first:, :], **ln_f), wte.T)  # -> [n_seq or n_logits, n_vocab]


# ----------------------------------------------------------------------------- choosing a token


def penalize(logits, ids, repetition_penalty):
    # type: (Vector[n_vocab], Sequence[int], float) -> Vector[n_vocab]
    """Lower the logit of each token in ids, once, by a factor (Keskar et al. 2019, section 4.1)."""
    seen = np.asarray(ids, dtype=np.intp)  # type: Ids[n_seq]
    old = np.take_along_axis(logits, seen, axis=-1)
    new = np.where(old > 0, old / repetition_penalty, old * repetition_penalty)
    penalized = logits.copy()
    np.put_along_axis(penalized, seen, new, axis=-1)
    return penalized


def keep_largest(logits, n):
    # type: (Vector[n_vocab], Ids[Any]) -> Vector[n_vocab]
    """Set all but the n largest logits to -inf. Of equal ones, keep the lower ids. n: [..., 1]."""
    smallest = np.take_along_axis(np.sort(logits), -n, axis=-1)  # the n-th largest logit
    larger, tied = logits > smallest, logits == smallest
    n_tied = n - np.count_nonzero(larger, axis=-1, keepdims=True)  # how many of the tied are kept
    return np.where(larger | (tied & (np.cumsum(tied, axis=-1) <= n_tied)), logits, -math.inf)


def keep_top_k(logits, top_k):
    # type: (Vector[n_vocab], int) -> Vector[n_vocab]
    """Set all but the top_k largest logits to -inf. Ties keep the lower id; top_k = 0 keeps all.

    >>> keep_top_k(np.array([1.0, 3.0, 2.0]), top_k=2).tolist()
    [-inf, 3.0, 2.0]
    """
    if not 0 < top_k < logits.shape[-1]:
        return logits
    return keep_largest(logits, np.full((*logits.shape[:-1], 1), top_k))


def keep_top_p(logits, top_p):
    # type: (Vector[n_vocab], float) -> Vector[n_vocab]
    """Keep the fewest likeliest tokens that together reach top_p (Holtzman et al. 2020, 3.1)."""
    if top_p >= 1:
        return logits
    cumulative = np.cumsum(softmax(np.sort(logits)[..., ::-1]), axis=-1)  # likeliest token first
    n_below = np.count_nonzero(cumulative[..., :-1] < top_p, axis=-1, keepdims=True)
    return keep_largest(logits, n_below + 1)


def token_probs(logits, ids, temperature, top_k, top_p, repetition_penalty):
    # type: (Vector[n_vocab], Sequence[int], float, int, float, float) -> Vector[n_vocab]
    """Compute the probabilities, in float64, from which the token after ids is drawn.

    Temperature 0 gives all to the likeliest token. For rows of logits, ids has the same rows.
    """
    if not (temperature >= 0 and top_k >= 0 and 0 <= top_p <= 1 and repetition_penalty >= 0.01):
        raise ValueError(f"out of range: {temperature=}, {top_k=}, {top_p=}, {repetition_penalty=}")
    logits = penalize(logits.astype(np.float64), ids, repetition_penalty)
    logits = logits - logits.max(axis=-1, keepdims=True)  # the largest is 0: no overflow below
    logits = keep_top_k(logits, 1) if temperature == 0 else logits / max(temperature, 1e-99)
    return softmax(keep_top_p(keep_top_k(logits, top_k), top_p))


def greedy(logits, ids):
    # type: (Vector[n_vocab], Sequence[int]) -> int
    """Choose the likeliest id, or the lowest of equal ones. Only `sample` needs ids."""
    return int(np.argmax(logits))


def sample(logits, ids, rng, temperature=1.0, top_k=0, top_p=1.0, repetition_penalty=1.0):
    # type: (Vector[n_vocab], Sequence[int], np.random.Generator, float, int, float, float) -> int
    """Draw the id that follows ids at random. The same state of the generator draws the same id."""
    if (temperature, top_k, top_p, repetition_penalty) == (0, 0, 1, 1):
        return greedy(logits, ids)
    probs = token_probs(logits, ids, temperature, top_k, top_p, repetition_penalty)
    cumulative = np.cumsum(probs, axis=-1)
    drawn = rng.random() * cumulative[-1]  # the last is 1, or what rounding made of it
    return int(np.searchsorted(cumulative, drawn, side="right"))  # the first id that is above


# ----------------------------------------------------------------------------------- generating


def empty_cache(params, n_head, n_ctx, batch=()):
    # type: (Params, int, int, tuple[int, ...]) -> Cache
    """Make room for the keys and values of n_ctx positions, which stay the same as a text grows."""
    wpe, n_layer = params["wpe"], len(params["blocks"])
    return np.empty((n_layer, 2, *batch, n_head, n_ctx, wpe.shape[1] // n_head), wpe.dtype)


def n_shared(a, b):
    # type: (Sequence[int], Sequence[int]) -> int
    """Return the length of the common prefix of two sequences of ids."""
    return next((i for i, (x, y) in enumerate(zip(a, b)) if x != y), min(len(a), len(b)))


def check_finite(logits):
    # type: (Array) -> Array
    """Return the logits. Raises FloatingPointError if one is infinite or not a number (NaN)."""
    if not (math.isfinite(logits.min()) and math.isfinite(logits.max())):
        raise FloatingPointError("the logits are not finite: the weights are damaged or too large")
    return logits


class Context:
    """Up to n_ctx ids of a text, with a cache, so that `logits` computes only what is new.

    The same call continues a text, goes back in it, or starts another with the same beginning.
    """

    def __init__(self, params, n_head, n_ctx=None):
        # type: (Params, int, int | None) -> None
        self.params, self.n_head = params, n_head
        self.n_ctx = len(params["wpe"]) if n_ctx is None else n_ctx
        self.cache = empty_cache(params, n_head, self.n_ctx)
        self.ids = []  # type: list[int]

    def logits(self, ids, n_logits=1):
        # type: (Sequence[int], int) -> Matrix[Any, n_vocab]
        """Score what may follow each of the last n_logits ids. Raises as `check_finite` does."""
        if not 1 <= n_logits <= len(ids) <= self.n_ctx:
            raise ValueError(f"{n_logits} of {len(ids)} ids to score, with room for {self.n_ctx}")
        n_past = n_shared(self.ids, ids[: len(ids) - n_logits])  # the last are computed once more
        self.ids = self.ids[:n_past]  # fits the cache even if Ctrl-C interrupts the next lines
        new, n_head, cache = ids[n_past:], self.n_head, self.cache
        out = gpt2(new, **self.params, n_head=n_head, cache=cache, n_past=n_past, n_logits=n_logits)
        self.ids = list(ids)
        return check_finite(out)


def checked_ids(inputs, params, n_tokens_to_generate):
    # type: (Iterable[int], Params, int) -> list[int]
    """Return the ids of a prompt as a list. Raises ValueError if the model can't continue it."""
    ids, n_vocab, n_ctx = list(inputs), len(params["wte"]), len(params["wpe"])
    n_fit = n_ctx - len(ids) + 1  # the last new token needs no position: it is never an input
    if not ids:
        raise ValueError("the prompt is empty, but the model needs at least 1 token to continue")
    if not 0 <= min(ids) <= max(ids) < n_vocab:
        raise ValueError(f"the ids are {min(ids)} to {max(ids)}, outside 0 to {n_vocab - 1}")
    if not 0 <= n_tokens_to_generate <= n_fit:
        lengths = f"{len(ids)} prompt tokens + {n_tokens_to_generate} to generate do not fit into"
        raise ValueError(f"{lengths} the context of {n_ctx}: 0 to {max(0, n_fit)} new ones fit")
    return ids


def generate(inputs, params, n_head, n_tokens_to_generate, choose=greedy):
    # type: (Iterable[int], Params, int, int, Choose) -> Iterator[int]
    """Yield the ids that continue inputs. choose(logits, ids so far) picks each of them."""
    ids = checked_ids(inputs, params, n_tokens_to_generate)
    context = Context(params, n_head, len(ids) + n_tokens_to_generate - 1)
    for _ in range(n_tokens_to_generate):
        ids.append(choose(context.logits(ids)[-1], ids))  # [1, n_vocab] -> [n_vocab]
        yield ids[-1]


# ----------------------------------------------------------------------------- the command line


def stop_before(pieces, stop):
    # type: (Iterable[str], str | None) -> Iterator[str]
    """Pass on pieces of text until `stop` comes. What may be its beginning waits for more."""
    held = ""
    for piece in pieces:
        held += piece
        if stop and stop in held:
            break
        n_held = max(n for n in range(len(stop)) if held.endswith(stop[:n])) if stop else 0
        yield held[: len(held) - n_held]
        held = held[len(held) - n_held :]
    yield held.split(stop)[0] if stop else held


def parse_args(argv=None):
    # type: (list[str] | None) -> Namespace
    """Read the options; --help lists them."""
    more = "python -m picogpt generate has more options: --n_samples, --end_of_text, …"
    example = 'For example: python gpt2.py "ROMEO:" --model_size tiny --temperature 0.8'
    parser = argparse.ArgumentParser(usage=argparse.SUPPRESS, description=example, epilog=more)
    add = parser.add_argument
    add("prompt", help='a text (after -- if it begins with -), - for standard input, or "" for a new document')
    add("-n", "--n_tokens_to_generate", type=int, default=40, metavar="N", help="tokens to add (default: 40)")
    add("-m", "--model", "--model_size", dest="model_size", default="124M", help="a size (124M to 1558M) or a folder")
    add("--models_dir", default="models", help="the folder with the models (default: models)")
    add("--temperature", type=float, default=0.0, help="0: the likeliest token (default), above 0: draw one")
    add("--top_k", type=int, default=0, help="draw from the K likeliest tokens only")
    add("--top_p", type=float, default=1.0, help="draw from the likeliest tokens that reach this probability")
    add("--repetition_penalty", type=float, default=1.0, help="above 1: repeat less")
    add("--seed", type=int, help="the same seed gives the same text")
    add("--stop", metavar="TEXT", help="stop where this text would begin")
    args, unknown = parser.parse_known_args(argv)
    if unknown:
        parser.error(f"{unknown[0]!r} is unknown here: put a text of several words into quotes; {more}")
    if args.seed is not None and args.seed < 0:
        parser.error(f"argument --seed: {args.seed} is below 0")
    return args


def main(argv=None):
    # type: (list[str] | None) -> None
    """Go from a prompt to its ids, to the ids that follow, and to their text, printed as it comes."""
    from encoder import END_OF_TEXT
    from utils import load_encoder_hparams_and_params

    args = parse_args(argv)
    np.seterr(all="ignore")  # `check_finite` finds what overflows
    prompt = args.prompt.removeprefix("\ufeff")  # without a byte order mark
    if prompt == "-":
        prompt = sys.stdin.buffer.read().decode("utf-8-sig").replace("\r\n", "\n").removesuffix("\n")
    encoder, hparams, params = load_encoder_hparams_and_params(args.model_size, args.models_dir)
    ids = encoder.encode(prompt) if args.prompt else encoder.encode(END_OF_TEXT, {END_OF_TEXT})
    n_head, n_new, rng = hparams["n_head"], args.n_tokens_to_generate, np.random.default_rng(args.seed)
    settings = args.temperature, args.top_k, args.top_p, args.repetition_penalty
    new_ids = generate(ids, params, n_head, n_new, lambda logits, ids: sample(logits, ids, rng, *settings))
    try:
        for text in stop_before(encoder.decode_stream(new_ids), args.stop):
            print(text, end="", flush=True)
    except FloatingPointError as error:
        raise ValueError(f"{args.model_size}: {error}") from None
    print()


if __name__ == "__main__" and "__file__" in globals():  # not in a cell of a notebook
    try:
        main()
    except (KeyboardInterrupt, BrokenPipeError):  # Ctrl-C, or a reader such as `head` that has left
        os._exit(130)
    except (ImportError, OSError, ValueError) as error:
        sys.exit(f"gpt2.py: {error}")
