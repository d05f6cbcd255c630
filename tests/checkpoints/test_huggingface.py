"""Hugging Face's layout of a GPT-2: names against transformers' own, every form of a folder, every refusal."""

from __future__ import annotations

import copy
import hashlib
import json
import os
import random
import shutil
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers import ODD, random_params, shared, transformers_model

import utils
from encoder import get_encoder
from picogpt.checkpoints.writing import write_merges
from utils import SHA256, SIZES, TOKENIZER_FILES, expected_shapes, load_encoder_hparams_and_params, nest

for module in ("torch", "transformers", "safetensors"):
    pytest.importorskip(module, reason=f"Hugging Face's layout is checked with {module}: requirements-dev.txt")

from hf_folders import (  # noqa: E402
    TINY,
    assert_same_files,
    assert_same_tokens,
    change_json,
    change_tensors,
    only_tokenizer_json,
    our_ids,
    transformers_ids,
)

from picogpt.checkpoints import convert, huggingface  # noqa: E402

# ---------------------------------------------------------------------------------------------------------------- names


@pytest.mark.parametrize("size", SIZES)
def test_names_shapes_and_settings_are_those_of_transformers(size):
    """For each of OpenAI's sizes. PyTorch's device "meta" makes a model without numbers."""
    import torch
    import transformers

    hparams = SIZES[size]
    with torch.device("meta"):
        config = transformers.GPT2Config(**huggingface.config_settings(hparams))
        theirs = {
            name: tuple(tensor.shape) for name, tensor in transformers.GPT2LMHeadModel(config).state_dict().items()
        }
    nothing = {name: np.broadcast_to(np.float32(0), shape) for name, shape in expected_shapes(hparams).items()}
    ours = huggingface.state_dict(nest(nothing, hparams["n_layer"]), "transformer.")
    assert {name: array.shape for name, array in ours.items()} | {"lm_head.weight": theirs["lm_head.weight"]} == theirs
    assert {f"transformer.{huggingface.tensor_name(name)}" for name in nothing} == ours.keys()


def test_the_settings_of_gpt2_are_what_transformers_assumes():
    import transformers

    assumed = transformers.GPT2Config().to_dict()
    settings = huggingface.config_settings(SIZES["124M"])
    assert settings == {name: assumed[name] for name in settings}


def test_a_config_without_sizes_means_124m(tmp_path):
    """transformers takes the same values, as the test above shows."""
    change_json(tmp_path / "config.json", model_type="gpt2")
    assert huggingface.read_config(tmp_path / "config.json") == SIZES["124M"]


def test_a_setting_under_two_names(tmp_path):
    """transformers reads n_ctx no longer, so only the other names of a setting have to agree."""
    path = tmp_path / "config.json"
    change_json(path, model_type="gpt2", n_positions=17, max_position_embeddings=17, n_ctx=5, n_head=3, n_embd=21)
    assert huggingface.read_config(path)["n_ctx"] == 17
    change_json(path, max_position_embeddings=18)
    with pytest.raises(ValueError, match="n_positions is 17, but its other name max_position_embeddings is 18"):
        huggingface.read_config(path)


def test_any_part_of_the_parameters_has_its_names():
    params = random_params(ODD)
    block = params["blocks"][1]
    whole = huggingface.state_dict(params)
    for part, prefix in ((block, "h.1."), (block["attn"], "h.1.attn."), (block["mlp"]["c_fc"], "h.1.mlp.c_fc.")):
        state = huggingface.state_dict(part)
        assert state
        assert all(array is whole[prefix + name] for name, array in state.items())
    assert huggingface.state_dict(params["ln_f"]).keys() == {"weight", "bias"}


def assert_refused(folder: Path, message: str, error: type[Exception] = ValueError) -> None:
    """Check that the folder is refused in one line with this message, and that nothing is left beside it."""
    target = folder.parent / "ours"
    before = sorted(path.name for path in folder.parent.iterdir())
    with pytest.raises(error) as caught:
        convert.from_hf(str(folder), target)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)
    assert sorted(path.name for path in folder.parent.iterdir()) == before


# -------------------------------------------------------------------------------------------------------------- weights


def test_shards(small, tmp_path):
    import transformers

    model = transformers.AutoModelForCausalLM.from_pretrained(small)
    (small / "model.safetensors").unlink()
    model.save_pretrained(small, max_shard_size="20KB")
    assert len(list(small.glob("model-*.safetensors"))) > 2
    assert not (small / "model.safetensors").exists()
    convert.from_hf(str(small), tmp_path / "ours")
    assert our_ids(tmp_path / "ours", [5, 6, 7], 13) == transformers_ids(small, [5, 6, 7], 13)


def test_an_older_checkpoint_without_prefix_with_masks_and_a_tied_head(small, source, tmp_path):
    def older(tensors):
        for name in list(tensors):
            tensors[name.removeprefix("transformer.")] = tensors.pop(name)
        for layer in range(2):
            tensors[f"h.{layer}.attn.bias"] = np.tri(17, dtype=bool)[None, None]
            tensors[f"h.{layer}.attn.masked_bias"] = np.array(-1e4, np.float32)
        tensors["lm_head.weight"] = tensors["wte.weight"].copy()

    change_tensors(small, older)
    convert.from_hf(str(small), tmp_path / "ours")
    convert.from_hf(str(source), tmp_path / "plain")
    assert_same_files(tmp_path / "ours", tmp_path / "plain")


def test_the_other_names_and_the_defaults_of_a_config(small, tmp_path):
    path = small / "config.json"
    config = json.loads(path.read_text())
    for old, new in {"n_embd": "hidden_size", "n_head": "num_attention_heads", "n_positions": "n_ctx"}.items():
        config[new] = config.pop(old)
    for name in huggingface.COMPUTED:
        config.pop(name, None)
    path.write_text(json.dumps(config | {"n_inner": 84}))
    convert.from_hf(str(small), tmp_path / "ours")
    assert utils.load_hparams(tmp_path / "ours" / "hparams.json") == ODD


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("model_type", "gpt_neo", "gpt2.py can't compute this model: model_type is 'gpt_neo', not 'gpt2'"),
        ("model_type", None, "model_type is None, not 'gpt2'"),
        ("activation_function", "gelu", "activation_function is 'gelu', not 'gelu_new'"),
        ("scale_attn_weights", False, "scale_attn_weights is False, not True"),
        ("scale_attn_by_inverse_layer_idx", True, "scale_attn_by_inverse_layer_idx is True"),
        ("reorder_and_upcast_attn", True, "reorder_and_upcast_attn is True"),
        ("add_cross_attention", True, "add_cross_attention is True"),
        ("tie_word_embeddings", False, "tie_word_embeddings is False"),
        ("layer_norm_epsilon", 1e-6, "layer_norm_epsilon is 1e-06, not 1e-05"),
        ("n_inner", 42, "n_inner is 42, not 4 n_embd = 84"),
        ("n_head", 4, "n_embd = 21 is no multiple of n_head = 4"),
        ("n_head", "3", "n_head is '3', not a positive whole number"),
        ("num_attention_heads", 7, "n_head is 3, but its other name num_attention_heads is 7"),
        ("hidden_size", [1], "n_embd is 21, but its other name hidden_size is [1]"),
        ("n_layer", 0, "n_layer is 0, not a positive whole number"),
        ("n_layer", 3, "the tensor h.2.attn.c_attn.weight is missing, which config.json implies"),
        ("n_layer", 10**9, "28 tensors, but config.json says n_layer = 1000000000"),
        ("n_layer", 1, "gpt2.py can't compute this model: it has a tensor 'h.1."),
        ("n_positions", 18, "wpe.weight is (17, 21), but config.json implies (18, 21)"),
        ("vocab_size", 301, "the tokenizer has 300 tokens, but config.json says vocab_size = 301"),
    ],
)
def test_a_config_that_is_not_gpt2_s(small, name, value, message):
    change_json(small / "config.json", **{name: value})
    assert_refused(small, message)


def untied(tensors):
    tensors["lm_head.weight"] = tensors["transformer.wte.weight"] + np.float32(1e-7)


def transposed(tensors):
    name = "transformer.h.0.mlp.c_fc.weight"
    tensors[name] = np.ascontiguousarray(tensors[name].T)


def mixed(tensors):
    tensors["transformer.ln_f.bias"] = tensors["transformer.ln_f.bias"].astype(np.float16)


def twice(tensors):
    tensors["wte.weight"] = tensors["transformer.wte.weight"].copy()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (untied, "gpt2.py can't compute this model: lm_head.weight differs from wte.weight"),
        (transposed, "h.0.mlp.c_fc.weight is (84, 21), but config.json implies (21, 84)"),
        (mixed, "ln_f.bias is F16, but wte.weight is F32"),
        (twice, "the tensor 'wte.weight' occurs twice"),
        (lambda t: t.pop("transformer.ln_f.bias"), "the tensor ln_f.bias is missing"),
        (lambda t: t.update({"score.weight": np.ones(3, np.float32)}), "it has a tensor 'score.weight'"),
        (lambda t: t.update({k: v.astype(np.int8) for k, v in t.items()}), "is I8, not one of F32, F16, F64, BF16"),
    ],
)
def test_tensors_that_are_not_gpt2_s(small, change, message):
    change_tensors(small, change)
    assert_refused(small, message)


def test_pickles_are_refused_with_the_reason(small):
    (small / "model.safetensors").rename(small / "pytorch_model.bin")
    assert_refused(small, "pytorch_model.bin is a pickle, and loading a pickle runs the code in it")
    (small / "pytorch_model.bin").unlink()
    assert_refused(small, "has no model.safetensors: weights are read from safetensors only")


@pytest.mark.parametrize("content", [b"", b"<html>404</html>", b"\xff" * 100])
def test_weights_that_are_no_safetensors(small, content):
    (small / "model.safetensors").write_bytes(content)
    assert_refused(small, "model.safetensors: ")


def test_truncated_weights(small):
    path = small / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-1])
    assert_refused(small, "model.safetensors: ")


def header(*names: str, **changes: Any) -> bytes:
    """Return a safetensors header that describes these tensors, of two numbers each, with some values changed."""
    tensors = {
        name: {"dtype": "F32", "shape": [2], "data_offsets": [8 * i, 8 * i + 8]} | changes
        for i, name in enumerate(names)
    }
    text = json.dumps(tensors).encode()
    return struct.pack("<Q", len(text)) + text


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (header("a", "b", data_offsets=[0, 8]) + bytes(8), "invalid offset"),
        (header("a", data_offsets=[4, 12]) + bytes(12), "invalid offset"),
        (header("a") + bytes(9), "model.safetensors: Error while deserializing header"),
        (header("a", shape=[-1]), "invalid value: integer `-1`"),
        (header("a", shape=[1 << 62, 8]), "overflow"),
        (header("a", dtype="F99"), "unknown variant `F99`"),
        (header("a")[:-1], "model.safetensors: Error while deserializing header"),
        (struct.pack("<Q", 1 << 63) + b"{}", "header has 9,223,372,036,854,775,808 bytes, above 4,194,304"),
        (header(*map(str, range(60_000))) + bytes(480_000), "header has 4,"),
    ],
    ids=["overlap", "gap", "a byte too many", "negative", "overflow", "dtype", "cut", "huge", "many"],
)
def test_headers_of_safetensors_that_are_broken(small, content, message):
    (small / "model.safetensors").write_bytes(content)
    assert_refused(small, message)


def test_names_of_tensors_with_control_characters_are_shown_escaped(small):
    def rename(tensors):
        tensors["h.0\x1b]0;x\x07\nwte"] = tensors.pop("transformer.wpe.weight")
        tensors["transformer.wpe.weight"] = np.ones((17, 21), np.float32)

    change_tensors(small, rename)
    assert_refused(small, r"it has a tensor 'h.0\x1b]0;x\x07\nwte', and GPT-2 has none of that name")


OUTSIDE = ["../model.safetensors", "..", "/model.safetensors", "C:model.safetensors", "..\\model.safetensors", "x.bin"]


IMPOSSIBLE = ["", "a\0.safetensors", "\ud800.safetensors", "a\n.safetensors", "./a.safetensors"]


@pytest.mark.parametrize("name", [*OUTSIDE, *IMPOSSIBLE])
def test_an_index_that_leads_out_of_the_folder(small, name):
    (small / "model.safetensors").rename(small.parent / "model.safetensors")
    change_json(small / "model.safetensors.index.json", weight_map={"wte.weight": name})
    assert_refused(small, f"{name!r} is not a safetensors file in the same folder")


def test_an_index_without_files(small):
    (small / "model.safetensors").unlink()
    change_json(small / "model.safetensors.index.json", weight_map=["x"])
    assert_refused(small, "weight_map does not give a file for each tensor")
    change_json(small / "model.safetensors.index.json", weight_map={"x": ["y"]})
    assert_refused(small, "weight_map does not give a file for each tensor")
    change_json(small / "model.safetensors.index.json", weight_map={})
    assert_refused(small, "has 0 tensors, but config.json says n_layer = 2")


def test_a_shard_that_is_missing(small):
    (small / "model.safetensors").rename(small / "model-1.safetensors")
    files = {"wte.weight": "model-1.safetensors", "wpe.weight": "model-2.safetensors"}
    change_json(small / "model.safetensors.index.json", weight_map=files)
    assert_refused(small, f"No such file or directory: '{small / 'model-2.safetensors'}'", FileNotFoundError)


@pytest.mark.parametrize("name", ["config.json", "vocab.json", "merges.txt", "model.safetensors", "tokenizer.json"])
def test_files_that_are_folders_or_pipes(small, name):
    """Opening a pipe would wait for ever."""
    (small / name).unlink(missing_ok=True)
    (small / name).mkdir()
    assert_refused(small, f"{small / name} is not a file")
    (small / name).rmdir()
    if hasattr(os, "mkfifo"):
        os.mkfifo(small / name)
        assert_refused(small, f"{small / name} is not a file")


@pytest.mark.parametrize("name", ["config.json", "vocab.json"])
@pytest.mark.parametrize("content", ["", "[1]", "{", "[" * 100_000])
def test_files_that_are_no_json_objects(small, name, content):
    (small / name).write_text(content)
    assert_refused(small, f"{name} is not ")


# ------------------------------------------------------------------------------------------------------------ tokenizer


@pytest.mark.parametrize("merges_as", ["lists", "strings"])
def test_a_tokenizer_json_alone(tmp_path, merges_as):
    convert.to_hf(TINY, tmp_path / "hf")
    path = only_tokenizer_json(tmp_path / "hf")
    content = json.loads(path.read_text(encoding="utf-8"))
    merges = [" ".join(m) if isinstance(m, list) else m for m in content["model"]["merges"]]
    content["model"]["merges"] = merges if merges_as == "strings" else [m.split(" ") for m in merges]
    path.write_text(json.dumps(content), encoding="utf-8")
    convert.from_hf(str(tmp_path / "hf"), tmp_path / "back")
    assert_same_files(TINY, tmp_path / "back")
    assert_same_tokens(tmp_path / "hf", tmp_path / "back")


def test_both_kinds_of_tokenizer_files_must_agree(tmp_path):
    convert.to_hf(TINY, tmp_path / "hf")
    shutil.copytree(tmp_path / "hf", tmp_path / "both")
    path = only_tokenizer_json(tmp_path / "hf")
    shutil.copy(path, tmp_path / "both")
    convert.from_hf(str(tmp_path / "both"), tmp_path / "back")
    merges = (tmp_path / "both" / "merges.txt").read_text(encoding="utf-8").split("\n")
    merges[1], merges[2] = merges[2], merges[1]
    (tmp_path / "both" / "merges.txt").write_text("\n".join(merges), encoding="utf-8")
    with pytest.raises(ValueError, match=r"vocab.json and merges.txt disagree with tokenizer.json"):
        convert.from_hf(str(tmp_path / "both"), tmp_path / "again")


def test_the_real_tokenizer_files(tmp_path):
    openai = shared("openai-117M")
    hparams = ODD | {"n_vocab": 50257, "n_embd": 3}
    transformers_model(random_params(hparams), hparams, "float32").save_pretrained(tmp_path / "hf")
    shutil.copy(openai / "encoder.json", tmp_path / "hf" / "vocab.json")
    shutil.copy(openai / "vocab.bpe", tmp_path / "hf" / "merges.txt")
    only_tokenizer_json(tmp_path / "hf")
    convert.from_hf(str(tmp_path / "hf"), tmp_path / "ours")
    for name in TOKENIZER_FILES:
        assert hashlib.sha256((tmp_path / "ours" / name).read_bytes()).hexdigest() == SHA256[name]
    assert_same_tokens(tmp_path / "hf", tmp_path / "ours")
    convert.to_hf(tmp_path / "ours", tmp_path / "back")
    for ours, theirs in (("encoder.json", "vocab.json"), ("vocab.bpe", "merges.txt")):
        assert (tmp_path / "back" / theirs).read_bytes() == (tmp_path / "ours" / ours).read_bytes()


def test_added_tokens_are_kept(small, tmp_path, capsys):
    change_json(small / "added_tokens.json", **{"<pad>": 300})
    change_json(small / "config.json", vocab_size=301)
    change_tensors(small, lambda t: t.update({"transformer.wte.weight": np.ones((301, 21), np.float32)}))
    convert.from_hf(str(small), tmp_path / "ours")
    encoder, hparams, _ = load_encoder_hparams_and_params("ours", tmp_path)
    assert hparams["n_vocab"] == 301
    assert encoder.encode("<pad>", allowed_special=["<pad>"]) == [300]
    assert encoder.encode("<pad>") == encoder.encode("<") + encoder.encode("pad") + encoder.encode(">")
    assert encoder.decode([300]) == "<pad>"
    assert "added tokens (1, such as '<pad>') are ordinary text" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("file", "values", "message"),
    [
        ("tokenizer_config.json", {"add_prefix_space": True}, "add_prefix_space is True"),
        ("tokenizer_config.json", {"add_bos_token": True}, "add_bos_token is True"),
        ("added_tokens.json", {"<pad>": 300}, "the tokenizer has 301 tokens, but config.json says vocab_size = 300"),
        ("added_tokens.json", {"<|endoftext|>": 5}, "'<|endoftext|>' has id 5, but 299 in the vocabulary"),
        ("added_tokens.json", {"two words": 300}, "'two words' has characters other than visible ASCII"),
        ("added_tokens.json", {"éé": 300}, "'éé' has characters other than visible ASCII"),
        ("tokenizer_config.json", {"added_tokens_decoder": [1]}, "added_tokens_decoder is [1], not an object"),
        ("tokenizer_config.json", {"added_tokens_decoder": {"x": {"content": "y"}}}, "not {'content': 'y'} with 'x'"),
        ("tokenizer_config.json", {"added_tokens_decoder": {"9" * 5000: {"content": "y"}}}, "with '9999"),
        ("added_tokens.json", {"x": [1]}, "an added token is a text with a number, not {'content': 'x'} with [1]"),
        ("vocab.json", {"a": {}}, "its tokenizer does not fit OpenAI's layout"),
        ("vocab.json", {"extra": 299}, "its tokenizer does not fit OpenAI's layout"),
    ],
)
def test_tokenizers_that_are_not_gpt2_s(small, file, values, message):
    change_json(small / file, **values)
    assert_refused(small, message)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda c: c.update(normalizer={"type": "NFC"}), "its normalizer is {'type': 'NFC'}, not None"),
        (lambda c: c["pre_tokenizer"].update(add_prefix_space=True), "add_prefix_space is True, not False"),
        (lambda c: c["pre_tokenizer"].update(use_regex=False), "use_regex is False, not True"),
        (lambda c: c["pre_tokenizer"].update(type="Split"), "its pre_tokenizer is 'Split', not 'ByteLevel'"),
        (lambda c: c["model"].update(type="Unigram"), "its model is 'Unigram', not 'BPE'"),
        (lambda c: c["model"].update(ignore_merges=True), "ignore_merges is True"),
        (lambda c: c.update(post_processor={"special_tokens": {"<s>": {}}}), "post_processor is {'<s>': {}}, not {}"),
        (lambda c: c["model"].update(dropout=0.1), "dropout is 0.1, not None"),
        (lambda c: c["model"].pop("merges"), "its model has no vocab and merges"),
        (lambda c: c.update(model=[1]), "tokenizer.json: model is [1], not an object"),
        (lambda c: c.update(pre_tokenizer="ByteLevel"), "tokenizer.json: pre_tokenizer is 'ByteLevel', not an object"),
        (lambda c: c["model"].update(vocab=["a"]), "tokenizer.json: vocab is ['a'], not an object"),
        (lambda c: c["model"].update(merges={"a": "b"}), "tokenizer.json: merges is {'a': 'b'}, not a list"),
        (lambda c: c["model"]["merges"].append(["a", "b", "c"]), "the merge ['a', 'b', 'c'] is not two symbols"),
        (lambda c: c["model"]["merges"].append({"a": 0, "b": 1}), "the merge {'a': 0, 'b': 1} is not two symbols"),
        (lambda c: c["model"]["merges"].insert(0, "a\nb c"), r"the merge 'a\nb c' is not two symbols"),
        (lambda c: c.update(added_tokens={"x": 1}), "added_tokens is {'x': 1}, not a list"),
        (lambda c: c["added_tokens"].append("x"), "an added token is a text with a number, not 'x' with None"),
        (lambda c: c["added_tokens"].append({"content": 5, "id": 5}), "not {'content': 5, 'id': 5} with 5"),
        (lambda c: c["added_tokens"].append({"content": "x", "id": 5.0}), "not {'content': 'x', 'id': 5.0} with 5.0"),
        (lambda c: c["added_tokens"].append({"content": "x"}), "not {'content': 'x'} with None"),
    ],
)
def test_tokenizer_json_that_is_not_gpt2_s(small, change, message):
    path = only_tokenizer_json(small)
    content = json.loads(path.read_text(encoding="utf-8"))
    change(content)
    path.write_text(json.dumps(content), encoding="utf-8")
    assert_refused(small, message)


def test_no_tokenizer(small):
    (small / "merges.txt").unlink()
    assert_refused(small, "has no tokenizer: neither vocab.json and merges.txt nor", FileNotFoundError)


def test_added_tokens_that_disagree(small):
    change_json(small / "tokenizer_config.json", added_tokens_decoder={"300": {"content": "<pad>"}})
    change_json(small / "added_tokens.json", **{"<pad>": 301})
    assert_refused(small, "added_tokens.json: the added token '<pad>' has two ids, 300 and 301")


def test_merges_that_are_not_utf_8_name_the_file(small):
    with open(small / "merges.txt", "ab") as file:
        file.write(b"\xff\n")
    assert_refused(small, f"{small / 'merges.txt'} is not UTF-8: invalid start byte at byte ")


# --------------------------------------------------------------------------------------- hundreds of broken folders

VALUES = (
    *(None, True, 0, -1, 1.5, float("nan"), 2**70, 5, 299, 300, "300", "9" * 5000, "", "x", " ", "a b", "a\nb c"),
    *("\0", "\x1b", "\ud800", "Ġ", "<|endoftext|>", [], {}, [1], ["a", "b"], ["a", "b", "c"], {"a": 1}),
    {"content": "x", "id": 5},
)
BYTES = (b"", b"\n", b"\r\n", b"\0", b"\xff", b"\xef\xbb\xbf", b"\xed\xa0\x80", b"\xe2\x80\xa8", b" ", b'"', b"{", b"1")


def places(value: Any) -> Iterator[tuple[Any, Any]]:
    """Yield every place in a JSON value as its list or object and the index or key, but few of a long one."""
    keys = list(value) if isinstance(value, dict) else range(len(value)) if isinstance(value, list) else []
    for key in [*keys[:8], *keys[-3:]]:
        yield value, key
        yield from places(value[key])


def nested(depth: int) -> Any:
    return [nested(depth - 1)] if depth else 0


def with_one_change(data: bytes, rng: random.Random) -> bytes:
    """Change a file: most often one value, key or item of its JSON, else some bytes."""
    if data.startswith(b"{") and rng.random() < 0.8:
        content = json.loads(data)
        holder, key = rng.choice(list(places(content)))
        value = copy.deepcopy(rng.choice(VALUES)) if rng.random() < 0.95 else nested(rng.choice([50, 400, 900]))
        action = rng.choice(["set", "set", "set", "remove", "add"])
        if action == "remove":
            del holder[key]
        elif action == "add" and isinstance(holder, list):
            holder.insert(key, value)
        else:
            holder[str(value)[:9] if action == "add" else key] = value
        return json.dumps(content).encode()
    start = rng.randrange(len(data))
    return data[:start] + rng.choice(BYTES) + data[start + rng.choice([0, 1, 30]) :]


def test_hundreds_of_broken_configs_and_tokenizers(small, tmp_path):
    """Each is refused with one line that names the file or folder, or gives a tokenizer that loads and is the same."""
    change_json(small / "added_tokens.json", **{"<|endoftext|>": 299})
    change_json(small / "tokenizer_config.json", added_tokens_decoder={"299": {"content": "<|endoftext|>"}})
    path = only_tokenizer_json(shutil.copytree(small, tmp_path / "fast"))
    shutil.copy(path, small)
    files = {path.name: path.read_bytes() for path in small.iterdir() if path.suffix in (".json", ".txt")}
    n_refused, rng = 0, random.Random(0)
    (small / "ours").mkdir()
    for _ in range(700):
        changed = rng.choice(sorted(files))
        kinds = (("vocab.json", "merges.txt"), ("tokenizer.json",))
        left_out = rng.choice([names for names in kinds if changed not in names])
        for name, content in files.items():
            (small / name).write_bytes(with_one_change(content, rng) if name == changed else content)
        for name in left_out:
            (small / name).unlink()
        try:
            hparams = huggingface.read_config(small / "config.json")
            vocab, merges = huggingface.read_tokenizer(small, hparams["n_vocab"])
        except (OSError, ValueError) as error:
            assert str(small) in str(error)
            assert len(str(error).splitlines()) == 1
            assert len(str(error)) < len(str(small)) + 500
            n_refused += 1
            continue
        convert.write_json(small / "ours" / "encoder.json", vocab)
        write_merges(small / "ours" / "vocab.bpe", merges)
        encoder = get_encoder("ours", small)
        assert (encoder.encoder, list(encoder.ranks)) == (vocab, list(dict.fromkeys(merges)))
    assert 300 < n_refused < 600
