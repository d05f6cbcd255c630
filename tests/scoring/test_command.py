"""`python -m picogpt score`: its table and files against arithmetic, and one line for every wrong input."""

from __future__ import annotations

import ast
import csv
import doctest
import errno
import json
import math
import os
import re
import shutil
import sys
import threading
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from helpers import ROOT, assert_error, model_options, run_command, run_main, shared

from picogpt import files, score
from picogpt.scoring import command, reading, results
from picogpt.scoring.results import Summary, short, table
from picogpt.terminal_text import in_context, n_columns
from utils import DATA, load_encoder_hparams_and_params

TINY = ["--model_size", "tiny", "--models_dir", ROOT / "models"]
TEXT = "Good morrow, cousin — what news?\r\nNone, my lord; but that the wörld's grown honest.\n"
N_CTX = 256


@pytest.fixture(scope="module")
def tiny():
    return load_encoder_hparams_and_params("tiny", ROOT / "models")


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "text.txt"
    path.write_bytes(TEXT.encode("utf-8"))
    return path


def log_probs(tiny, text, bos=True, **settings):
    encoder, hparams, params = tiny
    ids = ([encoder.encoder["<|endoftext|>"]] if bos else []) + encoder.encode(text)
    return score(ids, params, hparams["n_head"], **settings)


def rows(out):
    """Return {name: [tokens, words, bytes, nats, bits per byte, perplexity per token, per word]} of the table."""
    lines = out.splitlines()
    start = next(i for i, line in enumerate(lines) if line.split() == ["text", *results.COLUMNS])
    parts = [line.rsplit(maxsplit=7) for line in lines[start + 1 :]]
    return {name.rstrip(): [float(text.replace(">1000000", "inf")) for text in texts] for name, *texts in parts}


def test_a_row_has_the_figures_of_its_text(tiny, file):
    result = run_main("picogpt score", file, *TINY)
    assert (result.status, result.err) == (0, "")
    expected = log_probs(tiny, TEXT)
    nats = -expected.sum()
    figures = [
        len(expected),
        15,
        87,
        nats,
        nats / math.log(2) / 87,
        math.exp(nats / len(expected)),
        math.inf,  # it is above a million
    ]
    assert math.exp(nats / 15) > 1e6
    assert rows(result.out)[str(file)] == pytest.approx(figures, rel=1e-3)


@pytest.mark.parametrize("settings", [{}, {"stride": 1}, {"stride": 5, "max_context": 12}, {"max_context": 3}])
@pytest.mark.parametrize("bos", [True, False])
def test_every_option_reaches_the_scores(tiny, file, bos, settings, tmp_path):
    options = [word for name, value in settings.items() for word in (f"--{name}", value)] + ["--no_bos"] * (not bos)
    out = tmp_path / "scores.json"
    assert run_main("picogpt score", file, *TINY, *options, "--json", out).status == 0
    (entry,) = json.loads(out.read_text(encoding="utf-8"))["texts"]
    assert entry["log_probs"][1:] == pytest.approx(log_probs(tiny, TEXT, bos, **settings).tolist(), rel=1e-5)


def test_several_files_have_a_total(tiny, file, tmp_path):
    other = tmp_path / "other.txt"
    other.write_text("Alas, poor soul!")
    both = rows(run_main("picogpt score", file, other, *TINY).out)
    one, two, total = both[str(file)], both[str(other)], both["total"]
    assert total[:4] == pytest.approx([a + b for a, b in zip(one[:4], two[:4])], abs=0.011)
    assert total[5] == pytest.approx(math.exp(total[3] / total[0]), rel=1e-3)
    assert list(both) == [str(file), str(other), "total"]


def test_tokens_json_and_csv_say_the_same(tiny, file, tmp_path):
    a, b = tmp_path / "scores.json", tmp_path / "scores.csv"
    result = run_main("picogpt score", file, *TINY, "--tokens", "--json", a, "--csv", b)
    encoder = tiny[0]
    whole = json.loads(a.read_text(encoding="utf-8"))
    (entry,) = whole["texts"]
    assert whole["total"] == {name: entry[name] for name in whole["total"]}
    assert encoder.decode(entry["ids"][1:]) == TEXT
    assert entry["ids"][0] == encoder.encoder["<|endoftext|>"]
    assert (entry["log_probs"][0], entry["ranks"][0]) == (None, None)
    assert entry["log_probs"][1:] == pytest.approx(log_probs(tiny, TEXT).tolist())
    assert -sum(entry["log_probs"][1:]) == pytest.approx(entry["nats"])
    lines = result.out.splitlines()[1 : 1 + len(entry["ids"])]
    with open(b, encoding="utf-8", newline="") as opened:
        table = list(csv.DictReader(opened))
    assert [int(row["id"]) for row in table] == entry["ids"] == [int(line.split()[0]) for line in lines]
    assert [int(row["position"]) for row in table] == list(range(len(table)))
    assert [int(row["rank"] or 0) for row in table] == [rank or 0 for rank in entry["ranks"]]
    assert [row["rank"] or "-" for row in table] == [line.split()[2] for line in lines]
    shown = in_context([encoder.token_bytes(id) for id in entry["ids"]])
    for row, line, name, log_prob in zip(table[1:], lines[1:], shown[1:], entry["log_probs"][1:]):
        assert float(row["log_prob"]) == log_prob
        assert float(line.split()[1]) == pytest.approx(log_prob, abs=5e-5)
        assert line[25:] == name
        token = ast.literal_eval(row["token"])
        assert encoder.token_bytes(int(row["id"])) == (token if isinstance(token, bytes) else token.encode())
    assert {"b'\\xe2'", "b'\\x80'", "b'\\x94'"} & {row["token"] for row in table}  # parts of the dash
    assert any(name.startswith("— ") for name in shown)


def test_a_field_of_json_lines(tiny, tmp_path):
    path = tmp_path / "lines.jsonl"
    lines = '{"text": "To be", "id": 1}\n\n{"id": 2, "text": "or not\\n to be"}\n'
    path.write_text(lines, encoding="utf-8-sig")  # with a byte order mark
    both = rows(run_main("picogpt score", path, "--jsonl", "text", *TINY).out)
    assert list(both) == [f"{path}:1", f"{path}:3", "total"]
    assert both[f"{path}:3"][3] == pytest.approx(-log_probs(tiny, "or not\n to be").sum(), abs=0.01)


def test_a_record_is_a_line_and_its_text_stays_as_it_is(tmp_path):
    texts = ["  blanks at both ends \n", "a line\u2028separator", "x\x85y\rz"]
    first, second, third = (json.dumps({"text": text}, ensure_ascii=False) for text in texts)
    (tmp_path / "a.jsonl").write_text(f"{first}\n{second}\n\n{third}", encoding="utf-8", newline="")
    found = reading.read_texts([str(tmp_path / "a.jsonl")], "text")
    assert [text for _, text in found] == texts
    assert [place.rpartition(":")[2] for place, _ in found] == ["1", "2", "4"]


def test_standard_input_and_a_pipe(tiny, file, tmp_path):
    from_stdin = rows(run_command("picogpt score", "-", *TINY, stdin=TEXT.encode("utf-8")).out)["-"]
    assert from_stdin == rows(run_main("picogpt score", file, *TINY).out)[str(file)]
    if hasattr(os, "mkfifo"):
        os.mkfifo(tmp_path / "pipe")
        writer = threading.Thread(target=(tmp_path / "pipe").write_bytes, args=(TEXT.encode("utf-8"),))
        writer.start()
        assert rows(run_main("picogpt score", tmp_path / "pipe", *TINY).out)[str(tmp_path / "pipe")] == from_stdin
        writer.join()


WRONG = {
    "an empty file": (b"", [], "is empty"),
    "not UTF-8": (b"abc\xff", [], "is not UTF-8: byte 3 is 0xff"),
    "one token without bos": (b"a", ["--no_bos"], "has only one token"),
    "no JSON": (b'{"text": "a"}\n{text}\n', ["--jsonl", "text"], "text.txt:2: not JSON"),
    "no object": (b"[1]\n", ["--jsonl", "text"], "text.txt:1: not a JSON object"),
    "a missing field": (b'{"txt": "a"}\n', ["--jsonl", "text"], "not a JSON object with a text in the field 'text'"),
    "a field of another type": (b'{"text": 5}\n', ["--jsonl", "text"], "text.txt:1: not a JSON object with a text"),
    "an empty field": (b'{"text": ""}\n', ["--jsonl", "text"], "text.txt:1 is empty"),
    "half a character": (b'{"text": "\\ud800"}\n', ["--jsonl", "text"], "text.txt:1: character 0 of the text is a"),
    "no record": (b"\n\n", ["--jsonl", "text"], "text.txt is empty"),
    "a stride beyond the window": (b"abc", ["--stride", 9, "--max_context", 8], "max_context is 8 and stride is 9"),
    "a window beyond the model": (b"abc", ["--max_context", 257], "max_context is 257 and stride is 257, but"),
    "a window of one token": (b"abc", ["--max_context", 1], "--max_context: '1' is not a whole number at least 2"),
    "a mark and nothing else": (b"\xef\xbb\xbf\n", ["--jsonl", "text"], "text.txt is empty: it has no record"),
    "a stride of zero": (b"abc", ["--stride", 0], "--stride: '0' is not a whole number at least 1"),
}  # fmt: skip


@pytest.mark.parametrize("name", WRONG)
def test_wrong_input_is_one_line(name, file):
    data, options, message = WRONG[name]
    file.write_bytes(data)
    assert_error(run_main("picogpt score", file, *TINY, *options), 2, message)


def test_a_model_without_end_of_text(damaged, file):
    folder = damaged()
    vocabulary = json.loads((folder / "encoder.json").read_text(encoding="utf-8"))
    assert "<|endoftext|>" in vocabulary
    renamed = {"x" * 9 if token == "<|endoftext|>" else token: id for token, id in vocabulary.items()}
    (folder / "encoder.json").write_text(json.dumps(renamed), encoding="utf-8")
    result = run_main("picogpt score", file, *model_options(folder))
    assert (result.status, result.out) == (2, "")
    assert (
        f"the vocabulary of {folder} has no <|endoftext|> to put before a text: leave it out with --no_bos"
        in result.err
    )
    assert run_main("picogpt score", file, *model_options(folder), "--no_bos").status == 0


@pytest.mark.parametrize("option", ["--json", "--csv"])
def test_no_file_is_replaced_without_force(option, file, tmp_path):
    mine = tmp_path / "mine"
    mine.write_text("precious")
    assert_error(run_main("picogpt score", file, *TINY, option, mine), 1, str(mine), "exists already", "--force")
    assert mine.read_text() == "precious"
    assert run_main("picogpt score", file, *TINY, option, mine, "--force").status == 0
    assert mine.read_text() != "precious"


@pytest.mark.parametrize("option", ["--json", "--csv"])
def test_no_input_is_replaced_even_with_force(option, file, tmp_path):
    (tmp_path / "link").symlink_to(file)
    for words in ([file, option, file], [file, option, tmp_path / "link"], [tmp_path / "link", option, file]):
        result = run_main("picogpt score", *words, "--force", *TINY)
        assert_error(result, 2, f"argument {option}: {words[2]} is also a file to read")
    assert file.read_bytes() == TEXT.encode("utf-8")
    new = tmp_path / "new"
    (tmp_path / "new_link").symlink_to(new)
    result = run_main("picogpt score", file, *TINY, "--json", new, "--csv", tmp_path / "new_link")
    assert_error(result, 2, "argument --csv:", "is also the file of --json")


def test_files_are_looked_at_before_a_model_is_downloaded(file, tmp_path, monkeypatch):
    def download(args):
        raise AssertionError("the model came first")

    monkeypatch.setattr(command, "open_model", download)
    with pytest.raises(AssertionError):
        run_main("picogpt score", file)
    (tmp_path / "empty").touch()
    assert_error(run_main("picogpt score", file, tmp_path / "none"), 1, "none: No such file")
    assert_error(run_main("picogpt score", tmp_path), 1, "Is a directory")
    assert_error(run_main("picogpt score", file, "--json", file.parent), 1, "is a folder")
    assert_error(run_main("picogpt score", file, "--csv", tmp_path / "empty"), 1, "exists already")
    assert_error(run_main("picogpt score", file, tmp_path / "empty"), 2, "empty is empty: it has no token")
    assert_error(run_main("picogpt score", file, "--jsonl", "text"), 2, "text.txt:1: not JSON")


def test_standard_input_is_called_so_and_is_read_once():
    assert_error(run_main("picogpt score", "-", *TINY), 2, "standard input is empty: it has no token to score")
    assert_error(run_main("picogpt score", "-", *TINY, "--no_bos", stdin=b"a"), 2, "standard input has only one token")
    assert_error(run_main("picogpt score", "-", *TINY, "--jsonl", "x"), 2, "standard input is empty: it has no record")
    assert_error(run_main("picogpt score", "-", "-", *TINY, stdin=b"a"), 2, "- is there twice")


def test_the_examples_in_the_docstrings_of_reading():
    assert doctest.testmod(reading) == (0, 2)


def test_summaries_of_nothing_and_of_too_much():
    empty = Summary.of(" \n", [-1.0])
    assert math.isnan(empty.perplexity(empty.words))
    assert Summary(1, 1, 1, 1, 1e6).perplexity(1) == math.inf
    assert [short(x) for x in (math.nan, math.inf, 999_999.99, 999_999.999)] == [
        "-",
        ">1000000",
        "999999.99",
        ">1000000",
    ]
    assert results.finite(empty.figures())["perplexity per word"] is None
    assert np.isclose(Summary.of("abcd", [-math.log(2)] * 8).bits_per_byte, 2)


def test_names_come_first_and_are_cut_in_their_middle():
    """Only as far as the terminal's width asks for it: none in a file, and every name keeps 12 columns."""
    long = "books/ulysses/chapter-01.txt"
    summaries = [(long, Summary(5495, 1432, 9100, 9164, 48654.42)), ("你好.txt", Summary(1, 1, 3, 9, 1.5))]
    whole = table(summaries, None)
    assert [line.split()[0] for line in whole] == ["text", long, "你好.txt"]
    assert whole[1].split()[1:] == ["5495", "1432", "9164", "48654.42", "7.6597", "7004.50", ">1000000"]
    assert len({n_columns(line) for line in whole}) == 1
    for width in (40, 72, 80, 81, 85, 120):
        lines = table(summaries, width)
        assert [line.split()[1:] for line in lines] == [line.split()[1:] for line in whole]
        assert {n_columns(line) for line in lines} == {min(max(width, 69), n_columns(whole[0]))}
        name = lines[1].split()[0]
        begin, _, end = name.partition("…")
        assert long.startswith(begin)
        assert long.endswith(end)
        assert ("…" in name) == (width < n_columns(whole[0]))


@pytest.mark.parametrize("is_terminal", [True, False])
def test_only_a_terminal_gets_a_name_that_is_cut(is_terminal, tmp_path, monkeypatch):
    path = tmp_path / f"{'a' * 100}.txt"
    path.write_text("To be, or not to be", encoding="utf-8")
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setattr(command, "sys", SimpleNamespace(stdout=SimpleNamespace(isatty=lambda: is_terminal)))
    out = run_main("picogpt score", path, *TINY).out
    assert (str(path) in out) != is_terminal
    assert (max(map(len, out.splitlines())) <= 80) == is_terminal


def test_names_cannot_steer_the_terminal(tmp_path):
    path = tmp_path / "\x1b[2J.txt"
    path.write_text("a")
    result = run_main("picogpt score", path, *TINY, "--tokens")
    assert "\x1b" not in result.out
    assert r"\x1b[2J.txt" in result.out


@pytest.mark.slow
def test_held_out_shakespeare_has_1_511_nats_per_character(tmp_path):
    text = shared("text/tinyshakespeare.txt").read_text(encoding="utf-8")
    held_out = tmp_path / "held_out.txt"
    held_out.write_text(text[round(len(text) * 0.9) :], encoding="utf-8", newline="\n")
    (figures,) = rows(run_main("picogpt score", held_out, *TINY, "--no_bos").out).values()
    assert figures[3] / len(text[round(len(text) * 0.9) :]) == pytest.approx(1.5107, abs=5e-5)


def test_two_models_in_one_table(tmp_path):
    (tmp_path / "a.txt").write_text("To be, or not to be", encoding="utf-8")
    (tmp_path / "b.txt").write_text("What light through yonder window breaks?", encoding="utf-8")
    other = tmp_path / "other"
    shutil.copytree(ROOT / "models" / "tiny", other)
    data = bytearray((other / DATA).read_bytes())
    data[3] ^= 0x80  # the sign of a weight
    (other / DATA).write_bytes(data)
    files = tmp_path / "a.txt", tmp_path / "b.txt"
    alone = [rows(run_main("picogpt score", *files, "-m", name).out) for name in ("tiny", other)]
    both = run_main("picogpt score", *files, "-m", f"tiny,{other}", "--results", tmp_path / "results")
    for name, lines in zip(("tiny", other), alone):
        for text in (*files, "total"):
            assert lines[text if text == "total" else str(text)] == rows(both.out)[f"{text}, {name}"]
    assert list(rows(both.out)) == [f"{text}, {name}" for text in (*files, "total") for name in ("tiny", other)]
    places = {path.name for path in (tmp_path / "results").iterdir()}
    assert places == {"tiny", re.sub(r"\W+", "-", str(other)).strip("-")}
    refused = run_main("picogpt score", *files, "-m", "tiny,tiny", "--json", tmp_path / "x.json")
    assert_error(refused, 2, "--json, --csv and --tokens are for one model")


def test_a_full_disk_loses_no_table_and_names_its_file(tmp_path, monkeypatch):
    def full(*args):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    alone = run_main("picogpt score", ROOT / "LICENSE", "-m", "tiny")
    monkeypatch.setattr(command, "write_csv", full)
    words = ["--json", tmp_path / "a.json", "--csv", tmp_path / "a.csv"]
    result = run_main("picogpt score", ROOT / "LICENSE", "-m", "tiny", *words)
    assert (result.status, result.out) == (1, alone.out)
    assert result.err == f"picogpt score: {tmp_path / 'a.csv'}: {os.strerror(errno.ENOSPC)}\n"
    assert [path.name for path in tmp_path.iterdir()] == ["a.json"]


def test_the_file_that_describes_the_results_is_no_output(tmp_path):
    words = ["--results", tmp_path, "--json", tmp_path / "run.json", "--force"]
    assert_error(
        run_main("picogpt score", ROOT / "LICENSE", "-m", "tiny", *words), 2, "--json: ", "is also a file to read"
    )


def test_a_folder_that_can_not_be_written_to_is_refused_before_the_work(tmp_path, monkeypatch):
    monkeypatch.setattr(files.os, "access", lambda path, mode: path != tmp_path.resolve())
    monkeypatch.setattr(command, "open_model", None)
    for option in ("--json", "--csv"):
        result = run_main("picogpt score", ROOT / "LICENSE", "-m", "tiny", option, tmp_path / "a")
        assert_error(result, 1, f"{tmp_path / 'a'}: its folder can't be written to")


@pytest.mark.skipif(sys.platform != "linux", reason="other systems have no such names")
def test_the_name_of_a_text_may_be_no_utf_8(tmp_path):
    name = os.fsdecode(os.fsencode(tmp_path) + b"/a\xff.txt")
    Path(name).write_text("To be, or not to be", encoding="utf-8")
    words = ["--json", tmp_path / "a.json", "--csv", tmp_path / "a.csv"]
    assert run_main("picogpt score", name, "-m", "tiny", *words).status == 0
    assert json.loads((tmp_path / "a.json").read_text(encoding="utf-8"))["texts"][0]["text"] == name
    assert r"/a\udcff.txt,1," in (tmp_path / "a.csv").read_text(encoding="utf-8")
