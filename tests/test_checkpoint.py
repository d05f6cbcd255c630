"""What TensorFlow wrote is read as TensorFlow reads it. What needs no TensorFlow is in test_reader.py."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import tensorflow_oracle
from helpers import ODD, run_command, run_tensorflow

import utils
from picogpt.checkpoints.writing import flatten, initial_params, write_checkpoint
from utils import NeedsTensorFlow, load_gpt2_params_from_tf_ckpt, load_hparams_and_params


def assert_same_as_tensorflow(prefix: Path, params: dict) -> None:
    ours, all_theirs = flatten(params), run_tensorflow(tensorflow_oracle.tensors, str(prefix))
    assert set(ours) == set(all_theirs)
    for name, array in ours.items():
        theirs = all_theirs[name]
        assert array.shape == theirs.shape, name
        assert array.dtype == (np.float32 if theirs.dtype == np.float16 else theirs.dtype), name
        assert array.tobytes() == theirs.astype(array.dtype).tobytes(), name


def save(prefix: Path, tensors: dict) -> None:
    run_tensorflow(tensorflow_oracle.save, str(prefix), tensors)


def params_of(dtype: str = "float32") -> dict:
    rng = np.random.default_rng(3)
    tensors = {name: rng.standard_normal(shape).astype(dtype) for name, shape in utils.expected_shapes(ODD).items()}
    return utils.nest(tensors, ODD["n_layer"])


# ---------------------------------------------------------------------------------------------------------- reading


@pytest.mark.slow
def test_full_size_bit_for_bit(full_size):
    hparams, params = load_hparams_and_params(full_size)
    assert hparams["n_layer"] == len(params["blocks"]) == 12
    assert_same_as_tensorflow(full_size / "model.ckpt", params)


@pytest.mark.parametrize("dtype", ["float32", "float64", "float16"])
def test_dtypes(tmp_path, dtype):
    save(tmp_path / "model.ckpt", flatten(params_of(dtype)))
    assert_same_as_tensorflow(tmp_path / "model.ckpt", load_gpt2_params_from_tf_ckpt(tmp_path / "model.ckpt", ODD))


def test_size_1_dimensions_survive(tmp_path):
    """Every dimension but n_vocab is 1, so `squeeze` would drop too many."""
    hparams = {"n_vocab": 257, "n_ctx": 1, "n_embd": 1, "n_head": 1, "n_layer": 1}
    write_checkpoint(tmp_path, hparams, initial_params(hparams, 0))
    _, params = load_hparams_and_params(tmp_path)
    assert params["wte"].shape == (257, 1)
    assert params["blocks"][0]["attn"]["c_proj"]["w"].shape == (1, 1)
    assert params["blocks"][0]["attn"]["c_proj"]["b"].shape == (1,)


def test_more_than_ten_layers_keep_their_order(tmp_path):
    hparams = {"n_vocab": 257, "n_ctx": 4, "n_embd": 2, "n_head": 1, "n_layer": 12}
    params = initial_params(hparams, 0)
    for layer, block in enumerate(params["blocks"]):
        block["ln_1"]["g"] = np.full(2, layer, np.float32)
    write_checkpoint(tmp_path, hparams, params)
    _, read = load_hparams_and_params(tmp_path)
    assert [block["ln_1"]["g"][0] for block in read["blocks"]] == list(range(12))


def test_several_shards(tmp_path):
    tensors = flatten(params_of())
    names = sorted(tensors)
    for part, some in (("a", names[:7]), ("b", names[7:20]), ("c", names[20:])):
        save(tmp_path / part, {name: tensors[name] for name in some})
    run_tensorflow(tensorflow_oracle.merge, [str(tmp_path / part) for part in "abc"], str(tmp_path / "model.ckpt"))
    assert len(list(tmp_path.glob("model.ckpt.data-*-of-00003"))) == 3
    assert_same_as_tensorflow(tmp_path / "model.ckpt", load_gpt2_params_from_tf_ckpt(tmp_path / "model.ckpt", ODD))


def test_a_fine_tuned_model_loads_by_its_folder_s_name(damaged, capsys):
    """Training scripts choose other names, and leave variables that are not weights, also under the model's name."""
    folder = damaged("my model")
    for path in folder.glob("model.ckpt*"):
        path.unlink()
    extra = {"step": np.int64(7), "flag": np.array([True, False]), "text": np.array([b"x", b"yz"]), "none": np.zeros(0)}
    save(folder / "model-1000", flatten(params_of()) | extra | {f"model/{name}": extra[name] for name in extra})
    (folder / "checkpoint").write_text('model_checkpoint_path: "/somewhere/else/model-1000"\n')
    tokenizer, hparams, params = utils.load_encoder_hparams_and_params("my model", folder.parent)
    assert hparams == ODD
    assert len(tokenizer.encoder) == 300
    np.testing.assert_array_equal(params["wte"], params_of()["wte"])
    utils.main(["my model", "--models_dir", str(folder.parent)])
    assert "all checksums are right" in capsys.readouterr().out


# ------------------------------------------------------------------------------------ what TensorFlow has to read


@pytest.mark.slow
def test_slices_go_through_tensorflow(tmp_path):
    tensors = flatten(params_of())
    wte = tensors.pop("model/wte")
    slices = {"300 21 0,100:-": wte[:100], "300 21 100,200:-": wte[100:]}
    run_tensorflow(tensorflow_oracle.save_slices, str(tmp_path / "model.ckpt"), "model/wte", slices, tensors)
    assert_same_as_tensorflow(tmp_path / "model.ckpt", load_gpt2_params_from_tf_ckpt(tmp_path / "model.ckpt", ODD))


@pytest.mark.parametrize("n", [2, 3, 5, 7])
@pytest.mark.parametrize("axis", [0, 1, 2])
def test_slices_need_tensorflow(tmp_path, n, axis):
    """The keys of slices are numbers that are not UTF-8."""
    tensors = {"model/w": np.arange(9 * 8 * 7, dtype=np.float32).reshape(9, 8, 7)}
    run_tensorflow(tensorflow_oracle.save_partitioned, str(tmp_path / "model.ckpt"), tensors, n, axis)
    with pytest.raises(NeedsTensorFlow, match="has tensors in slices"):
        utils.read_tensors(tmp_path / "model.ckpt")


def test_tensorflow_is_not_imported_for_a_plain_one(models_dir):
    code = (
        "import pathlib, sys, utils; utils.load_hparams_and_params(pathlib.Path(sys.argv[1]));"
        "print([name for name in ('tensorflow', 'requests', 'tqdm', 'picogpt') if name in sys.modules])"
    )
    assert run_command("-c", code, models_dir / "odd") == (0, "[]\n", "")


def test_writing_a_read_model_gives_the_same_bytes(models_dir, tmp_path):
    hparams, params = load_hparams_and_params(models_dir / "odd")
    write_checkpoint(tmp_path, hparams, params)
    for name in (utils.DATA, utils.INDEX, "hparams.json", "checkpoint"):
        assert (tmp_path / name).read_bytes() == (models_dir / "odd" / name).read_bytes()
