"""What the README says is what happens: its commands, its output, its example."""

from __future__ import annotations

import re
import subprocess
import sys

import pytest
from helpers import ROOT

README = (ROOT / "README.md").read_text(encoding="utf-8")
TINY = ROOT / "models" / "tiny"


def run(line: str) -> subprocess.CompletedProcess[str]:
    import shlex

    command = [sys.executable if word == "python" else word for word in shlex.split(line)]
    return subprocess.run(command, capture_output=True, text=True, encoding="utf-8", cwd=ROOT)


def test_the_first_command_prints_what_the_readme_shows():
    line, shown = re.search(r'^    (python gpt2.py "ROMEO:".*)\n\n((?:    .*\n|\n)+)', README, re.MULTILINE).groups()
    done = run(line)
    assert done.returncode == 0, done.stderr
    expected = re.sub(r"^    ", "", shown, flags=re.MULTILINE).strip("\n")
    assert done.stdout.strip("\n") == expected


@pytest.mark.parametrize(
    "line", sorted(set(re.findall(r"^    (python (?:gpt2|utils|encoder).py --help)$", README, re.M)))
)
def test_help(line):
    done = run(line)
    assert done.returncode == 0
    assert "examples:" in done.stdout


def test_every_tool_has_help_with_examples():
    listed = run("python -m picogpt --help").stdout
    tools = re.findall(r"^  (\w+) ", listed, re.MULTILINE)
    assert "train" in tools
    for tool in tools:
        done = run(f"python -m picogpt {tool} --help")
        assert done.returncode == 0, done.stderr
        assert "examples:" in done.stdout, tool
    assert run("python -m picogpt nothing").returncode == 2


def test_every_option_is_in_the_readme():
    options = set(re.findall(r"^  (--\w+)", run("python gpt2.py --help").stdout, re.MULTILINE)) - {"--help"}
    assert len(options) == 9
    for option in options:
        assert f"`{option}" in README, option


def test_the_example_runs(monkeypatch):
    """With the model that is here in place of the one that would be downloaded."""
    code = re.search(r"```python\n(.*?)```", README, re.DOTALL)[1]
    monkeypatch.chdir(ROOT)
    names: dict = {}
    exec(code.replace("124M", "tiny"), names)
    assert names["logits"].shape == (len(names["ids"]), names["hparams"]["n_vocab"])
    assert len(names["encoder"].encode(names["text"])) > 0


def test_the_test_command_is_the_one_that_ci_runs():
    assert "\n    python -m pytest\n" in README
    assert "\npython -m pytest\n" in (ROOT / ".ci" / "run").read_text()


def test_every_file_in_the_table_is_there():
    table = README.split("## The files")[1].split("##")[0]
    for name in re.findall(r"^\| `([^`]+)`", table, re.MULTILINE):
        assert (ROOT / name).exists()
