"""Show replies while the model writes them: with names and colours, and in lines that fit the terminal."""

from __future__ import annotations

import contextlib
import shutil
import sys
from typing import NamedTuple

from picogpt.chat.dialogue import Chat
from picogpt.command_line import log, log_speed, shown
from picogpt.terminal_text import Wrapper, n_columns

GREEN, CYAN = 32, 36  # ANSI colour codes


class Screen(NamedTuple):
    """The names of the user and the model, and whether replies are shown with names, in colour and with their speed."""

    names: tuple[str, str]
    labels: bool
    colours: bool
    verbose: bool = False


def paint(text: str, colour: int, screen: Screen) -> str:
    return f"\x1b[{colour}m{text}\x1b[0m" if screen.colours else text


def answer(chat: Chat, screen: Screen) -> None:
    """Print a reply to the last message while the model writes it, and then the chat's notes.

    After Ctrl-C the part of the reply that was shown remains in the conversation. If nothing was shown yet, the message
    is taken back, also after /retry: a model that sees one empty reply gives more of them.
    """
    label = f"{screen.names[1]}: " if screen.labels else ""
    print(paint(label, CYAN, screen) if label else "", end="", flush=True)
    width = shutil.get_terminal_size().columns if sys.stdout.isatty() else None
    wrapper = Wrapper(width, n_columns(label))
    try:
        with contextlib.closing(chat.reply()) as pieces:
            for piece in pieces:
                print(wrapper.add(shown(piece)), end="", flush=True)
    except KeyboardInterrupt:
        if not chat.turns[-1].reply:
            chat.undo()
        raise
    finally:
        print(wrapper.finish(), flush=True)
        log_notes(chat)
        if screen.verbose:
            log_speed(chat.n_read, chat.times)
    chat.get_ready()
    log_notes(chat)


def log_notes(chat: Chat) -> None:
    while chat.notes:
        log(chat.notes.pop(0))
