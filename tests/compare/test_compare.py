"""The comparison is green as things are, and each of the known errors, planted, turns the part that has it red."""

from __future__ import annotations

import importlib.util
import itertools
import math
import re

import numpy as np
import pytest
from helpers import ROOT

import encoder
import gpt2
from picogpt.compare import table as compare
from utils import load_encoder_hparams_and_params

pytest.importorskip("torch")
pytest.importorskip("transformers")


def rows_of(*parts: str, model: compare.Model | None = None) -> list[compare.Row]:
    """The lines of these parts, of made-up arguments or a model's, without TensorFlow (slow to start)."""
    sources = model.args() if model else {}
    rows = []
    for part, dtype in itertools.product(parts, compare.DTYPES):
        cases = compare.cases_of(part, dtype, sources.get(part))
        libs = [lib for lib in compare.OTHERS[part] if lib != "tensorflow"]
        rows += [compare.row_of(part, "", lib, dtype, cases) for lib in libs]
    return rows


@pytest.fixture
def tiny() -> compare.Model:
    encoder, hparams, params = load_encoder_hparams_and_params("tiny", str(ROOT / "models"))
    return compare.Model("tiny", encoder, params, hparams["n_head"])


def run(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, list[str]]:
    models = ["--model_size", "tiny", "--models_dir", str(ROOT / "models")]
    status = compare.main([*models, *arguments])
    return status, capsys.readouterr().out.splitlines()


def test_everything_is_right(capsys):
    """Of everything that is installed, TensorFlow too."""
    status, lines = run(capsys)
    assert status == 0, "\n".join(lines)
    parts = {line[:24].strip() for line in lines[1:-1]}
    assert parts == {part + of for part in (*compare.PARTS, "tokenizer") for of in ("", ", tiny")}
    of_tiny = [int(line.split()[-6]) for line in lines if line.startswith("linear, tiny")]
    assert of_tiny == [16] * 6  # each of the 4 layers has 4
    assert all(line.endswith(("pass", "not installed")) for line in lines[1:-1])
    assert re.fullmatch(r"\d+ pass, 0 FAIL, \d+ not installed", lines[-1])


# ------------------------------------------------------------------------------------------------- planted errors

erf = np.vectorize(math.erf, otypes=[np.float64])


def erf_gelu(x):
    return (0.5 * x * (1 + erf(x / math.sqrt(2)))).astype(x.dtype)


def promoting_gelu(x):
    return 0.5 * x * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3)))


def norm_by_n_minus_1(x, g, b, eps=1e-5):
    centred = x - x.mean(-1, keepdims=True)
    variance = (centred * centred).sum(-1, keepdims=True) / max(x.shape[-1] - 1, 1)
    return centred / np.sqrt(variance + eps) * g + b


def norm_with_another_eps(x, g, b, eps=1e-6):
    centred = x - x.mean(-1, keepdims=True)
    return centred / np.sqrt((centred * centred).mean(-1, keepdims=True) + eps) * g + b


def transposed_linear(x, w, b):
    return x @ (w.T if w.shape[0] == w.shape[1] else w) + b


def squeezing_linear(x, w, b):
    return np.squeeze(x @ w + b)


def squeezed(function):
    return lambda *args: np.squeeze(function(*args))


def shifted_mask(by):
    def causal_attention(q, k, v):
        n_q, n_k = q.shape[-2], k.shape[-2]
        visible = np.tri(n_q, n_k, n_k - n_q + by, dtype=bool)
        return gpt2.attention(q, k, v, np.where(visible, 0, -1e9).astype(q.dtype))

    return causal_attention


def shifted_positions(function):
    def gpt2_(inputs, wte, wpe, *args, **kwargs):
        return function(inputs, wte, np.roll(wpe, -1, axis=0), *args, **kwargs)

    return gpt2_


def forgetful_positions(function):
    """A cached step that counts one position too few, as n_past - 1."""

    def gpt2_(inputs, wte, wpe, *args, n_past=0, **kwargs):
        shifted = wpe if n_past == 0 else np.roll(wpe, 1, axis=0)
        return function(inputs, wte, shifted, *args, n_past=n_past, **kwargs)

    return gpt2_


def unscaled_attention(q, k, v, mask):
    return gpt2.softmax(q @ np.swapaxes(k, -1, -2) + mask) @ v


def top_k_and_one_more(function):
    return lambda logits, top_k: function(logits, top_k + 1 if top_k else 0)


def top_p_without_the_last(function):
    return lambda logits, top_p: function(logits, top_p - 0.05 if top_p < 1 else 1)


PLANTED = [
    ("gelu", erf_gelu, ["gelu", "ffn"]),
    ("gelu", promoting_gelu, ["gelu", "ffn"]),
    ("layer_norm", norm_by_n_minus_1, ["layer_norm", "transformer_block"]),
    ("layer_norm", norm_with_another_eps, ["layer_norm"]),
    ("linear", transposed_linear, ["linear", "mha"]),
    ("linear", squeezing_linear, ["linear"]),
    ("split_heads", squeezed(gpt2.split_heads), ["mha", "gpt2", "cached steps"]),
    ("causal_attention", shifted_mask(1), ["causal_attention", "mha", "gpt2"]),
    ("causal_attention", shifted_mask(-1), ["causal_attention", "mha"]),
    ("attention", unscaled_attention, ["attention", "mha"]),
    ("gpt2", shifted_positions(gpt2.gpt2), ["gpt2", "cached steps"]),
    ("gpt2", forgetful_positions(gpt2.gpt2), ["cached steps"]),
    ("keep_top_k", top_k_and_one_more(gpt2.keep_top_k), ["sampling filters"]),
    ("keep_top_p", top_p_without_the_last(gpt2.keep_top_p), ["sampling filters"]),
]


@pytest.mark.parametrize(("name", "wrong", "parts"), PLANTED, ids=lambda value: getattr(value, "__name__", None))
def test_a_planted_error_turns_it_red(monkeypatch, name, wrong, parts):
    assert {row.verdict for row in rows_of(parts[0])} == {"pass"}
    monkeypatch.setattr(gpt2, name, wrong)
    rows = rows_of(*parts)
    red = {(row.part, row.against) for row in rows if row.verdict.startswith("FAIL")}
    assert red == {(row.part, row.against) for row in rows}


@pytest.mark.parametrize(("name", "wrong", "parts"), PLANTED, ids=lambda value: getattr(value, "__name__", None))
def test_it_turns_red_on_the_numbers_of_a_model_as_well(monkeypatch, tiny, name, wrong, parts):
    """A dimension of 1, which squeeze needs to do harm, is only there where a single token is fed."""
    if "squeez" in wrong.__qualname__:
        parts = ["cached steps"]
    monkeypatch.setattr(gpt2, name, wrong)
    red = {row.part for row in rows_of(*parts, model=tiny) if row.verdict.startswith("FAIL")}
    assert red == set(parts)


def forgetful_rows(function):
    """n_logits as the first rows."""

    def gpt2_(*args, n_logits=None, **kwargs):
        logits = function(*args, **kwargs)
        return logits if n_logits is None else logits[:n_logits]

    return gpt2_


def forgetful_chunks(inputs, params, n_head, cache, n_past):
    """Every chunk of a prompt at its beginning."""
    for start in range(0, len(inputs), gpt2.N_CHUNK):
        logits = gpt2.gpt2(inputs[start : start + gpt2.N_CHUNK], **params, n_head=n_head, cache=cache, n_past=n_past)
    return logits[-1]


def one_pass_norm(x, g, b, eps=1e-5):
    """E[x²] - E[x]²."""
    mean, square = x.mean(-1, keepdims=True), (x * x).mean(-1, keepdims=True)
    return (x - mean) / np.sqrt(np.maximum(square - mean * mean, 0) + eps) * g + b


def linear_of_what_is_not_tiny(x, w, b):
    return np.where(abs(x) < np.finfo(x.dtype).smallest_normal * 1e8, 0, x) @ w + b


def gelu_of_what_is_normal(x):
    return np.where(abs(x) < np.finfo(x.dtype).smallest_normal, -3 * x, gelu(x))


def probs_at_another_temperature(function):
    return lambda logits, ids, temperature, *rest: function(logits, ids, temperature if temperature > 0.3 else 1, *rest)


gelu = gpt2.gelu
SUBTLE = [
    ("gpt2", forgetful_rows(gpt2.gpt2), "cached steps"),
    ("next_logits", forgetful_chunks, "cached steps"),
    ("layer_norm", one_pass_norm, "layer_norm"),
    ("linear", linear_of_what_is_not_tiny, "linear"),
    ("gelu", gelu_of_what_is_normal, "gelu"),
    ("token_probs", probs_at_another_temperature(gpt2.token_probs), "sampling filters"),
]


@pytest.mark.parametrize(("name", "wrong", "part"), SUBTLE, ids=lambda value: getattr(value, "__name__", None))
def test_errors_that_an_earlier_comparison_let_pass_turn_it_red(monkeypatch, name, wrong, part):
    monkeypatch.setattr(gpt2, name, wrong)
    rows = rows_of(part)
    assert [row.verdict[:4] for row in rows] == ["FAIL"] * len(rows)


def test_filters_are_compared_also_where_logits_are_equal_somewhere():
    x = np.repeat(np.random.default_rng(0).standard_normal(500), 2).astype(np.float32)
    kept = [args[3] for args in compare.filtered(x)]
    assert kept.count(0) > 10  # about half of the cuts part no pair
    assert 7 not in kept  # would part the fourth pair
    assert 20 in kept


def longest_match(symbols, ranks):
    """The longest token that fits, from the left: not BPE."""
    tokens, out = {pair.replace(" ", "") for pair in ranks}, []
    while symbols:
        n = next((n for n in range(min(len(symbols), 8), 1, -1) if "".join(symbols[:n]) in tokens), 1)
        out.append("".join(symbols[:n]))
        symbols = symbols[n:]
    return out


def test_a_tokenizer_of_longest_matches_turns_it_red(monkeypatch, capsys):
    pytest.importorskip("tiktoken")
    pytest.importorskip("tokenizers")
    assert run(capsys, "--parts", "tokenizer")[0] == 0
    monkeypatch.setattr(encoder, "merge", longest_match)
    monkeypatch.setattr(encoder, "merge_long", longest_match)
    status, lines = run(capsys, "--parts", "tokenizer")
    assert status == 1
    assert [line.endswith("FAIL") for line in lines[1:-1]] == [True] * 4


def test_the_exit_status_is_1(monkeypatch, capsys):
    monkeypatch.setattr(gpt2, "gelu", erf_gelu)
    status, lines = run(capsys, "--parts", "gelu")
    assert status == 1
    assert any(line.endswith("FAIL") for line in lines)


def test_what_is_not_installed_is_a_line_and_no_pass(monkeypatch, capsys):
    find = importlib.util.find_spec
    missing = ("tensorflow", "transformers", "tiktoken")
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name in missing else find(name))
    status, lines = run(capsys, "--parts", "gelu", "tokenizer")
    assert status == 0
    assert sum(line.endswith("not installed") for line in lines[1:-1]) == 10
    assert lines[-1] == "6 pass, 0 FAIL, 10 not installed"


# ------------------------------------------------------------------------------------------------------- measuring


def test_what_is_measured():
    def same(x):
        return x

    one, eps = np.ones(3), 2.0**-52
    case = compare.Case((one,), 2 * one, 4)
    assert compare.measure(same, lambda x: x + 4 * eps, case) == (4 * eps, 4 * eps / (1 + 4 * eps), 2, 4)
    assert compare.measure(same, lambda x: x * np.nan, case)[2] == math.inf
    infinite = compare.Case((np.full(2, -np.inf),), np.ones(2), 4)
    assert compare.measure(same, same, infinite)[0] == 0
    with pytest.raises(ValueError, match=r"float64 \[3\] instead of float32 \[3\]"):
        compare.measure(same, lambda x: x.astype(np.float32), case)
    with pytest.raises(ValueError, match=r"float64 \[3\] instead of float64 \[1, 3\]"):
        compare.measure(same, lambda x: x[None], case)


def test_a_response_is_what_a_relative_change_does():
    """Of x^2 it is 2 x^2 times the change, of a sum of equal numbers its own size."""
    x = np.full((200, 1), 3.0, np.float32)
    moves = compare.response(lambda x: x * x, (x,))
    assert moves.min() >= 9  # its own size
    assert moves.mean() == pytest.approx(18 * 1.13, rel=0.15)  # 1.13 is the mean larger one of two |normal|
    sums = compare.response(lambda x: x.sum(-1, keepdims=True), (np.ones((200, 1000)),))
    assert sums.mean() == pytest.approx(1000)  # its own size; the change is 32 only
    shift = compare.response(lambda x: gpt2.layer_norm(x, np.ones(4), np.zeros(4)), (np.zeros((200, 4)),))
    assert shift.max() == 0
    row = np.array([[1e8, 1e8 + 1] * 500] * 200)  # its numbers' own moves average out, its mean's do not
    shift = compare.response(
        lambda x: gpt2.layer_norm(x, np.ones(1000), np.zeros(1000)).mean(-1, keepdims=True), (row,)
    )
    assert shift.mean() == pytest.approx(2e8 * 1.13, rel=0.15)
    assert gpt2.layer_norm.__module__ == "gpt2"


def test_float64_has_its_own_limit():
    assert compare.is_right((0, 1e-11, 1, 2), "float32")
    assert not compare.is_right((0, 1e-11, 1, 2), "float64")
    assert not compare.is_right((0, 0, 3, 2), "float32")


@pytest.mark.parametrize("dtype", compare.DTYPES)
def test_inputs_are_of_every_kind(dtype):
    random, large, tiny, denormal, constant, *_ = compare.inputs((4, 50), dtype)
    info = np.finfo(dtype)
    assert all(x.dtype == dtype for x in (random, large, tiny, denormal, constant))
    assert np.abs(large).max() > 1e15
    assert info.smallest_normal < np.abs(tiny).max() < 1e-30
    assert (np.abs(denormal) < info.smallest_normal).all()
    assert denormal.any()
    assert len(np.unique(constant)) == 1
