"""Test what training refuses before the work begins: texts, outputs and settings that can't be."""

from __future__ import annotations

import contextlib
import os
import sys
import threading
from pathlib import Path

import pytest
from helpers import assert_error, run_main
from runs import SETTINGS

from picogpt import options
from picogpt.checkpoints.writing import tokenizer_of, write_tokenizer
from picogpt.command_line import UsageError, read_text
from picogpt.train import command
from picogpt.train.text import encode_texts, train_merges


@pytest.mark.skipif(sys.platform == "win32", reason="links of POSIX")
@pytest.mark.parametrize("name", ["link", "loop", "."])
def test_a_name_that_no_folder_can_have_is_refused_before_the_work(train, text, tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "link").symlink_to("nowhere")
    (tmp_path / "loop").symlink_to("loop")
    with pytest.raises(FileExistsError, match="exists already"):
        train(out=name)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["link", "loop", "text.txt"]


def test_a_plot_that_is_a_folder_is_refused_before_the_work(train, text, tmp_path):
    (tmp_path / "loss.png").mkdir()
    with pytest.raises(FileExistsError, match="loss.png is a folder"):
        train("--plot", tmp_path / "loss.png")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["loss.png", "text.txt"]


@pytest.mark.skipif(not Path("/dev/zero").exists(), reason="a device of POSIX")
@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="a pipe with a name")
def test_a_text_from_a_pipe(text, tmp_path):
    """The shell makes such a pipe for <(cat TEXT)."""
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    expected, results = text.read_text(encoding="utf-8") * 100, []

    def write() -> None:
        with contextlib.suppress(BrokenPipeError):  # the reader stops at its limit
            pipe.write_text(expected, encoding="utf-8")

    for megabytes in (2, 1):
        writer = threading.Thread(target=write, daemon=True)
        writer.start()
        with contextlib.suppress(UsageError):
            results.append(read_text(pipe, megabytes))
        writer.join()
    assert len(expected) > 1 << 20
    assert results == [expected]


def test_a_text_too_short_for_the_context(train, tmp_path):
    (tmp_path / "short.txt").write_text("too short")
    with pytest.raises(ValueError, match="pairs for only 26. tokens, not --n_vocab 280: lower it"):
        train(text=tmp_path / "short.txt")
    (tmp_path / "poor.txt").write_text("ab" * 400)
    with pytest.raises(ValueError, match="pairs for only .* tokens, not --n_vocab 280: lower it"):
        train(text=tmp_path / "poor.txt")
    (tmp_path / "few.txt").write_text("the cat and the hat " * 9)
    with pytest.raises(ValueError, match="held-out part of the text has .* tokens, but needs at least n_ctx . 1 = 17"):
        train("--n_vocab", 262, text=tmp_path / "few.txt")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["few.txt", "poor.txt", "short.txt", "text.txt"]


@pytest.mark.parametrize(
    ("plot", "words"), [("missing/loss.png", "missing is no folder"), ("a.pdf", "not end in .png")]
)
def test_an_unwritable_plot_is_an_error_before_the_work_begins(train, text, tmp_path, plot, words):
    with pytest.raises((OSError, ValueError), match=words):
        train("--plot", tmp_path / plot)
    assert [path.name for path in tmp_path.iterdir()] == ["text.txt"]


def test_documents_are_separated_by_the_token(tmp_path):
    pytest.importorskip("tokenizers")
    documents = "the cat sat on the mat and the hat", "that is the end of it all"
    merges = train_merges("<|endoftext|>".join(documents * 3), 265)
    assert merges == train_merges("\n".join(documents * 3), 265)  # none of the token's letters
    write_tokenizer(tmp_path, tokenizer_of(merges))
    text = "<|endoftext|>".join(documents)
    encoder, (first, _) = encode_texts(4, tmp_path, (text, documents[0]))
    assert first.ids.tolist() == [*encoder.encode(documents[0]), 264, *encoder.encode(documents[1])]
    n = len(first.ids)
    encode_texts(n - 1, tmp_path, (text, text))
    with pytest.raises(ValueError, match=f"to train on has {n} tokens, but needs at least n_ctx . 1 = {n + 1}"):
        encode_texts(n, tmp_path, (text, text))


def test_a_seed_that_is_too_large(tmp_path):
    result = run_main("picogpt train", "t.txt", "--out", tmp_path / "m", "--seed", 2**63)
    assert_error(result, 2, "argument --seed: '9223372036854775808' is not a whole number")


def test_a_text_that_is_not_utf8(train, tmp_path):
    (tmp_path / "bytes.txt").write_bytes(b"abc\xff")
    with pytest.raises(ValueError, match="bytes.txt is not UTF-8: byte 3 is 0xff"):
        train(text=tmp_path / "bytes.txt")


def test_an_existing_folder_is_never_overwritten(train, text, tmp_path):
    (tmp_path / "m").mkdir()
    with pytest.raises(FileExistsError, match="exists already"):
        train()
    with pytest.raises(FileNotFoundError, match="nothing to resume"):
        train("--resume", out=tmp_path / "other")


@pytest.mark.parametrize(
    ("missing", "message"),
    [
        ("tokenizers", "tokenizers is not installed: pip install tokenizers"),
        ("jax optax", "jax and optax are not installed: pip install jax optax"),
        ("optax matplotlib tensorflow", "optax, matplotlib and tensorflow are not installed: pip install optax matp"),
    ],
)
def test_missing_packages_are_named_at_once(text, tmp_path, monkeypatch, missing, message):
    monkeypatch.setattr(options.importlib.util, "find_spec", lambda name: None if name in missing.split() else object())
    words = [str(text), "--out", str(tmp_path / "m"), *SETTINGS, "--meta", "--plot", str(tmp_path / "loss.png")]
    with pytest.raises(OSError, match=message):
        command.main(words)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--n_head", "5"], "n_embd = 12 is not a multiple of 5"),
        (["--n_vocab", "200"], "200 is less than the 256 bytes"),
        (["--dropout", "1"], "at most 0.9"),
    ],
)
def test_impossible_settings(text, tmp_path, arguments, message):
    assert_error(run_main("picogpt train", text, "--out", tmp_path / "m", *SETTINGS, *arguments), 2, message)
