"""Test `trace --against`: it finds the first value that differs in another file, and refuses what it can't compare."""

from __future__ import annotations

import json
import re
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers import ROOT, assert_error, random_params, transformers_model

import gpt2
from picogpt.tracing.against import FLOOR, MULTIPLE, N_NUDGED, Comparison, nudged
from picogpt.tracing.dump import listed, opened
from picogpt.tracing.formats import Text
from picogpt.tracing.names import meanings
from picogpt.tracing.passes import plan, shapes_of
from picogpt.tracing.recorder import trace
from utils import load_encoder_hparams_and_params

PROMPT = "ROMEO:\nWhat light"
N_ALL = len(meanings(4))


@pytest.fixture
def values(ours) -> dict[str, Any]:
    """The values of the prompt's pass, to be changed and saved as another implementation's."""
    with np.load(ours) as file:
        return {name: file[name] for name in meanings(4)}


@pytest.fixture
def compare(tmp_path, traced):
    """Return a function that saves values and compares them with ours."""

    def run(values: dict[str, Any], *options: Any):
        np.savez(tmp_path / "mine.npz", **values)
        return traced(PROMPT, "--against", tmp_path / "mine.npz", *options)

    return run


def about(**changes: Any) -> dict[str, Any]:
    text = json.dumps({"model": "tiny", "prompt": PROMPT, **changes})
    return {"contents.json": np.frombuffer(text.encode(), np.uint8)}


# ------------------------------------------------------------------------------------------------------------- agreeing


def test_the_tool_s_own_file_agrees(ours, traced):
    result = traced(PROMPT, "--decode", 2, "--against", ours)
    assert (result.status, result.err) == (0, "")
    first, second = result.out.splitlines()
    assert first == f"{3 * N_ALL} of {3 * N_ALL} values compared with {ours}"
    assert re.fullmatch(
        r"all agree: the furthest is \S+, 1 times its rounding in float32 \(the limit is 10 times\)", second
    )
    result = traced(PROMPT, "--against", ours)
    assert result.status == 0
    assert "not in this trace: step*/inputs, step*/embedding, step*/h*/ln_1, " in result.out
    assert result.out.splitlines()[1].endswith(" and 12 more")
    assert listed("abcdefgh") == "a, b, c, d, e, f, g, h"


def test_transformers_agrees(compare):
    torch = pytest.importorskip("torch")
    encoder, hparams, params = load_encoder_hparams_and_params("tiny", str(ROOT / "models"))
    ids = encoder.encode(PROMPT)
    model = transformers_model(params, hparams, "float32")
    with torch.no_grad():
        found = model(torch.tensor([ids]), output_hidden_states=True, output_attentions=True)
    names = ["embedding", "h0/out", "h1/out", "h2/out", "ln_f"]
    theirs = {name: value[0].numpy() for name, value in zip(names, found.hidden_states)}
    theirs |= {f"h{layer}/attn/probs": value[0].numpy() for layer, value in enumerate(found.attentions)}
    result = compare({"logits": found.logits[0].numpy(), **theirs})
    assert result.status == 0, result
    assert result.out.startswith(f"10 of {N_ALL} values compared with ")
    assert "\nmissing there: inputs, h*/ln_1, h*/attn/c_attn, " in result.out
    assert ", h*/mlp/c_proj, h3/out\nall agree: " in result.out


def test_what_need_not_be_equal(compare, values):
    """The mask of picoGPT and OpenAI is -1e10, and ids may be int32."""
    for name in values:
        if name.endswith("scores"):
            values[name] = np.where(np.isinf(values[name]), np.float32(-1e10), values[name])
    values["inputs"] = values["inputs"].astype(np.int32)
    assert compare(values).status == 0


# ------------------------------------------------------------------------------------------------------------ differing


def test_the_first_value_that_differs_is_named_with_its_place_and_size(compare, values):
    values["h2/mlp/gelu"][3, 5] += np.abs(values["h2/mlp/gelu"]).max() / 100
    values["h1/attn/heads"][4, 2, 7] += np.abs(values["h1/attn/heads"]).max() / 10
    result = compare({name: values[name] for name in reversed(values)})  # the file's order does not matter
    assert (result.status, result.err) == (1, "")
    first, second, third, last = result.out.splitlines()[1:]
    assert first == "the first value that differs: h1/attn/heads, probs @ v [n_head, n_seq, d_head]"
    assert second.startswith("  relative difference 0.1: "), second
    assert second.endswith("; the limit is 10 times")
    theirs = values["h1/attn/heads"][4, 2, 7]
    assert third.startswith("  largest at [4, 2, 7]: ours ")
    assert f", theirs {theirs:.9g}, " in third
    assert last == f"2 of {N_ALL} values differ; docs/porting.md lists usual causes by the first of them"


def rounding_of(name: str, ours: Path) -> tuple[np.ndarray, float]:
    """Return a value of PROMPT's pass in float64, and the largest rounding of three float32 passes, computed anew."""
    _, hparams, params = load_encoder_hparams_and_params("tiny", str(ROOT / "models"))
    passes = []
    with np.load(ours) as file:
        for weights in (widened(params), nudged(params, 0), nudged(params, 1)):
            with trace() as t:
                gpt2.gpt2(file["inputs"], **weights, n_head=hparams["n_head"])
            passes.append(t[name])
        precise, *singles = *passes, file[name]
        return precise, float(max(np.abs(single - precise).max() for single in singles) / np.abs(precise).max())


def widened(params: Any) -> Any:
    if isinstance(params, dict):
        return {name: widened(value) for name, value in params.items()}
    return [widened(value) for value in params] if isinstance(params, list) else params.astype(np.float64)


@pytest.mark.parametrize(("factor", "status"), [(0.9, 0), (1.1, 1)])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("name", ["h2/out", "h0/attn/q"])
def test_the_limit_is_a_multiple_of_the_value_s_own_rounding(compare, ours, name, dtype, factor, status):
    assert N_NUDGED == 2
    precise, rounding = rounding_of(name, ours)
    assert rounding > FLOOR
    units = np.finfo(dtype).eps / np.finfo(np.float32).eps
    theirs = precise.copy()
    theirs.flat[precise.argmin()] += MULTIPLE * factor * rounding * units * np.abs(precise).max()
    result = compare({name: theirs.astype(dtype)})
    assert result.status == status, result


@pytest.mark.parametrize(("factor", "status"), [(0.9, 0), (1.1, 1)])
def test_a_value_without_rounding_has_some_units_in_the_last_place(compare, values, ours, factor, status):
    """The smallest numbers of the embedding are exact in float32."""
    precise, rounding = rounding_of("embedding", ours)
    assert rounding < FLOOR
    theirs = precise.copy()
    theirs.flat[np.abs(precise).argmin()] += MULTIPLE * factor * FLOOR * np.abs(precise).max()
    assert compare({"embedding": theirs.astype(np.float32)}).status == status


def test_float32_numbers_in_another_type_or_byte_order_agree(compare, values):
    """As lists and JSON files give them, and Java."""
    for dtype in (np.float64, ">f4", ">f8"):
        result = compare({name: value.astype(dtype) for name, value in values.items() if value.dtype == np.float32})
        assert (result.status, result.err) == (0, ""), result.out
    shortened = {"embedding": values["embedding"].astype(np.float64).round(8)}  # digits are missing
    result = compare(shortened)
    assert result.status == 1
    assert "if the port computes in float32, save its numbers as float32" in result.out


def test_ids_alone_are_nothing_to_compare(compare, values):
    message = "has no value of this trace, such as logits: it has inputs"
    assert_error(compare({"inputs": values["inputs"]}), 2, "mine.npz", message)


def test_a_zip_file_may_have_folders(tmp_path, compare, traced, values):
    compare({"embedding": values["embedding"]})
    with zipfile.ZipFile(tmp_path / "mine.npz", "a") as file:
        file.writestr("h0/attn/", b"")
    result = traced(PROMPT, "--against", tmp_path / "mine.npz")
    assert (result.status, "not in this trace" in result.out) == (0, False)


def test_a_nudged_pass_reads_neighbours_of_the_embeddings():
    params = random_params({"n_vocab": 11, "n_ctx": 5, "n_embd": 4, "n_head": 2, "n_layer": 1})
    changed = nudged(params, 0)
    for name in ("wte", "wpe"):
        assert changed[name].dtype == np.float32
        up, down = (np.nextafter(params[name], np.float32(x)) for x in (np.inf, -np.inf))
        assert ((changed[name] == up) | (changed[name] == down)).all()
        assert (changed[name] == up).any()
        assert (changed[name] == down).any()
    assert changed["blocks"] is params["blocks"]
    assert not np.array_equal(changed["wte"], nudged(params, 1)["wte"])


def test_a_float64_model_is_traced_as_it_is(tmp_path):
    hparams = {"n_vocab": 11, "n_ctx": 5, "n_embd": 4, "n_head": 2, "n_layer": 1}
    params, passes = random_params(hparams, np.float64), plan(3, 0, 0)
    with trace() as t:
        gpt2.gpt2([1, 2, 3], **params, n_head=2)
    for factor, differs in ((4e-15, False), (1e-13, True)):
        changed = {name: value.copy() for name, value in t.items()}
        changed["h0/out"][0] += factor * np.abs(changed["h0/out"]).max()
        np.savez(tmp_path / "mine.npz", **changed)
        with opened(tmp_path / "mine.npz") as dump:
            text = Text(params, np.array([1, 2, 3]), 0)
            comparison = Comparison(dump, shapes_of(passes, hparams), text, 2, passes)
            comparison.add(passes[0], t)
        assert (comparison.first is not None) == differs


def test_a_wrong_mask_is_a_difference(compare, values):
    values["h0/attn/scores"] = np.where(np.isinf(values["h0/attn/scores"]), -100, values["h0/attn/scores"])
    result = compare(values)
    assert result.status == 1
    assert "differs: h0/attn/scores," in result.out
    assert "ours -inf, theirs -100, inf apart" in result.out


def test_other_ids_are_said_first_and_nothing_else_is_compared(compare, values):
    values["inputs"][2] += 1
    result = compare({**values, **about(prompt="ROMEO:\nWhat night")})
    ids = values["inputs"]
    assert (result.status, result.err) == (1, "")
    assert result.out == (
        "another prompt: from character 12 on, ours 'light', theirs 'night'\n"
        f"other ids: at position 2, ours {ids[2] - 1}, theirs {ids[2]}\n"
    )
    shorter = {name: value[:4] if name == "inputs" else value for name, value in values.items()}
    shorter["inputs"][2] -= 1
    result = compare(shorter)
    assert result.status == 1
    assert result.out == f"other ids: at position 4, ours {ids[4]}, theirs none after 4 ids\n"
    result = compare({"logits": values["logits"], **about(ids=[1])})
    assert (result.status, result.out) == (1, f"other ids: at position 0, ours {ids[0]}, theirs 1\n")


def test_another_model_is_said_and_compared(compare, values):
    result = compare({**values, **about(model="mine")})
    assert result.status == 0
    assert result.out.startswith(f"another model: ours 'tiny', theirs 'mine'\n{N_ALL} of {N_ALL} values compared")


def test_a_step_that_differs_is_found(ours, tmp_path, traced):
    with np.load(ours) as file:
        steps = {name: file[name] for name in file.files if name.startswith("step")}
    steps["step2/h0/attn/q"][:] = 0
    np.savez(tmp_path / "mine.npz", **steps)
    result = traced(PROMPT, "--decode", 2, "--against", tmp_path / "mine.npz")
    assert result.status == 1
    assert "differs: step2/h0/attn/q, queries" in result.out
    assert f"{2 * N_ALL} of {3 * N_ALL} values compared" in result.out


def test_out_and_against_together(compare, values, tmp_path):
    values["logits"][:] = 0
    result = compare(values, "--out", tmp_path / "ours.npz")
    assert result.status == 1
    assert result.out.index("ours.npz: ") < result.out.index("differs: logits")
    assert (tmp_path / "ours.npz").exists()
    values["logits"] = values["logits"][:-1]
    assert compare(values, "--out", tmp_path / "again.npz").status == 2
    assert not (tmp_path / "again.npz").exists()


def test_nan_is_a_difference_like_any_other(compare, values):
    values["h2/ln_2"][1, 3] = np.nan
    result = compare(values)
    assert (result.status, result.err) == (1, "")
    assert "differs: h2/ln_2, " in result.out
    assert "  largest at [1, 3]: ours " in result.out
    assert ", theirs nan, " in result.out
    assert f"1 of {N_ALL} values differ" in result.out
    values["h2/ln_1"][:] = 0
    result = compare(values)
    assert result.status == 1
    assert "differs: h2/ln_1, " in result.out
    assert f"2 of {N_ALL} values differ" in result.out


# -------------------------------------------------------------------------------------------------------------- refused


def test_a_file_made_with_n_past_needs_it_here_too(tmp_path, traced):
    path = tmp_path / "two.npz"
    assert traced(PROMPT, "--n_past", 3, "--out", path).status == 0
    assert_error(traced(PROMPT, "--against", path), 2, f"{path} was made with --n_past 3: give it here, too")
    assert traced(PROMPT, "--n_past", 3, "--against", path).status == 0


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"h0/ln_1": np.zeros((2, 6, 160), np.float32)},
            "h0/ln_1 is float32 [2, 6, 160], but must be float32 or float64 [6, 160]",
        ),
        (
            {"h0/ln_1": np.zeros((6, 160), np.float16)},
            "h0/ln_1 is float16 [6, 160], but must be float32 or float64 [6, 160]",
        ),
        ({"inputs": np.zeros((1, 6))}, "inputs is float64 [1, 6], but must be of integers [6]"),
        ({"ln_1": np.zeros(3), "other": np.zeros(3)}, "has no value of this trace, such as logits: it has ln_1, other"),
        ({}, "has no value of this trace, such as logits: it has no arrays"),
        ({"logits": np.array([{}, []], dtype=object)}, "logits can't be read: it holds pickled objects"),
        ({"contents.json": np.frombuffer(b"[1]", np.uint8)}, "contents.json: not a JSON object"),
        ({"contents.json": np.frombuffer(b"[" * 10**5, np.uint8)}, "contents.json: not JSON"),
        ({"contents.json": np.frombuffer(b'{"\xff"', np.uint8)}, "contents.json: not JSON"),
    ],
)
def test_arrays_that_can_not_be_compared(compare, changes, message):
    assert_error(compare(changes), 2, "mine.npz", message)


def header(text: str) -> bytes:
    return np.lib.format.magic(1, 0) + len(text).to_bytes(2, "little") + text.encode()


def damaged(data: bytes) -> bytes:
    return data[:200] + bytes([data[200] ^ 255]) + data[201:]


@pytest.mark.parametrize(
    "data", [b"", b"text", b"PK\3\4 is not enough", b"\x80\x04K\x01.", b"\x93NUMPY\x01\x00\x02\x00{}"]
)
def test_a_file_that_is_not_npz(tmp_path, traced, data):
    (tmp_path / "mine.npz").write_bytes(data)
    assert_error(traced("x", "--against", tmp_path / "mine.npz"), 2, "mine.npz is not an NPZ file")


def test_a_single_array_is_not_npz(tmp_path, traced):
    np.save(tmp_path / "mine.npy", np.zeros(3))
    assert_error(traced("x", "--against", tmp_path / "mine.npy"), 2, "mine.npy is not an NPZ file")


def test_a_missing_file_or_a_folder(tmp_path, traced):
    assert_error(traced("x", "--against", tmp_path / "no.npz"), 1, "no.npz: No such file")
    result = traced("x", "--against", tmp_path)
    assert_error(result, 1, str(tmp_path))


def test_damaged_members(tmp_path, traced, values):
    np.savez(tmp_path / "good.npz", logits=values["logits"])
    (tmp_path / "mine.npz").write_bytes(damaged((tmp_path / "good.npz").read_bytes()))
    assert_error(traced(PROMPT, "--against", tmp_path / "mine.npz"), 2, "mine.npz: logits can't be read")


@pytest.mark.parametrize(
    ("name", "data", "message"),
    [
        ("logits", b"1.0", "logits is not an array in NPY format"),
        ("logits.npy", header("(" * 64), "logits can't be read"),  # a TokenError
        (
            "logits.npy",
            header("{'descr': '<f4', 'fortran_order': False, 'shape': (9000000000000,)}"),
            "Unable to alloc",
        ),
        ("logits.npy", header(f"{{'descr': '<f4', 'fortran_order': False, 'shape': ({9**30},)}}"), "too large"),
    ],
)
def test_odd_members(tmp_path, traced, name, data, message):
    with zipfile.ZipFile(tmp_path / "odd.npz", "w") as archive:
        archive.writestr(name, data)
    assert_error(traced(PROMPT, "--against", tmp_path / "odd.npz"), 2, "odd.npz: logits", message)


def test_a_damaged_directory_of_members(tmp_path, traced, values):
    np.savez(tmp_path / "mine.npz", logits=values["logits"])
    data = (tmp_path / "mine.npz").read_bytes()
    place = data.rindex(b"PK\1\2")  # the directory's entry, whose byte 6 is the version that is needed
    (tmp_path / "mine.npz").write_bytes(data[: place + 6] + b"\xff" + data[place + 7 :])
    assert_error(traced(PROMPT, "--against", tmp_path / "mine.npz"), 2, "mine.npz is not an NPZ file")


def test_what_a_file_says_cannot_steer_the_terminal(compare, values):
    result = compare({**values, **about(model="x\x1b[2J\u202e")})
    assert "another model" in result.out
    assert not {"\x1b", "\u202e"} & set(result.out)
