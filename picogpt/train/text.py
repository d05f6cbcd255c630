"""The text of a training run: its two parts, their tokens, a tokenizer of its own, and random windows of it."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from encoder import END_OF_TEXT, Encoder, get_encoder
from picogpt.scoring.results import bits

Array = np.ndarray[Any, np.dtype[Any]]


class Part(NamedTuple):
    """The token ids of a part of the text, and how many characters and how many bytes of UTF-8 it has."""

    ids: Array  # [n_tokens]
    n_chars: int
    n_bytes: int

    def bits_per_byte(self, nats_per_token: float) -> float:
        """Turn a mean loss per token into one per byte."""
        return bits(nats_per_token * len(self.ids), self.n_bytes)

    def nats_per_char(self, bits_per_byte: float) -> float:
        """Turn a loss in bits per byte into nats per character."""
        return bits_per_byte * math.log(2) * self.n_bytes / self.n_chars


def split(text: str, held_out: float) -> tuple[str, str]:
    """Split a text into the part to train on and the last part, which is held out."""
    at = round(len(text) * (1 - held_out))
    return text[:at], text[at:]


def train_merges(text: str, n_vocab: int) -> list[str]:
    """Return the merges of a byte-level BPE with n_vocab tokens, which include the 256 bytes and <|endoftext|>.

    Raises ValueError if the text has too few different pairs.
    """
    from tokenizers import Tokenizer, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(vocab_size=n_vocab - 1, initial_alphabet=alphabet, show_progress=False)
    documents = text.split(END_OF_TEXT)
    tokenizer.train_from_iterator([line for each in documents for line in each.splitlines(keepends=True)], trainer)
    merges = json.loads(tokenizer.to_str())["model"]["merges"]
    if len(merges) != n_vocab - 257:
        raise ValueError(f"the text has pairs for only {len(merges) + 257} tokens, not --n_vocab {n_vocab}: lower it")
    return [" ".join(merge) for merge in merges]


def encode_texts(n_ctx: int, folder: Path, texts: tuple[str, str]) -> tuple[Encoder, list[Part]]:
    """Return the tokenizer in a folder, and the training text and the held-out text encoded with it.

    <|endoftext|> between documents becomes the token, where the vocabulary has it, so that the model learns to end one.
    Raises ValueError if one of them is shorter than n_ctx + 1 tokens.
    """
    encoder = get_encoder(folder.name, folder.parent)
    special = [END_OF_TEXT] if END_OF_TEXT in encoder.special_tokens else []
    ids = [np.array(encoder.encode(text, special), np.int32) for text in texts]
    parts = [Part(part, len(text), len(text.encode("utf-8"))) for part, text in zip(ids, texts)]
    for name, part in zip(("part of the text to train on", "held-out part of the text"), parts):
        if len(part.ids) <= n_ctx:
            raise ValueError(f"the {name} has {len(part.ids)} tokens, but needs at least n_ctx + 1 = {n_ctx + 1}")
    return encoder, parts


def batch(ids: Array, n_ctx: int, size: int, seed: int, step: int) -> tuple[Array, Array]:
    """Draw random windows of ids. They depend only on seed and step, so a resumed run draws the same ones."""
    rng = np.random.default_rng([seed, step])
    starts = rng.integers(0, len(ids) - n_ctx, size)[:, None] + np.arange(n_ctx)
    return ids[starts], ids[starts + 1]
