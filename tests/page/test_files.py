"""What the files of the page name: the files of the repository, and no server but the one of the runtime."""

from __future__ import annotations

import re

from helpers import ROOT

from page import CDN, VERSION
from utils import FILES, META

DOCS = ROOT / "docs"
PAGE = {path.name: path.read_text(encoding="utf-8") for path in [DOCS / "index.html", *(DOCS / "page").glob("*.*")]}


def test_every_file_that_the_worker_loads_is_there():
    lists = re.findall(r"^const (?:SOURCES|MODEL) = \[\n(.*?)\]", PAGE["worker.js"], re.MULTILINE | re.DOTALL)
    sources, model = (re.findall(r'"([^"]+)"', text) for text in lists)
    assert sorted(model) == sorted(set(FILES) - {META})
    assert {"gpt2.py", "encoder.py", "utils.py"} < set(sources)
    for path in [*sources, *(f"models/tiny/{name}" for name in model)]:
        assert (ROOT / path).is_file(), path


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
