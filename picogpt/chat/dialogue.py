"""Hold a dialogue with GPT-2: the formats of a dialogue, its turns, and `Chat`, which answers messages.

The model sees the dialogue as one list of token ids: a persona, which sets the scene, and then turn after turn. A turn
is one message of the user and the model's reply to it. There are two formats:

    plain       the persona, then for each turn "Alice: ", the message, "\\nBob:", the reply and "\\n"
    dialogpt    for each turn the message, <|endoftext|>, the reply and <|endoftext|>, as DialoGPT was trained
                (Zhang et al. 2020, "DialoGPT: Large-Scale Generative Pre-training for Conversational Response
                Generation")

Each part is encoded by itself, and its ids are appended to those before it. So a later part never changes the ids of an
earlier one, the keys and values of the earlier ones stay valid, and a turn computes only its own tokens.

A message can't forge a turn. It is put on a single line that begins with the user's name, so no line of the dialogue
begins with a name that the user typed. It is encoded as plain text, so <|endoftext|> in a message is not the token.
"""

from __future__ import annotations

import math
import re
import time
from collections.abc import Generator, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple

import gpt2
from encoder import BYTE_TO_CHAR, END_OF_TEXT, Encoder
from picogpt.command_line import UsageError, timed

if TYPE_CHECKING:
    from picogpt.typing.shaped_numpy import Vector
    from picogpt.typing.shapes import Choose, Params, n_vocab

LINE_BREAK = "[\n\v\f\r\x1c-\x1e\x85\u2028\u2029]"  # where str.splitlines and many terminals end a line
WHITE_SPACE = "".join(BYTE_TO_CHAR[byte] for byte in b" \t\n\v\f\r")

# The repetition penalty counts only this many of the newest ids of the model's replies. Names and line ends occur in
# every turn: if they counted, they would become less likely from turn to turn, and the replies would grow longer.
N_PENALIZED = 64


class Format(NamedTuple):
    """The ids around the messages and replies of a dialogue. A reply ends at a line end, or at the text `stop`."""

    persona: list[int]
    before_message: list[int]
    after_message: list[int]
    after_reply: list[int]
    stop: str | None


def plain(encoder: Encoder, persona: str, names: Sequence[str]) -> Format:
    """Return the format of a play: each line is a name, a colon and the words of that speaker."""
    user, model = names
    persona = persona.rstrip("\n") + "\n" if persona.strip() else ""
    encode = encoder.encode
    # The line "Alice: Hello" consists of "Alice:" and " Hello": the token of a word includes the space before it.
    return Format(encode(persona), encode(f"{user}:"), encode(f"\n{model}:"), encode("\n"), f"{user}:")


def dialogpt(encoder: Encoder, persona: str) -> Format:
    """Return DialoGPT's format. Each line of the persona becomes a message or reply at the beginning.

    Raises UsageError if the vocabulary lacks <|endoftext|>, which ends every message and reply.
    """
    if END_OF_TEXT not in encoder.encoder:
        raise UsageError(f"--format dialogpt needs the token {END_OF_TEXT}, which this model's vocabulary lacks")
    end = [encoder.encoder[END_OF_TEXT]]
    lines = [line.strip() for line in persona.splitlines() if line.strip()]
    return Format([id for line in lines for id in encoder.encode(line) + end], [], end, end, None)


def one_line(text: str) -> str:
    """Replace every line break of a message by a space."""
    return " ".join(filter(None, map(str.strip, text.splitlines())))


def exchanges(text: str, names: Sequence[str]) -> list[tuple[str, str]]:
    """Return the pairs of a message and its reply in a text that `Chat.transcript` wrote with these names.

    Raises UsageError naming the first line that does not belong in such a text. Nothing else is read into the lines:
    they may look like commands or hold <|endoftext|>, and remain the words of their speakers.
    """
    lines = text.rstrip("\n").split("\n")
    lines += [""] * (len(lines) % 2)  # the last message has no reply
    for i, line in enumerate(lines):
        if not line.startswith(f"{names[i % 2]}:"):
            raise UsageError(
                f"line {i + 1} does not begin with {names[i % 2] + ':'!r}, as /save writes it for these --names"
            )
    said = [one_line(line.partition(":")[2]) for line in lines]
    if not all(said[::2]):
        raise UsageError(f"line {2 * said[::2].index('') + 1} has no message after the name")
    return list(zip(said[::2], said[1::2]))


def until_turn_ends(pieces: Iterable[str], stop: str | None) -> Iterator[str]:
    """Pass on the pieces of a reply until its line ends or `stop` comes, without white space at either end.

    `stop` must begin a word: "Alice:" does not end a reply in "McAlice:". White space, and text that may be the
    beginning of `stop`, is held back until the next piece shows whether it belongs to the reply.
    """
    end = re.compile(LINE_BREAK if stop is None else rf"{LINE_BREAK}|(?<!\w){re.escape(stop)}")
    text, n_shown = "", 0
    for piece in pieces:
        text = (text + piece).lstrip(" ")
        if match := end.search(text):
            text = text[: match.start()]
            break
        n_held = max(n for n in range(len(stop)) if text.endswith(stop[:n])) if stop else 0
        certain = text[: len(text) - n_held].rstrip()
        yield certain[n_shown:]
        n_shown = max(n_shown, len(certain))
    yield text.rstrip()[n_shown:]


def trim_reply(encoder: Encoder, ids: list[int], text: str) -> list[int]:
    """Return the ids of a reply without those that come after its text.

    When the text ends within a token, the part of that token that belongs to the text is encoded anew.
    """
    for n in range(len(ids), -1, -1):
        kept = encoder.decode(ids[:n]).lstrip(" ")
        if text.startswith(kept):
            break
    return ids[:n] + encoder.encode(text[len(kept) :])


@dataclass
class Turn:
    """A message and the reply to it. `opening` holds all ids of the turn that come before the reply's."""

    message: str
    opening: list[int]
    reply: str = ""
    reply_ids: list[int] = field(default_factory=list)

    @property
    def ids(self) -> list[int]:
        return self.opening + self.reply_ids


class Chat:
    """A conversation with a model.

    choose(logits [n_vocab], the newest ids of the model's own replies) picks each token of a reply; a reply has at most
    max_tokens tokens. Raises UsageError if the persona leaves no room for a message.

    Example: after chat.add_message("Hello"), "".join(chat.reply()) is the answer.
    """

    def __init__(
        self, encoder: Encoder, params: Params, n_head: int, format: Format, choose: Choose, max_tokens: int = 60
    ):
        self.encoder, self.format, self.choose, self.max_tokens = encoder, format, choose, max_tokens
        self.n_ctx = len(params["wpe"])
        self.context = gpt2.Context(params, n_head)
        self.end = encoder.encoder.get(END_OF_TEXT)
        self.blank = [id for token, id in encoder.encoder.items() if not token.strip(WHITE_SPACE) or id == self.end]
        self.turns: list[Turn] = []
        self.first = 0  # index of the oldest turn that is still in the model's context
        self.notes: list[str] = []  # messages to show to the user after the reply
        self.n_read = 0  # tokens that the model read before the last reply: those that its cache did not hold
        self.times: list[float] = []  # the clock at the start of the last reply, and after each token, in seconds
        if self.room() < 1:
            size = f"the persona has {len(format.persona)} tokens, but the model's context is {self.n_ctx}"
            raise UsageError(f"{size}: give a shorter one with --persona FILE")

    def room(self) -> int:
        """Return the most tokens that a message may have if the model is to answer it."""
        around = self.format.persona + self.format.before_message + self.format.after_message
        return self.n_ctx - len(around)

    def ids(self) -> list[int]:
        """Return the ids that the model continues: the persona and the turns that are still in its context."""
        ids = list(self.format.persona)
        for i, turn in enumerate(self.turns[self.first :]):
            ids += (self.format.after_reply if i else []) + turn.ids
        return ids

    def encode(self, text: str) -> list[int]:
        """Return the ids of a message or of a reply. In a play, the first word includes the space after the colon."""
        return self.encoder.encode(text if self.format.stop is None or not text else f" {text}")

    def new_turn(self, text: str) -> Turn:
        """Return a turn with this message. Raises UsageError if it is too long even for an empty conversation."""
        message = one_line(text)
        ids = self.encode(message)
        if len(ids) > self.room():
            raise UsageError(
                f"the message has {len(ids)} tokens, but there is room for {self.room()} beside the persona"
            )
        return Turn(message, self.format.before_message + ids + self.format.after_message)

    def add_message(self, text: str) -> None:
        """Begin a turn with this message. Raises UsageError if it is too long even for an empty conversation."""
        self.turns.append(self.new_turn(text))

    def resume(self, pairs: Iterable[tuple[str, str]]) -> None:
        """Replace all turns by these messages and replies, such as those that `exchanges` returns.

        Raises UsageError if a message is too long. Then nothing is replaced.
        """
        turns = []
        for message, reply in pairs:
            turns.append(self.new_turn(message))
            turns[-1].reply, turns[-1].reply_ids = reply, self.encode(reply)
        self.turns, self.first = turns, 0

    def reply(self) -> Generator[str, None, None]:
        """Answer the last message, piece by piece.

        The pieces that were passed on remain part of the conversation, even if the caller stops early.
        """
        turn = self.turns[-1]
        turn.reply, turn.reply_ids, self.n_read = "", [], 0
        self.times = [time.perf_counter()]
        ids = timed(self.generate_ids(), self.times)
        try:
            for piece in until_turn_ends(self.encoder.decode_stream(ids), self.format.stop):
                turn.reply += piece
                yield piece
        finally:
            turn.reply_ids = trim_reply(self.encoder, turn.reply_ids, turn.reply)

    def generate_ids(self) -> Iterator[int]:
        """Choose the ids of a reply and append them to the last turn, until <|endoftext|> or max_tokens."""
        turn = self.turns[-1]
        for _ in range(self.max_tokens):
            self.make_room()
            ids = self.ids()
            self.n_read = self.n_read or len(ids) - gpt2.n_shared(self.context.ids, ids[:-1])
            if len(ids) > self.n_ctx:
                self.notes.append("[the reply has filled the context and ends here]")
                return
            logits = self.logits()
            if not turn.reply_ids:  # A reply must not be empty, so it can't begin with white space or <|endoftext|>.
                logits = logits.copy()
                logits[self.blank] = -math.inf
            id = self.choose(logits, self.penalized_ids())
            if id == self.end:
                return
            turn.reply_ids.append(id)
            yield id

    def penalized_ids(self) -> list[int]:
        """Return the newest ids of the model's own replies."""
        return [id for turn in self.turns[self.first :] for id in turn.reply_ids][-N_PENALIZED:]

    def logits(self) -> Vector[n_vocab]:
        """Score the token that follows the conversation. -> [n_vocab]"""
        return self.context.logits(self.ids())[-1]

    def get_ready(self) -> None:
        """Make room for the next message while the user reads, so that its answer begins without delay."""
        if self.make_room(self.n_ctx // 8):
            self.logits()

    def make_room(self, n_new: int = 0) -> bool:
        """Drop the oldest turns if n_new more ids would not fit in the context.

        Turns are dropped until a quarter of the context is free, but never the last one. Everything after
        the persona is then computed again. If single turns were dropped, every later turn would cost that.

        Returns True if turns were dropped and the remaining ids fit.
        """
        n_ids, before = len(self.ids()), self.first
        if n_ids + n_new <= self.n_ctx:
            return False
        while self.first < len(self.turns) - 1 and n_ids > self.n_ctx - self.n_ctx // 4:
            n_ids -= len(self.turns[self.first].ids + self.format.after_reply)
            self.first += 1
        if n := self.first - before:
            dropped = "oldest turn has" if n == 1 else f"{n} oldest turns have"
            self.notes.append(f"[the context of {self.n_ctx} tokens is full: the {dropped} been dropped]")
        return n > 0 and n_ids <= self.n_ctx

    def undo(self) -> str:
        """Remove the last turn and return its message. Raises UsageError if there is none."""
        if not self.turns:
            raise UsageError("nothing has been said yet")
        message = self.turns.pop().message
        self.first = max(0, min(self.first, len(self.turns) - 1))  # a turn that was dropped may come back
        return message

    def reset(self) -> None:
        """Forget all turns. The persona stays."""
        self.turns, self.first = [], 0

    def transcript(self, names: Sequence[str]) -> str:
        """Return all turns as text, one line for each speaker, including the turns that have left the context."""
        return "".join(f"{names[0]}: {turn.message}\n{names[1]}: {turn.reply}\n" for turn in self.turns)
