"""A conversation in the terminal: GPT-2 continues a dialogue, one line at a time.

    python -m picogpt chat --model_size 124M

The dialogue is one list of token ids: a persona, then turn after turn.

    plain       persona, then for each turn "Alice: " the message "\\nBob:" the reply "\\n"
    dialogpt    for each turn the message <|endoftext|> the reply <|endoftext|>, as DialoGPT was trained
                (Zhang et al. 2020, "DialoGPT: Large-Scale Generative Pre-training for Conversational Response
                Generation")

Each part is encoded by itself and its ids are appended, so that nothing said later changes the ids of what came before:
their keys and values stay in the cache, and a turn costs its own tokens only. A message is put on one line that begins
with the user's name, and it is encoded as plain text: whatever stands in it, no line begins with a name that was not
put there by this file, and no <|endoftext|> is the token. In `plain` a name within a line ends nothing.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import math
import os
import re
import sys
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

import gpt2
from encoder import BYTE_TO_CHAR, END_OF_TEXT, Encoder
from utils import Parser, UsageError, load_encoder_hparams_and_params, log, number

if TYPE_CHECKING:
    from picogpt.typing.shaped_numpy import Vector
    from picogpt.typing.shapes import Choose, Params, Vocab

NAMES = ("Alice", "Bob")  # the user, the model
PERSONA = """{user} talks with {model}, who is friendly and gives short answers.

{user}: Hello, {model}. How are you today?
{model}: Very well, thank you. What would you like to talk about?
"""
BREAK = "[\n\v\f\r\x1c-\x1e\x85\u2028\u2029]"  # what str.splitlines, and many a terminal, ends a line at
BLANK = "".join(BYTE_TO_CHAR[byte] for byte in b" \t\n\v\f\r")

# The repetition penalty looks at this many of the model's last ids, at its replies only: names and line ends, which
# every turn repeats, would become ever less likely, and the replies ever longer.
N_RECENT = 64

HELP = """/reset       forget everything but the persona
/undo        take back the last message and its reply
/retry       another reply to the last message
/save FILE   write the conversation to a file
/help        show this
Ctrl-C stops a reply, Ctrl-D leaves. A message that begins with / is written with a space before it."""


# ------------------------------------------------------------------------------------------------ the dialogue as ids


class Format(NamedTuple):
    """How a dialogue is written: the ids before it, around a message, and after a reply; and what ends a reply."""

    persona: list[int]
    before: list[int]
    after: list[int]
    closing: list[int]
    stop: str | None


def plain(encoder: Encoder, persona: str, names: Sequence[str]) -> Format:
    """A play's text: a name, a colon and what is said, on one line."""
    user, model = names
    persona = persona.rstrip("\n") + "\n" if persona.strip() else ""
    encode = encoder.encode
    # "Alice:" and " message" are tokens of their own in GPT-2: the space belongs to the word after it
    return Format(encode(persona), encode(f"{user}:"), encode(f"\n{model}:"), encode("\n"), f"{user}:")


def dialogpt(encoder: Encoder, persona: str) -> Format:
    """DialoGPT's way: <|endoftext|> after everything said; the lines of a persona are the first things said."""
    if END_OF_TEXT not in encoder.encoder:
        raise UsageError(f"--format dialogpt needs {END_OF_TEXT}, which is not in this model's vocabulary")
    end = [encoder.encoder[END_OF_TEXT]]
    lines = [line.strip() for line in persona.splitlines() if line.strip()]
    return Format([id for line in lines for id in encoder.encode(line) + end], [], end, end, None)


def one_line(text: str) -> str:
    """What the user typed, with a space for every line break. Raises UsageError when it is not valid Unicode."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise UsageError(f"the message is not valid UTF-8: character {error.start} is {text[error.start]!r}") from None
    return " ".join(filter(None, map(str.strip, text.splitlines())))


def spoken(pieces: Iterable[str], stop: str | None) -> Iterator[str]:
    """Pass a reply on to the end of its line, or to `stop` as a word of its own, without white space at either end.

    What may be white space at the end, or the beginning of `stop`, waits for what follows it.
    """
    end = re.compile(BREAK if stop is None else rf"{BREAK}|(?<!\w){re.escape(stop)}")
    text, shown = "", 0
    for piece in pieces:
        text = (text + piece).lstrip(" ")
        if match := end.search(text):
            text = text[: match.start()]
            break
        n = max(n for n in range(len(stop)) if text.endswith(stop[:n])) if stop else 0
        sure = text[: len(text) - n].rstrip()
        yield sure[shown:]
        shown = max(shown, len(sure))
    yield text.rstrip()[shown:]


def cut(encoder: Encoder, ids: list[int], text: str) -> list[int]:
    """The ids of a reply up to where its text ended; of a token that goes on after it, the part that belongs to it."""
    for n in range(len(ids), -1, -1):
        kept = encoder.decode(ids[:n]).lstrip(" ")
        if text.startswith(kept):
            break
    return ids[:n] + encoder.encode(text[len(kept) :])


def n_shared(a: Sequence[int], b: Sequence[int]) -> int:
    """How many ids two lists have in common before they differ. n_shared([1, 2, 3], [1, 2, 4, 5]) = 2"""
    return next((i for i, (x, y) in enumerate(zip(a, b)) if x != y), min(len(a), len(b)))


# --------------------------------------------------------------------------------------------------- the conversation


@dataclass
class Turn:
    """A message and the reply to it, as text and as ids (opening: all that stands before the reply)."""

    said: str
    opening: list[int]
    text: str = ""
    reply: list[int] = field(default_factory=list)


class Chat:
    """A conversation: what was said, the cache of its keys and values, and the model that goes on with it.

    choose(logits [n_vocab], the model's last ids) picks each token. Raises UsageError when the persona leaves no room.
    Example: chat.hear("Hello"); "".join(chat.reply()) is the answer.
    """

    def __init__(
        self, encoder: Encoder, params: Params, n_head: int, form: Format, choose: Choose, max_tokens: int = 60
    ):
        self.encoder, self.params, self.n_head, self.form = encoder, params, n_head, form
        self.choose, self.max_tokens, self.n_ctx = choose, max_tokens, len(params["wpe"])
        self.end = encoder.encoder.get(END_OF_TEXT)
        self.blank = [id for token, id in encoder.encoder.items() if not token.strip(BLANK) or id == self.end]
        self.cache = gpt2.empty_cache(params, n_head, self.n_ctx)
        self.fed: list[int] = []  # the ids whose keys and values the cache holds
        self.turns: list[Turn] = []
        self.first = 0  # the first turn that is still in the context
        self.notes: list[str] = []  # what is to be said once the reply has ended
        if self.room() < 1:
            raise UsageError(
                f"the persona has {len(form.persona)} tokens, but the model's context is {self.n_ctx}: shorten it"
            )

    def room(self) -> int:
        """How many tokens a message may have for the model to be able to answer it."""
        return self.n_ctx - len(self.form.persona) - len(self.form.before) - len(self.form.after)

    def ids(self) -> list[int]:
        """The conversation as the model sees it, up to where it goes on."""
        parts = [turn.opening + turn.reply for turn in self.turns[self.first :]]
        ids = list(self.form.persona)
        for i, part in enumerate(parts):
            ids += (self.form.closing if i else []) + part
        return ids

    def hear(self, text: str) -> None:
        """Take in a message. Raises UsageError when it is too long, also for an empty conversation."""
        said = one_line(text)
        ids = self.encoder.encode(said if self.form.stop is None else f" {said}")
        if len(ids) > self.room():
            raise UsageError(
                f"the message has {len(ids)} tokens, but there is room for {self.room()} beside the persona"
            )
        self.turns.append(Turn(said, self.form.before + ids + self.form.after))

    def reply(self) -> Generator[str, None, None]:
        """Answer the last message, piece by piece. What was passed on stays said, also when it is left early."""
        turn = self.turns[-1]
        turn.text, turn.reply = "", []
        try:
            for piece in spoken(self.encoder.decode_stream(self.reply_ids()), self.form.stop):
                turn.text += piece
                yield piece
        finally:
            turn.reply = cut(self.encoder, turn.reply, turn.text)

    def reply_ids(self) -> Iterator[int]:
        """Choose the ids of a reply and append them to the last turn, until <|endoftext|> or there are enough."""
        turn = self.turns[-1]
        for _ in range(self.max_tokens):
            self.make_room()
            if len(self.ids()) > self.n_ctx:
                self.notes.append("[the reply has filled the context and ends here]")
                return
            logits = self.logits()
            if not turn.reply:  # an empty reply is none
                logits = logits.copy()
                logits[self.blank] = -math.inf
            id = self.choose(logits, self.recent())
            if id == self.end:
                return
            turn.reply.append(id)
            yield id

    def recent(self) -> list[int]:
        """The last ids of the model's own."""
        return [id for turn in self.turns[self.first :] for id in turn.reply][-N_RECENT:]

    def logits(self) -> Vector[Vocab]:
        """Score what follows: only ids that the cache does not hold yet, at their places, are fed. -> [n_vocab]

        After an undone, retried or shortened turn, or with the oldest ones gone, the cache holds less that is still
        true, and the rest is written anew. An interruption leaves nothing behind that is taken to be true.
        """
        ids = self.ids()
        n_past = n_shared(self.fed, ids[:-1])
        self.fed = ids[:n_past]
        logits = gpt2.next_logits(ids[n_past:], self.params, self.n_head, self.cache, n_past)
        self.fed = ids
        return logits

    def get_ready(self) -> None:
        """Make room for a message of ordinary length while the user reads, so that its answer begins without delay."""
        if self.make_room(self.n_ctx // 8):
            self.logits()

    def make_room(self, n_new: int = 0) -> bool:
        """Where n_new more ids would not fit, forget the oldest turns until a quarter of the context is free.

        The rest has to be fed again: turn by turn, that would be at every turn from then on. The last turn stays.
        Returns whether there was something to forget and the rest does fit.
        """
        if len(self.ids()) + n_new <= self.n_ctx:
            return False
        before = self.first
        while self.first < len(self.turns) - 1 and len(self.ids()) > self.n_ctx - self.n_ctx // 4:
            self.first += 1
        if n := self.first - before:
            what = "oldest turn has" if n == 1 else f"{n} oldest turns have"
            self.notes.append(f"[the context of {self.n_ctx} tokens is full: the {what} been dropped]")
        return n > 0 and len(self.ids()) <= self.n_ctx

    def undo(self) -> str:
        """Take back the last turn; returns its message. Raises UsageError when there is none."""
        if not self.turns:
            raise UsageError("nothing has been said yet")
        said = self.turns.pop().said
        self.first = min(self.first, len(self.turns))
        return said

    def reset(self) -> None:
        """Forget everything but the persona, whose keys and values stay."""
        self.turns, self.first = [], 0

    def transcript(self, names: Sequence[str]) -> str:
        """All that was said, one line each, with what the context holds no more."""
        return "".join(f"{names[0]}: {turn.said}\n{names[1]}: {turn.text}\n" for turn in self.turns)


# --------------------------------------------------------------------------------------------------------- the screen


class Screen(NamedTuple):
    """Who speaks, and whether names and colours are shown."""

    names: tuple[str, str]
    labels: bool
    colours: bool


def paint(text: str, colour: int, screen: Screen) -> str:
    return f"\x1b[{colour}m{text}\x1b[0m" if screen.colours else text


def may_colour() -> bool:
    """Only on a terminal, and never with NO_COLOR (no-color.org)."""
    return sys.stdout.isatty() and "NO_COLOR" not in os.environ and os.environ.get("TERM") != "dumb"


def answer(chat: Chat, screen: Screen) -> None:
    """Print the reply as it is made, then what there is to say about it.

    After Ctrl-C what was shown stays said. A message that has got nothing yet is taken back: the conversation would
    hold an empty reply, and a model that has seen one gives more of them.
    """
    if screen.labels:
        print(paint(f"{screen.names[1]}: ", 36, screen), end="", flush=True)
    try:
        with contextlib.closing(chat.reply()) as pieces:
            for piece in pieces:
                print(piece, end="", flush=True)
    except KeyboardInterrupt:
        if not chat.turns[-1].text:
            chat.undo()
        raise
    finally:
        print(flush=True)
        say_notes(chat)
    chat.get_ready()
    say_notes(chat)


def say_notes(chat: Chat) -> None:
    while chat.notes:
        log(chat.notes.pop(0))


def save(path: str, text: str) -> None:
    """Write a file that has its name only when complete. Raises OSError naming it, UsageError where it is no name."""
    if not path or "\0" in path:
        raise UsageError("/save needs the name of a file")
    path = os.path.expanduser(path)
    partial = f"{path}.partial"
    try:
        with open(partial, "w", encoding="utf-8") as file:
            file.write(text)
        os.replace(partial, path)
    except OSError as error:
        with contextlib.suppress(OSError):
            os.unlink(partial)
        raise OSError(error.errno, error.strerror, path) from None


def obey(line: str, chat: Chat, screen: Screen) -> None:
    """Do what a line that begins with / says. Raises UsageError for an unknown command."""
    name, _, rest = line.strip().partition(" ")
    if name == "/save":
        save(rest.strip(), chat.transcript(screen.names))
        log(f"[saved to {rest.strip()}]")
    elif rest.strip() or name not in ("/reset", "/undo", "/retry", "/help"):
        raise UsageError(f"{line.strip()!r} is not a command: /help lists them")
    elif name == "/reset":
        chat.reset()
        log("[everything but the persona is forgotten]")
    elif name == "/undo":
        log(f"[taken back: {chat.undo()}]")
    elif name == "/help":
        log(HELP)
    elif not chat.turns:
        raise UsageError("nothing has been said yet")
    else:
        answer(chat, screen)


def take(line: str, chat: Chat, screen: Screen) -> None:
    """One line of input: a command, a message, or nothing."""
    if line.startswith("/"):
        obey(line, chat, screen)
    elif one_line(line):
        chat.hear(line)
        answer(chat, screen)


def script(lines: Iterable[bytes], chat: Chat, screen: Screen) -> int:
    """Answer the lines of a pipe or a file. The first that can't be is an error, and the end."""
    for i, line in enumerate(lines, 1):
        try:
            text = line.decode("utf-8")
        except UnicodeDecodeError as error:
            raise UsageError(
                f"line {i} of standard input is not UTF-8: byte {error.start} is 0x{line[error.start]:02x}"
            ) from None
        take(text, chat, screen)
    return 0


def asking(screen: Screen) -> Callable[[], str]:
    """A function that asks for a line, with the editing and the history of readline where Python has it.

    It raises EOFError after Ctrl-D. Where stdout is no terminal the prompt must not go there: input() would do that.
    """
    name = f"{screen.names[0]}: "
    if not screen.labels:

        def ask() -> str:
            print(name, end="", file=sys.stderr, flush=True)
            if not (line := sys.stdin.readline()):
                raise EOFError
            return line

        return ask
    prompt = paint(name, 32, screen)
    with contextlib.suppress(ImportError):
        import readline  # noqa: F401

        prompt = re.sub("(\x1b\\[\\d+m)", "\x01\\1\x02", prompt)  # of no width, it is told
    return lambda: input(prompt)


def attempt(line: str, chat: Chat, screen: Screen) -> None:
    """Take a line that a person typed: a mistake is said and the talk goes on; Ctrl-C stops the reply."""
    try:
        take(line, chat, screen)
    except KeyboardInterrupt:
        pass
    except BrokenPipeError:
        raise
    except OSError as error:  # /save
        log(f"{error.filename}: {error.strerror}")
    except (UsageError, UnicodeError) as error:
        log(str(error))


def talk(chat: Chat, screen: Screen) -> int:
    """Ask and answer until Ctrl-D. Ctrl-C at the prompt clears the line, as in a shell."""
    ask = asking(screen)
    log("Ctrl-C stops a reply, Ctrl-D leaves, /help lists the commands.")
    while True:
        try:
            attempt(ask(), chat, screen)
        except KeyboardInterrupt:
            print(flush=True)
        except EOFError:
            print(flush=True)
            return 0
        except UnicodeDecodeError as error:
            log(f"the line is not {error.encoding}: byte 0x{error.object[error.start]:02x}")


# --------------------------------------------------------------------------------------------------- the command line


def a_name(text: str) -> str:
    """A speaker's name. Raises ArgumentTypeError for one that could not be told from what is said."""
    if text != one_line(text) or not text or ":" in text:
        raise argparse.ArgumentTypeError(f"{text!r} is not a name: one line without a colon")
    return text


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = Parser(
        prog="picogpt chat",
        description="Talk with GPT-2. Standard input that is no terminal is a script: one message a line.",
        epilog="""examples:
  python -m picogpt chat --model_size 124M
  python -m picogpt chat --model_size tiny --names JULIET ROMEO --persona balcony.txt --seed 1
  python -m picogpt chat --model_size my-dialogpt --format dialogpt
  printf 'Hello!\\nWhat is your name?\\n' | python -m picogpt chat > replies.txt""",
    )
    whole, add = number(0, kind=int), parser.add_argument
    add("--model_size", default="124M", help="124M, 355M, 774M, 1558M or a folder of --models_dir (default: 124M)")
    add("--models_dir", default="models", help="where the models are, or go (default: models)")
    add("--persona", metavar="FILE", help="the text that the conversation begins with (UTF-8)")
    add("--names", nargs=2, type=a_name, default=NAMES, metavar=("YOU", "MODEL"), help="(default: Alice Bob)")
    add("--format", choices=("plain", "dialogpt"), default="plain", help="how turns are written (default: plain)")
    add("--temperature", type=number(0), default=0.8, metavar="T", help="0: the likeliest token (default: 0.8)")
    add("--top_k", type=whole, default=0, metavar="K", help="sample from the K likeliest; 0: from all (default)")
    add("--top_p", type=number(0, 1), default=0.9, metavar="P", help="from the likeliest that reach P (default: 0.9)")
    add("--repetition_penalty", type=number(0.01, 100), default=1.15, metavar="R", help="above 1: repeat less (1.15)")
    add("--seed", type=whole, default=None, metavar="S", help="the same seed and messages give the same replies")
    add("--max_tokens", type=number(1, kind=int), default=60, metavar="N", help="for one reply (default: 60)")
    args = parser.parse_args(argv)
    if args.names[0] == args.names[1]:
        parser.error("argument --names: the two names are the same")
    return args


def read_persona(args: argparse.Namespace) -> str:
    """The text of --persona, or the built-in one: none for DialoGPT, which was trained without.

    Raises OSError for a file that can't be read, UsageError when it is not UTF-8.
    """
    if args.persona is None:
        return PERSONA.format(user=args.names[0], model=args.names[1]) if args.format == "plain" else ""
    try:
        with open(args.persona, encoding="utf-8-sig") as file:
            return file.read()
    except UnicodeDecodeError as error:
        raise UsageError(f"{args.persona} is not UTF-8: byte 0x{error.object[error.start]:02x}") from None


def open_chat(args: argparse.Namespace) -> Chat:
    """The model, the persona and the choice of tokens that the command line asks for."""
    persona = read_persona(args)
    encoder, hparams, params = load_encoder_hparams_and_params(args.model_size, args.models_dir)
    form = dialogpt(encoder, persona) if args.format == "dialogpt" else plain(encoder, persona, args.names)
    settings: dict[str, Any] = {
        name: getattr(args, name) for name in ("temperature", "top_k", "top_p", "repetition_penalty")
    }
    choose = functools.partial(gpt2.sample, rng=np.random.default_rng(args.seed), **settings)
    return Chat(encoder, params, hparams["n_head"], form, choose, args.max_tokens)


def main(argv: list[str] | None = None) -> int:
    args = parse_args(argv)
    if sys.stdin is None:
        raise UsageError("standard input is closed")
    chat = open_chat(args)
    if not sys.stdin.isatty():
        return script(sys.stdin.buffer, chat, Screen(tuple(args.names), labels=False, colours=False))
    return talk(chat, Screen(tuple(args.names), labels=sys.stdout.isatty(), colours=may_colour()))
