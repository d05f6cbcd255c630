"""Talk with GPT-2 in the terminal.

    python -m picogpt chat --model_size 124M

Each line that the user types is a message, or a command if it begins with a slash. If standard input is not a
terminal, its lines are handled in the same way, but /save and /load are refused, and only the replies go to standard
output.
"""

from __future__ import annotations

import argparse
import re
import sys
from pathlib import Path
from typing import BinaryIO

import numpy as np

from picogpt import options
from picogpt.chat.commands import SETTINGS, Session, handle_line, introduction, try_line
from picogpt.chat.dialogue import Chat, dialogpt, one_line, plain
from picogpt.chat.history import History
from picogpt.chat.lines import BARE_EXITS, next_line, prompter
from picogpt.chat.screen import Screen
from picogpt.command_line import Parser, UsageError, decode_utf8, read_text, visible
from picogpt.files import state_folder
from picogpt.terminal_text import log_wrapped
from utils import load_encoder_hparams_and_params

NAMES = ("Alice", "Bob")  # the user and the model
PERSONA = """{user} talks with {model}, who is friendly and gives short answers.

{user}: Hello, {model}. How are you today?
{model}: Very well, thank you. What would you like to talk about?
"""


# ------------------------------------------------------------------------------------------------ pipes and terminals


def script(file: BinaryIO, session: Session) -> int:
    """Handle the lines of a pipe or a file. The first line that can't be handled raises an error and ends the chat.

    /save and /load are such lines: whoever passes on a text that others wrote does not mean it to replace files, or to
    read them to the model.
    """
    for i, line in enumerate(file, 1):
        text = decode_utf8(line, f"line {i} of standard input")
        if match := re.match(r"/(save|load)\b", text):
            advice = "; redirect stdout" if match[1] == "save" else ""
            raise UsageError(f"line {i} of standard input is {match[0]}, which works only in a terminal{advice}")
        try:
            handle_line(text, session)
        except EOFError:  # /exit
            break
    return 0


def talk(session: Session, history: History) -> int:
    """Ask and answer until the user leaves."""
    ask = prompter(session.screen, history)
    log_wrapped(greeting(session))
    while True:
        try:
            line = next_line(ask, session.screen)
            try_line("/exit" if line.rstrip() in BARE_EXITS else line, session)
        except EOFError:
            return 0


def greeting(session: Session) -> str:
    """Return the line at the start: the name of the model, its persona, and how to leave."""
    return f"{introduction(session)}. /exit leaves, /help lists the commands."


# --------------------------------------------------------------------------------------------------- the command line


def speaker_name(text: str) -> str:
    """Return a speaker's name. Raises ArgumentTypeError if it is empty, or has line breaks, colons or escapes."""
    if text != visible(text, keep="\u200c\u200d") or text != one_line(text) or not text or ":" in text:
        raise argparse.ArgumentTypeError(f"{text!r} is not a name: it must be one line without a colon")
    return text


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = Parser(
        prog="python -m picogpt chat",
        description="Talk with GPT-2. If standard input is not a terminal, its lines are messages or commands.",
        epilog="""examples:
  python -m picogpt chat --model_size 124M
  python -m picogpt chat --model_size tiny --names JULIET ROMEO \\
    --persona balcony.txt --seed 1
  python -m picogpt chat --model_size my-dialogpt --format dialogpt
  printf 'Hello!\\nWhat is your name?\\n' | python -m picogpt chat > replies.txt""",
    )
    add = parser.add_argument
    options.add_model_options(parser)
    options.add_allow_special(parser)
    add("--persona", type=Path, metavar="FILE", help="UTF-8 text that the conversation begins with")
    names = "the name of the user and the name of the model (default: Alice Bob)"
    add("--names", nargs=2, type=speaker_name, default=NAMES, metavar=("YOU", "MODEL"), help=names)
    formats = "plain: lines of a play; dialogpt: for models trained like DialoGPT (default: plain)"
    add("--format", choices=("plain", "dialogpt"), default="plain", help=formats)
    options.add_sampling_options(parser, temperature=0.8, top_p=0.9, repetition_penalty=1.15)
    seed = "a number: the same seed and the same messages give the same replies"
    add("--seed", type=SETTINGS["seed"], default=None, metavar="S", help=seed)
    longest = "the most tokens that one reply may have (default: 60)"
    length = ("-n", "--n_tokens_to_generate", "--max_tokens")
    add(*length, dest="max_tokens", type=SETTINGS["max_tokens"], default=60, metavar="N", help=longest)
    no_history = "neither read nor write the file with the lines that you typed in earlier chats"
    add("--no_history", action="store_true", help=no_history)
    add("--verbose", action="store_true", help="print the speed after each reply to stderr")
    args = parser.parse_args(argv)
    if args.names[0] == args.names[1]:
        parser.error("argument --names: the two names are the same")
    return args


def read_persona(args: argparse.Namespace) -> str:
    """Return the text of --persona, or else a built-in one. DialoGPT was trained without personas and gets none.

    Raises OSError if the file can't be read, and UsageError if it is not UTF-8.
    """
    if args.persona is not None:
        return read_text(args.persona, megabytes=1)
    return PERSONA.format(user=args.names[0], model=args.names[1]) if args.format == "plain" else ""


def open_session(args: argparse.Namespace) -> Session:
    """Load the model and return a conversation with the settings of the command line.

    If standard input is not a terminal, the replies get neither names nor colours.
    """
    persona = read_persona(args)
    encoder, hparams, params = load_encoder_hparams_and_params(args.model_size, args.models_dir)
    options.allow_special(encoder, args)
    if args.persona is None and len(encoder.encode(persona)) > hparams["n_ctx"] // 2:
        persona = ""  # a context as short as that of `train --quick` has no room for the built-in one
    format = dialogpt(encoder, persona) if args.format == "dialogpt" else plain(encoder, persona, args.names)
    rng = np.random.default_rng(args.seed)
    chat = Chat(encoder, params, hparams["n_head"], format, options.sampler(args, rng), args.max_tokens)
    typed = sys.stdin.isatty()
    labels, colours = typed and sys.stdout.isatty(), typed and options.may_colour()
    return Session(chat, Screen(tuple(args.names), labels, colours, args.verbose), args, rng)


def main(argv: list[str] | None = None) -> int:
    args = parse_args(argv)
    if sys.stdin is None:
        raise UsageError("standard input is closed")
    session, folder = open_session(args), None if args.no_history else state_folder()
    if not sys.stdin.isatty():
        return script(sys.stdin.buffer, session)
    return talk(session, History(folder and folder / "chat_history"))
