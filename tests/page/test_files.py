"""What the files of the page name, and what of them is computed: the stored text, the hashes, the preview picture."""

from __future__ import annotations

import json
import re
import shutil
import struct
from html.parser import HTMLParser

import pytest
from helpers import ROOT, run_command

from page import CDN, DOCS, VERSION, load_script
from picogpt.checkpoints.convert import main as convert
from utils import FILES, META

TEXTS = (".html", ".css", ".js", ".py", ".json")
FOLDER = [path for path in (DOCS / "page").iterdir() if path.suffix in TEXTS]
PAGE = {path.name: path.read_text(encoding="utf-8") for path in [DOCS / "index.html", *FOLDER]}
PUBLISHED = re.search(r'og:url" content="https://([\w-]+\.github\.io)/', PAGE["index.html"])[1]  # a fork has its own


USE = """import glue, json, sys
from pathlib import Path
writer = glue.load("models/tiny")
asked = dict(prompt="a", n_tokens=2, temperature=1, top_k=0, top_p=1, seed=1, kept=[])
print(len(list(writer.steps(json.dumps(asked)))), len(writer.inside("a", "[5]")) > 10000)
glue.load("hf")
files = [getattr(module, "__file__", None) for module in list(sys.modules.values())]
print(*sorted(Path(file).relative_to(Path.cwd()).as_posix() for file in files if file and "/site-packages/" not in file
              and Path(file).is_relative_to(Path.cwd())))"""


def listed(name, file):
    text = re.search(rf"^const {name} = \[(.*?)\];", PAGE[file], re.MULTILINE | re.DOTALL)[1]
    return re.findall(r'"([^"]+)"', text)


def test_the_files_that_the_worker_loads_are_enough_and_none_is_too_many(tmp_path):
    sources, own, model = listed("SOURCES", "worker.js"), listed("GLUE", "worker.js"), listed("MODEL", "loading.js")
    assert set(model) == set(FILES) - {META}
    for path in [*sources, *(f"models/tiny/{name}" for name in model)]:
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / path, tmp_path / path)
    for path in own:
        shutil.copy(DOCS / path, tmp_path)
    convert([str(ROOT / "models" / "tiny"), "--to_hf", "--out", str(tmp_path / "hf")])
    status, out, err = run_command("-c", USE, cwd=tmp_path)
    assert (status, err) == (0, "")
    first, used = out.splitlines()
    assert first == "4 True"
    by_python = [*sources, *(path.split("/")[-1] for path in own)]
    assert set(used.split()) == {path for path in by_python if path.endswith(".py")}
    templates = {path for path in sources if not path.endswith(".py")}
    assert templates == {f"picogpt/explain/page.{kind}" for kind in ("html", "css", "js")}


def test_the_only_other_server_is_that_of_the_runtime():
    """The other addresses are no requests: the page's own, for those who share it, and links to the repository."""
    named = {name: set(re.findall(r"\b(?:https?:)?//([\w.-]+\.\w+)", text)) for name, text in PAGE.items()}
    assert {name: servers for name, servers in named.items() if servers} == {
        "runtime.js": {CDN},
        "index.html": {PUBLISHED, "www.w3.org"},  # the second one is the name of SVG in the icon
        "start.js": {"github.com"},
    }


def test_every_file_of_the_runtime_has_a_sha256():
    files = dict(re.findall(r'"([\w.-]+)":\s*"(\w+)"', PAGE["runtime.js"].partition("export const CORE =")[2]))
    assert len(files) == 6
    assert f'VERSION = "{VERSION}"' in PAGE["runtime.js"]
    assert all(re.fullmatch("[0-9a-f]{64}", sha256) for sha256 in files.values())


def test_github_serves_the_files_as_they_are():
    assert (ROOT / ".nojekyll").is_file()


# ------------------------------------------------------------------------------------------------- what is computed


@pytest.fixture(scope="module")
def build():
    return load_script("build_page.py")


@pytest.fixture(scope="module")
def tiny(build):
    return build.writer()


def test_the_stored_text_is_what_python_computes(build, tiny):
    """The digits of another processor may differ, and nothing else."""
    stored, computed = json.loads(PAGE["first.json"]), json.loads(build.first(tiny))
    assert len(stored) == 46
    numbers = [one for step in (*stored, *computed) for one in step.get("candidates", [])]
    probs = [[one.pop("p"), one.pop("drawn")] for one in numbers]
    assert stored == computed
    half = len(probs) // 2
    for found, expected in zip(probs[:half], probs[half:]):
        assert found == pytest.approx(expected, rel=1e-4)


def test_the_default_settings_are_the_same_everywhere(build):
    text = re.search(r"^const DEFAULTS = (\{.*\});$", PAGE["settings.js"], re.MULTILINE)[1]
    assert json.loads(re.sub(r"(\w+):", r'"\1":', text.replace("ROMEO:", "ROMEO;")).replace(";", ":")) == build.DEFAULTS
    ids = {match[1]: match[2] for match in re.finditer(r'<input id="(\w+)"[^>]* value="([\d.]+)"', PAGE["index.html"])}
    values = {name: float(value) for name, value in ids.items()}
    expected = {name: build.DEFAULTS[name] for name in ("n_tokens", "temperature", "top_p", "seed")}
    assert values == {**expected, "top_k": 101}  # at its end, the slider lets all tokens be drawn


def test_the_content_security_policy_knows_the_page_of_explain(build, tiny):
    advice = "python docs/build_page.py writes these hashes anew"
    assert build.with_hashes(PAGE["index.html"], tiny) == PAGE["index.html"], advice
    policy = re.search(r'http-equiv="Content-Security-Policy"\s+content="([^"]*)"', PAGE["index.html"])[1]
    assert re.sub(r"'sha256-[\w+/]{43}='", "HASH", policy).split("; ") == [
        "default-src 'none'",
        "style-src 'self' HASH",
        "script-src 'self' HASH",
        "worker-src 'self'",
        "connect-src 'self'",
        "img-src data:",
    ]


class Head(HTMLParser):
    """Collects what the head of a page says of it."""

    def __init__(self):
        super().__init__()
        self.meta, self.icon = {}, None

    def handle_starttag(self, tag, attrs):
        attrs = dict(attrs)
        if tag == "meta":
            self.meta[attrs.get("property") or attrs.get("name")] = attrs.get("content")
        if tag == "link" and attrs["rel"] == "icon":
            self.icon = attrs["href"]


def test_a_link_to_the_page_shows_what_it_is():
    head = Head()
    head.feed(PAGE["index.html"])
    title = re.search("<title>(.*)</title>", PAGE["index.html"])[1]
    assert head.meta["og:title"] == title
    assert head.meta["og:description"] == head.meta["description"]
    assert 50 <= len(head.meta["description"]) <= 160
    assert head.icon.startswith("data:image/svg+xml,")
    address = head.meta["og:url"]
    assert address == f"https://{PUBLISHED}/picogpt/docs/"
    assert f"({address})" in (ROOT / "README.md").read_text(encoding="utf-8")
    assert head.meta["og:image"] == address + "page/preview.png"
    picture = (DOCS / "page" / "preview.png").read_bytes()
    width, height = struct.unpack(">II", picture[16:24])
    assert picture[:8] == b"\x89PNG\r\n\x1a\n"
    assert [head.meta["og:image:width"], head.meta["og:image:height"]] == [str(width), str(height)] == ["1200", "630"]
    assert len(picture) < 100_000
