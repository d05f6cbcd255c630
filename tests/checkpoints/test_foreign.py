"""Models in foreign layouts: every kind of folder against transformers' own logits, and every refusal. All offline."""

from __future__ import annotations

import json
import logging
import re
import shutil
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers import ODD, random_params, relative, their_logits

import gpt2
from picogpt.checkpoints import foreign, huggingface
from picogpt.checkpoints.foreign import open_model, read_config
from utils import SIZES, expected_shapes, nest

for module in ("torch", "transformers", "safetensors"):
    pytest.importorskip(module, reason=f"foreign layouts are checked with {module}: requirements-dev.txt")

import torch  # noqa: E402
import transformers  # noqa: E402
from hf_folders import change_json, change_tensors  # noqa: E402
from safetensors.numpy import save_file  # noqa: E402

IDS = [5, 6, 7, 299, 0, 260, 12, 12]

Tensors = dict[str, np.ndarray[Any, Any]]


def our_logits(folder: Path, ids: Any = IDS) -> np.ndarray:
    _, hparams, params = open_model(folder)
    return gpt2.gpt2(ids, **params, n_head=hparams["n_head"])


def saved_logits(folder: Path, **settings: Any) -> np.ndarray:
    """Return the logits of transformers' model in a folder, in float32."""
    model = transformers.GPT2LMHeadModel.from_pretrained(folder, dtype=torch.float32, **settings)
    return their_logits(model.eval(), IDS)


# ---------------------------------------------------------------------------------------------------- kinds of folders


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
@pytest.mark.parametrize("shard", ["5GB", "20KB"])
@pytest.mark.parametrize("kind", ["GPT2LMHeadModel", "GPT2Model"])
def test_folders_that_transformers_saves(small, dtype, shard, kind):
    """GPT2Model's tensors have no prefix `transformer.`."""
    model = getattr(transformers, kind).from_pretrained(small, dtype=getattr(torch, dtype))
    (small / "model.safetensors").unlink()
    model.save_pretrained(small, max_shard_size=shard)
    assert (small / "model.safetensors").exists() == (shard == "5GB")
    assert relative(our_logits(small), saved_logits(small)) < 1e-6


def test_float64_stays(small):
    model = transformers.GPT2LMHeadModel.from_pretrained(small, dtype=torch.float64)
    model.save_pretrained(small)
    assert relative(our_logits(small), their_logits(model, IDS)) < 1e-14


def only_lm_head(tensors: Tensors) -> Tensors:
    tensors["lm_head.weight"] = tensors.pop("transformer.wte.weight")
    return tensors


def also_lm_head(tensors: Tensors) -> Tensors:
    return tensors | {"lm_head.weight": tensors["transformer.wte.weight"].copy()}


def with_masks(tensors: Tensors) -> Tensors:
    for layer in range(2):
        tensors[f"transformer.h.{layer}.attn.bias"] = np.tri(17, dtype=bool)[None, None]
        tensors[f"transformer.h.{layer}.attn.masked_bias"] = np.array(-1e4, np.float32)
    return tensors


def prefixed(prefix: str) -> Callable[[Tensors], Tensors]:
    return lambda tensors: {prefix + name: tensor for name, tensor in tensors.items()}


def as_nanogpt(tensors: Tensors) -> Tensors:
    linear = re.compile(r".*(c_attn|c_proj|c_fc)\.weight")
    return {name: np.ascontiguousarray(t.T) if linear.fullmatch(name) else t for name, t in tensors.items()}


@pytest.mark.parametrize(
    "change",
    [
        only_lm_head,
        also_lm_head,
        with_masks,
        prefixed("_orig_mod."),
        prefixed("module."),
        prefixed("_orig_mod.module."),
        as_nanogpt,
        lambda tensors: prefixed("_orig_mod.")(only_lm_head(as_nanogpt(tensors))),
    ],
)
def test_other_names_and_forms_of_the_same_tensors(small, change):
    theirs = saved_logits(small)
    change_tensors(small, change)
    assert relative(our_logits(small), theirs) < 1e-6


@pytest.mark.parametrize("change", [dict, as_nanogpt])
def test_the_parameters_are_views_of_the_file(small, change):
    change_tensors(small, change)
    _, _, params = open_model(small)
    arrays = huggingface.state_dict(params)
    assert len(arrays) == 28
    for name, array in arrays.items():
        assert not array.flags.owndata, name
        assert not array.flags.writeable, name


def test_nanogpt_without_biases_and_with_its_own_config(small, caplog):
    """The oracle is transformers' model whose biases are 0. nanoGPT's GELU is another one, and a warning says so."""
    config = {"n_layer": 2, "n_head": 3, "n_embd": 21, "block_size": 17, "bias": False, "vocab_size": 300}
    change_tensors(small, lambda ts: {name: 0 * t if name.endswith("bias") else t for name, t in ts.items()})
    theirs = saved_logits(small)
    change_tensors(small, lambda ts: as_nanogpt({name: t for name, t in ts.items() if not name.endswith("bias")}))
    (small / "config.json").write_text(json.dumps(config | {"dropout": 0.0}))
    assert relative(our_logits(small), theirs) < 1e-6
    assert "nanoGPT computes GELU exactly" in caplog.text
    del config["n_head"]
    (small / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match=r"config.json: n_head is None, not a positive whole number"):
        open_model(small)
    (small / "config.json").unlink()
    with pytest.raises(
        FileNotFoundError, match=r'no config.json: write one with "vocab_size", "n_positions", "n_embd"'
    ):
        open_model(small)


def test_rows_that_no_token_names_are_left_out(small):
    model = transformers.GPT2LMHeadModel.from_pretrained(small)
    model.resize_token_embeddings(320, mean_resizing=False)
    with torch.no_grad():
        model.transformer.wte.weight[300:] = 100
    model.save_pretrained(small)
    ours = our_logits(small)
    theirs = their_logits(model.eval(), IDS)
    assert theirs.shape == (8, 320)
    assert relative(ours, theirs[:, :300]) < 1e-6
    encoder, hparams, params = open_model(small)
    assert hparams == ODD
    assert len(encoder.decoder) == len(params["wte"]) == 300
    assert not params["wte"].flags.owndata


def test_numbers_at_odd_addresses(small):
    """Older versions of safetensors did not pad the header. Products of such arrays are slow, so they are copied."""
    path = small / "model.safetensors"
    data = path.read_bytes()
    n = int.from_bytes(data[:8], "little")
    header = data[8 : 8 + n].rstrip(b" ") + b" "
    header += b" " * (1 - len(header) % 2)
    theirs = saved_logits(small)
    path.write_bytes(struct.pack("<Q", len(header)) + header + data[8 + n :])
    assert relative(our_logits(small), theirs) < 1e-6
    assert all(array.flags.aligned for array in huggingface.state_dict(open_model(small)[2]).values())


# --------------------------------------------------------------------------------------------------- names and settings


@pytest.mark.parametrize("size", SIZES)
def test_names_shapes_and_settings_are_those_of_transformers(size):
    """For each of OpenAI's sizes. PyTorch's device "meta" makes a model without numbers."""
    hparams = SIZES[size]
    with torch.device("meta"):
        config = transformers.GPT2Config(**huggingface.config_settings(hparams))
        state = transformers.GPT2LMHeadModel(config).state_dict()
    theirs = {name: tuple(tensor.shape) for name, tensor in state.items()}
    nothing = {name: np.broadcast_to(np.float32(0), shape) for name, shape in expected_shapes(hparams).items()}
    ours = huggingface.state_dict(nest(nothing, hparams["n_layer"]), "transformer.")
    assert {name: array.shape for name, array in ours.items()} | {"lm_head.weight": theirs["lm_head.weight"]} == theirs
    assert {f"transformer.{foreign.tensor_name(name)}" for name in nothing} == ours.keys()


def test_any_part_of_the_parameters_has_its_names():
    params = random_params(ODD)
    block = params["blocks"][1]
    whole = huggingface.state_dict(params)
    for part, prefix in ((block, "h.1."), (block["attn"], "h.1.attn."), (block["mlp"]["c_fc"], "h.1.mlp.c_fc.")):
        state = huggingface.state_dict(part)
        assert state
        assert all(array is whole[prefix + name] for name, array in state.items())
    assert huggingface.state_dict(params["ln_f"]).keys() == {"weight", "bias"}


def test_what_a_config_leaves_out_is_what_transformers_assumes(tmp_path):
    assumed = transformers.GPT2Config().to_dict()
    settings = huggingface.config_settings(SIZES["124M"])
    assert settings == {name: assumed[name] for name in settings}
    change_json(tmp_path / "config.json", model_type="gpt2")
    assert read_config(tmp_path / "config.json") == SIZES["124M"]


HARMLESS = {  # the settings of transformers' GPT-2 that change no logits, besides those of every model
    *("resid_pdrop", "embd_pdrop", "attn_pdrop", "initializer_range", "use_cache"),
    *("summary_type", "summary_use_proj", "summary_activation", "summary_proj_to_labels", "summary_first_dropout"),
    *("bos_token_id", "eos_token_id", "pad_token_id", "reorder_and_upcast_attn", "tie_word_embeddings"),
}


def test_every_setting_of_transformers_gpt2_is_known():
    """A setting that a later version adds may change the logits."""
    own = transformers.GPT2Config().to_dict().keys() - transformers.PretrainedConfig().to_dict().keys()
    assert own - {"model_type", "n_inner"} <= HARMLESS | huggingface.config_settings(SIZES["124M"]).keys()


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("activation_function", "gelu_pytorch_tanh"),
        ("activation_function", "gelu_python_tanh"),
        ("activation_function", "gelu_accurate"),
        ("activation_function", "gelu_fast"),
        ("reorder_and_upcast_attn", True),
        ("tie_word_embeddings", False),
        ("n_inner", 84),
        ("n_ctx", 5),  # n_positions counts
        ("summary_type", "mean"),
        ("resid_pdrop", 0.5),
    ],
)
def test_settings_that_give_the_same_logits_are_accepted(small, name, value):
    change_tensors(small, also_lm_head)
    change_json(small / "config.json", **{name: value})
    assert relative(our_logits(small), saved_logits(small, attn_implementation="eager")) < 1e-6


@pytest.mark.parametrize("name", ["gelu", "gelu_10", "gelu_python", "quick_gelu", "relu", "silu", "mish", "tanh"])
def test_activations_that_give_other_logits_are_refused(small, name):
    ours = our_logits(small)
    change_json(small / "config.json", activation_function=name)
    assert relative(ours, saved_logits(small)) > 1e-5
    assert_refused(small, f"config.json: gpt2.py can't compute this model: activation_function is {name!r}")


def assert_refused(folder: Path, message: str, error: type[Exception] = ValueError) -> None:
    """Check that the folder is refused in one line that names it."""
    with pytest.raises(error) as caught:
        open_model(folder)
    assert message in str(caught.value)
    assert str(folder) in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("model_type", "gpt_neo", "gpt2.py can't compute this model: model_type is 'gpt_neo', not 'gpt2'"),
        ("scale_attn_weights", False, "scale_attn_weights is False, not True"),
        ("scale_attn_by_inverse_layer_idx", True, "scale_attn_by_inverse_layer_idx is True"),
        ("add_cross_attention", True, "add_cross_attention is True"),
        ("layer_norm_epsilon", 1e-6, "layer_norm_epsilon is 1e-06, not 1e-05"),
        ("n_inner", 42, "n_inner is 42, not 4 n_embd = 84"),
        ("n_head", 4, "n_embd = 21 is not a multiple of n_head = 4"),
        ("n_head", "3", "n_head is '3', not a positive whole number"),
        ("n_layer", 3, "the tensor h.2.attn.c_attn.weight is missing, which config.json implies"),
        ("n_layer", 1, "gpt2.py can't compute this model: it has a tensor 'h.1."),
        ("n_positions", 18, "wpe.weight is (17, 21), but config.json implies (18, 21)"),
        ("vocab_size", 299, "the tokenizer has 300 tokens, but config.json says vocab_size = 299"),
        ("vocab_size", 1323, "wte.weight is (300, 21), but config.json implies (1323, 21)"),
        ("vocab_size", 1324, "the tokenizer has 300 tokens, but config.json says vocab_size = 1324"),
    ],
)
def test_a_config_that_is_not_gpt2_s(small, name, value, message):
    change_json(small / "config.json", **{name: value})
    assert_refused(small, message)


# -------------------------------------------------------------------------------------------------------------- weights


def untied(tensors: Tensors) -> Tensors:
    return tensors | {"lm_head.weight": tensors["transformer.wte.weight"] + np.float32(1e-6)}


def changed(name: str, change: Callable[[Any], Any]) -> Callable[[Tensors], Tensors]:
    return lambda tensors: tensors | {f"transformer.{name}": change(tensors[f"transformer.{name}"])}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (untied, "gpt2.py can't compute this model: lm_head.weight is not wte.weight"),
        (changed("h.0.mlp.c_fc.weight", lambda w: w.T.copy()), "h.0.mlp.c_fc.weight is (84, 21), but config.json impl"),
        (changed("ln_f.bias", lambda b: b.astype(np.int8)), "ln_f.bias is I8, not one of F32, F64, F16, BF16"),
        (lambda ts: {k: t for k, t in ts.items() if "ln_f.bias" not in k}, "the tensor ln_f.bias is missing"),
        (lambda ts: ts | {"score.weight": np.ones(3, np.float32)}, "it has a tensor 'score.weight'"),
    ],
)
def test_tensors_that_are_not_gpt2_s(small, change, message):
    change_tensors(small, change)
    assert_refused(small, message)


POINTER = (
    b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a214614ab2935c943f9e0ff69d22eadbb8f32b1258daaa5e2ca2\n"
)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "model.safetensors is not a safetensors file: it begins with ''; download or save it again"),
        (b"<!DOCTYPE html><html>", "it begins with '<!DOCTYPE html><html'; download or save it again"),
        (POINTER, "it only tells Git LFS where the weights are; `git lfs pull` in its folder downloads them"),
        (struct.pack("<Q", 2) + b"{]", "model.safetensors: its header is damaged: "),
        (struct.pack("<Q", 2) + b"[]", "model.safetensors: its header is damaged: "),
        (struct.pack("<Q", 8) + b'{"a": 0}', "model.safetensors: its header is damaged: "),
    ],
)
def test_weights_that_are_no_safetensors(small, content, message):
    (small / "model.safetensors").write_bytes(content)
    assert_refused(small, message)


def test_weights_of_another_length(small):
    path = small / "model.safetensors"
    data = path.read_bytes()
    for wrong in (data[:-1], data[: len(data) // 2], data + b"\0"):
        path.write_bytes(wrong)
        assert_refused(small, f"has {len(wrong):,} bytes, but its header describes {len(data):,}: download")
    path.write_bytes(data[:500])
    assert_refused(small, "is not a safetensors file")
    path.write_bytes(data.replace(b"[17,21]", b"[17,22]"))
    assert_refused(small, "its header is damaged: transformer.wpe.weight has 1,428 bytes, not 1,496")


def test_a_shard_that_is_missing(small):
    (small / "model.safetensors").unlink()
    change_json(small / "model.safetensors.index.json", weight_map={"wpe.weight": "model-00002-of-00002.safetensors"})
    assert_refused(small, f"No such file or directory: '{small}/model-00002-of-00002.safetensors'", FileNotFoundError)


def test_pickles_are_saved_as_safetensors_by_the_command_in_the_message(small):
    """The message's own code does it here. It begins with an import that this process has done already."""
    theirs = saved_logits(small)
    model = transformers.GPT2LMHeadModel.from_pretrained(small)
    torch.save(model.state_dict(), small / "pytorch_model.bin")
    (small / "model.safetensors").unlink()
    with pytest.raises(
        FileNotFoundError, match="loading the pickle pytorch_model.bin would run the code in it"
    ) as error:
        open_model(small)
    exec(re.search(r'python -c "(.+)"$', str(error.value))[1], {})
    assert relative(our_logits(small), theirs) < 1e-6


def test_nanogpt_checkpoints_are_saved_by_the_code_in_the_documentation(small, tmp_path, monkeypatch):
    text = (Path(foreign.__file__).parents[2] / "docs" / "models.md").read_text(encoding="utf-8")
    (code,) = re.findall(r"```python\n(.*?torch\.load.*?)```", text, re.DOTALL)
    theirs = saved_logits(small)
    state = transformers.GPT2LMHeadModel.from_pretrained(small).state_dict()
    state = {
        f"_orig_mod.{name}": tensor.T if re.search("c_.*weight", name) else tensor for name, tensor in state.items()
    }
    arguments = {"n_layer": 2, "n_head": 3, "n_embd": 21, "block_size": 17, "bias": True, "vocab_size": 300}
    monkeypatch.chdir(tmp_path)
    Path("out").mkdir()
    torch.save({"model": state, "model_args": arguments, "iter_num": 1}, "out/ckpt.pt")
    exec(code, {})
    (mine,) = Path("models").iterdir()
    for name in ("vocab.json", "merges.txt"):
        shutil.copy(small / name, mine)
    assert relative(our_logits(mine), theirs) < 1e-6
    (mine / "model.safetensors").unlink()
    shutil.copy("out/ckpt.pt", mine)
    assert_refused(mine, "the pickle ckpt.pt would run the code in it. To save what you trust", FileNotFoundError)


def test_safetensors_reads_what_we_write(tmp_path):
    from safetensors.numpy import load_file

    from picogpt.checkpoints.safetensors import read_safetensors, write_safetensors

    rng = np.random.default_rng(0)
    tensors = {
        dtype: rng.standard_normal((3, 5)).astype(dtype) for dtype in ("float16", "float32", "float64", ">f4")
    } | {"transposed": rng.standard_normal((5, 3)).T, "number": np.array(2.5), "empty": np.ones((0, 4), np.float32)}
    write_safetensors(tmp_path / "ours.safetensors", tensors)
    theirs = load_file(tmp_path / "ours.safetensors")
    ours = {name: tensor.read() for name, tensor in read_safetensors(tmp_path / "ours.safetensors").items()}
    save_file(theirs, tmp_path / "theirs.safetensors", metadata={"format": "pt"})
    again = {name: tensor.read() for name, tensor in read_safetensors(tmp_path / "theirs.safetensors").items()}
    assert theirs.keys() == ours.keys() == again.keys() == tensors.keys()
    for name, tensor in tensors.items():
        np.testing.assert_array_equal(theirs[name], tensor)
        np.testing.assert_array_equal(ours[name], tensor)
        np.testing.assert_array_equal(again[name], tensor)
        assert theirs[name].dtype == tensor.dtype.newbyteorder("=")


# --------------------------------------------------------------------------------------------------------------- utils


def test_utils_opens_a_foreign_folder_by_its_name(small, caplog):
    import utils

    encoder, hparams, params = utils.load_encoder_hparams_and_params("small", small.parent)
    assert hparams == ODD == utils.load_hparams_and_params(small)[0]
    assert encoder.encode("Hello") == utils.load_encoder(small).encode("Hello")
    assert relative(gpt2.gpt2(IDS, **params, n_head=3), saved_logits(small)) < 1e-6
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING and record.name == "picogpt"]
