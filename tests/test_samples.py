"""Many continuations of one prompt: `generate_batch` in the library, and --n_samples of `picogpt generate`."""

from __future__ import annotations

import contextlib
import doctest
import functools
import itertools
import os
import re
import shutil
import subprocess
from argparse import Namespace
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pytest
from helpers import ODD, ROOT, SMALL, Result, assert_error, command, model_options, random_params, run_command, run_main

import gpt2
import picogpt.batch
import utils
from encoder import END_OF_TEXT, get_encoder
from picogpt import command_line, continuation, generate, generate_batch
from picogpt.batch import generate_each, generate_sliding
from picogpt.checkpoints.writing import write_random_model

TINY = ["--model_size", "tiny", "--models_dir", ROOT / "models"]
SETTINGS = [
    {"temperature": t, "top_k": k, "top_p": p, "repetition_penalty": r}
    for t, k, p, r in itertools.product((0.0, 0.9), (0, 5), (1.0, 0.8), (1.0, 1.3))
]


def choosers(n: int, **settings: float) -> list[Any]:
    """Return functions that sample, each with a generator of its own."""
    seeds = np.random.SeedSequence(7).spawn(n)
    return [functools.partial(gpt2.sample, rng=np.random.default_rng(seed), **settings) for seed in seeds]


def batch(ids: list[int], params: Any, n_new: int, choose: list[Any], **settings: Any) -> list[list[int]]:
    """Return the new ids of each sample."""
    samples: list[list[int]] = [[] for _ in choose]
    for sample, id in generate_batch(ids, params, 3, n_new, choose, **settings):
        samples[sample].append(id)
    return samples


# ------------------------------------------------------------------------------------------------------ the library


@pytest.mark.usefixtures("checked_shapes")
@pytest.mark.parametrize("n", [1, 2, 17])
@pytest.mark.parametrize("n_prompt", [1, 8, 17])
def test_a_batch_equals_its_samples_one_by_one(n, n_prompt):
    """In float64, two logits are practically never equal but for rounding, so the ids are the same."""
    params, ids = random_params(SMALL, np.float64), list(range(3, 3 + n_prompt))
    n_new = SMALL["n_ctx"] - n_prompt + 1
    alone = [list(gpt2.generate(ids, params, 3, n_new, choose)) for choose in choosers(n)]
    assert batch(ids, params, n_new, choosers(n)) == alone
    assert batch(ids, params, n_new, choosers(n), batch_size=3) == alone
    assert ids == list(range(3, 3 + n_prompt))


@pytest.mark.parametrize("settings", SETTINGS, ids=str)
@pytest.mark.parametrize("stop", [False, True])
def test_every_setting_gives_the_same_samples_in_a_batch(settings, stop):
    """A sample stops at an id that 4 divides, so the samples leave at different times."""
    params, ids, n_new = random_params(SMALL, np.float64, scale=0.1), [5, 9, 2], 14
    ended = (lambda new: new[-1] % 4 == 0) if stop else None
    alone = []
    for choose in choosers(9, **settings):
        new = list(gpt2.generate(ids, params, 3, n_new, choose))
        alone.append(new[: next((i + 1 for i, id in enumerate(new) if stop and id % 4 == 0), n_new)])
    assert batch(ids, params, n_new, choosers(9, **settings), ended=ended, batch_size=4) == alone
    if stop and settings["temperature"] and not settings["top_k"]:
        assert len(set(map(len, alone))) > 3


def test_the_logits_of_a_batch_equal_those_of_each_text_within_rounding():
    params, seen = random_params(SMALL), {}

    def choose(logits: Any, ids: Any, rng: np.random.Generator) -> int:
        seen[tuple(ids)] = logits.copy()
        return gpt2.sample(logits, ids, rng)

    samples = batch([1, 2, 3], params, 12, [functools.partial(choose, rng=np.random.default_rng(i)) for i in range(8)])
    assert len(seen) > 80
    for ids, logits in seen.items():
        alone = gpt2.gpt2(ids, **params, n_head=3)[-1]
        assert np.abs(logits - alone).max() <= 2e-6 * np.abs(alone).max()
    assert len(set(map(tuple, samples))) == 8


@pytest.mark.usefixtures("checked_shapes")
def test_each_matrix_is_multiplied_once_for_a_whole_batch(monkeypatch):
    """With @, NumPy would multiply each text of a batch by itself."""
    params, ids = random_params(SMALL), np.arange(24).reshape(4, 6)
    products, tensordot = [], np.tensordot

    def counted(x: Any, w: Any, axes: int) -> Any:
        products.append((x.shape[:-1], w.shape))
        return tensordot(x, w, axes)

    monkeypatch.setattr(np, "tensordot", counted)
    expected = np.stack([gpt2.gpt2(row, **params, n_head=3) for row in ids])
    assert products == []
    np.testing.assert_allclose(gpt2.gpt2(ids, **params, n_head=3), expected, rtol=1e-5, atol=1e-5)
    layer = [((4, 6), (21, 63)), ((4, 6), (21, 21)), ((4, 6), (21, 84)), ((4, 6), (84, 21))]
    assert products == 3 * layer + [((4, 6), (21, 101))]


@pytest.mark.usefixtures("checked_shapes")
def test_the_prompt_is_computed_once_and_those_that_ended_leave(monkeypatch):
    params, inputs, forward = random_params(SMALL), [], gpt2.gpt2
    monkeypatch.setattr(
        gpt2, "gpt2", lambda ids, *args, **kwargs: inputs.append(np.shape(ids)) or forward(ids, *args, **kwargs)
    )
    counts = iter([3, 1, 2, 5, 4, 5])
    lengths = {i: next(counts) for i in range(6)}
    choose = [lambda logits, ids, i=i: i for i in range(6)]
    samples = batch([7] * 9, params, 5, choose, ended=lambda new: len(new) == lengths[new[0]], batch_size=4)
    assert samples == [[i] * n for i, n in lengths.items()]
    assert inputs == [(1, 9), (3, 1), (2, 1), (1, 1), (1, 1), (2, 1), (2, 1), (2, 1), (1, 1)]


@pytest.mark.usefixtures("checked_shapes")
@pytest.mark.parametrize("batch_size", [2, 3, 64])
def test_several_prompts_grow_side_by_side_as_each_would_alone(batch_size):
    """Some are equal, and those that end leave. In float64, the ids are the same."""
    params, n_new = random_params(SMALL, np.float64, scale=0.1), 12
    prompts = [[5, 9, 2], [5, 9, 2], [1, 2, 3], [5, 9, 2], [7, 7, 7], [7, 7, 7], [7, 7, 7], [1, 2, 3]]
    settings = {"temperature": 0.9, "repetition_penalty": 1.3}
    alone = []
    for ids, choose in zip(prompts, choosers(8, **settings)):
        new = list(gpt2.generate(ids, params, 3, n_new, choose))
        alone.append(new[: next((i + 1 for i, id in enumerate(new) if id % 4 == 0), n_new)])
    found: list[list[int]] = [[] for _ in prompts]
    arguments = (params, 3, n_new, choosers(8, **settings), lambda new: new[-1] % 4 == 0, batch_size)
    for i, id in generate_each(prompts, *arguments):
        found[i].append(id)
    assert found == alone
    assert len(set(map(len, alone))) > 3


@pytest.mark.usefixtures("checked_shapes")
def test_equal_neighbours_are_read_once_and_short_prompts_side_by_side(monkeypatch):
    params, inputs, forward = random_params(SMALL), [], gpt2.gpt2
    monkeypatch.setattr(
        gpt2, "gpt2", lambda ids, *args, **kwargs: inputs.append(np.shape(ids)) or forward(ids, *args, **kwargs)
    )
    monkeypatch.setattr(picogpt.batch, "N_POSITIONS", 11)
    prompts = [[i, 2, 3, 4, 5] for i in (1, 1, 2, 3, 3, 3, 4, 5)]
    list(generate_each(prompts, params, 3, 2, [gpt2.greedy] * 8, batch_size=5))
    assert inputs == [(2, 5), (2, 5), (5, 1), (1, 5), (3, 1)]


def test_prompts_of_different_lengths_are_refused():
    with pytest.raises(ValueError, match="differ in their numbers of ids"):
        next(generate_each([[1], [1, 2]], random_params(SMALL), 3, 2, [gpt2.greedy] * 2))


@pytest.mark.parametrize(
    ("ids", "n_new", "message"),
    [
        ([], 1, "the prompt is empty"),
        ([1, 101], 1, "1 to 101, outside 0 to 100"),
        ([-1], 1, "outside 0 to 100"),
        ([1], -1, "-1 to generate"),
        (range(10), 9, "8 new ones fit"),
    ],
)
def test_wrong_lengths_and_ids_raise_what_generate_raises(ids, n_new, message):
    params = random_params(SMALL)
    for new in (gpt2.generate(ids, params, 3, n_new), generate_batch(ids, params, 3, n_new, [gpt2.greedy])):
        with pytest.raises(ValueError, match=message):
            next(new)


@pytest.mark.parametrize("batch_size", [0, -1])
def test_a_batch_has_at_least_one_sample(batch_size):
    with pytest.raises(ValueError, match=f"batch_size is {batch_size}"):
        next(generate_batch([1], random_params(SMALL), 3, 2, [gpt2.greedy], batch_size=batch_size))


def test_no_samples_and_no_tokens_are_nothing():
    params = random_params(SMALL)
    assert list(generate_batch([1], params, 3, 5, [])) == []
    assert list(generate_batch([1], params, 3, 0, [gpt2.greedy])) == []


@pytest.mark.parametrize("settings", SETTINGS, ids=str)
def test_filters_take_leading_axes(settings, rng):
    logits = rng.standard_normal((2, 3, 40)).astype(np.float32).round(1)  # many are equal
    ids = rng.integers(0, 40, (2, 3, 6))
    probs = gpt2.token_probs(logits, ids, *settings.values())
    for i in np.ndindex(2, 3):
        np.testing.assert_array_equal(probs[i], gpt2.token_probs(logits[i], ids[i], *settings.values()))


def by_sorting(logits: Any, n: int) -> Any:
    """Keep the n largest by Python's stable sort."""
    kept = sorted(range(len(logits)), key=lambda id: -logits[id])[:n]
    return [logit if id in kept else -np.inf for id, logit in enumerate(logits)]


def test_the_largest_are_those_that_a_stable_sort_puts_first(rng):
    for _ in range(300):
        logits = rng.integers(-2, 3, 12) / 2 + np.where(rng.random(12) < 0.2, -np.inf, 0)
        logits[0], k = 0, int(rng.integers(1, 13))
        np.testing.assert_array_equal(gpt2.keep_top_k(logits, k), by_sorting(logits, k))
        p = rng.random()
        probs = np.sort(gpt2.softmax(logits))[::-1]
        n = next((i + 1 for i in range(12) if probs[: i + 1].sum() >= p), 12)
        np.testing.assert_array_equal(gpt2.keep_top_p(logits, p), by_sorting(logits, n))


def test_top_p_keeps_a_set_that_reaches_p_exactly():
    assert list(gpt2.keep_top_p(np.zeros(4), 0.5)) == [0, 0, -np.inf, -np.inf]


def test_top_p_keeps_all_when_rounding_makes_their_sum_smaller(rng):
    logits, p = rng.standard_normal(5000), float(np.nextafter(1, 0))
    assert np.cumsum(gpt2.softmax(np.sort(logits)[::-1]))[-1] < p
    np.testing.assert_array_equal(gpt2.keep_top_p(logits, p), logits)


def test_samples_are_independent_draws_of_the_right_distribution():
    """Chi-square tests of 4,000 samples: do their first two tokens occur as often as the model says, all 16 pairs?

    And do neighbouring samples begin with the same token as often as independent ones do? The limits are the 99.9 %
    quantiles of chi-square with 15 degrees of freedom and with 1.
    """
    params, n, top = random_params(SMALL, np.float64, scale=0.1), 4000, 4
    choose = choosers(n, temperature=1.0, top_k=top)
    samples = batch([5, 9, 2], params, 2, choose, batch_size=500)
    pairs = {}
    first = gpt2.token_probs(gpt2.gpt2([5, 9, 2], **params, n_head=3)[-1], [], 1, top, 1, 1)
    for a in np.flatnonzero(first):
        second = gpt2.token_probs(gpt2.gpt2([5, 9, 2, a], **params, n_head=3)[-1], [], 1, top, 1, 1)
        pairs |= {(a, b): first[a] * second[b] for b in np.flatnonzero(second)}
    assert len(pairs) == 16
    found = Counter(map(tuple, samples))
    assert set(found) <= set(pairs)
    assert sum((found[pair] - n * p) ** 2 / (n * p) for pair, p in pairs.items()) < 37.7
    same = sum(a[0] == b[0] for a, b in itertools.pairwise(samples))
    p = float(first @ first)
    assert (same - (n - 1) * p) ** 2 / ((n - 1) * p * (1 - p)) < 10.8


# ------------------------------------------------------------------------------------------------- the command line


def parts(result: Result) -> list[str]:
    """Split the output as --help says."""
    assert result.status == 0, result
    n = re.match(r"--- 1 of (\d+)\n", result.out)[1]
    return re.split(rf"^--- \d+ of {n}\n", result.out, flags=re.MULTILINE)[1:]


def tiny(*args: Any, name: str = "picogpt generate") -> Result:
    return run_main(name, "ROMEO:", *TINY, "--temperature", 0.9, "--seed", 3, *args)


def test_a_sample_does_not_depend_on_how_many_there_are():
    one = tiny("--n_tokens_to_generate", 30)
    four, nine = (parts(tiny("--n_tokens_to_generate", 30, "--n_samples", n)) for n in (4, 9))
    groups = parts(tiny("--n_tokens_to_generate", 30, "--n_samples", 9, "--batch_size", 2))
    assert nine[:4] == four
    assert groups == nine
    assert four[0] == one.out == tiny("--n_tokens_to_generate", 30, name="gpt2.py").out
    encoder, hparams, params = utils.load_encoder_hparams_and_params("tiny", ROOT / "models")
    choose = functools.partial(gpt2.sample, rng=np.random.default_rng(3), temperature=0.9)
    assert (
        one.out == encoder.decode(gpt2.generate(encoder.encode("ROMEO:"), params, hparams["n_head"], 30, choose)) + "\n"
    )
    assert len(set(nine)) == 9
    assert "sample" not in one.err


def test_samples_stop_where_each_of_them_alone_would():
    """The stop text is also found where it begins and ends within tokens."""
    whole = parts(tiny("--n_tokens_to_generate", 40, "--n_samples", 6))
    for stop in (",", " the", "e, ", "\n", whole[4][20:40]):
        stopped = parts(tiny("--n_tokens_to_generate", 40, "--n_samples", 6, "--stop", stop))
        assert stopped == [text.partition(stop)[0] + ("\n" if stop in text[:-1] else "") for text in whole], stop


@pytest.mark.parametrize("stop", [",", " the", "my love, ere I come", "\n", "ééé", "\ufffd", chr(0xDCFF), None])
def test_a_sample_is_complete_with_the_token_that_completes_the_stop_text(stop):
    encoder = get_encoder("tiny", ROOT / "models")
    ids = encoder.encode("It is the é some thing that my love, ere I come.\nThéééé dare")
    args = Namespace(n_tokens_to_generate=len(ids), stop=stop, last_id=None)
    ends = [n for n in range(1, len(ids)) if generate.is_complete(ids[:n], encoder, args)]
    texts = ["".join(itertools.islice(encoder.decode_stream(ids), n)) for n in range(len(ids))]  # with whole characters
    first = next((n for n, text in enumerate(texts) if stop and stop in text), None)
    assert ends[:1] == ([first] if first else [])
    assert bool(first) == (stop not in (None, "\ufffd", "\udcff"))
    assert generate.is_complete(ids, encoder, args)
    assert not generate.is_complete([], encoder, args)


def test_the_lines_on_stderr():
    result = tiny("-n", 5, "--n_samples", 3, "--batch_size", 2)
    memory = r"\[making 2 samples at once takes 1 MB of memory; [\d,]+ MB are free\]\n"
    assert re.fullmatch(memory + r"\[\d+\.\d tokens/s, all samples together\]\n", result.err)
    greedy = run_main("picogpt generate", "ROMEO:", *TINY, "--n_samples", 2, "-n", 3)
    assert "warning: --n_samples gives the same text each time without a --temperature above 0" in greedy.err
    assert len(set(parts(greedy))) == 1


def test_samples_come_as_soon_as_those_before_them_have_ended():
    assert doctest.testmod(generate) == (0, 1)
    pairs = iter([(1, 5), (1, 6), (0, 7), (0, 8), (2, 9)])
    samples = generate.in_order(pairs, 3, lambda ids: len(ids) == 2)
    assert [next(samples), next(samples), next(pairs)] == [[7, 8], [5, 6], (2, 9)]


def test_no_tokens_are_samples_without_text():
    assert tiny("--n_tokens_to_generate", 0, "--n_samples", 3).out == "--- 1 of 3\n\n--- 2 of 3\n\n--- 3 of 3\n\n"


@pytest.mark.skipif(not shutil.which("csplit"), reason="csplit is not installed")
def test_the_example_in_the_help_makes_a_file_of_each_sample(tmp_path):
    (split,) = re.findall(r"^  csplit .*$", generate.EXAMPLES, re.MULTILINE)
    text = tiny("--n_tokens_to_generate", 9, "--n_samples", 16).out
    (tmp_path / "samples.txt").write_text(text, encoding="utf-8")
    subprocess.run(split, shell=True, cwd=tmp_path, check=True, capture_output=True)
    files = sorted(tmp_path.glob("xx*"))
    assert len(files) == 16
    assert "".join(file.read_text(encoding="utf-8") for file in files) == text


@contextlib.contextmanager
def free_memory(n_bytes: int) -> Iterator[None]:
    with (
        mock.patch.object(command_line, "free_memory", return_value=n_bytes),
        mock.patch.object(continuation, "free_memory", return_value=n_bytes),
    ):
        yield


def test_what_does_not_fit_into_memory_is_refused_before_the_work():
    with free_memory(3_000_000):  # a sample of 107 positions takes 0.55 MB
        result = tiny("-n", 100, "--n_samples", 20)
        message = "making 20 samples at once takes 11 MB of memory, but only 3 MB are free: --batch_size 5 fits"
        assert_error(result, 2, message)
        assert tiny("-n", 2, "--n_samples", 20, "--batch_size", 5).status == 0
    with free_memory(1000):
        assert_error(tiny("-n", 100, "--n_samples", 20), 2, "not even one sample fits")


def test_the_memory_of_samples_is_that_of_keys_values_and_the_logits_of_two_steps():
    row = 4 * (3 * 2 * 21 * 17 + 2 * 101)  # float32: 3 layers, 21 numbers for each of 17 positions; 101 tokens
    with free_memory(5 * row):
        assert continuation.check_batch(5, random_params(SMALL), 3, 17)
        with pytest.raises(command_line.UsageError, match="--batch_size 5 fits$"):
            continuation.check_batch(6, random_params(SMALL), 3, 17)
        with pytest.raises(command_line.UsageError, match="--batch_size 2 fits$"):
            continuation.check_batch(5, random_params(SMALL, np.float64), 3, 17)
    with free_memory(row - 1), pytest.raises(command_line.UsageError, match="not even"):
        continuation.check_batch(1, random_params(SMALL), 3, 17)


def test_free_memory_knows_the_limit_of_a_container(tmp_path):
    free = command_line.free_memory()
    assert 1e6 < free < 1e15
    (tmp_path / "memory.max").write_text("max\n")
    (tmp_path / "memory.stat").write_text("anon 1000\nfile 5000\nanon_thp 7\n")
    assert abs(command_line.free_memory(tmp_path) - free) < free / 2
    (tmp_path / "memory.max").write_text("51000\n")
    assert command_line.free_memory(tmp_path) == 50_000


@pytest.mark.parametrize("option", ["--n_samples", "--batch_size"])
@pytest.mark.parametrize("value", ["0", "-1", "1.5", "x", "100001"])
def test_wrong_numbers_of_samples(option, value):
    assert_error(tiny(option, value), 2, f"argument {option}", repr(value), "at least 1 and at most 100000")


def test_without_a_stop_text_nothing_is_held_back():
    assert list(gpt2.stop_before(["one", " two"], None)) == ["one", " two", ""]


# ------------------------------------------------------------------------------------------- documents and their ends


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with two small models, of which only one has <|endoftext|>."""
    folder = tmp_path_factory.mktemp("models")
    for name in ("documents", "lines"):
        (folder / name).mkdir()
        write_random_model(folder / name, ODD | {"n_vocab": 257, "n_ctx": 40}, seed=5)
    path = folder / "lines" / "encoder.json"
    path.write_text(path.read_text(encoding="utf-8").replace(END_OF_TEXT, "<|pad|>"), encoding="utf-8")
    return folder


def test_an_empty_prompt_begins_a_document(models):
    options = model_options(models / "documents")
    result = run_command("picogpt generate", "", *options, "--n_tokens_to_generate", 6)
    end = get_encoder("documents", models).encoder[END_OF_TEXT]
    encoder, hparams, params = utils.load_encoder_hparams_and_params("documents", models)
    assert (result.status, result.out) == (0, encoder.decode(gpt2.generate([end], params, hparams["n_head"], 6)) + "\n")
    assert result.err.startswith("the prompt is empty: the text begins a new document, after <|endoftext|>\n[1 prompt")
    samples = parts(run_main("picogpt generate", "", *options, "--n_tokens_to_generate", 6, "--n_samples", 2))
    assert samples == [result.out] * 2


def test_a_vocabulary_without_the_end_says_so(models):
    options = model_options(models / "lines")
    assert_error(run_command("picogpt generate", "", *options), 2, "the prompt is empty", "no token <|endoftext|>")
    refused = run_main("picogpt generate", "a", *options, "--end_of_text")
    assert_error(refused, 2, "--end_of_text", "no token <|endoftext|>")
    assert run_main("picogpt generate", "a", *options, "--stop", END_OF_TEXT, "--n_tokens_to_generate", 3).status == 0


@pytest.mark.parametrize("option", [["--end_of_text"], ["--stop", END_OF_TEXT], ["--end_of_text", "--stop", "y"]])
@pytest.mark.parametrize("n", [1, 3])
def test_a_text_ends_where_the_model_ends_the_document(option, n, models, monkeypatch):
    encoder = get_encoder("documents", models)
    script = [*encoder.encode("x"), encoder.encoder[END_OF_TEXT], *encoder.encode("yz")]
    calls = []
    monkeypatch.setattr(gpt2, "greedy", lambda logits, ids: calls.append(ids) or script[len(ids) - 1])
    options = [*model_options(models / "documents"), "--n_samples", n]
    whole = run_main("picogpt generate", "a", *options, "--n_tokens_to_generate", 4)
    calls.clear()
    result = run_main("picogpt generate", "a", *options, "--n_tokens_to_generate", 4, *option)
    assert whole.out.endswith("x<|endoftext|>yz\n")
    assert (parts(result) if n > 1 else [result.out]) == ["x\n"] * n
    assert len(calls) == 2 * n
    assert "[1 prompt token in" in result.err or n > 1
    assert "then" not in result.err  # one token came before the end, so there is no time between two


def test_ctrl_c_keeps_the_samples_that_are_complete(monkeypatch):
    forward, calls = gpt2.gpt2, []

    def interrupted(*args: Any, **kwargs: Any) -> Any:
        calls.append(1)
        if len(calls) == 16:  # the prompt, four steps for each of two batches, and some of the third
            raise KeyboardInterrupt
        return forward(*args, **kwargs)

    expected = parts(tiny("--n_tokens_to_generate", 5, "--n_samples", 8))
    monkeypatch.setattr(gpt2, "gpt2", interrupted)
    result = tiny("--n_tokens_to_generate", 5, "--n_samples", 8, "--batch_size", 2)
    assert result.status == 130
    assert re.split(r"^--- \d of 8\n", result.out, flags=re.MULTILINE)[1:] == expected[:6]


@pytest.mark.skipif(os.name != "posix", reason="needs a pipe that closes")
def test_head_gets_the_first_sample(models):
    options = [*model_options(models / "documents"), "--n_samples", 40, "--batch_size", 1]
    words = command("picogpt generate", "a", *options)
    process = subprocess.Popen(words, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert process.stdout.readline() == b"--- 1 of 40\n"
    process.stdout.close()
    error = process.stderr.read().decode()
    process.stderr.close()
    assert process.wait(60) == 141, error
    assert "Traceback" not in error


# ---------------------------------------------------------------------------- beyond the context, special tokens


def test_slide_goes_on_with_the_newest_half_of_the_context():
    params, ids = random_params(SMALL), [1, 2, 3]  # a context of 17
    new = list(generate_sliding(ids, params, 3, 40, gpt2.greedy))
    assert new[:15] == list(gpt2.generate(ids, params, 3, 15))
    text = ids + new[:15]
    assert new[15:25] == list(gpt2.generate(text[-8:], params, 3, 10))
    assert len(new) == 40
    full = list(range(17))  # one more token fits
    assert list(generate_sliding(full, params, 3, 1, gpt2.greedy)) == list(gpt2.generate(full, params, 3, 1))
    seen: list[list[int]] = []
    list(generate_sliding(range(30), params, 3, 2, lambda logits, ids: seen.append(list(ids)) or 5))
    assert seen == [[*range(22, 30)], [*range(22, 30), 5]]


def test_slide_on_the_command_line():
    refused = tiny("-n", 400)
    assert_error(refused, 2, "do not fit into the context of 256")
    assert_error(tiny("--slide", "--n_samples", 2), 2, "--slide")
    result = tiny("-n", 400, "--slide")
    assert result.status == 0
    assert result.out.startswith(tiny("-n", 100).out.removesuffix("\n"))
    assert len(result.out) > 400


def test_special_tokens_in_a_prompt_are_text_unless_they_are_allowed():
    options = [*TINY, "-n", 1]
    as_text = run_main("picogpt generate", END_OF_TEXT, *options)
    as_token = run_main("picogpt generate", END_OF_TEXT, *options, "--allow_special")
    assert "[1 prompt token in" in as_token.err
    assert "[1 prompt token in" not in as_text.err
    tokens = run_main("picogpt tokens", f"a{END_OF_TEXT}", *TINY, "--allow_special").out
    assert tokens.split() == ["64", "a", "1023", END_OF_TEXT]
