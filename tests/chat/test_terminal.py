"""Test chat's command line: scripts in pipes, commands, options, and sessions in a real terminal."""

from __future__ import annotations

import os
import re
import sys
from typing import Any

import pytest
from chats import ENCODER, PROMPT, TINY, actor, chat_of, said, sampler, session_of
from helpers import ROOT, Result, assert_error, run_main

import gpt2
from picogpt.chat import terminal as module
from picogpt.chat.commands import try_line
from picogpt.chat.history import History
from picogpt.chat.terminal import NAMES, PERSONA, main
from picogpt.command_line import UsageError
from picogpt.options import sampling_settings

# ---------------------------------------------------------------------------------------------------- pipes, commands


def piped(data: bytes, *args: Any) -> Result:
    return run_main("picogpt chat", *TINY, *args, stdin=data)


def test_a_script_gets_its_replies_and_nothing_else(play):
    assert play("Hello\n\n  \nWho?\r\nlast", " Hi.\n", " I.\n", " Bye.\n") == ("Hi.\nI.\nBye.\n", "")


def test_undo_retry_reset_and_save(play, tmp_path):
    file = tmp_path / "talk.txt"
    lines = f"One\n/retry\nTwo\n/undo\nThree\n/save {file}\n/reset\nFour\n/save {file}2\n"
    out, err = play(lines, *(f" {word}.\n" for word in "abcde"), typed=True)
    assert out == "a.\nb.\nc.\nd.\ne.\n"
    assert file.read_text() == "Alice: One\nBob: b.\nAlice: Three\nBob: d.\n"
    assert (tmp_path / "talk.txt2").read_text() == "Alice: Four\nBob: e.\n"
    assert err.splitlines()[1:] == [
        "[taken back: Two]",
        f"[saved to {file}]",
        "[everything but the persona is forgotten]",
        f"[saved to {file}2]",
    ]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["talk.txt", "talk.txt2"]


@pytest.mark.parametrize("line", ["/undo", "/retry", "/undo 2", "/nothing", "/", "/saved x"])
def test_commands_that_can_not_be_done(play, line):
    with pytest.raises(UsageError, match="not a command|nothing has been said"):
        play(line)


@pytest.mark.parametrize("name", ["", " "])
def test_save_needs_a_name(play, name):
    _, err = play(f"/save{name}\n", typed=True)
    assert err.splitlines()[1:] == ["/save needs the name of a file"]


def test_a_pipe_can_not_save(play, tmp_path, monkeypatch):
    """Whoever passes on messages that others wrote does not mean them to replace files."""
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "file").write_bytes(b"kept")
    for line in (f"/save {tmp_path}/file", "/save new", "/save", "/save ~/file", f"/save\t{tmp_path}/file"):
        with pytest.raises(UsageError, match="line 2 of standard input is /save, which works only in a terminal"):
            play(f"Hi\n{line}\nHo\n", " Yes.\n")
    assert (tmp_path / "file").read_bytes() == b"kept"
    assert [path.name for path in tmp_path.iterdir()] == ["file"]
    assert play(f" /save {tmp_path}/file\n", " No.\n") == ("Yes.\n" * 5 + "No.\n", "")  # a message


@pytest.mark.skipif(sys.platform == "win32", reason="links, pipes and permissions of POSIX")
def test_save_refuses_what_is_no_file_and_leaves_other_files_alone(play, tmp_path):
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "talk").write_bytes(b"old")
    (tmp_path / "talk").chmod(0o600)
    (tmp_path / "talk.partial").symlink_to("other")
    (tmp_path / "other").write_bytes(b"other")
    places = ["/dev/null", tmp_path / "pipe", tmp_path / "other", "~nobody-of-this-name/x", tmp_path]
    saves = "".join(f"/save {place}\n" for place in places) + f"/save! {tmp_path}/pipe\n/save! {tmp_path}/talk\n"
    _, err = play("Hi\n" + saves, " Yes.\n", typed=True)
    lines = err.splitlines()[1:]
    words = ["is a device or a pipe", "is a device or a pipe", f"replace it with /save! {tmp_path}/other"]
    words += ["is no folder to write x to", "is a folder", "is a device or a pipe", "[saved to"]
    assert [word in line for word, line in zip(words, lines)] == [True] * 7, lines
    assert (tmp_path / "pipe").is_fifo()
    assert (tmp_path / "talk").read_text() == "Alice: Hi\nBob: Yes.\n"
    assert (tmp_path / "talk").stat().st_mode & 0o777 == 0o600
    assert (tmp_path / "talk.partial").is_symlink()
    assert (tmp_path / "other").read_bytes() == b"other"


STEERING = "\x1b]0;title\x07\x9b2J\u202e\r\x7f"
ESCAPED = r"\x1b]0;title\x07\x9b2J\u202e\r\x7f"


@pytest.mark.parametrize("is_terminal", [True, False])
def test_what_the_model_writes_is_shown_in_a_terminal_and_exact_in_a_pipe(play, monkeypatch, is_terminal):
    made = STEERING.replace("\r", "")
    monkeypatch.setattr(sys.stdout, "isatty", lambda: is_terminal)
    out, _ = play("Hi\n", f" {made}é \N{ZERO WIDTH JOINER}.\n")
    shown = ESCAPED.replace(r"\r", "") if is_terminal else made
    assert out == f"{shown}é \N{ZERO WIDTH JOINER}.\n"


@pytest.mark.parametrize("name", [".", "missing/x", "folder", "folder/", "x" * 300])
def test_an_unwritable_path_is_an_error_that_leaves_nothing(play, tmp_path, name):
    (tmp_path / "folder").mkdir()
    _, err = play(f"/save {tmp_path}/{name}\n", typed=True)
    named = {".": tmp_path.name, "missing/x": "missing"}.get(name, name.rstrip("/"))
    assert named in err
    assert err.count("\n") == 2  # the first line says how to stop
    assert [path.name for path in tmp_path.rglob("*")] == ["folder"]


def test_names_and_persona(play, tmp_path):
    persona = tmp_path / "persona.txt"
    persona.write_bytes("\ufeffTwo lovers {talk}.\r\n".encode())
    chats = []
    file = tmp_path / "talk"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "script", lambda file, session: chats.append(session.chat) or 0)
        play("", args=("--persona", str(persona), "--names", "JULIET", "ROMEO"))
    chats[0].choose = actor(" Ay.\n")
    said(chats[0], "O Romeo")
    assert ENCODER.decode(chats[0].ids()) == "Two lovers {talk}.\nJULIET: O Romeo\nROMEO: Ay."
    play(f"Hi\n/save {file}\n", " Ay me. JULIET: x", args=("--names", "JULIET", "ROMEO"), typed=True)
    assert file.read_text() == "JULIET: Hi\nROMEO: Ay me.\n"


@pytest.mark.parametrize(
    ("options", "greeting"),
    [
        ((), "tiny is Bob, with the built-in persona. /exit leaves, /help lists the commands."),
        (("--format", "dialogpt"), "tiny is Bob, with no persona. /exit leaves, /help lists the commands."),
        (
            ("--names", "JULIET", "ROMEO", "--persona", "README.md"),
            "tiny is ROMEO, with the persona in README.md. /exit leaves, /help lists the commands.",
        ),
    ],
)
def test_the_first_line_names_the_model_the_persona_and_how_to_leave(play, monkeypatch, options, greeting):
    monkeypatch.setattr(module, "read_text", lambda path, megabytes: "A talk.")
    said = play("/exit\n", args=options, typed=True)[1].replace("JULIET: ", "")
    assert " ".join(said.split()) == greeting  # on two lines if it is longer than 80 columns
    assert play("/exit\n", args=options)[1] == ""


@pytest.mark.parametrize("names", [("Alice", "Bob"), ("A long name for a person", "And one for a model")])
def test_the_first_line_fits_80_columns(play, monkeypatch, names):
    monkeypatch.setattr(module, "read_text", lambda path, megabytes: "A talk.")
    words = ("--names", *names, "--persona", "a/folder/with/a/file/that/has/a/long/path.txt")
    lines = play("/exit\n", args=words, typed=True)[1].replace(f"{names[0]}: ", "").splitlines()
    assert len(lines) > 1
    assert max(map(len, lines)) <= 80
    assert " ".join(lines).split()[-2:] == ["the", "commands."]


def test_the_same_seed_gives_the_same_replies():
    data = b"Good morrow, sir!\nWho is the king?\n"
    first, again, other = (piped(data, "--seed", seed).out for seed in (1, 1, 2))
    assert first.count("\n") == 2
    assert first == again != other
    chat = chat_of(
        sampler(1, temperature=0.8, top_p=0.9, repetition_penalty=1.15), PERSONA.format(user="Alice", model="Bob")
    )
    assert first.splitlines() == [said(chat, line) for line in data.decode().splitlines()]


def test_the_transcript_of_models_tiny():
    data = b"Hello, who are you?\nWhere is the king?\n<|endoftext|> Bob: I am you\n"
    assert piped(data, "--seed", 3).out == (
        "bad lord, learn to this mistress\nanswer?\nbut I wise me and quickly assured\n"
    )


def test_the_defaults_do_not_loop_where_the_likeliest_token_does():
    def n_different(choose):
        """Send the same message twelve times and count the different replies."""
        chat = chat_of(choose, PERSONA.format(user="Alice", model="Bob"))
        return len({said(chat, "What say you?") for _ in range(12)})

    assert n_different(sampler(0, **sampling_settings(module.parse_args([])))) >= 11
    assert n_different(gpt2.greedy) <= 8


def test_a_context_without_room_for_the_built_in_persona_has_none(monkeypatch, tmp_path):
    """As that of `train --quick`. One that was asked for is refused instead."""
    encoder, hparams, params = module.load_encoder_hparams_and_params("tiny", str(ROOT / "models"))
    short = encoder, hparams | {"n_ctx": 64}, params | {"wpe": params["wpe"][:64]}
    monkeypatch.setattr(module, "load_encoder_hparams_and_params", lambda *args: short)
    done = piped(b"Hello\n/show\n", "--seed", 1, "--max_tokens", 5)
    assert done.status == 0
    assert "no persona" in done.out + done.err
    persona = tmp_path / "persona.txt"
    persona.write_text(PERSONA * 2, encoding="utf-8")
    assert_error(piped(b"", "--persona", persona), 2, "persona has", "context is 64")


def test_errors_of_the_command_line(tmp_path):
    long, latin = tmp_path / "long.txt", tmp_path / "latin.txt"
    long.write_text("words and words " * 100)
    latin.write_bytes(b"caf\xe9")
    assert_error(piped(b"", "--persona", long), 2, "persona has", "context is 256")
    assert_error(piped(b"", "--persona", latin), 2, "latin.txt is not UTF-8", "0xe9")
    assert_error(piped(b"", "--persona", tmp_path / "none"), 1, "No such file")
    done = piped(b"Hello\ncaf\xe9\nmore\n", "--seed", 1)
    assert_error(done._replace(out=""), 2, "line 2 of standard input is not UTF-8", "0xe9")
    assert done.out.count("\n") == 1
    assert_error(piped(b"/save /\n"), 2, "line 1 of standard input is /save")


WRONG = ["--names A A", "--names A: B", "--names \u2028 B", "--names \x1b[31mA B", "--top_p 2", "--max_tokens 0"]


@pytest.mark.parametrize("args", [*WRONG, "--format x", "--temperature -1", "--seed x"])
def test_wrong_options(args, capsys):
    with pytest.raises(SystemExit) as caught:
        main([*TINY, *args.split(" ")])
    assert caught.value.code == 2
    assert capsys.readouterr().err.count("\n") == 1


def test_a_closed_standard_input(monkeypatch):
    monkeypatch.setattr(sys, "stdin", None)
    with pytest.raises(UsageError, match="standard input is closed"):
        main(TINY)


# ----------------------------------------------------------------------------------------------------- on a terminal


def test_a_session_with_ctrl_c_and_ctrl_d(terminal, tmp_path):
    file = tmp_path / "talk.txt"
    child = terminal()
    assert "tiny is Bob, with the built-in persona. /exit leaves, /help lists the commands.\r\n" in child.before
    child.sendline("Hello")
    child.expect_exact(f"Bob: Hi, I am Bob.\r\n{PROMPT}")
    child.sendline("Sing")
    child.expect_exact("Bob: la la la")
    child.sendintr()
    child.expect_exact(f"\r\n{PROMPT}")
    sung = re.sub(r"\^C", "", "la la la" + child.before)
    child.send("half a li")
    child.expect_exact("half a li")
    child.sendintr()
    child.expect_exact(f"\r\n{PROMPT}")
    child.sendline("Go on?")
    child.expect_exact(f"Bob: Still here.\r\n{PROMPT}")
    child.sendline(f"/save {tmp_path}/none/x")
    child.expect("none is .*Alice: ")
    child.sendline(f"/save {file}")
    child.expect(r"saved to .*Alice: ")
    child.sendline("/dance")
    child.expect("not a command.*Alice: ")
    child.sendeof()
    child.expect([r"\r\n", "$"])
    child.wait()
    assert (child.exitstatus, child.signalstatus) == (0, None)
    assert re.fullmatch(r"la( la){2,199}( l)?", sung)
    before, said, after = re.fullmatch(r"(.*\nBob: )(la.*)(\nAlice: Go on.*)", file.read_text(), re.DOTALL).groups()
    assert (before, after) == (
        "Alice: Hello\nBob: Hi, I am Bob.\nAlice: Sing\nBob: ",
        "\nAlice: Go on?\nBob: Still here.\n",
    )
    assert said.startswith(sung)
    assert len(said) - len(sung) < 10  # on Ctrl-C a terminal drops the output that it has not shown yet


def test_line_editing_and_history(terminal):
    child = terminal()
    child.sendline("Hxllo\x1b[D\x1b[D\x1b[D\x7fe")  # three to the left, delete the x, e
    child.expect_exact("Bob: Hi, I am Bob.\r\n")
    child.sendline("/undo")
    child.expect_exact("[taken back: Hello]")
    child.sendline("\x1b[A\x1b[A")  # twice up: the message
    child.expect_exact("Bob: la la")
    child.sendintr()
    child.expect_exact("Alice: ")
    child.sendline("/undo")
    child.expect_exact("[taken back: Hello]")


@pytest.mark.parametrize(
    ("env", "coloured"), [({"NO_COLOR": None}, True), ({}, False), ({"NO_COLOR": None, "TERM": "dumb"}, False)]
)
def test_colours_on_a_terminal_only_and_never_with_no_color(terminal, env, coloured):
    child = terminal(**env)
    child.sendline("Hello")
    child.expect("I am Bob.")
    assert ("\x1b[36mBob: \x1b[0m" in child.before) == coloured
    assert ("\x1b[3" in child.before) == coloured
    assert ("\x1b" in child.before) == (env.get("TERM") != "dumb")


def test_ctrl_c_before_a_reply_has_begun_takes_the_message_back(monkeypatch, capsys):
    def stumble(logits, ids):
        raise KeyboardInterrupt

    session = session_of(stumble)
    lines = iter(["Hello", KeyboardInterrupt, "Well?", EOFError])

    def ask():
        line = next(lines)
        if not isinstance(line, str):
            raise line
        if line == "Well?":
            session.chat.choose = actor(" Yes.\n")
        return line

    monkeypatch.setattr(module, "prompter", lambda screen, history: ask)
    assert module.talk(session, History(None)) == 0
    assert capsys.readouterr().out == "Bob: \n\nBob: Yes.\n\n"
    assert session.chat.transcript(NAMES) == "Alice: Well?\nBob: Yes.\n"


def test_ctrl_c_keeps_the_word_that_waits_for_its_end(monkeypatch, capsys):
    """A terminal gets whole words only, but what it shows after Ctrl-C is what remains in the conversation."""
    words = actor(" I am he", " and")

    def stumble(logits, ids):
        if len(ids) == len(ENCODER.encode(" I am he")):
            raise KeyboardInterrupt
        return words(logits, ids)

    session = session_of(stumble)
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    try_line("Who?", session)
    assert capsys.readouterr().out == "Bob: I am he\n"
    assert session.chat.transcript(NAMES) == "Alice: Who?\nBob: I am he\n"


def test_a_terminal_for_input_only_keeps_prompts_out_of_stdout(monkeypatch, capsys):
    class Terminal:
        lines = iter(["Hello\n", ""])

        def isatty(self) -> bool:
            return True

        def readline(self) -> str:
            return next(self.lines)

    monkeypatch.setattr(sys, "stdin", Terminal())
    monkeypatch.setattr(gpt2, "sample", actor(" Hi.\n"))
    assert main(TINY) == 0
    done = capsys.readouterr()
    assert done.out == "Hi.\n"
    assert done.err.count("Alice: ") == 2
