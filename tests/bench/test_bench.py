"""Tests of the benchmark's arithmetic and of a whole run. Nothing here depends on how fast the machine is."""

from __future__ import annotations

import functools
import importlib.util
import json
import signal
import subprocess
import sys

import numpy as np
import pytest
import tqdm
from helpers import ROOT, assert_error, run_main

import gpt2
from picogpt import command_line
from picogpt.bench import command, output, peers, timing
from picogpt.checkpoints.writing import initial_params

TINY = ["--model_size", "tiny", "--models_dir", str(ROOT / "models"), "--rounds", "1"]
SMALLEST = {"n_vocab": 300, "n_ctx": 20, "n_embd": 8, "n_head": 2, "n_layer": 3}


def test_a_token_reads_every_matrix_once():
    weights = timing.weights_per_token(initial_params(SMALLEST, 0))
    assert sum(w.nbytes for w in weights) == (3 * 12 * 8 * 8 + 300 * 8) * 4


def test_a_prompt_costs_the_products_of_the_definition():
    n, flop = 20, 0
    for _ in range(SMALLEST["n_layer"]):
        for position in range(n):
            flop += 2 * (8 * 24 + 8 * 8 + 8 * 32 + 32 * 8)
            flop += 2 * 2 * 8 * (position + 1)  # the scores of the positions it sees, and their values
    assert timing.prompt_flop(initial_params(SMALLEST, 0), n) == flop + 2 * 8 * 300


def test_samples_cost_what_each_step_and_sample_adds():
    n_samples, n_past, n_steps, n_bytes, flop = 5, 7, 3, 0, 0
    weights = 3 * (8 * 24 + 8 * 8 + 8 * 32 + 32 * 8) + 8 * 300  # three layers, and wte
    for step in range(n_steps):
        n_bytes += 4 * weights  # once for all samples
        for _ in range(n_samples):
            keys = 3 * 8 * (n_past + step + 1)  # three layers with n_embd = 8
            n_bytes += 4 * 2 * keys  # and as many values
            flop += 2 * weights
            flop += 2 * keys + 2 * keys  # queries with keys, and probabilities with values
    assert timing.samples_cost(initial_params(SMALLEST, 0), n_samples, n_past, n_steps) == (n_bytes, flop)


@pytest.mark.parametrize(("n_ctx", "n_prompt", "n_steps"), [(40, 10, 8), (14, 10, 4), (6, 5, 1)])
def test_only_the_steps_of_samples_are_timed(n_ctx, n_prompt, n_steps, monkeypatch):
    """The prompt and the first id of each sample come before the clock starts."""
    events = []
    forward, choose = gpt2.gpt2, gpt2.sample

    def noted_forward(ids, *args, n_past=0, **kwargs):
        events.append((np.shape(ids), n_past))
        return forward(ids, *args, n_past=n_past, **kwargs)

    def noted_choice(*args, temperature, **kwargs):
        events.append(temperature)
        return choose(*args, temperature=temperature, **kwargs)

    def noted_seconds(work):
        events.append("start")
        work()
        events.append("stop")
        return 1.5

    monkeypatch.setattr(gpt2, "gpt2", noted_forward)
    monkeypatch.setattr(gpt2, "sample", noted_choice)
    monkeypatch.setattr(timing, "seconds", noted_seconds)
    work = timing.Workload(initial_params(SMALLEST | {"n_ctx": n_ctx}, 0), n_head=2).samples(3)
    steps = [event for n in range(n_prompt, n_prompt + n_steps) for event in [((3, 1), n), 0.9, 0.9, 0.9]]
    for _ in range(2):  # every round does all of it again
        events.clear()
        assert work.ours() == 1.5
        assert events == [((1, n_prompt), 0), 0.9, 0.9, 0.9, "start", *steps, "stop"]
    assert work.amount == 3 * n_steps


def test_a_limit_is_the_time_of_the_work_at_its_speed(monkeypatch):
    monkeypatch.setattr(timing, "SIDE", 16)
    monkeypatch.setattr(timing, "seconds", lambda work: 0.25 if work().ndim == 1 else 0.5)  # the vector, the matrix
    params = initial_params(SMALLEST, 0)
    workload = timing.Workload(params, n_head=2)
    n_bytes, flop = timing.samples_cost(params, 16, 10, 8)
    limits = workload.samples(16).limits
    assert limits["bandwidth"]() == pytest.approx(0.25 * n_bytes / workload.limits.matrix.nbytes)
    assert limits["sgemm"]() == pytest.approx(0.5 * flop / (16 * 16 * (16 + 16)))
    one, _ = timing.samples_cost(params, 1, 10, 8)  # weights, keys and values
    assert workload.decode(10).limits["bandwidth"]() == pytest.approx(0.25 * one / workload.limits.matrix.nbytes)
    assert workload.prompt(20).limits["sgemm"]() == pytest.approx(0.5 * timing.prompt_flop(params, 20) / 8192)


def test_every_round_computes_its_positions_again():
    """The context would skip positions that it holds already, and the benchmark would measure nothing."""
    workload = timing.Workload(initial_params(SMALLEST | {"n_ctx": 40}, 0), n_head=2)
    computed = []
    logits = workload.context.logits

    def counted(ids):
        held = len(workload.context.ids)
        common = next((i for i in range(min(held, len(ids) - 1)) if workload.context.ids[i] != ids[i]), held)
        computed.append(len(ids) - min(common, len(ids) - 1))
        return logits(ids)

    workload.context.logits = counted
    decode, prompt = workload.decode(10), workload.prompt(30)
    decode.ours()
    assert computed == [11, 1, 1, 1, 1, 1, 1, 1]  # the first round also takes the ten before, and is not counted
    computed.clear()
    for _ in range(2):
        decode.ours()
    assert computed == [1] * 16
    computed.clear()
    prompt.ours()
    prompt.ours()
    assert computed == [30, 30]


@pytest.fixture
def little_work(monkeypatch, tmp_path):
    """Make texts short and the limit's matrices small, and return the options that choose a short English text."""
    monkeypatch.setattr(timing, "SIDE", 256)
    mixed = command.mixed_languages()[:5000]
    monkeypatch.setattr(command, "mixed_languages", lambda: mixed)
    monkeypatch.setattr(command, "N_LETTERS", 10_000)
    path = tmp_path / "text.txt"
    path.write_text("To be, or not to be, that is the question. " * 50, encoding="utf-8")
    return [*TINY, "--text", str(path)]


@pytest.fixture
def bars(monkeypatch):
    """Return a list to which each progress bar is added."""
    made = []

    class Bar(tqdm.tqdm):
        def __init__(self, *args, **kwargs):
            super().__init__(*args, **kwargs | {"disable": False})  # a disabled bar doesn't count
            made.append(self)

    monkeypatch.setattr(tqdm, "tqdm", Bar)
    return made


def test_a_run_on_the_bundled_model(little_work, tmp_path, capsys, bars):
    assert command.main([*little_work, "--json", str(tmp_path / "figures.json")]) == 0
    rows = {row["name"]: row for row in json.loads((tmp_path / "figures.json").read_text())}
    assert {"decode after 10 tokens", "prompt of 64", "tokenizer, English", "detokenizer, mixed languages"} <= set(rows)
    for n in (4, 16, 64):
        row = rows[f"{n} samples side by side"]
        assert row["share"] > 0
        assert row["limit"] in ("bandwidth", "sgemm")
    assert [bar.n for bar in bars] == [bar.total for bar in bars] == [2 + 1 + 2 + 3 + 3]
    assert ("peak memory" in rows) == (sys.platform != "win32")
    printed = capsys.readouterr().out
    *table, written = printed.splitlines()
    assert max(map(len, table)) <= 80
    figures = tmp_path / "figures.json"
    assert written == f"{figures}: {figures.stat().st_size:,} bytes"
    assert printed.splitlines()[0].endswith(", 1 round")
    for name, row in rows.items():
        assert 0 < row["low"] <= row["median"] <= row["high"], name
        assert "ratio" not in row
        assert name in printed


@pytest.mark.slow
def test_peers(little_work, tmp_path, capsys, monkeypatch, bars):
    for name in ("torch", "transformers", "safetensors", "tiktoken", "tokenizers"):
        pytest.importorskip(name)
    run_once = functools.cache(lambda *command: run_process(command))  # starting PyTorch takes seconds each time
    run_process = peers.run_process
    monkeypatch.setattr(peers, "run_process", lambda command: run_once(*command))
    start, servers = peers.Server.start, []
    monkeypatch.setattr(peers.Server, "start", lambda self: servers.append(self.name) or start(self))
    figures = tmp_path / "figures.json"
    assert command.main([*little_work, "--peers", "--json", str(figures)]) == 0
    rows = {row["name"]: row for row in json.loads(figures.read_text())}
    has_ctranslate2 = importlib.util.find_spec("ctranslate2") is not None
    ctranslate2 = ["decode after 10 tokens", "prompt of 64", "4 samples side by side", "64 samples side by side"]
    for name in (
        *(f"{name}: CTranslate2" for name in ctranslate2 if has_ctranslate2),
        "process start to first text: transformers",
        "whole command, 40 tokens: without a cache",
        "peak memory: transformers",
        "decode after 10 tokens: transformers",
        "decode after 10 tokens: without a cache",
        "prompt of 64: transformers",
        "4 samples side by side: transformers",
        "64 samples side by side: transformers",
        "tokenizer, mixed languages: tiktoken",
        "tokenizer, English: tokenizers",
    ):
        assert rows[name]["ratio"] > 0, name
    assert servers == ["transformers", "CTranslate2"][: 1 + has_ctranslate2]
    assert [bar.n for bar in bars] == [bar.total for bar in bars]
    lines = capsys.readouterr().out.splitlines()[:-1]  # the last one names the file
    assert max(map(len, lines)) <= 80
    (at,) = [i for i, line in enumerate(lines) if line.startswith("prompt of 64 ")]
    assert lines[at + 1].startswith("  transformers ")
    assert lines[at + 1].endswith(f"ours {rows['prompt of 64: transformers']['ratio']:.2f}x as fast")


def test_shares_and_ratios_are_medians_of_the_rounds():
    """The median of each round's own ratio, so that it does not matter if the machine is slow for a while."""
    work = timing.Work("w", "MB/s", 6, float, {"the limit": float}, {"theirs": float})
    times = {"ours": [1.0, 2.0, 3.0], "the limit": [0.5, 1.0, 0.75], "theirs": [2.0, 8.0, 9.0]}
    ours, theirs = timing.rows_of(work, times)
    assert ours == {"name": "w", "median": 3, "low": 2, "high": 6, "unit": "MB/s", "share": 0.5, "limit": "the limit"}
    assert theirs == {"name": "w: theirs", "median": 0.75, "low": 6 / 9, "high": 3, "unit": "MB/s", "ratio": 3}


def test_the_slowest_limit_of_each_round_counts_and_the_largest_median_is_named():
    work = timing.Work("w", "s", 1, float, {"a": float, "b": float})
    (row,) = timing.rows_of(work, {"ours": [4.0, 4.0, 10.0], "a": [1.0, 3.0, 1.0], "b": [2.0, 2.0, 6.0]})
    assert (row["share"], row["limit"]) == (0.6, "b")  # of 2/4, 3/4 and 6/10


@pytest.mark.parametrize(("limit", "named"), [(0.5, True), (1.0, True), (1.09, True), (1.11, False), (16.84, False)])
def test_what_does_not_limit_the_work_is_not_named_as_its_limit(limit, named):
    (row,) = timing.rows_of(timing.Work("w", "s", 1, float, {"a": float}), {"ours": [1.0], "a": [limit]})
    assert ("share" in row) == ("limit" in row) == named
    assert ("%" in output.line(row)) == named


def test_works_take_turns_and_the_first_round_does_not_count():
    calls = []
    clocks = {name: (lambda name=name: calls.append(name) or len(calls)) for name in ("a", "b")}
    assert timing.in_turn(2, clocks) == {"a": [3, 5], "b": [4, 6]}
    assert calls == ["a", "b"] * 3


def test_the_memory_of_a_process_does_not_include_its_parent_s():
    if sys.platform == "win32":
        pytest.skip("Windows has no wait4")
    held = np.ones(40 << 20, np.uint8)  # noqa: F841
    small = peers.run_process([sys.executable, "-c", "print(1)"])
    large = peers.run_process([sys.executable, "-c", "x = b'1' * (60 << 20); print(1)"])
    assert small.memory < 30
    assert 60 < large.memory < 90
    assert 0 < small.first <= small.whole


def test_the_error_of_a_failed_process_is_passed_on():
    with pytest.raises(ValueError, match=r"ended with status 3: .*no such thing"):
        peers.run_process([sys.executable, "-c", "import sys; sys.stderr.write('no such thing'); sys.exit(3)"])


def test_a_file_that_can_not_be_written_is_refused_before_the_work(tmp_path):
    with pytest.raises(FileNotFoundError, match="is no folder to write"):
        command.main(["--model_size", "tiny", "--json", str(tmp_path / "missing" / "figures.json")])


def test_a_missing_library_is_named_before_the_work(monkeypatch):
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "transformers" else find(name))
    monkeypatch.setattr(command, "bench", None)
    with pytest.raises(OSError, match=r"transformers.* (is|are) not installed: pip install .*transformers"):
        command.main([*TINY, "--peers"])


# ---------------------------------------------------------------------------- said before the work, and row by row


def test_what_does_not_fit_into_the_free_memory_is_refused_before_the_work(monkeypatch, tmp_path):
    monkeypatch.setattr(command_line, "free_memory", lambda: 50_000_000)
    monkeypatch.setattr(command, "Workload", None)
    monkeypatch.setattr(command, "write_random_model", None)
    monkeypatch.setattr(command, "require", lambda *modules: None)
    out = tmp_path / "figures.json"
    message = "of memory, but only 50 MB are free"
    assert_error(run_main("picogpt bench", *TINY, "--peers", "--json", out), 2, "measuring the other programs", message)
    words = ["--shape", "124M", "--json", out]
    assert_error(run_main("picogpt bench", *words), 2, "drawing random weights in the shape of 124M", message)
    assert not list(tmp_path.iterdir())


VALUES = [1e-7, 9.9e-4, 0.00999, 0.09999, 0.9999, 1.0, 9.999, 99.49, 99.96, 123.4, 9999.5, 12345.6, 99_999.4, 123_456.0]


@pytest.mark.parametrize("low", VALUES)
def test_every_row_fits_80_columns(low):
    names = [
        f"one word of {command.N_LETTERS:,} letters",
        "detokenizer, mixed languages",
        "limit: matrix-vector product",
    ]
    for high in (value for value in VALUES if value >= low):
        row = {"low": low, "median": high, "high": high}
        for name in names:
            with_limit = row | {"name": name, "unit": "tokens/s", "share": 9.99, "limit": "start + read"}
            peer = row | {"name": f"{name}: without a cache", "unit": "tokens/s", "ratio": 999.99}
            assert len(output.line(with_limit)) <= 80, output.line(with_limit)
            assert len(output.line(peer)) <= 80, output.line(peer)
            assert output.line(with_limit).index("tokens/s") == output.line(peer).index("tokens/s") == 37
    assert float(output.short(low).replace("k", "e3")) == pytest.approx(low, rel=0.1)


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no SIGINT for one process")
def test_an_interruption_keeps_the_rows_that_are_there(little_work, tmp_path):
    """Each row is printed when it is measured. The file of --json is written whole, at the end, or not at all."""
    words = [*little_work, "--rounds", "1000", "--json", str(tmp_path / "figures.json")]
    code = "import sys; from picogpt.bench import command, timing; from picogpt.command_line import run; "
    code += "timing.SIDE = 64; command.measure_command = lambda *args: [timing.summary('first row', [1.0], 's')]; "
    code += "sys.exit(run(command.main))"
    pipe = subprocess.PIPE
    with subprocess.Popen(
        [sys.executable, "-c", code, *words], cwd=ROOT, stdout=pipe, stderr=pipe, text=True
    ) as process:
        lines = [process.stdout.readline() for _ in range(3)]
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert lines[2].startswith("first row ")
    assert "Traceback" not in err
    assert [path.name for path in tmp_path.iterdir()] == ["text.txt"]


def test_an_output_is_no_input():
    assert_error(
        run_main("picogpt bench", "--json", "x.txt", "--text", "x.txt", "--force"), 2, "is also a file to read"
    )
