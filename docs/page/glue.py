"""Generate text for docs/index.html: the page's worker calls `load` once, then `steps` for each prompt.

The model, the tokenizer and the sampling are those of the repository's own files. Only the choice of what to show is
made here. The results are JSON, which JavaScript reads.
"""

from __future__ import annotations

import json
from argparse import Namespace
from collections.abc import Iterator
from typing import Any

import numpy as np

from encoder import Encoder
from gpt2 import checked_ids, generate, token_probs
from picogpt.continuation import first_ids
from picogpt.generate import choosers, warn
from picogpt.terminal_text import visible
from utils import load_encoder_hparams_and_params

N_SHOWN = 8  # how many candidates the page lists for each token

Model = tuple[Encoder, dict[str, int], Any]


def load() -> Model:
    """Open models/tiny."""
    return load_encoder_hparams_and_params("tiny", "models")


def candidates(logits: Any, ids: list[int], args: Namespace, chosen: int, encoder: Encoder) -> list[dict[str, Any]]:
    """Return the likeliest tokens, and the chosen one, each with two probabilities.

    `p` is the model's own. `drawn` is the one after temperature and top_k, from which the token was drawn.
    """
    p = token_probs(logits, ids, 1.0, 0, 1.0, 1.0)  # temperature 1 and all tokens: the model's own
    drawn = token_probs(logits, ids, args.temperature, args.top_k, args.top_p, args.repetition_penalty)
    likeliest = np.argsort(-p, kind="stable")[:N_SHOWN].tolist()
    listed = likeliest if chosen in likeliest else [*likeliest, chosen]
    return [
        {"id": id, "token": visible(encoder.token_bytes(id)), "p": float(p[id]), "drawn": float(drawn[id])}
        for id in listed
    ]


def steps(model: Model, settings: str) -> Iterator[str]:
    """Yield the prompt and its tokens, then a step for each new token, all of them as JSON.

    `settings` is a JSON object: prompt, n_tokens, temperature, top_k and seed, which is null for a new text each time.
    A step has the chosen id, its candidates, and the text that it adds. The last step adds the rest of the text, which
    is half a character or nothing. Raises ValueError if the prompt is empty, or too long together with the new tokens.
    """
    (encoder, hparams, params), asked = model, json.loads(settings)
    args = Namespace(top_p=1.0, repetition_penalty=1.0, n_samples=1)
    args.temperature, args.top_k, args.seed = asked["temperature"], asked["top_k"], asked["seed"]
    warn(args, asked["prompt"])
    ids = checked_ids(first_ids(encoder, asked["prompt"]), params, asked["n_tokens"])
    yield json.dumps({"prompt": asked["prompt"], "tokens": [visible(encoder.token_bytes(id)) for id in ids]})

    chosen: list[dict[str, Any]] = []  # the step of the newest token, until it is yielded
    draw = choosers(args)[0]

    def choose(logits: Any, so_far: list[int]) -> int:
        id = draw(logits, so_far)
        chosen.append({"id": id, "candidates": candidates(logits, so_far, args, id, encoder)})
        return id

    new_ids = generate(ids, params, hparams["n_head"], asked["n_tokens"], choose)
    for text in encoder.decode_stream(new_ids):
        yield json.dumps({"text": text} | (chosen.pop() if chosen else {}))
