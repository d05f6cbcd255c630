"""Compute the numbers that show how a model reads a text: probabilities, logit lens, attention, residual stream.

    inside = look_inside("Alan Turing theorized that computers", "124M")
    inside.attention[11, 3]

All of them come from one forward pass of gpt2.py, which `trace` records, and from gpt2.py's own functions. The logit
lens (nostalgebraist 2020, "interpreting GPT: the logit lens") decodes the output of every layer as if that layer were
the last one: it applies the final layer norm and multiplies by the token embeddings. For the last layer, the result
equals the model's logits bit for bit.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

import gpt2
from encoder import Encoder
from picogpt.command_line import UsageError
from picogpt.explain.text import decimals, one_line
from picogpt.notebook import load
from picogpt.probabilities import likeliest
from picogpt.terminal_text import in_context, visible
from picogpt.tracing.recorder import trace
from picogpt.tracing.replacing import Change

if TYPE_CHECKING:
    from picogpt.notebook import AnyModel
    from picogpt.typing.shapes import Params

Array = np.ndarray[Any, np.dtype[Any]]


class Settings(NamedTuple):
    """The sampling options of gpt2.py. The defaults leave the model's probabilities unchanged."""

    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    repetition_penalty: float = 1.0

    def changed(self) -> list[str]:
        """Return the settings that differ from their defaults, such as ["temperature 0.8", "top_k 40"]."""
        return [f"{name} {x:g}" for name, x in self._asdict().items() if x != self._field_defaults[name]]

    def describe(self) -> str:
        """Return the changed settings as one text, or "the model's own" if none is changed."""
        return ", ".join(self.changed()) or "the model's own"


PLAIN = Settings()  # the probabilities are the model's own


@dataclass(frozen=True, eq=False, repr=False)
class Inside:
    """The numbers that a model computes for a text of n_seq tokens.

    lens_ids[3], lens_probs[3], residual[3] and attention[3] belong to layer 3. stream_ids, stream_probs and
    stream_lengths have the embedding before the layers: stream_ids[0]. The lens predicts the next token: position i is
    about the token that follows token i.

    Example: inside.text(inside.lens_ids[-1, -1, 0]) is the most likely next token.
    """

    encoder: Encoder
    ids: Array  # [n_seq]
    probs: Array  # [n_seq] the probability of each token given those before it; nan for the first token
    ranks: Array  # [n_seq] 1 for a token that was the most likely; 0 for the first token; meaningless where probs is 0
    stream_ids: Array  # [n_layer + 1, n_seq, top] the lens: the most likely tokens, beginning with the most likely one
    stream_probs: Array  # [n_layer + 1, n_seq, top] their probabilities
    attention: Array  # [n_layer, n_head, n_seq, n_seq] row i: how much token i attends to each token; sums to 1
    stream_lengths: Array  # [n_layer + 1, n_seq] the length (L2 norm) of each vector in the residual stream
    settings: Settings  # the sampling options that the probabilities take into account
    model: str = ""  # the name of the model
    whole: Inside | None = None  # the same text in the whole model, if parts of this one were replaced

    def __repr__(self) -> str:
        """Return a short summary, which a notebook shows, instead of all the numbers."""
        return f"{self.caption(60)}\n{self.summary}\n{self.arrays}"

    def _repr_html_(self) -> str:
        """Return the page, in a frame that works offline, which a notebook shows."""
        from picogpt.explain.frame import frame

        return frame(self)

    @property
    def arrays(self) -> str:
        """The names and shapes of the arrays, on one line."""
        names = ("ids", "probs", "bits", "ranks", "lens_ids", "lens_probs", "attention", "residual")
        return "arrays: " + ", ".join(f"{name} {list(getattr(self, name).shape)}" for name in names)

    @property
    def lens_ids(self) -> Array:
        """The most likely tokens after each layer, beginning with the most likely one. [n_layer, n_seq, top]"""
        return self.stream_ids[1:]

    @property
    def lens_probs(self) -> Array:
        """The probabilities of lens_ids. [n_layer, n_seq, top]"""
        return self.stream_probs[1:]

    @property
    def residual(self) -> Array:
        """The length (L2 norm) of each vector in the residual stream after each layer. [n_layer, n_seq]"""
        return self.stream_lengths[1:]

    @functools.cached_property
    def bits(self) -> Array:
        """The surprisal of each token in bits: -log2 of its probability. [n_seq]"""
        with np.errstate(divide="ignore"):
            return np.abs(np.log2(self.probs))  # abs, because -log2(1) would be shown as -0

    @functools.cached_property
    def change(self) -> Array:
        """How many bits of surprisal the replaced parts add to each token; nan where there is no number. [n_seq]"""
        if self.whole is None:
            return np.full(len(self.ids), np.nan)
        with np.errstate(invalid="ignore"):
            return self.bits - self.whole.bits

    def text(self, id: int) -> str:
        """Return a token as visible text."""
        return visible(self.encoder.token_bytes(int(id)))

    @functools.cached_property
    def texts(self) -> list[str]:
        """All tokens as visible text. Tokens that hold only a part of a character name it: "你 1/2"."""
        return in_context([self.encoder.token_bytes(id) for id in self.ids.tolist()])

    @property
    def summary(self) -> str:
        """The number of tokens, and the sum and the mean of their surprisals."""
        known, n = self.bits[1:], len(self.ids)
        total = f", {decimals(known.sum(), 2)} bits, {decimals(known.mean(), 2)} bits per token" if len(known) else ""
        return f"{n} token{'s' * (n > 1)}{total}"

    def caption(self, width: int) -> str:
        """Name the model and the text on one line. At most `width` columns of the text are shown."""
        text = one_line(self.encoder.decode(self.ids.tolist()), width)
        return f'{self.model} reads "{text}"' if self.model else f'"{text}"'


def positions(tokens: slice | None, n_seq: int) -> range:
    """Return the positions that a slice without a step chooses of n_seq tokens; without a slice, all.

    A negative position counts from the end, as in Python. Raises UsageError if the slice chooses none.
    """
    if tokens is None:
        return range(n_seq)
    if tokens.step not in (None, 1):
        raise UsageError(f"tokens can't be chosen with a step of {tokens.step}")
    chosen = range(n_seq)[tokens]
    if not chosen:
        a, b = ("" if x is None else x for x in (tokens.start, tokens.stop))
        raise UsageError(f"tokens {a}:{b} are none of the text's {n_seq} tokens, which are 0 to {n_seq - 1}")
    return chosen


def layer_name(layer: int) -> str:
    """Return the name of a layer of the lens: "embedding", then "layer 0" and so on, as --layer counts them."""
    return f"layer {layer - 1}" if layer else "embedding"


def forward(
    ids: Sequence[int], params: Params, n_head: int, replace: Mapping[str, Change] | None = None
) -> tuple[list[Array], Array]:
    """Run the model once. Return the residual stream and the attention probabilities. `trace` replaces values.

    The residual stream is a list of n_layer + 1 arrays [n_seq, n_embd]. The attention is [n_layer, n_head, n_seq,
    n_seq]. Everything else in the trace, gigabytes for a full context of 124M, is freed on return.
    """
    with trace(replace) as t:
        gpt2.gpt2(ids, **params, n_head=n_head)
    layers = range(len(params["blocks"]))
    stream = [t["embedding"], *(t[f"h{layer}/out"] for layer in layers)]
    return stream, np.stack([t[f"h{layer}/attn/probs"] for layer in layers])


def lens(x: Any, params: Params) -> Any:
    """Turn a residual stream into logits, as the last line of gpt2.gpt2 does. [n_seq, n_embd] -> [n_seq, n_vocab]"""
    return gpt2.layer_norm(x, **params["ln_f"]) @ np.transpose(params["wte"])


def distributions(logits: Array, ids: Sequence[int], settings: Settings) -> list[Array]:
    """Return the distribution that sampling would draw from after each token. [n_seq, n_vocab] -> n_seq of [n_vocab]"""
    return [np.asarray(gpt2.token_probs(row, ids[: i + 1], *settings)) for i, row in enumerate(logits)]


def probs_and_ranks(probs: list[Array], ids: Sequence[int]) -> tuple[Array, Array]:
    """Return the probability and rank of each token, as predicted at the position before it. -> [n_seq], [n_seq]"""
    found = [row[id] for row, id in zip(probs, ids[1:])]
    ranks = [1 + np.count_nonzero(~(row <= p)) for row, p in zip(probs, found)]  # NaN is never the likeliest
    return np.array([np.nan, *found]), np.array([0, *ranks])


@np.errstate(over="ignore", invalid="ignore")  # `check_finite` finds what comes of it
def examine(
    ids: Sequence[int],
    encoder: Encoder,
    params: Params,
    n_head: int,
    top: int = 5,
    settings: Settings = PLAIN,
    model: str = "",
    replace: Mapping[str, Change] | None = None,
) -> Inside:
    """Run the model over the ids once and collect the numbers. The lens keeps only the top most likely tokens.

    On a terminal, a line on stderr says what is being computed. `model` is the name that pictures give to the model,
    and `replace` what `trace` shall replace in it.
    Raises FloatingPointError for logits that are not finite.
    """
    from tqdm import tqdm

    top = min(top, len(params["wte"]))
    lens_ids, lens_probs = [], []
    with tqdm(total=len(params["blocks"]) + 2, desc="forward pass", leave=False, disable=None) as steps:
        stream, attention = forward(ids, params, n_head, replace)
        for layer, x in enumerate(stream):
            steps.set_description(f"logit lens, {layer_name(layer)}")
            steps.update()
            probs = distributions(gpt2.check_finite(lens(x, params)), ids, settings)
            lens_ids.append([likeliest(row, top) for row in probs])
            lens_probs.append([row[best] for row, best in zip(probs, lens_ids[-1])])
    lengths = np.stack([np.linalg.norm(x, axis=-1) for x in stream])
    found = probs_and_ranks(probs, ids)  # the loop ends with the last layer
    decoded: tuple[Array, Array] = (np.array(lens_ids), np.array(lens_probs))
    return Inside(encoder, np.array(ids), *found, *decoded, attention, lengths, settings, model)


def look_inside(
    prompt: str | Iterable[int],
    model: AnyModel = "124M",
    models_dir: str | Path = "models",
    top: int = 5,
    settings: Settings = PLAIN,
) -> Inside:
    """Compute the numbers for a prompt, a text or ids. The model is what `picogpt.load` takes, such as a name.

    Raises OSError or ValueError with a message of one line, and TypeError for what is no text or no model.
    """
    if not isinstance(models_dir, (str, Path)):
        raise TypeError("a model in memory is one argument: (encoder, hparams, params)")
    if top < 1:
        raise UsageError(f"top is {top}, but at least 1 token must be shown")
    loaded = load(model, models_dir=models_dir)
    ids = loaded.prompt(prompt)
    return examine(ids, loaded.encoder, loaded.params, loaded.n_head, top, settings, loaded.name)
