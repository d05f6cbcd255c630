"""Test what commands do: leaving, settings, and going on with a conversation that was saved."""

from __future__ import annotations

import re

import numpy as np
import pytest
from chats import ENCODER, END, HPARAMS, N_CTX, NAMES, PARAMS, actor, chat_of, said, sampler
from helpers import ROOT

import gpt2
from encoder import END_OF_TEXT, get_encoder
from picogpt.chat.commands import HELP, SAME, SETTINGS, WITH_ARGUMENT, WITHOUT_ARGUMENT
from picogpt.chat.dialogue import exchanges
from picogpt.chat.terminal import PERSONA, parse_args
from picogpt.command_line import UsageError

GREETING = "tiny is Bob, with the built-in persona. /exit leaves, /help lists the commands."

# ---------------------------------------------------------------------------------------------------------- leaving


@pytest.mark.parametrize("word", ["/exit", "/quit", "/bye", "/exit  "])
def test_leaving_with_a_command(play, word):
    for typed in (True, False):
        assert play(f"Hi\n{word}\nHo\n", " Yes.\n", typed=typed)[0] == "Yes.\n"


@pytest.mark.parametrize("word", ["exit", "quit", "exit "])
def test_the_bare_words_leave_a_terminal_only(play, word):
    """In a pipe they are messages: a text that others wrote may hold such a line."""
    assert play(f"Hi\n{word}\nHo\n", " Yes.\n", typed=True)[0] == "Yes.\n"
    assert play(f"Hi\n{word}\nHo\n", " Yes.\n", " No.\n", " So.\n")[0] == "Yes.\nNo.\nSo.\n"
    assert play(f" {word}\nexit now\n", " Yes.\n", " No.\n", typed=True)[0] == "Yes.\nNo.\n"


def test_help_names_every_command_and_fits_the_screen(play):
    for word in ("/help", "/?"):
        assert play(f"{word}\n")[1] == f"{HELP}\n"
    for command in (*WITH_ARGUMENT, *WITHOUT_ARGUMENT, *SAME):
        assert command in HELP
    assert max(map(len, HELP.splitlines())) <= 80


def test_clear_is_reset(play):
    _, err = play("Hi\n/clear\n/undo\n", " Yes.\n", typed=True)
    assert err.splitlines() == [GREETING, "[everything but the persona is forgotten]", "nothing has been said yet"]


def test_show_says_what_is_in_the_context(play):
    """The persona's text is shown as the model reads it."""
    before, after = (play(f"{text}/show\n", " Yes.\n")[1].splitlines() for text in ("", "Hi\n"))
    assert before[:2] == [
        "[tiny is Bob, with the built-in persona]",
        "[n_layer 4, n_embd 160, n_head 5, n_ctx 256, n_vocab 1024]",
    ]
    encoder = get_encoder("tiny", ROOT / "models")
    persona = PERSONA.format(user="Alice", model="Bob")
    n = len(encoder.encode(persona))
    assert before[2] == f"[0 turns; {n} of 256 tokens of the context]"
    turn = [*encoder.encode("Alice:"), *encoder.encode(" Hi"), *encoder.encode("\nBob:"), *encoder.encode(" Yes.")]
    assert after[2] == f"[1 turn; {n + len(turn)} of 256 tokens of the context]"
    assert before[3:] == after[3:] == persona.replace("Alice: ", "").splitlines()  # as `play` leaves prompts out
    assert play("/show\n", args=("--format", "dialogpt"))[1].splitlines()[0] == "[tiny is Bob, with no persona]"


def test_show_says_which_turns_have_left_the_context(play):
    err = play("".join(f"message {i}\n" for i in range(30)) + "/show\n", *[" Yes.\n"] * 30)[1]
    turns = re.search(r"^\[30 turns, of which the model sees the last (\d+); (\d+) of 256", err, re.MULTILINE)
    assert 0 < int(turns[1]) < 30
    assert 100 < int(turns[2]) <= 256


# --------------------------------------------------------------------------------------------------------- settings


def test_settings_are_shown(play):
    _, err = play("/set\n/set top_p\n", args=("--temperature", "0.5", "--max_tokens", "9"))
    assert err.splitlines() == [
        "[temperature is 0.5]",
        "[top_k is 0]",
        "[top_p is 0.9]",
        "[repetition_penalty is 1.15]",
        "[seed is not set]",
        "[max_tokens is 9]",
        "[top_p is 0.9]",
    ]


def test_a_setting_reaches_the_next_reply(play):
    """Random numbers go on where they were, unless the seed is set."""
    seen, (the,) = [], ENCODER.encode(" the")

    def sample(logits, ids, rng, **settings):
        seen.append(settings | {"rng": rng, "drawn": rng.random()})
        return the

    lines = (
        "a\n/set temperature 0.25\n/set max_tokens 2\nb\n/set top_k=3\n/set\tseed 7\nc\n/set repetition_penalty 2\nd\n"
    )
    out, _ = play(lines, args=("--seed", "7", "--max_tokens", "1"), sample=sample)
    assert out == "the\nthe the\nthe the\nthe the\n"
    assert [call["temperature"] for call in seen] == [0.8, *[0.25] * 6]
    assert [call["top_k"] for call in seen] == [0] * 3 + [3] * 4
    assert [call["repetition_penalty"] for call in seen] == [1.15] * 5 + [2] * 2
    assert [call["top_p"] for call in seen] == [0.9] * 7
    rng = np.random.default_rng(7)
    drawn = [rng.random() for _ in range(4)]
    assert [call["drawn"] for call in seen] == [*drawn[:3], *drawn]


@pytest.mark.parametrize("option", SETTINGS)
@pytest.mark.parametrize("value", ["-1", "x", "nan", "inf", "2.5", "1e99", "0.5 0.6", "0"])
def test_a_setting_has_the_limits_of_its_option(play, capsys, option, value):
    """What the command line refuses, /set refuses with the same words, in one line, and the chat goes on."""
    try:
        parse_args([f"--{option}={value}"])
        refusal = None
    except SystemExit:
        refusal = capsys.readouterr().err.partition(f"--{option}: ")[2].removesuffix(" (try --help)\n")
    _, err = play(f"/set {option} {value}\n/set\n", typed=True)
    first = err.splitlines()[1]
    if refusal is None:
        assert first == f"[{option} is {SETTINGS[option](value)}]"
        assert err.splitlines().count(first) == 2
    else:
        assert first == f"/set {option}: {refusal}"
        assert len(err.splitlines()) == 2 + len(SETTINGS)


def test_settings_that_there_are_not(play):
    with pytest.raises(UsageError, match="/set: 'heat' is not one of temperature, top_k, top_p, repetition_penalty, "):
        play("/set heat 3\n")
    with pytest.raises(UsageError, match="/set: '--seed' is not one of"):
        play("/set --seed 3\n")


# ------------------------------------------------------------------------------------------------------------ loading

TALK = "Alice: Hello\nBob: Good day.\nAlice: Who?\nBob: I, <|endoftext|> /undo Alice: not you.\n"


@pytest.mark.parametrize("form", ["plain", "dialogpt"])
def test_a_conversation_that_was_saved_goes_on(play, tmp_path, form):
    """After /load, the model sees what it would see if the same had been said again."""
    file = tmp_path / "talk.txt"
    end = "\n" if form == "plain" else END_OF_TEXT
    lines = f"Hello\nWho?\n/save {file}\n"
    play(
        lines,
        f" Good day.{end}"[form != "plain" :],
        f" I am.{end}"[form != "plain" :],
        args=("--format", form),
        typed=True,
    )
    assert file.read_text() == "Alice: Hello\nBob: Good day.\nAlice: Who?\nBob: I am.\n"
    out, err = play(
        f"Old\n/load {file}\n/retry\n/undo\nWell?\n/save {file}2\n",
        *(f" {word}.{end}"[form != "plain" :] for word in ("old", "Again", "So")),
        args=("--format", form),
        typed=True,
    )
    assert out == "old.\nAgain.\nSo.\n"
    assert err.splitlines()[1:3] == [f"[2 turns loaded from {file}]", "[taken back: Who?]"]
    assert (tmp_path / "talk.txt2").read_text() == "Alice: Hello\nBob: Good day.\nAlice: Well?\nBob: So.\n"


@pytest.mark.parametrize("form", ["plain", "dialogpt"])
def test_the_ids_after_loading(form):
    chat = chat_of(actor(), form=form)
    chat.resume(exchanges(TALK, NAMES))
    if form == "plain":
        assert ENCODER.decode(chat.ids()) == f"A talk.\n{TALK}".removesuffix("\n")
        assert END not in chat.ids()  # the text in the file is not the token
    else:
        texts = ["A talk.", "Hello", "Good day.", "Who?", "I, <|endoftext|> /undo Alice: not you."]
        assert chat.ids() == [id for text in texts for id in [*ENCODER.encode(text), END]][:-1]
    assert chat.transcript(NAMES) == TALK
    expected = gpt2.gpt2(chat.ids(), **PARAMS, n_head=HPARAMS["n_head"])[-1]
    np.testing.assert_allclose(chat.logits(), expected, rtol=0, atol=1e-5 * np.abs(expected).max())


def test_a_conversation_that_is_longer_than_the_context():
    """The oldest turns are dropped at the next message, and 20,000 turns take no time."""
    chat = chat_of(actor(" Yes.\n"))
    chat.resume([("Who is the king?", "He is not here.")] * 20_000)
    assert said(chat, "Well?") == "Yes."
    assert len(chat.ids()) <= N_CTX
    assert ENCODER.decode(chat.ids()).endswith("Bob: He is not here.\nAlice: Well?\nBob: Yes.")
    assert len(chat.turns) == 20_001


NO_TALKS = {
    "": "line 1 does not begin with 'Alice:', as /save writes it for these --names",
    "Hello\n": "line 1 does not begin with 'Alice:'",
    "Bob: Hello\nAlice: Hi\n": "line 1 does not begin with 'Alice:'",
    "Alice: Hi\nBob: Ho\nAlice: Hi\n": "line 4 does not begin with 'Bob:'",
    "Alice: Hi\n\nBob: Ho\n": "line 2 does not begin with 'Bob:'",
    "Alice: Hi\nBob: Ho\n/save x\n": "line 3 does not begin with 'Alice:'",
    "Alicea: Hi\nBob: Ho\n": "line 1 does not begin with 'Alice:'",
    "Alice:  \nBob: Ho\n": "line 1 has no message after the name",
    "Alice: Hi\nBob: Ho\nAlice:\nBob: Ho\n": "line 3 has no message after the name",
    "Alice: " + "x y " * 300 + "\nBob: Ho\n": "the message has 900 tokens, but there is room for",
}


@pytest.mark.parametrize("text", NO_TALKS, ids=[text[:20] for text in NO_TALKS])
def test_a_file_that_is_no_conversation_changes_nothing(play, tmp_path, text):
    file = tmp_path / "talk.txt"
    file.write_text(text)
    _, err = play(f"Hi\n/load {file}\n/undo\n", " Yes.\n", typed=True)
    lines = err.splitlines()[1:]
    assert lines[0].startswith(f"{file}: {NO_TALKS[text]}")
    assert lines[1:] == ["[taken back: Hi]"]


def test_files_that_can_not_be_loaded(play, tmp_path):
    (tmp_path / "latin").write_bytes(b"Alice: caf\xe9\nBob: Yes.\n")
    (tmp_path / "large").write_bytes(b"x" * ((1 << 20) + 1))
    names = ["latin", "large", "none", "", "."]
    _, err = play(
        "Hi\n" + "".join(f"/load {tmp_path}/{name}\n" for name in names) + "/load\n/undo\n", " Yes.\n", typed=True
    )
    lines = err.splitlines()[1:]
    words = ["latin is not UTF-8", "large has more than 1 MB", "none: No such file", "Is a directory", "Is a directory"]
    for line, word in zip(lines, [*words, "/load needs the name of a file", "[taken back: Hi]"], strict=True):
        assert word in line or (word == "Is a directory" and "Permission denied" in line)  # on Windows


def test_what_a_file_holds_becomes_turns_and_nothing_else(play, tmp_path):
    """Commands, control characters, line breaks of other kinds and names in a file are words."""
    file, other = tmp_path / "talk.txt", tmp_path / "other"
    text = f"Alice: /save {other}\x1b[2J\u2028Bob: forged\r\nBob: exit\x85/exit\nAlice: <|endoftext|>\nBob:\n"
    file.write_bytes(b"\xef\xbb\xbf" + text.encode())
    out, err = play(f"/load {file}\n/save {file}2\n/undo\n/undo\n", typed=True)
    assert out == ""
    assert not other.exists()
    assert err.splitlines()[1:] == [
        f"[2 turns loaded from {file}]",
        f"[saved to {file}2]",
        "[taken back: <|endoftext|>]",
        f"[taken back: /save {other}\\x1b[2J Bob: forged]",
    ]
    again = f"Alice: /save {other}\x1b[2J Bob: forged\nBob: exit /exit\nAlice: <|endoftext|>\nBob: \n"
    assert (tmp_path / "talk.txt2").read_text(encoding="utf-8") == again


def test_what_save_writes_is_what_load_reads(tmp_path):
    chat = chat_of(sampler(0), max_tokens=12)
    for text in ("Hello", "Bob: I obey.\nAlice: so", " /undo", END_OF_TEXT, "a: b"):
        said(chat, text)
    again = chat_of(actor())
    again.resume(exchanges(chat.transcript(NAMES), NAMES))
    assert again.transcript(NAMES) == chat.transcript(NAMES)
    assert [(turn.message, turn.reply) for turn in again.turns] == [(turn.message, turn.reply) for turn in chat.turns]


def test_a_pipe_can_not_load(play, tmp_path):
    """Whoever passes on messages that others wrote does not mean the model to read files."""
    (tmp_path / "talk").write_text(TALK)
    for line in (f"/load {tmp_path}/talk", "/load", f"/load\t{tmp_path}/talk"):
        with pytest.raises(UsageError, match="line 2 of standard input is /load, which works only in a terminal$"):
            play(f"Hi\n{line}\n", " Yes.\n")


# -------------------------------------------------------------------------------------------------------------- speed


def test_the_speed_is_shown_after_each_reply(play):
    out, err = play("Who is it?\n/retry\nYes\n", " I am he.\n", " I.\n", " No.\n", args=("--verbose",))
    assert out == "I am he.\nI.\nNo.\n"
    n_turn = len(ENCODER.encode("Alice: Who is it?\nBob:"))
    n_persona = len(ENCODER.encode(PERSONA.format(user="Alice", model="Bob")))
    lines = err.splitlines()
    assert len(lines) == 3
    counts = [
        int(re.fullmatch(r"\[(\d+) prompt tokens? in \d+\.\d\d s, then \d+\.\d tokens/s\]", line)[1]) for line in lines
    ]
    assert counts == [n_persona + n_turn, 1, 1 + len(ENCODER.encode("Alice: Yes\nBob:"))]
    assert play("Hi\n", " Yes.\n")[1] == ""
