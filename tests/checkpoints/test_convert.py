"""Converting between Hugging Face's layout and OpenAI's: transformers' own folders as source and as judge, offline."""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import subprocess
import sys
from typing import Any

import numpy as np
import pytest
from helpers import ODD, ROOT, Result, assert_error, random_params, run_main

from encoder import END_OF_TEXT, get_encoder
from picogpt.checkpoints.huggingface import state_dict
from picogpt.checkpoints.writing import write_random_model
from utils import load_encoder_hparams_and_params

for module in ("torch", "transformers", "safetensors", "huggingface_hub"):
    pytest.importorskip(module, reason=f"converting is checked with {module}: requirements-dev.txt")

from hf_folders import (  # noqa: E402
    TINY,
    assert_same_bits,
    assert_same_files,
    assert_same_tokens,
    change_tensors,
    our_ids,
    transformers_ids,
)
from safetensors import safe_open  # noqa: E402
from safetensors.numpy import load_file  # noqa: E402

from picogpt.checkpoints import convert  # noqa: E402

# ---------------------------------------------------------------------------------------------------------- round trips


@pytest.mark.parametrize("name", ["tiny", "odd"])
def test_openai_to_hf_and_back_is_every_byte(models_dir, tmp_path, name):
    origin = TINY if name == "tiny" else models_dir / "odd"
    convert.to_hf(origin, tmp_path / "hf")
    convert.from_hf(str(tmp_path / "hf"), tmp_path / "back")
    assert_same_files(origin, tmp_path / "back")


def test_twelve_layers_there_and_back(tmp_path):
    """Sorted names would put layer 10 before layer 2, which a model of two layers does not show."""
    hparams = ODD | {"n_embd": 24, "n_layer": 12}
    (tmp_path / "ours").mkdir()
    write_random_model(tmp_path / "ours", hparams, seed=4)
    convert.to_hf(tmp_path / "ours", tmp_path / "hf")
    assert transformers_ids(tmp_path / "hf", [5, 6, 7], 9) == our_ids(tmp_path / "ours", [5, 6, 7], 9)
    convert.from_hf(str(tmp_path / "hf"), tmp_path / "back")
    assert_same_files(tmp_path / "ours", tmp_path / "back")


@pytest.mark.slow
def test_the_full_124m_shape_there_and_back(full_size, tmp_path):
    convert.to_hf(full_size, tmp_path / "hf")
    said = convert.from_hf(str(tmp_path / "hf"), tmp_path / "back")
    assert said == "148 tensors, 124,439,808 numbers, float32; 50,257 tokens"
    assert_same_files(full_size, tmp_path / "back")
    shutil.rmtree(tmp_path)  # a gigabyte


@pytest.mark.parametrize("dtype", ["float32", "float64", "float16"])
@pytest.mark.parametrize("prefix", ["transformer.", ""])
def test_hf_to_openai_and_back_is_every_bit(small, tmp_path, dtype, prefix):
    """float16 becomes float32, which holds every float16."""
    stored: dict[str, Any] = {}

    def with_rare_numbers(tensors: dict[str, Any]) -> dict[str, Any]:
        rare = np.array([-0.0, np.nan, np.inf, np.finfo(dtype).smallest_subnormal, np.finfo(dtype).max], dtype)
        rare[1:2].view(np.uint8)[0] = 1  # a NaN that is not the usual one
        stored.update({prefix + name.removeprefix("transformer."): a.astype(dtype) for name, a in tensors.items()})
        for array in stored.values():
            array.flat[:5] = rare
        return stored

    change_tensors(small, with_rare_numbers)
    opened = "float64" if dtype == "float64" else "float32"
    said = convert.from_hf(str(small), tmp_path / "ours")
    assert said == f"{len(stored)} tensors, {sum(a.size for a in stored.values()):,} numbers, {opened}; 300 tokens"
    convert.to_hf(tmp_path / "ours", tmp_path / "back")
    back = load_file(tmp_path / "back" / "model.safetensors")
    back = {prefix + name.removeprefix("transformer."): a for name, a in back.items()}
    assert_same_bits(back, {name: array.astype(opened) for name, array in stored.items()})
    assert json.loads((tmp_path / "back" / "config.json").read_text())["torch_dtype"] == opened


def test_bfloat16_is_widened_exactly(small, tmp_path):
    import torch
    from safetensors.torch import save_file as save_torch

    tensors = {k: torch.tensor(v).bfloat16() for k, v in load_file(small / "model.safetensors").items()}
    save_torch(tensors, small / "model.safetensors")
    convert.to_hf(small, tmp_path / "back")
    back = load_file(tmp_path / "back" / "model.safetensors")
    assert_same_bits(back, {k: v.float().numpy() for k, v in tensors.items()})


# --------------------------------------------------------------------------------------- the same model in both layouts


def test_transformers_generates_the_same_from_the_export(tmp_path):
    convert.to_hf(TINY, tmp_path / "hf")
    ids = get_encoder("tiny", TINY.parent).encode("ROMEO:")
    assert transformers_ids(tmp_path / "hf", ids, 60) == our_ids(TINY, ids, 60)


def test_gpt2_generates_the_same_from_the_import(source, tmp_path):
    convert.from_hf(str(source), tmp_path / "ours")
    for ids in ([5, 6, 7], [299, 0, 260, 12]):
        assert our_ids(tmp_path / "ours", ids, 13) == transformers_ids(source, ids, 13)
    _, hparams, params = load_encoder_hparams_and_params("ours", tmp_path)
    assert hparams == ODD
    assert_same_bits(state_dict(params), state_dict(random_params(ODD)))


def test_autotokenizer_has_the_same_ids_from_the_export(tmp_path):
    convert.to_hf(TINY, tmp_path / "hf")
    assert_same_tokens(tmp_path / "hf", get_encoder("tiny", TINY.parent))


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
    """The token that takes its place is made by no merge, so it is a special token."""
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
    text = f"one {END_OF_TEXT} zz two"
    encoder = get_encoder(folder.name, folder.parent)
    assert tokenizer(text)["input_ids"] == encoder.encode(text, allowed_special=["zz"])
    convert.from_hf(str(tmp_path / "hf"), tmp_path / "back")
    assert get_encoder("back", tmp_path).encoder == vocab


# -------------------------------------------------------------------------------- the command line, the hub, and Ctrl-C


def run_convert(*args: object) -> Result:
    return run_main("picogpt convert", *args)


def test_the_command_line_there_and_back(tmp_path):
    result = run_convert("tiny", "--to-hf", "--out", tmp_path / "hf")
    assert result == (0, f"{tmp_path / 'hf'}: 52 tensors, 1,442,240 numbers, float32; 1,024 tokens\n", "")
    modes = {path.stat().st_mode for path in (tmp_path / "hf").iterdir()}
    assert len(modes) == 1  # whoever may read one file may read all of them
    result = run_convert("hf", "--models_dir", tmp_path, "--out", tmp_path / "back")
    assert (result.status, result.out.startswith(f"{tmp_path / 'back'}: 52 tensors")) == (0, True)
    assert_same_files(TINY, tmp_path / "back")


@pytest.mark.parametrize(
    ("args", "status", "message"),
    [
        ([], 2, "the following arguments are required: source, --out"),
        (["--to-hf", "--revision", "r", "a", "--out", "b"], 2, "argument --revision"),
        ([TINY, "--out", "x"], 2, "is in OpenAI's layout already: --to_hf converts from it"),
        ([TINY / "hparams.json", "--out", "x"], 1, "there is no model"),
        (["no such", "--out", "x"], 1, "there is no model 'no such'"),
        (["--to-hf", "nowhere", "--out", "x"], 1, "there is no model 'nowhere'"),
    ],
)
def test_what_the_command_line_refuses(tmp_path, monkeypatch, args, status, message):
    monkeypatch.chdir(tmp_path)
    assert_error(run_convert(*args), status, message)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("direction", [[], ["--to_hf"]])
def test_an_existing_folder_is_never_overwritten(source, tmp_path, direction):
    (tmp_path / "x").mkdir()
    (tmp_path / "x" / "mine").write_text("kept")
    result = run_convert(*direction, TINY if direction else source, "--out", tmp_path / "x")
    assert_error(result, 1, "x exists already, and is not a model's folder: choose another name")
    assert [path.name for path in tmp_path.iterdir()] == ["x"]
    assert (tmp_path / "x" / "mine").read_text() == "kept"


@pytest.mark.parametrize("error", [KeyboardInterrupt, OSError(28, "No space left on device")])
@pytest.mark.parametrize("direction", [[], ["--to-hf"]])
def test_an_interruption_leaves_nothing(source, tmp_path, monkeypatch, direction, error):
    written = []

    def interrupted(*args: Any) -> None:
        (folder,) = tmp_path.iterdir()
        written.extend(path.name for path in folder.rglob("*"))
        raise error

    monkeypatch.setattr(convert, "write_checkpoint", interrupted)
    monkeypatch.setattr(convert, "write_safetensors", interrupted)
    result = run_convert(*direction, TINY if direction else source, "--out", tmp_path / "x")
    assert (result.status, result.out) == ((130, "") if error is KeyboardInterrupt else (1, ""))
    assert "Traceback" not in result.err
    assert len(written) >= 2
    assert not list(tmp_path.iterdir())


LIMITED = """
import resource, signal, sys
from picogpt.checkpoints.convert import main
from picogpt.command_line import run
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (2_000_000, 2_000_000))
sys.exit(run(main))
"""


def test_a_full_disk_is_one_line(tmp_path):
    """A limit on the size of files stands in for a full disk."""
    pytest.importorskip("resource", reason="limits on files are POSIX's")
    words = [sys.executable, "-c", LIMITED, "--to-hf", str(TINY), "--out", str(tmp_path / "x")]
    done = subprocess.run(words, capture_output=True, text=True, cwd=ROOT, timeout=120)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == f"-c: {tmp_path / 'x'}: File too large\n"
    assert not list(tmp_path.iterdir())


OFFLINE = [{"HF_HUB_OFFLINE": "1"}, {"HF_ENDPOINT": "http://127.0.0.1:9", "HF_HUB_OFFLINE": "0"}]


@pytest.mark.parametrize("network", OFFLINE)
def test_a_hub_name_without_network_is_one_line(tmp_path, network):
    words = [sys.executable, "-m", "picogpt", "convert", "owner/model", "--out", str(tmp_path / "x")]
    env = os.environ | {"HF_HOME": str(tmp_path / "cache")} | network
    done = subprocess.run(words, capture_output=True, text=True, cwd=ROOT, env=env, timeout=120)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.count("\n") == 1, done.stderr
    assert "no folder 'owner/model', and can't get it from the Hugging Face hub: " in done.stderr
    assert {path.name for path in tmp_path.iterdir()} <= {"cache"}


def test_a_hub_name_downloads_what_is_needed(source, tmp_path, monkeypatch):
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
    assert run_convert("owner/a-gpt2", "--out", tmp_path / "x").status == 0
    assert run_convert("owner/a-gpt2", "--out", tmp_path / "y", "--revision", "refs/pr/1").status == 0
    assert asked == [("owner/a-gpt2", None), ("owner/a-gpt2", "refs/pr/1")]
    assert_same_files(tmp_path / "x", tmp_path / "y")


def test_the_hub_needs_its_package(tmp_path, monkeypatch):
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "huggingface_hub" else find(name))
    result = run_convert("owner/model", "--out", tmp_path / "x")
    assert_error(result, 1, "huggingface_hub is not installed: pip install huggingface_hub (to download from the Hug")


def test_the_light_set_up_is_enough(source, tmp_path):
    """In this process nothing else can be imported."""
    code = f"""
import sys
sys.modules |= dict.fromkeys(("tensorflow", "torch", "transformers", "huggingface_hub", "safetensors", "ml_dtypes"))
from picogpt.checkpoints.convert import main
main(["--to_hf", {str(TINY)!r}, "--out", {str(tmp_path / "hf")!r}])
main([{str(source)!r}, "--out", {str(tmp_path / "openai")!r}])
"""
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True, timeout=120)
    assert (tmp_path / "hf" / "model.safetensors").exists()
    assert (tmp_path / "openai" / "hparams.json").exists()


def test_a_model_does_not_take_its_own_place(models_dir, tmp_path):
    shutil.copytree(models_dir / "odd", tmp_path / "odd")
    before = {path.name: path.read_bytes() for path in (tmp_path / "odd").iterdir()}
    result = run_main("picogpt convert", tmp_path / "odd", "--to_hf", "--out", tmp_path / "x" / ".." / "odd", "--force")
    assert_error(result, 2, "is the model to convert: choose another name")
    assert {path.name: path.read_bytes() for path in (tmp_path / "odd").iterdir()} == before
