"""How a published fact is computed, one recipe for each kind: all through gpt2.py's functions.

`facts.json` describes the facts; docs/facts.md explains its keys. A recipe takes a fact, whose "published" is the value
for this model's size, the model, and the path of the fact's data file if it has one. It returns our numbers and the
published ones as two lists in the same order. Ids and tokens must be equal, other numbers within the fact's tolerance.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import json
import math
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

import gpt2
from picogpt.command_line import UsageError, read_text
from picogpt.evaluate import lambada, wikitext
from picogpt.scoring.windows import Window, windows
from picogpt.scoring.work import Model, begin, score_all
from picogpt.tracing.parts import Part, changes, instead_of
from picogpt.tracing.recorder import Trace, trace
from picogpt.tracing.replacing import Change

Array = np.ndarray[Any, np.dtype[Any]]
Fact = dict[str, Any]
Compared = tuple[list[Any], list[Any]]  # ours and the published, in the same order

TASKS = {"lambada": lambada.PROTOCOLS, "wikitext": wikitext.WIKITEXT}
# The options of the protocols and of `score_all`, with their defaults. A fact may set those of the protocols.
OPTIONS = {"stride": None, "max_context": None, "bos": None, "limit": None, "jobs": 1, "dask": None, "results": None}


class Result(NamedTuple):
    """What came out of a fact: both lists, the place where they differ most, and whether they agree there."""

    ours: list[Any]
    published: list[Any]
    tolerances: list[float]
    worst: int
    agrees: bool


def compute(fact: Fact, model: Model, data: Path | None = None) -> Result:
    """Compute a fact with a model, some parts of which the fact may switch off, and compare it with what is published.

    Raises FloatingPointError if the logits are not finite.
    """
    replace = ablation(fact, model)
    with trace(replace, keep=False) if replace else contextlib.nullcontext():
        ours, published = KINDS[fact["kind"]](fact, model, data)
    return compared(ours, published, fact.get("tolerance", 0.0))


def compared(ours: list[Any], published: list[Any], tolerance: float | list[float]) -> Result:
    """Compare two lists. What is not a float must be equal, and NaN agrees with nothing.

    >>> compared([1.0, 2.5], [1.0, 2.25], 0.5)[3:]
    (1, True)
    >>> compared([464, 3290], [464, 3797], 0.0)[3:]
    (1, False)
    """
    tolerances = tolerance if isinstance(tolerance, list) else [tolerance] * len(published)
    excess = []
    for a, b, limit in zip(ours, published, tolerances, strict=True):
        if not isinstance(b, float):
            excess.append(0.0 if a == b else math.inf)
        else:
            excess.append(abs(a - b) / limit if math.isfinite(a) else math.inf)
    worst = excess.index(max(excess))
    return Result(ours, published, tolerances, worst, excess[worst] <= 1)


# -------------------------------------------------------------------------------------------------------------- inputs


def prompts_of(fact: Fact) -> list[str]:
    """Return the prompts of a fact. Those of logit differences stand with their two tokens."""
    return [prompt for prompt, *_ in fact["prompts"]] if "prompts" in fact else [fact.get("prompt", "")]


def inputs_of(fact: Fact, model: Model) -> list[list[int]]:
    """Return the ids that the model reads, for each prompt of a fact, with <|endoftext|> in front if it says so."""
    if "ids" in fact:
        return [fact["ids"]]
    return [begin(model, fact.get("bos", False)) + model.encoder.encode(prompt) for prompt in prompts_of(fact)]


def ids_of_file(fact: Fact, model: Model, data: Path) -> list[int]:
    """Return the ids of a data file, or of the part that the fact names, as the source has prepared them."""
    text = read_text(data)
    start, stop = (int(len(text) * share) for share in fact.get("part", (0, 1)))
    text = text[start:stop]
    if "rows" in fact:
        text = fact["rows"].join(wikitext.rows_of(text))
    if not fact.get("paragraphs"):
        return model.encoder.encode(text)
    *paragraphs, last = text.split("\n\n")  # llm.c: <|endoftext|> before each, and the blank line stays behind it
    texts = [*(f"{paragraph}\n\n" for paragraph in paragraphs), last]
    return [id for text in texts for id in begin(model, True) + model.encoder.encode(text)]


def one_token(text: str, model: Model) -> int:
    """Return the id of a text. Raises UsageError unless it is one token."""
    ids = model.encoder.encode(text)
    if len(ids) != 1:
        raise UsageError(f"facts.json: {text!r} is {len(ids)} tokens, not one")
    return ids[0]


def last_logits(ids: Sequence[int], model: Model) -> Array:
    """Return the logits of the token that follows the ids, in float64. [n_vocab]"""
    logits: Any = gpt2.gpt2(ids, **model.params, n_head=model.hparams["n_head"], n_logits=1)
    return gpt2.check_finite(logits)[-1].astype(np.float64)  # type: ignore[no-any-return]


def ablation(fact: Fact, model: Model) -> dict[str, Change]:
    """Return what `trace` shall replace: the output of a head, which the fact switches off; {} if it does not.

    The head gives its bias instead, which is what the sources call zero (see `parts.bias`).
    """
    if "ablate" not in fact:
        return {}
    position = -1 if fact["ablate"].get("positions") == "last" else None
    head = [Part(fact["ablate"]["layer"], fact["ablate"]["head"], position)]
    return changes((head, instead_of(head, "bias", model.params, model.hparams["n_head"])))


# ------------------------------------------------------------------------------------------------------------- recipes


def greedy(fact: Fact, model: Model, data: Path | None) -> Compared:
    """Continue the prompt by the likeliest token, again and again. The published value is ids, or a text."""
    published = fact["published"]
    ids = model.encoder.encode(published) if isinstance(published, str) else published
    (inputs,) = inputs_of(fact, model)
    ours = list(gpt2.generate(inputs, model.params, model.hparams["n_head"], len(ids)))
    if isinstance(published, str) and model.encoder.decode(ours) == published:
        return ids, ids  # other tokens may spell the same text, which is all that the source shows
    return ours, ids


def loss(fact: Fact, model: Model, data: Path | None) -> Compared:
    """Average the negative log-probability of the tokens in each window, and these averages, all with equal weights.

    Without a data file, the prompt is the only window.
    """
    if data is None:
        parts = [Window(np.array(ids, np.intp), len(ids) - 1) for ids in inputs_of(fact, model)]
    else:
        ids = np.array(ids_of_file(fact, model, data), np.intp)
        n_ctx = model.hparams["n_ctx"]
        if "span" in fact:  # transformers' way: the first token of each window is not scored
            parts = list(wikitext.overlapping_windows(ids, fact["span"], fact["span"]))
        else:
            parts = list(windows(ids, n_ctx, fact["inputs"], fact["inputs"]))[: fact["windows"]]
    scores = score_all(parts, model, argparse.Namespace(**OPTIONS))
    mean = -float(np.mean([scored.log_probs.mean() for scored in scores]))
    return [math.exp(mean) if fact.get("as") == "perplexity" else mean], [fact["published"]]


def logit_difference(fact: Fact, model: Model, data: Path | None) -> Compared:
    """Subtract the logit of the second token from that of the first, after each prompt; or average the differences."""
    ours = []
    for ids, (_, first, second) in zip(inputs_of(fact, model), fact["prompts"]):
        logits = last_logits(ids, model)
        ours.append(float(logits[one_token(first, model)] - logits[one_token(second, model)]))
    published = fact["published"]
    return (ours, published) if isinstance(published, list) else ([float(np.mean(ours))], [published])


MEASURES: dict[str, Callable[[Any], Any]] = {
    "logit": lambda logits: logits,
    "logit above the mean": lambda logits: logits - logits.mean(),
    "probability": gpt2.softmax,
    "percent": lambda logits: 100 * gpt2.softmax(logits),
}


def top(fact: Fact, model: Model, data: Path | None) -> Compared:
    """Measure the likeliest tokens, which must be the published ones in their order; or any tokens, if not `ranked`."""
    (inputs,) = inputs_of(fact, model)
    logits = last_logits(inputs, model)
    measured = MEASURES[fact["measure"]](logits)
    if fact.get("ranked", True):
        ids = np.argsort(-logits, kind="stable")[: len(fact["published"])].tolist()
    else:
        ids = [one_token(token, model) for token, _ in fact["published"]]
    ours = [value for id in ids for value in (model.encoder.decode([id]), float(measured[id]))]
    return ours, [value for pair in fact["published"] for value in pair]


def activation(fact: Fact, model: Model, data: Path | None) -> Compared:
    """Return numbers of an array of the forward pass by its name in `trace`: the first of a row, or their deviation.

    With a data file, these are all logits and attention weights of Transformer Explainer's example.
    """
    ours: list[float] = []
    for ids in inputs_of(fact, model):
        with trace() as t:
            logits: Any = gpt2.gpt2(ids, **model.params, n_head=model.hparams["n_head"])
        gpt2.check_finite(logits)
        if data is not None:
            return explainer_example(data, t, model)
        row = t[fact["array"]][fact["row"]].astype(np.float64)
        if fact.get("statistic") == "standard deviation":  # as layer_norm computes it, with its eps
            ours.append(math.sqrt(row.var() + 1e-5))
        else:
            ours += row[: fact["first"]].tolist()
    return ours, fact["published"]


def explainer_example(data: Path, t: Trace, model: Model) -> Compared:
    """Return the last logits, and the scores and weights of all heads where a query may look, and those in the file.

    Raises UsageError if the file lacks some of them.
    """
    found = dict(
        re.findall(r"\b(logits|block_\w+_(?:scaled|softmax)): (?:\{\s*data: )?(\[[-\[\]\s\d.,e]*\])", read_text(data))
    )
    ours = {"logits": t["logits"][-1]}
    for layer in range(model.hparams["n_layer"]):
        for name, suffix in (("scores", "scaled"), ("probs", "softmax")):
            for head, values in enumerate(t[f"h{layer}/attn/{name}"]):
                ours[f"block_{layer}_attn_head_{head}_attn_{suffix}"] = values
    if missing := ours.keys() - found.keys():
        raise UsageError(f"{data} has no numbers called {min(missing)}")
    theirs = {name: np.array(json.loads(found[name])) for name in ours}
    seen = [np.tril_indices(array.shape[-1]) if array.ndim == 2 else slice(None) for array in theirs.values()]
    values = [np.concatenate([a[at] for a, at in zip(side.values(), seen)]).tolist() for side in (ours, theirs)]
    return values[0], values[1]


def score(fact: Fact, model: Model, data: Path | None) -> Compared:
    """Evaluate the model on the data file by a protocol of `evaluate`."""
    assert data is not None
    args = argparse.Namespace(**OPTIONS | fact.get("options", {}))
    protocol = TASKS[fact["task"]][fact["protocol"]]
    figures = protocol(data, model, functools.partial(score_all, model=model, args=args), args)
    return [figures[name] for name in fact["published"]], list(fact["published"].values())


KINDS: dict[str, Callable[[Fact, Model, Path | None], Compared]] = {
    "greedy": greedy,
    "loss": loss,
    "logit_difference": logit_difference,
    "top": top,
    "activation": activation,
    "score": score,
}
