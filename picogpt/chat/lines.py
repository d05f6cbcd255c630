"""Ask the user for messages and commands: editing, earlier lines, pastes, and messages of several lines.

A message becomes a single line, as the model sees it and as the arrow keys bring it back. It may be typed or pasted as
several lines: between triple quotes, or as a paste where the terminal says where the paste begins and ends.
"""

from __future__ import annotations

import contextlib
import os
import re
import sys
from collections.abc import Callable

from picogpt.chat.dialogue import one_line
from picogpt.chat.history import History
from picogpt.chat.screen import GREEN, Screen, paint
from picogpt.command_line import log

QUOTES, CONTINUED = '"""', "... "
BARE_EXITS = ("exit", "quit")  # commands without a slash, in a terminal only


def ask_on_stderr(prompt: str) -> str:
    """Ask for a line where standard output is not a terminal: `input` would print the prompt there."""
    print(prompt, end="", file=sys.stderr, flush=True)
    if not (line := sys.stdin.readline()):
        raise EOFError
    return line.rstrip("\r\n")


def ask_with_readline(screen: Screen, history: History) -> Callable[[str], str]:
    """Return a function that asks for one line, which the user can edit, and for earlier lines with the arrow keys.

    GNU readline returns a paste as it is, with its line breaks. libedit, which some Pythons have in its place, ignores
    the setting for that and returns at the first line break. Raises ImportError if Python has neither.
    """
    import readline

    readline.set_auto_history(False)  # several lines become one entry
    if os.environ.get("TERM") != "dumb":  # such a terminal would show the escapes
        readline.parse_and_bind("set enable-bracketed-paste on")  # Python turns it off for its own prompt
    for line in history.lines():
        with contextlib.suppress(ValueError):  # a character that the terminal's encoding does not have
            readline.add_history(line)

    def ask(prompt: str) -> str:
        # \x01 and \x02 tell readline that the colour codes between them take no room on the screen.
        line = whole_message(input(re.sub("(\x1b\\[\\d+m)", "\x01\\1\x02", prompt)), input)
        if line.strip():
            readline.add_history(line)
            history.add(line)
        return line

    return ask


def whole_message(text: str, ask: Callable[[str], str]) -> str:
    """Return what the user typed as one line. Ask for more lines if it begins with triple quotes that are still open.

    Text between the quotes and a paste of several lines are messages, even if they look like a command.
    """
    if not text.startswith(QUOTES):
        return as_message(text) if "\n" in text.strip() else text.rstrip("\n")
    while len(text.rstrip()) < 2 * len(QUOTES) or not text.rstrip().endswith(QUOTES):
        text += "\n" + ask(CONTINUED)
    return as_message(text.rstrip()[len(QUOTES) : -len(QUOTES)])


def as_message(text: str) -> str:
    """Return a text as one line that is no command: a space in front says so, as in what users type."""
    line = one_line(text)
    return f" {line}" if line.startswith(("/", QUOTES)) or line in BARE_EXITS else line


def prompter(screen: Screen, history: History) -> Callable[[], str]:
    """Return a function that asks the user for a message or a command. It raises EOFError after Ctrl-D."""
    prompt = f"{screen.names[0]}: "
    if not screen.labels:
        return lambda: whole_message(ask_on_stderr(prompt), ask_on_stderr)
    prompt = paint(prompt, GREEN, screen)
    try:
        ask = ask_with_readline(screen, history)
    except (ImportError, AttributeError):  # Windows has no readline, or another one of this name
        return lambda: whole_message(input(prompt), input)
    return lambda: ask(prompt)


def next_line(ask: Callable[[], str], screen: Screen) -> str:
    """Return the user's next line, or "" in the place of one that can't be read or that Ctrl-C discards, as in a shell.

    After Ctrl-C and Ctrl-D the cursor goes to a new line. Raises EOFError after Ctrl-D.
    """
    try:
        return ask()
    except (KeyboardInterrupt, EOFError) as stop:
        print(file=sys.stdout if screen.labels else sys.stderr, flush=True)
        if isinstance(stop, EOFError):
            raise
    except UnicodeDecodeError as error:
        log(f"the line is not {error.encoding}: byte 0x{error.object[error.start]:02x}")
    return ""
