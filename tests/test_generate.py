"""`python -m picogpt generate`: prompts, lengths, numbers, the end of a text, streams, and what a terminal shows."""

from __future__ import annotations

import functools
import io
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pytest
from helpers import (
    ENVIRONMENT,
    HARMLESS,
    HOSTILE,
    ODD,
    ROOT,
    Result,
    assert_error,
    command,
    decoded,
    model_options,
    read_to_the_end,
    run_main,
)

import encoder
import gpt2
from picogpt import command_line, generate, options

NAME = "picogpt generate"
TRUE_LIMIT = ODD["n_ctx"] + 1  # prompt tokens + new ones: the last is never fed back
SPEED = re.compile(r"\[(\d+) prompt tokens? in \d+\.\d\d s(, then \d+\.\d tokens/s)?\]\n")
posix = pytest.mark.skipif(os.name != "posix", reason="needs POSIX signals, pipes or arguments of bytes")

Model = Callable[..., Result]


def assert_text(result: Result, text: str, n_prompt: int) -> None:
    """Assert that a command printed a text to stdout, and nothing but its speed to stderr."""
    assert (result.status, result.out) == (0, text + "\n"), result
    speed = SPEED.fullmatch(result.err)
    assert speed, result.err
    assert int(speed[1]) == n_prompt


@pytest.fixture
def small(odd: Path) -> Model:
    """Return a function that runs the tool with the small model in this process."""
    return lambda *args, stdin=b"": run_main(NAME, *args, *model_options(odd), stdin=stdin)


def as_process(odd: Path, *args: Any, **settings: Any) -> Result:
    """Run the tool with the small model in a process of its own."""
    words = command(NAME, *args, *model_options(odd))
    settings = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "env": ENVIRONMENT} | settings
    done = subprocess.run(words, cwd=ROOT, timeout=120, check=False, **settings)
    return Result(done.returncode, decoded(done.stdout or b""), decoded(done.stderr or b""))


# ------------------------------------------------------------------------------------------------------- the prompt


DASHES = ["-1", "-1.5", "-h me", "-hello world", "--help me", "--stop it", "- item"]


@pytest.mark.parametrize("prompt", [*DASHES, "1234", "a\nb", "\n", "é漢😀", "a\0b", "<|endoftext|>"])
def test_prompt_is_taken_literally(prompt, small, continued):
    assert_text(small(prompt, "-n", 3), continued(prompt, 3), len(prompt.encode("utf-8")))


@pytest.mark.parametrize("stdin", [b"", b"\n", b"\r\n"])
def test_empty_stdin_is_refused_before_any_download(stdin, tmp_path):
    """A command before the pipe has probably failed."""
    result = run_main(NAME, "-", "--models_dir", tmp_path, stdin=stdin)
    assert_error(result, 2, "standard input is empty", 'give "" as the prompt')
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("stdin", "at"), [(b"ab\xff", 2), (b"\xe6\xbc", 0), (b"a\xed\xa0\x80", 1)])
def test_stdin_that_is_not_utf8(stdin, at, small):
    assert_error(small("-", stdin=stdin), 2, "standard input is not UTF-8", f"byte {at} is 0x{stdin[at]:02x}")


@posix
def test_prompt_that_is_not_utf8(odd):
    assert_error(as_process(odd, b"ab\xff"), 2, "not valid UTF-8", "character 2", "udcff")


def test_words_without_quotes(small):
    assert_error(small("one", "two"), 2, "picogpt generate: unrecognized arguments: two; put a text", "into quotes")
    assert "quotes" not in small("one", "--no-such-option").err


def test_trailing_space_is_kept_with_a_warning(small, continued):
    result = small("ab ", "-n", 5)
    warning, speed = result.err.splitlines(keepends=True)
    assert warning.startswith("warning: the prompt ends in a space")
    assert_text(result._replace(err=speed), continued("ab ", 5), 3)
    for prompt in (" ab", "ab\n", "ab\t"):
        assert_text(small(prompt, "-n", 2), continued(prompt, 2), 3)


class Endless(io.RawIOBase):
    """Like the output of `yes`. It counts the bytes that were read."""

    n_read = 0

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        buffer[:] = b"y" * len(buffer)
        self.n_read += len(buffer)
        return len(buffer)


def test_endless_stdin(monkeypatch):
    endless = Endless()
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BufferedReader(endless)))
    with pytest.raises(command_line.UsageError, match="standard input has more than 16,777,216 bytes"):
        command_line.read_prompt("-")
    assert endless.n_read < 17 << 20
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"abcd")))
    assert command_line.read_prompt("-", 4) == "abcd"


@pytest.mark.parametrize("tool", [NAME, "picogpt explain", "picogpt trace"])
def test_prompt_with_too_many_bytes_is_not_encoded(tool, odd, tmp_path, monkeypatch):
    """Encoding this one would take a minute and two gigabytes."""
    monkeypatch.setattr(encoder.Encoder, "encode", mock.Mock(side_effect=AssertionError))
    out = ["--out", tmp_path / "out.npz"] if tool == "picogpt trace" else []
    result = run_main(tool, "-", *model_options(odd), *out, stdin=b"a" * 10**7)
    assert_error(result, 2, "10,000,000 bytes", "769,231 tokens or more", f"n_ctx = {ODD['n_ctx']}")


def test_smallest_number_of_tokens(loaded):
    """The longest token of the small model is <|endoftext|>, and 0 tokens can be generated after n_ctx + 1."""
    prompt = "é" * (13 * 10_000)
    options.check_size(loaded[0], prompt, 19_999)
    with pytest.raises(command_line.UsageError, match="260,001 bytes, .* 20,001 tokens .* n_ctx = 19999"):
        options.check_size(loaded[0], prompt + "a", 19_999)


# ------------------------------------------------------------------------------------------------------ the lengths


@pytest.mark.parametrize("n_prompt", [1, 4, ODD["n_ctx"]])
def test_exactly_at_the_limit(n_prompt, small, continued):
    prompt, n = "abcdefghijklmnopqrstuvwxyz"[:n_prompt], TRUE_LIMIT - n_prompt
    assert_text(small(prompt, "-n", n), continued(prompt, n), n_prompt)
    assert_error(
        small(prompt, "-n", n + 1), 2, f"{n_prompt} prompt tokens + {n + 1} to generate", f"of 17: 0 to {n} new"
    )


def test_past_the_limit(small):
    """The default number of tokens exceeds the small model's context."""
    assert_error(small("abcd"), 2, "picogpt generate: 4 ", "40 to generate", "of 17: 0 to 14 new ones fit")
    assert_error(small("a", "-n", 10**12), 2, str(10**12), "17 new ones fit")
    assert_error(small("a" * 1000, "-n", 1), 2, "1000 prompt tokens", "0 new ones fit")


def test_the_speed_is_that_of_more_than_one_token(small, continued, capsys):
    assert small("abc", "-n", 0) == (0, "\n", "")
    result = small("ab", "-n", 1)
    assert_text(result, continued("ab", 1), 2)
    assert ", then" not in result.err
    assert ", then" in small("ab", "-n", 3).err
    command_line.log_speed(3, [0.0, 1.0, 1.5, 2.0])
    assert capsys.readouterr().err == "[3 prompt tokens in 1.00 s, then 2.0 tokens/s]\n"


# ------------------------------------------------------------------------------------------------------ the numbers

WRONG_NUMBERS = {
    "--n_tokens_to_generate": (["-1", "1.5", "x", "", "nan", "inf"], "whole number at least 0"),
    "--temperature": (["-1", "-1e-9", "nan", "inf", "-inf", "x"], "number at least 0"),
    "--top_k": (["-1", "1.5"], "whole number at least 0"),
    "--top_p": (["-0.1", "1.0001", "nan"], "number at least 0 and at most 1"),
    "--repetition_penalty": (["0", "-1", "1e-310", "1e308", "nan"], "number at least 0.01 and at most 100"),
    "--seed": (["-1", "1.5"], "whole number at least 0"),
}


@pytest.mark.parametrize(
    ("option", "value", "limit"),
    [(option, value, limit) for option, (values, limit) in WRONG_NUMBERS.items() for value in values],
)
def test_wrong_number(option, value, limit, small):
    assert_error(small("a", f"{option}={value}"), 2, f"argument {option.replace('--n_', '-n/--n_')}: {value!r}", limit)


@pytest.mark.parametrize("option", ["--seed", "--top_k"])
def test_whole_number_beyond_a_float(option, small):
    assert small("a", "--temperature", 1, "-n", 3, option, "1" * 400).status == 0


GREEDY = [
    ["--temperature", "0"],
    ["--temperature", "1e-30"],
    ["--temperature", "1e-320"],
    ["--temperature", "1", "--top_k", "1"],
    ["--temperature", "1", "--top_p", "0"],
    ["--repetition_penalty", "1"],
]


@pytest.mark.parametrize("args", GREEDY)
def test_settings_that_take_the_likeliest_token(args, small, continued):
    assert_text(small("abcd", "-n", 14, *args), continued("abcd", 14), 4)


@pytest.fixture
def sampled(small: Model) -> Callable[..., str]:
    def text(*args: Any) -> str:
        result = small("abcd", "-n", 14, "--temperature", 1, *args)
        assert_text(result, result.out[:-1], 4)
        return result.out[:-1]

    return text


def test_seed(odd, sampled, continued):
    assert sampled("--seed", 1) == sampled("--seed", 1)
    assert len({sampled("--seed", seed) for seed in (0, 1, 2)} | {continued("abcd", 14)}) == 4
    assert sampled() != sampled()
    process = as_process(odd, "abcd", "-n", 14, "--temperature", 1, "--seed", 7)
    assert_text(process, sampled("--seed", 7), 4)


@pytest.mark.parametrize(
    "args", [["--top_k", 0], ["--top_k", 300], ["--top_k", 301], ["--top_k", 10**9], ["--top_p", 1]]
)
def test_filters_that_keep_everything(args, sampled):
    assert sampled("--seed", 1, *args) == sampled("--seed", 1)


@pytest.mark.parametrize(
    "args", [["--top_k", 2], ["--top_p", 0.1], ["--repetition_penalty", 9], ["--temperature", 0.1]]
)
def test_settings_that_change_the_text(args, sampled):
    assert sampled("--seed", 1, *args) != sampled("--seed", 1)


def test_repetition_penalty_without_sampling(small, loaded):
    """The small model repeats itself. With a high penalty, every token becomes another one."""
    tokenizer, hparams, params = loaded
    choose = functools.partial(gpt2.sample, rng=np.random.default_rng(), temperature=0, repetition_penalty=100)
    ids = list(gpt2.generate(tokenizer.encode("abcd"), params, hparams["n_head"], 14, choose))
    assert len(set(ids)) == 14
    assert_text(small("abcd", "-n", 14, "--repetition_penalty", 100), tokenizer.decode(ids), 4)


@pytest.mark.parametrize("args", [["--top_k", 5], ["--top_p", 0.5], ["--seed", 0]])
def test_warning_for_what_has_no_effect(args, small, continued):
    result = small("ab", "-n", 5, *args)
    warning, speed = result.err.splitlines(keepends=True)
    assert warning == f"warning: {args[0]} has no effect without a --temperature above 0\n"
    assert_text(result._replace(err=speed), continued("ab", 5), 2)


# --------------------------------------------------------------------------------------------------------- the stop


@pytest.mark.parametrize("sampling", [[], ["--temperature", 1, "--seed", 1]])
def test_stop_cuts_the_text_before_it(sampling, small):
    args = ["abcd", "-n", 14, *sampling]
    text = small(*args).out[:-1]
    stops = {text[i:j] for i in range(len(text)) for j in range(i + 1, min(i + 5, len(text)) + 1)}
    assert any(len(stop) > 3 for stop in stops)  # two tokens at least: none is longer than two characters
    for stop in stops:
        result = small(*args, f"--stop={stop}")
        assert (result.status, result.out) == (0, text[: text.index(stop)] + "\n"), stop


def test_stop_that_never_comes(small, continued):
    text = continued("abcd", 14)
    for stop in ("never", text + "x", text[-1] + "x"):
        assert_text(small("abcd", "-n", 14, f"--stop={stop}"), text, 4)


def test_stop_in_the_prompt_does_not_count(small, continued):
    assert "bc" not in continued("abcd", 3)
    assert_text(small("abcd", "-n", 3, "--stop", "bc"), continued("abcd", 3), 4)


def test_empty_stop(small):
    assert_error(small("a", "--stop", ""), 2, "--stop", "empty")


def test_stop_before_joins_pieces(rng):
    for _ in range(300):
        text = "".join(rng.choice(list("ab"), rng.integers(0, 12)))
        stop = "".join(rng.choice(list("ab"), rng.integers(1, 5)))
        cuts = sorted(rng.integers(0, len(text) + 1, 3))
        pieces = [text[i:j] for i, j in zip([0, *cuts], [*cuts, len(text)])]
        assert "".join(gpt2.stop_before(pieces, stop)) == text.split(stop)[0], (pieces, stop)


def test_stop_before_asks_for_no_more_than_it_needs():
    pieces = iter("xaaby")
    assert "".join(gpt2.stop_before(pieces, "ab")) == "xa"
    assert next(pieces) == "y"
    held_back = gpt2.stop_before(iter(["x", "a", "c"]), "ab")
    assert [next(held_back), next(held_back), next(held_back)] == ["x", "", "ac"]


# ----------------------------------------------------------------------------------------------------------- streams


def test_stdout_to_a_file(odd, sampled, tmp_path):
    with open(tmp_path / "out.txt", "wb") as file:
        result = as_process(odd, "abcd", "-n", 14, "--temperature", 1, "--seed", 1, stdout=file)
    text = decoded((tmp_path / "out.txt").read_bytes())
    assert_text(result._replace(out=text), sampled("--seed", 1), 4)


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "ascii:strict"])
def test_stdout_that_is_not_utf8(encoding, odd, sampled):
    text = sampled("--seed", 1)
    assert not text.isascii()
    words = command(NAME, "abcd", *model_options(odd), "-n", 14, "--temperature", 1, "--seed", 1)
    env = ENVIRONMENT | {"PYTHONIOENCODING": encoding}
    done = subprocess.run(words, cwd=ROOT, capture_output=True, env=env, timeout=120, check=False)
    expected = (text + "\n").replace("\n", os.linesep).encode(encoding.split(":")[0], "replace")
    assert (done.returncode, done.stdout) == (0, expected)
    assert SPEED.fullmatch(decoded(done.stderr))


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_no_space_left(odd):
    with open("/dev/full", "wb") as full:
        assert_error(as_process(odd, "a", "-n", 3, stdout=full), 1, f"{NAME}: ", "No space left")


@posix
@pytest.mark.parametrize(("prompt", "closed", "status"), [("a", 1, 0), ("-", 0, 2)])
def test_closed_descriptor(prompt, closed, status, odd):
    """Python sets sys.stdout to None for `… >&-`, and sys.stdin for `<&-`."""
    result = as_process(odd, prompt, "-n", 3, preexec_fn=functools.partial(os.close, closed))
    assert (result.status, result.err.count("\n")) == (status, 1), result
    assert "Traceback" not in result.err


@posix
def test_closed_stderr_sends_nothing_else_to_stdout(odd, continued):
    """With `2>&-`, the warning and the speed have nowhere to go. They must not go to stdout."""
    result = as_process(odd, "ab ", "-n", 3, preexec_fn=functools.partial(os.close, 2), stderr=None)
    assert result == (0, continued("ab ", 3) + "\n", "")


# ------------------------------------------------------------------------------------------------ control characters


class Terminal(io.TextIOWrapper):
    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize("args", [[], ["--n_samples", 2, "--temperature", 1]])
def test_control_characters_of_the_model(args, small, loaded, monkeypatch):
    """A terminal gets escapes, anything else the exact bytes. An escape does not end the text where --stop has it."""
    text, visible = f"{HOSTILE}\n\tक्\u200dष", f"{HARMLESS}\n\tक्\u200dष"
    ids = loaded[0].encode(text)
    monkeypatch.setattr(gpt2, "generate", lambda *_: iter(ids))
    monkeypatch.setattr(generate, "generate_batch", lambda *_: ((i, id) for i in range(2) for id in ids))
    monkeypatch.setattr(gpt2, "checked_ids", mock.Mock())
    expected = "--- 1 of 2\n{0}\n--- 2 of 2\n{0}\n" if args else "{0}\n"
    args = ["a", "-n", len(ids), "--stop", "\\x1b", *args]
    assert small(*args).out == expected.format(text)
    monkeypatch.setattr(io, "TextIOWrapper", Terminal)
    assert small(*args).out == expected.format(visible)


# The real program, with a model whose likeliest tokens are an escape sequence: one token for each of its bytes.
ESCAPING = """
import sys, gpt2, utils
from picogpt import command_line, generate
encode = utils.load_encoder(utils.Path(sys.argv.pop(1))).encode
ids = iter([encode(char)[0] for char in "a\\x1b[2Jb"])
gpt2.greedy = lambda logits, seen: next(ids)
sys.exit(command_line.run(generate.main))
"""


@posix
def test_an_escape_sequence_in_a_real_terminal(odd):
    """A terminal gets no ESC, although no single token is a sequence. A pipe and a file get exact bytes."""
    import pty

    words = [sys.executable, "-c", ESCAPING, odd, "abcd", *model_options(odd), "-n", "6"]
    settings = {"cwd": ROOT, "env": ENVIRONMENT, "timeout": 120, "check": True, "stderr": subprocess.DEVNULL}
    assert subprocess.run(words, stdout=subprocess.PIPE, **settings).stdout == b"a\x1b[2Jb\n"
    reader, writer = pty.openpty()
    subprocess.run(words, stdout=writer, **settings)
    os.close(writer)
    assert read_to_the_end(reader) == rb"a\x1b[2Jb" + b"\r\n"
    os.close(reader)
