"""Converting between Hugging Face's layout and OpenAI's: transformers' own folders as source and as judge, offline."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers import ODD, ROOT, random_params, shared, transformers_model

import gpt2
import utils
from encoder import END_OF_TEXT, get_encoder
from utils import FILES, SHA256, load_encoder_hparams_and_params, load_hparams_and_params

for module in ("torch", "transformers", "safetensors", "tensorflow", "huggingface_hub"):
    pytest.importorskip(module, reason=f"converting is checked with {module}: requirements-dev.txt")

from safetensors import safe_open  # noqa: E402
from safetensors.numpy import load_file, save_file  # noqa: E402

from picogpt.checkpoints import convert  # noqa: E402

TINY = ROOT / "models" / "tiny"
TRICKY = [
    "",
    " ",
    "Hello world",
    "  two  spaces \n\n\tand\r\n lines ",
    "I'll can't WE'RE o'clock 'S",
    "ünïcödé ﷽ 日本語 עברית é e\u0301 👩‍👩‍👧",
    "x" * 200 + "\0\x01\x7f\xa0\u2028",
    "3.14159, 1,000,000% ½ ² ٣",
    '"y is ?" <|endoftex|> Ġ',
]
Copy = Callable[[], Path]


@pytest.fixture(scope="module")
def source(models_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small GPT-2 as transformers saves it, with vocab.json and merges.txt: do not write to it."""
    folder = tmp_path_factory.mktemp("hf") / "small"
    transformers_model(random_params(ODD), ODD, "float32").save_pretrained(folder)
    shutil.copy(models_dir / "odd" / "encoder.json", folder / "vocab.json")
    shutil.copy(models_dir / "odd" / "vocab.bpe", folder / "merges.txt")
    return folder


@pytest.fixture
def small(source: Path, tmp_path: Path) -> Path:
    """A copy of it, to break something in."""
    return Path(shutil.copytree(source, tmp_path / "small"))


def change_json(path: Path, **values: Any) -> None:
    content = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    path.write_text(json.dumps(content | values), encoding="utf-8")


def change_tensors(folder: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    tensors = {name: array.copy() for name, array in load_file(folder / "model.safetensors").items()}
    change(tensors)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


def assert_same_bits(ours: dict[str, np.ndarray], theirs: dict[str, np.ndarray]) -> None:
    assert ours.keys() == theirs.keys()
    for name, array in ours.items():
        assert (array.dtype, array.shape) == (theirs[name].dtype, theirs[name].shape), name
        assert array.tobytes() == theirs[name].tobytes(), name


def assert_same_files(one: Path, other: Path) -> None:
    assert {path.name for path in one.iterdir()} == set(FILES) == {path.name for path in other.iterdir()}
    for name in FILES:
        assert (one / name).read_bytes() == (other / name).read_bytes(), name


def transformers_ids(folder: Path, ids: list[int], n: int) -> list[int]:
    """What transformers continues with: <|endoftext|> does not end it, as in gpt2.generate."""
    import torch
    import transformers

    model = transformers.AutoModelForCausalLM.from_pretrained(folder, local_files_only=True)
    model.generation_config.eos_token_id = None
    prompt = torch.tensor([ids])
    with torch.no_grad():
        out = model.generate(prompt, attention_mask=torch.ones_like(prompt), max_new_tokens=n, do_sample=False)
    return out[0, len(ids) :].tolist()


def our_ids(folder: Path, ids: list[int], n: int) -> list[int]:
    hparams, params = load_hparams_and_params(folder)
    return list(gpt2.generate(ids, params, hparams["n_head"], n))


# ------------------------------------------------------------------------------------------------------ round trips


@pytest.mark.parametrize("name", ["tiny", "odd"])
def test_openai_to_hf_and_back_is_every_byte(models_dir, tmp_path, name):
    origin = TINY if name == "tiny" else models_dir / "odd"
    convert.to_hf(origin, tmp_path / "hf")
    convert.from_hf(str(tmp_path / "hf"), tmp_path / "back")
    assert_same_files(origin, tmp_path / "back")


def test_the_full_124m_shape_there_and_back(full_size, tmp_path):
    convert.to_hf(full_size, tmp_path / "hf")
    ids = [464, 3290, 318]
    assert transformers_ids(tmp_path / "hf", ids, 3) == our_ids(full_size, ids, 3)
    said = convert.from_hf(str(tmp_path / "hf"), tmp_path / "back")
    assert said == "148 tensors, 124,439,808 numbers, float32; 50,257 tokens"
    assert_same_files(full_size, tmp_path / "back")
    shutil.rmtree(tmp_path)  # a gigabyte


@pytest.mark.parametrize("dtype", ["float32", "float16", "float64"])
@pytest.mark.parametrize("prefix", ["transformer.", ""])
def test_hf_to_openai_and_back_is_every_bit(small, tmp_path, dtype, prefix):
    rare = np.array([-0.0, np.nan, np.inf, np.finfo(dtype).smallest_subnormal, np.finfo(dtype).max], dtype)
    rare[1:2].view(np.uint8)[0] = 1  # a NaN that is not the usual one
    tensors = load_file(small / "model.safetensors")
    tensors = {prefix + name.removeprefix("transformer."): a.astype(dtype) for name, a in tensors.items()}
    for array in tensors.values():
        array.flat[:5] = rare
    save_file(tensors, small / "model.safetensors", metadata={"format": "pt"})
    said = convert.from_hf(str(small), tmp_path / "ours")
    assert said == f"{len(tensors)} tensors, {sum(a.size for a in tensors.values()):,} numbers, {dtype}; 300 tokens"
    convert.to_hf(tmp_path / "ours", tmp_path / "back")
    back = load_file(tmp_path / "back" / "model.safetensors")
    assert_same_bits({prefix + name.removeprefix("transformer."): a for name, a in back.items()}, tensors)
    assert json.loads((tmp_path / "back" / "config.json").read_text())["torch_dtype"] == dtype


def test_bfloat16_is_widened_exactly(small, tmp_path):
    import torch
    from safetensors.torch import save_file as save_torch

    tensors = {k: torch.tensor(v).bfloat16() for k, v in load_file(small / "model.safetensors").items()}
    save_torch(tensors, small / "model.safetensors")
    assert convert.from_hf(str(small), tmp_path / "ours").endswith("float32; 300 tokens (from bfloat16, exactly)")
    convert.to_hf(tmp_path / "ours", tmp_path / "back")
    assert_same_bits(
        load_file(tmp_path / "back" / "model.safetensors"), {k: v.float().numpy() for k, v in tensors.items()}
    )


def test_the_export_is_a_view_of_the_checkpoint_until_it_is_written():
    _, tensors, _ = convert.read_openai(TINY)
    assert all(not array.flags.owndata and not array.flags.writeable for array in tensors.values())


# ------------------------------------------------------------------------------------- the same model in both layouts


def test_transformers_generates_the_same_from_the_export(tmp_path):
    convert.to_hf(TINY, tmp_path / "hf")
    ids = get_encoder("tiny", TINY.parent).encode("ROMEO:")
    assert transformers_ids(tmp_path / "hf", ids, 60) == our_ids(TINY, ids, 60)


def test_gpt2_generates_the_same_from_the_import(source, tmp_path):
    convert.from_hf(str(source), tmp_path / "ours")
    for ids in ([5, 6, 7], [299, 0, 260, 12]):
        assert our_ids(tmp_path / "ours", ids, 13) == transformers_ids(source, ids, 13)


def test_the_import_loads_by_its_name(source, tmp_path):
    convert.from_hf(str(source), tmp_path / "ours")
    _, hparams, params = load_encoder_hparams_and_params("ours", tmp_path)
    assert hparams == ODD
    expected = random_params(ODD)
    np.testing.assert_array_equal(params["wte"], expected["wte"])
    for ours, theirs in zip(params["blocks"], expected["blocks"]):
        np.testing.assert_array_equal(ours["attn"]["c_attn"]["w"], theirs["attn"]["c_attn"]["w"])


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
    for name in convert.COMPUTED:
        config.pop(name, None)
    path.write_text(json.dumps(config | {"n_inner": 84}))
    convert.from_hf(str(small), tmp_path / "ours")
    assert utils.load_hparams(tmp_path / "ours" / "hparams.json") == ODD


# --------------------------------------------------------------------------------------------------- the tokenizer


def test_autotokenizer_has_the_same_ids_from_the_export(tmp_path):
    convert.to_hf(TINY, tmp_path / "hf")
    assert_same_tokens(tmp_path / "hf", TINY)


def assert_same_tokens(hf: Path, ours: Path) -> None:
    import transformers

    theirs, encoder = (
        transformers.AutoTokenizer.from_pretrained(hf, local_files_only=True),
        get_encoder(ours.name, ours.parent),
    )
    assert len(theirs) == len(encoder.encoder)
    for text in TRICKY:
        assert theirs(text)["input_ids"] == encoder.encode(text), text
        assert theirs.decode(encoder.encode(text), clean_up_tokenization_spaces=False) == text
    text = f"a{END_OF_TEXT} b"  # to transformers always the special token
    assert theirs(text)["input_ids"] == encoder.encode(text, allowed_special=[END_OF_TEXT])
    assert theirs.eos_token_id == encoder.encoder[END_OF_TEXT]


def only_tokenizer_json(folder: Path) -> Path:
    """Replace vocab.json and merges.txt by the tokenizer.json that transformers makes of them."""
    import transformers

    tokenizer = transformers.AutoTokenizer.from_pretrained(folder, local_files_only=True)
    tokenizer.save_pretrained(folder)
    (folder / "vocab.json").unlink(missing_ok=True)
    (folder / "merges.txt").unlink(missing_ok=True)
    assert (folder / "tokenizer.json").exists()
    return folder / "tokenizer.json"


def test_the_export_says_where_a_text_ends(tmp_path):
    import transformers

    convert.to_hf(TINY, tmp_path / "hf")
    with safe_open(tmp_path / "hf" / "model.safetensors", framework="numpy") as file:
        assert file.metadata() == {"format": "pt"}
    settings = transformers.GenerationConfig.from_pretrained(tmp_path / "hf")
    config = transformers.AutoConfig.from_pretrained(tmp_path / "hf")
    assert settings.eos_token_id == config.eos_token_id == config.bos_token_id == 1023
    assert (config.n_positions, config.n_head, config.n_layer, config.n_embd) == (256, 5, 4, 160)


def test_a_vocabulary_without_end_of_text(damaged, tmp_path):
    import transformers

    folder = damaged()
    vocab = json.loads((folder / "encoder.json").read_text(encoding="utf-8"))
    vocab["zz"] = vocab.pop(END_OF_TEXT)
    (folder / "encoder.json").write_text(json.dumps(vocab), encoding="utf-8")
    convert.to_hf(folder, tmp_path / "hf")
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / "hf", local_files_only=True)
    assert len(tokenizer) == 300
    assert tokenizer.eos_token_id is None
    assert transformers.AutoConfig.from_pretrained(tmp_path / "hf").eos_token_id is None
    text = f"one {END_OF_TEXT} two"
    assert tokenizer(text)["input_ids"] == get_encoder(folder.name, folder.parent).encode(text)
    convert.from_hf(str(tmp_path / "hf"), tmp_path / "back")
    assert get_encoder("back", tmp_path).encoder == vocab


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
    with pytest.raises(ValueError, match=r"vocab.json and merges.txt are not what tokenizer.json has"):
        convert.from_hf(str(tmp_path / "both"), tmp_path / "again")


def test_the_real_tokenizer_files(tmp_path):
    openai = shared("openai-117M")
    hparams = ODD | {"n_vocab": 50257, "n_embd": 3}
    transformers_model(random_params(hparams), hparams, "float32").save_pretrained(tmp_path / "hf")
    shutil.copy(openai / "encoder.json", tmp_path / "hf" / "vocab.json")
    shutil.copy(openai / "vocab.bpe", tmp_path / "hf" / "merges.txt")
    only_tokenizer_json(tmp_path / "hf")
    convert.from_hf(str(tmp_path / "hf"), tmp_path / "ours")
    for name, expected in SHA256.items():
        assert hashlib.sha256((tmp_path / "ours" / name).read_bytes()).hexdigest() == expected
    assert_same_tokens(tmp_path / "hf", tmp_path / "ours")
    convert.to_hf(tmp_path / "ours", tmp_path / "back")
    assert_same_tokens(tmp_path / "back", tmp_path / "ours")


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
    assert "1 added tokens, such as '<pad>': in a text they are text" in capsys.readouterr().err


# -------------------------------------------------------------------------------------------------------- refusals


def assert_refused(folder: Path, message: str, error: type[Exception] = ValueError) -> None:
    target = folder.parent / "ours"
    before = sorted(path.name for path in folder.parent.iterdir())
    with pytest.raises(error) as caught:
        convert.from_hf(str(folder), target)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)
    assert sorted(path.name for path in folder.parent.iterdir()) == before  # and nothing was left


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("model_type", "gpt_neo", "not a GPT-2: model_type is 'gpt_neo'"),
        ("model_type", None, "not a GPT-2: model_type is None"),
        ("activation_function", "gelu", "activation_function is 'gelu', where gpt2.py computes 'gelu_new'"),
        ("scale_attn_weights", False, "scale_attn_weights is False, where gpt2.py computes True"),
        ("scale_attn_by_inverse_layer_idx", True, "scale_attn_by_inverse_layer_idx is True"),
        ("reorder_and_upcast_attn", True, "reorder_and_upcast_attn is True"),
        ("add_cross_attention", True, "add_cross_attention is True"),
        ("tie_word_embeddings", False, "tie_word_embeddings is False"),
        ("layer_norm_epsilon", 1e-6, "layer_norm_epsilon is 1e-06, where gpt2.py computes 1e-05"),
        ("n_inner", 42, "n_inner is 42, not 4 n_embd = 84"),
        ("n_head", 4, "n_embd = 21 is no multiple of n_head = 4"),
        ("n_head", "3", "n_head is '3', not a positive whole number"),
        ("n_layer", 0, "n_layer is 0, not a positive whole number"),
        ("n_layer", 3, "the tensor h.2.attn.c_attn.weight is missing, which config.json implies"),
        ("n_layer", 10**9, "28 tensors, but config.json says n_layer = 1000000000"),
        ("n_layer", 1, "not as GPT-2: it has a tensor h.1."),
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
        (untied, "not as GPT-2: lm_head.weight is not wte.weight, to which gpt2.py ties it"),
        (transposed, "h.0.mlp.c_fc.weight is (84, 21), but config.json implies (21, 84)"),
        (mixed, "ln_f.bias is F16, but wte.weight F32"),
        (twice, "the tensor wte.weight is there twice"),
        (lambda t: t.pop("transformer.ln_f.bias"), "the tensor ln_f.bias is missing"),
        (lambda t: t.update({"score.weight": np.ones(3, np.float32)}), "it has a tensor score.weight"),
        (lambda t: t.update({k: v.astype(np.int8) for k, v in t.items()}), "is I8, not one of F32, F16, F64, BF16"),
    ],
)
def test_tensors_that_are_not_gpt2_s(small, change, message):
    change_tensors(small, change)
    assert_refused(small, message)


def test_pickles_are_refused_with_the_reason(small):
    (small / "model.safetensors").rename(small / "pytorch_model.bin")
    reason = "pytorch_model.bin is a pickle, and picogpt refuses those: loading one runs code that is in it"
    assert_refused(small, reason)
    (small / "pytorch_model.bin").unlink()
    assert_refused(small, "pytorch_model.bin would be a pickle")


@pytest.mark.parametrize("content", [b"", b"<html>404</html>", b"\xff" * 100])
def test_weights_that_are_no_safetensors(small, content):
    (small / "model.safetensors").write_bytes(content)
    assert_refused(small, "model.safetensors: ")


def test_truncated_weights(small):
    path = small / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-1])
    assert_refused(small, "model.safetensors: ")


def test_an_index_that_leads_out_of_the_folder(small):
    (small / "model.safetensors").rename(small.parent / "model.safetensors")
    change_json(small / "model.safetensors.index.json", weight_map={"wte.weight": "../model.safetensors"})
    assert_refused(small, "'../model.safetensors' is not a file of the same folder")
    change_json(small / "model.safetensors.index.json", weight_map=["x"])
    assert_refused(small, "weight_map does not give a file for each tensor")


@pytest.mark.parametrize("name", ["config.json", "vocab.json"])
@pytest.mark.parametrize("content", ["", "[1]", "{", "[" * 100_000])
def test_files_that_are_no_json_objects(small, name, content):
    (small / name).write_text(content)
    assert_refused(small, f"{name} is not ")


@pytest.mark.parametrize(
    ("file", "values", "message"),
    [
        ("tokenizer_config.json", {"add_prefix_space": True}, "add_prefix_space is True"),
        ("tokenizer_config.json", {"add_bos_token": True}, "add_bos_token is True"),
        ("added_tokens.json", {"<pad>": 300}, "the tokenizer has 301 tokens, but config.json says vocab_size = 300"),
        ("added_tokens.json", {"<|endoftext|>": 5}, "'<|endoftext|>' has id 5, in the vocabulary 299"),
        ("added_tokens.json", {"two words": 300}, "'two words' is not of visible ASCII"),
        ("added_tokens.json", {"éé": 300}, "'éé' is not of visible ASCII"),
        ("tokenizer_config.json", {"added_tokens_decoder": [1]}, "added tokens have no content and id"),
        ("vocab.json", {"extra": 299}, "not a tokenizer for OpenAI's layout"),
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
        (lambda c: c["model"].pop("merges"), "its model has no vocab and merges"),
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


def test_openai_vocabulary_and_hparams_must_agree(damaged, tmp_path):
    folder = damaged()
    change_json(folder / "hparams.json", n_layer=3)
    with pytest.raises(ValueError, match="has no tensor model/h2"):
        convert.to_hf(folder, tmp_path / "hf")
    assert not (tmp_path / "hf").exists()


# ------------------------------------------------------------------------------- the command line, the hub, and Ctrl-C


@pytest.fixture
def command(capsys, monkeypatch) -> Callable[..., tuple[int, str, str]]:
    """Run the tool: its exit status, stdout and stderr."""

    def run(*args: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["picogpt convert"])
        capsys.readouterr()
        status = utils.run(lambda: convert.main([str(arg) for arg in args]))
        return status, *capsys.readouterr()

    return run


def assert_error(result: tuple[int, str, str], status: int, message: str) -> None:
    assert result[:2] == (status, ""), result
    assert message in result[2]
    assert result[2].count("\n") == 1, result[2]


def test_the_command_line_there_and_back(command, tmp_path):
    status, out, err = command("--to-hf", TINY, tmp_path / "hf")
    assert (status, err) == (0, "")
    assert out == f"{tmp_path / 'hf'}: 52 tensors, 1,442,240 numbers, float32; 1,024 tokens\n"
    assert (
        len({path.stat().st_mode for path in (tmp_path / "hf").iterdir()}) == 1
    )  # whoever may read one file may read all
    status, out, _ = command(tmp_path / "hf", tmp_path / "back")
    assert (status, out.startswith(f"{tmp_path / 'back'}: 52 tensors")) == (0, True)
    assert_same_files(TINY, tmp_path / "back")


def test_help_has_examples(command):
    status, out, _ = command("--help")
    assert status == 0
    assert "examples:\n  python -m picogpt convert openai-community/gpt2 models/gpt2" in out
    assert "never pickles" in out
    assert "bfloat16 becomes float32, exactly" in out


@pytest.mark.parametrize(
    ("args", "status", "message"),
    [
        ([], 2, "the following arguments are required: source, models/NAME"),
        (["a/b"], 2, "the following arguments are required: models/NAME"),
        (["--to-hf", "--revision", "r", "a", "b"], 2, "argument --revision"),
        ([TINY, "x"], 2, "is in OpenAI's layout already: --to-hf converts from it"),
        ([TINY / "hparams.json", "x"], 2, "is a file: give the folder it is in"),
        (["no such", "x"], 1, "no folder 'no such', and a name on the Hugging Face hub is owner/model"),
        (["--to-hf", "nowhere", "x"], 1, "nowhere is not a model in OpenAI's layout: it has no hparams.json"),
    ],
)
def test_what_the_command_line_refuses(command, tmp_path, monkeypatch, args, status, message):
    monkeypatch.chdir(tmp_path)
    assert_error(command(*args), status, message)
    assert not list(tmp_path.iterdir())


def test_a_folder_of_the_other_layout(command, source, tmp_path):
    assert_error(command("--to-hf", source, tmp_path / "x"), 1, "without --to-hf, it is converted from Hugging Face's")
    (tmp_path / "empty").mkdir()
    assert_error(command(tmp_path / "empty", tmp_path / "x"), 1, "config.json: No such file or directory")


@pytest.mark.parametrize("direction", [[], ["--to-hf"]])
def test_an_existing_folder_is_never_overwritten(command, source, tmp_path, direction):
    (tmp_path / "x").mkdir()
    (tmp_path / "x" / "mine").write_text("kept")
    origin = TINY if direction else source
    assert_error(command(*direction, origin, tmp_path / "x"), 1, "x exists already: remove it, or choose another name")
    assert [path.name for path in tmp_path.iterdir()] == ["x"]
    assert (tmp_path / "x" / "mine").read_text() == "kept"


@pytest.mark.parametrize("error", [KeyboardInterrupt, OSError(28, "No space left on device")])
@pytest.mark.parametrize("direction", [[], ["--to-hf"]])
def test_an_interruption_leaves_nothing(command, source, tmp_path, monkeypatch, direction, error):
    import safetensors.numpy

    written = []

    def interrupted(*args: Any, **kwargs: Any) -> None:
        folder = next(tmp_path.iterdir())
        (folder / "half").write_bytes(b"half")
        written.extend(path.name for path in folder.iterdir())
        raise error

    monkeypatch.setattr(convert, "write_checkpoint", interrupted)
    monkeypatch.setattr(safetensors.numpy, "save_file", interrupted)
    status, out, err = command(*direction, TINY if direction else source, tmp_path / "x")
    assert (status, out) == ((130, "") if error is KeyboardInterrupt else (1, ""))
    assert "Traceback" not in err
    assert len(written) > 2
    assert not list(tmp_path.iterdir())


LIMITED = """
import resource, signal, sys
from picogpt.checkpoints.convert import main
from utils import run
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (2_000_000, 2_000_000))
sys.exit(run(main))
"""


def test_a_full_disk_is_one_line(tmp_path):
    """A limit on the size of files stands for it: safetensors' own writer fails."""
    pytest.importorskip("resource", reason="limits on files are POSIX's")
    words = [sys.executable, "-c", LIMITED, "--to-hf", str(TINY), str(tmp_path / "x")]
    done = subprocess.run(words, capture_output=True, text=True, cwd=ROOT, timeout=120)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith(f"-c: safetensors can't write {tmp_path / 'x'}: ")
    assert done.stderr.count("\n") == 1
    assert not list(tmp_path.iterdir())


TERMINATED = """
import os, signal, sys
import safetensors.numpy
from picogpt.checkpoints.convert import main
from utils import run
safetensors.numpy.save_file = lambda *args, **kwargs: os.kill(os.getpid(), signal.SIGTERM)
sys.exit(run(main))
"""


@pytest.mark.skipif(sys.platform == "win32", reason="Windows ends a process without telling it")
def test_being_terminated_leaves_nothing(tmp_path):
    words = [sys.executable, "-c", TERMINATED, "--to-hf", str(TINY), str(tmp_path / "x")]
    done = subprocess.run(words, capture_output=True, text=True, cwd=ROOT, timeout=120)
    assert (done.returncode, done.stdout, done.stderr) == (143, "", "")
    assert not list(tmp_path.iterdir())


def test_a_folder_that_somebody_else_made_in_the_meantime_stays(source, tmp_path, monkeypatch, command):
    monkeypatch.setattr(convert, "write_checkpoint", lambda *args: (tmp_path / "x").mkdir())
    status, _, err = command(source, tmp_path / "x")
    assert (status, err.count("\n")) == (1, 1)
    assert err.rstrip().endswith("x exists already: remove it, or choose another name")
    assert [path.name for path in tmp_path.iterdir()] == ["x"]


OFFLINE = [{"HF_HUB_OFFLINE": "1"}, {"HF_ENDPOINT": "http://127.0.0.1:9", "HF_HUB_OFFLINE": "0"}]


@pytest.mark.parametrize("network", OFFLINE)
def test_a_hub_name_without_network_is_one_line(tmp_path, network):
    program = "import sys; from utils import run; from picogpt.checkpoints.convert import main; sys.exit(run(main))"
    words = [sys.executable, "-c", program, "openai-community/gpt2", str(tmp_path / "x")]
    env = os.environ | {"HF_HOME": str(tmp_path / "cache"), "PYTHONPATH": str(ROOT)} | network
    done = subprocess.run(words, capture_output=True, text=True, cwd=ROOT, env=env, timeout=120)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.count("\n") == 1, done.stderr
    assert "no folder 'openai-community/gpt2', and can't get it from the Hugging Face hub: " in done.stderr
    assert not (tmp_path / "x").exists()
    assert {path.name for path in tmp_path.iterdir()} <= {"cache"}


def test_a_hub_name_downloads_what_is_needed(command, source, tmp_path, monkeypatch):
    import fnmatch

    import huggingface_hub

    asked = []

    def snapshot_download(name: str, revision: str | None, allow_patterns: list[str]) -> str:
        asked.append((name, revision))
        there = ["model-00001-of-00002.safetensors", *(path.name for path in source.iterdir())]
        other = ["pytorch_model.bin", "tf_model.h5", "model.fp16.safetensors", "onnx/model.onnx", "code.py"]
        wanted = [name for name in [*there, *other] if any(fnmatch.fnmatch(name, p) for p in allow_patterns)]
        assert set(wanted) == set(there) - {"generation_config.json"}
        return str(source)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
    assert command("owner/a-gpt2", tmp_path / "x")[0] == 0
    assert command("owner/a-gpt2", tmp_path / "y", "--revision", "refs/pr/1")[0] == 0
    assert asked == [("owner/a-gpt2", None), ("owner/a-gpt2", "refs/pr/1")]
    assert_same_files(tmp_path / "x", tmp_path / "y")


@pytest.mark.parametrize(
    ("args", "missing"),
    [(["o/m", "x"], "safetensors"), (["o/m", "x"], "tensorflow"), (["o/m", "x"], "huggingface_hub")],
)
def test_what_is_not_installed_is_named_with_the_file_that_holds_it(command, tmp_path, monkeypatch, args, missing):
    import importlib.util

    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == missing else find(name))
    monkeypatch.chdir(tmp_path)
    assert_error(command(*args), 1, f"{missing} is not installed: pip install -r requirements-dev.txt")
    assert not list(tmp_path.iterdir())
