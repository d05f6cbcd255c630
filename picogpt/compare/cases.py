"""Make the inputs on which gpt2.py and other libraries are compared: made-up numbers, and a model's own values.

A case is a tuple of arguments that both of them get. `MADE_UP` makes cases of every part from made-up numbers, and
`ModelCases` takes them from a model's forward pass. There, every function gets the values that gpt2.py computed before
it, so that an error in one function shows only in its own lines of the table and in those of its callers.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import numpy as np

import gpt2
from encoder import BYTE_TO_CHAR, END_OF_TEXT, Encoder
from picogpt.checkpoints.writing import made_up_merges
from picogpt.tracing.recorder import trace
from utils import expected_shapes, nest

Array = np.ndarray[Any, np.dtype[Any]]
Params = Any
Case = tuple[Any, ...]
Cases = Callable[[str], Iterator[Case]]  # the cases of a part, from the name of a dtype

SMALL = {"n_vocab": 101, "n_ctx": 140, "n_embd": 24, "n_head": 4, "n_layer": 3}  # n_ctx is more than one block of 96
ONES = {"n_vocab": 7, "n_ctx": 5, "n_embd": 2, "n_head": 1, "n_layer": 1}  # a wrong np.squeeze would drop sizes of 1


# ------------------------------------------------------------------------------------------------- made-up numbers


def inputs(shape: tuple[int, ...], dtype: str, large: float = 1e15) -> Iterator[Array]:
    """Yield arrays of random, large, tiny, denormal, constant and zero numbers, and the first random row alone."""
    rng = np.random.default_rng(0)
    smallest = float(np.finfo(dtype).smallest_normal)
    x = rng.standard_normal(shape)
    yield x.astype(dtype)
    yield (x * large).astype(dtype)
    yield (x * smallest * 1e6).astype(dtype)
    yield (rng.uniform(-1, 1, shape) * smallest).astype(dtype)
    yield np.full(shape, 0.1, dtype)
    yield np.zeros(shape, dtype)
    if len(shape) > 1:
        yield x[..., :1, :].astype(dtype)


def weights(hparams: dict[str, int], dtype: str, scale: float = 0.3, constant: bool = False) -> Params:
    """Return parameters that are random or all equal. Biases and gains are as large as weights, so that all matter."""
    rng = np.random.default_rng(1)
    shapes = expected_shapes(hparams).items()
    tensors = {name: np.ones(shape) if constant else rng.standard_normal(shape) for name, shape in shapes}
    return nest({name: (tensor * scale).astype(dtype) for name, tensor in tensors.items()}, hparams["n_layer"])


def as_dtype(tree: Any, dtype: str) -> Any:
    """Return parameters in another dtype. Those that have it already are not copied."""
    if isinstance(tree, dict):
        return {name: as_dtype(value, dtype) for name, value in tree.items()}
    return [as_dtype(value, dtype) for value in tree] if isinstance(tree, list) else tree.astype(dtype, copy=False)


def random_ids(n_vocab: int, n: int) -> Array:
    return np.random.default_rng(3).integers(0, n_vocab, n)


# ----------------------------------------------------------------------------------------------- the parts, bottom up


def gelu_cases(dtype: str) -> Iterator[Case]:
    """Yield the arrays of `inputs`, special points, and two fine grids: the whole curve, and its shallow dip alone."""
    points = np.array([-1e4, -10, -5.1, -3, -1, -0.0, 0.0, 1e-4, 1, 3, 5.1, 10, 1e4], dtype)
    grids = [np.linspace(start, stop, 999).astype(dtype) for start, stop in ((-6, 6), (-3, -1))]
    for x in (*inputs((7, 33), dtype), *inputs((1, 1), dtype), points, *grids):
        yield (x,)


def softmax_cases(dtype: str) -> Iterator[Case]:
    for shape in ((7, 33), (2, 3, 1), (1, 1)):
        for x in inputs(shape, dtype):
            yield (x,)


def layer_norm_cases(dtype: str) -> Iterator[Case]:
    """Yield the arrays of `inputs`, and two more that are hard for a layer norm.

    With a mean of 300 standard deviations, the formula E[x²] - E[x]² loses too many digits. With a variance of 1e-5,
    another eps shows.
    """
    rng = np.random.default_rng(1)
    for shape in ((7, 33), (2, 3, 48), (1, 1)):
        g, b = (rng.standard_normal(shape[-1:]).astype(dtype) for _ in range(2))
        x = next(inputs(shape, dtype))
        for case in (*inputs(shape, dtype), x + 300, x * 0.003):
            yield case.astype(dtype), g, b


def linear_cases(dtype: str) -> Iterator[Case]:
    rng = np.random.default_rng(1)
    for n_seq, n_in, n_out in ((7, 33, 33), (5, 48, 20), (1, 1, 1), (3, 1, 4)):
        w, b = (rng.standard_normal(shape).astype(dtype) for shape in ((n_in, n_out), (n_out,)))
        for x in inputs((n_seq, n_in), dtype):
            yield x, w, b
            yield x / (4 * n_in), w, np.zeros_like(b)  # b would hide tiny sums; small terms keep sums denormal


def ffn_cases(dtype: str) -> Iterator[Case]:
    for hparams in (SMALL, ONES):
        mlp = weights(hparams, dtype)["blocks"][0]["mlp"]
        for x in inputs((7, hparams["n_embd"]), dtype):
            yield x, mlp["c_fc"], mlp["c_proj"]


def causal(q: Array, k: Array) -> Array:
    """Return the causal mask for the references, True where a query may look. Our causal_attention makes its own."""
    n_q, n_k = q.shape[-2], k.shape[-2]
    return np.tri(n_q, n_k, n_k - n_q, dtype=bool)


def attention_cases(dtype: str) -> Iterator[Case]:
    for n_head, n_q, n_k, d_head in ((3, 6, 6, 8), (2, 4, 9, 5), (1, 1, 7, 4), (1, 1, 1, 1)):
        for q in inputs((n_head, n_q, d_head), dtype, large=5):
            k, v = np.random.default_rng(2).standard_normal((2, n_head, n_k, d_head)).astype(dtype)
            yield q, k, v, causal(q, k)
            yield q, k, v, None


def causal_attention_cases(dtype: str) -> Iterator[Case]:
    """Yield fewer queries than a block of 96 and more, because the blocks of `causal_attention` must change nothing."""
    for n_q, n_k in ((6, 6), (4, 9), (1, 7), (130, 130), (120, 140)):
        q, k, v = (np.random.default_rng(n).standard_normal((2, n, 8)).astype(dtype) for n in (n_q, n_k, n_k + 1))
        yield q, k, v[:, :n_k], causal(q, k)


def mha_cases(dtype: str) -> Iterator[Case]:
    for hparams in (SMALL, ONES):
        for x in inputs((5, hparams["n_embd"]), dtype, large=10):
            yield x, weights(hparams, dtype)["blocks"][0]["attn"], hparams["n_head"]


def transformer_block_cases(dtype: str) -> Iterator[Case]:
    for hparams in (SMALL, ONES):
        for x in inputs((5, hparams["n_embd"]), dtype, large=1e6):
            yield x, weights(hparams, dtype)["blocks"][0], hparams["n_head"]


def gpt2_cases(dtype: str) -> Iterator[Case]:
    """Yield small models with weights of ordinary size, and with large, tiny, denormal and constant weights.

    The embeddings are never constant. Of a row of equal numbers, a layer norm leaves only rounding errors, and it
    multiplies these by 1/√eps = 316: after a few layers, two correct results have no digit in common. Constant rows are
    tested by `layer_norm_cases` instead.
    """
    smallest = float(np.finfo(dtype).smallest_normal)
    random, constant = weights(SMALL, dtype), weights(SMALL, dtype, scale=0.1, constant=True)
    embeddings = {name: random[name] for name in ("wte", "wpe")}
    large = random | {name: array * 1e4 for name, array in embeddings.items()}
    tiny, denormal = (weights(SMALL, dtype, scale) for scale in (1e-3, 0.1 * smallest))
    models = [(params, SMALL) for params in (random, large, tiny, denormal, constant | embeddings)]
    for params, hparams in [*models, (weights(ONES, dtype), ONES)]:
        for n in (1, 2, hparams["n_ctx"]):
            yield random_ids(hparams["n_vocab"], n), params, hparams["n_head"]
        yield np.full(5, 3), params, hparams["n_head"]


def in_pieces(cases: Iterator[Case]) -> Iterator[Case]:
    """To each case of `gpt2`, add three ways to feed the ids in pieces, as lists of the pieces' lengths.

    The ways are a prompt and then single ids, five single ids and then the rest, and two halves.
    """
    for ids, *rest in cases:
        n = len(ids)
        few, more = min(3, n - 1), min(5, n - 1)
        ways = [n - few, *[1] * few], [*[1] * more, n - more], [n // 2, n - n // 2]
        yield ids, *rest, [[piece for piece in way if piece] for way in ways]


def cached_cases(dtype: str) -> Iterator[Case]:
    return in_pieces(gpt2_cases(dtype))


def filter_cases(x: Array) -> Iterator[Case]:
    """Yield the logits with many settings of the filters, but not if a filter would keep only one of two equal logits.

    In that case the results differ on purpose: gpt2.py keeps the lower id, and transformers keeps both.
    """
    rng, seen = np.random.default_rng(4), [3, 1, 4, 1, 5]
    settings = [(1.0, 0, 1.0, 1.0), *((t, 0, 1.0, 1.0) for t in (0.05, 0.7, 5.0)), (1.0, 0, 1.0, 1.3)]
    settings += [(1.0, k, 1.0, 1.0) for k in (1, 7, len(x))]
    settings += [(1.0, 0, p, 1.0) for p in (1e-9, *np.linspace(0.05, 0.99, 20).tolist())]
    settings += [(float(rng.uniform(0.3, 2)), 20, 0.81, 1.2) for _ in range(5)]
    for setting in settings:
        kept = np.asarray(gpt2.token_probs(x, seen, *setting)) > 0  # type: ignore[arg-type]
        if kept.all() or not np.isin(x[~kept], x[kept]).any():
            yield x, seen, *setting


def sampling_cases(dtype: str) -> Iterator[Case]:
    for x in inputs((50,), dtype):
        yield from filter_cases(x)


MADE_UP: dict[str, Cases] = {
    "gelu": gelu_cases,
    "softmax": softmax_cases,
    "layer_norm": layer_norm_cases,
    "linear": linear_cases,
    "ffn": ffn_cases,
    "attention": attention_cases,
    "causal_attention": causal_attention_cases,
    "mha": mha_cases,
    "transformer_block": transformer_block_cases,
    "gpt2": gpt2_cases,
    "cached steps": cached_cases,
    "sampling filters": sampling_cases,
}


# ------------------------------------------------------------------------------------- the model named by --model_size


class ModelCases:
    """A model, and the arguments that each part of it gets in a forward pass, in float32 and in float64."""

    def __init__(self, name: str, encoder: Encoder, params: Params, n_head: int):
        self.name, self.encoder, self.original, self.n_head = name, encoder, params, n_head
        self.ids = random_ids(len(params["wte"]), min(len(params["wpe"]), 110))  # more than one block where they fit
        self.params: dict[str, Params] = {}
        self.values: dict[str, dict[str, Array]] = {}

    def at(self, dtype: str) -> tuple[Params, dict[str, Array]]:
        """Return the parameters and the traced values. The forward pass runs at the first call for a dtype."""
        if dtype not in self.values:
            self.params[dtype] = as_dtype(self.original, dtype)
            with trace() as t:
                gpt2.gpt2(self.ids, **self.params[dtype], n_head=self.n_head)
            self.values[dtype] = t.passes[0]
        return self.params[dtype], self.values[dtype]

    def layers(self, dtype: str) -> Iterator[tuple[Params, dict[str, Array]]]:
        """Yield each layer's parameters and its values, with the layer's input as "in"."""
        params, values = self.at(dtype)
        x = values["embedding"]
        for layer, block in enumerate(params["blocks"]):
            prefix = f"h{layer}/"
            own = {name.removeprefix(prefix): value for name, value in values.items() if name.startswith(prefix)}
            yield block, own | {"in": x}
            x = own["out"]

    def whole(self, dtype: str) -> Iterator[Case]:
        yield self.ids, self.at(dtype)[0], self.n_head

    def by_part(self) -> dict[str, Cases]:
        """Return the cases of every part, in the form of `MADE_UP`."""

        def in_layers(part: str, dtype: str) -> Iterator[Case]:
            for block, values in self.layers(dtype):
                yield from layer_cases(block, values, self.n_head)[part]

        return {part: partial(in_layers, part) for part in MADE_UP} | {
            "gpt2": self.whole,
            "cached steps": lambda dtype: in_pieces(self.whole(dtype)),
            "sampling filters": lambda dtype: filter_cases(self.at(dtype)[1]["logits"][-1]),
        }


def layer_cases(block: Params, values: dict[str, Array], n_head: int) -> dict[str, list[Case]]:
    """Return the cases of every part within one layer, from its parameters and its values."""
    attn, mlp = block["attn"], block["mlp"]
    layers = {"ln_1": attn["c_attn"], "attn/merged": attn["c_proj"], "ln_2": mlp["c_fc"], "mlp/gelu": mlp["c_proj"]}
    norms = (("in", block["ln_1"]), ("mid", block["ln_2"]))
    q, k, v = (values[f"attn/{name}"] for name in "qkv")
    attention: list[Case] = [(q, k, v, causal(q, k))]
    return {
        "gelu": [(values["mlp/c_fc"],)],
        "softmax": [(values["attn/scores"],)],
        "layer_norm": [(values[x], norm["g"], norm["b"]) for x, norm in norms],
        "linear": [(values[x], layer["w"], layer["b"]) for x, layer in layers.items()],
        "ffn": [(values["ln_2"], mlp["c_fc"], mlp["c_proj"])],
        "attention": attention,
        "causal_attention": attention,
        "mha": [(values["ln_1"], attn, n_head)],
        "transformer_block": [(values["in"], block, n_head)],
    }


# --------------------------------------------------------------------------------------------------------- tokenizers

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
    """Return tricky texts, random mixtures of their characters, and random Unicode without surrogates."""
    rng = np.random.default_rng(5)
    mixed = ["".join(rng.choice(list("".join(TEXTS)), 40)) for _ in range(100)]
    codes = rng.integers(0, 0x110000, (100, 20))
    return TEXTS + mixed + ["".join(chr(c) for c in row if not 0xD800 <= c < 0xE000) for row in codes]


def made_up_encoder() -> Encoder:
    """Return a tokenizer whose merges overlap, so that the order in which they are applied matters."""
    merges = ["t h", "h e", "th e", "i n", "Ġ the", "Ġ t", "a n", "n d", "an d", "x x", "xx xx"]
    merges += [merge for merge in made_up_merges(3000) if merge not in merges]
    tokens = list(dict.fromkeys([*BYTE_TO_CHAR.values(), *(merge.replace(" ", "") for merge in merges), END_OF_TEXT]))
    return Encoder({token: id for id, token in enumerate(tokens)}, merges)
