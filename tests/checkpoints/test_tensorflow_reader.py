"""Checkpoints that only TensorFlow reads: it or tables.py wrote them. What it says about damaged ones is one line."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
import tensorflow_oracle
from helpers import ODD, run_tensorflow
from tables import header, snappy_block, table_block, table_of, write_model

from picogpt.checkpoints.tensorflow_reader import read_by_tensorflow, read_tensors
from picogpt.tensorflow_process import TensorFlowError
from utils import expected_shapes

REASON = ValueError("INDEX is unusual")


@pytest.fixture
def tensors(rng) -> dict[str, np.ndarray]:
    return {f"model/{name}": rng.standard_normal(shape, np.float32) for name, shape in expected_shapes(ODD).items()}


def assert_same(found: dict[str, np.ndarray], tensors: dict[str, np.ndarray]) -> None:
    tensors = {name.removeprefix("model/"): tensor for name, tensor in tensors.items()}
    assert found.keys() == tensors.keys()
    for name, tensor in tensors.items():
        assert found[name].dtype == tensor.dtype
        np.testing.assert_array_equal(found[name], tensor)


def assert_read(prefix: Path, tensors: dict[str, np.ndarray]) -> None:
    assert_same(run_tensorflow(read_tensors, str(prefix)), tensors)  # not in one more process, which starts for seconds


def compress(folder: Path, pairs: dict[bytes, bytes]) -> Path:
    """Write the index of a checkpoint again, compressed. Returns the checkpoint's prefix."""
    (folder / "model.ckpt.index").write_bytes(table_of(snappy_block(sorted(pairs.items()))))
    return folder / "model.ckpt"


OTHERS = {"model/flag": np.array([True]), "model/text": np.array([b"x"]), "model/n": np.int64(7), "x": np.float32(1)}


def test_the_older_format_with_variables_of_other_types(tensors, tmp_path):
    run_tensorflow(tensorflow_oracle.save_version_1, str(tmp_path / "model"), tensors | OTHERS)
    assert_same(read_by_tensorflow(tmp_path / "model", REASON), tensors)


def test_a_compressed_index(tensors, tmp_path):
    assert_read(compress(tmp_path, write_model(tmp_path, ODD, tensors)), tensors)


def test_big_endian_numbers(tensors, tmp_path):
    pairs = write_model(tmp_path, ODD, {name: tensor.byteswap() for name, tensor in tensors.items()})
    pairs[b""] = header(endianness=1)
    (tmp_path / "model.ckpt.index").write_bytes(table_of(table_block(sorted(pairs.items()))))
    assert_read(tmp_path / "model.ckpt", tensors)


@pytest.mark.parametrize("n", [2, 3, 5, 7])
@pytest.mark.parametrize("axis", [0, 1, 2])
def test_variables_that_were_cut_into_slices(tensors, tmp_path, n, axis):
    cut = {name: tensor for name, tensor in tensors.items() if tensor.ndim > axis and tensor.shape[axis] >= n}
    run_tensorflow(tensorflow_oracle.save_partitioned, str(tmp_path / "model"), cut, n, axis)
    assert len(cut) > 5 or axis == 0
    assert b"\x80" in (tmp_path / "model.index").read_bytes()  # the keys of slices are not UTF-8
    assert_read(tmp_path / "model", cut)


def test_slices_beside_variables_of_other_types(tensors, tmp_path):
    wte = tensors["model/wte"]
    slices = {"300 21 0,100:-": wte[:100], "300 21 100,200:-": wte[100:]}
    run_tensorflow(tensorflow_oracle.save_slices, str(tmp_path / "model"), "model/wte", slices, OTHERS)
    assert_read(tmp_path / "model", {"model/wte": wte})


def test_numbers_of_two_bytes_become_float32(tmp_path):
    half = np.arange(-8, 8, 0.125).astype(np.float16)
    run_tensorflow(tensorflow_oracle.save_as_bfloat16, str(tmp_path / "model"), {"model/b": half}, {"model/h": half})
    assert_read(tmp_path / "model", {"model/b": half.astype(np.float32), "model/h": half.astype(np.float32)})


def test_a_damaged_data_file(tensors, tmp_path):
    prefix = compress(tmp_path, write_model(tmp_path, ODD, tensors))
    (tmp_path / "model.ckpt.data-00000-of-00001").write_bytes(b"short")
    with pytest.raises(TensorFlowError, match="Read less bytes than requested"):
        run_tensorflow(read_tensors, str(prefix))


@pytest.fixture
def stub(tmp_path, monkeypatch):
    """Put a module in the place of TensorFlow."""

    def write(code: str) -> None:
        (tmp_path / "tensorflow.py").write_text(code)
        monkeypatch.syspath_prepend(tmp_path)

    return write


@pytest.mark.parametrize(
    ("code", "message"),
    [
        ("import os; os.abort()", "it crashes"),
        ("raise SystemExit", "it crashes"),
        ("raise ImportError('no module\\nnamed x')", "no module"),
        ("class train:\n def load_checkpoint(path): raise SystemError", "SystemError"),
    ],
)
def test_how_tensorflow_fails_is_one_line(stub, code, message):
    stub(code)
    with pytest.raises(ValueError, match=f"^INDEX is unusual, and TensorFlow can't read it: {message}$"):
        read_by_tensorflow(Path("x"), REASON)


def test_code_in_the_current_folder_is_not_run(stub, tmp_path, monkeypatch):
    (tmp_path / "stranger's").mkdir()
    (tmp_path / "stranger's" / "tensorflow.py").write_text("raise ImportError('run from the current folder')")
    stub("raise ImportError('the right one')")
    monkeypatch.chdir(tmp_path / "stranger's")
    monkeypatch.syspath_prepend("")
    with pytest.raises(ValueError, match="TensorFlow can't read it: the right one"):
        read_by_tensorflow(Path("x"), REASON)


def test_without_tensorflow_the_message_says_how_to_get_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorflow", None)
    expected = "^INDEX is unusual. Reading it takes TensorFlow, which is not installed: pip install tensorflow$"
    with pytest.raises(ValueError, match=expected):
        read_by_tensorflow(Path("x"), REASON)
