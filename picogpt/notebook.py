"""One object for a model, for notebooks: its methods are the functions of gpt2.py and picogpt, by their short names.

    import picogpt
    model = picogpt.load("tiny")
    print(*model.generate("ROMEO:", temperature=0.8, seed=1), sep="")
    model.inside("To be, or not to")

Nothing is computed here. Each method turns its text into ids, and calls the one function that exists for its work.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias, cast, overload

import numpy as np

import gpt2
from encoder import Encoder
from picogpt.options import check_length, prompt_ids
from utils import load_encoder_hparams_and_params

if TYPE_CHECKING:
    from picogpt.explain.numbers import Inside, Settings
    from picogpt.tracing.recorder import Trace
    from picogpt.tracing.replacing import Change
    from picogpt.typing.shapes import Params, Vector, n_vocab

    Text: TypeAlias = str | Iterable[int]  # a text, or its ids
    AnyModel: TypeAlias = "Model | str | Path | tuple[Encoder, dict[str, int], Params]"

Array = np.ndarray[Any, np.dtype[Any]]


class Pieces(Iterator[str]):
    """The pieces of a text that the model generates while they are read, once."""

    def __init__(self, pieces: Iterator[str]):
        self.pieces = pieces

    def __next__(self) -> str:
        return next(self.pieces)

    def __repr__(self) -> str:
        return '<pieces of a text, generated while they are read: print(*pieces, sep="") or "".join(pieces)>'


@dataclass(eq=False, repr=False)
class Model:
    """A tokenizer, hyperparameters and parameters. Every method takes a text, or ids, which are whole numbers.

    Raises TypeError, in a sentence, for parts that are no model. The methods raise TypeError for what is neither a text
    nor ids, and ValueError for a text that is too long or ids that the model does not have.
    """

    encoder: Encoder
    hparams: dict[str, int]
    params: Params
    name: str = ""  # what pictures and pages call the model

    def __post_init__(self) -> None:
        is_mapping = isinstance(self.hparams, Mapping) and isinstance(self.params, Mapping)
        needed = {"wte", "wpe", "blocks", "ln_f"}
        has_all = is_mapping and "n_head" in self.hparams and needed <= self.params.keys()
        if not (isinstance(self.encoder, Encoder) and has_all):
            found = ", ".join(type(part).__name__ for part in (self.encoder, self.hparams, self.params))
            raise TypeError(f"a model in memory is its encoder, hparams and params, in this order, not {found}")

    def __repr__(self) -> str:
        wte, n_head = np.asarray(self.params["wte"]), self.n_head
        sizes = f"{len(self.params['blocks'])} layers, {n_head} heads, n_embd = {wte.shape[1]}, n_ctx = {self.n_ctx}"
        methods = "ids(text), logits(text), generate(text), score(text), inside(text), trace(text)"
        return f"<Model {self.name or 'in memory'}: {sizes}, {len(wte):,} tokens, {wte.dtype}>\n{methods}"

    @property
    def n_head(self) -> int:
        return self.hparams["n_head"]

    @property
    def n_ctx(self) -> int:
        return len(self.params["wpe"])

    def ids(self, text: Text) -> list[int]:
        """Return the ids of a text. Ids are returned as a list."""
        ids = self.encoder.encode(text) if isinstance(text, str) else ids_array(text).tolist()
        if ids and not 0 <= min(ids) <= max(ids) < len(self.params["wte"]):
            raise ValueError(f"the ids are {min(ids)} to {max(ids)}, outside 0 to {len(self.params['wte']) - 1}")
        return ids

    def prompt(self, text: Text) -> list[int]:
        """Return the ids of a text for one forward pass: at least 1, and at most n_ctx."""
        if isinstance(text, str):
            text = prompt_ids(self.encoder, text, self.n_ctx)
        return check_length(self.ids(text), self.n_ctx)

    def logits(self, text: Text) -> Array:
        """Return the scores of the tokens that may follow each token. [n_seq, n_vocab]"""
        logits = gpt2.gpt2(self.prompt(text), **self.params, n_head=self.n_head)
        return cast(Array, gpt2.check_finite(logits))

    def generate(
        self,
        text: Text,
        n_tokens_to_generate: int = 40,
        temperature: float = 0.0,
        top_k: int = 0,
        top_p: float = 1.0,
        repetition_penalty: float = 1.0,
        seed: int | None = None,
        stop: str | None = None,
    ) -> Pieces:
        """Yield the pieces of a continuation, which is the one that gpt2.py prints with these options.

        Raises ValueError at once, before the first piece, for a setting that is out of range.
        """
        for name, value in (("n_tokens_to_generate", n_tokens_to_generate), ("top_k", top_k)):
            if not isinstance(value, (int, np.integer)):
                raise TypeError(f"{name} must be a whole number, not {value!r}")
        ids = gpt2.checked_ids(self.ids(text), self.params, n_tokens_to_generate)
        settings, rng = (temperature, top_k, top_p, repetition_penalty), np.random.default_rng(seed)
        gpt2.token_probs(cast("Vector[n_vocab]", np.zeros(1)), [], *settings)  # raises for a setting out of range

        def draw(logits: Vector[n_vocab], so_far: Sequence[int]) -> int:
            return gpt2.sample(logits, so_far, rng, *settings)

        new_ids = gpt2.generate(ids, self.params, self.n_head, n_tokens_to_generate, draw)
        return Pieces(gpt2.stop_before(self.encoder.decode_stream(new_ids), stop))

    def score(self, text: Text, stride: int | None = None, max_context: int | None = None) -> Array:
        """Return the log-probability of each token but the first, as `picogpt.score` does. -> [n_seq - 1]"""
        from picogpt.scoring.windows import score

        return score(text, self, stride=stride, max_context=max_context)

    def inside(self, text: Text, top: int = 5, settings: Settings | None = None) -> Inside:
        """Return the numbers that show how the model reads a text, as `picogpt.look_inside` does."""
        from picogpt.explain.numbers import PLAIN, look_inside

        return look_inside(text, self, top=top, settings=settings or PLAIN)

    def trace(self, text: Text, replace: Mapping[str, Change] | None = None) -> Trace:
        """Return every intermediate array of one forward pass, as `picogpt.trace` records them, or replaces them."""
        from picogpt.tracing.recorder import trace

        ids = self.prompt(text)
        with trace(replace) as recorded:
            gpt2.gpt2(ids, **self.params, n_head=self.n_head)
        return recorded


@overload
def load(model: AnyModel = "124M", *, models_dir: str | Path = "models") -> Model: ...
@overload
def load(model: Encoder, hparams: dict[str, int], params: Params) -> Model: ...
def load(model: Any = "124M", hparams: Any = None, params: Any = None, *, models_dir: str | Path = "models") -> Model:
    """Return a model by its name or path, or the one that an encoder, hparams and params make, also as one tuple.

    A model by its name is opened, and downloaded if it must be, as `utils.load_encoder_hparams_and_params` does, whose
    errors are raised. A `Model` is returned as it is. Raises TypeError, in a sentence, for anything else.
    """
    if hparams is not None or params is not None:
        return Model(model, hparams, params)
    if isinstance(model, tuple) and len(model) == 3:
        return Model(*model)
    if isinstance(model, (str, Path)):
        return Model(*load_encoder_hparams_and_params(str(model), models_dir), Path(model).name)
    if not isinstance(model, Model):
        ways = "a name such as 'tiny', a path, what picogpt.load returns, or (encoder, hparams, params)"
        raise TypeError(f"a model is {ways}, not {type(model).__name__}")
    return model


def ids_array(ids: Text) -> Array:
    """Return ids as an array. [n_seq] -> [n_seq]. Raises ValueError for anything but whole numbers in one dimension.

    A text is not encoded, but refused. Raises TypeError for what holds nothing, such as None, and for bytes.
    """
    if isinstance(ids, (bytes, bytearray)) or not isinstance(ids, Iterable):
        raise TypeError(f"a text or ids are needed, whole numbers in one dimension, not {type(ids).__name__}")
    array = np.asarray(ids if isinstance(ids, np.ndarray) else list(ids))
    if array.ndim != 1 or not (np.issubdtype(array.dtype, np.integer) or array.size == 0):
        raise ValueError(f"ids must be whole numbers in one dimension, not {array.dtype} of shape {array.shape}")
    return array.astype(np.intp)
