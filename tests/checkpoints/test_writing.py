"""Writing checkpoints: every byte is that of TensorFlow's own writer. And the models with random weights."""

from __future__ import annotations

import filecmp
import importlib.util
import math
import signal
import sys
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow_oracle
import tqdm
from helpers import ODD, ROOT, assert_error, run_main, run_tensorflow, shared, skip_without
from hypothesis import given, settings
from hypothesis import strategies as st

from picogpt import command_line
from picogpt.checkpoints import random_weights
from picogpt.checkpoints.writing import flatten, initial_params, made_up_merges, write_checkpoint, write_tensors
from utils import (
    DATA,
    INDEX,
    SIZES,
    expected_shapes,
    load_encoder_hparams_and_params,
    load_hparams_and_params,
    read_index,
)

# ------------------------------------------------------------------------------------------------------ every byte


def assert_same_bytes(tensors: dict[str, Any], folder: Path) -> None:
    """Write tensors twice, and compare the bytes of both index files and of both data files."""
    write_tensors(folder / "ours", tensors)
    run_tensorflow(tensorflow_oracle.save, str(folder / "theirs"), dict(sorted(tensors.items())))
    for ending in ("index", "data-00000-of-00001"):
        assert (folder / f"ours.{ending}").read_bytes() == (folder / f"theirs.{ending}").read_bytes(), ending


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
def test_every_dtype(tmp_path, rng, dtype):
    shapes = expected_shapes(ODD).items()
    assert_same_bytes({f"model/{name}": rng.standard_normal(shape).astype(dtype) for name, shape in shapes}, tmp_path)


def test_the_model_of_the_repository(tmp_path):
    """It was written by TensorFlow."""
    _, params = load_hparams_and_params(ROOT / "models" / "tiny")
    write_tensors(tmp_path / "model.ckpt", flatten(params))
    for name in (INDEX, DATA):
        assert (tmp_path / name).read_bytes() == (ROOT / "models" / "tiny" / name).read_bytes()


def small_tensors(n_layer: int) -> dict[str, Any]:
    names = [f"model/{name}" for name in expected_shapes(ODD | {"n_layer": n_layer})]
    return {name: np.full((1, 2), i, np.float32) for i, name in enumerate(names)}


@pytest.mark.parametrize("n_layer", [1, 2, 10, 11, 48, 400])
def test_any_number_of_layers(tmp_path, n_layer):
    """h10 comes before h2."""
    assert_same_bytes(small_tensors(n_layer), tmp_path)


def test_tensorflow_reads_a_block_that_is_longer_than_its_own(tmp_path):
    tensors = small_tensors(2500)
    write_tensors(tmp_path / "long", tensors)
    assert len((tmp_path / "long.index").read_bytes()) > 1 << 19
    found = run_tensorflow(tensorflow_oracle.tensors, str(tmp_path / "long"))
    assert found.keys() == tensors.keys()
    assert all((found[name] == tensor).all() for name, tensor in tensors.items())


def test_tensors_of_any_shape_and_order_in_memory(tmp_path, rng):
    matrix = rng.standard_normal((6, 4))
    tensors = {
        "none": np.zeros((0, 3)),
        "scalar": np.float32(3),
        "turned": matrix.T,
        "part": matrix[::2, 1:],
        "every second": matrix[0, ::2],
        "ä": matrix,
    }
    assert_same_bytes(tensors, tmp_path)


NAMES = st.text(st.characters(codec="utf-8", exclude_characters="\0"), min_size=1, max_size=40)


@settings(deadline=None, max_examples=50)
@given(st.dictionaries(NAMES, st.integers(0, 300), min_size=1, max_size=60))
def test_any_names_and_sizes(tmp_path_factory, lengths):
    tensors = {name: np.full(length, i, np.float32) for i, (name, length) in enumerate(lengths.items())}
    assert_same_bytes(tensors, tmp_path_factory.mktemp("any"))


@pytest.mark.slow
def test_the_shape_of_124m(full_size, tmp_path):
    params = load_hparams_and_params(full_size)[1]
    run_tensorflow(tensorflow_oracle.save, str(tmp_path / "theirs"), dict(sorted(flatten(params).items())))
    assert (full_size / INDEX).read_bytes() == (tmp_path / "theirs.index").read_bytes()
    assert filecmp.cmp(full_size / DATA, tmp_path / "theirs.data-00000-of-00001", shallow=False)


@pytest.mark.slow
def test_openai_s_own_index_differs_in_the_checksums_only(full_size):
    theirs = shared("openai-117M/model.ckpt.index")
    assert len((full_size / INDEX).read_bytes()) == len(theirs.read_bytes())
    entries = [
        {name: entry._replace(crc=0) for name, entry in read_index(path).items()}
        for path in (full_size / INDEX, theirs)
    ]
    assert list(entries[0].items()) == list(entries[1].items())


def test_writing_a_read_model_gives_the_same_bytes(models_dir, tmp_path):
    hparams, params = load_hparams_and_params(models_dir / "odd")
    write_checkpoint(tmp_path, hparams, params)
    for name in (DATA, INDEX, "hparams.json", "checkpoint"):
        assert (tmp_path / name).read_bytes() == (models_dir / "odd" / name).read_bytes()


@pytest.mark.parametrize("limit", [50_000, 285_262])
def test_a_full_disk_is_one_line(tmp_path, monkeypatch, capfd, limit):
    """A limit on the size of files stands in for a full disk: in the data file, and just before its end."""
    resource = pytest.importorskip("resource", reason="limits on files are POSIX's")
    limits, handler = resource.getrlimit(resource.RLIMIT_FSIZE), signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    monkeypatch.setattr(sys, "argv", ["picogpt random_weights"])
    monkeypatch.setitem(SIZES, "124M", ODD | {"n_embd": 48})
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limits[1]))
        out = tmp_path / "new" / "model"
        assert command_line.run(lambda: random_weights.main(["--shape", "124M", "--out", str(out)])) == 1
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, handler)
    assert capfd.readouterr().err == f"picogpt random_weights: {out}: File too large\n"
    assert not list((tmp_path / "new").iterdir())


def test_the_data_file_is_written_in_pieces(tmp_path):
    """16 MB of weights take less than 8 MB of memory besides their own."""
    tensors = {name: np.zeros(1 << 21, np.float32) for name in "ab"}
    tracemalloc.start()
    try:
        write_tensors(tmp_path / "x", tensors)
        assert tracemalloc.get_traced_memory()[1] < 8 << 20
    finally:
        tracemalloc.stop()


# ------------------------------------------------------------------------------------------------------ random weights


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


def test_the_command_writes_a_model_that_loads(tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(SIZES, "124M", ODD)  # a small one takes less time
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


def test_a_graph_is_written_if_it_is_asked_for(tmp_path, monkeypatch):
    monkeypatch.setitem(SIZES, "124M", ODD)
    skip_without("tensorflow")
    folder = tmp_path / "x"
    assert random_weights.main(["--shape", "124M", "--out", str(folder), "--meta"]) == 0
    wte = run_tensorflow(tensorflow_oracle.restore_by_graph, str(folder / "model.ckpt"), "model/wte")
    np.testing.assert_array_equal(wte, load_hparams_and_params(folder)[1]["wte"])


def test_a_graph_needs_tensorflow(tmp_path, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    monkeypatch.setattr(random_weights, "write_random_model", None)
    result = run_main("picogpt random_weights", "--shape", "124M", "--out", tmp_path / "x", "--meta")
    assert_error(result, 1, "tensorflow is not installed: pip install tensorflow (for --meta)")
    assert not list(tmp_path.iterdir())


def test_progress_is_shown(monkeypatch, tmp_path):
    bars = []

    class Bar(tqdm.tqdm):
        def __init__(self, *args, **kwargs):
            super().__init__(*args, **kwargs | {"disable": False})  # as in a terminal
            bars.append(self)

    monkeypatch.setattr(tqdm, "tqdm", Bar)
    monkeypatch.setitem(SIZES, "124M", ODD)
    assert random_weights.main(["--shape", "124M", "--out", str(tmp_path / "x")]) == 0
    shapes = expected_shapes(ODD)
    n_bytes = 4 * sum(math.prod(shape) for shape in shapes.values())
    assert [(bar.desc.strip(": "), bar.total) for bar in bars] == [("drawing", len(shapes)), ("writing", n_bytes)]
    assert [bar.n for bar in bars] == [bar.total for bar in bars]


def test_the_command_replaces_nothing(tmp_path):
    with pytest.raises(FileExistsError, match="exists already"):
        random_weights.main(["--shape", "124M", "--out", str(tmp_path)])
