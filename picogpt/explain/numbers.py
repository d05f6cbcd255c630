"""What a model computes for one text, as plain arrays: probabilities, logit lens, attention, residual stream.

    inside = look_inside("Alan Turing theorized that computers", "124M")
    inside.attention[11, 3]

All of it comes from one forward pass of gpt2.py, recorded by `trace`, and from gpt2.py's own functions. The logit lens
(nostalgebraist 2020, "interpreting GPT: the logit lens") treats what a layer hands on as if it were the last: the final
layer norm and the embedding make scores of it. Of the last layer, these are the model's logits, bit for bit.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

import gpt2
from encoder import Encoder
from picogpt.explain.text import visible
from picogpt.trace import prompt_ids, trace
from utils import UsageError, load_encoder_hparams_and_params

if TYPE_CHECKING:
    from picogpt.trace import Array
    from picogpt.typing.shapes import Params


class Settings(NamedTuple):
    """How generation would choose, as gpt2.py's options of these names; at first, the model's own probabilities."""

    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    repetition_penalty: float = 1.0

    def changed(self) -> list[str]:
        """What is not the default: ["top_k 40"], or nothing where the probabilities are the model's own."""
        return [f"{name} {x:g}" for name, x in self._asdict().items() if x != self._field_defaults[name]]


def check(top: int, settings: Settings) -> None:
    """Raise UsageError for numbers that mean nothing: the command line refuses them when it reads them."""
    limits = [(1, math.inf), (0, math.inf), (0, math.inf), (0, 1), (0.01, 100)]
    for name, value, (low, high) in zip(("top", *Settings._fields), (top, *settings), limits):
        if not low <= value <= high:
            raise UsageError(f"{name} {value} is not from {low} to {high}")


@dataclass(frozen=True, eq=False)
class Inside:
    """What a model computed for n_seq tokens. Row i of the lens is about what follows token i; layer 0 of lens and
    residual is the embedding, layer l + 1 what block l hands on.

    Example: inside.text(inside.lens_ids[-1, -1, 0]) is what the model would say next.
    """

    encoder: Encoder
    ids: Array  # [n_seq]
    probs: Array  # [n_seq] of each token after those before it; nan for the first
    ranks: Array  # [n_seq] 1 where the token was the likeliest; 0 for the first; says nothing where probs is 0
    lens_ids: Array  # [n_layer + 1, n_seq, top] the likeliest tokens, the likeliest first
    lens_probs: Array  # [n_layer + 1, n_seq, top]
    attention: Array  # [n_layer, n_head, n_seq, n_seq] row i: how much token i looks at each token; sums to 1
    residual: Array  # [n_layer + 1, n_seq] the length (L2 norm) of the residual stream's vectors
    settings: Settings  # whose probabilities they are

    @functools.cached_property
    def bits(self) -> Array:
        """The surprisal of each token, -log2 of its probability. [n_seq]"""
        with np.errstate(divide="ignore"):
            return np.abs(np.log2(self.probs))  # abs: a certain token has 0 bits, not -0

    def text(self, id: int) -> str:
        return visible(self.encoder.token_bytes(int(id)))

    @functools.cached_property
    def texts(self) -> list[str]:
        """Each token as it is shown."""
        return [self.text(id) for id in self.ids]


def layer_name(layer: int) -> str:
    """The name of a layer of lens and residual, as `trace` has it."""
    return f"h{layer - 1}" if layer else "embedding"


def forward(ids: Sequence[int], params: Params, n_head: int) -> tuple[list[Array], Array]:
    """One pass: the residual stream, n_layer + 1 of [n_seq, n_embd], and the attention [n_layer, n_head, n_seq, n_seq].

    All else that was recorded, gigabytes for a full context of 124M, is let go.
    """
    with trace() as t:
        gpt2.gpt2(ids, **params, n_head=n_head)
    layers = range(len(params["blocks"]))
    stream = [t["embedding"], *(t[f"h{layer}/out"] for layer in layers)]
    return stream, np.stack([t[f"h{layer}/attn/probs"] for layer in layers])


def lens(x: Any, params: Params) -> Any:
    """The logits of a residual stream, by the last line of gpt2.gpt2. [n_seq, n_embd] -> [n_seq, n_vocab]"""
    return gpt2.layer_norm(x, **params["ln_f"]) @ np.transpose(params["wte"])


def likeliest(probs: Array, top: int) -> Array:
    """The ids of the largest, the largest first; the lower id of equals, as `gpt2.greedy` has it. [n_vocab] -> [top]"""
    ids = np.flatnonzero(probs >= np.partition(probs, -top)[-top])
    return ids[np.argsort(-probs[ids], kind="stable")[:top]]


def distributions(logits: Array, ids: Sequence[int], settings: Settings) -> list[Array]:
    """What generation would draw from after each token. logits [n_seq, n_vocab] -> n_seq of [n_vocab]"""
    return [np.asarray(gpt2.token_probs(row, ids[: i + 1], *settings)) for i, row in enumerate(logits)]


def chosen(probs: list[Array], ids: Sequence[int]) -> tuple[Array, Array]:
    """Probability and rank of each token in what was predicted before it. -> [n_seq], [n_seq]"""
    theirs = [row[id] for row, id in zip(probs, ids[1:])]
    ranks = [1 + np.count_nonzero(row > p) for row, p in zip(probs, theirs)]
    return np.array([np.nan, *theirs]), np.array([0, *ranks])


def examine(
    ids: Sequence[int], encoder: Encoder, params: Params, n_head: int, top: int = 5, settings: Settings | None = None
) -> Inside:
    """Run the model over ids once and keep what there is to see. Only the top tokens of the lens are kept."""
    from tqdm import tqdm

    settings = settings or Settings()
    stream, attention = forward(ids, params, n_head)
    top = min(top, len(params["wte"]))
    lens_ids, lens_probs = [], []
    for x in tqdm(stream, desc="logit lens", leave=False, disable=None):
        probs = distributions(lens(x, params), ids, settings)
        lens_ids.append([likeliest(row, top) for row in probs])
        lens_probs.append([row[best] for row, best in zip(probs, lens_ids[-1])])
    return Inside(
        encoder,
        np.array(ids),
        *chosen(probs, ids),
        np.array(lens_ids),
        np.array(lens_probs),
        attention,
        np.stack([np.linalg.norm(x, axis=-1) for x in stream]),
        settings,
    )


def look_inside(
    prompt: str,
    model_size: str = "124M",
    models_dir: str | Path = "models",
    top: int = 5,
    settings: Settings | None = None,
) -> Inside:
    """What a model computes for a prompt. Raises OSError or ValueError in one line, as the command line would."""
    settings = settings or Settings()
    check(top, settings)
    encoder, hparams, params = load_encoder_hparams_and_params(model_size, models_dir)
    return examine(prompt_ids(encoder, prompt, hparams["n_ctx"]), encoder, params, hparams["n_head"], top, settings)
