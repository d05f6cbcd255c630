"""Talk with GPT-2 in the terminal.

    python -m picogpt chat --model_size 124M

Each line that the user types is a message, or a command if it begins with a slash. If standard input is not a
terminal, its lines are handled in the same way, but /save is refused, and only the replies go to standard output.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO, NamedTuple

from picogpt import options
from picogpt.chat.dialogue import Chat, dialogpt, one_line, plain
from picogpt.files import new_file
from utils import (
    Parser,
    UsageError,
    decode_utf8,
    load_encoder_hparams_and_params,
    log,
    number,
    read_text,
    shown,
    visible,
)

NAMES = ("Alice", "Bob")  # the user and the model
PERSONA = """{user} talks with {model}, who is friendly and gives short answers.

{user}: Hello, {model}. How are you today?
{model}: Very well, thank you. What would you like to talk about?
"""
LONGEST_LINE = 1 << 20  # in bytes, of standard input that is not a terminal: it may have no end
GREEN, CYAN = 32, 36  # ANSI colour codes

HELP = """/reset       forget everything but the persona
/undo        take back the last message and its reply
/retry       get another reply to the last message
/save FILE   write the conversation to a new file (only in a terminal); /save! FILE replaces an old one
/help        show this list
Ctrl-C stops a reply, and Ctrl-D ends the chat. To send a message that begins with /, type a space before it."""


# --------------------------------------------------------------------------------------------------------- the screen


class Screen(NamedTuple):
    """The names of the user and the model, and whether replies are shown with names and in colour."""

    names: tuple[str, str]
    labels: bool
    colours: bool


def paint(text: str, colour: int, screen: Screen) -> str:
    return f"\x1b[{colour}m{text}\x1b[0m" if screen.colours else text


def answer(chat: Chat, screen: Screen) -> None:
    """Print a reply to the last message while the model writes it, and then the chat's notes.

    After Ctrl-C the part of the reply that was shown remains in the conversation. If nothing was shown yet, the message
    is taken back: a model that sees one empty reply gives more of them.
    """
    if screen.labels:
        print(paint(f"{screen.names[1]}: ", CYAN, screen), end="", flush=True)
    try:
        with contextlib.closing(chat.reply()) as pieces:
            for piece in pieces:
                print(shown(piece), end="", flush=True)
    except KeyboardInterrupt:
        if not chat.turns[-1].reply:
            chat.undo()
        raise
    finally:
        print(flush=True)
        log_notes(chat)
    chat.get_ready()
    log_notes(chat)


def log_notes(chat: Chat) -> None:
    while chat.notes:
        log(chat.notes.pop(0))


# ---------------------------------------------------------------------------------------------- messages and commands


def save(name: str, text: str, replace: bool) -> None:
    """Write text to a file. Raises UsageError if the name is not valid, and OSError if the file can't be written."""
    if not name or "\0" in name:
        raise UsageError("/save needs the name of a file")
    path = Path(os.path.expanduser(name))
    if path.is_file() and not replace:
        raise UsageError(f"{name} exists already: choose another name, or replace it with /save! {name}")
    with new_file(path, replace) as file:
        file.write(text.encode("utf-8"))
    log(f"[saved to {name}]")


def run_command(line: str, chat: Chat, screen: Screen) -> None:
    """Run a line that begins with a slash. Raises UsageError if the command is unknown."""
    name, _, argument = line.strip().partition(" ")
    if name in ("/save", "/save!"):
        save(argument.strip(), chat.transcript(screen.names), replace=name == "/save!")
    elif argument.strip() or name not in ("/reset", "/undo", "/retry", "/help"):
        raise UsageError(f"{line.strip()!r} is not a command: /help lists the commands")
    elif name == "/reset":
        chat.reset()
        log("[everything but the persona is forgotten]")
    elif name == "/undo":
        log(f"[taken back: {chat.undo()}]")
    elif name == "/help":
        log(HELP, keep="\n")
    elif not chat.turns:
        raise UsageError("nothing has been said yet")
    else:
        answer(chat, screen)


def handle_line(line: str, chat: Chat, screen: Screen) -> None:
    """Run a line of input as a command, or answer it as a message. An empty line does nothing."""
    if line.startswith("/"):
        run_command(line, chat, screen)
    elif one_line(line):
        chat.add_message(line)
        answer(chat, screen)


# ------------------------------------------------------------------------------------------------ pipes and terminals


def script(file: BinaryIO, chat: Chat, screen: Screen) -> int:
    """Handle the lines of a pipe or a file. The first line that can't be handled raises an error and ends the chat.

    /save is such a line: whoever passes on a text that others wrote does not mean it to replace files.
    """
    for i, line in enumerate(iter(lambda: file.readline(LONGEST_LINE + 1), b""), 1):
        if len(line) > LONGEST_LINE:
            raise UsageError(f"line {i} of standard input has more than {LONGEST_LINE:,} bytes")
        text = decode_utf8(line, f"line {i} of standard input")
        if re.match(r"/save\b", text):
            raise UsageError(f"line {i} of standard input is /save, which works only in a terminal; redirect stdout")
        handle_line(text, chat, screen)
    return 0


def ask_on_stderr(prompt: str) -> str:
    """Ask for a line where standard output is not a terminal: `input` would print the prompt there."""
    print(prompt, end="", file=sys.stderr, flush=True)
    if not (line := sys.stdin.readline()):
        raise EOFError
    return line


def prompter(screen: Screen) -> Callable[[], str]:
    """Return a function that asks the user for a line. It raises EOFError after Ctrl-D.

    Where Python has readline, the user can edit the line and go back to earlier ones.
    """
    prompt = f"{screen.names[0]}: "
    if not screen.labels:
        return lambda: ask_on_stderr(prompt)
    prompt = paint(prompt, GREEN, screen)
    with contextlib.suppress(ImportError):
        import readline  # noqa: F401

        # \x01 and \x02 tell readline that the colour codes between them take no room on the screen.
        prompt = re.sub("(\x1b\\[\\d+m)", "\x01\\1\x02", prompt)
    return lambda: input(prompt)


def try_line(line: str, chat: Chat, screen: Screen) -> None:
    """Handle a line that a person typed. A mistake is reported and the chat goes on; Ctrl-C stops the reply."""
    try:
        handle_line(line, chat, screen)
    except KeyboardInterrupt:
        pass
    except BrokenPipeError:
        raise
    except OSError as error:  # from /save
        log(f"{error.filename}: {error.strerror}" if error.filename else str(error))
    except (UsageError, UnicodeError) as error:
        log(str(error))


def talk(chat: Chat, screen: Screen) -> int:
    """Ask and answer until Ctrl-D. Ctrl-C at the prompt discards the line, as in a shell."""
    ask = prompter(screen)
    log("Ctrl-C stops a reply, Ctrl-D ends the chat, /help lists the commands.")
    while True:
        try:
            try_line(ask(), chat, screen)
        except KeyboardInterrupt:
            print(flush=True)
        except EOFError:
            print(flush=True)
            return 0
        except UnicodeDecodeError as error:
            log(f"the line is not {error.encoding}: byte 0x{error.object[error.start]:02x}")


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
  python -m picogpt chat --model_size tiny --names JULIET ROMEO --persona balcony.txt --seed 1
  python -m picogpt chat --model_size my-dialogpt --format dialogpt
  printf 'Hello!\\nWhat is your name?\\n' | python -m picogpt chat > replies.txt""",
    )
    add = parser.add_argument
    options.add_model_options(parser)
    add("--persona", type=Path, metavar="FILE", help="UTF-8 text that the conversation begins with")
    names = "the name of the user and the name of the model (default: Alice Bob)"
    add("--names", nargs=2, type=speaker_name, default=NAMES, metavar=("YOU", "MODEL"), help=names)
    formats = "plain: lines of a play; dialogpt: for models trained like DialoGPT (default: plain)"
    add("--format", choices=("plain", "dialogpt"), default="plain", help=formats)
    options.add_sampling_options(parser, temperature=0.8, top_p=0.9, repetition_penalty=1.15)
    seed = "a number: the same seed and the same messages give the same replies"
    add("--seed", type=number(0, kind=int), default=None, metavar="S", help=seed)
    longest = "the most tokens that one reply may have (default: 60)"
    add("--max_tokens", type=number(1, kind=int), default=60, metavar="N", help=longest)
    args = parser.parse_args(argv)
    if args.names[0] == args.names[1]:
        parser.error("argument --names: the two names are the same")
    return args


def read_persona(args: argparse.Namespace) -> str:
    """Return the text of --persona, or else a built-in one. DialoGPT was trained without personas and gets none.

    Raises OSError if the file can't be read, and UsageError if it is not UTF-8.
    """
    if args.persona is not None:
        return read_text(args.persona, megabytes=1).removeprefix("\ufeff")  # a byte order mark is not part of the text
    return PERSONA.format(user=args.names[0], model=args.names[1]) if args.format == "plain" else ""


def open_chat(args: argparse.Namespace) -> Chat:
    """Load the model and return a chat with the settings of the command line."""
    persona = read_persona(args)
    encoder, hparams, params = load_encoder_hparams_and_params(args.model_size, args.models_dir)
    format = dialogpt(encoder, persona) if args.format == "dialogpt" else plain(encoder, persona, args.names)
    return Chat(encoder, params, hparams["n_head"], format, options.sampler(args), args.max_tokens)


def main(argv: list[str] | None = None) -> int:
    args = parse_args(argv)
    if sys.stdin is None:
        raise UsageError("standard input is closed")
    chat = open_chat(args)
    if not sys.stdin.isatty():
        return script(sys.stdin.buffer, chat, Screen(tuple(args.names), labels=False, colours=False))
    return talk(chat, Screen(tuple(args.names), labels=sys.stdout.isatty(), colours=options.may_colour()))
