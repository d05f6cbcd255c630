"""Downloads, from a server in this process that drops connections, stalls, lies and fails in many ways."""

from __future__ import annotations

import base64
import errno
import gzip
import hashlib
import itertools
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
from helpers import ENVIRONMENT, ROOT
from tables import write_model

import encoder
import utils
from utils import DATA, FILES, INDEX, META, TOKENIZER_FILES, download_gpt2_files, ensure_downloaded

SHAPE = {"n_vocab": 1024, "n_ctx": 16, "n_embd": 96, "n_head": 2, "n_layer": 2}
CHUNK = 1 << 16  # what utils.receive writes at a time: only whole chunks survive a broken connection
TRIES = 4  # one, and one after each of the three pauses
HTML = b"<!DOCTYPE html>\n<html><body><h1>Please log in to the hotel's network</h1></body></html>\n" * 20
Answer = Callable[["Handler", bytes], None]

posix = pytest.mark.skipif(sys.platform == "win32", reason="needs signals and limits of POSIX")


# ------------------------------------------------------------------------------------------------------- the server


class Server(ThreadingHTTPServer):
    """Serve prefix/124M/<file>. `answers` holds, for each file, the answers that come before the plain ones."""

    daemon_threads = True

    def __init__(self, files: dict[str, bytes]) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.files = files
        self.address = f"http://127.0.0.1:{self.server_port}"
        self.prefix = ""
        self.answers: dict[str, Iterator[Answer]] = {}
        self.requests: list[tuple[str, str | None]] = []  # the file, and the header Range
        self.heads: list[tuple[str, str | None]] = []  # the whole path, and the header Accept-Encoding
        self.passwords: list[str | None] = []  # the header Authorization
        self.release = threading.Event()  # set at the end, so that stalled answers stop waiting

    def will(self, name: str, *answers: Answer) -> None:
        self.answers[name] = iter(answers)

    def always(self, name: str, answer: Answer) -> None:
        self.answers[name] = itertools.repeat(answer)

    def ranges(self, name: str) -> list[str | None]:
        return [header for asked, header in self.requests if asked == name]

    def handle_error(self, request: object, client_address: object) -> None:
        """Print nothing when a client goes away."""


class Handler(BaseHTTPRequestHandler):
    server: Server

    def do_GET(self) -> None:
        name = self.path.rsplit("/", 1)[-1]
        self.server.requests.append((name, self.headers["Range"]))
        self.server.heads.append((self.path, self.headers["Accept-Encoding"]))
        self.server.passwords.append(self.headers["Authorization"])
        if len(self.server.requests) > 200:  # a client in an endless loop must fail, not hang
            return send(self, 410)
        if name not in self.server.files or self.path != f"{self.server.prefix}/124M/{name}":
            return send(self, 404)
        next(self.server.answers.get(name, iter(())), plain)(self, self.server.files[name])

    def log_message(self, *args: object) -> None:
        pass


def send(handler: Handler, status: int, body: bytes = b"", length: object = None, **headers: str) -> None:
    """Send an answer. `length` replaces the true Content-Length; "" leaves the header out."""
    handler.send_response(status)
    if length != "":
        handler.send_header("Content-Length", str(len(body) if length is None else length))
    for name, value in headers.items():
        handler.send_header(name.replace("_", "-"), value)
    handler.end_headers()
    handler.wfile.write(body)


def first_byte(handler: Handler) -> int:
    return int((handler.headers["Range"] or "bytes=0-")[len("bytes=") : -1])


def part(handler: Handler, data: bytes, n: int | None = None, more: int = 0) -> None:
    """Answer as a good server does, but send only n bytes, and announce `more` bytes than there are."""
    start = first_byte(handler)
    if start >= len(data):
        return send(handler, 416, Content_Range=f"bytes */{len(data)}")
    status = 206 if handler.headers["Range"] else 200
    span = f"bytes {start}-{len(data) - 1}/{len(data)}"
    send(handler, status, data[start:][:n], len(data) - start + more, Content_Range=span)


def plain(handler: Handler, data: bytes) -> None:
    part(handler, data)


def drop(n: int) -> Answer:
    """Announce everything, send n bytes, and close the connection."""
    return lambda handler, data: part(handler, data, n)


def stall(n: int) -> Answer:
    """Announce everything, send n bytes, and keep the connection open."""

    def answer(handler: Handler, data: bytes) -> None:
        part(handler, data, n)
        handler.server.release.wait(5)

    return answer


def hang_up(handler: Handler, data: bytes) -> None:
    """Close the connection without a word."""


def status(code: int) -> Answer:
    return lambda handler, data: send(handler, code, b"an explanation")


def whole(length: object = None, body: bytes | None = None, code: int = 200, **headers: str) -> Answer:
    """Answer as servers do that don't know ranges, or with a page."""
    return lambda handler, data: send(handler, code, data if body is None else body, length, **headers)


PAGES = {
    "page": whole(None, HTML, Content_Type="text/html; charset=utf-8"),
    "page without a length": whole("", HTML, Content_Type="text/html"),
    "page without a type": whole(None, HTML),
    "page after an empty line": whole(None, b"\n" + HTML),
    "page as a range": whole(None, HTML, 206),
    "empty": whole(None, b""),
}


def flipped(at: float) -> Answer:
    """Send one wrong bit, in the byte at this fraction of the file."""

    def answer(handler: Handler, data: bytes) -> None:
        changed = bytearray(data)
        changed[int(at * (len(data) - 1))] ^= 4
        part(handler, bytes(changed))

    return answer


def redirect(address: str) -> Answer:
    return lambda handler, data: send(handler, 302, Location=address)


# --------------------------------------------------------------------------------------------- fixtures and helpers


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """Return the files of a model of a megabyte, which has many chunks to lose."""
    folder, rng = tmp_path_factory.mktemp("model"), np.random.default_rng(3)
    shapes = utils.expected_shapes(SHAPE)
    write_model(folder, SHAPE, {f"model/{name}": rng.standard_normal(shape, "f4") for name, shape in shapes.items()})
    (folder / META).write_bytes(b"\x0a\x64" + rng.bytes(CHUNK) + b"model/wte" + rng.bytes(CHUNK))
    for name in TOKENIZER_FILES:
        shutil.copy(ROOT / "models" / "tiny" / name, folder)
    assert (folder / DATA).stat().st_size > 10 * CHUNK
    return {name: (folder / name).read_bytes() for name in FILES}


@pytest.fixture
def server(model: dict[str, bytes], monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    for name in ("http_proxy", "https_proxy", "all_proxy", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)
    hashes = {name: hashlib.sha256(model[name]).hexdigest() for name in TOKENIZER_FILES}
    monkeypatch.setattr(utils, "SHA256", hashes)
    monkeypatch.setitem(utils.SIZES, "124M", SHAPE)
    merges = model["vocab.bpe"].partition(b"\n")[2].rstrip(b"\n")  # without the line that gives the version
    monkeypatch.setattr(encoder, "OPENAI_MERGES", hashlib.sha256(merges).hexdigest())
    monkeypatch.setattr(utils, "PAUSES", (0.01, 0.02, 0.03))
    monkeypatch.setattr(utils, "TIMEOUT", (10, 20))  # long: this machine may be busy
    with Server(model) as server:
        monkeypatch.setenv("PICOGPT_MIRROR", server.address)
        monkeypatch.setattr(utils, "ADDRESS", "http://127.0.0.1:9/not-this")
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        yield server
        server.release.set()
        server.shutdown()
        thread.join()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "models" / "124M"


def digests(files: dict[str, bytes], names: Iterable[str] = FILES) -> dict[str, str]:
    """Return the digest of every file, because pytest would print the files' contents when they differ."""
    return {name: hashlib.sha256(files[name]).hexdigest() for name in names}


def found(folder: Path) -> dict[str, str]:
    """Return the digests of the files in a folder, in the order of FILES. The lock stays, and is empty."""
    files = {path.name: path.read_bytes() for path in folder.glob("*")}
    assert files.pop(".lock", b"") == b""
    return digests(files, sorted(files, key=lambda name: FILES.index(name) if name in FILES else 9))


def before(name: str) -> tuple[str, ...]:
    """Return the files that are downloaded before this one."""
    return FILES[: FILES.index(name)]


def put(folder: Path, files: dict[str, bytes], names: Iterable[str], part_of_data: int = 0) -> Path:
    """Write these files of a model, and the beginning of the data. Returns the path of the partial data file."""
    folder.mkdir(parents=True)
    for name in names:
        (folder / name).write_bytes(files[name])
    partial = folder / f"{DATA}.partial"
    if part_of_data:
        partial.write_bytes(files[DATA][:part_of_data])
    return partial


def error_of(folder: Path, *files: object) -> str:
    """Return the one line that a download ends with."""
    with pytest.raises((OSError, ValueError)) as error:
        download_gpt2_files(folder, *files)
    assert "\n" not in str(error.value)
    assert "0x" not in str(error.value)
    return str(error.value)


def start(folder: Path, extra: str = "") -> subprocess.Popen[str]:
    """Start `python utils.py 124M --models_dir …` as a process, which runs the code in `extra` first."""
    driver = f"""
import encoder, os, signal, sys, utils
utils.SHA256, utils.PAUSES = {utils.SHA256!r}, {utils.PAUSES!r}
utils.SIZES, encoder.OPENAI_MERGES = {utils.SIZES!r}, {encoder.OPENAI_MERGES!r}
{extra}
source = open("utils.py", encoding="utf-8").read()
exec(source[source.index("if __name__") :], vars(utils) | {{"__name__": "__main__"}})
"""
    command = [sys.executable, "-c", driver, folder.name, "--models_dir", str(folder.parent)]
    env = ENVIRONMENT | {"PICOGPT_MIRROR": os.environ["PICOGPT_MIRROR"]}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    return subprocess.Popen(command, cwd=ROOT, **pipes, env=env, text=True, encoding="utf-8")


# ------------------------------------------------------------------------------------------------------ all is well


def test_seven_files(server, folder):
    download_gpt2_files(folder)
    assert found(folder) == digests(server.files)
    assert server.requests == [(name, None) for name in FILES]
    assert server.heads == [(f"/124M/{name}", "identity") for name in FILES]


@pytest.mark.parametrize("mirror", [None, "", " "])
def test_without_mirror(server, folder, monkeypatch, mirror):
    monkeypatch.delenv("PICOGPT_MIRROR") if mirror is None else monkeypatch.setenv("PICOGPT_MIRROR", mirror)
    monkeypatch.setattr(utils, "ADDRESS", server.address)
    download_gpt2_files(folder, TOKENIZER_FILES)
    assert found(folder) == digests(server.files, TOKENIZER_FILES)


def test_through_proxy(server, folder, monkeypatch):
    server.prefix = "http://models.example/gh/gpt-2@main"
    monkeypatch.setenv("PICOGPT_MIRROR", f"{server.prefix}/")
    monkeypatch.setenv("http_proxy", server.address)
    server.will(DATA, drop(5 * CHUNK))
    download_gpt2_files(folder)
    assert found(folder) == digests(server.files)
    asked = [f"{server.prefix}/124M/{name}" for name in FILES]
    assert [path for path, _ in server.heads] == [*asked, asked[-1]]
    assert server.ranges(DATA) == [None, f"bytes={5 * CHUNK}-"]


@pytest.mark.parametrize("missing", FILES)
def test_one_file_missing(server, folder, missing):
    put(folder, server.files, others := [name for name in FILES if name != missing])
    assert ensure_downloaded("gpt2", folder.parent) == folder
    assert found(folder) == digests(server.files, others if missing == META else FILES)  # nothing reads META
    assert server.requests == [(missing, None)] * (missing != META)


def test_downloads_go_to_the_current_folder_unless_the_model_is_beside_the_program(server, tmp_path, monkeypatch):
    here, beside = tmp_path / "here", tmp_path / "clone" / "models" / "124M"
    here.mkdir()
    put(beside, server.files, TOKENIZER_FILES)  # not a complete model
    monkeypatch.chdir(here)
    monkeypatch.setattr(utils, "__file__", str(tmp_path / "clone" / "utils.py"))
    assert ensure_downloaded("124M", "models", TOKENIZER_FILES) == beside
    assert server.requests == []
    assert ensure_downloaded("124M", "models") == Path("models/124M")
    assert found(here / "models" / "124M") == digests(server.files)
    assert found(beside) == digests(server.files, TOKENIZER_FILES)


# ------------------------------------------------------------------------------------------------ a bad connection


def test_the_data_resumes_and_small_files_start_anew(server, folder):
    points = [CHUNK + 100, 2 * CHUNK, 3 * CHUNK - 1]
    server.will(DATA, *map(drop, points))
    server.will(META, drop(CHUNK + 5000))
    server.will(INDEX, drop(100))
    download_gpt2_files(folder)
    assert found(folder) == digests(server.files)
    assert server.ranges(DATA) == [None, *(f"bytes={n * CHUNK}-" for n in (1, 3, 5))]
    assert server.ranges(META) == server.ranges(INDEX) == [None, None]


def test_four_tries_with_pauses(server, folder, monkeypatch):
    pauses: list[float] = []
    monkeypatch.setattr("time.sleep", pauses.append)
    server.will(DATA, drop(5 * CHUNK), drop(0), hang_up, drop(7))
    assert error_of(folder).startswith(f"can't download {server.address}/124M/{DATA}: ")
    assert server.ranges(DATA) == [None] + [f"bytes={5 * CHUNK}-"] * (TRIES - 1)
    assert pauses == [0.01, 0.02, 0.03]
    assert (folder / f"{DATA}.partial").read_bytes() == server.files[DATA][: 5 * CHUNK]
    download_gpt2_files(folder)  # the next run goes on from there
    assert found(folder) == digests(server.files)
    assert server.requests[-1] == (DATA, f"bytes={5 * CHUNK}-")


def test_stalls(server, folder, monkeypatch):
    monkeypatch.setattr(utils, "TIMEOUT", (10, 0.5))
    server.will(DATA, hang_up, stall(2 * CHUNK), stall(0))
    server.always("hparams.json", stall(10))
    assert re.search(r"hparams\.json: .*timed out", error_of(folder))
    assert len(server.ranges("hparams.json")) == TRIES
    server.will("hparams.json")
    download_gpt2_files(folder)
    assert found(folder) == digests(server.files)
    assert len(server.ranges(DATA)) == 4


@pytest.mark.parametrize(
    ("host", "words"), [("127.0.0.1:9", "Connection refused"), ("no.such.host.invalid", "Failed to resolve 'no.such")]
)
def test_nobody_there(server, folder, monkeypatch, caplog, host, words):
    monkeypatch.setenv("PICOGPT_MIRROR", f"http://me:hush@{host}")
    text = error_of(folder)
    assert text.startswith(f"can't download http://{host}/124M/checkpoint: ")
    for word in (words, "--model_size tiny", "PICOGPT_MIRROR", "hf download openai-community/gpt2"):  # ways out
        assert word in text
    assert len(caplog.messages) == TRIES - 1
    for line in [text, *caplog.messages]:
        assert not re.search("ConnectionPool|HTTPConnection|Max retries|hush|@", line)
    assert utils.one_line(ValueError("a\rb\n c")) == "a b c"
    assert found(folder) == {}


# ---------------------------------------------------------------------------------------------------- a bad server


@pytest.mark.parametrize("code", [400, 401, 403, 404, 410])
def test_refusals_are_final(server, folder, code):
    server.always("hparams.json", status(code))
    assert error_of(folder).startswith(f"can't download {server.address}/124M/hparams.json: the server answers {code} ")
    assert server.requests == [(name, None) for name in [*before("hparams.json"), "hparams.json"]]
    assert found(folder) == digests(server.files, before("hparams.json"))


@pytest.mark.parametrize("code", [408, 416, 429, 500, 503])
def test_busy_server(server, folder, code):
    server.will(DATA, drop(2 * CHUNK), status(code), status(code))
    download_gpt2_files(folder)
    assert found(folder) == digests(server.files)
    assert server.ranges(DATA) == [None] + [f"bytes={2 * CHUNK}-"] * 3
    server.always("checkpoint", status(code))
    (folder / "checkpoint").unlink()
    assert f"124M/checkpoint: the server answers {code} " in error_of(folder)
    assert server.ranges("checkpoint") == [None] * (1 + TRIES)


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("kind", PAGES)
def test_an_error_page_never_passes(server, folder, name, kind):
    server.always(name, PAGES[kind])
    assert error_of(folder).startswith(f"can't download {server.address}/124M/{name}: ")
    assert server.requests == [(other, None) for other in before(name)] + [(name, None)] * TRIES
    assert (
        found(folder).items() - digests({f"{name}.partial": b""}, [f"{name}.partial"]).items()
        == digests(server.files, before(name)).items()
    )


@pytest.mark.parametrize("kind", [*PAGES, "redirect"])
def test_a_page_in_place_of_a_range_leaves_the_partial_file(server, folder, kind):
    """The network of a hotel answers everything with a page. Half a gigabyte must not be lost for that."""
    partial = put(folder, server.files, before(DATA), part_of_data=5 * CHUNK)
    server.files["login"] = HTML
    server.will("login", *[PAGES["page without a length"]] * TRIES)
    server.always(DATA, PAGES[kind] if kind in PAGES else redirect("/124M/login"))
    assert "the server answers 20" in error_of(folder)
    assert partial.read_bytes() == server.files[DATA][: 5 * CHUNK]
    server.will(DATA)
    download_gpt2_files(folder)
    assert server.ranges(DATA)[-1] == f"bytes={5 * CHUNK}-"


@pytest.mark.parametrize("name", FILES)
def test_wrong_lengths(server, folder, name):
    """The connection breaks in the middle, or the announced length is too small, or too large."""
    data = server.files[name]
    for wrong in (whole(len(data), data[:20]), whole(None, data[:20]), whole(len(data) + 10, data)):
        server.always(name, wrong)
        assert error_of(folder).startswith(f"can't download {server.address}/124M/{name}: ")
        assert {*found(folder)} <= {*before(name), f"{name}.partial"}
    server.will(name)
    download_gpt2_files(folder)
    assert found(folder) == digests(server.files)


@pytest.mark.parametrize("length", [None, "", "many"])
@pytest.mark.parametrize("have", [0, 5 * CHUNK])
def test_servers_without_ranges_and_without_lengths(server, folder, length, have):
    put(folder, server.files, before(DATA), part_of_data=have)
    for name in FILES:
        server.always(name, whole(length))
    (folder / "vocab.bpe").unlink()
    download_gpt2_files(folder)
    assert found(folder) == digests(server.files)
    assert server.requests == [("vocab.bpe", None), (DATA, f"bytes={have}-" if have else None)]


def test_a_connection_that_breaks_without_a_length(server, folder):
    server.will(DATA, lambda handler, data: send(handler, 200, data[: 5 * CHUNK], ""))
    download_gpt2_files(folder)
    assert found(folder) == digests(server.files)
    assert server.ranges(DATA) == [None, f"bytes={5 * CHUNK}-"]


def test_a_server_that_compresses_whatever_is_asked_for(server, folder):
    for name in FILES:
        server.always(name, whole(None, gzip.compress(server.files[name]), Content_Encoding="gzip"))
    download_gpt2_files(folder)
    assert found(folder) == digests(server.files)


# -------------------------------------------------------------------------------- nothing wrong ever gets its name


@pytest.mark.parametrize("at", [0, 0.1, 0.5, 1])
@pytest.mark.parametrize("name", [*TOKENIZER_FILES, "hparams.json", INDEX, DATA])
def test_flipped_bits(server, folder, name, at):
    server.will(name, flipped(at))
    download_gpt2_files(folder)
    assert found(folder) == digests(server.files)
    assert server.ranges(name) == [None, None]  # from the start, because no byte of it can be trusted
    (folder / name).unlink()
    server.always(name, flipped(at))
    assert error_of(folder).startswith(f"can't download {server.address}/124M/{name}: ")
    assert found(folder) == digests(server.files, [other for other in FILES if other != name])


@pytest.mark.parametrize("name", [INDEX, DATA])
def test_what_is_known_of_124m_is_more_than_its_own_checksums(server, folder, monkeypatch, name):
    known = hashlib.sha256(server.files[name] + b"another").hexdigest()
    monkeypatch.setitem(utils.SHA256, f"124M/{name}", known)
    assert f"124M/{name}: " in error_of(folder)
    assert found(folder) == digests(server.files, before(name))
    monkeypatch.setitem(utils.SHA256, f"124M/{name}", hashlib.sha256(server.files[name]).hexdigest())
    download_gpt2_files(folder)
    assert found(folder) == digests(server.files)


@pytest.mark.parametrize("kind", ["other contents", "a flipped bit", "longer", "complete, but wrong", "complete"])
def test_a_partial_file_that_does_not_fit_starts_anew_by_itself(server, folder, kind):
    data = server.files[DATA]
    partial = put(folder, server.files, before(DATA))
    flip = bytes([data[0] ^ 1]) + data[1:]
    contents = {"other contents": HTML, "a flipped bit": flip[: 5 * CHUNK], "longer": data + b"more"}
    partial.write_bytes(contents.get(kind, flip if "wrong" in kind else data))
    server.files["stays"] = b""
    download_gpt2_files(folder)
    assert found(folder) == digests(server.files, FILES)
    resumed = [f"bytes={len(contents[kind])}-"] if kind in ("other contents", "a flipped bit") else []
    assert server.ranges(DATA) == [*resumed, *[None] * (kind != "complete")]


def test_a_partial_small_file_is_not_used(server, folder):
    put(folder, server.files, [])
    for name in FILES[:-1]:
        (folder / f"{name}.partial").write_bytes(server.files[name][:20])
    download_gpt2_files(folder)
    assert found(folder) == digests(server.files)
    assert server.requests == [(name, None) for name in FILES]


@pytest.mark.parametrize("name", FILES[:-1])
def test_what_is_there_is_checked_before_anything_is_downloaded(server, folder, name):
    """A damaged index would cost four times 500 MB. The user's file is not replaced."""
    put(folder, server.files, [name])
    (folder / name).write_bytes(server.files[name][: len(server.files[name]) // 4])
    text = error_of(folder)
    assert str(folder / name) in text
    assert server.requests == []
    assert (folder / name).stat().st_size == len(server.files[name]) // 4


@pytest.mark.parametrize("name", ["hparams.json", "vocab.bpe", "checkpoint", "model-1000.index"])
def test_a_fine_tuned_model_named_124m_says_so_before_it_downloads(server, folder, name):
    contents = {
        "hparams.json": str(SHAPE | {"n_layer": 3}).replace("'", '"').encode(),
        "vocab.bpe": server.files["vocab.bpe"][:-100],
        "checkpoint": b'model_checkpoint_path: "model-1000"\n',
        "model-1000.index": server.files[INDEX],  # without a file `checkpoint`
    }
    put(folder, server.files | {name: contents[name]}, {*TOKENIZER_FILES, "hparams.json", name})
    with pytest.raises(ValueError, match=re.escape(f"{folder / name} is not OpenAI's file. ")) as error:
        ensure_downloaded("gpt2", folder.parent)
    assert str(error.value).endswith("give a model of your own another name")
    assert server.requests == []


# ------------------------------------------------------------------------------------------- passwords and messages


def elsewhere(handler: Handler, data: bytes) -> None:
    """Redirect to the same server under another name, which must not get the password."""
    send(handler, 302, Location=f"http://localhost:{handler.server.server_port}{handler.path}")


WRONG_ADDRESSES = ["ftp://nowhere", "http://[", "http://me:hush@127.0.0.1:99999", "http://:x/", "http://\x1b[2Jx/"]


@pytest.mark.parametrize(
    "answer", [plain, elsewhere, status(404), status(503), hang_up, PAGES["page"], *map(redirect, WRONG_ADDRESSES)]
)
def test_a_password_is_sent_and_never_printed(
    server, folder, monkeypatch, answer, capsys: pytest.CaptureFixture[str], caplog
):
    """A redirect to a wrong address, as every other failure, leaves the partial file."""
    monkeypatch.setenv("PICOGPT_MIRROR", server.address.replace("://", "://us%20er:hush%40word%2F@"))
    partial = put(folder, server.files, before(DATA), part_of_data=5 * CHUNK)
    server.will(DATA, *[answer] * (1 if answer is elsewhere else TRIES))
    text = ""
    if answer in (plain, elsewhere):
        download_gpt2_files(folder)
    else:
        text = error_of(folder)
        assert text.startswith(f"can't download {server.address}/124M/{DATA}: ")
        assert partial.read_bytes() == server.files[DATA][: 5 * CHUNK]
    assert not re.search("hush|word%|us.{1,3}er|@", " ".join([text, *caplog.messages, *capsys.readouterr()]))
    basic = "Basic " + base64.b64encode(b"us er:hush@word/").decode()
    assert set(server.passwords) == ({basic, None} if answer is elsewhere else {basic})


UNCLEAR = """user:secret@example.org/gpt-2 ftp://user:secret@example.org http://user:sec/ret@example.org
http://user:12/secret@example.org http://user:sec?ret@example.org http://user:sec#ret@example.org
http://user:sec@ret/secret@example.org/ http://us/er:secret@example.org http://example.org:80/gpt-2@secret
http://example.org/?key=secret http://user:secret@"""


@pytest.mark.parametrize("mirror", UNCLEAR.split())
def test_an_unclear_password_is_not_printed(folder, monkeypatch, mirror):
    monkeypatch.setenv("PICOGPT_MIRROR", mirror)
    text = error_of(folder)
    assert text.startswith("PICOGPT_MIRROR is no address such as https://name:password@example.org")
    assert "sec" not in text
    assert not folder.parent.exists()


# ----------------------------------------------------------------------------------------- disks, locks and signals


@posix
def test_a_full_disk_names_the_file(server, folder):
    """A limit on the size of files stands in for a full disk."""
    limit = "import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (1_000_000, resource.RLIM_INFINITY))"
    process = start(folder, f"{limit}; signal.signal(signal.SIGXFSZ, signal.SIG_IGN)")
    out, err = process.communicate(timeout=60)
    assert (process.returncode, out) == (1, "")
    assert err.splitlines()[-1] == f"utils.py: {folder / DATA}.partial: {os.strerror(errno.EFBIG)}"
    download_gpt2_files(folder)  # space was made
    assert found(folder) == digests(server.files)
    assert server.ranges(DATA) == [None, "bytes=1000000-"]


@posix
@pytest.mark.skipif(sys.platform != "win32" and os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_that_is_read_only(server, folder):
    put(folder, server.files, before(DATA))
    folder.chmod(0o500)
    text = error_of(folder)
    folder.chmod(0o700)
    assert str(folder) in text
    assert os.strerror(errno.EACCES) in text


@posix
def test_a_file_system_without_locks(server, folder, monkeypatch):
    def flock(*args: object) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr("fcntl.flock", flock)
    download_gpt2_files(folder)
    assert found(folder) == digests(server.files)


class Meter:
    """Answer until so many bytes are sent, then wait until the client has ended."""

    def __init__(self, server: Server, mark: int) -> None:
        self.left, self.reached, self.ended = mark, threading.Event(), threading.Event()
        for name in FILES:
            server.always(name, self.answer)

    def answer(self, handler: Handler, data: bytes) -> None:
        start = first_byte(handler)
        if self.left == 0:
            self.ended.wait(20)
        if self.left == 0 or start >= len(data):
            return plain(handler, data)
        n = min(self.left, len(data) - start)
        self.left -= n
        part(handler, data, n)
        if self.left == 0:
            self.reached.set()
            self.ended.wait(20)


@posix
@pytest.mark.slow
@pytest.mark.parametrize("seed", [0, 1])
def test_killed_at_random_moments_and_finished(server, folder, seed):
    rng, total = random.Random(seed), sum(map(len, server.files.values()))
    for _ in range(4):
        here = sum(path.stat().st_size for path in folder.glob("*"))
        meter = Meter(server, rng.randint(1, (total - here) // 2))
        process = start(folder)
        assert meter.reached.wait(60)
        process.kill()
        process.communicate()
        meter.ended.set()
        named = {name: digest for name, digest in found(folder).items() if not name.endswith(".partial")}
        assert named == digests(server.files, FILES[: len(named)])
        partial = folder / f"{DATA}.partial"
        assert not partial.exists() or server.files[DATA].startswith(partial.read_bytes())
    server.answers.clear()
    process = start(folder)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 0, err
    assert "all checksums are right" in out
    assert found(folder).items() >= digests(server.files).items()
    assert {*found(folder)} - {*FILES} <= {f"{name}.partial" for name in FILES[:-1]}


@posix
def test_ctrl_c_is_silent_and_the_data_is_kept(server, folder):
    put(folder, server.files, before(DATA))
    meter = Meter(server, 5 * CHUNK)
    process = start(folder, "signal.signal(signal.SIGINT, signal.default_int_handler)")
    assert meter.reached.wait(60)
    time.sleep(0.3)  # the client receives what was sent
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)
    meter.ended.set()
    assert (process.returncode, out) == (130, "")
    assert all(line.startswith(f"{DATA}: ") for line in re.split(r"[\r\n]+", err) if line), err  # the progress bar
    server.answers.clear()
    download_gpt2_files(folder)
    assert server.ranges(DATA) == [None, f"bytes={5 * CHUNK}-"]
    assert found(folder) == digests(server.files)


@posix
@pytest.mark.parametrize("is_killed", [False, True])
def test_two_at_once(server, folder, is_killed):
    """The second one says that it waits. It goes on with what the first one leaves."""
    put(folder, server.files, before(INDEX))
    meter = Meter(server, sum(len(server.files[name]) for name in (INDEX, META)) + 5 * CHUNK)
    first = start(folder)
    assert meter.reached.wait(60)
    second = start(folder)
    assert second.stderr.readline() == f"waiting for another process that is downloading to {folder}\n"
    if is_killed:
        first.kill()
        first.communicate()
    meter.ended.set()
    for process in [second] if is_killed else [first, second]:
        out, err = process.communicate(timeout=60)
        assert process.returncode == 0, err
        assert "all checksums are right" in out
    assert found(folder) == digests(server.files)
    assert server.ranges(INDEX) == server.ranges(META) == [None]
    assert server.ranges(DATA) == [None, f"bytes={5 * CHUNK}-"]
