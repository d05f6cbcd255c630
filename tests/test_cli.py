"""The command lines: exit status, stdout and stderr, wrong input, broken files, signals."""

from __future__ import annotations

import contextlib
import doctest
import functools
import io
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pytest
from helpers import (
    ENVIRONMENT,
    ODD,
    ROOT,
    Result,
    assert_error,
    command,
    decoded,
    model_options,
    read_to_the_end,
    run_command,
    run_main,
)

import encoder
import gpt2
import utils
from picogpt import command_line, options
from picogpt.__main__ import TOOLS
from picogpt.checkpoints.writing import write_random_model

SCRIPTS = ["gpt2.py", "utils.py", "picogpt tokens"]
COMMANDS = ["gpt2.py", "utils.py", *(f"picogpt {name}" for name in TOOLS)]
TRUE_LIMIT = ODD["n_ctx"] + 1  # prompt tokens + new ones: the last is never fed back
SPEED = re.compile(r"\[(\d+) prompt tokens? in \d+\.\d\d s(, then \d+\.\d tokens/s)?\]\n")
posix = pytest.mark.skipif(os.name != "posix", reason="needs POSIX signals, pipes or arguments of bytes")

Model = Callable[..., Result]


def assert_text(result: Result, text: str, n_prompt: int) -> None:
    assert result.status == 0, result
    assert result.out == text + "\n"
    speed = SPEED.fullmatch(result.err)
    assert speed, result.err
    assert int(speed[1]) == n_prompt


@pytest.fixture(scope="session")
def odd(models_dir: Path) -> Path:
    return models_dir / "odd"


@pytest.fixture(scope="session")
def loaded(odd: Path) -> tuple[encoder.Encoder, dict[str, int], dict[str, Any]]:
    return utils.load_encoder_hparams_and_params(odd.name, odd.parent)


@pytest.fixture(scope="session")
def continued(loaded: tuple[encoder.Encoder, dict[str, int], dict[str, Any]]) -> Callable[[str, int], str]:
    """Return a function that continues a prompt with the small model, without any command line."""
    tokenizer, hparams, params = loaded

    def text(prompt: str, n: int) -> str:
        return tokenizer.decode(gpt2.generate(tokenizer.encode(prompt), params, hparams["n_head"], n))

    return text


@pytest.fixture
def small(odd: Path) -> Model:
    """Return a function that runs gpt2.py with the small model in this process."""
    return lambda *args, stdin=b"": run_main("gpt2.py", *args, *model_options(odd), stdin=stdin)


@pytest.fixture(scope="session")
def endless(models_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Return a command that generates for longer than any test waits."""
    folder = tmp_path_factory.mktemp("long") / "long"
    folder.mkdir()
    n = 30_000
    write_random_model(folder, ODD | {"n_ctx": n}, seed=1)
    return command("gpt2.py", "ab", *model_options(folder), "--n_tokens_to_generate", n - 2)


# ------------------------------------------------------------------------------------------------------- the prompt


@pytest.mark.parametrize("prompt", ["1234", "--help me"])
def test_prompt_as_a_process(prompt, odd, continued):
    result = run_command("gpt2.py", prompt, *model_options(odd), "--n_tokens_to_generate", 5)
    assert_text(result, continued(prompt, 5), len(prompt))


@pytest.mark.parametrize(
    "prompt",
    [
        "1234",
        "-1",
        "-1.5",
        "--help me",
        "-h me",
        "-hello world",
        "--stop it",
        "- item",
        "a\nb",
        "\n",
        "\t",
        "é漢😀",
        "a\0b",
    ],
)
def test_prompt_is_taken_literally(prompt, small, continued):
    result = small(prompt, "--n_tokens_to_generate", 5)
    assert_text(result, continued(prompt, 5), len(prompt.encode("utf-8")))


def test_end_of_text_in_a_prompt_is_plain_text(small, continued):
    assert_text(small("<|endoftext|>", "--n_tokens_to_generate", 3), continued("<|endoftext|>", 3), 13)


STDIN = [
    (b"ab", "ab"),
    (b"ab\n", "ab"),
    (b"ab\n\n", "ab\n"),
    (b"ab\r\n", "ab"),
    (b"a\r\nb\r\n", "a\r\nb"),
    (b"ab\r", "ab\r"),
    (b"a\nb\n", "a\nb"),
    (b"\na\nb", "\na\nb"),
    (b"\n\n", "\n"),
    (b"-\n", "-"),
    (b"--help me", "--help me"),
    (b"a\0b\n", "a\0b"),
    ("é漢😀\n".encode(), "é漢😀"),
]


@pytest.mark.parametrize(("stdin", "prompt"), STDIN)
def test_prompt_from_stdin(stdin, prompt, small, continued):
    result = small("-", "--n_tokens_to_generate", 5, stdin=stdin)
    assert_text(result, continued(prompt, 5), len(prompt.encode("utf-8")))


def test_prompt_from_stdin_of_a_process(odd, continued):
    """Windows must not translate line ends on the way in."""
    result = run_command(
        "gpt2.py", "-", *model_options(odd), "--n_tokens_to_generate", 5, stdin="é\r\na\0b\r\n".encode()
    )
    assert_text(result, continued("é\r\na\0b", 5), 7)


@pytest.mark.parametrize("stdin", [b"", b"\n", b"\r\n"])
def test_empty_stdin(stdin, small):
    """A command before the pipe has probably failed."""
    assert_error(small("-", stdin=stdin), 2, "standard input is empty", 'give "" as the prompt')


@pytest.mark.parametrize("script", ["gpt2.py", "picogpt tokens"])
@pytest.mark.parametrize(("stdin", "at"), [(b"ab\xff", 2), (b"\xe6\xbc", 0), (b"a\xed\xa0\x80", 1)])
def test_stdin_that_is_not_utf8(script, stdin, at, odd):
    result = run_main(script, "-", *model_options(odd), stdin=stdin)
    assert_error(result, 2, "standard input is not UTF-8", f"byte {at} is 0x{stdin[at]:02x}")


def test_stdin_that_is_not_utf8_of_a_process(odd):
    assert_error(run_command("gpt2.py", "-", *model_options(odd), stdin=b"ab\xff"), 2, "gpt2.py: ", "byte 2 is 0xff")


@posix
@pytest.mark.parametrize("script", ["gpt2.py", "picogpt tokens"])
def test_prompt_that_is_not_utf8(script, odd):
    assert_error(run_command(script, b"ab\xff", *model_options(odd)), 2, "not valid UTF-8", "character 2", "udcff")


def test_no_prompt(odd):
    assert_error(run_command("gpt2.py", *model_options(odd)), 2, "gpt2.py: ", "prompt", "(try --help)")


def test_prompt_without_quotes(small):
    assert_error(small("one", "two"), 2, "unrecognized", "two")
    assert_error(small("one", "two\nlines"), 2, "unrecognized", "two")


def test_trailing_space_is_kept_with_a_warning(odd, continued):
    result = run_command("gpt2.py", "ab ", *model_options(odd), "--n_tokens_to_generate", 5)
    warning, speed = result.err.splitlines(keepends=True)
    assert warning.startswith("warning: ")
    assert "space" in warning
    assert_text(result._replace(err=speed), continued("ab ", 5), 3)


@pytest.mark.parametrize("prompt", [" ab", "ab\n", "ab\t"])
def test_no_warning_for_other_white_space(prompt, small, continued):
    assert_text(small(prompt, "--n_tokens_to_generate", 2), continued(prompt, 2), 3)


# ------------------------------------------------------------------------------------------------- very long prompts


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


@pytest.mark.parametrize("script", ["gpt2.py", "picogpt explain", "picogpt trace"])
def test_prompt_with_too_many_bytes_is_not_encoded(script, odd, tmp_path, monkeypatch):
    """Encoding this one would take a minute and two gigabytes."""
    monkeypatch.setattr(encoder.Encoder, "encode", mock.Mock(side_effect=AssertionError))
    out = ["--out", tmp_path / "out.npz"] if script == "picogpt trace" else []
    result = run_main(script, "-", *model_options(odd), *out, stdin=b"a" * 10**7)
    assert_error(result, 2, "10,000,000 bytes", "769,231 tokens or more", f"n_ctx = {ODD['n_ctx']}")


def test_smallest_number_of_tokens(loaded):
    """The longest token of the small model is <|endoftext|>, and gpt2.py generates 0 tokens after n_ctx + 1."""
    prompt = "é" * (13 * 10_000)
    options.check_size(loaded[0], prompt, 19_999)
    with pytest.raises(command_line.UsageError, match="260,001 bytes, .* 20,001 tokens .* n_ctx = 19999"):
        options.check_size(loaded[0], prompt + "a", 19_999)


# ------------------------------------------------------------------------------------------------------ the lengths


@pytest.mark.parametrize("n_prompt", [1, 4, ODD["n_ctx"]])
def test_exactly_at_the_limit(n_prompt, small, continued):
    prompt, n = "abcdefghijklmnopqrstuvwxyz"[:n_prompt], TRUE_LIMIT - n_prompt
    assert_text(small(prompt, "--n_tokens_to_generate", n), continued(prompt, n), n_prompt)
    result = small(prompt, "--n_tokens_to_generate", n + 1)
    assert_error(result, 2, f"{n_prompt} prompt tokens", f"{n + 1} to generate", f"of {ODD['n_ctx']}", f"only {n} fit")


def test_past_the_limit_as_a_process(odd):
    """The default number of tokens exceeds the small model's context."""
    assert_error(
        run_command("gpt2.py", "abcd", *model_options(odd)), 2, "gpt2.py: 4 ", "40 to generate", "of 17", "only 14 fit"
    )


@pytest.mark.parametrize("too_long", [1, 2, 1000])
def test_prompt_alone_is_too_long(too_long, small):
    result = small("a" * (ODD["n_ctx"] + too_long), "--n_tokens_to_generate", 1)
    assert_error(result, 2, f"{ODD['n_ctx'] + too_long} prompt tokens", f"{too_long} too long", f"of {ODD['n_ctx']}")


def test_number_of_tokens_beyond_all_bounds(small):
    assert_error(small("a", "--n_tokens_to_generate", 10**12), 2, str(10**12), "only 17 fit")


def test_no_tokens_to_generate(small):
    assert small("abc", "--n_tokens_to_generate", 0) == (0, "\n", "")


def test_prompt_and_number_of_tokens_are_used_exactly(small, loaded):
    result = small("ab", "--n_tokens_to_generate", 1)
    tokenizer, hparams, params = loaded
    logits = gpt2.gpt2(tokenizer.encode("ab"), **params, n_head=hparams["n_head"])
    assert_text(result, tokenizer.decode([int(np.argmax(logits[-1]))]), 2)
    assert ", then" not in result.err  # no rate of what happened once


# ------------------------------------------------------------------------------------------------------ the numbers

WRONG_NUMBERS = {
    "--n_tokens_to_generate": (["-1", "1.5", "x", "", "nan", "inf"], "whole number at least 0"),
    "--temperature": (["-1", "-1e-9", "nan", "inf", "-inf", "x", ""], "number at least 0"),
    "--top_k": (["-1", "1.5", "x", "nan"], "whole number at least 0"),
    "--top_p": (["-0.1", "1.5", "1.0001", "nan", "inf", "x"], "number at least 0 and at most 1"),
    "--repetition_penalty": (["0", "-1", "nan", "inf", "x"], "number at least 0.01 and at most 100"),
    "--seed": (["-1", "1.5", "x"], "whole number at least 0"),
}


@pytest.mark.parametrize(
    ("option", "value", "limit"),
    [(option, value, limit) for option, (values, limit) in WRONG_NUMBERS.items() for value in values],
)
def test_wrong_number(option, value, limit, small):
    assert_error(small("a", f"{option}={value}"), 2, option, repr(value), limit)


@pytest.mark.parametrize(("option", "value"), [("--n_tokens_to_generate", "-1"), ("--top_p", "-0.1")])
def test_wrong_number_as_a_process(option, value, odd):
    assert_error(
        run_command("gpt2.py", "a", *model_options(odd), option, value),
        2,
        "gpt2.py: ",
        option,
        repr(value),
        "at least 0",
    )


@pytest.mark.parametrize("option", ["--seed", "--top_k", "--n_tokens_to_generate"])
def test_whole_number_beyond_a_float(option, small):
    result = small("a", "--temperature", 1, "--n_tokens_to_generate", 3, option, "1" * 400)
    assert result.status in ((2,) if option == "--n_tokens_to_generate" else (0, 2)), result
    assert result.err.count("\n") == 1


@pytest.mark.parametrize("temperature", ["0", "1"])
@pytest.mark.parametrize("penalty", ["1e-310", "1e-30", "1e30", "1e308"])
def test_extreme_penalty_works_or_is_refused(temperature, penalty, small):
    result = small("ab", "--n_tokens_to_generate", 5, "--temperature", temperature, "--repetition_penalty", penalty)
    assert result.status in (0, 2), result
    assert result.err.count("\n") == 1


GREEDY = [
    ["--temperature", "0"],
    ["--temperature", "1e-30"],
    ["--temperature", "1e-320"],
    ["--temperature", "1", "--top_k", "1"],
    ["--temperature", "1", "--top_p", "0"],
    ["--temperature", "0", "--repetition_penalty", "1"],
]


@pytest.mark.parametrize("args", GREEDY)
def test_settings_that_take_the_likeliest_token(args, small, continued):
    assert_text(small("abcd", "--n_tokens_to_generate", 14, *args), continued("abcd", 14), 4)


@pytest.fixture
def sampled(small: Model) -> Callable[..., str]:
    def text(*args: Any) -> str:
        result = small("abcd", "--n_tokens_to_generate", 14, "--temperature", 1, *args)
        assert_text(result, result.out[:-1], 4)
        return result.out[:-1]

    return text


def test_seed(sampled, continued):
    assert sampled("--seed", 1) == sampled("--seed", 1)
    assert len({sampled("--seed", seed) for seed in (0, 1, 2)} | {continued("abcd", 14)}) == 4
    assert sampled() != sampled()


def test_seed_of_a_process(odd, sampled):
    args = ["--n_tokens_to_generate", 14, "--temperature", 1, "--seed", 7]
    assert_text(run_command("gpt2.py", "abcd", *model_options(odd), *args), sampled("--seed", 7), 4)


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
    result = small("abcd", "--n_tokens_to_generate", 14, "--repetition_penalty", 100)
    assert_text(result, tokenizer.decode(ids), 4)


@pytest.mark.parametrize("args", [["--top_k", 5], ["--top_p", 0.5], ["--seed", 0]])
def test_warning_for_what_has_no_effect(args, small, continued):
    result = small("ab", "--n_tokens_to_generate", 5, *args)
    warning, speed = result.err.splitlines(keepends=True)
    assert warning.startswith("warning: ")
    assert args[0] in warning
    assert "temperature" in warning
    assert_text(result._replace(err=speed), continued("ab", 5), 2)


# --------------------------------------------------------------------------------------------------------- the stop


@pytest.mark.parametrize("sampling", [[], ["--temperature", 1, "--seed", 1]])
def test_stop_cuts_the_text_before_it(sampling, small):
    args = ["abcd", "--n_tokens_to_generate", 14, *sampling]
    text = small(*args).out[:-1]
    stops = {text[i:j] for i in range(len(text)) for j in range(i + 1, min(i + 5, len(text)) + 1)}
    assert any(len(stop) > 3 for stop in stops)  # two tokens at least: none is longer than two characters
    for stop in stops:
        result = small(*args, f"--stop={stop}")
        assert (result.status, result.out) == (0, text[: text.index(stop)] + "\n"), stop


def test_stop_that_never_comes(small, continued):
    text = continued("abcd", 14)
    for stop in ("never", text + "x", text[-1] + "x"):
        assert_text(small("abcd", "--n_tokens_to_generate", 14, f"--stop={stop}"), text, 4)


def test_stop_in_the_prompt_does_not_count(small, continued):
    assert "bc" not in continued("abcd", 3)
    assert_text(small("abcd", "--n_tokens_to_generate", 3, "--stop", "bc"), continued("abcd", 3), 4)


def test_stop_of_a_process(odd, continued):
    text = continued("abcd", 14)
    stop = text[5:8]
    result = run_command("gpt2.py", "abcd", *model_options(odd), "--n_tokens_to_generate", 14, f"--stop={stop}")
    assert (result.status, result.out) == (0, text[: text.index(stop)] + "\n")
    assert "Traceback" not in result.err


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


# ----------------------------------------------------------------------------------------------------- broken files


@pytest.mark.parametrize("script", SCRIPTS)
def test_unknown_model(script, odd):
    args = ["nope"] if script == "utils.py" else ["a", "--model_size", "nope"]
    result = run_command(script, *args, "--models_dir", odd.parent)
    assert_error(result, 1, f"{script}: ", "'nope'", str(odd.parent), "only odd;", ", ".join(utils.SIZES))


@pytest.mark.parametrize("name", ["124m", "ODD2", "odd2", "no/where", "two\nlines"])
def test_unknown_model_like_a_known_one(name, odd):
    result = run_main("gpt2.py", "a", "--models_dir", odd.parent, "--model_size", name)
    assert_error(result, 1, repr(name), "only odd;")


def test_no_models_at_all(tmp_path):
    result = run_main("gpt2.py", "a", "--models_dir", tmp_path / "none", "--model_size", "odd")
    assert_error(result, 1, "'odd'", str(tmp_path / "none"), "only nothing;", ", ".join(utils.SIZES))
    assert not (tmp_path / "none").exists()


@pytest.mark.parametrize("name", ["odd", "124M"])
def test_models_dir_that_is_a_file(name, tmp_path):
    (tmp_path / "models").write_text("not a folder")
    result = run_main("gpt2.py", "a", "--models_dir", tmp_path / "models", "--model_size", name)
    assert_error(result, 1, str(tmp_path / "models"))
    assert (tmp_path / "models").read_text() == "not a folder"


NEEDED = ["encoder.json", "vocab.bpe", "hparams.json", utils.INDEX, utils.DATA]


@pytest.mark.parametrize("script", ["gpt2.py", "utils.py"])
@pytest.mark.parametrize("name", NEEDED)
def test_missing_file(name, script, damaged):
    folder = damaged()
    (folder / name).unlink()
    args = ["a", *model_options(folder)] if script == "gpt2.py" else [folder.name, "--models_dir", folder.parent]
    assert_error(run_main(script, *args), 1, str(folder / name))


@pytest.mark.parametrize("name", sorted(set(utils.FILES) - set(NEEDED)))
def test_file_that_only_tensorflow_needs_may_be_missing(name, damaged, continued):
    folder = damaged()
    (folder / name).unlink(missing_ok=True)
    assert_text(run_main("gpt2.py", "ab", *model_options(folder), "--n_tokens_to_generate", 3), continued("ab", 3), 2)


@pytest.mark.parametrize("name", NEEDED)
def test_folder_in_place_of_a_file(name, damaged):
    folder = damaged()
    (folder / name).unlink()
    (folder / name).mkdir()
    assert_error(run_main("gpt2.py", "a", *model_options(folder)), 1, str(folder / name))


def flip(at: int) -> Callable[[bytes], bytes]:
    def damage(data: bytes) -> bytes:
        changed = bytearray(data)
        changed[at] ^= 1
        return bytes(changed)

    return damage


def vocabulary(change: Callable[[dict[str, Any]], Any]) -> Callable[[bytes], bytes]:
    """Return a function that changes the JSON object in encoder.json."""

    def damage(data: bytes) -> bytes:
        tokens = json.loads(data)
        change(tokens)
        return json.dumps(tokens).encode()

    return damage


def page(_: bytes) -> bytes:
    return b"<!DOCTYPE html>\n<html><body>404 Not Found</body></html>\n"


DAMAGE: list[tuple[str, Callable[[bytes], bytes], str]] = [
    (utils.INDEX, lambda data: data[:-1], "truncated"),
    (utils.INDEX, lambda data: data[: len(data) // 2], "truncated"),
    (utils.INDEX, lambda data: data[100:], "block"),
    (utils.INDEX, lambda data: b"", "truncated"),
    (utils.INDEX, flip(30), "checksum"),
    (utils.INDEX, flip(500), "checksum"),
    (utils.INDEX, flip(-1), "not the index"),
    (utils.INDEX, page, "not the index"),
    (utils.DATA, lambda data: data[:-4], "71,312 bytes"),
    (utils.DATA, lambda data: data[: len(data) // 2], "71,316"),
    (utils.DATA, lambda data: data + b"\0", "71,317 bytes"),
    (utils.DATA, lambda data: b"", "0 bytes"),
    (utils.DATA, page, "71,316"),
    ("hparams.json", lambda data: data[:-3], "not JSON"),
    ("hparams.json", lambda data: b"", "not JSON"),
    ("hparams.json", lambda data: b"[1, 2]", "not a JSON object"),
    ("hparams.json", lambda data: b"\xff\xfe{}", "not JSON"),
    ("hparams.json", page, "not JSON"),
    ("encoder.json", lambda data: data[:-1], ""),
    ("encoder.json", lambda data: b"", ""),
    ("encoder.json", lambda data: b"\xff", "utf-8"),
    ("encoder.json", page, ""),
    ("encoder.json", lambda data: b"[]", "JSON object"),
    ("encoder.json", lambda data: b"{}", "256 bytes"),
    ("encoder.json", vocabulary(lambda tokens: tokens.update(a=1.0)), "JSON object"),
    ("encoder.json", vocabulary(lambda tokens: tokens.update(a=[64])), "JSON object"),
    ("encoder.json", vocabulary(lambda tokens: tokens.update(a=65)), "0 to 299"),
    ("encoder.json", vocabulary(lambda tokens: tokens.update(a=300)), "0 to 299"),
    ("encoder.json", vocabulary(lambda tokens: tokens.update({"漢": 300})), "漢"),
    ("encoder.json", vocabulary(lambda tokens: tokens.popitem()), "299"),
    ("vocab.bpe", lambda data: b"", "merge"),
    ("vocab.bpe", lambda data: data[:-3], "merge"),
    ("vocab.bpe", lambda data: data[:-2], "merge"),
    ("vocab.bpe", lambda data: data + b"\xff \xff\n", "utf-8"),
    ("vocab.bpe", lambda data: data + b"a b c\n", "a b c"),
    ("vocab.bpe", lambda data: data + b"a b\n", "ab"),
    ("vocab.bpe", page, "merge"),
]


@pytest.mark.parametrize(("name", "damage", "word"), DAMAGE, ids=[f"{name}-{i}" for i, (name, *_) in enumerate(DAMAGE)])
def test_broken_file(name, damage, word, damaged):
    folder = damaged()
    (folder / name).write_bytes(damage((folder / name).read_bytes()))
    assert_error(run_main("gpt2.py", "a", *model_options(folder)), 1, str(folder), name, word)


@pytest.mark.parametrize(
    ("name", "damage"), [(utils.INDEX, flip(30)), (utils.DATA, lambda data: data[:-4]), ("hparams.json", page)]
)
def test_broken_file_as_a_process(name, damage, damaged):
    folder = damaged()
    (folder / name).write_bytes(damage((folder / name).read_bytes()))
    assert_error(run_command("gpt2.py", "a", *model_options(folder)), 1, f"gpt2.py: {folder / name}")


@pytest.mark.parametrize(
    ("name", "value", "word"),
    [
        ("n_vocab", 301, "(301, 21)"),
        ("n_vocab", 299, "(299, 21)"),
        ("n_ctx", 16, "(16, 21)"),
        ("n_ctx", 1024, "(1024, 21)"),
        ("n_embd", 24, "24)"),
        ("n_embd", 7 * 3 * 2, "42)"),
        ("n_head", 4, "n_head = 4"),
        ("n_layer", 1, "n_layer = 1"),
        ("n_layer", 3, "model/h2/"),
    ],
)
def test_hparams_of_another_model(name, value, word, damaged):
    folder = damaged()
    (folder / "hparams.json").write_text(json.dumps(ODD | {name: value}))
    assert_error(run_main("gpt2.py", "a", *model_options(folder)), 1, str(folder), "hparams.json", word)


@pytest.mark.parametrize("value", [0, -1, 17.0, 17.5, "17", True, None, [17], {}, 1 << 40])
@pytest.mark.parametrize("name", utils.HPARAMS)
def test_hparams_of_a_wrong_type(name, value, damaged):
    folder = damaged()
    (folder / "hparams.json").write_text(json.dumps(ODD | {name: value}))
    assert_error(
        run_main("gpt2.py", "a", *model_options(folder)),
        1,
        f"{folder / 'hparams.json'}: {name} is {value!r}",
        "positive",
    )


@pytest.mark.parametrize("name", utils.HPARAMS)
def test_hparams_without_a_key(name, damaged):
    folder = damaged()
    (folder / "hparams.json").write_text(json.dumps({key: value for key, value in ODD.items() if key != name}))
    assert_error(run_main("gpt2.py", "a", *model_options(folder)), 1, str(folder / "hparams.json"), name)


@contextlib.contextmanager
def without_root() -> Iterator[None]:
    """Become another user if this one is root, who may read every file."""
    if os.geteuid() != 0:
        yield
        return
    try:
        os.seteuid(65534)
    except OSError:
        pytest.skip("runs as root that can't become another user")
    try:
        yield
    finally:
        os.seteuid(0)


@posix
def test_folder_that_is_not_readable(damaged):
    folder = damaged()
    folder.chmod(0)
    try:
        with without_root():
            result = run_main("gpt2.py", "a", *model_options(folder))
    finally:
        folder.chmod(0o700)
    assert_error(result, 1, str(folder), "Permission denied")


def test_no_network(tmp_path, monkeypatch):
    """The discard port refuses. Each attempt is one line, and the last line says what to do instead."""
    slept: list[float] = []
    monkeypatch.setattr("time.sleep", slept.append)
    mirror = "http://127.0.0.1:9"
    for name, value in {"PICOGPT_MIRROR": mirror, "no_proxy": "*", "NO_PROXY": "*"}.items():
        monkeypatch.setenv(name, value)
    result = run_main("gpt2.py", "a", "--models_dir", tmp_path)
    *attempts, last = result.err.splitlines()
    pauses = [re.fullmatch(r"checkpoint: .*refused.*; attempt (\d) in (\d) s", line).groups() for line in attempts]
    assert pauses == [("2", "1"), ("3", "2"), ("4", "4")]
    assert slept == [1, 2, 4]
    assert_error(result._replace(err=last + "\n"), 1, "gpt2.py: can't download", f"{mirror}/124M/")
    for word in (str(tmp_path / "124M"), *utils.FILES, "PICOGPT_MIRROR", "124M/<file>", "--model_size tiny"):
        assert word in last
    assert "Traceback" not in result.err
    assert list(tmp_path.iterdir()) == []


# ------------------------------------------------------------------------------------------------ stdout and signals


def test_text_comes_before_the_process_ends_and_ctrl_c_is_quiet(endless, continued):
    # A shell that runs pytest in the background makes its children ignore Ctrl-C.
    heed = None if os.name == "nt" else functools.partial(signal.signal, signal.SIGINT, signal.SIG_DFL)
    with subprocess.Popen(
        endless, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=ENVIRONMENT, bufsize=0, preexec_fn=heed
    ) as process:
        try:
            first = process.stdout.read(1 << 16)
            assert 0 < len(first) < 4096  # a buffer would have held back 8192
            assert process.poll() is None
            if os.name == "nt":
                return
            process.send_signal(signal.SIGINT)
            _, err = process.communicate(timeout=60)
            assert (process.returncode, err) == (130, b"")
        finally:
            process.kill()


def error_of_closed_pipe(words: list[Any]) -> tuple[int, bytes]:
    """Return the exit status and stderr of a process whose reader is gone at once."""
    with subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=ENVIRONMENT, cwd=ROOT) as process:
        process.stdout.close()
        err = process.stderr.read()
        return process.wait(timeout=60), err


@posix
def test_closed_pipe(endless, odd):
    assert error_of_closed_pipe(endless) == (141, b"")
    for n in (1, 5000):  # fails when it is flushed at the end, and in the middle
        assert error_of_closed_pipe(command("picogpt tokens", "a" * n, *model_options(odd))) == (141, b"")


@posix
@pytest.mark.parametrize("script", SCRIPTS)
def test_closed_pipe_of_help(script):
    status, err = error_of_closed_pipe(command(script, "--help"))
    assert status in (0, 141)
    assert err == b""


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
@pytest.mark.parametrize("script", ["gpt2.py", "picogpt tokens"])
def test_no_space_left(script, odd):
    n = ["--n_tokens_to_generate", 3] if script == "gpt2.py" else []
    with open("/dev/full", "wb") as full:
        words = command(script, "a", *model_options(odd), *n)
        done = subprocess.run(
            words, cwd=ROOT, stdout=full, stderr=subprocess.PIPE, env=ENVIRONMENT, timeout=120, check=False
        )
    assert_error(Result(done.returncode, "", decoded(done.stderr)), 1, f"{script}: ", "No space left")


@posix
@pytest.mark.parametrize(("prompt", "closed"), [("a", 1), ("-", 0)])
def test_closed_descriptor(prompt, closed, odd):
    """Python sets sys.stdout to None for `python gpt2.py … >&-`, and sys.stdin for `<&-`."""
    words = command("gpt2.py", prompt, *model_options(odd), "--n_tokens_to_generate", 3)
    done = subprocess.run(
        words,
        cwd=ROOT,
        stdout=None if closed == 1 else subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=ENVIRONMENT,
        preexec_fn=functools.partial(os.close, closed),
        timeout=120,
        check=False,
    )
    assert b"Traceback" not in done.stderr
    assert done.stderr.count(b"\n") <= 1
    assert done.returncode in ((0, 1) if closed == 1 else (1, 2))


@pytest.mark.skipif(os.name == "nt", reason="no descriptors to close")
def test_closed_stderr_sends_nothing_else_to_stdout(odd):
    """With `2>&-`, the warning and the speed have nowhere to go. They must not go to stdout."""
    words = command("gpt2.py", "ab ", *model_options(odd), "--n_tokens_to_generate", 3)
    expected = subprocess.run(words, cwd=ROOT, capture_output=True, env=ENVIRONMENT, timeout=120, check=True)
    assert b"warning" in expected.stderr
    closed = functools.partial(os.close, 2)
    done = subprocess.run(
        words, cwd=ROOT, stdout=subprocess.PIPE, env=ENVIRONMENT, preexec_fn=closed, timeout=120, check=True
    )
    assert done.stdout == expected.stdout


def test_empty_stdin_is_refused_before_any_download(tmp_path):
    result = run_command("gpt2.py", "-", "--models_dir", tmp_path, stdin=b"")
    assert_error(result, 2, "standard input is empty")
    assert list(tmp_path.iterdir()) == []


def test_stdout_to_a_file(odd, sampled, tmp_path):
    text = sampled("--seed", 1)
    words = command(
        "gpt2.py", "abcd", *model_options(odd), "--n_tokens_to_generate", 14, "--temperature", 1, "--seed", 1
    )
    with open(tmp_path / "out.txt", "wb") as file:
        done = subprocess.run(
            words, cwd=ROOT, stdout=file, stderr=subprocess.PIPE, env=ENVIRONMENT, timeout=120, check=True
        )
    assert_text(Result(0, decoded((tmp_path / "out.txt").read_bytes()), decoded(done.stderr)), text, 4)


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "ascii:strict"])
def test_stdout_that_is_not_utf8(encoding, odd, sampled):
    text = sampled("--seed", 1)
    assert not text.isascii()
    args = ["--n_tokens_to_generate", 14, "--temperature", 1, "--seed", 1]
    words = command("gpt2.py", "abcd", *model_options(odd), *args)
    done = subprocess.run(
        words, cwd=ROOT, capture_output=True, env=ENVIRONMENT | {"PYTHONIOENCODING": encoding}, timeout=120, check=False
    )
    expected = (text + "\n").replace("\n", os.linesep).encode(encoding.split(":")[0], "replace")
    assert (done.returncode, done.stdout) == (0, expected)
    assert SPEED.fullmatch(decoded(done.stderr))


def test_error_where_stderr_is_not_utf8(odd):
    args = ["a", "--model_size", "é漢", "--models_dir", odd.parent]
    assert_error(run_command("gpt2.py", *args, PYTHONIOENCODING="ascii"), 1, r"\xe9\u6f22", "only odd;")


# ------------------------------------------------------------------------------------------------ control characters

HOSTILE = "\x1b]0;title\x07\x1b[2J\r\x08\x7f\x9b31m\u202egnp.exe\u2066\u200b\ufeff\u2028\x85"
HARMLESS = r"\x1b]0;title\x07\x1b[2J\r\x08\x7f\x9b31m\u202egnp.exe\u2066\u200b\ufeff\u2028\x85"


def test_visible():
    assert command_line.visible(HOSTILE + "\n\t\0\udcff") == HARMLESS + r"\n\t\x00\udcff"
    assert command_line.visible("\x1b\n\t\r", keep="\n\t") == "\\x1b\n\t\\r"
    for text in ("", "C:\\new", "é漢😀 a\u0301\u00a0", "\ue000", "\U0010fffe"):
        assert command_line.visible(text) == text


def test_messages_are_visible_and_one_line(odd, capsys):
    command_line.log(f"a{HOSTILE}\nb")
    assert capsys.readouterr().err == f"a{HARMLESS}\\nb\n"
    assert_error(run_main("gpt2.py", "one", HOSTILE + "\ntwo"), 2, f"unrecognized arguments: {HARMLESS}\\ntwo")
    for error in (OSError(2, "missing", f"{HOSTILE}\n"), ValueError(f"{HOSTILE}\n"), MemoryError(f"{HOSTILE}\n")):
        assert command_line.run(mock.Mock(side_effect=error)) == 1
        message = capsys.readouterr().err
        assert f"{HARMLESS}\\n" in message
        assert message.removesuffix("\n").isprintable()
    assert_error(
        run_main("gpt2.py", "a", "--model_size", "x", "--models_dir", odd / f"{HOSTILE}\n"), 1, f"{HARMLESS}\\n"
    )


class Terminal(io.TextIOWrapper):
    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize("options", [[], ["--n_samples", 2, "--temperature", 1]])
def test_control_characters_of_the_model(options, small, loaded, monkeypatch):
    """A terminal gets escapes, anything else the exact bytes. An escape does not end the text where --stop has it."""
    text, visible = f"{HOSTILE}\n\tक्\u200dष", f"{HARMLESS}\n\tक्\u200dष"
    ids = loaded[0].encode(text)
    monkeypatch.setattr(gpt2, "generate", lambda *args: iter(ids))
    monkeypatch.setattr(gpt2, "generate_batch", lambda *args: ((i, id) for i in range(2) for id in ids))
    monkeypatch.setattr(gpt2, "check_lengths", mock.Mock())
    monkeypatch.setattr(gpt2, "check_memory", mock.Mock(return_value=1))
    expected = "--- 1 of 2\n{0}\n--- 2 of 2\n{0}\n" if options else "{0}\n"
    args = ["a", "--n_tokens_to_generate", len(ids), "--stop", "\\x1b", *options]
    assert small(*args).out == expected.format(text)
    monkeypatch.setattr(io, "TextIOWrapper", Terminal)
    assert small(*args).out == expected.format(visible)


@posix
def test_control_characters_in_a_real_terminal(odd, sampled):
    import pty

    args = ["--temperature", 1, "--seed", 3, "--n_tokens_to_generate", 14]
    exact = sampled("--seed", 3)
    assert exact != command_line.visible(exact, keep="\n\t")
    reader, writer = pty.openpty()
    words = command("gpt2.py", "abcd", *model_options(odd), *args)
    subprocess.run(words, cwd=ROOT, stdout=writer, stderr=subprocess.DEVNULL, env=ENVIRONMENT, timeout=120, check=True)
    os.close(writer)
    assert read_to_the_end(reader).decode().replace("\r\n", "\n") == command_line.visible(exact, keep="\n\t") + "\n"
    os.close(reader)


# The real program, with a model whose likeliest tokens are an escape sequence: one token for each of its bytes.
ESCAPING = """
import sys, gpt2, utils
encode = utils.load_encoder(utils.Path(sys.argv.pop(1))).encode
ids = iter([encode(char)[0] for char in "a\\x1b[2Jb"])
gpt2.greedy = lambda logits, seen: next(ids)
sys.exit(command_line.run(gpt2.main))
"""


@posix
def test_an_escape_sequence_over_several_tokens(odd):
    """A terminal gets no ESC, although no single token is a sequence. A pipe and a file get exact bytes."""
    import pty

    words = [sys.executable, "-c", ESCAPING, odd, "abcd", *model_options(odd), "--n_tokens_to_generate", "6"]
    settings = {"cwd": ROOT, "env": ENVIRONMENT, "timeout": 120, "check": True, "stderr": subprocess.DEVNULL}
    assert subprocess.run(words, stdout=subprocess.PIPE, **settings).stdout == b"a\x1b[2Jb\n"
    reader, writer = pty.openpty()
    subprocess.run(words, stdout=writer, **settings)
    os.close(writer)
    assert read_to_the_end(reader) == rb"a\x1b[2Jb" + b"\r\n"
    os.close(reader)


# -------------------------------------------------------------------------------------------------- the value "--"


def parser_of(name: str) -> command_line.Parser:
    """Return the parser of a script or a tool."""
    parsers: list[command_line.Parser] = []

    def keep(parser: command_line.Parser, *args: Any) -> None:
        parsers.append(parser)
        raise SystemExit(0)

    with mock.patch.multiple(command_line.Parser, parse_args=keep, parse_known_args=keep):
        run_main(name)
    return parsers[0]


@pytest.mark.parametrize("name", COMMANDS)
def test_two_dashes_are_a_value_like_others(name, capsys):
    """argparse before Python 3.13 makes an empty list of --option=--, for which no tool is prepared."""
    parser = parser_of(name)
    for action in parser._actions:
        action.required = False
    options = [action for action in parser._actions if action.option_strings]
    assert options
    for action in options:
        words = [f"{action.option_strings[0]}=--"]
        try:
            value = getattr(parser.parse_args(words), action.dest)
        except SystemExit as error:
            message = capsys.readouterr().err
            assert error.code == 2
            assert "argument " + "/".join(action.option_strings) in message
            assert message.count("\n") == 1
        else:
            assert value == (action.type or str)("--"), words


def test_stop_at_two_dashes(small, continued):
    assert_text(small("ab", "--n_tokens_to_generate", 3, "--stop=--"), continued("ab", 3), 2)
    assert_error(run_main("gpt2.py", "ab", "--model_size=--"), 1, "there is no model '--'")


# ------------------------------------------------------------------------------- Ctrl-C at any time, and odd encodings


def interrupted_import(script: str, tmp_path: Path, before: Callable[[], Any]) -> tuple[int, bytes, bytes]:
    """Run a command that gets Ctrl-C while it imports NumPy. Return its status, and what it wrote."""
    (tmp_path / "numpy.py").write_text("import os, signal\nos.kill(os.getpid(), signal.SIGINT)\nos._exit(7)\n")
    words, env = command(script, "a"), ENVIRONMENT | {"PYTHONPATH": str(tmp_path)}
    done = subprocess.run(
        words, cwd=ROOT, capture_output=True, env=env, preexec_fn=before, timeout=60, check=False, stdin=subprocess.PIPE
    )
    return done.returncode, done.stdout, done.stderr


@posix
@pytest.mark.parametrize("script", ["gpt2.py", "utils.py", "picogpt chat"])
def test_ctrl_c_during_start_up(script, tmp_path):
    heed = functools.partial(signal.signal, signal.SIGINT, signal.SIG_DFL)
    assert interrupted_import(script, tmp_path, heed) == (-signal.SIGINT, b"", b"")  # which a shell calls 130


@posix
def test_a_shell_may_let_a_command_ignore_ctrl_c(tmp_path):
    """Shells do so with commands in the background of a script."""
    ignore = functools.partial(signal.signal, signal.SIGINT, signal.SIG_IGN)
    assert interrupted_import("gpt2.py", tmp_path, ignore) == (7, b"", b"")


@pytest.mark.parametrize("code", ["import gpt2, utils, picogpt.__main__", "exec(open('gpt2.py').read())"])
def test_a_notebook_keeps_its_ctrl_c(code):
    result = run_command("-c", f"import signal; old = signal.getsignal(2)\n{code}\nprint(signal.getsignal(2) is old)")
    assert result == (0, "True\n", "")


def test_run_takes_over_ctrl_c_and_gives_it_to_python():
    """IPython's %run would otherwise leave a shell that Ctrl-C ends."""
    old = signal.signal(signal.SIGINT, signal.SIG_DFL)
    try:
        assert command_line.run(lambda: signal.raise_signal(signal.SIGINT)) == 130
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    finally:
        signal.signal(signal.SIGINT, old)


@posix
@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_signal_in_a_destructor(number, status, capsys):
    """Python ignores what a `__del__` raises, for example that of a progress bar."""

    class Bar:
        def __del__(self) -> None:
            signal.raise_signal(number)

    def work() -> int:
        Bar()
        for _ in range(1000):
            time.sleep(0.01)
        return 0

    hook = sys.unraisablehook
    assert command_line.run(work) == status
    assert sys.unraisablehook is hook
    assert capsys.readouterr().err == ""


def test_other_errors_in_a_destructor_are_still_reported(capsys):
    class Bar:
        def __del__(self) -> None:
            raise KeyError("in a destructor")

    assert command_line.run(lambda: 0 if Bar() else 1) == 0
    assert "KeyError: 'in a destructor'" in capsys.readouterr().err


@pytest.mark.parametrize("encoding", ["idna", "undefined"])
def test_encoding_that_is_not_meant_for_text(encoding, monkeypatch):
    """PYTHONIOENCODING may name any of Python's codecs."""
    for name in ("stdout", "stderr"):
        monkeypatch.setattr(sys, name, io.TextIOWrapper(io.BytesIO(), encoding=encoding, newline="\n"))
    assert command_line.run(lambda: print("é", flush=True) or gpt2.main([])) == 2
    assert sys.stdout.buffer.getvalue().decode() == "é\n"
    assert sys.stderr.buffer.getvalue().startswith(b"gpt2.py: the following arguments are required")


def test_unknown_error_handler_of_stdin(monkeypatch, capsys):
    """Python finds out only when a byte is wrong, with PYTHONIOENCODING=:handler."""
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"\xff\n"), encoding="utf-8", errors="handler"))
    assert command_line.run(lambda: len(sys.stdin.readline())) == 1
    assert "can't decode byte 0xff" in capsys.readouterr().err


# -------------------------------------------------------------------------------------------- utils.py, and all of them


def found(folder: Path) -> str:
    return f"""{folder}: n_vocab 300, n_ctx 17, n_embd 21, n_head 3, n_layer 2
tokenizer: 300 tokens, not OpenAI's files
weights: float32, 28 tensors, 17,829 numbers; all checksums are right
"""


def without_bar(result: Result) -> Result:
    """Return the result without the progress bar, which is redrawn after a carriage return."""
    lines = [line for line in re.split(r"[\r\n]+", result.err) if line and not line.startswith("checking ")]
    return result._replace(err="".join(f"{line}\n" for line in lines))


def test_utils_prints_what_it_found(odd):
    result = run_command("utils.py", "odd", "--models_dir", odd.parent)
    assert without_bar(result) == (0, found(odd), "")


@pytest.mark.parametrize("at", [0, 35_000, -1])
def test_utils_finds_a_flipped_bit(at, damaged):
    folder = damaged()
    data = bytearray((folder / utils.DATA).read_bytes())
    data[at] ^= 1
    (folder / utils.DATA).write_bytes(data)
    run = run_command if at == 0 else run_main
    result = without_bar(run("utils.py", "odd", "--models_dir", folder.parent))
    assert_error(result, 1, "utils.py: ", str(folder / utils.DATA), "checksum of model/")


@pytest.mark.parametrize(
    "args",
    [["gpt2.py"], ["picogpt tokens"], ["picogpt tokens", "a", "b"], ["utils.py"], ["utils.py", "odd", "--n", "1"]],
)
def test_usage_error(args):
    result = run_command(*args)
    assert_error(result, 2, "argument")
    assert result.err.startswith(f"{args[0]}: ")
    assert result.err.endswith("(try --help)\n")


@pytest.mark.parametrize("script", SCRIPTS)
@pytest.mark.parametrize("option", ["-h", "--help"])
def test_help(script, option):
    result = run_command(script, option)
    assert (result.status, result.err) == (0, "")
    name = f"python {'-m ' if script.startswith('picogpt ') else ''}{script}"
    assert result.out.startswith(f"usage: {name} [--help] ")
    assert "examples:" in result.out
    assert result.out.count(f"{name} ") >= 2


def test_help_of_the_package():
    result = run_command("-m", "picogpt", "-h")
    assert (result.status, result.err) == (0, "")
    assert result.out.startswith("usage: python -m picogpt TOOL")
    for name in TOOLS:
        assert f"\n  {name} " in result.out
    assert_error(run_command("-m", "picogpt", "fly", "-h"), 2, "picogpt: 'fly' is not one of", "tokens", "(try --help)")
    assert run_command("-m", "picogpt") == (2, "", result.out)


def test_three_files_are_enough(odd, tmp_path, continued):
    for script in ("gpt2.py", "encoder.py", "utils.py"):
        shutil.copyfile(ROOT / script, tmp_path / script)
    model = [arg if isinstance(arg, str) else arg.resolve() for arg in model_options(odd)]
    run = functools.partial(run_command, cwd=tmp_path)
    assert_text(run("gpt2.py", "ab", *model, "--n_tokens_to_generate", 3), continued("ab", 3), 2)
    assert without_bar(run("utils.py", "odd", *model[:2])) == (0, found(odd.resolve()), "")


@pytest.mark.parametrize(
    ("version", "script"),
    [("3.8", "gpt2.py"), ("3.8", "utils.py"), ("3.9", "gpt2.py"), ("3.9", "utils.py"), ("3.9", "picogpt tokens")],
)
def test_an_older_python_hears_what_it_needs(version, script):
    versions = Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv"), "versions")
    found = [*map(str, versions.glob(f"{version}.*/bin/python")), shutil.which(f"python{version}")]
    if not any(found):
        pytest.skip(f"needs Python {version}")
    words = [next(filter(None, found)), *command(script, "a")[1:]]
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, timeout=60, check=False)
    assert_error(Result(done.returncode, done.stdout, done.stderr), 1, "needs Python 3.10", f"this is Python {version}")


# ---------------------------------------------------------------------------------- notebooks, and the models' folder


class NotebookStream:
    """Like the stdout of IPython's kernel: it has no `reconfigure`, and no file of its own."""

    def __init__(self):
        self.text = ""

    def write(self, text: str) -> int:
        self.text += text
        return len(text)

    def flush(self) -> None:
        pass

    def isatty(self) -> bool:
        return False


def test_run_in_a_notebook(odd, continued, monkeypatch):
    out, err = NotebookStream(), NotebookStream()
    monkeypatch.setattr(sys, "stdout", out)
    monkeypatch.setattr(sys, "stderr", err)
    args = ["ab", "--n_tokens_to_generate", "3", *map(str, model_options(odd))]
    statuses: list[int] = []
    for arguments in (args, ["ab", "--model_size", "no-such-model"]):
        statuses.append(command_line.run(lambda arguments=arguments: gpt2.main(arguments)))
    assert statuses == [0, 1]
    assert out.text == continued("ab", 3) + "\n"
    assert "'no-such-model'" in err.text


@pytest.mark.parametrize("error", [BrokenPipeError, KeyboardInterrupt, SystemExit, OSError])
def test_run_leaves_the_process_as_it_was(error, monkeypatch):
    """After `run`, a notebook goes on with its own streams and signal handlers."""
    monkeypatch.setattr(sys, "stdout", out := NotebookStream())
    monkeypatch.setattr(sys, "stderr", NotebookStream())
    handlers = [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)]
    inside: list[Any] = []

    def fail() -> int:
        inside.append(signal.getsignal(signal.SIGTERM))
        raise error

    assert command_line.run(fail) in (0, 1, 130, 141)
    assert inside[0] not in handlers  # so that SIGTERM removes half-written files
    assert [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)] == handlers
    assert sys.stdout is out


def test_run_redirects_no_file_of_a_notebook(monkeypatch):
    """A script whose stdout breaks points it to the null device. A notebook needs its stdout afterwards."""
    stream = NotebookStream()
    stream.flush = mock.Mock(side_effect=BrokenPipeError)
    monkeypatch.setattr(sys, "stdout", stream)
    with mock.patch("os.dup2") as dup2:
        assert command_line.run(lambda: 0) == 141
    dup2.assert_not_called()


def test_run_outside_of_the_main_thread():
    statuses: list[int] = []
    thread = threading.Thread(target=lambda: statuses.append(command_line.run(lambda: 5)))
    thread.start()
    thread.join(60)
    assert statuses == [5]


def test_models_beside_the_program_are_found_from_any_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert utils.ensure_downloaded("tiny", "models") == ROOT / "models" / "tiny"
    result = run_main("picogpt tokens", "a", "--model_size", "tiny")
    assert result == (0, "    64  'a'\n", "")
    with pytest.raises(FileNotFoundError, match="'tiny'"):
        utils.ensure_downloaded("tiny", tmp_path / "models")  # an absolute folder is meant literally
    with pytest.raises(FileNotFoundError, match=f"{tmp_path / 'models'} or {ROOT / 'models'}, only .*tiny"):
        utils.ensure_downloaded("no-such-model", "models")
    assert list(tmp_path.iterdir()) == []


def test_models_in_the_current_folder_go_first(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "models" / "tiny").mkdir(parents=True)
    assert utils.ensure_downloaded("tiny", "models") == Path("models/tiny")
    assert_error(run_main("gpt2.py", "a", "--model_size", "tiny"), 1, "models", "encoder.json")


@pytest.mark.parametrize("path", ["odd/", "mine/odd", "./mine/odd/", "ABSOLUTE"])
def test_a_model_s_path_is_as_good_as_its_name(path, odd, tmp_path, monkeypatch):
    """A shell completes a name that is typed to a path."""
    monkeypatch.chdir(tmp_path)
    shutil.copytree(odd, "mine/odd")
    monkeypatch.chdir("mine") if path == "odd/" else None
    path = str(tmp_path / "mine" / "odd") if path == "ABSOLUTE" else path
    assert utils.ensure_downloaded(path, "models").samefile(tmp_path / "mine" / "odd")
    assert run_main("utils.py", path).out.startswith(f"{Path(path)}: n_vocab 300, ")
    assert run_main("picogpt tokens", "a", "--model_size", path).status == 0


def test_paths_beside_the_program_are_found_from_any_folder(odd, tmp_path, monkeypatch):
    (tmp_path / "here").mkdir()
    shutil.copytree(odd, tmp_path / "clone" / "mine" / "odd")
    monkeypatch.chdir(tmp_path / "here")
    monkeypatch.setattr(utils, "__file__", str(tmp_path / "clone" / "utils.py"))
    for name, models_dir in (("mine/odd", "models"), ("./mine/odd/", "models"), ("odd", "mine")):
        assert utils.ensure_downloaded(name, models_dir).samefile(tmp_path / "clone" / "mine" / "odd")
    shutil.copytree(odd, "mine/odd")
    assert utils.ensure_downloaded("mine/odd", "models") == Path("mine/odd")  # the current folder goes first
    shutil.copytree(odd, "models/mine/odd")
    assert utils.ensure_downloaded("mine/odd", "models") == Path("models/mine/odd")  # and models_dir before that


@pytest.mark.parametrize(
    "path", ["models/124M", "./124M", "124M/", "../124M", "x/../124M", "/no/such/124M", "./", "x/.."]
)
def test_a_path_is_never_downloaded(path, tmp_path, monkeypatch):
    (tmp_path / "x" / "y").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "x")
    monkeypatch.setattr(utils, "download_gpt2_files", None)
    for words in ([path], [path, "--models_dir", "other"]):
        assert_error(run_main("utils.py", *words), 1, "utils.py: there is no ", repr(path), "can be downloaded")
    assert [entry.name for entry in tmp_path.rglob("*")] == ["x", "y"]


def test_a_path_to_one_of_openai_s_names_must_hold_openai_s_model(odd, tmp_path):
    shutil.copytree(odd, tmp_path / "124M")
    assert_error(run_main("utils.py", f"{tmp_path / '124M'}/"), 1, "are not OpenAI's of 124M")


@pytest.mark.parametrize("word", ["--models-dir", "--models_dir", "--models-d"])
def test_options_may_be_written_with_hyphens(word, odd):
    result = run_main("gpt2.py", "ab", "--model-size=odd", word, odd.parent, "--n-tokens-to-generate", "0")
    assert (result.status, result.out) == (0, "\n")
    assert_error(run_main("gpt2.py", "ab", "--no-such-option"), 2, "unrecognized arguments: --no-such-option")
    assert_error(run_main("gpt2.py", "ab", "--model-size=--no-such"), 1, "there is no model '--no-such'")


@pytest.mark.parametrize("name", ["", "."])
def test_the_folder_of_models_is_no_model(name, odd):
    assert_error(run_main("utils.py", name, "--models_dir", odd.parent), 1, repr(name), "only odd;")


# ----------------------------------------------------------------------------------------------- imports and examples


HEAVY = {"tensorflow", "torch", "jax", "transformers", "requests", "tqdm", "picogpt", "typing_extensions"}


def modules(code: str, *args: Any) -> set[str]:
    """Return the modules that are loaded after some code."""
    result = run_command("-c", f"import sys\n{code}\nprint(*sys.modules, file=sys.stderr)", *args)
    assert result.status == 0, result
    return set(result.err.split())


def test_import_loads_only_numpy():
    loaded_modules = modules("import gpt2")
    assert "numpy" in loaded_modules
    assert not loaded_modules & (HEAVY | {"regex", "encoder", "utils"})


def test_generating_loads_only_what_it_needs(odd):
    args = ["ab", "--n_tokens_to_generate", "3", *model_options(odd)]
    loaded_modules = modules("import gpt2\ngpt2.main(sys.argv[1:])", *args)
    assert {"numpy", "regex", "utils"} <= loaded_modules
    assert not loaded_modules & HEAVY


def test_examples_in_docstrings():
    results = doctest.testmod(utils)
    assert results.attempted >= 8
    assert results.failed == 0


def test_imports_go_one_way():
    assert not modules("import encoder") & (HEAVY | {"numpy", "regex", "gpt2", "utils"})
    assert not modules("import utils") & (HEAVY | {"regex", "gpt2"})


def test_a_python_without_ctypes_runs():
    code = "import runpy, sys; sys.modules['_ctypes'] = None; runpy.run_path('gpt2.py', run_name='__main__')"
    words = [sys.executable, "-c", code, "a", "--model_size", "tiny", "--n_tokens_to_generate", "2"]
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert (done.returncode, "Traceback" in done.stderr) == (0, False), done.stderr
