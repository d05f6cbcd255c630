"""Call other people's implementations of each part: PyTorch's, transformers', TensorFlow's, and two tokenizers.

Every function here takes the arguments of a case (cases.py) and returns an array of the same dtype. A library is
imported by the function that needs it, so that the others work without it. `bench --peers` times the tokenizers.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np

from encoder import Encoder
from picogpt.checkpoints.huggingface import config_settings, state_dict
from picogpt.tensorflow_process import shared_process

Array = np.ndarray[Any, np.dtype[Any]]
Params = dict[str, Any]

# ----------------------------------------------------------------------------------------------------------- PyTorch


def tensor(x: Any) -> Any:
    import torch

    return torch.from_numpy(np.array(x))


def in_torch(function: Callable[..., Any]) -> Any:
    """Turn a function of tensors into a function of arrays that computes no gradients."""

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
    """Return a PyTorch module that has these parameters, in their dtype, and is ready to run."""
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
    """Return the causal mask as PyTorch's modules take it: True where a query may not look."""
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
    """Run PyTorch's layer. GELU is a function here: for a GELU module, PyTorch's fast path computes the erf form."""
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


def hf_config(n_embd: int, n_head: int, n_vocab: int = 1, n_ctx: int = 1, n_layer: int = 1) -> Any:
    """Return the configuration of a model. For a part of a model, the last three sizes don't matter."""
    from transformers import GPT2Config

    hparams = {"n_vocab": n_vocab, "n_ctx": n_ctx, "n_embd": n_embd, "n_head": n_head, "n_layer": n_layer}
    return GPT2Config(**config_settings(hparams), attn_implementation="eager", bos_token_id=None, eos_token_id=None)


def hf_mask(x: Any) -> Any:
    """Return the causal mask to add to the scores: 0 where a query may look, the most negative number elsewhere."""
    import torch

    return torch.full((len(x), len(x)), torch.finfo(x.dtype).min, dtype=x.dtype).triu(1)[None, None]


@in_torch
def hf_gelu(x: Any) -> Any:
    from transformers.activations import NewGELUActivation

    return NewGELUActivation()(x)


@in_torch
def hf_linear(x: Any, w: Any, b: Any) -> Any:
    from transformers.pytorch_utils import Conv1D

    return filled(Conv1D(len(b), len(w)), {"weight": w.numpy(), "bias": b.numpy()})(x)


@in_torch
def hf_ffn(x: Any, c_fc: Params, c_proj: Params) -> Any:
    from transformers.models.gpt2.modeling_gpt2 import GPT2MLP

    module = GPT2MLP(len(c_fc["b"]), hf_config(x.shape[-1], 1))
    return filled(module, state_dict({"c_fc": c_fc, "c_proj": c_proj}))(x)


@in_torch
def hf_mha(x: Any, attn: Params, n_head: int) -> Any:
    from transformers.models.gpt2.modeling_gpt2 import GPT2Attention

    module = GPT2Attention(hf_config(x.shape[-1], n_head), layer_idx=0)
    return filled(module, state_dict(attn))(x[None], attention_mask=hf_mask(x))[0][0]


@in_torch
def hf_block(x: Any, block: Params, n_head: int) -> Any:
    from transformers.models.gpt2.modeling_gpt2 import GPT2Block

    module = filled(GPT2Block(hf_config(x.shape[-1], n_head), layer_idx=0), state_dict(block))
    out = module(x[None], attention_mask=hf_mask(x))
    return (out[0] if isinstance(out, tuple) else out)[0]  # versions of transformers differ in this


@in_torch
def hf_attention(q: Any, k: Any, v: Any, mask: Any) -> Any:
    """Run the function that transformers' GPT-2 calls between its two linear layers."""
    import torch
    from transformers.models.gpt2.modeling_gpt2 import eager_attention_forward

    added = None if mask is None else torch.where(mask, 0.0, -math.inf).to(q.dtype)[None, None]
    out, _ = eager_attention_forward(torch.nn.Module().eval(), q[None], k[None], v[None], added)
    return out[0].transpose(0, 1)


LATEST: dict[str, Any] = {}  # the model that was built last, with its parameters: cases in a row often share them


def hf_model(params: Params, n_head: int) -> Any:
    if LATEST.get("params") is not params:
        from transformers import GPT2LMHeadModel

        (n_vocab, n_embd), n_ctx = params["wte"].shape, len(params["wpe"])
        LATEST.clear()  # frees the memory before the next model takes as much
        model = GPT2LMHeadModel(hf_config(n_embd, n_head, n_vocab, n_ctx, len(params["blocks"])))
        state = state_dict(params, "transformer.") | {"lm_head.weight": params["wte"]}
        LATEST.update(params=params, model=filled(model, state))
    return LATEST["model"]


@in_torch
def hf_gpt2(ids: Any, params: Params, n_head: int) -> Any:
    return hf_model(params, n_head)(ids[None]).logits[0]


def without_cache(function: Callable[..., Array]) -> Callable[..., Array]:
    """Return the reference for cached steps: the same logits from one pass over all ids, which needs no cache."""

    def cached(ids: Array, params: Params, n_head: int, ways: list[list[int]]) -> Array:
        whole = function(ids, params, n_head)
        return np.concatenate([*[whole] * (len(ways) + 1), whole[-2:], whole[-2:]])

    return cached


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


def in_tensorflow(part: str, *case: Any) -> Any:
    """Call a function of tensorflow_parts.py in TensorFlow's own process, which goes on until this one ends."""
    return shared_process().call(run_part, part, *case)


def run_part(part: str, *case: Any) -> Any:
    """Do that in TensorFlow's process."""
    from picogpt.compare import tensorflow_parts

    return getattr(tensorflow_parts, part)(*case)


# ------------------------------------------------------------------------------------------------------- tokenizers


def by_tiktoken(encoder: Encoder, merges: list[str]) -> Callable[[str], list[int]]:
    """Return tiktoken's `encode`. It merges the pair with the lowest id, so ids must be in the order of the merges."""
    import tiktoken

    special = encoder.special_tokens
    ranks = {encoder.token_bytes(id): id for name, id in encoder.encoder.items() if name not in special}
    pieces = r"'(?:[sdmt]|ll|ve|re)| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
    encoding = tiktoken.Encoding("compared", pat_str=pieces, mergeable_ranks=ranks, special_tokens=special)
    return lambda text: list(encoding.encode_ordinary(text))


def by_tokenizers(encoder: Encoder, merges: list[str]) -> Callable[[str], list[int]]:
    """Return the `encode` of Hugging Face's tokenizers."""
    from tokenizers import Tokenizer
    from tokenizers.models import BPE
    from tokenizers.pre_tokenizers import ByteLevel

    pairs = [(a, b) for a, b in (merge.split(" ") for merge in merges)]
    tokenizer = Tokenizer(BPE(encoder.encoder, pairs))
    tokenizer.pre_tokenizer = ByteLevel(add_prefix_space=False)
    return lambda text: list(tokenizer.encode(text).ids)


TOKENIZERS = {"tiktoken": by_tiktoken, "tokenizers": by_tokenizers}

# For each part, the libraries that have one, with the function that calls it.
TF = partial(partial, in_tensorflow)  # TF("gelu") is a function that computes GELU in TensorFlow
ATTENTION = {"torch": torch_attention, "transformers": hf_attention, "tensorflow": TF("attention")}
REFERENCES: dict[str, dict[str, Callable[..., Any]]] = {
    "gelu": {"torch": torch_gelu, "transformers": hf_gelu, "tensorflow": TF("gelu")},
    "softmax": {"torch": torch_softmax, "tensorflow": TF("softmax")},
    "layer_norm": {"torch": torch_layer_norm, "tensorflow": TF("layer_norm")},
    "linear": {"torch": torch_linear, "transformers": hf_linear, "tensorflow": TF("linear")},
    "ffn": {"torch": torch_ffn, "transformers": hf_ffn, "tensorflow": TF("ffn")},
    "attention": ATTENTION,
    "causal_attention": ATTENTION,
    "mha": {"torch": torch_mha, "transformers": hf_mha, "tensorflow": TF("mha")},
    "transformer_block": {
        "torch": torch_block,
        "transformers": hf_block,
        "tensorflow": TF("transformer_block"),
    },
    "gpt2": {"transformers": hf_gpt2, "tensorflow": TF("gpt2")},
    "cached steps": {"transformers": without_cache(hf_gpt2)},
    "sampling filters": {"transformers": hf_sampling},
}
