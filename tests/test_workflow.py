"""The workflow of a fork, .github/workflows/ci.yml: its commands are the README's and those of .ci/run."""

from __future__ import annotations

import re
import shutil
import subprocess
from typing import Any

import pytest
from helpers import ROOT, committed

OWN = (ROOT / ".ci" / "run").read_text(encoding="utf-8")
README = (ROOT / "README.md").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def jobs() -> dict[str, Any]:
    yaml = pytest.importorskip("yaml")
    return yaml.safe_load((ROOT / ".github" / "workflows" / "ci.yml").read_text(encoding="utf-8"))["jobs"]


def commands(job: dict[str, Any]) -> list[str]:
    return [step["run"] for step in job["steps"] if "run" in step]


def test_the_light_job_does_what_the_readme_says_first_and_then_the_core_tests(jobs):
    set_up, example = re.search(r"^(pip install .*)\n(python gpt2\.py .*)\n```$", README, re.MULTILINE).groups()
    (packages,) = re.findall(r" requirements\.txt (pytest .*)$", OWN, re.MULTILINE)
    (tests,) = re.findall(r'/python" -m (pytest .*) </dev/null$', OWN, re.MULTILINE)
    assert commands(jobs["light"]) == [set_up, example, f"pip install {packages}", f"python -m {tests}"]


def test_the_full_job_does_what_ci_does(jobs):
    own = OWN[OWN.index("pip install -qq -r requirements-dev.txt") : OWN.index("# The core:")]
    assert commands(jobs["full"]) == [line.replace(" -qq", "") for line in own.splitlines() if line]
    install, tests = re.search(r"^(pip install -r requirements-dev.txt) && (.*)$", README, re.MULTILINE).groups()
    assert commands(jobs["full"])[0] == install
    assert commands(jobs["full"])[-1] == tests


def test_every_system_and_every_python_from_the_oldest_on(jobs):
    matrix = jobs["light"]["strategy"]["matrix"]
    assert [name.partition("-")[0] for name in matrix["os"]] == ["ubuntu", "macos", "windows"]
    (oldest,) = re.findall(r'requires-python = ">=3\.(\d+)"', (ROOT / "gpt2.py").read_text(encoding="utf-8"))
    assert matrix["python"] == [f"3.{minor}" for minor in range(int(oldest), 15)]
    for job in jobs.values():
        uses = [step["uses"].partition("@")[0] for step in job["steps"] if "uses" in step]
        assert uses == ["actions/checkout", "actions/setup-python"]
    assert jobs["light"]["steps"][1]["with"]["python-version"] == "${{ matrix.python }}"


def test_a_clone_has_the_same_bytes_where_git_writes_windows_line_ends(tmp_path):
    if not shutil.which("git") or not (ROOT / ".git").exists():
        pytest.skip("needs git, and a clone of the repository")
    for name in (".gitattributes", "models/tiny/vocab.bpe", "models/tiny/model.ckpt.index", "gpt2.py"):
        (tmp_path / "here" / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, tmp_path / "here" / name)
    committed(tmp_path / "here")
    subprocess.run(["git", "-c", "core.autocrlf=true", "clone", "-q", "here", "there"], cwd=tmp_path, check=True)
    for path in (tmp_path / "there").rglob("*"):
        if path.is_file() and ".git" not in path.parts:
            assert path.read_bytes() == (ROOT / path.relative_to(tmp_path / "there")).read_bytes(), path
