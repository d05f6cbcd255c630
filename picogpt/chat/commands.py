"""Run the lines of a conversation: commands, which begin with a slash, and messages, which the model answers."""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from picogpt import options
from picogpt.chat.dialogue import Chat, exchanges, one_line
from picogpt.chat.screen import Screen, answer
from picogpt.command_line import UsageError, log, number, read_text, reason
from picogpt.files import new_file
from picogpt.terminal_text import log_wrapped

HELP = '''/help, /?           show this list
/exit, /quit, /bye  leave, as do Ctrl-D and the words exit and quit alone
/undo               take back the last message and its reply
/retry              get another reply to the last message
/reset, /clear      forget everything but the persona
/show               show the model, the persona, and how full the context is
/set                show the settings
/set NAME VALUE     change a setting: /set temperature 0.5
/save FILE          write the conversation to a new file
/save! FILE         write it to a file that may exist already
/load FILE          go on with a conversation of /save, in the place of this one
Ctrl-C stops a reply. /save and /load work only in a terminal, as do these:
""" begins a message of several lines, and """ ends it. To send a message that
begins with / or """, or is only the word exit or quit, type a space before it.'''

SETTINGS = options.SAMPLING_LIMITS | {"seed": number(0, kind=int), "max_tokens": number(1, kind=int)}


@dataclass
class Session:
    """A conversation, the screen that shows it, and the options of the command line, some of which /set can change."""

    chat: Chat
    screen: Screen
    args: argparse.Namespace
    rng: np.random.Generator

    def change(self, name: str, value: float) -> None:
        """Give a setting another value. A seed begins a new sequence of random numbers."""
        setattr(self.args, name, value)
        if name == "seed":
            self.rng = np.random.default_rng(self.args.seed)
        self.chat.max_tokens = self.args.max_tokens
        self.chat.choose = options.sampler(self.args, self.rng)


def file_named(command: str, name: str) -> Path:
    """Return the path that a command names; ~ is the home folder. Raises UsageError if there is no name."""
    if not name:
        raise UsageError(f"{command} needs the name of a file")
    return Path(os.path.expanduser(name))


def save(name: str, session: Session, replace: bool = False) -> None:
    """Write the conversation to a file. Raises UsageError or OSError if that is not possible."""
    path = file_named("/save", name)
    if path.is_file() and not replace:
        raise UsageError(f"{name} exists already: choose another name, or replace it with /save! {name}")
    with new_file(path, replace) as file:
        file.write(session.chat.transcript(session.screen.names).encode("utf-8"))
    log(f"[saved to {name}]")


def load(name: str, session: Session) -> None:
    """Go on with the conversation in a file. If it holds none, UsageError or OSError is raised, and nothing changes."""
    text = read_text(file_named("/load", name), megabytes=1)
    try:
        pairs = exchanges(text, session.screen.names)
        session.chat.resume(pairs)
    except UsageError as error:
        raise UsageError(f"{name}: {error}") from None
    log(f"[{len(pairs)} {'turn' if len(pairs) == 1 else 'turns'} loaded from {name}]")


def set_or_show(argument: str, session: Session) -> None:
    """Change a setting, or show all of them or the one that is named. Raises UsageError for a wrong name or value."""
    name, _, text = argument.replace("=", " ", 1).partition(" ")
    if name and name not in SETTINGS:
        raise UsageError(f"/set: {name!r} is not one of {', '.join(SETTINGS)}")
    if text.strip():
        try:
            session.change(name, SETTINGS[name](text.strip()))
        except argparse.ArgumentTypeError as error:
            raise UsageError(f"/set {name}: {error}") from None
    for setting in [name] if name else SETTINGS:
        value = getattr(session.args, setting)
        log(f"[{setting} is {'not set' if value is None else value}]")


def introduction(session: Session) -> str:
    """Say which model has which name, and with which persona."""
    args, persona = session.args, "no persona"
    if args.persona is not None:
        persona = f"the persona in {args.persona}"
    elif session.chat.format.persona:
        persona = "the built-in persona"
    return f"{args.model_size} is {args.names[1]}, with {persona}"


def show(session: Session) -> None:
    """Print the model, its size, the persona's text, and how much of the context the conversation takes."""
    chat = session.chat
    (n_vocab, n_embd), n_layer = chat.context.params["wte"].shape, len(chat.context.params["blocks"])
    n_turns, n_seen = len(chat.turns), len(chat.turns) - chat.first
    log_wrapped(f"[{introduction(session)}]")
    log(f"[n_layer {n_layer}, n_embd {n_embd}, n_head {chat.context.n_head}, n_ctx {chat.n_ctx}, n_vocab {n_vocab}]")
    seen = f", of which the model sees the last {n_seen}" if n_seen < n_turns else ""
    log(f"[{n_turns} turn{'s' * (n_turns != 1)}{seen}; {len(chat.ids())} of {chat.n_ctx} tokens of the context]")
    if chat.format.persona:
        log(chat.encoder.decode(chat.format.persona).rstrip("\n"), keep="\n")


def reset(session: Session) -> None:
    session.chat.reset()
    log("[everything but the persona is forgotten]")


def retry(session: Session) -> None:
    if not session.chat.turns:
        raise UsageError("nothing has been said yet")
    answer(session.chat, session.screen)


def leave(session: Session) -> None:
    """End the conversation, as the end of the input does."""
    raise EOFError


WITH_ARGUMENT: dict[str, Callable[[str, Session], None]] = {
    "/save": save,
    "/save!": lambda name, session: save(name, session, replace=True),
    "/load": load,
    "/set": set_or_show,
}
WITHOUT_ARGUMENT: dict[str, Callable[[Session], None]] = {
    "/help": lambda session: log(HELP, keep="\n"),
    "/undo": lambda session: log(f"[taken back: {session.chat.undo()}]"),
    "/retry": retry,
    "/reset": reset,
    "/show": show,
    "/exit": leave,
}
SAME = {"/?": "/help", "/clear": "/reset", "/quit": "/exit", "/bye": "/exit"}


def run_command(line: str, session: Session) -> None:
    """Run a line that begins with a slash. Raises UsageError if the command is unknown, and EOFError to leave."""
    name, *rest = line.split(maxsplit=1)
    name, argument = SAME.get(name, name), "".join(rest).strip()
    if name in WITH_ARGUMENT:
        WITH_ARGUMENT[name](argument, session)
    elif name in WITHOUT_ARGUMENT and not argument:
        WITHOUT_ARGUMENT[name](session)
    else:
        raise UsageError(f"{line.strip()!r} is not a command: /help lists the commands")


def handle_line(line: str, session: Session) -> None:
    """Run a line of input as a command, or answer it as a message. An empty line does nothing."""
    if line.startswith("/"):
        run_command(line, session)
    elif one_line(line):
        session.chat.add_message(line)
        answer(session.chat, session.screen)


def try_line(line: str, session: Session) -> None:
    """Handle a line that a person typed. A mistake is reported and the chat goes on; Ctrl-C stops the reply.

    Raises EOFError if the line says to leave.
    """
    try:
        handle_line(line, session)
    except KeyboardInterrupt:
        pass
    except BrokenPipeError:
        raise
    except OSError as error:  # from /save and /load
        log(reason(error))
    except (UsageError, UnicodeError) as error:
        log(str(error))
