"""The probabilities of generated tokens: `generate --show_probs` and `--logprobs`."""

from __future__ import annotations

import functools
import itertools
import json
import math
import os
import signal
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers import (
    ENVIRONMENT,
    ODD,
    ROOT,
    SMALL,
    Result,
    assert_error,
    command,
    model_options,
    random_params,
    run_main,
    their_logits,
    transformers_model,
)

import gpt2
from encoder import END_OF_TEXT, Encoder
from picogpt import command_line, generate, generate_batch, probabilities, score
from picogpt.batch import generate_sliding
from picogpt.checkpoints.writing import write_random_model
from picogpt.options import sampling_settings
from picogpt.probabilities import PLAIN, TOP, Recorder, Token, examined, likeliest, table
from picogpt.terminal_text import n_columns
from utils import load_encoder_hparams_and_params

NAME = "picogpt generate"
TINY = ["--model_size", "tiny", "--models_dir", ROOT / "models"]
SAMPLED = ["--temperature", 0.9, "--seed", 3]


@pytest.fixture(scope="module")
def tiny() -> tuple[Encoder, dict[str, int], Any]:
    return load_encoder_hparams_and_params("tiny", ROOT / "models")


def lines_of(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def run(path: Path, *args: Any, prompt: str = "ROMEO:", model: Any = TINY) -> tuple[Result, list[dict[str, Any]]]:
    """Run the tool with --logprobs. Return its result and the objects in the file."""
    result = run_main(NAME, prompt, *model, *args, "--logprobs", path)
    assert result.status == 0, result
    return result, lines_of(path)


# ------------------------------------------------------------------------------------------------------ the numbers


@pytest.mark.parametrize("settings", [{}, {"temperature": 0.7, "top_k": 9, "top_p": 0.9, "repetition_penalty": 1.3}])
def test_the_figures_equal_those_of_transformers(settings):
    """On random weights. The other program reads the whole text at once, and has its own softmax and its own order."""
    torch = pytest.importorskip("torch")
    params = random_params(SMALL)
    choose = functools.partial(gpt2.sample, rng=np.random.default_rng(4), **settings)
    recorder = Recorder(choose, PLAIN | settings)
    new = list(gpt2.generate([3, 1, 4], params, 3, 14, recorder))
    logits = torch.tensor(their_logits(transformers_model(params, SMALL, "float32"), [3, 1, 4, *new])[2:-1])
    log_probs = torch.log_softmax(logits.double(), -1)
    assert [token.id for token in recorder.tokens] == new
    for row, token in zip(log_probs, recorder.tokens):
        assert token.log_prob == pytest.approx(float(row[token.id]), abs=2e-5)
        assert token.rank == 1 + int((row > row[token.id]).sum())
        values, ids = torch.topk(row, TOP + 1)
        assert [id for id, _ in token.top] == ids.tolist()
        assert [log_prob for _, log_prob in token.top] == pytest.approx(values.tolist(), abs=2e-5)
    drawn = [token.sampling_prob for token in recorder.tokens]
    if not settings:
        assert drawn == [math.exp(token.log_prob) for token in recorder.tokens]
        return
    for i, (row, p) in enumerate(zip(logits, drawn)):
        assert p == pytest.approx(their_warped(row, [3, 1, 4, *new][: i + 3], settings)[new[i]], abs=2e-5)


def their_warped(row: Any, ids: list[int], settings: dict[str, float]) -> list[float]:
    """Return the distribution that transformers would draw from. It scores repetitions first, as we do."""
    import torch
    from transformers import generation

    scores, before = row[None].double(), torch.tensor([ids])
    for process in (
        generation.RepetitionPenaltyLogitsProcessor(settings["repetition_penalty"]),
        generation.TemperatureLogitsWarper(settings["temperature"]),
        generation.TopKLogitsWarper(int(settings["top_k"])),
        generation.TopPLogitsWarper(settings["top_p"]),
    ):
        scores = process(before, scores)
    return torch.softmax(scores, -1)[0].tolist()


@pytest.mark.parametrize(
    "more", [[], ["--n_samples", 5], ["--n_samples", 5, "--batch_size", 2], ["--repetition_penalty", 2]]
)
def test_the_log_probabilities_are_those_of_score(more, tiny, tmp_path):
    encoder, hparams, params = tiny
    _, entries = run(tmp_path / "a.jsonl", "-n", 30, *SAMPLED, *more)
    samples = {n: list(group) for n, group in itertools.groupby(entries, lambda entry: entry["sample"])}
    assert list(samples) == list(range(1, 6 if "--n_samples" in more else 2))
    prompt = encoder.encode("ROMEO:")
    for found in samples.values():
        ids = prompt + [entry["id"] for entry in found]
        expected = score(ids, params, hparams["n_head"])[-30:]
        assert [entry["logprob"] for entry in found] == pytest.approx(expected.tolist(), abs=1e-4)


def test_beyond_the_context_each_token_has_the_context_that_it_was_drawn_with():
    params, seen = random_params(SMALL), []  # a context of 17

    def choose(logits: Any, ids: list[int]) -> int:
        seen.append(list(ids))
        return gpt2.greedy(logits, ids)

    recorder = Recorder(choose, PLAIN | {"temperature": 0})
    list(generate_sliding([1, 2, 3], params, 3, 40, recorder))
    assert len(recorder.tokens) == 40
    for ids, token in zip(seen, recorder.tokens):
        probs = gpt2.softmax(gpt2.gpt2(ids, **params, n_head=3)[-1].astype(np.float64))
        assert math.exp(token.log_prob) == pytest.approx(probs[token.id], rel=1e-4)


def test_samples_side_by_side_are_kept_apart():
    params = random_params(SMALL, np.float64)
    alone = [Recorder(functools.partial(gpt2.sample, rng=np.random.default_rng(i)), PLAIN) for i in range(5)]
    batch = [Recorder(functools.partial(gpt2.sample, rng=np.random.default_rng(i)), PLAIN) for i in range(5)]
    for recorder in alone:
        list(gpt2.generate([5, 9], params, 3, 12, recorder))
    list(generate_batch([5, 9], params, 3, 12, batch, lambda ids: ids[-1] % 4 == 0, 3))
    for one, other in zip(alone, batch):
        n = len(other.tokens)
        assert n == next((i for i, token in enumerate(one.tokens, 1) if token.id % 4 == 0), 12)
        for a, b in zip(one.tokens[:n], other.tokens):
            assert (a.id, a.rank, [id for id, _ in a.top]) == (b.id, b.rank, [id for id, _ in b.top])
            assert a.log_prob == pytest.approx(b.log_prob, abs=1e-9)


def test_no_second_pass_and_the_same_text(tmp_path, monkeypatch):
    forward, calls = gpt2.gpt2, []
    monkeypatch.setattr(gpt2, "gpt2", lambda *args, **kwargs: calls.append(1) or forward(*args, **kwargs))
    plain = run_main(NAME, "ROMEO:", *TINY, "-n", 20, *SAMPLED)
    n_plain = len(calls)
    result, entries = run(tmp_path / "a.jsonl", "-n", 20, *SAMPLED, "--show_probs")
    assert (result.out, len(calls)) == (plain.out, 2 * n_plain)
    assert b"".join(bytes(entry["bytes"]) for entry in entries).decode() + "\n" == plain.out


@pytest.mark.parametrize(
    ("settings", "id", "expected"),
    [
        ({}, 1, 1 / 4),
        ({"temperature": 0}, 0, 1),
        ({"temperature": 0, "repetition_penalty": 2}, 0, 1),
        ({"temperature": 0.5}, 1, 2 / 11),  # 1/16 of 1/4 + 1/16 + 1/64 + 1/64
        ({"top_k": 3}, 1, 2 / 7),
        ({"top_k": 1}, 0, 1),
        ({"repetition_penalty": 3}, 1, 128 / 449),  # of 1/2 + 1/4 + 1/8 + 1/512
    ],
)
def test_the_probability_with_which_a_token_was_drawn(settings, id, expected):
    """The model's own probabilities are 1/2, 1/4, 1/8 and 1/8, and the last token occurs in the text before."""
    logits = np.log(np.array([0.5, 0.25, 0.125, 0.125], np.float32))
    token = examined(id, logits, [3], PLAIN | settings)
    assert token.sampling_prob == pytest.approx(expected, rel=1e-6)
    assert token.log_prob == pytest.approx(math.log(0.25 if id else 0.5), rel=1e-6)


def test_equal_logits_rank_by_their_ids():
    logits = np.array([1, 5, 5, 0, 5], np.float32)
    tokens = [examined(id, logits, [], PLAIN) for id in range(5)]
    assert [token.rank for token in tokens] == [4, 1, 2, 5, 3]
    assert [id for id, _ in tokens[0].top] == [1, 2, 4, 0, 3]
    assert likeliest(logits, 2).tolist() == [1, 2]


def test_very_unlikely_tokens_have_finite_logarithms():
    token = examined(0, np.array([-3000, 3000], np.float32), [], PLAIN)
    assert (token.log_prob, token.sampling_prob) == (-6000, 0)


# ------------------------------------------------------------------------------------------------- the lines of JSON


def test_a_line_has_these_fields(tmp_path, tiny):
    encoder = tiny[0]
    _, entries = run(tmp_path / "a.jsonl", "-n", 3, *SAMPLED)
    for entry in entries:
        assert list(entry) == ["sample", "id", "token", "bytes", "logprob", "rank", "sampling_prob", "top_logprobs"]
        assert len(entry["top_logprobs"]) == TOP
        assert all(list(other) == ["id", "token", "bytes", "logprob"] for other in entry["top_logprobs"])
        for one in (entry, *entry["top_logprobs"]):
            assert encoder.decode([one["id"]]) == one["token"]
            assert encoder.token_bytes(one["id"]) == bytes(one["bytes"])
        if entry["rank"] <= TOP:
            assert entry["top_logprobs"][entry["rank"] - 1]["id"] == entry["id"]
        falling = [other["logprob"] for other in entry["top_logprobs"]]
        assert falling == sorted(falling, reverse=True)


def test_parts_of_a_character(odd, loaded, tmp_path, monkeypatch):
    """The file has the bytes of each part, and the table names the character that they make."""
    encoder, n_new = loaded[0], len("é漢".encode())
    script = encoder.encode("é漢")
    assert len(script) == n_new
    monkeypatch.setattr(gpt2, "sample", lambda logits, ids, rng, **settings: script[len(ids) - 1])
    result, entries = run(tmp_path / "a.jsonl", "-n", n_new, "--show_probs", prompt="a", model=model_options(odd))
    assert result.out == "é漢\n"
    assert [entry["token"] for entry in entries] == ["\ufffd"] * n_new
    assert bytes(byte for entry in entries for byte in entry["bytes"]) == "é漢".encode()
    rows = result.err.splitlines()[2:]
    assert [row[6:12].rstrip() for row in rows] == ["é 1/2", "é 2/2", "漢 1/3", "漢 2/3", "漢 3/3"]


@pytest.mark.parametrize("n", [1, 2])
def test_the_tokens_that_end_a_text_are_there(n, tmp_path, monkeypatch):
    """A text ends before --stop and <|endoftext|>, which the model has made nevertheless."""
    (tmp_path / "documents").mkdir()
    write_random_model(tmp_path / "documents", ODD | {"n_vocab": 257}, seed=5)
    encoder, _, _ = load_encoder_hparams_and_params("documents", tmp_path)
    script = [*encoder.encode("xy"), encoder.encoder[END_OF_TEXT], *encoder.encode("z")]
    monkeypatch.setattr(gpt2, "sample", lambda logits, ids, rng, **settings: script[len(ids) - 1])
    model = [*model_options(tmp_path / "documents"), "--n_samples", n, "-n", 4]
    for i, (options, tokens, text) in enumerate(
        [
            (["--end_of_text"], ["x", "y", END_OF_TEXT], "xy"),
            (["--stop", "y"], ["x", "y"], "x"),
            ([], ["x", "y", END_OF_TEXT, "z"], f"xy{END_OF_TEXT}z"),
        ]
    ):
        result, entries = run(tmp_path / f"{i}.jsonl", *options, prompt="a", model=model)
        assert [entry["token"] for entry in entries] == tokens * n
        assert result.out.count(f"{text}\n") == n


def test_no_tokens_are_no_lines(tmp_path):
    result, entries = run(tmp_path / "a.jsonl", "-n", 0, "--show_probs")
    assert (result.out, result.err, entries) == ("\n", "", [])


# --------------------------------------------------------------------------------------------------------- the table


def table_of(*args: Any) -> list[str]:
    result = run_main(NAME, "ROMEO:", *TINY, *args, "--show_probs")
    assert result.status == 0, result
    lines = result.err.splitlines()
    return lines[next(i for i, line in enumerate(lines) if line.startswith("   #")) :]


def test_the_table_says_what_the_file_says(tmp_path):
    result, entries = run(tmp_path / "a.jsonl", "-n", 9, "--temperature", 0.5, "--seed", 1, "--show_probs")
    header, *rows = result.err.splitlines()[1:]
    assert header.split() == ["#", "token", "prob.", "drawn", "rank", "likeliest", "others"]
    assert len(rows) == 9
    for i, (row, entry) in enumerate(zip(rows, entries), 1):
        assert int(row[:4]) == i
        assert row[6:24].rstrip() == entry["token"].replace(" ", "·").replace("\n", "\\n")
        prob, drawn, rank = row[24:32], row[32:40], row[40:47]
        for text, p in ((prob, math.exp(entry["logprob"])), (drawn, entry["sampling_prob"])):
            assert float(text.strip(" <%")) == pytest.approx(100 * p, abs=0.11)
        assert int(rank) == entry["rank"]
        others = [other for other in entry["top_logprobs"] if other["id"] != entry["id"]]
        shown = others[0]["token"].replace(" ", "·").replace("\n", "\\n")
        assert row[47:].split()[0] == shown
        assert float(row[47:].split()[1].strip("<")) == pytest.approx(100 * math.exp(others[0]["logprob"]), abs=0.11)


def test_the_column_drawn_is_there_only_where_it_says_something():
    assert "drawn" in table_of("-n", 2, "--temperature", 0.5)[0]
    assert "drawn" in table_of("-n", 2, "--temperature", 1, "--top_k", 5)[0]
    assert "drawn" not in table_of("-n", 2, "--temperature", 1)[0]
    assert "drawn" not in table_of("-n", 2)[0]  # greedy: each token was certain


def test_each_sample_has_a_table_after_its_text():
    result = run_main(NAME, "ROMEO:", *TINY, *SAMPLED, "-n", 4, "--n_samples", 3, "--show_probs")
    headers = [line for line in result.err.splitlines() if line.startswith("   #")]
    assert [header.split()[1:5] for header in headers] == [["token", "of", "sample", str(n)] for n in (1, 2, 3)]
    assert result.out == run_main(NAME, "ROMEO:", *TINY, *SAMPLED, "-n", 4, "--n_samples", 3).out


@pytest.mark.parametrize("width", [60, 80, 120])
def test_the_table_fits_the_terminal(width, tiny):
    encoder, hparams, params = tiny
    recorder = Recorder(functools.partial(gpt2.sample, rng=np.random.default_rng(1), temperature=3), PLAIN)
    list(gpt2.generate(encoder.encode("x"), params, hparams["n_head"], 100, recorder))
    for name in ("token", "token of sample 12"):
        lines = list(table(name, recorder.tokens, encoder, width, True))
        assert max(map(n_columns, lines)) <= max(width, n_columns(lines[0]))
    assert max(map(n_columns, lines)) > width - 20


def test_nothing_of_a_token_steers_the_terminal(loaded):
    encoder = loaded[0]
    ids = encoder.encode("\x1b[2J\u202e")
    tokens = [Token(id, -1.0, 1, 1.0, [(other, -2.0) for other in ids]) for id in ids]
    text = "".join(table("token", tokens, encoder, 80, True))
    assert text.isprintable()


# --------------------------------------------------------------------------------------- files, errors, interruptions


def test_no_file_is_replaced_without_force(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text("mine", encoding="utf-8")
    refused = run_main(NAME, "a", "--models_dir", tmp_path, "--logprobs", path)  # before any download
    assert_error(refused, 1, "a.jsonl exists already: choose another name, or replace it with --force")
    assert path.read_text(encoding="utf-8") == "mine"
    run(path, "-n", 2, "--force")
    nowhere = run_main(NAME, "a", "--models_dir", tmp_path, "--logprobs", tmp_path / "no" / "a.jsonl")
    assert_error(nowhere, 1, "is no folder to write a.jsonl to")


def test_they_belong_to_one_prompt(tmp_path):
    for option in (["--show_probs"], ["--logprobs", tmp_path / "a.jsonl"]):
        refused = run_main(NAME, "--prompts", "x", "--out", tmp_path / "b", *option)
        assert_error(refused, 2, f"argument {option[0]}: it continues one prompt, not --prompts")
    assert_error(run_main(NAME, "a", "--force"), 2, "argument --force: it belongs to --prompts and --logprobs")


def interrupted(monkeypatch: pytest.MonkeyPatch, error: BaseException, after: int) -> None:
    forward, calls = gpt2.gpt2, []

    def stopping(*args: Any, **kwargs: Any) -> Any:
        calls.append(1)
        if len(calls) > after:
            raise error
        return forward(*args, **kwargs)

    monkeypatch.setattr(gpt2, "gpt2", stopping)


def test_ctrl_c_keeps_the_tokens_that_are_there(monkeypatch, tmp_path):
    whole, entries = run(tmp_path / "whole.jsonl", "-n", 9, *SAMPLED)
    interrupted(monkeypatch, KeyboardInterrupt(), 4)
    words = ["ROMEO:", *TINY, "-n", 9, *SAMPLED, "--show_probs", "--logprobs", tmp_path / "part.jsonl"]
    result = run_main(NAME, *words)
    assert result.status == 130
    assert result.err.count("\n") == 1 + 4
    assert lines_of(tmp_path / "part.jsonl") == entries[:4]
    assert whole.out.startswith(result.out)


@pytest.mark.parametrize("old", [None, "old"])
def test_ctrl_c_before_the_first_token_leaves_the_file_as_it_was(monkeypatch, tmp_path, old):
    path = tmp_path / "a.jsonl"
    if old:
        path.write_text(old, encoding="utf-8")
    interrupted(monkeypatch, KeyboardInterrupt(), 0)
    assert run_main(NAME, "ROMEO:", *TINY, "--logprobs", path, "--force").status == 130
    assert [file.read_text(encoding="utf-8") for file in tmp_path.iterdir()] == ([old] if old else [])


def test_ctrl_c_keeps_the_tokens_of_the_samples_that_were_printed(monkeypatch, tmp_path):
    _, entries = run(tmp_path / "whole.jsonl", "-n", 5, "--n_samples", 8, *SAMPLED)
    interrupted(
        monkeypatch, KeyboardInterrupt(), 15
    )  # the prompt, four steps for each of two batches, some of the third
    options = ["-n", 5, "--n_samples", 8, "--batch_size", 2, *SAMPLED, "--logprobs", tmp_path / "part.jsonl"]
    assert run_main(NAME, "ROMEO:", *TINY, *options).status == 130
    ids = [(entry["sample"], entry["id"]) for entry in lines_of(tmp_path / "part.jsonl")]
    assert ids == [(entry["sample"], entry["id"]) for entry in entries[: 6 * 5]]


@pytest.mark.parametrize(
    ("error", "status"), [(FloatingPointError("x"), 1), (BrokenPipeError(), 141), (SystemExit(143), 143)]
)
def test_an_error_leaves_no_file(error, status, monkeypatch, tmp_path):
    interrupted(monkeypatch, error, 4)
    result = run_main(NAME, "ROMEO:", *TINY, *SAMPLED, "--logprobs", tmp_path / "a.jsonl")
    assert result.status == status
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(os.name != "posix", reason="needs POSIX signals")
def test_ctrl_c_in_a_process(tmp_path):
    heed = functools.partial(signal.signal, signal.SIGINT, signal.SIG_DFL)
    words = command(NAME, "ROMEO:", *TINY, "--slide", "-n", 10**6, "--logprobs", tmp_path / "a.jsonl")
    settings = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "env": ENVIRONMENT, "preexec_fn": heed}
    with subprocess.Popen(words, cwd=ROOT, bufsize=0, **settings) as process:
        try:
            first = process.stdout.read(20)
            process.send_signal(signal.SIGINT)
            rest, err = process.communicate(timeout=60)
        finally:
            process.kill()
    assert (process.returncode, err) == (130, b"")
    assert [path.name for path in tmp_path.iterdir()] == ["a.jsonl"]
    assert b"".join(bytes(entry["bytes"]) for entry in lines_of(tmp_path / "a.jsonl")).startswith(first + rest)


def test_settings_reach_the_report():
    args = generate.parse_args(["a", "--temperature", "0.5", "--top_k", "3", "--show_probs"])
    report = probabilities.Report(args, None)
    assert report.settings == sampling_settings(args) == PLAIN | {"temperature": 0.5, "top_k": 3}
    assert command_line.Parser.model == "124M"
