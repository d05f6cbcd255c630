"""Test the file that `trace --out` writes: its values, its tables, decoding steps, and inputs that are refused."""

from __future__ import annotations

import io
import json
import re
import zipfile

import numpy as np
import pytest
from helpers import ROOT, SMALL, Result, assert_error, random_params

import gpt2
from encoder import Encoder
from picogpt import command_line
from picogpt.tracing import command
from picogpt.tracing.names import meanings
from picogpt.tracing.recorder import trace
from utils import load_encoder_hparams_and_params

PROMPT = "ROMEO:\nWhat light"


@pytest.fixture(scope="module")
def tiny() -> tuple[Encoder, dict[str, int], dict]:
    return load_encoder_hparams_and_params("tiny", str(ROOT / "models"))


def test_the_file_holds_one_pass_and_its_table_of_contents(tmp_path, traced, tiny):
    result = traced(PROMPT, "--out", tmp_path / "a.npz")
    assert (result.status, result.err) == (0, "")
    _, hparams, params = tiny
    with np.load(tmp_path / "a.npz", allow_pickle=False) as file:
        table = file["contents"]
        assert list(table["name"]) == list(meanings(4))
        assert set(file.files) == {"contents", "contents.json", *table["name"]}
        for name, shape, dtype, meaning in table.tolist():
            assert json.loads(shape) == list(file[name].shape)
            assert dtype == str(file[name].dtype)
            assert f"{name} " in result.out
            assert meaning in " ".join(result.out.split())  # a long one is wrapped
        expected = gpt2.gpt2(file["inputs"], **params, n_head=hparams["n_head"])
        np.testing.assert_array_equal(file["logits"], expected)
    assert [path.name for path in tmp_path.iterdir()] == ["a.npz"]


def test_another_language_finds_everything_in_the_json_text(ours, tiny):
    """This reads the format with zip and JSON only, as docs/trace.md describes it."""
    encoder, hparams, _ = tiny
    with zipfile.ZipFile(ours) as archive:
        text = archive.read("contents.json.npy")
        header = text.index(b"\n") + 1
        assert b"'descr': '|u1'" in text[:header]
        about = json.loads(text[header:])
        assert about["model"] == "tiny"
        assert about["hparams"] == hparams
        assert about["prompt"] == PROMPT
        assert about["ids"] == encoder.encode(PROMPT)
        names = [array["name"] for array in about["arrays"]]
        assert names == [prefix + name for prefix in ("", "step1/", "step2/") for name in meanings(4)]
        with np.load(ours) as file:
            for array in about["arrays"]:
                data = archive.read(f"{array['name']}.npy")
                header = data.index(b"\n") + 1
                assert b"'fortran_order': False" in data[:header]
                values = np.frombuffer(data[header:], array["dtype"]).reshape(array["shape"])
                np.testing.assert_array_equal(values, file[array["name"]])


def test_the_same_prompt_gives_the_same_bytes(tmp_path, traced, ours):
    assert traced(PROMPT, "--decode", 2, "--out", tmp_path / "a.npz").status == 0
    assert (tmp_path / "a.npz").read_bytes() == ours.read_bytes()
    with zipfile.ZipFile(ours) as archive:  # the time of day must not be in it
        assert {member.date_time for member in archive.infolist()} == {(1980, 1, 1, 0, 0, 0)}


def test_numbers_are_written_row_after_row_whatever_their_order_in_memory_is():
    by_columns = np.asfortranarray(np.arange(6, dtype=np.float32).reshape(2, 3))
    with io.BytesIO() as file:
        with zipfile.ZipFile(file, "w") as archive:
            command.Writer(archive).add({"logits": by_columns})
        data = zipfile.ZipFile(file).read("logits.npy")
    assert np.frombuffer(data[data.index(b"\n") + 1 :], np.float32).tolist() == [0, 1, 2, 3, 4, 5]


def test_decoding_steps_are_those_of_generate(ours, tiny):
    encoder, hparams, params = tiny
    ids = encoder.encode(PROMPT)
    new_ids = list(gpt2.generate(ids, params, hparams["n_head"], 2))
    whole = gpt2.gpt2(ids + new_ids, **params, n_head=hparams["n_head"])
    n = len(ids)
    with np.load(ours) as file:
        for step, id in enumerate(new_ids):
            assert file[f"step{step + 1}/inputs"].tolist() == [id]
            assert file[f"step{step + 1}/h3/attn/k"].shape == (5, n + step + 1, 32)
            np.testing.assert_allclose(file[f"step{step + 1}/logits"][0], whole[n + step], rtol=1e-3, atol=1e-4)
        np.testing.assert_array_equal(file["step2/h1/attn/v"][:, :n], file["h1/attn/v"])


def test_n_past_records_the_prompt_in_two_pieces(tmp_path, traced, ours):
    assert traced(PROMPT, "--n_past", 3, "--out", tmp_path / "a.npz").status == 0
    with np.load(ours) as one, np.load(tmp_path / "a.npz") as two:
        names = set(meanings(4))
        assert set(two.files) == {"contents", "contents.json"} | names | {f"past/{name}" for name in names}
        for name in ("inputs", "h2/mid", "logits"):
            both = np.concatenate([two[f"past/{name}"], two[name]])
            np.testing.assert_allclose(both, one[name], rtol=1e-3, atol=1e-4)
        assert two["h0/attn/scores"].shape == (5, len(one["inputs"]) - 3, len(one["inputs"]))


def test_many_steps_are_printed_once(tmp_path, traced):
    result = traced("To", "--decode", 4, "--out", tmp_path / "a.npz")
    assert "\nstep1/h0/ln_1 " in result.out
    assert "\nstep2/ … step4/: the same names as step1/\n" in result.out
    assert "step2/h0" not in result.out
    assert max(map(len, result.out.splitlines()[1:-1])) <= 80  # the last line has the path


def test_passes_come_one_by_one_and_two_of_them_must_fit_into_memory():
    passes = command.plan(n_prompt=6, n_past=2, n_decode=2)
    found = list(command.recorded(range(6), random_params(SMALL), 3, passes))
    assert [next(iter(values)) for values in found] == ["past/inputs", "inputs", "step1/inputs", "step2/inputs"]
    assert [len(values) for values in found] == [len(meanings(3))] * 4
    sizes = [4 * sum(value.size for value in values.values()) for values in found]
    assert command.memory_of(passes, SMALL, itemsize=4) == sizes[0] + sizes[1]


# ------------------------------------------------------------------------------------------------------------ its page

PAGE = (ROOT / "docs" / "trace.md").read_text(encoding="utf-8")


def test_the_page_s_search_finds_a_planted_induction_head(capsys, monkeypatch):
    """The example finds none in models/tiny. Here, a head of layer 2 attends from each token as an induction head."""
    (example,) = re.findall(r"^```python\n(.*?)^```$", PAGE.split("induction head?")[1], re.MULTILINE | re.DOTALL)

    def planted(probs):
        probs[1, 50:] = np.eye(100, dtype=probs.dtype)[1:51]
        return probs

    monkeypatch.chdir(ROOT)
    with trace({"h2/attn/probs": planted}):
        exec(example.replace("50, 20\n", "50, 1\n"), {})
    assert capsys.readouterr().out == "best: layer 2, head 1, 1.000\nchance: 0.014\n"


def test_every_option_is_on_its_page(capsys):
    with pytest.raises(SystemExit):
        command.parse_args(["--help"])
    found = re.findall(r"^  (?:-m(?: NAME)?, )?(--\w+)", capsys.readouterr().out, re.MULTILINE)
    options = set(found) - {"--help", "--models_dir"}
    assert options == {"--out", "--against", "--n_past", "--decode", "--force", "--model"}
    assert {option for option in options if option not in PAGE} == set()


# ------------------------------------------------------------------------------------------------------- wrong inputs


def test_a_trace_that_needs_more_memory_than_is_free_is_refused(tmp_path, traced, monkeypatch):
    monkeypatch.setattr(command_line, "free_memory", lambda: 10**6)
    result = traced("word " * 50, "--out", tmp_path / "a.npz")
    assert_error(result, 2, "the trace takes ", " MB of memory, but only 1 MB are free: a shorter prompt takes less")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["word " * 300], "but the model's context is n_ctx = 256"),
        ([""], "the prompt is empty"),
        (["To be", "--n_past", "2"], "--n_past 2 leaves no id of the prompt to trace: it has 2"),
        (["To be", "--decode", "255"], "2 ids and 255 decoding steps, but the model's context is n_ctx = 256"),
        (["To be", "--decode", "-1"], "'-1' is not a whole number at least 0"),
    ],
)
def test_a_prompt_that_can_not_be_traced_leaves_the_old_file(tmp_path, traced, words, message):
    (tmp_path / "a.npz").write_bytes(b"before")
    assert_error(traced(*words, "--out", tmp_path / "a.npz", "--force"), 2, message)
    assert [path.read_bytes() for path in tmp_path.iterdir()] == [b"before"]


def test_an_unwritable_path_is_an_error_before_the_work_begins(tmp_path, traced, monkeypatch):
    monkeypatch.setattr(command, "ensure_downloaded", None)
    assert_error(traced("x", "--out", tmp_path / "no" / "a.npz"), 1, "is no folder to write a.npz to")
    (tmp_path / "b.npz").mkdir()
    assert_error(traced("x", "--out", tmp_path / "b.npz"), 1, "is a folder")
    (tmp_path / "c.npz").touch()
    assert_error(traced("x", "--out", tmp_path / "c.npz"), 1, "exists already", "--force")


def test_the_output_is_named_and_ends_in_npz(tmp_path, traced):
    assert_error(traced("x"), 2, "--out FILE.npz or --against FILE.npz is needed")
    result: Result = traced("x", "--out", tmp_path / "notes.txt")
    assert_error(result, 2, "argument --out", "notes.txt' does not end in .npz")
    assert not list(tmp_path.iterdir())


def test_an_error_in_the_middle_leaves_nothing(tmp_path, traced, monkeypatch):
    def fail(archive, name, array):
        raise OSError(28, "No space left on device", "a.npz")

    monkeypatch.setattr("picogpt.tracing.command.write_array", fail)
    assert_error(traced("x", "--out", tmp_path / "a.npz"), 1, "No space left on device")
    assert not list(tmp_path.iterdir())
