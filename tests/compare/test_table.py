"""The comparison is green as things are, and every planted error turns the lines of its part red."""

from __future__ import annotations

import importlib.util
import math
import re
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
from helpers import ROOT

import encoder
import gpt2
from picogpt.compare import cases, table
from picogpt.tolerance import difference
from utils import load_encoder_hparams_and_params

pytest.importorskip("torch")
pytest.importorskip("transformers")

Rows = Callable[..., list[table.Row]]


def remembered(function: Callable[..., Any]) -> Callable[..., Any]:
    """Compute a reference once for each case: an error that is planted in ours does not change it."""
    answers: dict[tuple[int, ...], tuple[Any, Any]] = {}

    def call(*args: Any) -> Any:
        key = tuple(map(id, args))
        if key not in answers:
            answers[key] = args, function(*args)  # while the arguments are kept, no other object gets their ids
        return answers[key][1]

    return call


@pytest.fixture(scope="module")
def rows_of() -> Iterator[Rows]:
    """Return the lines of some parts, on made-up cases or those of models/tiny, against some of the libraries.

    All cases are made before an error is planted, so that they are the right ones.
    """
    encoder, hparams, params = load_encoder_hparams_and_params("tiny", str(ROOT / "models"))
    model = cases.ModelCases("tiny", encoder, params, hparams["n_head"])
    made: dict[Any, list[cases.Case]] = {
        (part, dtype, of): list(by_part[part](dtype))
        for of, by_part in (("", cases.MADE_UP), ("tiny", model.by_part()))
        for part in table.OURS
        for dtype in table.DTYPES
    }

    def rows(*parts: str, of: str = "", libs: tuple[str, ...] = ("torch", "transformers")) -> list[table.Row]:
        return [
            table.compared(part, part, lib, dtype, lambda part=part, dtype=dtype: made[part, dtype, of])
            for part in parts
            for dtype in table.DTYPES
            for lib in table.REFERENCES[part]
            if lib in libs
        ]

    with pytest.MonkeyPatch.context() as patch:
        for functions in table.REFERENCES.values():
            for lib, function in functions.items():
                patch.setitem(functions, lib, remembered(function))
        yield rows


def run(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, list[str]]:
    models = ["--model_size", "tiny", "--models_dir", str(ROOT / "models")]
    status = table.main([*models, *arguments])
    title, *lines = capsys.readouterr().out.splitlines()
    assert title.startswith("gpt2.py against other implementations")
    return status, lines


@pytest.mark.slow
@pytest.mark.parametrize("of", ["", "tiny"])
def test_everything_is_right(rows_of, of):
    rows = rows_of(*table.OURS, of=of, libs=("torch", "transformers", "tensorflow"))
    assert len(rows) == 58
    assert [row for row in rows if row.verdict not in ("pass", "not installed")] == []


def test_the_table_has_made_up_cases_and_those_of_the_model(capsys):
    status, lines = run(capsys, "--parts", "tokenizer", "linear")
    assert status == 0, "\n".join(lines)
    parts = [line[:27].strip() for line in lines[1:-1]]
    assert parts == ["linear"] * 6 + ["linear, tiny"] * 6 + ["tokenizer"] * 2 + ["tokenizer, tiny"] * 2
    assert [int(line.split()[-5]) for line in lines[7:13]] == [16] * 6  # each of the 4 layers has 4
    assert all(line.endswith(("pass", "not installed")) for line in lines[1:-1])
    assert max(map(len, lines)) <= 80
    assert re.fullmatch(r"\d+ pass, 0 FAIL, \d+ not installed", lines[-1])


def test_a_model_s_path_is_shown_as_its_name(capsys):
    assert table.main(["--parts", "linear", "--model_size", str(ROOT / "models" / "tiny")]) == 0
    lines = capsys.readouterr().out.splitlines()[1:]
    assert [line[:27].strip() for line in lines[7:13]] == ["linear, tiny"] * 6


def test_every_row_fits_80_columns():
    names = [part + source for part in (*table.OURS, "tokenizer") for source in ("", ", tiny", ", 1558M")]
    names.append("gpt2, a-model-with-quite-a-long-name")
    for name in names:
        whole = table.Row(name, "transformers", "float32", 216, 1.2e-17, 1.2e-10, 1e-12, "pass")
        for row in (whole, whole._replace(verdict="FAIL"), whole._replace(verdict="not installed")):
            assert len(table.line(row)) <= 80, table.line(row)
            assert table.line(row).endswith(row.verdict)
            assert name in table.line(row) or len(name) > 27


def test_all_parts_are_compared_by_default():
    assert table.parse_args([]).parts == [*table.OURS, "tokenizer"]


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
    def causal_mask(q, k):
        n_q, n_k = q.shape[-2], k.shape[-2]
        return np.where(np.tri(n_q, n_k, n_k - n_q + by, dtype=bool), 0, -1e9).astype(q.dtype)

    return causal_mask


def shifted_positions(function):
    def gpt2_(inputs, wte, wpe, *args, **kwargs):
        return function(inputs, wte, np.roll(wpe, -1, axis=0), *args, **kwargs)

    return gpt2_


def forgetful_positions(function):
    """Count one position too few in a cached step."""

    def gpt2_(inputs, wte, wpe, *args, n_past=0, **kwargs):
        shifted = wpe if n_past == 0 else np.roll(wpe, 1, axis=0)
        return function(inputs, wte, shifted, *args, n_past=n_past, **kwargs)

    return gpt2_


def blocks_without_past(q, k, v, n_block=96):
    """Forget the keys of earlier positions in where a block's keys end."""
    blocks = []
    for start in range(0, q.shape[-2], n_block):
        rows, seen = slice(start, start + n_block), slice(max(start + n_block, q.shape[-2]))
        some_q, some_k, some_v = q[..., rows, :], k[..., seen, :], v[..., seen, :]
        blocks.append(gpt2.attention(some_q, some_k, some_v, gpt2.causal_mask(some_q, some_k)))
    return np.concatenate(blocks, axis=-2)


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
    ("causal_mask", shifted_mask(1), ["causal_attention", "mha", "gpt2"]),
    ("causal_mask", shifted_mask(-1), ["causal_attention", "mha"]),
    ("causal_attention", blocks_without_past, ["causal_attention"]),
    ("attention", unscaled_attention, ["attention", "mha"]),
    ("gpt2", shifted_positions(gpt2.gpt2), ["gpt2", "cached steps"]),
    ("gpt2", forgetful_positions(gpt2.gpt2), ["cached steps"]),
    ("keep_top_k", top_k_and_one_more(gpt2.keep_top_k), ["sampling filters"]),
    ("keep_top_p", top_p_without_the_last(gpt2.keep_top_p), ["sampling filters"]),
]


@pytest.mark.parametrize(("name", "wrong", "parts"), PLANTED, ids=lambda value: getattr(value, "__qualname__", None))
def test_a_planted_error_turns_its_lines_red(monkeypatch, rows_of, name, wrong, parts):
    monkeypatch.setattr(gpt2, name, wrong)
    rows = rows_of(*parts)
    red = {(row.part, row.against) for row in rows if row.verdict.startswith("FAIL")}
    assert red == {(row.part, row.against) for row in rows}


@pytest.mark.parametrize(("name", "wrong", "parts"), PLANTED, ids=lambda value: getattr(value, "__qualname__", None))
def test_it_turns_them_red_on_the_numbers_of_a_model_as_well(monkeypatch, rows_of, name, wrong, parts):
    if "squeez" in wrong.__qualname__:
        parts = ["cached steps"]  # squeeze does harm to a dimension of 1, and only a single id makes one in this model
    if wrong is blocks_without_past:
        parts = ["cached steps"]  # nothing is before the ids elsewhere
    monkeypatch.setattr(gpt2, name, wrong)
    red = {row.part for row in rows_of(*parts, of="tiny") if row.verdict.startswith("FAIL")}
    assert red == set(parts)


def forgetful_rows(function):
    """Take the first rows for the last n_logits."""

    def gpt2_(*args, n_logits=None, **kwargs):
        logits = function(*args, **kwargs)
        return logits if n_logits is None else logits[:n_logits]

    return gpt2_


class ForgetfulContext(gpt2.Context):
    """Puts every piece of a text at its beginning."""

    def logits(self, ids, n_logits=1):
        n_past = gpt2.n_shared(self.ids, ids[: len(ids) - n_logits])
        self.ids = list(ids)
        return gpt2.gpt2(ids[n_past:], **self.params, n_head=self.n_head, cache=self.cache, n_logits=n_logits)


def n_shared_by_length(a, b):
    """Take other ids for the same: the context then never goes back."""
    return min(len(a), len(b))


def one_pass_norm(x, g, b, eps=1e-5):
    """Compute the variance as E[x²] - E[x]², which cancels where the mean is large."""
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
    ("Context", ForgetfulContext, "cached steps"),
    ("n_shared", n_shared_by_length, "cached steps"),
    ("layer_norm", one_pass_norm, "layer_norm"),
    ("linear", linear_of_what_is_not_tiny, "linear"),
    ("gelu", gelu_of_what_is_normal, "gelu"),
    ("token_probs", probs_at_another_temperature(gpt2.token_probs), "sampling filters"),
]


@pytest.mark.parametrize(("name", "wrong", "part"), SUBTLE, ids=lambda value: getattr(value, "__qualname__", None))
def test_a_subtle_error_turns_every_line_red(monkeypatch, rows_of, name, wrong, part):
    monkeypatch.setattr(gpt2, name, wrong)
    rows = rows_of(part)
    assert [row.verdict[:4] for row in rows] == ["FAIL"] * len(rows)


def longest_match(symbols, ranks):
    """Take the longest token that fits, from the left. This is not BPE."""

    def is_token(text):
        return any(f"{text[:i]} {text[i:]}" in ranks for i in range(1, len(text)))

    out = []
    while symbols:
        n = next((n for n in range(min(len(symbols), 8), 1, -1) if is_token("".join(symbols[:n]))), 1)
        out.append("".join(symbols[:n]))
        symbols = symbols[n:]
    return out


def test_a_tokenizer_of_longest_matches_turns_it_red(monkeypatch, capsys):
    pytest.importorskip("tiktoken")
    pytest.importorskip("tokenizers")
    monkeypatch.setattr(encoder, "merge", longest_match)
    monkeypatch.setattr(encoder, "merge_long", longest_match)
    status, lines = run(capsys, "--parts", "tokenizer")
    assert status == 1
    assert [line.endswith("FAIL") for line in lines[1:-1]] == [True] * 4


# ------------------------------------------------------------------------------------------------------- the tool


def test_the_exit_status_is_1(monkeypatch, capsys):
    monkeypatch.setattr(gpt2, "gelu", erf_gelu)
    status, lines = run(capsys, "--parts", "gelu")
    assert status == 1
    assert any(line.endswith("FAIL") for line in lines)


def test_an_error_in_one_side_is_a_line_with_its_message(monkeypatch, rows_of):
    def refuses(x):
        raise RuntimeError("not\ntoday")

    monkeypatch.setattr(gpt2, "gelu", refuses)
    (row, *_) = rows_of("gelu")
    assert (row.cases, row.verdict) == (0, "FAIL: not today")
    assert table.line(row).endswith("FAIL: not today")


def test_a_library_that_is_missing_is_a_line_and_no_pass(monkeypatch, capsys):
    find = importlib.util.find_spec
    missing = ("tensorflow", "transformers", "tiktoken")
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name in missing else find(name))
    status, lines = run(capsys, "--parts", "gelu", "tokenizer")
    assert status == 0
    assert sum(line.endswith("not installed") for line in lines[1:-1]) == 10
    assert lines[-1] == "6 pass, 0 FAIL, 10 not installed"


def test_transformers_needs_torch(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "torch" else True)
    assert not table.installed("transformers")
    assert table.installed("tensorflow")


# ------------------------------------------------------------------------------------------------------ measuring


def test_a_difference_is_relative_to_the_largest_number():
    ours = np.array([1.0, -4.0])
    assert difference(ours, ours + 2**-40) == (2**-40, pytest.approx(2**-42))
    assert difference(ours, ours) == (0, 0)
    assert difference(ours[:0], ours[:0]) == (0, 0)


@pytest.mark.parametrize("wrong", [np.nan, np.inf, -np.inf])
def test_what_is_not_finite_is_infinitely_wrong(wrong):
    ours, theirs = np.ones(3), np.array([1, wrong, 1])
    assert difference(ours, theirs) == difference(theirs, ours) == (math.inf, math.inf)
    assert difference(theirs, theirs) == (math.inf, math.inf)


@pytest.mark.parametrize("dtype", table.DTYPES)
def test_denormal_numbers_may_be_rounded_to_0(dtype):
    smallest = np.finfo(dtype).smallest_normal
    denormal, normal = np.array([smallest / 2]), np.array([smallest * 4])
    assert denormal.dtype == dtype
    assert denormal[0] > 0
    assert difference(denormal, 0 * denormal)[1] == 0
    assert difference(normal, 0 * normal)[1] == 3


def test_another_shape_or_dtype_is_refused():
    ours = np.ones(3)
    with pytest.raises(ValueError, match=r"float64 \[3\] instead of float32 \[3\]"):
        difference(ours, ours.astype(np.float32))
    with pytest.raises(ValueError, match=r"float64 \[3\] instead of float64 \[1, 3\]"):
        difference(ours, ours[None])


def test_the_sampling_filters_have_the_tolerance_of_float64(rows_of):
    assert {row.tolerance for row in rows_of("sampling filters")} == {1e-12}
    assert [(row.dtype, row.tolerance) for row in rows_of("softmax")] == [("float32", 1e-4), ("float64", 1e-12)]
