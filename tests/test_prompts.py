"""`generate --prompts`: each line of a file is continued, whatever stands beside it, and whoever is killed."""

from __future__ import annotations

import doctest
import io
import json
import re
import shutil
import signal
import subprocess
from collections import Counter

import numpy as np
import pytest
from clusters import Cluster, files_in, half_way, wait_for
from helpers import ENVIRONMENT, ROOT, assert_error, command, decoded, run_command, run_main

import gpt2
from encoder import END_OF_TEXT
from picogpt import continuation
from picogpt.prompts import command as prompts_command
from picogpt.prompts import shards, work
from utils import load_encoder_hparams_and_params

TINY = ["--model_size", "tiny", "--models_dir", ROOT / "models"]
SETTINGS = [*TINY, "-n", 12, "--temperature", 0.9, "--top_p", 0.95, "--seed", 3]
PROMPTS = ["ROMEO:", "", "The king", "ROMEO:", "JULIET:\nO, Ünïcödé 漢字 🙂", "", "What", "ROMEO:\u2028"]


def write(path, prompts, field="prompt"):
    path.write_text("".join(json.dumps({"id": 7, field: prompt}) + "\n" for prompt in prompts), encoding="utf-8")
    return path


def generate(file, out, *words):
    return run_main("picogpt generate", "--prompts", file, "--out", out, *SETTINGS, *words)


def read(out):
    """Return the records of a file of texts, which is UTF-8 with a JSON object on each line."""
    return [json.loads(line) for line in out.read_bytes().decode("utf-8").removesuffix("\n").split("\n")]


def texts_of(folder, prompts, *words, name="out.jsonl"):
    """Return the texts that continue some prompts, by line and sample."""
    (out := folder / name).unlink(missing_ok=True)
    result = generate(write(folder / "in.jsonl", prompts), out, *words)
    assert (result.status, result.out) == (0, ""), result
    assert sorted(path.name for path in folder.iterdir() if path.is_dir()) == []
    return {(record["line"], record["sample"]): record["text"] for record in read(out)}


@pytest.fixture(scope="module")
def tiny():
    return load_encoder_hparams_and_params("tiny", ROOT / "models")


@pytest.fixture(scope="module")
def ids_alone(tiny):
    """Return the ids of three samples of each prompt, made one by one, with the race of `draw` written out anew."""
    encoder, hparams, params = tiny
    n_head, new = hparams["n_head"], {}
    for line, prompt in enumerate(PROMPTS, 1):
        for sample in (1, 2, 3):
            rng = np.random.default_rng(np.random.SeedSequence(3, spawn_key=(line, sample)))

            def choose(logits, ids, rng=rng):
                p = gpt2.token_probs(logits, ids, 0.9, 0, 0.95, 1.0)
                times = rng.standard_exponential(len(p))
                return min(np.flatnonzero(p), key=lambda id: times[id] / p[id])

            ids = encoder.encode(prompt) or [encoder.encoder[END_OF_TEXT]]
            new[line, sample] = list(gpt2.generate(ids, params, n_head, 12, choose))
    return new


@pytest.fixture(scope="module")
def alone(tiny, ids_alone):
    texts = {key: tiny[0].decode(ids) for key, ids in ids_alone.items()}
    assert len(set(texts.values())) == len(texts)
    return texts


@pytest.fixture
def small_shards(monkeypatch):
    """Let a shard have at most three texts, and return a list that gets the texts of each that is made here."""
    monkeypatch.setattr(shards.cut, "__defaults__", (3,))
    made, original = [], work.continue_rows

    def counted(shard, *args):
        made.append([(row.line, row.sample) for row in shard.rows])
        return original(shard, *args)

    monkeypatch.setattr(prompts_command, "continue_rows", counted)
    return made


# ------------------------------------------------------------------------------------------------------- the texts


def test_each_record_has_its_line_sample_prompt_text_end_and_length(tmp_path, alone):
    out = tmp_path / "out.jsonl"
    assert generate(write(tmp_path / "in.jsonl", PROMPTS), out, "--n_samples", 3).status == 0
    expected = [
        {"line": line, "sample": sample, "prompt": PROMPTS[line - 1], "text": text, "ended": False, "length": 12}
        for (line, sample), text in alone.items()
    ]
    assert read(out) == expected
    assert list(read(out)[0]) == list(expected[0])
    assert "漢字 🙂" in out.read_text(encoding="utf-8")


def test_a_text_depends_on_the_seed_and_its_line_only(tmp_path, alone):
    one = {key: text for key, text in alone.items() if key[1] == 1}
    assert texts_of(tmp_path, PROMPTS) == one
    assert texts_of(tmp_path, PROMPTS, "--n_samples", 3, "--batch_size", 2) == alone
    others = texts_of(tmp_path, [prompt if line in (3, 4) else "Nobody" for line, prompt in enumerate(PROMPTS, 1)])
    assert {line for line, sample in one if others[line, 1] == one[line, 1]} == {3, 4}
    assert texts_of(tmp_path, PROMPTS[:1]) == {(1, 1): one[1, 1]}
    assert not set(texts_of(tmp_path, PROMPTS, "--seed", 4).values()) & set(one.values())


def test_a_text_does_not_depend_on_how_the_work_is_cut_or_in_which_order_it_is_done(
    tmp_path, alone, small_shards, monkeypatch
):
    assert texts_of(tmp_path, PROMPTS, "--n_samples", 3) == alone
    assert [len(shard) for shard in small_shards] == [3, 3, 3, 3, 3, 3, 3, 3]
    forwards = small_shards.copy()
    small_shards.clear()
    monkeypatch.setattr(shards.Shards, "__iter__", lambda self: iter(list(self.texts)[::-1]))
    assert texts_of(tmp_path, PROMPTS, "--n_samples", 3) == alone
    assert small_shards == forwards[::-1]


@pytest.mark.parametrize("stop", [" th", ",", "\n"])
def test_texts_end_at_the_stop_text(tmp_path, tiny, ids_alone, stop):
    encoder, n_ended = tiny[0], 0
    texts_of(tmp_path, PROMPTS, "--n_samples", 3, "--stop", stop)
    for record in read(tmp_path / "out.jsonl"):
        ids = ids_alone[record["line"], record["sample"]]
        lengths = [n for n in range(1, 13) if stop in encoder.decode(ids[:n])]
        assert record["text"] == encoder.decode(ids).partition(stop)[0]
        assert (record["ended"], record["length"]) == (bool(lengths), min(lengths, default=12))
        n_ended += record["ended"]
    assert 0 < n_ended < len(ids_alone)


def test_texts_end_at_end_of_text(tmp_path, tiny, ids_alone, monkeypatch):
    """A comma takes its part, which `tiny` does not know."""
    encoder, n_ended = tiny[0], 0
    (comma,) = encoder.encode(",")
    monkeypatch.setattr(prompts_command, "last_id", lambda encoder, args: comma if args.end_of_text else None)
    texts_of(tmp_path, PROMPTS, "--n_samples", 3, "--end_of_text")
    for record in read(tmp_path / "out.jsonl"):
        ids = ids_alone[record["line"], record["sample"]]
        n = ids.index(comma) if comma in ids else 12
        assert record["text"] == encoder.decode(ids[:n])
        assert (record["ended"], record["length"]) == (comma in ids, min(n + 1, 12))
        n_ended += record["ended"]
    assert 0 < n_ended < len(ids_alone)


def test_greedy_texts_are_those_of_the_command_for_one(tmp_path):
    texts = texts_of(tmp_path, PROMPTS[:3], "--temperature", 0, "--top_p", 1)
    for line, prompt in enumerate(PROMPTS[:3], 1):
        one = run_main("picogpt generate", prompt, *TINY, "-n", 12)
        assert one.out == texts[line, 1] + "\n"


def test_no_tokens_and_another_field(tmp_path):
    out = tmp_path / "out.jsonl"
    assert generate(write(tmp_path / "in.jsonl", PROMPTS[:2], "text"), out, "--field", "text", "-n", 0).status == 0
    assert [(record["text"], record["length"], record["ended"]) for record in read(out)] == [("", 0, False)] * 2


def test_special_tokens_are_text_unless_they_are_allowed(tmp_path, tiny):
    plain = texts_of(tmp_path, [END_OF_TEXT])
    allowed = texts_of(tmp_path, [END_OF_TEXT], "--allow_special")
    assert allowed == texts_of(tmp_path, [""]) != plain


# ------------------------------------------------------------------------------------------------ drawing, and batches


def test_the_examples_run():
    assert doctest.testmod(shards) == (0, 1)


def test_a_draw_has_the_probabilities_of_sample(rng):
    """A chi-square test of 20,000 draws. 27.9 is the 99.9 % quantile with 9 degrees of freedom."""
    logits, settings = rng.standard_normal(40).astype(np.float32), {"temperature": 0.8, "top_k": 10}
    p = gpt2.token_probs(logits, [3, 5], 0.8, 10, 1.0, 1.3)
    drawn = Counter(continuation.draw(logits, [3, 5], rng, **settings, repetition_penalty=1.3) for _ in range(20_000))
    (ids,) = np.nonzero(p)
    assert set(drawn) <= set(ids.tolist())
    assert len(ids) == 10
    assert sum((drawn[id] - 20_000 * p[id]) ** 2 / (20_000 * p[id]) for id in ids) < 27.9


def test_rounding_changes_a_draw_far_more_rarely_than_a_sample(rng):
    """Of 4,000 tokens, with logits that differ by as much as those of another batch, and 100 times as much."""
    changed = Counter()
    for seed in range(4000):
        logits = rng.standard_normal(1024).astype(np.float32) * 3
        other = logits + (rng.standard_normal(1024) * 1e-4).astype(np.float32)
        for choose in (gpt2.sample, continuation.draw):
            a, b = (choose(x, [], np.random.default_rng(seed), temperature=1.0) for x in (logits, other))
            changed[choose.__name__] += a != b
    assert changed["draw"] <= 3
    assert changed["sample"] > 10 * max(1, changed["draw"])


def test_ids_are_made_when_a_shard_is_asked_for():
    asked = []
    cut = dict(enumerate(shards.cut([1] * 200, 2)))
    all_shards = shards.Shards(cut, ["a"] * 200, 2, None, lambda prompt: asked.append(prompt) or [1])
    numbers = iter(all_shards.items())
    assert asked == []
    number, shard = next(numbers)
    assert (number, len(shard.rows), len(asked)) == (0, 64, 32)
    assert len(all_shards) == 7
    assert [row[:2] for _, shard in all_shards.items() for row in shard.rows] == [
        (line, sample) for line in range(1, 201) for sample in (1, 2)
    ]


def test_fewer_texts_are_made_at_once_where_memory_is_short(tiny, monkeypatch):
    encoder, hparams, params = tiny
    row = continuation.row_bytes(params, hparams["n_head"], 13)
    shard = work.Shard(work.Request(12, 3, {}, None, "", 4), [work.Row(line, 1, [5]) for line in range(1, 6)])
    sizes = []
    original = work.batch.generate_each
    monkeypatch.setattr(work.batch, "generate_each", lambda *args: sizes.append(args[-1]) or original(*args))
    texts = []
    for free in (100 * row, 3 * row, row - 1):
        monkeypatch.setattr(continuation, "free_memory", lambda free=free: free)
        texts.append(work.continue_rows(shard, params, hparams["n_head"], encoder))
    assert sizes == [4, 3, 1]
    assert texts[0] == texts[1] == texts[2]
    assert [len(text) for text in texts[0]] == [12] * 5


# --------------------------------------------------------------------------------------------------------- going on


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def interrupted(monkeypatch, file, out, *words, after=3):
    """Make the texts up to a shard, at which Ctrl-C comes. Return the result of the command."""
    n_made, original = [], prompts_command.continue_rows

    def stopped(*args):
        if len(n_made) == after:
            raise KeyboardInterrupt
        n_made.append(1)
        return original(*args)

    with monkeypatch.context() as patch:
        patch.setattr(prompts_command, "continue_rows", stopped)
        result = generate(file, out, *words)
    assert result.status == 130
    assert not out.exists()
    return result


def test_a_second_run_makes_only_what_is_missing(tmp_path, alone, small_shards, monkeypatch):
    file, out = write(tmp_path / "in.jsonl", PROMPTS), tmp_path / "out.jsonl"
    interrupted(monkeypatch, file, out, "--n_samples", 3)
    folder = tmp_path / "out.jsonl.work"
    assert sorted(contents(folder)) == ["run.json", *(f"shard-00000{i}.npz" for i in range(3))]
    shutil.copy(folder / "shard-000002.npz", folder / "shard-000000.npz")
    (folder / "shard-000001.npz").write_bytes(b"damaged")
    made = small_shards.copy()
    small_shards.clear()
    result = generate(file, out, "--n_samples", 3, "--batch_size", 1)  # which changes no text
    assert result.status == 0
    assert "[1 of 8 shards are in" in result.err
    for i in (0, 1):
        assert f"shard-00000{i}.npz is damaged, or of other work: it is computed anew]" in result.err
    assert small_shards[:2] == made[:2]
    assert len(small_shards) == 7
    assert {(record["line"], record["sample"]): record["text"] for record in read(out)} == alone
    assert not folder.exists()


def test_without_a_seed_a_run_goes_on_with_the_seed_that_it_began_with(tmp_path, small_shards, monkeypatch):
    file, out = write(tmp_path / "in.jsonl", PROMPTS), tmp_path / "out.jsonl"
    words = [word for word in SETTINGS if word not in ("--seed", 3)]
    monkeypatch.setitem(globals(), "SETTINGS", words)
    first = interrupted(monkeypatch, file, out)
    (seed,) = re.findall(r"^\[--seed (\d+) makes the same texts\]$", first.err, re.MULTILINE)
    again = generate(file, out)
    assert (again.status, f"[--seed {seed} makes the same texts]\n" in again.err) == (0, True)
    texts = read(out)
    assert generate(file, tmp_path / "given.jsonl", "--seed", seed).status == 0
    assert read(tmp_path / "given.jsonl") == texts
    assert generate(file, tmp_path / "new.jsonl").status == 0
    assert read(tmp_path / "new.jsonl") != texts


def test_the_bar_ends_at_the_number_of_texts(tmp_path, small_shards, monkeypatch):
    import tqdm

    class Bar(tqdm.tqdm):
        def __init__(self, *args, **settings):
            super().__init__(*args, **settings | {"disable": False, "file": io.StringIO()})
            bars.append(self)

    bars = []
    monkeypatch.setattr(tqdm, "tqdm", Bar)
    file, out = write(tmp_path / "in.jsonl", PROMPTS), tmp_path / "out.jsonl"
    words = ["--n_samples", 3, "--stop", ","]  # some texts end early
    interrupted(monkeypatch, file, out, *words)
    assert generate(file, out, *words).status == 0
    first, again = (bar for bar in bars if bar.unit == "text" and bar.desc.startswith("generating"))
    assert (first.initial, first.n, first.total) == (0, 9, 24)
    assert (again.initial, again.n, again.total) == (9, 24, 24)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--seed", 4], "a request with seed = 3, not 4"),
        (["--temperature", 0.8], "a request with temperature = 0.9, not 0.8"),
        (["--top_k", 5], "a request with top_k = 0, not 5"),
        (["-n", 13], "a request with n_tokens_to_generate = 12, not 13"),
        (["--n_samples", 2], "a request with n_samples = 1, not 2"),
        (["--stop", "x"], "a request with stop = None, not x"),
        (["--end_of_text"], "a request with end_of_text = False, not True"),
        (["prompts"], "other prompts"),
        (["model"], "another model or program"),
    ],
)
def test_another_request_is_refused_and_nothing_changes(tmp_path, small_shards, monkeypatch, words, message):
    file, out = write(tmp_path / "in.jsonl", PROMPTS), tmp_path / "out.jsonl"
    interrupted(monkeypatch, file, out, after=1)
    folder = tmp_path / "out.jsonl.work"
    before = contents(folder)
    assert len(before) == 2
    if words == ["prompts"]:
        words = []
        write(file, [*PROMPTS[:-1], "What?"])
    if words == ["model"]:
        other = shutil.copytree(ROOT / "models" / "tiny", tmp_path / "tiny")
        hparams = json.loads((other / "hparams.json").read_text())
        (other / "hparams.json").write_text(json.dumps(hparams | {"n_head": 4}))
        words = ["--models_dir", tmp_path]
    result = generate(file, out, *words)
    assert_error(
        result, 2, f"the work folder {folder} belongs to {message}: choose another --out, or remove the folder"
    )
    assert contents(folder) == before


def test_a_finished_file_is_replaced_only_by_force(tmp_path):
    file, out = write(tmp_path / "in.jsonl", PROMPTS[:2]), tmp_path / "out.jsonl"
    out.write_text("mine")
    assert_error(generate(file, out), 1, f"{out} exists already: choose another name, or replace it with --force")
    assert out.read_text() == "mine"
    assert [path.name for path in tmp_path.iterdir() if path.is_dir()] == []
    assert generate(file, out, "--force").status == 0
    assert len(read(out)) == 2


def test_a_folder_of_another_kind_is_left_alone(tmp_path):
    file, out = write(tmp_path / "in.jsonl", PROMPTS[:2]), tmp_path / "out.jsonl"
    (folder := tmp_path / "out.jsonl.work").mkdir()
    (folder / "notes.txt").write_text("mine")
    assert_error(generate(file, out), 2, f"the work folder {folder} holds 'notes.txt', but no run.json")
    assert contents(folder) == {"notes.txt": b"mine"}
    assert not out.exists()


# ------------------------------------------------------------------------------------------------------ wrong inputs


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        ('{"prompt": "a"}\n\n{"prompt": "b"}\n', "in.jsonl:2: the line is blank"),
        ('{"prompt": "a"}\n  \n', "in.jsonl:2: the line is blank"),
        ('{"prompt": "a"}\n{"prompt": "b\\ud800"}', r"in.jsonl:2: the prompt is not valid Unicode: it has '\ud800'"),
        ('{"prompt": "a"}\n{"prompt": 3}', "in.jsonl:2: not a JSON object with a text in the field 'prompt'"),
        ('{"prompt": "a"}\n{"text": "b"}', "in.jsonl:2: not a JSON object with a text in the field 'prompt'"),
        ('{"prompt": "a"}\n["b"]', "in.jsonl:2: not a JSON object"),
        ('{"prompt": "a"}\n{"prompt": "b', "in.jsonl:2: not JSON"),
        ("", "in.jsonl is empty: it has no prompt"),
        (
            '{"prompt": "a"}\n{"prompt": "' + "king " * 300 + '"}',
            "in.jsonl:2: 302 prompt tokens + 12 to generate do not fit into the context of 256: 0 to 0 new ones fit",
        ),
        ('{"prompt": "a"}\n{"prompt": "' + "king " * 50_000 + '"}', "in.jsonl:2: the prompt has 250,000 bytes"),
    ],
)
def test_a_wrong_line_is_named_before_any_work(tmp_path, lines, message):
    file = tmp_path / "in.jsonl"
    file.write_bytes(lines.encode("utf-8"))
    assert_error(generate(file, tmp_path / "out.jsonl"), 2, f"picogpt generate: {tmp_path}/{message}")
    assert [path.name for path in tmp_path.iterdir()] == ["in.jsonl"]


def test_line_ends_of_windows_and_a_byte_order_mark_are_no_part_of_a_line(tmp_path, alone):
    (tmp_path / "in.jsonl").write_bytes(b'\xef\xbb\xbf{"prompt": "ROMEO:"}\r\n')
    assert generate(tmp_path / "in.jsonl", tmp_path / "out.jsonl").status == 0
    assert read(tmp_path / "out.jsonl")[0]["text"] == alone[1, 1]


def test_prompts_from_standard_input(tmp_path, alone):
    words = ["--prompts", "-", "--out", tmp_path / "out.jsonl", *SETTINGS]
    assert run_main("picogpt generate", *words, stdin=b'{"prompt": "ROMEO:"}\n').status == 0
    assert read(tmp_path / "out.jsonl")[0]["text"] == alone[1, 1]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["a", "--prompts", "in"], "argument --prompts: not allowed with argument prompt"),
        ([], "one of the arguments prompt --prompts is required"),
        (["--prompts", "in"], "argument --prompts: it needs --out"),
        (["--prompts", "in", "--out", "out", "--slide"], "argument --slide: it continues one prompt"),
        (["--prompts", "in", "--out", "./in"], "argument --out: in is also a file to read"),
        (["a", "--out", "out"], "argument --out: it belongs to --prompts"),
        (["a", "--field", "x"], "argument --field: it belongs to --prompts"),
        (["a", "--dask", "node:8786"], "argument --dask: it belongs to --prompts"),
        (["a", "--force"], "argument --force: it belongs to --prompts"),
        (["--prompts", "in", "--out", "out", "--dask", "x"], "argument --dask: 'x' is not an address"),
    ],
)
def test_wrong_options_are_refused(words, message):
    assert_error(run_main("picogpt generate", *words), 2, f"picogpt generate: {message}")


def test_what_stderr_says(tmp_path):
    file = write(tmp_path / "in.jsonl", ["A", "B ", "C"])
    result = run_main("picogpt generate", "--prompts", file, "--out", tmp_path / "out", *TINY, "-n", 2, "--seed", 1)
    assert re.fullmatch(
        r"warning: 1 of the prompts end in a space, the first in line 2, .*\n"
        r"warning: --seed has no effect without a --temperature above 0\n"
        r"\[making 2 samples at once takes 1 MB of memory; [\d,]+ MB are free\]\n"
        r"\[\d+\.\d tokens/s, all texts together\]\n",
        result.err,
    ), result.err


# ------------------------------------------------------------------------------------------ processes that are killed


@pytest.fixture(scope="module")
def many(tmp_path_factory):
    """Return a file of prompts, the options that make seconds of work of it, and the bytes of the texts."""
    folder = tmp_path_factory.mktemp("many")
    file = write(folder / "in.jsonl", PROMPTS * 4)
    words = ["--prompts", file, *SETTINGS, "--n_samples", 8, "-n", 30]
    assert run_command("picogpt generate", *words, "--out", folder / "out.jsonl", timeout=400).status == 0
    return words, (folder / "out.jsonl").read_bytes()


def start(words, out, *more):
    code = command("picogpt generate", *words, "--out", out, *more)
    return subprocess.Popen(code, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=ENVIRONMENT, cwd=ROOT)


@pytest.mark.slow
def test_a_killed_run_goes_on(tmp_path, many):
    (words, expected), out = many, tmp_path / "out.jsonl"
    folder = tmp_path / "out.jsonl.work"
    process = start(words, out)
    half_way(process, folder)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert not out.exists()
    before = files_in(folder)
    again = start(words, out)
    line = wait_for(lambda: next((x for x in iter(again.stderr.readline, b"") if b"already" in x), b""), "no line")
    assert line.startswith(f"[{len(before)} of ".encode())
    assert again.wait(400) == 0
    assert out.read_bytes() == expected
    assert [path.name for path in tmp_path.iterdir()] == ["out.jsonl"]


@pytest.mark.slow
def test_a_cluster_makes_the_same_texts_though_a_worker_and_the_command_are_killed(tmp_path, many):
    pytest.importorskip("distributed")
    (words, expected), out = many, tmp_path / "out.jsonl"
    folder = tmp_path / "out.jsonl.work"
    (tmp_path / "cluster").mkdir()
    cluster = Cluster(tmp_path / "cluster", ROOT)
    try:
        workers = [cluster.start_worker() for _ in range(2)]
        process = start(words, out, "--dask", cluster.address)
        half_way(process, folder)
        process.kill()
        process.communicate()
        before = files_in(folder)
        again = start(words, out, "--dask", cluster.address)
        wait_for(lambda: len(files_in(folder)) > len(before), "it does not go on")
        workers[0].kill()
        _, err = again.communicate(timeout=400)
    finally:
        cluster.end()
    assert again.returncode == 0, err
    assert f"[{len(before)} of ".encode() in err
    assert decoded(err).count("\n") == 2
    assert out.read_bytes() == expected
    assert not folder.exists()
