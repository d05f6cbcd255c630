"""gpt2.py can be quoted: its sections and functions run where they are pasted, in a notebook and through uv, too."""

from __future__ import annotations

import ast
import doctest
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers import ROOT, SMALL, random_params

import gpt2

SOURCE = (ROOT / "gpt2.py").read_text(encoding="utf-8")
PASTED = "import math\nimport numpy as np\n"
DEFINITIONS = [node for node in ast.parse(SOURCE).body if isinstance(node, ast.FunctionDef | ast.ClassDef)]
COMMAND = ["ROMEO:", "--model_size", "tiny", "--n_tokens_to_generate", "12", "--models_dir", str(ROOT / "models")]


def section(title: str) -> str:
    """The text between one line of dashes with a title and the next."""
    (text,) = re.findall(rf"^# -+ {title}\n(.*?)^# -+ ", SOURCE, re.DOTALL | re.MULTILINE)
    return text


def paste(*titles: str) -> dict[str, Any]:
    """Run sections behind the two imports, in an empty namespace."""
    names: dict[str, Any] = {}
    exec(PASTED + "".join(map(section, titles)), names)
    return names


def test_the_model_gives_the_same_logits_bit_for_bit():
    names, params = paste("the model, bottom up"), random_params(SMALL)
    ids = np.random.default_rng(0).integers(0, 101, (2, 17))
    np.testing.assert_array_equal(names["gpt2"](ids, **params, n_head=3), gpt2.gpt2(ids, **params, n_head=3))
    assert not names.keys() & {"Matrix", "n_seq", "TYPE_CHECKING"}


def test_choosing_and_generating_behind_it_give_the_same_ids():
    names, params = paste("the model, bottom up", "choosing a token", "generating"), random_params(SMALL)
    assert list(names["generate"]([3, 1, 4], params, 3, 12)) == list(gpt2.generate([3, 1, 4], params, 3, 12))

    def drawn(module: dict[str, Any]) -> list[int]:
        rng = np.random.default_rng(1)
        choose = lambda logits, ids: module["sample"](logits, ids, rng, 0.9, 20, 0.95, 1.2)  # noqa: E731
        return list(module["generate"]([3, 1, 4], params, 3, 12, choose))

    assert drawn(names) == drawn(vars(gpt2))


@pytest.mark.parametrize("definition", DEFINITIONS, ids=lambda node: node.name)
def test_every_function_alone_can_be_defined(definition):
    """`generate` alone needs `greedy`, its default."""
    names: dict[str, Any] = {"greedy": None} if definition.name == "generate" else {}
    exec(PASTED + ast.get_source_segment(SOURCE, definition), names)
    assert callable(names[definition.name])


def test_the_examples_run():
    """The functions get nothing but what is pasted."""
    names = paste("the model, bottom up", "choosing a token", "generating")
    finder, runner = doctest.DocTestFinder(), doctest.DocTestRunner()
    examples = finder.find(gpt2, globs=names)
    for example in examples:
        runner.run(example)
    assert runner.summarize(verbose=False).failed == 0
    assert [example.name for example in examples if example.examples] == ["gpt2.gelu", "gpt2.keep_top_k"]


def test_importing_gpt2_imports_numpy_and_nothing_heavy():
    code = "import sys, gpt2; print(*{name.partition('.')[0] for name in sys.modules})"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    heavy = {"tensorflow", "requests", "regex", "tqdm", "torch", "jax", "matplotlib", "encoder", "utils", "picogpt"}
    assert "numpy" in done.stdout.split()
    assert not heavy & set(done.stdout.split())


def generated(*command: str, cwd: Path = ROOT) -> str:
    """The text that a command prints."""
    env = {name: value for name, value in os.environ.items() if name != "VIRTUAL_ENV"}
    done = subprocess.run(
        [*command, *COMMAND], capture_output=True, text=True, encoding="utf-8", cwd=cwd, env=env, timeout=300
    )
    if "error sending request" in done.stderr or "dns error" in done.stderr:
        pytest.skip("uv reaches no package index")
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.slow
def test_uv_runs_it_with_the_dependencies_that_it_names(tmp_path):
    uv = shutil.which("uv", path=os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]]))
    if not uv:
        pytest.skip("uv is not installed")
    for name in ("gpt2.py", "encoder.py", "utils.py"):
        shutil.copy(ROOT / name, tmp_path)
    command = [uv, "run", "--python", sys.executable, "gpt2.py"]
    assert generated(*command, cwd=tmp_path) == generated(sys.executable, "gpt2.py")


def test_uv_installs_what_the_requirements_list():
    (block,) = re.findall(r"^# /// script\n(.*?)^# ///$", SOURCE, re.DOTALL | re.MULTILINE)
    named = ast.literal_eval(re.search(r"dependencies = (\[.*\])", block)[1])
    lines = (ROOT / "requirements.txt").read_text(encoding="utf-8").splitlines()
    listed = [line for line in lines if line[0].isalpha()]
    assert sorted([*named, "threadpoolctl"]) == sorted(listed)  # which only picogpt/ uses


@pytest.fixture(scope="module")
def kernel():
    """An IPython kernel, as a notebook has one: kernel(code) is what a cell with this code prints, and its error."""
    pytest.importorskip("ipykernel", reason="ipykernel is not installed")
    from jupyter_client.manager import start_new_kernel

    manager, client = start_new_kernel(cwd=str(ROOT))
    printed: list[str] = []

    def run(code: str) -> tuple[str, str]:
        printed.clear()
        reply = client.execute_interactive(code, timeout=60, output_hook=collect)["content"]
        return "".join(printed), "\n".join(reply.get("traceback", []))

    def collect(message: dict[str, Any]) -> None:
        if message["content"].get("name") == "stdout":
            printed.append(message["content"]["text"])

    yield run
    client.stop_channels()
    manager.shutdown_kernel(now=True)


@pytest.mark.slow
def test_a_notebook_runs_the_command(kernel):
    prompt, *options = COMMAND
    text, error = kernel(f'%run gpt2.py "{prompt}" {" ".join(options)}')
    assert (text, error) == (generated(sys.executable, "gpt2.py"), "")
    assert kernel("print(1 + 1)") == ("2\n", "")  # the kernel is still there


@pytest.mark.slow
def test_a_notebook_takes_the_whole_file_in_a_cell(kernel):
    assert kernel(SOURCE) == ("", "")
    assert kernel("print(gelu(np.array([-1, 0, 1])).round(4).tolist())") == ("[-0.1588, 0.0, 0.8412]\n", "")
    code = """
from utils import load_encoder_hparams_and_params
encoder, hparams, params = load_encoder_hparams_and_params("tiny", "models")
print(encoder.decode(generate(encoder.encode("ROMEO:"), params, hparams["n_head"], 12)))
"""
    assert kernel(code) == (generated(sys.executable, "gpt2.py"), "")
