"""Generate text for docs/index.html: the page's worker opens a model as a `Writer`, and calls its methods.

The model, the tokenizer, the sampling and the page behind "Look inside this text" are those of the repository's own
files. Only the choice of what to show is made here. Results are JSON, which JavaScript reads.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from encoder import END_OF_TEXT
from gpt2 import Context, checked_ids, n_shared, sample, token_probs
from picogpt.explain.numbers import examine
from picogpt.explain.page import layers_that_fit, page
from picogpt.options import check_size
from picogpt.terminal_text import visible
from utils import load_encoder_hparams_and_params

N_SHOWN = 8  # how many candidates the page lists for each token
MOST = (1 << 31) - 1  # bytes of a file that 32-bit WebAssembly can map
WEIGHTS = (".safetensors", ".data-00000-of-00001")
NEEDED = {  # the files of each layout; foreign.py says in detail what else may be missing
    "hparams.json": ("encoder.json", "vocab.bpe"),
    "config.json": (),
}
KINDS = "hparams.json, encoder.json, vocab.bpe and a checkpoint, or config.json, model.safetensors and a tokenizer"


def check_folder(folder: Path) -> None:
    """Raise ValueError, with the number or the names, if a folder is no model or its weights are too large."""
    names = {path.name for path in folder.iterdir()}
    layout = next((name for name in NEEDED if name in names), None)
    if layout is None:
        raise ValueError(f"{folder.name} holds no model: it needs {KINDS}")
    if missing := [name for name in NEEDED[layout] if name not in names]:
        raise ValueError(f"{folder.name} has no {' and no '.join(missing)}")
    if layout == "config.json" and not ("tokenizer.json" in names or {"vocab.json", "merges.txt"} <= names):
        raise ValueError(f"{folder.name} has no tokenizer: neither tokenizer.json nor vocab.json and merges.txt")
    sizes = [path.stat().st_size for path in folder.iterdir() if path.name.endswith(WEIGHTS)]
    if sum(sizes) > MOST:
        number = f"{sum(sizes) / 1e9:.1f} GB, and Python in a browser has room for {MOST / 1e9:.1f} GB"
        raise ValueError(f"{folder.name} does not fit: its weights have {number}. The command gpt2.py runs it")


def load(folder: str) -> Writer:
    """Open the model in a folder. Raises OSError or ValueError with a message of one line."""
    check_folder(Path(folder))
    return Writer(folder)


class Writer:
    """A model that writes, with the logits that it has computed for its newest text, so that none are computed twice.

    `rows[n]` holds the logits after the first n of `ids`.
    """

    def __init__(self, folder: str):
        self.name = Path(folder).name
        self.encoder, self.hparams, self.params = load_encoder_hparams_and_params(str(Path(folder).absolute()))
        self.context = Context(self.params, self.hparams["n_head"])
        self.ids: list[int] = []
        self.rows: dict[int, Any] = {}
        self.begin = 0  # the length of the newest text's prompt
        self.listed: list[list[int]] = []  # the ids of the candidates for each of its new tokens

    def about(self) -> str:
        """Return the model's name and sizes as JSON."""
        shapes = (np.shape(x) for x in leaves(self.params))
        return json.dumps({"name": self.name, "n_params": sum(map(np.prod, shapes)).item()} | self.hparams)

    def room(self, prompt: str) -> str:
        """Return the number of a prompt's tokens, and how many new ones fit behind it, as JSON.

        A prompt that is too long to be encoded quickly counts as one token more than the context has.
        """
        n_ctx = self.hparams["n_ctx"]
        try:
            check_size(self.encoder, prompt, n_ctx)
            n = len(self.encoder.encode(prompt)) or 1  # an empty one becomes <|endoftext|>
        except ValueError:
            n = n_ctx + 1
        return json.dumps({"n_tokens": n, "room": max(0, n_ctx - n + 1), "n_ctx": n_ctx})

    def first_ids(self, prompt: str) -> list[int]:
        """Return the ids of a prompt. An empty one begins a document."""
        if not prompt and END_OF_TEXT not in self.encoder.encoder:
            raise ValueError("Write a prompt: this model has no token to begin a text with.")
        check_size(self.encoder, prompt, self.hparams["n_ctx"])
        return self.encoder.encode(prompt) if prompt else [self.encoder.encoder[END_OF_TEXT]]

    def logits(self, ids: list[int]) -> Any:
        """Return the logits after ids, computed or remembered. [n_seq] -> [n_vocab]"""
        n_kept = n_shared(self.ids, ids)
        if n_kept < len(ids) or len(ids) not in self.rows:
            row = self.context.logits(ids)[-1]
            self.rows = {n: row for n, row in self.rows.items() if n <= n_kept} | {len(ids): row.copy()}
            self.ids = list(ids)
        return self.rows[len(ids)]

    def steps(self, settings: str) -> Iterator[str]:
        """Yield the prompt and its tokens, then a step for each new token, all of them as JSON.

        `settings` is a JSON object: prompt, n_tokens, temperature, top_k, top_p, seed, and `kept`, the ids with which
        the new text begins whatever the model would draw. A step has the chosen id, its candidates, and the text that
        it adds. The last step adds the rest of the text, which is half a character or nothing. Raises ValueError if
        the text can't be continued.
        """
        asked = json.loads(settings)
        ids = checked_ids(self.first_ids(asked["prompt"]), self.params, asked["n_tokens"])
        kept, n_vocab = asked["kept"][: asked["n_tokens"]], self.hparams["n_vocab"]
        if unknown := [id for id in kept if not 0 <= id < n_vocab]:
            raise ValueError(f"the link has the token {unknown[0]}, but this model has the tokens 0 to {n_vocab - 1}")
        tokens = [visible(self.encoder.token_bytes(id)) for id in ids]
        yield json.dumps({"prompt": asked["prompt"], "tokens": tokens, "notes": notes(asked)})
        self.begin, self.listed = len(ids), []
        found: list[dict[str, Any]] = []  # the step of the newest token, until it is yielded
        for text in self.encoder.decode_stream(self.new_ids(ids, kept, asked, found)):
            yield json.dumps({"text": text} | (found.pop() if found else {}))

    def new_ids(self, ids: list[int], kept: list[int], asked: Any, found: list[Any]) -> Iterator[int]:
        """Yield the ids that continue ids, as `gpt2.generate` does. What the page shows of each goes into `found`.

        A random number is drawn for a kept id, too: to keep the id that the model had drawn changes nothing.
        """
        rng = np.random.default_rng(asked["seed"])
        for i in range(asked["n_tokens"]):
            row = self.logits(ids)
            drawn = sample(row, ids, rng, asked["temperature"], asked["top_k"], asked["top_p"])
            id = kept[i] if i < len(kept) else drawn
            found.append({"id": id, "candidates": self.candidates(row, id, asked)})
            ids = [*ids, id]
            yield id

    def candidates(self, row: Any, chosen: int, asked: Any) -> list[dict[str, Any]]:
        """Return the likeliest tokens, and the chosen one, each with two probabilities.

        `p` is the model's own. `drawn` is the one after temperature, top_k and top_p, from which a token is drawn.
        """
        p = token_probs(row, [], 1.0, 0, 1.0, 1.0)  # temperature 1 and all tokens: the model's own
        drawn = token_probs(row, [], asked["temperature"], asked["top_k"], asked["top_p"], 1.0)
        likeliest = np.argsort(-p, kind="stable")[:N_SHOWN].tolist()
        self.listed.append(likeliest if chosen in likeliest else [*likeliest, chosen])
        return [
            {"id": id, "token": visible(self.encoder.token_bytes(id)), "p": float(p[id]), "drawn": float(drawn[id])}
            for id in self.listed[-1]
        ]

    def redraw(self, settings: str) -> str:
        """Return the probabilities `drawn` of all candidates of the newest text with other settings, as JSON."""
        asked = json.loads(settings)
        rows = [self.rows[self.begin + i] for i in range(len(self.listed))]
        probs = [token_probs(row, [], asked["temperature"], asked["top_k"], asked["top_p"], 1.0) for row in rows]
        return json.dumps([p[ids].tolist() for p, ids in zip(probs, self.listed)])

    def inside(self, prompt: str, new_ids: str) -> str:
        """Return the page that `explain` makes of a text: a prompt, and new ids, which are given as JSON."""
        ids = [*self.first_ids(prompt), *json.loads(new_ids)][: self.hparams["n_ctx"]]
        inside = examine(ids, self.encoder, self.params, self.hparams["n_head"], model=self.name)
        return page(inside, layers=layers_that_fit(inside, 0))


def leaves(tree: Any) -> Iterator[Any]:
    """Yield the arrays of nested dictionaries and lists."""
    if isinstance(tree, (dict, list)):
        for part in tree.values() if isinstance(tree, dict) else tree:
            yield from leaves(part)
    else:
        yield tree


def notes(asked: dict[str, Any]) -> list[str]:
    """Return what a visitor should know about settings that are allowed, but probably a mistake."""
    found = []
    if not asked["prompt"]:
        found.append("The prompt is empty, so the text begins a new document.")
    if asked["prompt"].endswith(" "):
        found.append("The prompt ends in a space, which makes the text worse: GPT-2's tokens begin with a space.")
    if asked["temperature"] == 0 and (asked["top_k"] or asked["top_p"] < 1):
        found.append("At temperature 0 the likeliest token is taken, so top_k and top_p change nothing.")
    return found
