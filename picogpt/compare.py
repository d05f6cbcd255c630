"""Check every part of the model and the tokenizer against other people's implementations of the same thing.

    python -m picogpt compare

One line of the table is one part against one library at one dtype. A case's difference is measured in three ways:
absolutely; relatively, to the largest number of the result; and in units in the last place (ULPs): eps times the size
of what a number was made of, so that 1e6 - 1e6 + 1 is not blamed for what rounding does to it. The last one is what
the tolerance limits. It is derived, part by part, from the number of roundings on the way, with u = eps / 2 for each
of them on both sides. The bounds on sums are Higham's ("Accuracy and Stability of Numerical Algorithms", 2002, ch. 3
and 4): n roundings in any order give at most n u (1 + O(u)) times the sum of the absolute values. In float64 the
relative difference must be within 1e-12, too.
"""

from __future__ import annotations

import argparse
import importlib.util
import math
import os
import sys
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

import gpt2
from encoder import BYTE_TO_CHAR, END_OF_TEXT, Encoder
from picogpt.random_weights import made_up_merges
from utils import Parser, expected_shapes, load_encoder_hparams_and_params, nest, provide

Array = np.ndarray[Any, np.dtype[Any]]
Params = Any
DTYPES = ("float32", "float64")
RELATIVE = 1e-12  # the limit in float64, whatever rounding may explain
SMALL = {"n_vocab": 101, "n_ctx": 140, "n_embd": 24, "n_head": 3, "n_layer": 3}  # n_ctx is more than one N_BLOCK
ONES = {"n_vocab": 7, "n_ctx": 5, "n_embd": 2, "n_head": 1, "n_layer": 1}  # dimensions of 1 that squeeze would eat


class Case(NamedTuple):
    """Arguments for both sides, the size of what each number of the result is made of, and the tolerance in ULPs."""

    args: tuple[Any, ...]
    size: Any
    ulps: float


class Part(NamedTuple):
    """A part: ours, others' by library, and the cases. ours looks the function up in gpt2 as it is called."""

    ours: Callable[..., Any]
    theirs: dict[str, Callable[..., Any]]
    cases: Callable[[str], Iterator[Case]]


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


# -------------------------------------------------------------------------------------------------------- the inputs


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


def weights(hparams: dict[str, int], dtype: str, scale: float = 0.3) -> Params:
    """Random parameters, biases and gains too, that matter as much as a trained model's."""
    rng = np.random.default_rng(1)
    tensors = {name: rng.standard_normal(shape) * scale for name, shape in expected_shapes(hparams).items()}
    return nest({name: tensor.astype(dtype) for name, tensor in tensors.items()}, hparams["n_layer"])


def as_dtype(tree: Any, dtype: str) -> Any:
    """Parameters in another dtype; what has it already is not copied."""
    if isinstance(tree, dict):
        return {key: as_dtype(value, dtype) for key, value in tree.items()}
    return [as_dtype(x, dtype) for x in tree] if isinstance(tree, list) else tree.astype(dtype, copy=False)


def wide(*arrays: Array) -> list[Array]:
    """The absolute values in float64: the sizes must not overflow."""
    return [np.abs(array.astype(np.float64)) for array in arrays]


# ------------------------------------------------------------------------------------- the cases, and their tolerance


def gelu_cases(dtype: str) -> Iterator[Case]:
    """0.5 x (1 + tanh z): 1 + tanh z may cancel, so errors count against |x|.

    z has 6 roundings and |z tanh'(z)| is at most 0.45: 2.7 u. tanh itself: libraries promise 4 ULPs, 8 u. The sum has 2
    (in units of 1, the number being up to 2), the products 2 times 2. The half of all that, twice for both sides, in
    eps = 2 u: under 9.
    """
    edges = np.array([-1e4, -10, -5.1, -3, -1, -0.0, 0.0, 1e-4, 1, 3, 5.1, 10, 1e4], dtype)
    for x in (*inputs((7, 33), dtype), *inputs((1, 1), dtype), edges, np.linspace(-6, 6, 999).astype(dtype)):
        yield Case((x,), np.abs(x), 9)


def softmax_size(x: Array) -> Array:
    """The size of e^(x - m) / sum: an exponent's rounding, u |x - m|, becomes a relative error, also in the sum."""
    x = x.astype(np.float64)
    distance = x.max(-1, keepdims=True) - x
    probs = np.exp(-distance) / np.exp(-distance).sum(-1, keepdims=True)
    size: Array = probs * (1 + distance + (probs * distance).sum(-1, keepdims=True))
    return size


def softmax_cases(dtype: str) -> Iterator[Case]:
    """The exponential (4 ULPs: 8 u) above and below the bar, n - 1 additions, 1 division, for both sides."""
    for shape in ((7, 33), (2, 3, 1), (1, 1)):
        for x in inputs(shape, dtype):
            yield Case((x,), softmax_size(x), shape[-1] + 16)


def layer_norm_cases(dtype: str) -> Iterator[Case]:
    """With r = 1 / sqrt(var + eps): the mean's error is n u mean|x|, r times which arrives in the result.

    The variance's sum has n roundings, halved by the root, and 6 more are on the way to the result: 1.5 n + 6 of u
    on both sides. The size is (|x - mean| + mean|x|) r |g| + |b|.
    """
    rng = np.random.default_rng(1)
    for shape in ((7, 33), (2, 3, 48), (1, 1)):
        g, b = (rng.standard_normal(shape[-1:]).astype(dtype) for _ in range(2))
        for x in inputs(shape, dtype):
            x64, n = x.astype(np.float64), shape[-1]
            r = 1 / np.sqrt(x64.var(-1, keepdims=True) + 1e-5)
            around = np.abs(x64 - x64.mean(-1, keepdims=True)) + np.abs(x64).mean(-1, keepdims=True)
            yield Case((x, g, b), around * r * wide(g)[0] + wide(b)[0], 1.5 * n + 6)


def linear_cases(dtype: str) -> Iterator[Case]:
    """An inner product of n terms and b has n + 1 roundings of terms that add up to |x| |w| + |b| at most."""
    rng = np.random.default_rng(1)
    for n_seq, n_in, n_out in ((7, 33, 33), (5, 48, 20), (1, 1, 1), (3, 1, 4)):
        w, b = (rng.standard_normal(shape).astype(dtype) for shape in ((n_in, n_out), (n_out,)))
        for x in inputs((n_seq, n_in), dtype):
            ax, aw, ab = wide(x, w, b)
            yield Case((x, w, b), ax @ aw + ab, n_in + 1)


def ffn_cases(dtype: str) -> Iterator[Case]:
    """linear's n_embd + 1 pass through gelu, whose slope is at most 1.13, then gelu's 9 and the sum's 4 n_embd + 1.

    All of them count against what they are sums of: (|x| |w| + |b|) |w'| + |b'|.
    """
    for hparams in (SMALL, ONES):
        mlp, n = weights(hparams, dtype)["blocks"][0]["mlp"], hparams["n_embd"]
        for x in inputs((7, n), dtype):
            ax, w, b, w2, b2 = wide(x, *(mlp[name][key] for name in ("c_fc", "c_proj") for key in ("w", "b")))
            yield Case((x, mlp["c_fc"], mlp["c_proj"]), (ax @ w + b) @ w2 + b2, 1.13 * (n + 1) + 9 + 4 * n + 1)


def sharpness(q: Array, k: Array) -> float:
    """1 + the largest |q| |k| / sqrt(d_head): what the scores' rounding is multiplied with inside the exponential."""
    aq, ak = wide(q, k)
    return float(1 + (aq @ np.swapaxes(ak, -1, -2)).max(initial=0) / math.sqrt(q.shape[-1]))


def attention_case(q: Array, k: Array, v: Array, mask: Array | None) -> Case:
    """A score has d_head + 2 roundings, above and below the softmax's bar; then its own n_k + 16, and n_k of the sum.

    The result is an average of values: its size is the largest |v|, times the sharpness.
    """
    n_k, d_head = k.shape[-2:]
    size = wide(v)[0].max(-2, keepdims=True) * sharpness(q, k)
    return Case((q, k, v, mask), size, 2 * (d_head + 2) + 2 * n_k + 16)


def attention_cases(dtype: str) -> Iterator[Case]:
    for n_head, n_q, n_k, d_head in ((3, 6, 6, 8), (2, 4, 9, 5), (1, 1, 7, 4), (1, 1, 1, 1)):
        for q in inputs((n_head, n_q, d_head), dtype, large=5):
            k, v = np.random.default_rng(2).standard_normal((2, n_head, n_k, d_head)).astype(dtype)
            mask = np.tri(q.shape[-2], n_k, n_k - q.shape[-2], dtype=bool)
            yield attention_case(q, k, v, mask)
            yield attention_case(q, k, v, None)


def causal_cases(dtype: str) -> Iterator[Case]:
    """More queries than N_BLOCK, too: blocks and whole must be the same. The mask goes to the other side only."""
    for n_q, n_k in ((6, 6), (4, 9), (1, 7), (130, 130), (120, 140)):
        q, k, v = (np.random.default_rng(n).standard_normal((2, n, 8)).astype(dtype) for n in (n_q, n_k, n_k + 1))
        v = v[:, :n_k]
        yield attention_case(q, k, v, np.tri(n_q, n_k, n_k - n_q, dtype=bool))


def statistical(n: float) -> float:
    """ULPs after a chain of n roundings on each side, for what would explode in worst-case bounds.

    Roundings are as good as independent (Higham & Mary 2019, "A New Approach to Probabilistic Rounding Error
    Analysis"): their sum stays within 4 sqrt(n) u, but for once in a thousand. Both sides: 4 sqrt(n) eps. Residual
    connections and layer norms hand errors on at their own size: no factor per layer. They count against the largest
    number.
    """
    return 4 * math.sqrt(n)


def block_roundings(n_embd: int, n_head: int, n_seq: int) -> float:
    """Roundings behind one number that leaves a block: inner products, two norms, scores, softmax, sums, gelu."""
    return 2 * 2.5 * n_embd + (3 + 4) * n_embd + n_embd // n_head + 2 * n_seq + 50


def mha_cases(dtype: str) -> Iterator[Case]:
    """The statistical bound, times the sharpness of the scores, of which x @ w gives the size."""
    for hparams in (SMALL, ONES):
        attn, n_head, n = weights(hparams, dtype)["blocks"][0]["attn"], hparams["n_head"], hparams["n_embd"]
        for x in inputs((5, n), dtype, large=10):
            qkv = x.astype(np.float64) @ attn["c_attn"]["w"] + attn["c_attn"]["b"]
            q, k = (np.reshape(qkv[..., i * n : (i + 1) * n], (-1, n_head, n // n_head)) for i in (0, 1))
            size = sharpness(np.swapaxes(q, 0, 1), np.swapaxes(k, 0, 1))
            ulps = statistical(block_roundings(n, n_head, x.shape[-2]))
            yield Case((x, attn, n_head), size, ulps)


def block_cases(dtype: str) -> Iterator[Case]:
    """As the whole model with one layer. Constant rows are what layer norm's eps makes of rounding: sized by it."""
    for hparams in (SMALL, ONES):
        block, n_head, n = weights(hparams, dtype)["blocks"][0], hparams["n_head"], hparams["n_embd"]
        for x in inputs((5, n), dtype, large=1e6):
            yield Case((x, block, n_head), 1.0, statistical(block_roundings(n, n_head, x.shape[-2])))


def model_case(params: Params, n_head: int, ids: Array, *more: Any) -> Case:
    n_embd, n_layer = params["wte"].shape[1], len(params["blocks"])
    n = n_layer * block_roundings(n_embd, n_head, ids.shape[-1]) + 2.5 * n_embd
    return Case((ids, params, n_head, *more), 1.0, statistical(n))


def some_ids(n_vocab: int, n: int) -> Array:
    return np.random.default_rng(3).integers(0, n_vocab, n)


def models(dtype: str) -> Iterator[tuple[Params, int, Array]]:
    """Small models with weights as large as trained ones', with large embeddings, tiny, denormal; and prompts.

    Constant are the ids: of constant weights layer norm would leave rounding only, magnified, as its own line shows.
    """
    random, large = weights(SMALL, dtype), weights(SMALL, dtype)
    large |= {name: large[name] * 1e4 for name in ("wte", "wpe")}
    tiny, denormal = (weights(SMALL, dtype, scale) for scale in (1e-3, 0.1 * float(np.finfo(dtype).smallest_normal)))
    found = [(params, SMALL) for params in (random, large, tiny, denormal)]
    for params, hparams in [*found, (weights(ONES, dtype), ONES)]:
        for n in (1, 2, hparams["n_ctx"]):
            yield params, hparams["n_head"], some_ids(hparams["n_vocab"], n)
        yield params, hparams["n_head"], np.full(5, 3)


def gpt2_cases(dtype: str) -> Iterator[Case]:
    for params, n_head, ids in models(dtype):
        yield model_case(params, n_head, ids)


def chunks_of(n: int) -> list[tuple[int, ...]]:
    """Ways to feed n tokens: a prompt and then single steps; one by one as far as that is quick; and in pieces."""
    return [(n - min(3, n - 1), *[1] * min(3, n - 1)), (*[1] * min(5, n - 1), n - min(5, n - 1)), (n // 2, n - n // 2)]


def cached_cases(dtype: str) -> Iterator[Case]:
    for params, n_head, ids in models(dtype):
        for chunks in chunks_of(len(ids)):
            yield model_case(params, n_head, ids, [n for n in chunks if n])


def sampling_cases(dtype: str) -> Iterator[Case]:
    """Everything is float64 here; the softmax's bound at the logits' range over the temperature, penalty included."""
    rng = np.random.default_rng(4)
    for x in inputs((50,), dtype):
        filters = [(1.0, 0, 1.0, 1.0), (0.7, 0, 1.0, 1.0), (1.0, 0, 1.0, 1.3)]
        if len(np.unique(x)) == len(
            x
        ):  # of equals we keep as many as asked for, by id, and transformers keeps them all
            filters += [(1.0, k, 1.0, 1.0) for k in (1, 7, 50)] + [(1.0, 0, p, 1.0) for p in (1e-9, 0.31, 0.905)]
            filters += [(float(rng.uniform(0.3, 2)), 20, 0.81, 1.2) for _ in range(5)]
        for temperature, k, p, penalty in filters:
            reach = 2 * float(np.abs(x.astype(np.float64)).max()) * max(penalty, 1) / temperature
            yield Case((x, [3, 1, 4, 1, 5], temperature, k, p, penalty), 1 + 2 * reach, len(x) + 16)


# ----------------------------------------------------------------------------------------------------------- PyTorch


def tensor(x: Any) -> Any:
    import torch

    return torch.from_numpy(np.array(x))


def in_torch(function: Callable[..., Any]) -> Callable[..., Any]:
    """Call with arrays as tensors, without gradients, and give back an array."""

    def wrapped(*args: Any) -> Any:
        import torch

        with torch.no_grad():
            return function(*(tensor(x) if isinstance(x, np.ndarray) else x for x in args)).numpy()

    return wrapped


@in_torch
def torch_gelu(x: Any) -> Any:
    import torch

    return torch.nn.GELU(approximate="tanh")(x)


@in_torch
def torch_softmax(x: Any) -> Any:
    return x.softmax(-1)


def filled(module: Any, state: Params) -> Any:
    """A PyTorch module in the parameters' dtype, with those parameters."""
    tensors = {name: tensor(array) for name, array in state.items()}
    module = module.to(next(iter(tensors.values())).dtype).eval()
    module.load_state_dict(tensors)
    return module


def torch_linear_of(w: Array, b: Array) -> Any:
    import torch

    return filled(torch.nn.Linear(*w.shape), {"weight": w.T, "bias": b})


@in_torch
def torch_layer_norm(x: Any, g: Any, b: Any) -> Any:
    import torch

    return filled(torch.nn.LayerNorm(len(g)), {"weight": g.numpy(), "bias": b.numpy()})(x)


@in_torch
def torch_linear(x: Any, w: Any, b: Any) -> Any:
    return torch_linear_of(w.numpy(), b.numpy())(x)


@in_torch
def torch_ffn(x: Any, c_fc: Params, c_proj: Params) -> Any:
    import torch

    gelu = torch.nn.GELU(approximate="tanh")
    return torch.nn.Sequential(torch_linear_of(**c_fc), gelu, torch_linear_of(**c_proj))(x)


@in_torch
def torch_attention(q: Any, k: Any, v: Any, mask: Any) -> Any:
    import torch

    return torch.nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=mask)


def torch_future(n: int) -> Any:
    """PyTorch's modules want the positions that can not be seen."""
    return tensor(~np.tri(n, dtype=bool))


@in_torch
def torch_mha(x: Any, attn: Params, n_head: int) -> Any:
    import torch

    module = torch.nn.MultiheadAttention(x.shape[-1], n_head, batch_first=True)
    state = {"in_proj_weight": attn["c_attn"]["w"].T, "in_proj_bias": attn["c_attn"]["b"]}
    state |= {"out_proj.weight": attn["c_proj"]["w"].T, "out_proj.bias": attn["c_proj"]["b"]}
    return filled(module, state)(x[None], x[None], x[None], attn_mask=torch_future(len(x)), need_weights=False)[0][0]


@in_torch
def torch_block(x: Any, block: Params, n_head: int) -> Any:
    import torch

    gelu = torch.nn.GELU(approximate="tanh")
    n = x.shape[-1]
    module = torch.nn.TransformerEncoderLayer(n, n_head, 4 * n, 0, gelu, batch_first=True, norm_first=True)
    attn, mlp = block["attn"], block["mlp"]
    matrices = {"self_attn.in_proj_": attn["c_attn"], "self_attn.out_proj.": attn["c_proj"]}
    matrices |= {"linear1.": mlp["c_fc"], "linear2.": mlp["c_proj"]}
    state = {name + "weight": values["w"].T for name, values in matrices.items()}
    state |= {name + "bias": values["b"] for name, values in matrices.items()}
    for ours, theirs in (("ln_1", "norm1"), ("ln_2", "norm2")):
        state |= {f"{theirs}.weight": block[ours]["g"], f"{theirs}.bias": block[ours]["b"]}
    return filled(module, state)(x[None], src_mask=torch_future(len(x)))[0]


# ---------------------------------------------------------------------------------------------- Hugging Face's GPT-2


def hf_config(n_vocab: int, n_ctx: int, n_embd: int, n_head: int, n_layer: int) -> Any:
    from transformers import GPT2Config

    sizes = {"vocab_size": n_vocab, "n_positions": n_ctx, "n_embd": n_embd, "n_head": n_head, "n_layer": n_layer}
    return GPT2Config(**sizes, attn_implementation="eager", bos_token_id=None, eos_token_id=None)


def hf_state(block: Params) -> Params:
    """A block's parameters under transformers' names: Conv1D keeps weights as the checkpoint does."""
    state: Params = {}
    for part, group in block.items():
        for name, values in group.items() if part in ("attn", "mlp") else [("", group)]:
            path = f"{part}.{name}".rstrip(".")
            state |= {f"{path}.weight": values["w" if "w" in values else "g"], f"{path}.bias": values["b"]}
    return state


def hf_mask(x: Any) -> Any:
    """What is added to the scores: 0 where a query may look, and enough to drown the rest in any of our cases."""
    import torch

    return torch.full((len(x), len(x)), torch.finfo(x.dtype).min, dtype=x.dtype).triu(1)[None, None]


@in_torch
def hf_gelu(x: Any) -> Any:
    from transformers.activations import NewGELUActivation

    return NewGELUActivation()(x)


@in_torch
def hf_linear(x: Any, w: Any, b: Any) -> Any:
    from transformers.pytorch_utils import Conv1D

    n_in, n_out = w.shape
    return filled(Conv1D(n_out, n_in), {"weight": w.numpy(), "bias": b.numpy()})(x)


@in_torch
def hf_ffn(x: Any, c_fc: Params, c_proj: Params) -> Any:
    from transformers.models.gpt2.modeling_gpt2 import GPT2MLP

    n_embd, n_inner = c_fc["w"].shape
    state = {f"c_fc.{k}": c_fc[k[0]] for k in ("weight", "bias")} | {
        f"c_proj.{k}": c_proj[k[0]] for k in ("weight", "bias")
    }
    return filled(GPT2MLP(n_inner, hf_config(1, 1, n_embd, 1, 1)), state)(x)


@in_torch
def hf_mha(x: Any, attn: Params, n_head: int) -> Any:
    from transformers.models.gpt2.modeling_gpt2 import GPT2Attention

    module = GPT2Attention(hf_config(1, 1, x.shape[-1], n_head, 1), layer_idx=0)
    state = {f"{name}.{k}": values[k[0]] for name, values in attn.items() for k in ("weight", "bias")}
    return filled(module, state)(x[None], attention_mask=hf_mask(x))[0][0]


@in_torch
def hf_block(x: Any, block: Params, n_head: int) -> Any:
    from transformers.models.gpt2.modeling_gpt2 import GPT2Block

    module = filled(GPT2Block(hf_config(1, 1, x.shape[-1], n_head, 1), layer_idx=0), hf_state(block))
    out = module(x[None], attention_mask=hf_mask(x))
    return (out[0] if isinstance(out, tuple) else out)[0]


@in_torch
def hf_attention(q: Any, k: Any, v: Any, mask: Any) -> Any:
    """The function that transformers' GPT-2 calls between its two matrices."""
    import torch
    from transformers.models.gpt2.modeling_gpt2 import eager_attention_forward

    added = None if mask is None else torch.where(mask, 0.0, -math.inf).to(q.dtype)[None, None]
    out, _ = eager_attention_forward(torch.nn.Module().eval(), q[None], k[None], v[None], added)
    return out[0].transpose(0, 1)


class Last:
    """The model made last, so that one checkpoint's cases don't build it again and again."""

    params: Any = None
    model: Any = None


def hf_model(params: Params, n_head: int) -> Any:
    if Last.params is not params:
        from transformers import GPT2LMHeadModel

        (n_vocab, n_embd), n_ctx = params["wte"].shape, len(params["wpe"])
        state = {"transformer.wte.weight": params["wte"], "transformer.wpe.weight": params["wpe"]}
        state |= {f"transformer.ln_f.{name}": params["ln_f"][key] for name, key in (("weight", "g"), ("bias", "b"))}
        for layer, block in enumerate(params["blocks"]):
            state |= {f"transformer.h.{layer}.{name}": array for name, array in hf_state(block).items()}
        Last.model = None  # before the next one takes its place in memory
        model = GPT2LMHeadModel(hf_config(n_vocab, n_ctx, n_embd, n_head, len(params["blocks"])))
        Last.params, Last.model = params, filled(model, state | {"lm_head.weight": params["wte"]})
    return Last.model


@in_torch
def hf_gpt2(ids: Any, params: Params, n_head: int) -> Any:
    return hf_model(params, n_head)(ids[None]).logits[0]


@in_torch
def hf_cached(ids: Any, params: Params, n_head: int, chunks: list[int]) -> Any:
    """Each chunk with the keys and values that the chunks before it have left."""
    import torch

    rows, past = [], None
    for chunk in ids.split(chunks):
        out = hf_model(params, n_head)(chunk[None], past_key_values=past, use_cache=True)
        past = out.past_key_values
        rows.append(out.logits[0])
    return torch.cat(rows)


@in_torch
def hf_sampling(logits: Any, ids: list[int], temperature: float, top_k: int, top_p: float, penalty: float) -> Any:
    import torch
    from transformers.generation import logits_process as process

    scores, seen = logits.double()[None], torch.tensor(ids)[None]
    for step in (
        process.RepetitionPenaltyLogitsProcessor(penalty),
        process.TemperatureLogitsWarper(temperature),
        *([process.TopKLogitsWarper(top_k)] if top_k else []),
        *([process.TopPLogitsWarper(top_p)] if top_p < 1 else []),
    ):
        scores = step(seen, scores)
    return scores.softmax(-1)[0]


# ------------------------------------------------------------------------------------------------------- TensorFlow


@cache
def tensorflow() -> Any:
    os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"
    import tensorflow as tf

    return tf


def tf_gelu(x: Array) -> Any:
    """tf.nn.gelu rounds its 0.044715 to float32 whatever x is, so float64 gets TensorFlow's tanh in the formula."""
    tf = tensorflow()
    if x.dtype == np.float32:
        return tf.nn.gelu(x, approximate=True).numpy()
    return (0.5 * x * (1 + tf.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x * x * x)))).numpy()


def tf_softmax(x: Array) -> Any:
    return tensorflow().nn.softmax(x).numpy()


def tf_layer_norm(x: Array, g: Array, b: Array) -> Any:
    """Its moments; its batch_normalization subtracts the mean only after the scaling, and loses digits."""
    tf = tensorflow()
    mean, variance = tf.nn.moments(tf.constant(x), -1, keepdims=True)
    return ((x - mean) / tf.sqrt(variance + 1e-5) * g + b).numpy()


def tf_linear(x: Array, w: Array, b: Array) -> Any:
    return tensorflow().nn.bias_add(tensorflow().matmul(x, w), b).numpy()


def tf_ffn(x: Array, c_fc: Params, c_proj: Params) -> Any:
    return tf_linear(tf_gelu(tf_linear(x, **c_fc)), **c_proj)


def tf_attention(q: Array, k: Array, v: Array, mask: Array | None) -> Any:
    tf = tensorflow()
    scores = tf.matmul(q, k, transpose_b=True) / math.sqrt(q.shape[-1])
    if mask is not None:
        scores = tf.where(mask, scores, -math.inf)
    return tf.matmul(tf.nn.softmax(scores), v).numpy()


# ------------------------------------------------------------------------------------------------------------- ours


def our_attention(q: Any, k: Any, v: Any, mask: Any) -> Any:
    """The mask of the cases is True where a query may look; gpt2.py's is what is added to the scores."""
    added: Any = 0.0 if mask is None else np.where(mask, 0, -math.inf).astype(q.dtype)
    return gpt2.attention(q, k, v, added)


def our_cached(ids: Array, params: Params, n_head: int, chunks: list[int]) -> Array:
    room: Any = gpt2.empty_cache(params, n_head, len(ids))
    room.fill(np.nan)  # what is read before it is written shows
    starts = [sum(chunks[:i]) for i in range(len(chunks))]
    rows = [
        gpt2.gpt2(ids[start : start + n], **params, n_head=n_head, cache=room, n_past=start)
        for start, n in zip(starts, chunks)
    ]
    return np.concatenate(rows)


ATTENTION = {"torch": torch_attention, "transformers": hf_attention, "tensorflow": tf_attention}
PARTS = {
    "gelu": Part(
        lambda x: gpt2.gelu(x), {"torch": torch_gelu, "transformers": hf_gelu, "tensorflow": tf_gelu}, gelu_cases
    ),
    "softmax": Part(lambda x: gpt2.softmax(x), {"torch": torch_softmax, "tensorflow": tf_softmax}, softmax_cases),
    "layer_norm": Part(
        lambda x, g, b: gpt2.layer_norm(x, g, b),
        {"torch": torch_layer_norm, "tensorflow": tf_layer_norm},
        layer_norm_cases,
    ),
    "linear": Part(
        lambda x, w, b: gpt2.linear(x, w, b),
        {"torch": torch_linear, "transformers": hf_linear, "tensorflow": tf_linear},
        linear_cases,
    ),
    "ffn": Part(
        lambda x, c_fc, c_proj: gpt2.ffn(x, c_fc, c_proj),
        {"torch": torch_ffn, "transformers": hf_ffn, "tensorflow": tf_ffn},
        ffn_cases,
    ),
    "attention": Part(our_attention, ATTENTION, attention_cases),
    "causal_attention": Part(lambda q, k, v, mask: gpt2.causal_attention(q, k, v), ATTENTION, causal_cases),
    "mha": Part(
        lambda x, attn, n_head: gpt2.mha(x, **attn, n_head=n_head),
        {"torch": torch_mha, "transformers": hf_mha},
        mha_cases,
    ),
    "transformer_block": Part(
        lambda x, block, n_head: gpt2.transformer_block(x, **block, n_head=n_head),
        {"torch": torch_block, "transformers": hf_block},
        block_cases,
    ),
    "gpt2": Part(
        lambda ids, params, n_head: gpt2.gpt2(ids, **params, n_head=n_head), {"transformers": hf_gpt2}, gpt2_cases
    ),
    "cached steps": Part(our_cached, {"transformers": hf_cached}, cached_cases),
    "sampling filters": Part(lambda *args: gpt2.token_probs(*args), {"transformers": hf_sampling}, sampling_cases),
}


# --------------------------------------------------------------------------------------------------------- measuring


def difference(ours: Array, theirs: Array) -> Array:
    """|ours - theirs|, in float64; 0 where both are the same infinity, infinite where one is not a number."""
    a, b = ours.astype(np.float64), theirs.astype(np.float64)
    with np.errstate(invalid="ignore", over="ignore"):
        apart = np.where(a == b, 0.0, np.abs(a - b))
    return np.where(np.isnan(apart), math.inf, apart)


def measure(part: Part, theirs: Callable[..., Any], case: Case, dtype: str) -> tuple[float, float, float, float]:
    """A case's absolute and relative difference, ULPs and tolerance. Raises ValueError for another shape or dtype.

    Gradual underflow is optional (TensorFlow's threads do without): the smallest normal number is always a ULP.
    """
    with np.errstate(over="ignore", under="ignore"):
        ours, theirs_ = np.asarray(part.ours(*case.args)), np.asarray(theirs(*case.args))
    if ours.shape != theirs_.shape or ours.dtype != theirs_.dtype:
        raise ValueError(f"{ours.dtype} {list(ours.shape)} instead of {theirs_.dtype} {list(theirs_.shape)}")
    info = np.finfo(ours.dtype)
    apart, tiny = difference(ours, theirs_), float(info.smallest_normal)
    largest = float(np.abs(theirs_).max(initial=0))
    size = case.size * largest if isinstance(case.size, float) else case.size
    with np.errstate(invalid="ignore", divide="ignore"):
        ulps = float(np.max(apart / (float(info.eps) * size + tiny), initial=0))
        relative = float(np.maximum(apart - tiny, 0).max(initial=0) / max(largest, tiny))
    return float(apart.max(initial=0)), relative, ulps, case.ulps


def is_right(figures: tuple[float, float, float, float], dtype: str) -> bool:
    _, relative, ulps, tolerance = figures
    return ulps <= tolerance and (dtype != "float64" or relative <= RELATIVE)


def row_of(name: str, against: str, dtype: str, part: Part, cases: Iterator[Case]) -> Row:
    """One line of the table. What one of the two sides refuses is a FAIL with the reason."""
    if importlib.util.find_spec(against) is None:
        return Row(name, against, dtype, 0, 0, 0, 0, 0, "not installed")
    figures, verdict = [], "pass"
    for number, case in enumerate(cases):
        try:
            figures.append(measure(part, part.theirs[against], case, dtype))
        except Exception as error:  # anything: the table says which part it was
            return Row(name, against, dtype, number + 1, math.inf, math.inf, math.inf, case.ulps, f"FAIL: {error}"[:90])
        verdict = verdict if is_right(figures[-1], dtype) else "FAIL"
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


def by_tiktoken(encoder: Encoder, merges: list[str]) -> Callable[[str], list[int]]:
    """tiktoken merges the pair that makes the lowest id: right where the ids come in the order of the merges."""
    import tiktoken

    special = {name: id for name, id in encoder.encoder.items() if name == END_OF_TEXT}
    ranks = {encoder.token_bytes(id): id for name, id in encoder.encoder.items() if name not in special}
    pieces = r"'(?:[sdmt]|ll|ve|re)| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
    encoding = tiktoken.Encoding("compared", pat_str=pieces, mergeable_ranks=ranks, special_tokens=special)
    return lambda text: list(encoding.encode_ordinary(text))


def by_tokenizers(encoder: Encoder, merges: list[str]) -> Callable[[str], list[int]]:
    from tokenizers import Tokenizer
    from tokenizers.models import BPE
    from tokenizers.pre_tokenizers import ByteLevel

    pairs = [(a, b) for a, b in (merge.split(" ") for merge in merges)]
    tokenizer = Tokenizer(BPE(encoder.encoder, pairs))
    tokenizer.pre_tokenizer = ByteLevel(add_prefix_space=False)
    return lambda text: list(tokenizer.encode(text).ids)


def tokenizer_row(name: str, against: str, encoder: Encoder) -> Row:
    """Ids must be the same, and give the text back: the difference is a number of texts."""
    if importlib.util.find_spec(against) is None:
        return Row(name, against, "ids", 0, 0, 0, 0, 0, "not installed")
    merges = list(encoder.cache.ranks)
    theirs = {"tiktoken": by_tiktoken, "tokenizers": by_tokenizers}[against](encoder, merges)
    fresh, cases = Encoder(encoder.encoder, merges), texts()  # with nothing in its cache
    ours = [fresh.encode(text) for text in cases]
    wrong = sum(ids != theirs(text) or fresh.decode(ids) != text for ids, text in zip(ours, cases))
    return Row(name, against, "ids", len(cases), wrong, wrong / len(cases), wrong, 0, "FAIL" if wrong else "pass")


# ---------------------------------------------------------------------------------------------------------- the tool


class Model(NamedTuple):
    """The model named by --model_size."""

    name: str
    encoder: Encoder
    params: Params
    n_head: int


def model_parts(model: Model) -> dict[str, Part]:
    """The whole model and its cached steps, on more positions than N_BLOCK where it has them."""
    ids = some_ids(len(model.params["wte"]), min(len(model.params["wpe"]), 110))
    held: dict[str, Params] = {}

    def params(dtype: str) -> Params:
        if dtype not in held:
            held.clear()
            held[dtype] = as_dtype(model.params, dtype)
        return held[dtype]

    def whole(dtype: str) -> Iterator[Case]:
        yield model_case(params(dtype), model.n_head, ids)

    def cached(dtype: str) -> Iterator[Case]:
        for chunks in chunks_of(len(ids)):
            yield model_case(params(dtype), model.n_head, ids, [n for n in chunks if n])

    found = {"gpt2": whole, "cached steps": cached}
    return {f"{name}, {model.name}": PARTS[name]._replace(cases=cases) for name, cases in found.items()}


def compare(model: Model | None, wanted: Callable[[str], bool] = lambda name: True) -> Iterator[Row]:
    """The lines of the table for the parts that are wanted, and for a model if there is one, as they are done."""
    from tqdm import tqdm

    parts = PARTS | (model_parts(model) if model else {})
    found = [(name, part) for name, part in parts.items() if wanted(name.split(",")[0])]
    # one dtype of a part after another: a model is then converted once
    work = [(name, lib, dtype, part) for name, part in found for dtype in DTYPES for lib in part.theirs]
    encoders = {"tokenizer": made_up_encoder()} | ({f"tokenizer, {model.name}": model.encoder} if model else {})
    tokens = [(name, lib) for name in encoders for lib in ("tiktoken", "tokenizers") if wanted("tokenizer")]
    with tqdm(total=len(work) + len(tokens), desc="comparing", unit="row", file=sys.stderr, disable=None) as bar:
        for name, lib, dtype, part in work:
            yield row_of(name, lib, dtype, part, part.cases(dtype))
            bar.update()
        for name, lib in tokens:
            yield tokenizer_row(name, lib, encoders[name])
            bar.update()


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
    folder = provide(args.model_size, args.models_dir)
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
