"""Converting between Hugging Face's layout and OpenAI's: transformers' own folders as source and as judge, offline."""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import tqdm
from helpers import ODD, ROOT, random_params

from encoder import END_OF_TEXT, get_encoder
from picogpt import command_line
from picogpt.checkpoints.huggingface import state_dict
from picogpt.checkpoints.writing import show_writing, write_random_model
from utils import load_encoder_hparams_and_params

for module in ("torch", "transformers", "safetensors", "huggingface_hub"):
    pytest.importorskip(module, reason=f"converting is checked with {module}: requirements-dev.txt")

from hf_folders import (  # noqa: E402
    TINY,
    assert_same_bits,
    assert_same_files,
    assert_same_tokens,
    change_json,
    our_ids,
    transformers_ids,
)
from safetensors import safe_open  # noqa: E402
from safetensors.numpy import load_file, save_file  # noqa: E402

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
    _, params, _ = convert.read_openai(TINY)
    assert all(not array.flags.owndata and not array.flags.writeable for array in state_dict(params).values())


# --------------------------------------------------------------------------------------- the same model in both layouts


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


def test_autotokenizer_has_the_same_ids_from_the_export(tmp_path):
    convert.to_hf(TINY, tmp_path / "hf")
    assert_same_tokens(tmp_path / "hf", TINY)


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


def test_openai_vocabulary_and_hparams_must_agree(damaged, tmp_path):
    folder = damaged()
    change_json(folder / "hparams.json", n_layer=3)
    with pytest.raises(ValueError, match="has no tensor model/h2"):
        convert.to_hf(folder, tmp_path / "hf")
    assert not (tmp_path / "hf").exists()


# -------------------------------------------------------------------------------- the command line, the hub, and Ctrl-C


@pytest.fixture
def command(capsys, monkeypatch) -> Callable[..., tuple[int, str, str]]:
    """Run the tool, and return its exit status, stdout and stderr."""

    def run(*args: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["python -m picogpt convert"])
        capsys.readouterr()
        status = command_line.run(lambda: convert.main([str(arg) for arg in args]))
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
    modes = {path.stat().st_mode for path in (tmp_path / "hf").iterdir()}
    assert len(modes) == 1  # whoever may read one file may read all of them
    status, out, _ = command(tmp_path / "hf", tmp_path / "back")
    assert (status, out.startswith(f"{tmp_path / 'back'}: 52 tensors")) == (0, True)
    assert_same_files(TINY, tmp_path / "back")


def test_help_names_the_command_and_the_options(command):
    status, out, _ = command("--help")
    assert status == 0
    assert out.startswith("usage: python -m picogpt convert ")
    assert "\n  python -m picogpt convert models/124M --to_hf --out gpt2-hf\n" in out
    assert "--revision" in out


@pytest.mark.parametrize(
    ("args", "status", "message"),
    [
        ([], 2, "the following arguments are required: source"),
        (["a/b"], 2, "--out names one folder to make"),
        (["a/b", "x", "--out", "y"], 2, "--out names one folder to make"),
        (["--to-hf", "--revision", "r", "a", "b"], 2, "argument --revision"),
        ([TINY, "x"], 2, "is in OpenAI's layout already: --to_hf converts from it"),
        ([TINY / "hparams.json", "x"], 2, "is a file: give the folder it is in"),
        (["no such", "x"], 1, "no folder 'no such', and a model on the Hugging Face hub is named owner/model"),
        (["--to-hf", "nowhere", "x"], 1, "there is no folder nowhere"),
    ],
)
def test_what_the_command_line_refuses(command, tmp_path, monkeypatch, args, status, message):
    monkeypatch.chdir(tmp_path)
    assert_error(command(*args), status, message)
    assert not list(tmp_path.iterdir())


def test_a_folder_of_the_other_layout(command, source, tmp_path):
    assert_error(command("--to-hf", source, tmp_path / "x"), 1, "leave out --to_hf to convert from Hugging Face's")
    (tmp_path / "empty").mkdir()
    assert_error(command(tmp_path / "empty", tmp_path / "x"), 1, "config.json: No such file or directory")


@pytest.mark.parametrize("direction", [[], ["--to_hf"]])
def test_an_existing_folder_is_never_overwritten(command, source, tmp_path, direction):
    (tmp_path / "x").mkdir()
    (tmp_path / "x" / "mine").write_text("kept")
    origin = TINY if direction else source
    assert_error(
        command(*direction, origin, tmp_path / "x"),
        1,
        "x exists already, and is not a model's folder: choose another name",
    )
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
from picogpt.command_line import run
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (2_000_000, 2_000_000))
sys.exit(run(main))
"""


def test_a_full_disk_is_one_line(tmp_path):
    """A limit on the size of files stands in for a full disk. It makes safetensors' own writer fail."""
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
from picogpt.command_line import run
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
    assert err.rstrip().endswith("x exists already, and is not a model's folder: choose another name")
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


@pytest.fixture
def without(monkeypatch) -> Callable[..., None]:
    """Let modules look as if they were not installed."""
    find = importlib.util.find_spec

    def hide(*names: str) -> None:
        monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name in names else find(name))

    return hide


@pytest.mark.parametrize(
    ("missing", "purpose"),
    [
        ("safetensors", ""),
        ("huggingface_hub", " (to download from the Hugging Face hub)"),
    ],
)
def test_a_package_that_is_not_installed_is_named(command, tmp_path, monkeypatch, without, missing, purpose):
    without(missing, "ml_dtypes")  # ml_dtypes is not needed yet
    monkeypatch.chdir(tmp_path)
    message = f"convert: {missing} is not installed: pip install {missing}{purpose}\n"
    status, out, err = command("owner/model", "--out", "x")
    assert (status, out, err.removeprefix("python -m picogpt ")) == (1, "", message)
    assert not list(tmp_path.iterdir())


def test_ml_dtypes_is_needed_for_bfloat16_only(command, small, tmp_path, without):
    import torch
    from safetensors.torch import save_file as save_torch

    without("ml_dtypes", "huggingface_hub")
    assert command(small, "--out", tmp_path / "float32")[0] == 0
    tensors = {k: torch.tensor(v).bfloat16() for k, v in load_file(small / "model.safetensors").items()}
    save_torch(tensors, small / "model.safetensors")
    message = "ml_dtypes is not installed: pip install ml_dtypes (to read bfloat16)"
    assert_error(command(small, "--out", tmp_path / "x"), 1, message)
    assert not (tmp_path / "x").exists()


def test_progress_is_shown_in_both_directions(command, small, tmp_path, monkeypatch):
    bars = []

    class Bar(tqdm.tqdm):
        def __init__(self, *args: Any, **kwargs: Any):
            super().__init__(*args, **kwargs | {"disable": False})  # as in a terminal
            bars.append(self)

    monkeypatch.setattr(tqdm, "tqdm", Bar)
    assert command(small, "--out", tmp_path / "ours")[0] == 0
    assert command(tmp_path / "ours", "--to_hf", "--out", tmp_path / "back")[0] == 0
    n_bytes = sum(array.nbytes for array in load_file(small / "model.safetensors").values())
    assert [(bar.desc.strip(": "), bar.total) for bar in bars] == [
        ("reading", len(load_file(small / "model.safetensors"))),
        ("writing", n_bytes),
        ("writing", n_bytes),
    ]
    assert [bar.n for bar in bars] == [bar.total for bar in bars]


def test_the_bar_shows_what_has_been_written(tmp_path, monkeypatch):
    """A thread watches the sizes of the files, since a library writes them in one call."""
    bars, seen = [], threading.Event()

    class Bar(tqdm.tqdm):
        def __init__(self, *args: Any, **kwargs: Any):
            super().__init__(*args, **kwargs | {"disable": False})
            bars.append(self)

        def update(self, n: float | None = 1) -> bool | None:
            done = super().update(n)
            if self.n:
                seen.set()
            return done

    monkeypatch.setattr(tqdm, "tqdm", Bar)
    (tmp_path / "before").write_bytes(b"not counted")
    n_threads = threading.active_count()
    with show_writing(tmp_path, 100):
        (tmp_path / "half").write_bytes(bytes(50))
        assert seen.wait(20)
        assert bars[0].n == 50
    assert threading.active_count() == n_threads


def test_to_hf_needs_safetensors_only(tmp_path):
    """In this process TensorFlow, PyTorch, transformers and the hub can't be imported."""
    code = f"""
import sys
sys.modules |= dict.fromkeys(("tensorflow", "torch", "transformers", "huggingface_hub"))
from picogpt.checkpoints.convert import main
main(["--to_hf", {str(TINY)!r}, "--out", {str(tmp_path / "x")!r}])
"""
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True, timeout=120)
    assert (tmp_path / "x" / "model.safetensors").exists()
