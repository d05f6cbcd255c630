"""What the files of the page name: the files of the repository, and no server but the one of the runtime."""

from __future__ import annotations

import re
import shutil

from helpers import ROOT, run_command

from page import CDN, VERSION
from utils import FILES, META

DOCS = ROOT / "docs"
PAGE = {path.name: path.read_text(encoding="utf-8") for path in [DOCS / "index.html", *(DOCS / "page").glob("*.*")]}


USE = """import glue, json
model = glue.load()
print(len(list(glue.steps(model, json.dumps(dict(prompt="a", n_tokens=2, temperature=1, top_k=0, seed=1))))))"""


def test_the_files_that_the_worker_loads_are_enough(tmp_path):
    lists = re.findall(r"^const (?:SOURCES|MODEL) = \[\n(.*?)\]", PAGE["worker.js"], re.MULTILINE | re.DOTALL)
    sources, model = (re.findall(r'"([^"]+)"', text) for text in lists)
    assert set(model) == set(FILES) - {META}
    for path in [*sources, *(f"models/tiny/{name}" for name in model), "docs/page/glue.py"]:
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / path, tmp_path / path)
    shutil.copy(tmp_path / "docs" / "page" / "glue.py", tmp_path)
    assert run_command("-c", USE, cwd=tmp_path) == (0, "4\n", "")


def test_the_only_other_server_is_that_of_the_runtime():
    named = {name: set(re.findall(r"\b(?:https?:)?//([\w.-]+\.\w+)", text)) for name, text in PAGE.items()}
    assert {name: servers for name, servers in named.items() if servers} == {"runtime.js": {CDN}}


def test_every_file_of_the_runtime_has_a_sha256():
    files = dict(re.findall(r'"([\w.-]+)":\s*"(\w+)"', PAGE["runtime.js"].partition("export const CORE =")[2]))
    assert len(files) == 6
    assert f'VERSION = "{VERSION}"' in PAGE["runtime.js"]
    assert all(re.fullmatch("[0-9a-f]{64}", sha256) for sha256 in files.values())


def test_github_serves_the_files_as_they_are():
    assert (ROOT / ".nojekyll").is_file()
