"""What TensorFlow wrote is read as TensorFlow reads it. What needs no TensorFlow is in test_reader.py."""

from __future__ import annotations

import re
import signal
import sys
from pathlib import Path

import numpy as np
import pytest
from helpers import ODD, run_command
from tables import snappy_block, table_of, write_model

import utils
from picogpt import command_line
from picogpt.checkpoints.writing import flatten, initial_params, write_checkpoint, write_random_model
from picogpt.files import new_folder
from utils import NeedsTensorFlow, load_gpt2_params_from_tf_ckpt, load_hparams_and_params

tf = pytest.importorskip("tensorflow")


def assert_same_as_tensorflow(prefix: Path, params: dict) -> None:
    reader = tf.train.load_checkpoint(str(prefix))
    ours = flatten(params)
    assert set(ours) == {name for name in reader.get_variable_to_shape_map() if name.startswith("model/")}
    for name, array in ours.items():
        theirs = reader.get_tensor(name)
        assert array.shape == theirs.shape, name
        assert array.dtype == (np.float32 if theirs.dtype == np.float16 else theirs.dtype), name
        assert array.tobytes() == theirs.astype(array.dtype).tobytes(), name


def save(prefix: Path, tensors: dict, slices: list[str] | None = None) -> None:
    """Write a checkpoint. `slices` says of which part of which whole each tensor is, such as "4 3 0,2:-"."""
    names = [name.partition("@")[0] for name in tensors]
    specs = slices or [""] * len(names)
    tf.raw_ops.SaveV2(prefix=str(prefix), tensor_names=names, shape_and_slices=specs, tensors=list(tensors.values()))


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
    prefixes = [str(tmp_path / part) for part in "abc"]
    tf.raw_ops.MergeV2Checkpoints(checkpoint_prefixes=prefixes, destination_prefix=str(tmp_path / "model.ckpt"))
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


def write_version_1(prefix: Path, tensors: dict) -> None:
    """Write a checkpoint of the first version."""
    tf.raw_ops.Save(filename=str(prefix), tensor_names=list(tensors), data=list(tensors.values()))


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["version 1", "compressed", "slices"])
def test_what_only_tensorflow_reads_goes_through_it(tmp_path, kind):
    tensors = flatten(params_of())
    wte = tensors["model/wte"]
    if kind == "version 1":
        write_version_1(tmp_path / "model.ckpt", tensors)
    elif kind == "compressed":
        pairs = write_model(tmp_path, ODD, tensors)
        (tmp_path / "model.ckpt.index").write_bytes(table_of(snappy_block(sorted(pairs.items()))))
    else:
        others = {name: tensor for name, tensor in tensors.items() if name != "model/wte"}
        slices = ["300 21 0,100:-", "300 21 100,200:-", *[""] * len(others)]
        save(tmp_path / "model.ckpt", {"model/wte@0": wte[:100], "model/wte@1": wte[100:]} | others, slices)
    assert_same_as_tensorflow(tmp_path / "model.ckpt", load_gpt2_params_from_tf_ckpt(tmp_path / "model.ckpt", ODD))


@pytest.mark.parametrize("n", [2, 3, 5, 7])
@pytest.mark.parametrize("axis", [0, 1, 2])
def test_slices_need_tensorflow(tmp_path, n, axis):
    """The keys of slices are numbers that are not UTF-8."""
    tensor = np.arange(9 * 8 * 7, dtype=np.float32).reshape(9, 8, 7)
    pieces, slices, start = {}, [], 0
    for i, piece in enumerate(np.array_split(tensor, n, axis)):
        spans = ["-", "-", "-"]
        spans[axis], start = f"{start},{piece.shape[axis]}", start + piece.shape[axis]
        pieces[f"model/w@{i}"] = piece
        slices.append(f"9 8 7 {':'.join(spans)}")
    save(tmp_path / "model.ckpt", pieces, slices)
    with pytest.raises(NeedsTensorFlow, match="has tensors in slices"):
        utils.read_tensors(tmp_path / "model.ckpt")


def test_tensorflow_is_not_imported_for_a_plain_one(models_dir):
    code = (
        "import pathlib, sys, utils; utils.load_hparams_and_params(pathlib.Path(sys.argv[1]));"
        "print([name for name in ('tensorflow', 'requests', 'tqdm', 'picogpt') if name in sys.modules])"
    )
    assert run_command("-c", code, models_dir / "odd") == (0, "[]\n", "")


# ------------------------------------------------------------------------------------------------------------ writing


def test_a_full_disk_is_one_line(tmp_path, monkeypatch, capfd):
    """A limit on the size of files stands in for a full disk: TensorFlow's own writer fails."""
    resource = pytest.importorskip("resource", reason="limits on files are POSIX's")
    hparams = {"n_vocab": 300, "n_ctx": 16, "n_embd": 32, "n_head": 2, "n_layer": 2}
    limits, handler = resource.getrlimit(resource.RLIMIT_FSIZE), signal.signal(signal.SIGXFSZ, signal.SIG_IGN)

    def write() -> int:
        with new_folder(tmp_path / "new" / "model") as folder:
            resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, limits[1]))
            try:
                write_random_model(folder, hparams, 0)
            finally:
                resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        return 0

    monkeypatch.setattr(sys, "argv", ["picogpt random_weights"])
    try:
        assert command_line.run(write) == 1
    finally:
        signal.signal(signal.SIGXFSZ, handler)
    message = capfd.readouterr().err
    assert re.fullmatch(r"picogpt random_weights: TensorFlow can't write \S+; File too large\n", message), message
    assert not list((tmp_path / "new").iterdir())


def test_writing_a_read_model_gives_the_same_bytes(models_dir, tmp_path):
    hparams, params = load_hparams_and_params(models_dir / "odd")
    write_checkpoint(tmp_path, hparams, params)
    for name in (utils.DATA, utils.INDEX, "hparams.json", "checkpoint"):
        assert (tmp_path / name).read_bytes() == (models_dir / "odd" / name).read_bytes()


def test_the_graph_can_be_imported(models_dir):
    folder = models_dir / "odd"
    with tf.Graph().as_default(), tf.compat.v1.Session() as session:
        saver = tf.compat.v1.train.import_meta_graph(str(folder / "model.ckpt.meta"))
        saver.restore(session, str(folder / "model.ckpt"))
        wte = session.run("model/wte:0")
    np.testing.assert_array_equal(wte, load_hparams_and_params(folder)[1]["wte"])
