"""Check every part of the model and the tokenizer against other people's implementations of the same thing.

    python -m picogpt compare

One line of the table is one part against one library at one dtype, on made-up numbers or, where a model is named behind
the part, on that model's weights and on what flows through it. A case's difference is measured in three ways:
absolutely; relatively, to the largest number of the result; and in units in the last place (ULPs): eps times the size
of what a number was made of, so that 1e6 - 1e6 + 1 is not blamed for what rounding does to it. The last one is what
the tolerance limits. It is derived, part by part, from the number of roundings on the way, with u = eps / 2 for each
of them on both sides. The bounds on sums are Higham's ("Accuracy and Stability of Numerical Algorithms", 2002, ch. 3
and 4): n roundings in any order give at most n u (1 + O(u)) times the sum of the absolute values. In float64 the
relative difference must be within 1e-12, too.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib.util
import math
import sys
from collections.abc import Callable, Iterator
from functools import cache, partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

import gpt2
from encoder import BYTE_TO_CHAR, END_OF_TEXT, Encoder
from picogpt.checkpoints.writing import made_up_merges
from picogpt.compare.references import OTHERS, TOKENIZERS
from picogpt.trace import trace
from utils import Parser, ensure_downloaded, expected_shapes, load_encoder_hparams_and_params, nest

Array = np.ndarray[Any, np.dtype[Any]]
Params = Any
Args = tuple[Any, ...]
Source = Callable[[str], Iterator[Args]]  # the arguments of a part at a dtype, case by case
DTYPES = ("float32", "float64")
RELATIVE = 1e-12  # the limit in float64, whatever rounding may explain
SMALL = {"n_vocab": 101, "n_ctx": 140, "n_embd": 24, "n_head": 4, "n_layer": 3}  # n_ctx is more than one N_BLOCK
ONES = {"n_vocab": 7, "n_ctx": 5, "n_embd": 2, "n_head": 1, "n_layer": 1}  # dimensions of 1 that squeeze would eat


class Case(NamedTuple):
    """Arguments for both sides, the size of what each number of the result is made of, and the tolerance in ULPs.

    Gradual underflow is optional (TensorFlow's threads do without): a result may be off by as many of the smallest
    normal numbers as the tolerance, one for each rounding; where it is one function of one number, by a single one.
    """

    args: Args
    size: Any
    ulps: float
    alone: bool = False


class Row(NamedTuple):
    """A line of the table; ULPs and tolerance are those of the case nearest to its limit."""

    part: str
    against: str
    dtype: str
    cases: int
    absolute: float
    relative: float
    ulps: float
    tolerance: float
    verdict: str


# ------------------------------------------------------------------------------------------------- made-up numbers


def inputs(shape: tuple[int, ...], dtype: str, large: float = 1e15) -> Iterator[Array]:
    """Random, large, tiny, denormal and constant numbers, and the random ones in the shape's first row alone."""
    rng = np.random.default_rng(0)
    info = np.finfo(dtype)
    x = rng.standard_normal(shape)
    yield x.astype(dtype)
    yield (x * large).astype(dtype)
    yield (x * float(info.smallest_normal) * 1e3).astype(dtype)
    yield (rng.uniform(-1, 1, shape) * float(info.smallest_normal)).astype(dtype)
    yield np.full(shape, 0.1, dtype)
    yield np.zeros(shape, dtype)
    if len(shape) > 1:
        yield x[..., :1, :].astype(dtype)


def weights(hparams: dict[str, int], dtype: str, scale: float = 0.3, constant: bool = False) -> Params:
    """Random parameters, biases and gains too, that matter as much as a trained model's; or all the same number."""
    rng = np.random.default_rng(1)
    shapes = expected_shapes(hparams).items()
    tensors = {name: np.ones(shape) if constant else rng.standard_normal(shape) for name, shape in shapes}
    return nest({name: (tensor * scale).astype(dtype) for name, tensor in tensors.items()}, hparams["n_layer"])


def changed(change: Callable[[Array], Array], tree: Any) -> Any:
    """Arguments in which every array of floating point numbers is another one."""
    if isinstance(tree, dict):
        return {key: changed(change, value) for key, value in tree.items()}
    if isinstance(tree, list | tuple):
        return [changed(change, value) for value in tree]
    return change(tree) if isinstance(tree, np.ndarray) and tree.dtype.kind == "f" else tree


def as_dtype(tree: Any, dtype: str) -> Any:
    """Parameters in another dtype; what has it already is not copied."""
    return changed(lambda x: x.astype(dtype, copy=False), tree)


def wide(*arrays: Array) -> list[Array]:
    """The absolute values in float64: the sizes must not overflow."""
    return [np.abs(array.astype(np.float64)) for array in arrays]


# ------------------------------------------------------------------------------ the parts: their tolerance, and cases


def gelu_case(x: Array) -> Case:
    """0.5 x (1 + tanh z): 1 + tanh z may cancel, so errors count against |x|.

    z has up to 7 roundings and |z tanh'(z)| is at most 0.45: 3.2 u. tanh itself: libraries promise 4 ULPs, 8 u. The
    sum, up to 2, adds 2 u. Of these 13.2 u the half, and 1 u for a product that is up to |x|: 7.6 u on both sides.
    """
    return Case((x,), np.abs(x), 8, alone=True)


def gelu_args(dtype: str) -> Iterator[Args]:
    edges = np.array([-1e4, -10, -5.1, -3, -1, -0.0, 0.0, 1e-4, 1, 3, 5.1, 10, 1e4], dtype)
    for x in (*inputs((7, 33), dtype), *inputs((1, 1), dtype), edges, np.linspace(-6, 6, 999).astype(dtype)):
        yield (x,)


def softmax_case(x: Array) -> Case:
    """The exponential (4 ULPs: 8 u) above and below the bar, n - 1 additions, 1 division, for both sides.

    An exponent's rounding, u |x - max|, becomes a relative error, of the sum as well. -inf is a probability of 0.
    """
    with np.errstate(over="ignore"):
        distance = (x.max(-1, keepdims=True) - x).astype(np.float64)
    exp = np.exp(-distance)
    probs = exp / exp.sum(-1, keepdims=True)
    distance = np.where(exp > 0, distance, 0)
    size = probs * (1 + distance + (probs * distance).sum(-1, keepdims=True))
    return Case((x,), size, x.shape[-1] + 16, alone=True)


def softmax_args(dtype: str) -> Iterator[Args]:
    for shape in ((7, 33), (2, 3, 1), (1, 1)):
        for x in inputs(shape, dtype):
            yield (x,)


def layer_norm_case(x: Array, g: Array, b: Array) -> Case:
    """With r = 1 / sqrt(var + eps): the mean's error is n u mean|x|, r times which arrives in the result.

    The variance has n + 4 roundings, halved by the root, and 5 more are on the way to the result: 0.5 n + 7 of u
    |x - mean| r |g|. Their sum on both sides is within the larger number times (|x - mean| + mean|x|) r |g| + |b|.
    """
    x64, n = x.astype(np.float64), x.shape[-1]
    r = 1 / np.sqrt(x64.var(-1, keepdims=True) + 1e-5)
    around = np.abs(x64 - x64.mean(-1, keepdims=True)) + np.abs(x64).mean(-1, keepdims=True)
    return Case((x, g, b), around * r * wide(g)[0] + wide(b)[0], max(n, 0.5 * n + 7))


def layer_norm_args(dtype: str) -> Iterator[Args]:
    rng = np.random.default_rng(1)
    for shape in ((7, 33), (2, 3, 48), (1, 1)):
        g, b = (rng.standard_normal(shape[-1:]).astype(dtype) for _ in range(2))
        for x in inputs(shape, dtype):
            yield x, g, b
        x = 1000 + next(inputs(shape, dtype))  # a mean that is much larger than the deviation
        yield x, g, b


def linear_case(x: Array, w: Array, b: Array) -> Case:
    """An inner product of n terms and b has n + 1 roundings of terms that add up to |x| |w| + |b| at most."""
    ax, aw, ab = wide(x, w, b)
    return Case((x, w, b), ax @ aw + ab, len(w) + 1)


def linear_args(dtype: str) -> Iterator[Args]:
    rng = np.random.default_rng(1)
    for n_seq, n_in, n_out in ((7, 33, 33), (5, 48, 20), (1, 1, 1), (3, 1, 4)):
        w, b = (rng.standard_normal(shape).astype(dtype) for shape in ((n_in, n_out), (n_out,)))
        for x in inputs((n_seq, n_in), dtype):
            yield x, w, b
            yield x, w, np.zeros_like(b)  # beside which a tiny x is not lost


def ffn_case(x: Array, c_fc: Params, c_proj: Params) -> Case:
    """linear's n_embd + 1 pass through gelu, whose slope is at most 1.13, then gelu's 8 and the sum's 4 n_embd + 1.

    All of them count against what they are sums of: (|x| |w| + |b|) |w'| + |b'|.
    """
    ax, w, b, w2, b2 = wide(x, c_fc["w"], c_fc["b"], c_proj["w"], c_proj["b"])
    n_embd, n_inner = w.shape
    return Case((x, c_fc, c_proj), (ax @ w + b) @ w2 + b2, 1.13 * (n_embd + 1) + 8 + n_inner + 1)


def ffn_args(dtype: str) -> Iterator[Args]:
    for hparams in (SMALL, ONES):
        mlp = weights(hparams, dtype)["blocks"][0]["mlp"]
        for x in inputs((7, hparams["n_embd"]), dtype):
            yield x, mlp["c_fc"], mlp["c_proj"]


def attention_case(q: Array, k: Array, v: Array, mask: Array | None) -> Case:
    """A score has d_head + 2 roundings, above and below the softmax's bar; then its own n_k + 16, and n_k of the sum.

    The result is an average of values: its size is the largest |v|. What the scores' rounding is multiplied with
    inside the exponential is the largest |q| |k| / sqrt(d_head).
    """
    aq, ak, av = wide(q, k, v)
    n_k, d_head = k.shape[-2:]
    sharpness = 1 + (aq @ np.swapaxes(ak, -1, -2)).max(initial=0) / math.sqrt(d_head)
    return Case((q, k, v, mask), av.max(-2, keepdims=True) * sharpness, 2 * (d_head + 2) + 2 * n_k + 16)


def attention_args(dtype: str) -> Iterator[Args]:
    for n_head, n_q, n_k, d_head in ((3, 6, 6, 8), (2, 4, 9, 5), (1, 1, 7, 4), (1, 1, 1, 1)):
        for q in inputs((n_head, n_q, d_head), dtype, large=5):
            k, v = np.random.default_rng(2).standard_normal((2, n_head, n_k, d_head)).astype(dtype)
            yield q, k, v, causal(q, k)
            yield q, k, v, None


def causal(q: Array, k: Array) -> Array:
    """True where a query may look; it goes to the other side, ours in causal_attention makes its own."""
    n_q, n_k = q.shape[-2], k.shape[-2]
    return np.tri(n_q, n_k, n_k - n_q, dtype=bool)


def causal_args(dtype: str) -> Iterator[Args]:
    """More queries than N_BLOCK, too: blocks and whole must be the same."""
    for n_q, n_k in ((6, 6), (4, 9), (1, 7), (130, 130), (120, 140)):
        q, k, v = (np.random.default_rng(n).standard_normal((2, n, 8)).astype(dtype) for n in (n_q, n_k, n_k + 1))
        yield q, k, v[:, :n_k], causal(q, k)


@contextlib.contextmanager
def moving_means(step: float, rng: np.random.Generator) -> Iterator[None]:
    """The rounding of a layer norm's mean shifts a whole row at once, as no change of single numbers does."""
    norm: Any = gpt2.layer_norm

    def moved(x: Array, g: Array, b: Array, eps: float = 1e-5) -> Any:
        r = 1 / np.sqrt(x.var(-1, keepdims=True) + eps)
        shift = rng.standard_normal((*x.shape[:-1], 1)) * np.abs(x).mean(-1, keepdims=True)
        return norm(x, g, b, eps) + step * shift * r * g

    gpt2.layer_norm = moved  # type: ignore[assignment]
    try:
        yield
    finally:
        gpt2.layer_norm = norm


def response(function: Callable[..., Any], args: Any) -> Array:
    """How far each row of a result moves, per relative change of the numbers that go in, at random, each its own way.

    Computed in float64 with changes of 2^-30: small enough to be a derivative, large enough not to be rounding.
    """
    step, rng = 2.0**-30, np.random.default_rng(6)
    args = as_dtype(list(args), "float64")
    with np.errstate(over="ignore", under="ignore"):
        still, sizes = function(*args), []
        for _ in range(2):
            moved = changed(lambda x: x * (1 + step * rng.standard_normal(x.shape)), args)
            with moving_means(step, rng):
                sizes.append(np.abs(function(*moved) - still) / step)
    size: Array = np.max([np.abs(still), *sizes], axis=(0, -1))[..., None]
    return size


def chain_ulps(*lengths: int) -> float:
    """Tolerance of a chain of functions, counted against `response`, where worst cases multiplied would explode.

    Roundings are as good as independent (Higham & Mary 2020, "Sharper Probabilistic Backward Error Analysis for Basic
    Linear Algebra Kernels with Random Data"). Of n terms of mean zero and deviation d, the k-th partial sum is within
    4 sqrt(k) d, but for once in thousands, and its rounding within u of that; all n roundings add up to less than
    4 u sqrt(sum of (4 sqrt(k) d)^2) = 16 u d n / sqrt(2). Moving the terms by a relative h at random moves their sum by
    h d sqrt(n). So rounding is as large as a move by h = 11.4 sqrt(n) u, in every link, and reaches the result as that
    does; n is the longest inner product. 32 u are added for softmax, gelu and norms, as above. All on both sides.
    """
    return 11.4 * math.sqrt(max(lengths)) + 32


def mha_case(x: Array, attn: Params, n_head: int) -> Case:
    return Case((x, attn, n_head), response(our_mha, (x, attn, n_head)), chain_ulps(*x.shape))


def mha_args(dtype: str) -> Iterator[Args]:
    for hparams in (SMALL, ONES):
        for x in inputs((5, hparams["n_embd"]), dtype, large=10):
            yield x, weights(hparams, dtype)["blocks"][0]["attn"], hparams["n_head"]


def block_case(x: Array, block: Params, n_head: int) -> Case:
    return Case((x, block, n_head), response(our_block, (x, block, n_head)), chain_ulps(len(x), 4 * x.shape[1]))


def block_args(dtype: str) -> Iterator[Args]:
    for hparams in (SMALL, ONES):
        for x in inputs((5, hparams["n_embd"]), dtype, large=1e6):
            yield x, weights(hparams, dtype)["blocks"][0], hparams["n_head"]


def gpt2_case(ids: Array, params: Params, n_head: int) -> Case:
    size = response(our_gpt2, (ids, params, n_head))
    return Case((ids, params, n_head), size, chain_ulps(len(ids), 4 * params["wte"].shape[1]))


def gpt2_args(dtype: str) -> Iterator[Args]:
    """Small models with weights as large as trained ones', with large embeddings, tiny, denormal, constant weights.

    Where the embeddings are constant too, a layer norm divides nothing but rounding by sqrt(eps): what is left of that
    is within its bound, but not within a relative 1e-12. So these are float32 only.
    """
    random, large, constant = weights(SMALL, dtype), weights(SMALL, dtype), weights(SMALL, dtype, constant=True)
    embeddings = {name: random[name] for name in ("wte", "wpe")}
    large |= {name: array * 1e4 for name, array in embeddings.items()}
    tiny, denormal = (weights(SMALL, dtype, scale) for scale in (1e-3, 0.1 * float(np.finfo(dtype).smallest_normal)))
    found = [random, large, tiny, denormal, constant | embeddings, *([constant] if dtype == "float32" else [])]
    for params, hparams in [*((params, SMALL) for params in found), (weights(ONES, dtype), ONES)]:
        for n in (1, 2, hparams["n_ctx"]):
            yield some_ids(hparams["n_vocab"], n), params, hparams["n_head"]
        yield np.full(5, 3), params, hparams["n_head"]


def some_ids(n_vocab: int, n: int) -> Array:
    return np.random.default_rng(3).integers(0, n_vocab, n)


def cached_case(ids: Array, params: Params, n_head: int, ways: list[list[int]]) -> Case:
    """A cache changes no number, so the size is that of the whole, however it is fed; and of its last two, and one."""
    whole = gpt2_case(ids, params, n_head)
    size = np.concatenate([*[whole.size] * len(ways), whole.size[-2:], whole.size[-1:]])
    return whole._replace(args=(ids, params, n_head, ways), size=size)


def in_chunks(cases: Iterator[Args]) -> Iterator[Args]:
    """Ways to feed n tokens: a prompt and then single steps; one by one as far as that is quick; and in pieces."""
    for args in cases:
        n = len(args[0])
        few, more = min(3, n - 1), min(5, n - 1)
        ways = [n - few, *[1] * few], [*[1] * more, n - more], [n // 2, n - n // 2]
        yield (*args, [[chunk for chunk in way if chunk] for way in ways])


def cached_args(dtype: str) -> Iterator[Args]:
    return in_chunks(gpt2_args(dtype))


def sampling_case(logits: Array, ids: list[int], temperature: float, top_k: int, top_p: float, penalty: float) -> Case:
    """Everything is float64 here; the softmax's bound at the logits' range over the temperature, penalty included."""
    args = logits, ids, temperature, top_k, top_p, penalty
    reach = 2 * float(wide(logits)[0].max()) * max(penalty, 1) / temperature
    return Case(args, gpt2.token_probs(*args) * (1 + 2 * reach), len(logits) + 16)  # type: ignore[arg-type]


def filtered(x: Array) -> Iterator[Args]:
    """Logits with every filter. Of equal ones at a cut we keep some, by id, and transformers all: left out here."""
    rng, seen = np.random.default_rng(4), [3, 1, 4, 1, 5]
    filters = [(1.0, 0, 1.0, 1.0), *((t, 0, 1.0, 1.0) for t in (0.05, 0.7, 5.0)), (1.0, 0, 1.0, 1.3)]
    filters += [(1.0, k, 1.0, 1.0) for k in (1, 7, len(x))]
    filters += [(1.0, 0, p, 1.0) for p in (1e-9, *np.linspace(0.05, 0.99, 20).tolist())]
    filters += [(float(rng.uniform(0.3, 2)), 20, 0.81, 1.2) for _ in range(5)]
    for settings in filters:
        kept = np.asarray(gpt2.token_probs(x, seen, *settings)) > 0  # type: ignore[arg-type]
        if kept.all() or not np.isin(x[~kept], x[kept]).any():
            yield x, seen, *settings


def sampling_args(dtype: str) -> Iterator[Args]:
    for x in inputs((50,), dtype):
        yield from filtered(x)


# ------------------------------------------------------------------------------------------------------------- ours


def our_attention(q: Any, k: Any, v: Any, mask: Any) -> Any:
    """The mask of the cases is True where a query may look; gpt2.py's is what is added to the scores."""
    added: Any = 0.0 if mask is None else np.where(mask, 0, -math.inf).astype(q.dtype)
    return gpt2.attention(q, k, v, added)


def our_mha(x: Any, attn: Params, n_head: int) -> Any:
    return gpt2.mha(x, **attn, n_head=n_head)


def our_block(x: Any, block: Params, n_head: int) -> Any:
    return gpt2.transformer_block(x, **block, n_head=n_head)


def our_gpt2(ids: Any, params: Params, n_head: int) -> Any:
    return gpt2.gpt2(ids, **params, n_head=n_head)


def our_cached(ids: Any, params: Params, n_head: int, ways: list[list[int]]) -> Any:
    rows = []
    for chunks in ways:
        room: Any = gpt2.empty_cache(params, n_head, len(ids))
        room.fill(np.nan)  # what is read before it is written shows
        n_past = 0
        for n in chunks:
            more = ids[n_past : n_past + n]
            rows.append(gpt2.gpt2(more, **params, n_head=n_head, cache=room, n_past=n_past))
            n_past += n
    rows.append(gpt2.gpt2(ids, **params, n_head=n_head, n_logits=2))
    rows.append(in_short_chunks(ids, params, n_head)[None])
    return np.concatenate(rows)


def in_short_chunks(ids: Any, params: Params, n_head: int) -> Any:
    """What generation does with a prompt, in chunks of 50 tokens, so that there are some."""
    n_chunk, gpt2.N_CHUNK = gpt2.N_CHUNK, 50
    try:
        return gpt2.next_logits(ids, params, n_head, gpt2.empty_cache(params, n_head, len(ids)), 0)
    finally:
        gpt2.N_CHUNK = n_chunk


# ------------------------------------------------------------------------------------- the model named by --model_size


class Model:
    """A model, and what flows through it, in both dtypes."""

    def __init__(self, name: str, encoder: Encoder, params: Params, n_head: int):
        self.name, self.encoder, self.n_head = name, encoder, n_head
        self.ids = some_ids(len(params["wte"]), min(len(params["wpe"]), 110))  # more than N_BLOCK where there are
        self.params: dict[str, Params] = {}
        self.flow: dict[str, dict[str, Array]] = {}
        self.original = params

    def at(self, dtype: str) -> tuple[Params, dict[str, Array]]:
        """Parameters and traced values."""
        if dtype not in self.flow:
            self.params[dtype] = as_dtype(self.original, dtype)
            with trace() as t:
                gpt2.gpt2(self.ids, **self.params[dtype], n_head=self.n_head)
            self.flow[dtype] = t.passes[0]
        return self.params[dtype], self.flow[dtype]

    def layers(self, dtype: str) -> Iterator[tuple[Params, dict[str, Array]]]:
        """Each layer's parameters, and its values: "in" is its input."""
        params, flow = self.at(dtype)
        x = flow["embedding"]
        for layer, block in enumerate(params["blocks"]):
            prefix = f"h{layer}/"
            values = {name.removeprefix(prefix): value for name, value in flow.items() if name.startswith(prefix)}
            yield block, values | {"in": x}
            x = values["out"]

    def linears(self, dtype: str) -> Iterator[Args]:
        for block, h in self.layers(dtype):
            for x, part, name in (
                ("ln_1", "attn", "c_attn"),
                ("attn/merged", "attn", "c_proj"),
                ("ln_2", "mlp", "c_fc"),
                ("mlp/gelu", "mlp", "c_proj"),
            ):
                yield h[x], *block[part][name].values()

    def norms(self, dtype: str) -> Iterator[Args]:
        for block, h in self.layers(dtype):
            yield h["in"], block["ln_1"]["g"], block["ln_1"]["b"]
            yield h["mid"], block["ln_2"]["g"], block["ln_2"]["b"]

    def attentions(self, dtype: str) -> Iterator[Args]:
        for _, h in self.layers(dtype):
            q, k, v = (h[f"attn/{name}"] for name in "qkv")
            yield q, k, v, causal(q, k)

    def whole(self, dtype: str) -> Iterator[Args]:
        yield self.ids, self.at(dtype)[0], self.n_head

    def sampling(self, dtype: str) -> Iterator[Args]:
        yield from filtered(self.at(dtype)[1]["logits"][-1])

    def args(self) -> dict[str, Source]:
        """For every part the arguments it has in the model's own forward pass, in every layer."""
        layers, n_head = self.layers, self.n_head
        return {
            "gelu": lambda dtype: ((h["mlp/c_fc"],) for _, h in layers(dtype)),
            "softmax": lambda dtype: ((h["attn/scores"],) for _, h in layers(dtype)),
            "layer_norm": self.norms,
            "linear": self.linears,
            "ffn": lambda dtype: ((h["ln_2"], *block["mlp"].values()) for block, h in layers(dtype)),
            "attention": self.attentions,
            "causal_attention": self.attentions,
            "mha": lambda dtype: ((h["ln_1"], block["attn"], n_head) for block, h in layers(dtype)),
            "transformer_block": lambda dtype: ((h["in"], block, n_head) for block, h in layers(dtype)),
            "gpt2": self.whole,
            "cached steps": lambda dtype: in_chunks(self.whole(dtype)),
            "sampling filters": self.sampling,
        }


class Part(NamedTuple):
    """Ours, which looks the function up in gpt2 as it is called; the case that arguments make; made-up arguments."""

    ours: Callable[..., Any]
    case: Callable[..., Case]
    args: Source


PARTS = {
    "gelu": Part(lambda *args: gpt2.gelu(*args), gelu_case, gelu_args),
    "softmax": Part(lambda *args: gpt2.softmax(*args), softmax_case, softmax_args),
    "layer_norm": Part(lambda *args: gpt2.layer_norm(*args), layer_norm_case, layer_norm_args),
    "linear": Part(lambda *args: gpt2.linear(*args), linear_case, linear_args),
    "ffn": Part(lambda *args: gpt2.ffn(*args), ffn_case, ffn_args),
    "attention": Part(our_attention, attention_case, attention_args),
    "causal_attention": Part(lambda *args: gpt2.causal_attention(*args[:3]), attention_case, causal_args),
    "mha": Part(our_mha, mha_case, mha_args),
    "transformer_block": Part(our_block, block_case, block_args),
    "gpt2": Part(our_gpt2, gpt2_case, gpt2_args),
    "cached steps": Part(our_cached, cached_case, cached_args),
    "sampling filters": Part(lambda *args: gpt2.token_probs(*args), sampling_case, sampling_args),
}


# --------------------------------------------------------------------------------------------------------- measuring


def difference(ours: Array, theirs: Array) -> Array:
    """|ours - theirs|, in float64; 0 where both are the same infinity, infinite where one is not a number."""
    a, b = ours.astype(np.float64), theirs.astype(np.float64)
    with np.errstate(invalid="ignore", over="ignore"):
        apart = np.where(a == b, 0.0, np.abs(a - b))
    return np.where(np.isnan(apart), math.inf, apart)


def measure(our: Callable[..., Any], their: Callable[..., Any], case: Case) -> tuple[float, float, float, float]:
    """A case's absolute and relative difference, ULPs and tolerance. Raises ValueError for another shape or dtype."""
    with np.errstate(over="ignore", under="ignore"):
        ours, theirs = np.asarray(our(*case.args)), np.asarray(their(*case.args))
    if ours.shape != theirs.shape or ours.dtype != theirs.dtype:
        raise ValueError(f"{ours.dtype} {list(ours.shape)} instead of {theirs.dtype} {list(theirs.shape)}")
    info = np.finfo(ours.dtype)
    apart, tiny = difference(ours, theirs), float(info.smallest_normal)
    lost = tiny * (1 if case.alone else case.ulps)  # in underflow
    with np.errstate(invalid="ignore", divide="ignore"):
        ulps = float(np.max(apart / (float(info.eps) * case.size + lost / case.ulps), initial=0))
        relative = float(np.maximum(apart - lost, 0).max(initial=0) / max(np.abs(theirs).max(initial=0), tiny))
    return float(apart.max(initial=0)), relative, ulps, case.ulps


def is_right(figures: tuple[float, float, float, float], dtype: str) -> bool:
    _, relative, ulps, tolerance = figures
    return ulps <= tolerance and (dtype != "float64" or relative <= RELATIVE)


def cases_of(part: str, dtype: str, source: Source | None = None) -> Callable[[], list[Case]]:
    """A part's cases, of made-up arguments or another source's; made once for all libraries, when first asked for."""
    return cache(lambda: [PARTS[part].case(*args) for args in (source or PARTS[part].args)(dtype)])


def installed(library: str) -> bool:
    """transformers computes nothing without PyTorch."""
    needed = ("torch", library) if library == "transformers" else (library,)
    return all(importlib.util.find_spec(name) for name in needed)


def failed(name: str, against: str, dtype: str, error: Exception) -> Row:
    reason = " ".join(f"FAIL: {error}".split())[:90]
    return Row(name, against, dtype, 0, math.inf, math.inf, math.inf, math.nan, reason)


def row_of(part: str, of: str, against: str, dtype: str, cases: Callable[[], list[Case]]) -> Row:
    """One line of the table. What one of the two sides refuses is a FAIL with the reason."""
    name = part + of
    if not installed(against):
        return Row(name, against, dtype, 0, 0, 0, 0, 0, "not installed")
    try:
        figures = [measure(PARTS[part].ours, OTHERS[part][against], case) for case in cases()]
    except Exception as error:  # anything: the table says which part it was
        return failed(name, against, dtype, error)
    exact = "float64" if part == "sampling filters" else dtype  # they are computed in it, whatever goes in
    verdict = "pass" if all(is_right(f, exact) for f in figures) else "FAIL"
    absolute, relative = (max(f[i] for f in figures) for i in (0, 1))
    worst = max(figures, key=lambda f: f[2] / f[3])
    return Row(name, against, dtype, len(figures), absolute, relative, worst[2], worst[3], verdict)


# -------------------------------------------------------------------------------------------------------- tokenizers

TEXTS = [
    "",
    " ",
    "\r\n \t\n  x",
    "a\0b",
    "+*!,+*)('&%$#\"! thethe inthand xxxxx",
    '"y is ?"',
    "I'M SURE'LL we'll They'RE don't'd",
    "trailing space ",
    "Not all heroes wear capes. 12345 1,000.5 unbelievable antidisestablishmentarianism",
    "naïve café Ærøskøbing ß ſ İ e\u0301 o\u0308",
    "日本語の文章、漢字とかな。한국어 텍스트 שלום مرحبا",
    "👩‍👩‍👧‍👦 🏳️‍🌈 𝔘𝔫𝔦𝔠𝔬𝔡𝔢 \u00a0\u2003 nbsp a\u200bb\ufeff",
    f"{END_OF_TEXT} and {END_OF_TEXT}",
    "def f(x):\n\treturn x  # comment\n\n\n    y",
    "To be, or not to be: that is the question:\nWhether 'tis nobler in the mind to suffer\n" * 3,
    "x" * 300 + "the" * 100,
]


def texts() -> list[str]:
    """Tricky ones, random mixtures of them, and random Unicode without surrogates."""
    rng = np.random.default_rng(5)
    mixed = ["".join(rng.choice(list("".join(TEXTS)), 40)) for _ in range(100)]
    codes = rng.integers(0, 0x110000, (100, 20))
    return TEXTS + mixed + ["".join(chr(c) for c in row if not 0xD800 <= c < 0xE000) for row in codes]


def tokenizer_row(name: str, against: str, encoder: Encoder) -> Row:
    """Ids must be the same, and give the text back: the difference is a number of texts."""
    if not installed(against):
        return Row(name, against, "ids", 0, 0, 0, 0, 0, "not installed")
    merges = list(encoder.cache.ranks)
    theirs = TOKENIZERS[against](encoder, merges)
    fresh, cases = Encoder(encoder.encoder, merges), texts()  # with nothing in its cache
    try:
        ours = [fresh.encode(text) for text in cases]
        wrong = sum(ids != theirs(text) or fresh.decode(ids) != text for ids, text in zip(ours, cases))
    except Exception as error:  # anything, as above
        return failed(name, against, "ids", error)
    return Row(name, against, "ids", len(cases), wrong, wrong / len(cases), wrong, 0, "FAIL" if wrong else "pass")


# ---------------------------------------------------------------------------------------------------------- the tool


def compare(model: Model | None, wanted: Callable[[str], bool] = lambda name: True) -> Iterator[Row]:
    """The lines of the table for the parts that are wanted, and for a model if there is one, as they are done."""
    from tqdm import tqdm

    sources: dict[str, dict[str, Source]] = {"": {}} | ({f", {model.name}": model.args()} if model else {})
    tables = [(part, of, dtype) for part in filter(wanted, PARTS) for of in sources for dtype in DTYPES]
    work: list[Callable[[], Row]] = []
    for part, of, dtype in tables:
        cases = cases_of(part, dtype, sources[of].get(part))
        work += [partial(row_of, part, of, against, dtype, cases) for against in OTHERS[part]]
    encoders = {"tokenizer": made_up_encoder()} | ({f"tokenizer, {model.name}": model.encoder} if model else {})
    if wanted("tokenizer"):
        work += [partial(tokenizer_row, name, lib, encoders[name]) for name in encoders for lib in TOKENIZERS]
    for row in tqdm(work, desc="comparing", unit="row", file=sys.stderr, disable=None):
        yield row()


def made_up_encoder() -> Encoder:
    """Merges whose order matters: of overlapping pairs the earlier one wins, whichever is longer or further left."""
    merges = ["t h", "h e", "th e", "i n", "Ġ the", "Ġ t", "a n", "n d", "an d", "x x", "xx xx"]
    merges += [merge for merge in made_up_merges(3000) if merge not in merges]
    tokens = list(dict.fromkeys([*BYTE_TO_CHAR.values(), *(merge.replace(" ", "") for merge in merges), END_OF_TEXT]))
    return Encoder({token: id for id, token in enumerate(tokens)}, merges)


def line(row: Row) -> str:
    """A row of the table as text."""
    if row.verdict == "not installed":
        return f"{row.part:24} {row.against:12} {row.dtype:7}  not installed"
    figures = f"{row.cases:5} {row.absolute:9.2g} {row.relative:9.2g} {row.ulps:9.3g} {row.tolerance:9.4g}"
    return f"{row.part:24} {row.against:12} {row.dtype:7} {figures}  {row.verdict}"


HEAD = (
    f"{'part':24} {'against':12} {'dtype':7} {'cases':>5} {'absolute':>9} {'relative':>9} {'ULPs':>9} {'tolerance':>9}"
)


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    names = [*PARTS, "tokenizer"]
    parser = Parser(
        prog="picogpt compare",
        description="Check every part against other people's implementations. Exit status 1 when one differs.",
        epilog="examples:\n  python -m picogpt compare\n  python -m picogpt compare --model_size 124M\n"
        '  python -m picogpt compare --parts gelu "cached steps"',
    )
    add = parser.add_argument
    add("--model_size", default="tiny", help="124M, … or a folder of --models_dir (default: %(default)s)")
    add("--models_dir", default="models", help="(default: %(default)s)")
    add(
        "--parts", nargs="+", choices=names, metavar="PART", default=names, help=f"of {', '.join(names)} (default: all)"
    )
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> int:
    args = parse_args(argv)
    folder = ensure_downloaded(args.model_size, args.models_dir)
    encoder, hparams, params = load_encoder_hparams_and_params(args.model_size, args.models_dir)
    model = Model(Path(folder).name, encoder, params, hparams["n_head"])
    print(HEAD)
    rows = []
    for row in compare(model, lambda name: name in args.parts):
        rows.append(row)
        print(line(row), flush=True)
    count = {what: sum(row.verdict.startswith(what) for row in rows) for what in ("pass", "FAIL", "not installed")}
    print(", ".join(f"{n} {what}" for what, n in count.items()))
    return 1 if count["FAIL"] else 0
