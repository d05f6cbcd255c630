"""The plain command lines of gpt2.py and utils.py, and what all commands share: errors, streams, signals, models."""

from __future__ import annotations

import contextlib
import doctest
import functools
import importlib
import json
import logging
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pytest
from helpers import (
    ENVIRONMENT,
    HARMLESS,
    HOSTILE,
    ODD,
    ROOT,
    Result,
    assert_error,
    command,
    model_options,
    run_command,
    run_main,
)

import utils
from encoder import Encoder
from picogpt import command_line, generate
from picogpt.__main__ import TOOLS, version
from picogpt.checkpoints.writing import write_random_model

SCRIPTS = ["gpt2.py", "utils.py", "picogpt tokens"]
TINY = ["--model_size", "tiny"]
posix = pytest.mark.skipif(os.name != "posix", reason="needs POSIX signals, pipes or permissions")


@pytest.fixture(scope="session")
def endless(tmp_path_factory: pytest.TempPathFactory) -> list[Any]:
    """Return the end of a command that generates for longer than any test waits."""
    folder = tmp_path_factory.mktemp("long") / "long"
    folder.mkdir()
    n = 30_000
    write_random_model(folder, ODD | {"n_ctx": n}, seed=1)
    return ["ab", *model_options(folder), "-n", n - 2]


# ------------------------------------------------------------------------------------- gpt2.py, and its tool generate


@pytest.mark.parametrize(
    "args",
    [
        ["ROMEO:"],
        [""],
        ["a b "],
        ["é漢😀\n"],
        ["--help me"],
        ["-1"],
        ["<|endoftext|>"],
        ["ROMEO:", "-n", 0],
        ["ROMEO:", "--n_tokens", 255],
        ["ROMEO:", "--temperature", 1e-320],
        ["ROMEO:", "--temperature", 0.8, "--seed", 1],
        ["ROMEO:", "--temperature", 1, "--seed", 7, "--top_k", 5],
        ["ROMEO:", "--temperature", 1, "--seed", 7, "--top_p", 0.5],
        ["ROMEO:", "--temperature", 1, "--seed", 3, "--top_k", 20, "--top_p", 0.9, "--repetition_penalty", 1.3],
        ["ROMEO:", "--repetition_penalty", 2],
        ["ROMEO:", "--stop", " and"],
        ["ROMEO:", "--stop", "\n\n"],
        ["", "--temperature", 1, "--seed", 2, "--stop", "<|endoftext|>"],
    ],
)
def test_gpt2_py_prints_what_generate_prints(args):
    ours, other = (run_main(name, *args, *TINY) for name in ("gpt2.py", "picogpt generate"))
    assert (ours.status, ours.out) == (other.status, other.out) == (0, other.out)
    assert ours.err == ""


STDIN = [
    (b"ab\n", "ab"),
    (b"ab\n\n", "ab\n"),
    (b"a\r\nb\r\n", "a\nb"),
    (b"a\rb\r", "a\rb\r"),
    (b"\na\nb", "\na\nb"),
    (b"\n\n", "\n"),
    (b"-\n", "-"),
    (b"--help me", "--help me"),
    (b"a\0b\n", "a\0b"),
    ("é漢😀\n".encode(), "é漢😀"),
    (b"\xef\xbb\xbfab\n", "ab"),  # a byte order mark
    ("a\ufeffb".encode(), "a\ufeffb"),
]


@pytest.mark.parametrize("name", ["gpt2.py", "picogpt generate"])
@pytest.mark.parametrize(("stdin", "prompt"), STDIN)
def test_prompt_from_stdin(name, stdin, prompt, odd, continued):
    with mock.patch.object(Encoder, "encode", autospec=True, side_effect=Encoder.encode) as encode:
        result = run_main(name, "-", "-n", 5, *model_options(odd), stdin=stdin)
    assert [call.args[1] for call in encode.mock_calls] == [prompt]  # two prompts may have the same continuation
    assert (result.status, result.out) == (0, continued(prompt, 5) + "\n"), result


@pytest.mark.parametrize("name", ["gpt2.py", "picogpt generate"])
def test_a_byte_order_mark_in_front_of_a_prompt_is_skipped(name):
    with_mark, without = (run_main(name, prompt, "-n", 5, *TINY) for prompt in ("\ufeffROMEO:", "ROMEO:"))
    assert with_mark.out == without.out != run_main(name, "a\ufeffROMEO:", "-n", 5, *TINY).out
    assert run_main("picogpt tokens", "\ufeffa", *TINY).out == "    64  a\n"


def test_gpt2_py_as_a_process(odd, continued):
    words = "--help me", *model_options(odd), "-n", 5
    assert run_command("gpt2.py", *words) == (0, continued("--help me", 5) + "\n", "")


def test_stdin_of_a_process(odd, continued):
    """Windows must not translate line ends on the way in."""
    result = run_command("gpt2.py", "-", *model_options(odd), "-n", 5, stdin="é\r\na\0b\r\n".encode())
    assert result == (0, continued("é\na\0b", 5) + "\n", "")


@pytest.mark.parametrize(
    ("args", "words"),
    [
        ([], ["prompt"]),
        (["To", "be", "or", "not"], ["'be'", "put a text of several words into quotes"]),
        (["x", "--n_samples", "3"], ["'--n_samples'", "python -m picogpt generate"]),
        (["x", "--end_of_text"], ["'--end_of_text'", "python -m picogpt generate"]),
        (["x", "--seed", "x"], ["--seed", "'x'"]),
    ],
)
def test_a_command_line_that_gpt2_py_can_not_read(args, words):
    assert_error(run_main("gpt2.py", *args), 2, "gpt2.py: error: ", *words)


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (
            ["ROMEO:", "-n", 300],
            ["2 prompt tokens [+] 300 to generate do not fit into the context of 256: 0 to 255 new ones fit"],
        ),
        (["a" * 1000], ["prompt tokens [+] 40 .* of 256: 0 to 0 new ones fit"]),
        (["x", "--temperature", "nan"], ["temperature=nan"]),
        (["x", "--temperature", "1", "--top_p", "1.5"], ["top_p=1.5"]),
        (["x", "--model_size", "nope"], ["there is no model 'nope'", "only .*tiny"]),
        (["-"], ["position 1"]),
        (["a\udcffb"], ["character 1 .*surrogate.*udcff"]),
    ],
)
def test_what_gpt2_py_can_not_do(args, words):
    result = run_main("gpt2.py", *TINY, *args, stdin=b"a\xff")
    assert_error(result, 1, "gpt2.py: ")
    for word in words:
        assert re.search(word, result.err), result.err


def test_help_of_gpt2_py_names_what_has_more_options():
    result = run_main("gpt2.py", "--help")
    assert (result.status, result.err) == (0, "")
    assert "python -m picogpt generate" in result.out
    for option in ("-n", "--model_size", "--models_dir", "--temperature", "--top_k", "--top_p", "--seed", "--stop"):
        assert option in result.out


def test_three_files_are_enough(odd, tmp_path, continued):
    for script in ("gpt2.py", "encoder.py", "utils.py"):
        shutil.copyfile(ROOT / script, tmp_path / script)
    model = [arg if isinstance(arg, str) else arg.resolve() for arg in model_options(odd)]
    run = functools.partial(run_command, cwd=tmp_path)
    assert run("gpt2.py", "ab", *model, "-n", 3) == (0, continued("ab", 3) + "\n", "")
    assert without_bar(run("utils.py", "odd", *model[:2])) == (0, found(odd.resolve()), "")
    (tmp_path / "hf").mkdir()
    (tmp_path / "hf" / "config.json").write_text("{}")
    missing = "hf is not in OpenAI's layout: to open it, put the project's folder picogpt/ beside utils.py"
    assert run("gpt2.py", "ab", "--model", "./hf") == (1, "", f"gpt2.py: {missing}\n")


# --------------------------------------------------------------------------------------------- utils.py, and its checks


def found(folder: Path) -> str:
    return f"""{folder}: n_vocab 300, n_ctx 17, n_embd 21, n_head 3, n_layer 2
tokenizer: 300 tokens, not OpenAI's files
weights: float32, 28 tensors, 17,829 numbers; all checksums are right
"""


def without_bar(result: Result) -> Result:
    """Return the result without the progress bar, which is redrawn after a carriage return."""
    lines = [line for line in re.split(r"[\r\n]+", result.err) if line and not line.startswith("checking ")]
    return result._replace(err="".join(f"{line}\n" for line in lines))


def test_utils_prints_what_it_found(odd):
    assert without_bar(run_main("utils.py", "odd", "--models_dir", odd.parent)) == (0, found(odd), "")
    assert_error(run_main("utils.py"), 2, "utils.py: error: ", "model_size")
    assert_error(run_main("utils.py", "odd", "--n", "1"), 2, "utils.py: error: ", "--n")


@pytest.mark.parametrize("at", [0, 35_000, -1])
def test_utils_finds_a_flipped_bit(at, damaged):
    folder = damaged()
    data = bytearray((folder / utils.DATA).read_bytes())
    data[at] ^= 1
    (folder / utils.DATA).write_bytes(data)
    result = without_bar(run_main("utils.py", "odd", "--models_dir", folder.parent))
    assert_error(result, 1, "utils.py: ", str(folder / utils.DATA), "checksum of model/")


NEEDED = ["encoder.json", "vocab.bpe", "hparams.json", utils.INDEX, utils.DATA]


@pytest.mark.parametrize("name", NEEDED)
def test_missing_file(name, damaged):
    folder = damaged()
    (folder / name).unlink()
    assert_error(run_main("gpt2.py", "a", *model_options(folder)), 1, str(folder / name))
    assert_error(run_main("utils.py", folder.name, "--models_dir", folder.parent), 1, str(folder / name))
    (folder / name).mkdir()
    assert_error(run_main("gpt2.py", "a", *model_options(folder)), 1, str(folder / name))


def test_files_that_only_tensorflow_needs_may_be_missing(damaged, continued):
    folder = damaged()
    for name in set(utils.FILES) - set(NEEDED):
        (folder / name).unlink(missing_ok=True)
    assert run_main("gpt2.py", "ab", *model_options(folder), "-n", 3) == (0, continued("ab", 3) + "\n", "")


def page(_: bytes) -> bytes:
    return b"<!DOCTYPE html>\n<html><body>404 Not Found</body></html>\n"


@pytest.mark.parametrize(
    ("name", "damage"),
    [
        *((name, page) for name in NEEDED),
        *((name, lambda data: b"") for name in NEEDED if name != "vocab.bpe"),
        *((name, lambda data: data[: len(data) // 2]) for name in NEEDED if name != "vocab.bpe"),
        (utils.DATA, lambda data: data + b"\0"),
        ("hparams.json", lambda data: json.dumps(ODD | {"n_layer": 3}).encode()),
        ("hparams.json", lambda data: json.dumps(ODD | {"n_head": "a\nb"}).encode()),
        ("encoder.json", lambda data: data.replace(b'"a"', b'"\\n\xe6\xbc\xa2"')),
    ],
)
def test_broken_file(name, damage, damaged):
    """Whatever is wrong with a file, it is one line that names the file. Other tests look at each check."""
    folder = damaged()
    (folder / name).write_bytes(damage((folder / name).read_bytes()))
    assert_error(run_main("gpt2.py", "a", *model_options(folder)), 1, f"gpt2.py: {folder}", name)


@contextlib.contextmanager
def without_root() -> Iterator[None]:
    """Become another user if this one is root, who may read every file."""
    if os.geteuid() != 0:
        yield
        return
    try:
        os.seteuid(65534)
    except OSError:
        pytest.skip("runs as root that can't become another user")
    try:
        yield
    finally:
        os.seteuid(0)


@posix
def test_folder_that_is_not_readable(damaged):
    folder = damaged()
    folder.chmod(0)
    try:
        with without_root():
            result = run_main("picogpt generate", "a", *model_options(folder))
    finally:
        folder.chmod(0o700)
    assert_error(result, 1, str(folder), "Permission denied")


# ------------------------------------------------------------------------------------------ numbers that are not finite


@pytest.fixture(scope="module")
def broken(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a copy of models/tiny with an infinite weight: NumPy warns of what it makes of that, NaN included."""
    folder = shutil.copytree(ROOT / "models" / "tiny", tmp_path_factory.mktemp("models") / "broken")
    entry = utils.read_index(folder / utils.INDEX)["model/h1/mlp/c_fc/w"]
    with open(folder / utils.DATA, "r+b") as data:
        data.seek(entry.offset)
        data.write(np.float32(np.inf).tobytes())
    return Path(folder)


WITH_A_MODEL: dict[str, list[Any]] = {
    "gpt2.py": ["Hello"],
    "picogpt chat": [],
    "picogpt evaluate": ["lambada", "--data", ROOT / "tests" / "evaluate" / "passages.jsonl"],
    "picogpt explain": ["Hello"],
    "picogpt generate": ["Hello", "--temperature", 1],
    "picogpt score": ["-"],
}


@pytest.mark.parametrize("name", WITH_A_MODEL)
def test_logits_that_are_not_finite_are_one_line_that_names_the_model(name, broken):
    result = run_command(name, *WITH_A_MODEL[name], *model_options(broken), stdin=b"Hello, world.\n")
    assert (result.status, result.out.strip()) == (1, ""), result
    assert re.fullmatch(rf"{name}: .*\bbroken: .*not finite.*\n", result.err), result.err


def test_of_several_models_the_one_that_is_not_finite_is_named(broken):
    models = ["--models_dir", broken.parent, "--model", f"broken,{ROOT / 'models' / 'tiny'}"]
    result = run_command("picogpt score", "-", *models, stdin=b"Hello, world.\n")
    assert_error(result, 1, "picogpt score: broken: the logits are not finite")


def test_a_trace_of_what_is_not_finite_is_kept(broken, tmp_path):
    result = run_command("picogpt trace", "Hello", "--out", tmp_path / "a.npz", *model_options(broken))
    assert (result.status, result.err.count("\n")) == (1, 1)
    assert "picogpt trace: broken: the logits are not finite" in result.err
    with np.load(tmp_path / "a.npz") as file:
        assert not np.isfinite(file["logits"]).all()


def test_samples_that_are_not_finite(broken):
    result = run_command("picogpt generate", "Hello", *model_options(broken), "--n_samples", 2, "--temperature", 1)
    memory, error = result.err.splitlines(keepends=True)
    assert memory.startswith("[making 2 samples")
    assert_error(result._replace(err=error), 1, "picogpt generate: broken: the logits are not finite")


# ------------------------------------------------------------------------------------------------ stdout and signals


@pytest.mark.parametrize("name", ["gpt2.py", "picogpt generate"])
def test_text_comes_before_the_process_ends_and_ctrl_c_is_quiet(name, endless):
    # A shell that runs pytest in the background makes its children ignore Ctrl-C.
    heed = None if os.name == "nt" else functools.partial(signal.signal, signal.SIGINT, signal.SIG_DFL)
    settings = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "env": ENVIRONMENT, "preexec_fn": heed}
    with subprocess.Popen(command(name, *endless), cwd=ROOT, bufsize=0, **settings) as process:
        try:
            first = process.stdout.read(1 << 16)
            assert 0 < len(first) < 4096  # a buffer would have held back 8192
            assert process.poll() is None
            if os.name == "nt":
                return
            process.send_signal(signal.SIGINT)
            _, err = process.communicate(timeout=60)
            assert (process.returncode, err) == (130, b"")
        finally:
            process.kill()


def error_of_closed_pipe(words: list[Any]) -> tuple[int, bytes]:
    """Return the exit status and stderr of a process whose reader is gone at once."""
    with subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=ENVIRONMENT, cwd=ROOT) as process:
        process.stdout.close()
        err = process.stderr.read()
        return process.wait(timeout=60), err


@posix
def test_closed_pipe(endless, odd):
    assert error_of_closed_pipe(command("gpt2.py", *endless)) == (130, b"")
    assert error_of_closed_pipe(command("picogpt generate", *endless)) == (141, b"")
    for n in (1, 5000):  # fails when it is flushed at the end, and in the middle
        assert error_of_closed_pipe(command("picogpt tokens", "a" * n, *model_options(odd))) == (141, b"")
    status, err = error_of_closed_pipe(command("picogpt tokens", "--help"))
    assert (status, err) == (0, b"")


def interrupted_import(tmp_path: Path, before: Callable[[], Any]) -> tuple[int, bytes, bytes]:
    """Run a tool that gets Ctrl-C while it imports NumPy. Return its status, and what it wrote."""
    (tmp_path / "numpy.py").write_text("import os, signal\nos.kill(os.getpid(), signal.SIGINT)\nos._exit(7)\n")
    env = ENVIRONMENT | {"PYTHONPATH": str(tmp_path)}
    settings = {"capture_output": True, "preexec_fn": before, "timeout": 60, "stdin": subprocess.DEVNULL}
    done = subprocess.run(command("picogpt tokens", "a"), cwd=ROOT, env=env, check=False, **settings)
    return done.returncode, done.stdout, done.stderr


@posix
def test_ctrl_c_while_a_tool_starts(tmp_path):
    heed, ignore = (functools.partial(signal.signal, signal.SIGINT, how) for how in (signal.SIG_DFL, signal.SIG_IGN))
    assert interrupted_import(tmp_path, heed) == (130, b"", b"")
    assert interrupted_import(tmp_path, ignore) == (7, b"", b"")  # as in the background of a shell script


@posix
@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGHUP, 129)])
def test_a_signal_removes_what_is_half_written(number, status, tmp_path, capsys):
    def work() -> int:
        path = tmp_path / "half"
        path.write_text("half")
        assert signal.getsignal(number) is not signal.SIG_DFL  # which would end the tests
        try:
            signal.raise_signal(number)
        finally:
            path.unlink()
        return 0

    assert command_line.run(work) == status
    assert list(tmp_path.iterdir()) == []
    assert capsys.readouterr().err == ""


def test_error_where_stderr_is_not_utf8(odd):
    args = ["a", "--model_size", "é漢", "--models_dir", odd.parent]
    assert_error(run_command("picogpt generate", *args, PYTHONIOENCODING="ascii"), 1, r"\xe9\u6f22", "only odd;")


# ----------------------------------------------------------------------------------------------------------- messages


def test_visible():
    assert command_line.visible(HOSTILE + "\n\t\0\udcff") == HARMLESS + r"\n\t\x00\udcff"
    assert command_line.visible("\x1b\n\t\r", keep="\n\t") == "\\x1b\n\t\\r"
    for text in ("", "C:\\new", "é漢😀 a\u0301\u00a0", "\ue000", "\U0010fffe"):
        assert command_line.visible(text) == text


@pytest.mark.parametrize(
    ("error", "status", "message"),
    [
        (OSError(2, "missing", f"{HOSTILE}\n"), 1, rf"{HARMLESS}\n: missing"),
        (ValueError(f"{HOSTILE}\n"), 1, rf"{HARMLESS}\n"),
        (command_line.UsageError("wrong"), 2, "wrong"),
        (MemoryError("for an array"), 1, "not enough memory: for an array"),
        (FloatingPointError("not finite"), 1, "tiny: not finite"),
        (EOFError(), 1, ""),
        (OSError(), 1, "OSError"),
    ],
)
def test_an_error_is_one_visible_line(error, status, message, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["picogpt tool"])
    command_line.Parser("x").parse_known_args([])
    monkeypatch.setattr(command_line.Parser, "model", "tiny")
    if isinstance(error, EOFError):  # what nobody foresaw keeps its traceback
        with pytest.raises(EOFError):
            command_line.run(mock.Mock(side_effect=error))
        return
    assert command_line.run(mock.Mock(side_effect=error)) == status
    assert capsys.readouterr().err == f"picogpt tool: {message}\n"


WARNING = "import utils, sys\nimport logging\nlogging.getLogger('picogpt').warning('two %s', 'words')\n"


def test_a_warning_of_the_library_is_one_line(capsys):
    """Python prints what nobody else shows. Importing the library sends no messages anywhere else."""
    imports = "import gpt2, picogpt, picogpt.generate\nfrom picogpt import score, trace\nimport logging\n"
    assert run_command("-c", f"{imports}{WARNING}assert not logging.root.handlers") == (0, "", "two words\n")
    logged = "import logging\nlogging.basicConfig(format='%(name)s %(message)s')\n"
    assert run_command("-c", f"{logged}{imports}{WARNING}") == (0, "", "picogpt two words\n")
    assert command_line.run(lambda: logging.getLogger("picogpt").warning(HOSTILE) or 0) == 0
    assert capsys.readouterr().err == HARMLESS + "\n"


@pytest.mark.parametrize("args", [["picogpt tokens"], ["picogpt tokens", "a", "b"], ["picogpt generate", "a", "--no"]])
def test_usage_error(args):
    result = run_main(*args)
    assert_error(result, 2, f"{args[0]}: ", "argument")
    assert result.err.endswith("(try --help)\n")


@pytest.mark.parametrize("option", ["-h", "--help"])
def test_help_of_a_tool(option):
    result = run_main("picogpt tokens", option)
    assert (result.status, result.err) == (0, "")
    assert result.out.startswith("usage: python -m picogpt tokens [--help] ")
    assert "examples:" in result.out


def test_the_package_lists_its_tools():
    result = run_command("-m", "picogpt", "-h")
    assert (result.status, result.err) == (0, "")
    assert result.out.startswith("usage: python -m picogpt TOOL")
    assert re.findall(r"^  (\w+) ", result.out, re.MULTILINE) == list(TOOLS)
    assert next(iter(TOOLS)) == "generate"
    assert run_command("-m", "picogpt") == (2, "", result.out)
    unknown = run_command("-m", "picogpt", "fly", "-h")
    assert_error(unknown, 2, "picogpt: 'fly' is not one of generate, ", "tokens", "(try --help)")
    assert "did you mean" not in unknown.err
    assert_error(run_command("-m", "picogpt", "explian", "Hello"), 2, "'explian'", "did you mean explain?")


def test_the_version_is_that_of_pyproject():
    tomllib = pytest.importorskip("tomllib")
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    assert version() == settings["project"]["version"]
    assert run_command("-m", "picogpt", "--version") == (0, f"picogpt {version()}\n", "")


# ------------------------------------------------------------------------------------------------ notebooks and threads


class NotebookStream:
    """Like the stdout of IPython's kernel: it has no `reconfigure`, and no file of its own."""

    def __init__(self):
        self.text = ""

    def write(self, text: str) -> int:
        self.text += text
        return len(text)

    def flush(self) -> None:
        pass

    def isatty(self) -> bool:
        return False


def test_run_in_a_notebook(odd, continued, monkeypatch):
    out, err = NotebookStream(), NotebookStream()
    monkeypatch.setattr(sys, "stdout", out)
    monkeypatch.setattr(sys, "stderr", err)
    args = ["ab", "--n_tokens_to_generate", "3", *map(str, model_options(odd))]
    assert command_line.run(lambda: generate.main(args)) == 0
    assert command_line.run(lambda: generate.main(["ab", "--model_size", "no-such-model"])) == 1
    assert out.text == continued("ab", 3) + "\n"
    assert "'no-such-model'" in err.text


@pytest.mark.parametrize("error", [BrokenPipeError, KeyboardInterrupt, SystemExit, OSError])
def test_run_leaves_the_process_as_it_was(error, monkeypatch):
    """After `run`, a notebook goes on with its own streams and signal handlers."""
    monkeypatch.setattr(sys, "stdout", out := NotebookStream())
    monkeypatch.setattr(sys, "stderr", NotebookStream())
    handlers = [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)]
    inside: list[Any] = []

    def fail() -> int:
        inside.append(signal.getsignal(signal.SIGTERM))
        raise error

    assert command_line.run(fail) in (0, 1, 130, 141)
    assert inside[0] not in handlers  # so that SIGTERM removes half-written files
    assert [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)] == handlers
    assert sys.stdout is out


def test_run_redirects_no_file_of_a_notebook(monkeypatch):
    """A script whose stdout breaks points it to the null device. A notebook needs its stdout afterwards."""
    stream = NotebookStream()
    stream.flush = mock.Mock(side_effect=BrokenPipeError)
    monkeypatch.setattr(sys, "stdout", stream)
    with mock.patch("os.dup2") as dup2:
        assert command_line.run(lambda: 0) == 141
    dup2.assert_not_called()


def test_run_outside_of_the_main_thread():
    statuses: list[int] = []
    thread = threading.Thread(target=lambda: statuses.append(command_line.run(lambda: 5)))
    thread.start()
    thread.join(60)
    assert statuses == [5]


@pytest.mark.parametrize("code", ["import gpt2, utils, picogpt.__main__", "exec(open('gpt2.py').read())"])
def test_a_notebook_keeps_its_ctrl_c(code):
    result = run_command("-c", f"import signal; old = signal.getsignal(2)\n{code}\nprint(signal.getsignal(2) is old)")
    assert result == (0, "True\n", "")


# ------------------------------------------------------------------------------------------------ the models' folder


@pytest.mark.parametrize("script", SCRIPTS)
def test_unknown_model(script, odd):
    args = ["nope"] if script == "utils.py" else ["a", "--model_size", "nope"]
    result = run_main(script, *args, "--models_dir", odd.parent)
    assert_error(result, 1, f"{script}: ", "'nope'", str(odd.parent), "only odd;", ", ".join(utils.SIZES))


@pytest.mark.parametrize("name", ["124m", "ODD2", "no/where", "two\nlines", "--no-such"])
def test_unknown_model_like_a_known_one(name, odd, tmp_path):
    result = run_main("gpt2.py", "a", "--models_dir", odd.parent, f"--model_size={name}")
    assert_error(result, 1, repr(name), "only odd;")
    assert_error(
        run_main("gpt2.py", "a", "--models_dir", tmp_path / "none", f"--model_size={name}"), 1, "only nothing;"
    )
    assert not (tmp_path / "none").exists()


@pytest.mark.parametrize("name", ["odd", "124M"])
def test_models_dir_that_is_a_file(name, tmp_path):
    (tmp_path / "models").write_text("not a folder")
    result = run_main("gpt2.py", "a", "--models_dir", tmp_path / "models", "--model_size", name)
    assert_error(result, 1, str(tmp_path / "models"))
    assert (tmp_path / "models").read_text() == "not a folder"


def test_models_beside_the_program_are_found_from_any_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert utils.ensure_downloaded("tiny", "models") == ROOT / "models" / "tiny"
    assert run_main("picogpt tokens", "a", "--model_size", "tiny") == (0, "    64  a\n", "")
    with pytest.raises(FileNotFoundError, match="'tiny'"):
        utils.ensure_downloaded("tiny", tmp_path / "models")  # an absolute folder is meant literally
    with pytest.raises(FileNotFoundError, match=f"{tmp_path / 'models'} or {ROOT / 'models'}, only .*tiny"):
        utils.ensure_downloaded("no-such-model", "models")
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "models" / "tiny").mkdir(parents=True)
    assert utils.ensure_downloaded("tiny", "models") == Path("models/tiny")  # the current folder goes first
    assert_error(run_main("gpt2.py", "a", "--model_size", "tiny"), 1, "models", "encoder.json")


@pytest.mark.parametrize("path", ["odd/", "mine/odd", "./mine/odd/", "ABSOLUTE"])
def test_a_model_s_path_is_as_good_as_its_name(path, odd, tmp_path, monkeypatch):
    """A shell completes a name that is typed to a path."""
    monkeypatch.chdir(tmp_path)
    shutil.copytree(odd, "mine/odd")
    monkeypatch.chdir("mine") if path == "odd/" else None
    path = str(tmp_path / "mine" / "odd") if path == "ABSOLUTE" else path
    assert utils.ensure_downloaded(path, "models").samefile(tmp_path / "mine" / "odd")
    assert run_main("utils.py", path).out.startswith(f"{Path(path)}: n_vocab 300, ")
    assert run_main("picogpt tokens", "a", "--model_size", path).status == 0


def test_paths_beside_the_program_are_found_from_any_folder(odd, tmp_path, monkeypatch):
    (tmp_path / "here").mkdir()
    shutil.copytree(odd, tmp_path / "clone" / "mine" / "odd")
    monkeypatch.chdir(tmp_path / "here")
    monkeypatch.setattr(utils, "__file__", str(tmp_path / "clone" / "utils.py"))
    for name, models_dir in (("mine/odd", "models"), ("./mine/odd/", "models"), ("odd", "mine")):
        assert utils.ensure_downloaded(name, models_dir).samefile(tmp_path / "clone" / "mine" / "odd")
    shutil.copytree(odd, "mine/odd")
    assert utils.ensure_downloaded("mine/odd", "models") == Path("mine/odd")  # the current folder goes first
    shutil.copytree(odd, "models/mine/odd")
    assert utils.ensure_downloaded("mine/odd", "models") == Path("models/mine/odd")  # and models_dir before that


@pytest.mark.parametrize(
    "path", ["models/124M", "./124M", "124M/", "../124M", "x/../124M", "/no/such/124M", "./", "x/..", "", "."]
)
def test_a_path_is_never_downloaded(path, tmp_path, monkeypatch):
    (tmp_path / "x" / "y").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "x")
    monkeypatch.setattr(utils, "download_gpt2_files", None)
    for models_dir in ("models", "other"):
        with pytest.raises(FileNotFoundError, match=f"there is no model {re.escape(repr(path))} .*can be downloaded"):
            utils.ensure_downloaded(path, models_dir)
    assert [entry.name for entry in tmp_path.rglob("*")] == ["x", "y"]


# ----------------------------------------------------------------------------------------------- imports and examples


HEAVY = {"tensorflow", "torch", "jax", "transformers", "requests", "tqdm", "picogpt", "typing_extensions"}


def modules(code: str, *args: Any) -> set[str]:
    """Return the modules that are loaded after some code."""
    result = run_command("-c", f"import sys\n{code}\nprint(*sys.modules, file=sys.stderr)", *args)
    assert result.status == 0, result
    return set(result.err.split())


def test_imports_go_one_way():
    assert not modules("import encoder") & (HEAVY | {"numpy", "gpt2", "utils"})
    assert not modules("import utils") & (HEAVY | {"gpt2"})
    alone = modules("import gpt2")
    assert "numpy" in alone
    assert not alone & (HEAVY | {"regex", "encoder", "utils"})
    assert not modules("import picogpt.command_line") & {"numpy", "gpt2", "encoder", "utils"}


def test_generating_loads_only_what_it_needs(odd):
    args = ["ab", "--n_tokens_to_generate", "3", *model_options(odd)]
    loaded_modules = modules("import gpt2\ngpt2.main(sys.argv[1:])", *args)
    assert {"numpy", "regex", "utils"} <= loaded_modules
    assert not loaded_modules & HEAVY


@pytest.mark.parametrize("name", ["gpt2", "utils", "picogpt.command_line", "picogpt.generate"])
def test_examples_in_docstrings(name):
    assert doctest.testmod(importlib.import_module(name)).failed == 0
