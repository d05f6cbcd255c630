"""The four sizes, and models with random weights. test_checkpoint.py checks what `write_checkpoint` writes."""

from __future__ import annotations

import importlib.util
import math

import numpy as np
import pytest
import tqdm
from helpers import ODD, assert_error, run_main

from picogpt.checkpoints import random_weights
from picogpt.checkpoints.sizes import hparams_of
from picogpt.checkpoints.writing import flatten, initial_params, made_up_merges, write_checkpoint
from utils import SIZES, expected_shapes, load_encoder_hparams_and_params


def test_the_sizes_have_the_published_numbers_of_parameters():
    counts = [sum(math.prod(shape) for shape in expected_shapes(hparams_of(size)).values()) for size in SIZES]
    assert counts == [124_439_808, 354_823_168, 774_030_080, 1_557_611_200]


def test_made_up_merges_are_different():
    merges = made_up_merges(50_000)
    assert len(merges) == len(set(merges)) == len({merge.replace(" ", "") for merge in merges}) == 50_000


def test_random_weights_start_as_gpt2_s_training_does():
    hparams = ODD | {"n_embd": 60, "n_layer": 8}
    for name, array in flatten(initial_params(hparams, seed=0)).items():
        assert array.dtype == np.float32
        if name.endswith(("/g", "/b")):
            assert (array == (1 if name.endswith("/g") else 0)).all(), name
        else:
            expected = 0.02 / 4 if name.endswith("c_proj/w") else 0.02  # √(2 · 8 layers) = 4
            assert array.std() == pytest.approx(expected, rel=0.1), name


def test_parameters_of_other_hyper_parameters_are_not_written(tmp_path):
    with pytest.raises(ValueError, match="not those of a GPT-2 with these hyper-parameters"):
        write_checkpoint(tmp_path, ODD | {"n_layer": 3}, initial_params(ODD, seed=0))
    assert not list(tmp_path.iterdir())


def test_the_command_writes_a_model_that_loads(tmp_path, monkeypatch, capsys):
    pytest.importorskip("tensorflow", reason="TensorFlow writes checkpoints")
    monkeypatch.setattr(random_weights, "hparams_of", lambda size: ODD)  # a small one takes less time
    for name, options in (("a", []), ("b", ["--tokenizer", str(tmp_path / "a")]), ("c", ["--seed", "1"])):
        assert random_weights.main(["--shape", "124M", "--out", str(tmp_path / name), *options]) == 0
        assert capsys.readouterr().out == f"{tmp_path / name}: 124M with random weights\n"
    (a_encoder, hparams, a), (b_encoder, _, b), (_, _, c) = (
        load_encoder_hparams_and_params(name, tmp_path) for name in "abc"
    )
    assert hparams == ODD
    assert a_encoder.encoder == b_encoder.encoder
    np.testing.assert_array_equal(a["wte"], b["wte"])
    assert not np.array_equal(a["wte"], c["wte"])


def test_an_older_command_line_still_works(monkeypatch, tmp_path):
    assert vars(random_weights.parse_args(["124M", "--out", "x"]))["shape"] == "124M"
    for words in ([], ["124M", "--shape", "355M"]):
        assert_error(run_main("picogpt random_weights", *words, "--out", tmp_path / "x"), 2, "--shape names one size")


def test_tensorflow_is_asked_for_before_the_work(monkeypatch, tmp_path):
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "tensorflow" else find(name))
    monkeypatch.setattr(random_weights, "write_random_model", None)
    result = run_main("picogpt random_weights", "--shape", "124M", "--out", tmp_path / "x")
    assert_error(result, 1, "tensorflow is not installed: pip install tensorflow (only TensorFlow can write")
    assert not list(tmp_path.iterdir())


def test_progress_is_shown(monkeypatch, tmp_path):
    pytest.importorskip("tensorflow", reason="TensorFlow writes checkpoints")
    bars = []

    class Bar(tqdm.tqdm):
        def __init__(self, *args, **kwargs):
            super().__init__(*args, **kwargs | {"disable": False})  # as in a terminal
            bars.append(self)

    monkeypatch.setattr(tqdm, "tqdm", Bar)
    monkeypatch.setattr(random_weights, "hparams_of", lambda size: ODD)
    assert random_weights.main(["--shape", "124M", "--out", str(tmp_path / "x")]) == 0
    shapes = expected_shapes(ODD)
    n_bytes = 4 * sum(math.prod(shape) for shape in shapes.values())
    assert [(bar.desc.strip(": "), bar.total) for bar in bars] == [("drawing", len(shapes)), ("writing", n_bytes)]
    assert [bar.n for bar in bars] == [bar.total for bar in bars]


def test_the_command_replaces_nothing(tmp_path):
    pytest.importorskip("tensorflow", reason="the command asks for TensorFlow first")
    with pytest.raises(FileExistsError, match="exists already"):
        random_weights.main(["--shape", "124M", "--out", str(tmp_path)])
