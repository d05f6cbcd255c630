"""Chats with models/tiny, whose replies a test can write itself."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from helpers import ROOT

import gpt2
from encoder import END_OF_TEXT
from picogpt.chat.commands import Session
from picogpt.chat.dialogue import Chat, dialogpt, plain
from picogpt.chat.screen import Screen
from picogpt.chat.terminal import parse_args
from utils import load_encoder_hparams_and_params

ENCODER, HPARAMS, PARAMS = load_encoder_hparams_and_params("tiny", ROOT / "models")
N_CTX, END = HPARAMS["n_ctx"], ENCODER.encoder[END_OF_TEXT]
NAMES = ("Alice", "Bob")
PASTE_ON, PASTE_OFF = "\x1b[?2004h", "\x1b[?2004l\r"  # what readline prints before and after it reads a line
PROMPT = f"{PASTE_ON}Alice: "
TINY = ["--model_size", "tiny", "--models_dir", str(ROOT / "models")]


def ids_of(text: str) -> list[int]:
    """Encode a text, and every <|endoftext|> in it as the token."""
    return ENCODER.encode(text, allowed_special=[END_OF_TEXT])


def actor(*replies: str) -> Callable[..., int]:
    """Return a `choose` that plays these replies whatever it hears, and fails when it is asked for more."""
    ids = iter([id for reply in replies for id in ids_of(reply)])
    return lambda logits, seen, *args, **kwargs: next(ids)


def sampler(seed: int, **settings: float) -> Callable[..., int]:
    """Return a `choose` that samples with these settings."""
    rng = np.random.default_rng(seed)
    return lambda logits, ids: gpt2.sample(logits, ids, rng, **settings)


def chat_of(choose: Any, persona: str = "A talk.\n", form: str = "plain", max_tokens: int = 60) -> Chat:
    made = plain(ENCODER, persona, NAMES) if form == "plain" else dialogpt(ENCODER, persona)
    return Chat(ENCODER, PARAMS, HPARAMS["n_head"], made, choose, max_tokens)


def session_of(choose: Any) -> Session:
    """Return a session of such a chat in a terminal, with the command line's defaults."""
    args = parse_args(TINY)
    return Session(chat_of(choose), Screen(NAMES, labels=True, colours=False), args, np.random.default_rng(0))


def said(chat: Chat, text: str) -> str:
    """Send a message and return the reply."""
    chat.add_message(text)
    return "".join(chat.reply())
