"""Run every command and every block of code in README.md and docs/, in a copy of the repository.

Fenced blocks have a language. `sh` blocks are commands and `python` blocks are programs. A `text` block directly behind
commands is their output, in which … stands for anything. Comments behind `print` are the output of programs.

Each command gets one of these forms, which the test's name shows:

    runs        as it stands
    runs tiny   with models/tiny in the place of one of OpenAI's models, which would have to be downloaded
    parsed      the tool reads its options, but the work would take minutes or needs the network
    help        a program of Dask that would run until it is stopped: its --help must list the options
    pytest      these tests are running at the moment; the files that a command names must exist
    set-up      nothing is installed: the names are compared with requirements.txt

The programs in docs/walkthrough.md are the cells of one notebook. test_walkthrough.py runs them, one after the other.
"""

from __future__ import annotations

import importlib
import itertools
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
from helpers import ENVIRONMENT, ODD, ROOT, committed, random_params, skip_without, their_gpt2

import gpt2
from picogpt.__main__ import TOOLS
from utils import FILES, META, NAMES, SIZES, load_encoder_hparams_and_params

README = (ROOT / "README.md").read_text(encoding="utf-8")
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
LIGHT = {"numpy", "regex", "requests", "threadpoolctl", "tqdm"}
NEEDS = {  # word in a block: modules without which it is skipped
    "compare": ("tiktoken", "tokenizers"),
    "--png": ("matplotlib",),
    "--plot": ("matplotlib",),
    "plot_lens": ("matplotlib",),
    "mypy": ("mypy",),
    "lm_eval": ("lm_eval",),
    "--jobs": ("joblib",),
    "dask": ("distributed",),
}
SLOW_WORDS = {"bench", "compare", "convert", "mypy", "--png", "lm_eval"}


class Block(NamedTuple):
    """A fenced block of a page. For commands, `shown` is the output that the page shows, if it does."""

    page: str
    line: int
    language: str
    code: str
    shown: str | None


def blocks_of(page: Path) -> list[Block]:
    text = page.read_text(encoding="utf-8")
    found = list(re.finditer(r"^```(.*)\n((?:.*\n)*?)^```$", text, re.MULTILINE))
    blocks = []
    for block, after in zip(found, [*found[1:], None]):
        follows = after and after[1] == "text" and not text[block.end() : after.start()].strip()
        line = text.count("\n", 0, block.start()) + 1
        blocks.append(Block(page.name, line, block[1], block[2], after[2] if follows else None))
    return blocks


BLOCKS = [block for page in PAGES for block in blocks_of(page)]


def commands_of(code: str) -> list[str]:
    """Split a block into its commands: one on each line, unless a quote, a backslash or && goes on to the next line.

    Lines of comment between commands are left out.
    """
    commands, held = [], ""
    for line in code.splitlines(keepends=True):
        if line.startswith("#") and not held:
            continue
        held += line
        try:
            shlex.split(held)
        except ValueError:  # a quote is open
            continue
        if held.endswith("\\\n"):
            held = held[:-2]
        elif not held.endswith("&&\n"):
            commands += re.split(r"\s+&&\s+", held.strip())
            held = ""
    assert not held, held
    return commands


def parsed(words: list[str]) -> tuple[str, object]:
    """Return the tool of a command, and the options as its own parse_args reads them. Raises SystemExit."""
    words = list(itertools.takewhile(lambda word: word not in ("<", ">", "|", "2>&1"), words))
    name, rest = (words[3], words[4:]) if words[1] == "-m" else (Path(words[1]).stem, words[2:])
    module = importlib.import_module(TOOLS[name][0] if words[1] == "-m" else name)
    return name, module.parse_args(rest) if hasattr(module, "parse_args") and "--help" not in rest else None


def form_of(command: str) -> str:
    words = shlex.split(command)
    if words[0] in ("curl", "git", "hf", "pip", "uv", ".") or words[:3] == ["python3", "-m", "venv"]:
        return "set-up"
    if words[:3] == ["python", "-m", "pytest"]:
        return "pytest"
    if words[:3] == ["python", "-m", "dask"]:
        return "help"
    if words[0] != "python":
        return "runs"
    try:
        name, args = parsed(words)
    except SystemExit:
        return "wrong options"
    if name in ("train", "random_weights", "lm_eval", "facts") or (name == "compare" and "--parts" not in words):
        return "parsed"
    if getattr(args, "dask", None) or Path(getattr(args, "against", None) or "").suffix == ".bin":  # a file of llm.c
        return "parsed"
    if name == "convert":
        return "runs" if args.source.startswith("models/") else "parsed"
    model = getattr(args, "model_size", None)
    if model in NAMES or (
        model not in (None, *SIZES) and not any((ROOT / place / model).exists() for place in ("", "models"))
    ):
        return "parsed"  # a model that the reader downloads or makes
    if model in SIZES:
        return "parsed" if name == "bench" else "runs tiny"  # bench --shape has 124M, too
    return "runs"


def forms(block: Block) -> str:
    return ", ".join(form_of(command) for command in commands_of(block.code)) if block.language == "sh" else "runs"


def title(block: Block) -> str:
    return f"{block.page}:{block.line} {forms(block)}"


@pytest.fixture(scope="module")
def clone(tmp_path_factory):
    """A repository with the files of this one. What the commands write appears there."""
    if not shutil.which("git") or not (ROOT / ".git").exists():
        pytest.skip("needs git, and a clone of the repository")
    folder = tmp_path_factory.mktemp("clone")
    listed = subprocess.check_output(["git", "ls-files", "-co", "--exclude-standard"], cwd=ROOT, text=True)
    for name in listed.splitlines():
        if (ROOT / name).exists():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, folder / name)
    return committed(folder)


def run(command: list[str], folder: Path, stdin: str = "") -> subprocess.CompletedProcess[str]:
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    settings = ENVIRONMENT | {"PATH": path, "MYPY_CACHE_DIR": str(ROOT / ".mypy_cache"), "MPLBACKEND": "Agg"}
    settings["HF_HOME"] = str(folder.parent / "huggingface")  # where datasets keeps its copies
    return subprocess.run(
        command, input=stdin, capture_output=True, text=True, encoding="utf-8", env=settings, cwd=folder, timeout=300
    )


def pattern(shown: str) -> str:
    """Return a regular expression for a shown output: … stands for anything, on a line of its own for many lines."""
    anything = {"…": ".*", "…\n": r"(?:.*\n)*"}
    parts = re.split(r"((?<=\n)…\n|…)", shown.rstrip("\n") + "\n")
    return "".join(anything.get(part, re.escape(part)) for part in parts)


def check_set_up(command: str) -> None:
    """Check that the light set-up is what requirements.txt asks for, and that a named file exists."""
    program, *words = shlex.split(command)
    if program not in ("pip", "uv"):  # what needs the network, or a shell that goes on
        return
    if program == "uv":  # the metadata on top of the script tells uv what to install
        assert re.findall(r'"(\w+)[^"]*"', re.search(r"# dependencies = (.*)", (ROOT / words[1]).read_text())[1])
        gpt2.parse_args(words[2:])
    elif words[1] == "-r":
        assert (ROOT / words[2]).is_file()
    else:
        assert words[0] == "install"
        assert set(words[1:]) == LIGHT


def check_help(command: str, folder: Path) -> None:
    """Check that a program exists, and that its --help lists the options of a command."""
    start, *options = re.split(r" (?=--)", command)
    words = shlex.split(start)[:4]
    done = run([*words, "--help"], folder)
    assert done.returncode == 0, done.stderr
    known = re.findall(r"--\w[\w-]*", done.stdout)
    assert {option.split()[0] for option in options} <= set(known), command


def skip_if_incomplete(block: Block) -> None:
    """Skip a block if a module that it needs is not installed."""
    for word in set(re.findall(r"[\w-]+", block.code)) & set(NEEDS):
        skip_without(*NEEDS[word])


def is_cell(block: Block) -> bool:
    return (block.page, block.language) == ("walkthrough.md", "python")


def blocks(language: str) -> list[Any]:
    """Return the blocks of a language as parameters of a test."""
    found = [block for block in BLOCKS if block.language == language and not is_cell(block)]
    slow = [any(word in SLOW_WORDS for word in re.findall(r"[\w-]+", block.code)) for block in found]
    marks = [[pytest.mark.slow] if is_slow else [] for is_slow in slow]
    return [pytest.param(block, id=title(block), marks=mark) for block, mark in zip(found, marks)]


@pytest.mark.parametrize("block", blocks("sh"))
def test_commands(block, clone):
    skip_if_incomplete(block)
    done = None
    for command in commands_of(block.code):
        form = form_of(command)
        assert form != "wrong options", command
        if form == "set-up":
            check_set_up(command)
        elif form == "pytest":
            assert all((ROOT / word).exists() for word in shlex.split(command) if word.startswith("tests/"))
        elif form == "parsed":
            parsed(shlex.split(command))
        elif form == "help":
            check_help(command, clone)
        else:
            done = run(["sh", "-c", command + (" --model_size tiny" if form == "runs tiny" else "")], clone)
            fails = "error:" in (block.shown or "")  # as shown
            assert bool(done.returncode) == fails, done.stdout + done.stderr
    if block.shown is not None and done:
        assert re.fullmatch(pattern(block.shown), done.stdout.rstrip("\n") + "\n"), done.stdout
    assert_clean(clone)


@pytest.mark.parametrize("block", blocks("python"))
def test_programs(block, clone):
    skip_if_incomplete(block)
    read = re.search(r"\b(activations|reference)\.npz", block.code)
    if read and not (clone / read[0]).exists():
        pytest.skip("reads the file that the command before it writes")
    if "out/ckpt.pt" in block.code:  # a file of nanoGPT
        compile(block.code, title(block), "exec")
        return
    done = run([sys.executable, "-"], clone, stdin=block.code)
    assert done.returncode == 0, done.stderr
    printed = re.findall(r"^ *print\(.*\)  # (.*)$", block.code, re.MULTILINE)
    assert block.code.count("print(") == len(printed)
    assert done.stdout.splitlines() == printed
    assert_clean(clone)


def assert_clean(clone: Path) -> None:
    """Assert that the examples left nothing that git would show."""
    shown = subprocess.check_output(["git", "status", "--porcelain"], cwd=clone, text=True)
    assert shown == ""


def test_every_block_has_a_language():
    assert {block.language for block in BLOCKS} == {"sh", "python", "text"}


def test_every_link_leads_somewhere():
    for page in PAGES:
        for target in re.findall(r"\]\(([^)\s]+)\)", page.read_text(encoding="utf-8")):
            if target.startswith("https://"):
                continue
            name, _, anchor = target.partition("#")
            file = page.parent / name if name else page
            assert file.exists(), (page.name, target)
            if anchor:
                titles = re.findall(r"^#+ (.*)$", file.read_text(encoding="utf-8"), re.MULTILINE)
                assert anchor in [title.lower().replace(" ", "-") for title in titles], (page.name, target)


def test_every_option_is_in_the_readme(capsys):
    with pytest.raises(SystemExit):
        gpt2.parse_args(["--help"])
    options = set(
        re.findall(r"(?<![\w-])--?[a-z]\w*", capsys.readouterr().out.split("options:")[1].split("python -m")[0])
    )
    assert len(options - {"-h", "--help"}) == 12
    section = README.split("## Options")[1].split("##")[0]
    assert [option for option in options - {"-h", "--help"} if f"`{option}`" not in section] == []


def test_every_option_of_explain_is_on_its_page(capsys):
    with pytest.raises(SystemExit):
        importlib.import_module(TOOLS["explain"][0]).parse_args(["--help"])
    options = set(re.findall(r"^  (--\w+)", capsys.readouterr().out, re.MULTILINE)) - {"--help"}
    page = (ROOT / "docs" / "explain.md").read_text(encoding="utf-8")
    assert len(options) > 8
    assert {option for option in options if f"{option}" not in page} <= {"--models_dir"}


def test_every_tool_is_in_the_readme_with_its_page():
    assert set(re.findall(r"^\| \[`(\w+)`\]\(docs/", README, re.MULTILINE)) == set(TOOLS)


def test_every_file_in_the_reading_order_exists():
    table = README.split("## The files")[1].split("##")[0]
    names = re.findall(r"^\| `([^`]+)`", table, re.MULTILINE)
    assert names[:3] == ["gpt2.py", "encoder.py", "utils.py"]
    assert all((ROOT / name).exists() for name in names)


def test_the_light_set_up_is_what_requirements_txt_lists():
    lines = (ROOT / "requirements.txt").read_text().splitlines()
    assert {re.match(r"[\w-]+", line)[0] for line in lines if not line.startswith("#")} == LIGHT


def test_the_test_command_is_the_one_that_ci_runs():
    ci = (ROOT / ".ci" / "run").read_text()
    (tests,) = re.findall(r"^pip install -r requirements-dev.txt && (python -m pytest.*)$", README, re.MULTILINE)
    assert "pip install -qq -r requirements-dev.txt\n" in ci
    assert f"\n{tests}\n" in ci


def test_the_offline_route_names_the_files_of_a_model():
    (paragraph,) = re.findall(r"copied to `models/124M`:([^.]*(?:\.\w[^.]*)*)\.\n", README)
    assert set(re.findall(r"`(.+?)`", paragraph)) == set(FILES) - {META}


# -------------------------------------------------------------------------------- what runs on our files, and on JAX


def test_a_model_in_picogpt_s_style_runs_on_our_encoder_and_utils():
    encoder, hparams, params = load_encoder_hparams_and_params("tiny", str(ROOT / "models"))
    prompt = encoder.encode("To be, or not to")
    assert len(prompt) + 8 < hparams["n_ctx"]
    inputs = list(prompt)
    for _ in range(8):
        inputs.append(int(np.argmax(their_gpt2(inputs, **params, n_head=hparams["n_head"])[-1])))
    new_ids = gpt2.generate(prompt, params, hparams["n_head"], 8)
    with pytest.raises(TypeError):
        len(new_ids)
    assert encoder.decode(inputs[len(prompt) :]) == encoder.decode(new_ids)
    assert len(list(gpt2.generate(prompt, params, hparams["n_head"], 8))) == 8


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:Explicitly requested dtype float64")
def test_what_runs_with_jax_in_place_of_numpy():
    jax = pytest.importorskip("jax")
    source = (ROOT / "gpt2.py").read_text(encoding="utf-8")
    names = {"__name__": "gpt2_in_jax"}
    exec(source.replace("import numpy as np", "import jax.numpy as np"), names)
    ids, n_head = [1, 2, 3, 5, 8, 13], ODD["n_head"]
    numpy_params = random_params(ODD)
    params = jax.tree.map(jax.numpy.asarray, numpy_params)

    def logits(params):
        return names["gpt2"](ids, **params, n_head=n_head)

    expected = gpt2.gpt2(ids, **numpy_params, n_head=n_head)
    assert np.allclose(jax.jit(logits)(params), expected, rtol=1e-4, atol=1e-4)
    gradient = jax.jit(jax.grad(lambda params: logits(params).sum()))(params)  # jit: to compile once
    assert gradient["wte"].shape == params["wte"].shape
    with pytest.raises(TypeError, match="immutable"):
        names["gpt2"](ids, **params, n_head=n_head, cache=names["empty_cache"](params, n_head, 8))
    with pytest.raises(TypeError, match="immutable"):
        names["Context"](params, n_head).logits(ids)
    with pytest.raises(TypeError, match="immutable"):
        list(names["generate"](ids, params, n_head, 2))
    with pytest.raises((TypeError, AttributeError)):
        names["sample"](jax.numpy.asarray(expected[-1]), ids, np.random.default_rng(0))
