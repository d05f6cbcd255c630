"""Other people's implementations behind the signatures of ours: PyTorch, transformers, TensorFlow, tokenizers.

What `compare` compares with, and `bench --peers` times. Each takes gpt2.py's arguments and returns an array of the same
dtype. A library is imported where it is used.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np

from encoder import END_OF_TEXT, Encoder
from picogpt.checkpoints.writing import tensorflow

Array = np.ndarray[Any, np.dtype[Any]]
Params = dict[str, Any]

# ----------------------------------------------------------------------------------------------------------- PyTorch


def tensor(x: Any) -> Any:
    import torch

    return torch.from_numpy(np.array(x))


def in_torch(function: Callable[..., Any]) -> Any:
    """Call with arrays as tensors, without gradients, and give back an array."""

    @functools.wraps(function)
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
    """Of a GELU module with an even number of heads, PyTorch's own fast path would compute the erf form: a function."""
    import torch

    gelu, n = partial(torch.nn.functional.gelu, approximate="tanh"), x.shape[-1]
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
def hf_cached(ids: Any, params: Params, n_head: int, ways: list[list[int]]) -> Any:
    """Each chunk with the keys and values that the chunks before it have left."""
    import torch

    rows = []
    for chunks in ways:
        past = None
        for chunk in ids.split(chunks):
            out = hf_model(params, n_head)(chunk[None], past_key_values=past, use_cache=True)
            past = out.past_key_values
            rows.append(out.logits[0])
    whole = hf_gpt2.__wrapped__(ids, params, n_head)
    return torch.cat([*rows, whole[-2:], whole[-1:]])


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


def tf_mha(x: Array, attn: Params, n_head: int) -> Any:
    """By TensorFlow's operations: Keras's MultiHeadAttention rounds 1 / sqrt(d_head) to float32 in float64, too."""
    tf = tensorflow()
    n_seq, n_embd = x.shape
    heads = tf.reshape(tf_linear(x, **attn["c_attn"]), (n_seq, 3, n_head, n_embd // n_head))
    q, k, v = tf.unstack(tf.transpose(heads, (1, 2, 0, 3)))
    visible = tf.linalg.band_part(tf.ones((n_seq, n_seq), tf.bool), -1, 0)
    merged = tf.transpose(tf_attention(q, k, v, visible), (1, 0, 2))
    return tf_linear(tf.reshape(merged, (n_seq, n_embd)), **attn["c_proj"])


def tf_block(x: Array, block: Params, n_head: int) -> Any:
    x = x + tf_mha(tf_layer_norm(x, **block["ln_1"]), block["attn"], n_head)
    return x + tf_ffn(tf_layer_norm(x, **block["ln_2"]), **block["mlp"])


def tf_gpt2(ids: Array, params: Params, n_head: int) -> Any:
    tf = tensorflow()
    x = tf.gather(params["wte"], ids) + params["wpe"][: len(ids)]
    for block in params["blocks"]:
        x = tf_block(x, block, n_head)
    return tf.matmul(tf_layer_norm(x, **params["ln_f"]), params["wte"], transpose_b=True).numpy()


# ------------------------------------------------------------------------------------------------------- tokenizers


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


TOKENIZERS = {"tiktoken": by_tiktoken, "tokenizers": by_tokenizers}

# Every part by the name it has in gpt2.py, where it has one; each function by the library it comes from.
ATTENTION = {"torch": torch_attention, "transformers": hf_attention, "tensorflow": tf_attention}
OTHERS: dict[str, dict[str, Callable[..., Any]]] = {
    "gelu": {"torch": torch_gelu, "transformers": hf_gelu, "tensorflow": tf_gelu},
    "softmax": {"torch": torch_softmax, "tensorflow": tf_softmax},
    "layer_norm": {"torch": torch_layer_norm, "tensorflow": tf_layer_norm},
    "linear": {"torch": torch_linear, "transformers": hf_linear, "tensorflow": tf_linear},
    "ffn": {"torch": torch_ffn, "transformers": hf_ffn, "tensorflow": tf_ffn},
    "attention": ATTENTION,
    "causal_attention": ATTENTION,
    "mha": {"torch": torch_mha, "transformers": hf_mha, "tensorflow": tf_mha},
    "transformer_block": {"torch": torch_block, "transformers": hf_block, "tensorflow": tf_block},
    "gpt2": {"transformers": hf_gpt2, "tensorflow": tf_gpt2},
    "cached steps": {"transformers": hf_cached},
    "sampling filters": {"transformers": hf_sampling},
}
