"""Downloads, from a server in this process that drops connections, stalls, lies and fails in many ways."""

from __future__ import annotations

import base64
import contextlib
import errno
import hashlib
import io
import itertools
import json
import os
import random
import shutil
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from helpers import ENVIRONMENT, ODD, ROOT, assert_error, run_main
from tables import field

import encoder
import utils
from picogpt import command_line
from picogpt.checkpoints.writing import write_random_model
from utils import DATA, FILES, INDEX, TOKENIZER_FILES, DownloadError, download_gpt2_files

META = "model.ckpt.meta"
CHUNK = 1 << 16  # what utils.receive writes at a time: only whole chunks survive a broken connection
ATTEMPTS = 4  # one, and one after each of the three pauses
HTML = b"<!DOCTYPE html>\n<html><body><h1>Please log in to the hotel's network</h1></body></html>\n" * 20
Answer = Callable[["Handler", bytes], None]

WINDOWS = sys.platform == "win32"
needs_sigkill = pytest.mark.skipif(WINDOWS, reason="needs SIGKILL")


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
        self.etags = True  # whether answers tell the version of a file
        self.release = threading.Event()  # set at the end, so that stalled answers stop waiting

    def will(self, name: str, *answers: Answer, then: Iterable[Answer] = ()) -> None:
        self.answers[name] = itertools.chain(answers, then)

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


def send(
    handler: Handler, status: int, body: bytes = b"", length: int | str | None = None, span: str = "", **headers: str
) -> None:
    handler.send_response(status)
    handler.send_header("Content-Length", str(len(body) if length is None else length))
    if span:
        handler.send_header("Content-Range", f"bytes {span}")
    for name, value in headers.items():
        handler.send_header(name.replace("_", "-"), value)
    handler.end_headers()
    handler.wfile.write(body)


def version(handler: Handler, data: bytes) -> dict[str, str]:
    """Return the header that good servers send with a file, which differs between two versions of it."""
    return {"ETag": f'"{hashlib.sha256(data).hexdigest()}"'} if handler.server.etags else {}


def first_byte(handler: Handler) -> int:
    return int((handler.headers["Range"] or "bytes=0-")[len("bytes=") : -1])


def part(handler: Handler, data: bytes, n: int | None = None, more: int = 0) -> None:
    """Answer as a good server does, but send only n bytes, and announce `more` bytes than there are."""
    headers = version(handler, data)
    changed = handler.headers["If-Range"] not in (None, headers.get("ETag"))
    start = 0 if changed else first_byte(handler)
    if start >= len(data):
        return send(handler, 416, span=f"*/{len(data)}")
    body = data[start:] if n is None else data[start : start + n]
    resumed = handler.headers["Range"] is not None and not changed
    span = f"{start}-{len(data) - 1}/{len(data)}" if resumed else ""
    send(handler, 206 if resumed else 200, body, len(data) - start + more, span, **headers)


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


def silence(handler: Handler, data: bytes) -> None:
    handler.server.release.wait(5)


def reset(handler: Handler, data: bytes) -> None:
    """Send some of the data, then reset the connection (RST instead of FIN)."""
    part(handler, data, 3 * CHUNK)
    handler.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("hh" if WINDOWS else "ii", 1, 0))
    handler.connection.close()


def status(code: int) -> Answer:
    return lambda handler, data: send(handler, code, b"an explanation")


def page(body: bytes) -> Answer:
    return lambda handler, data: send(handler, 200, body)


def too_long(handler: Handler, data: bytes) -> None:
    part(handler, data, more=10)


def too_short(handler: Handler, data: bytes) -> None:
    send(handler, 200, data[: len(data) // 2])


def whole(handler: Handler, data: bytes) -> None:
    """Answer as servers do that don't know ranges."""
    send(handler, 200, data)


def flipped(at: float) -> Answer:
    """Send one wrong bit, in the byte at this fraction of the file."""

    def answer(handler: Handler, data: bytes) -> None:
        changed = bytearray(data)
        changed[int(at * (len(data) - 1))] ^= 4
        part(handler, bytes(changed))

    return answer


# --------------------------------------------------------------------------------------------- fixtures and helpers


@pytest.fixture(scope="module")
def model(models_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """Return the files of a model of a megabyte, which has many chunks to lose."""
    folder = tmp_path_factory.mktemp("wide")
    write_random_model(folder, ODD | {"n_embd": 96}, seed=3)
    files = {name: (folder / name).read_bytes() for name in FILES if name != META}
    names = " ".join(f"model/{name}" for name in utils.expected_shapes(ODD))
    files[META] = field(1, b"") + field(2, names.encode()) + field(3, bytes(2 * CHUNK))  # looks like a graph
    assert len(files[DATA]) > 10 * CHUNK
    assert len(files[META]) > CHUNK
    return files


@pytest.fixture
def server(model: dict[str, bytes], monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    for name in ("http_proxy", "https_proxy", "all_proxy", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)
    hashes = {name: hashlib.sha256(model[name]).hexdigest() for name in TOKENIZER_FILES}
    monkeypatch.setattr(utils, "SHA256", hashes)
    monkeypatch.setitem(utils.SIZES, "124M", json.loads(model["hparams.json"]))
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


@pytest.fixture
def impatient(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(utils, "TIMEOUT", (10, 0.3))


def digests(files: dict[str, bytes], names: Iterable[str] = FILES) -> dict[str, str]:
    return {name: hashlib.sha256(files[name]).hexdigest() for name in names}


def found(folder: Path) -> dict[str, str]:
    """Return the digest of every file in a folder, because pytest would print the files' contents when they differ."""
    return digests({path.name: path.read_bytes() for path in folder.iterdir()}, sorted(os.listdir(folder)))


def final(folder: Path) -> dict[str, str]:
    """Return the digests of the files that have their final names, without unfinished downloads and the lock."""
    present = found(folder) if folder.exists() else {}
    return {name: digest for name, digest in present.items() if name != ".lock" and not name.endswith(".partial")}


def before(name: str) -> tuple[str, ...]:
    """Return the files that are downloaded before this one."""
    return FILES[: FILES.index(name)]


def put(folder: Path, files: dict[str, bytes], names: Iterable[str]) -> None:
    folder.mkdir(parents=True)
    for name in names:
        (folder / name).write_bytes(files[name])


def partial(folder: Path, name: str) -> Path:
    return folder / (name + ".partial")


def start(folder: Path, extra: str = "") -> subprocess.Popen[str]:
    """Start `python utils.py 124M --models_dir …` as a process, which runs the code in `extra` first."""
    driver = (
        f"import encoder, os, signal, sys, utils\nutils.SHA256 = {utils.SHA256!r}\nutils.PAUSES = {utils.PAUSES!r}\n"
        f"utils.SIZES = {utils.SIZES!r}\nencoder.OPENAI_MERGES = {encoder.OPENAI_MERGES!r}\n"
        f"sys.argv[0] = 'utils.py'\n{extra}\nsys.exit(command_line.run(utils.main))\n"
    )
    command = [sys.executable, "-c", driver, folder.name, "--models_dir", str(folder.parent)]
    pipe = subprocess.PIPE
    env = ENVIRONMENT | {"PICOGPT_MIRROR": os.environ["PICOGPT_MIRROR"]}
    return subprocess.Popen(command, cwd=ROOT, stdout=pipe, stderr=pipe, env=env, text=True, encoding="utf-8")


# ------------------------------------------------------------------------------------------------------ all is well


def test_seven_files(server: Server, folder: Path) -> None:
    download_gpt2_files("124M", folder)
    assert found(folder) == digests(server.files)
    assert server.requests == [(name, None) for name in FILES]
    assert server.heads == [(f"/124M/{name}", "identity") for name in FILES]


def test_command_line(server: Server, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert command_line.run(lambda: utils.main(["124M", "--models_dir", str(folder.parent)])) == 0
    out = capsys.readouterr().out
    assert "OpenAI's files" in out
    assert "all checksums are right" in out
    assert found(folder) == digests(server.files)


def test_slash_after_mirror(server: Server, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    server.prefix = "/gpt-2/models"
    monkeypatch.setenv("PICOGPT_MIRROR", f"{server.address}/gpt-2/models/")
    download_gpt2_files("124M", folder)
    assert [path for path, _ in server.heads] == [f"/gpt-2/models/124M/{name}" for name in FILES]


@pytest.mark.parametrize("mirror", [None, ""])
def test_without_mirror(server: Server, folder: Path, monkeypatch: pytest.MonkeyPatch, mirror: str | None) -> None:
    monkeypatch.delenv("PICOGPT_MIRROR")
    if mirror is not None:
        monkeypatch.setenv("PICOGPT_MIRROR", mirror)
    monkeypatch.setattr(utils, "ADDRESS", server.address)
    download_gpt2_files("124M", folder)
    assert found(folder) == digests(server.files)


def test_through_proxy(server: Server, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    server.prefix = "http://models.example/gpt-2"
    monkeypatch.setenv("PICOGPT_MIRROR", server.prefix)
    monkeypatch.setenv("http_proxy", server.address)
    server.will(DATA, drop(5 * CHUNK))
    download_gpt2_files("124M", folder)
    assert found(folder) == digests(server.files)
    asked = [f"http://models.example/gpt-2/124M/{name}" for name in FILES]
    assert [path for path, _ in server.heads] == [*asked, asked[-1]]
    assert server.ranges(DATA) == [None, f"bytes={5 * CHUNK}-"]


@pytest.mark.parametrize("missing", FILES)
def test_one_file_missing(server: Server, folder: Path, missing: str) -> None:
    others = [name for name in FILES if name != missing]
    put(folder, server.files, others)
    for name in others:
        os.utime(folder / name, ns=(10**18, 10**18))
    utils.ensure_downloaded("124M", folder.parent)
    assert found(folder) == digests(server.files)
    assert server.requests == [(missing, None)]
    assert {(folder / name).stat().st_mtime_ns for name in others} == {10**18}


def test_nothing_missing(server: Server, folder: Path) -> None:
    put(folder, server.files, FILES)
    (folder / "checkpoint").write_bytes(b'model_checkpoint_path: "model-1000"\n')  # the user's own stays
    utils.ensure_downloaded("124M", folder.parent)
    assert server.requests == []
    assert found(folder) == digests(server.files | {"checkpoint": b'model_checkpoint_path: "model-1000"\n'})


def test_some_files_only(server: Server, folder: Path) -> None:
    utils.ensure_downloaded("124M", folder.parent, TOKENIZER_FILES)
    assert found(folder) == digests(server.files, TOKENIZER_FILES)


def test_downloads_go_to_the_current_folder_unless_the_model_is_beside_the_program(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    here, beside = tmp_path / "here", tmp_path / "clone" / "models" / "124M"
    here.mkdir()
    put(beside, server.files, TOKENIZER_FILES)  # not a complete model
    monkeypatch.chdir(here)
    monkeypatch.setattr(utils, "__file__", str(tmp_path / "clone" / "utils.py"))
    assert utils.ensure_downloaded("124M", "models", TOKENIZER_FILES) == beside
    assert server.requests == []
    assert utils.ensure_downloaded("124M", "models") == Path("models/124M")
    assert found(here / "models" / "124M") == digests(server.files)
    assert found(beside) == digests(server.files, TOKENIZER_FILES)
    shutil.rmtree(here / "models")
    shutil.rmtree(beside)
    put(beside, server.files, FILES)
    assert utils.load_encoder_hparams_and_params("124M")[1]["n_embd"] == 96
    assert server.requests == [(name, None) for name in FILES]
    assert list(here.iterdir()) == []


def test_other_names_need_no_network(
    server: Server, models_dir: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(utils, "ADDRESS", server.address)
    shutil.copytree(models_dir / "odd", folder.parent / "odd")
    (folder.parent / "124M-mine").mkdir()
    utils.load_encoder_hparams_and_params("odd", folder.parent)
    with pytest.raises(OSError, match="124M-mine"):
        utils.load_encoder_hparams_and_params("124M-mine", folder.parent)
    with pytest.raises(FileNotFoundError, match=r"no model '124m-finetuned'.*only odd; 124M, 355M"):
        utils.load_encoder_hparams_and_params("124m-finetuned", folder.parent)
    with pytest.raises(ValueError, match="unknown size 'odd'"):
        download_gpt2_files("odd", folder)
    assert server.requests == []
    assert sorted(path.name for path in folder.parent.iterdir()) == ["124M-mine", "odd"]


# ------------------------------------------------------------------------------------------------ a bad connection


@pytest.mark.parametrize("seed", range(3))
def test_drops(server: Server, folder: Path, seed: int) -> None:
    rng = random.Random(seed)
    points = [rng.randint(CHUNK, 2 * CHUNK) for _ in range(6)]  # more often than there are pauses: progress counts
    server.will(DATA, *map(drop, points))
    server.will(META, drop(CHUNK + rng.randrange(5000)))
    server.will(INDEX, drop(rng.randrange(len(server.files[INDEX]))))
    download_gpt2_files("124M", folder)
    assert found(folder) == digests(server.files)
    starts = [int((header or "bytes=0-")[6:-1]) for header in server.ranges(DATA)]
    assert len(starts) == len(points) + 1
    assert starts[0] == 0
    for i, point in enumerate(points):
        assert starts[i] < starts[i + 1] <= starts[i] + point
    assert server.ranges(META) == [None, f"bytes={CHUNK}-"]


def test_resets(server: Server, folder: Path) -> None:
    server.will(DATA, reset, hang_up, reset)
    download_gpt2_files("124M", folder)
    assert found(folder) == digests(server.files)
    assert len(server.ranges(DATA)) == 4


def test_no_progress(server: Server, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pauses: list[float] = []
    monkeypatch.setattr("time.sleep", pauses.append)
    server.will(DATA, drop(5 * CHUNK), then=itertools.cycle([drop(0), hang_up, drop(7)]))
    with pytest.raises(DownloadError, match=f"can't download {server.address}/124M/{DATA}: "):
        download_gpt2_files("124M", folder)
    assert server.ranges(DATA) == [None] + [f"bytes={5 * CHUNK}-"] * (ATTEMPTS - 1)
    assert pauses == [0.01, 0.02, 0.03]
    assert final(folder) == digests(server.files, before(DATA))
    assert partial(folder, DATA).stat().st_size == 5 * CHUNK  # kept: the next run goes on from there
    server.will(DATA)
    download_gpt2_files("124M", folder)
    assert found(folder) == digests(server.files)
    assert server.requests[-1] == (DATA, f"bytes={5 * CHUNK}-")


@pytest.mark.usefixtures("impatient")
def test_stalls(server: Server, folder: Path) -> None:
    server.will(DATA, stall(3 * CHUNK + 5), stall(2 * CHUNK), silence)
    download_gpt2_files("124M", folder)
    assert found(folder) == digests(server.files)
    starts = [int((header or "bytes=0-")[6:-1]) for header in server.ranges(DATA)]
    assert starts == sorted(starts)
    assert starts[-1] == 5 * CHUNK


@pytest.mark.usefixtures("impatient")
def test_only_stalls(server: Server, folder: Path) -> None:
    server.always("hparams.json", stall(10))
    with pytest.raises(DownloadError, match=r"hparams\.json: .*timed out"):
        download_gpt2_files("124M", folder)
    assert len(server.ranges("hparams.json")) == ATTEMPTS
    assert final(folder) == digests(server.files, before("hparams.json"))


def test_nobody_there(
    server: Server, folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as unused:
        address = f"http://127.0.0.1:{unused.getsockname()[1]}"
    monkeypatch.setenv("PICOGPT_MIRROR", address)
    monkeypatch.setattr(sys, "argv", ["utils.py"])
    with pytest.raises(DownloadError) as caught:
        download_gpt2_files("124M", folder)
    text = str(caught.value)
    assert text.startswith(f"can't download {address}/124M/checkpoint: ")
    assert "refused" in text
    for words in ("--model_size tiny", *FILES, str(folder), "PICOGPT_MIRROR", "124M/<file>"):  # three ways out
        assert words in text
    assert "\n" not in text
    assert "0x" not in text
    assert "ConnectionPool" not in text
    assert "Max retries" not in text
    assert final(folder) == {}
    capsys.readouterr()
    assert command_line.run(lambda: utils.main(["124M", "--models_dir", str(folder.parent)])) == 1
    out, err = capsys.readouterr()
    assert out == ""
    lines = err.splitlines()
    assert len(lines) == ATTEMPTS
    assert all(line.startswith("checkpoint: ") for line in lines[:-1])
    assert lines[-1] == f"utils.py: {text}"


def test_failure_leaves_no_lock(server: Server, folder: Path) -> None:
    server.always("vocab.bpe", status(404))
    with pytest.raises(DownloadError):
        download_gpt2_files("124M", folder)
    assert found(folder) == digests(server.files, before("vocab.bpe"))


# ---------------------------------------------------------------------------------------------------- a bad server


@pytest.mark.parametrize("code", [400, 401, 403, 404, 410])
def test_refusals_are_final(server: Server, folder: Path, code: int) -> None:
    server.always("hparams.json", status(code))
    with pytest.raises(DownloadError) as caught:
        download_gpt2_files("124M", folder)
    assert str(caught.value).startswith(f"{server.address}/124M/hparams.json: the server answers {code} ")
    assert "\n" not in str(caught.value)
    assert server.requests == [(name, None) for name in [*before("hparams.json"), "hparams.json"]]
    assert final(folder) == digests(server.files, before("hparams.json"))


@pytest.mark.parametrize("code", [408, 429, 500, 502, 503])
def test_busy_server(server: Server, folder: Path, code: int) -> None:
    server.will("checkpoint", status(code), status(code))
    server.will(DATA, drop(2 * CHUNK), status(code), status(code))
    download_gpt2_files("124M", folder)
    assert found(folder) == digests(server.files)
    assert server.ranges("checkpoint") == [None] * 3
    assert server.ranges(DATA) == [None] + [f"bytes={2 * CHUNK}-"] * 3


def test_always_busy(server: Server, folder: Path) -> None:
    server.always("checkpoint", status(503))
    with pytest.raises(DownloadError, match=f"can't download {server.address}/124M/checkpoint: 503 "):
        download_gpt2_files("124M", folder)
    assert server.requests == [("checkpoint", None)] * ATTEMPTS
    assert final(folder) == {}


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("body", [HTML, b"\n" + HTML, b""], ids=["page", "page after empty line", "empty"])
def test_error_page(server: Server, folder: Path, name: str, body: bytes) -> None:
    server.always(name, page(body))
    with pytest.raises(DownloadError, match=f"can't download {server.address}/124M/{name}: "):
        download_gpt2_files("124M", folder)
    assert server.requests == [(other, None) for other in before(name)] + [(name, None)] * ATTEMPTS
    assert final(folder) == digests(server.files, before(name))
    assert not partial(folder, name).exists()


def test_error_page_once(server: Server, folder: Path) -> None:
    for name in FILES:
        server.will(name, page(HTML))
    download_gpt2_files("124M", folder)
    assert found(folder) == digests(server.files)
    assert server.requests == [(name, None) for name in FILES for _ in range(2)]


@pytest.mark.parametrize("name", FILES)
def test_length_too_long(server: Server, folder: Path, name: str) -> None:
    server.always(name, too_long)
    with pytest.raises(DownloadError, match=f"can't download {server.address}/124M/{name}: "):
        download_gpt2_files("124M", folder)
    assert final(folder) == digests(server.files, before(name))
    server.will(name, too_long)
    download_gpt2_files("124M", folder)
    assert found(folder) == digests(server.files)


@pytest.mark.parametrize("name", FILES)
def test_length_too_short(server: Server, folder: Path, name: str) -> None:
    server.always(name, too_short)
    with pytest.raises(DownloadError, match=f"can't download {server.address}/124M/{name}: "):
        download_gpt2_files("124M", folder)
    assert server.ranges(name) == [None] * ATTEMPTS
    assert final(folder) == digests(server.files, before(name))
    server.will(name, too_short)
    download_gpt2_files("124M", folder)
    assert found(folder) == digests(server.files)


def test_length_is_no_number(server: Server, folder: Path) -> None:
    server.always("checkpoint", lambda handler, data: send(handler, 200, data, "many"))
    with contextlib.suppress(DownloadError):  # or it is downloaded without it, but no other error
        download_gpt2_files("124M", folder)
    assert final(folder) in ({}, digests(server.files))


def test_server_without_ranges(server: Server, folder: Path) -> None:
    put(folder, server.files, before(DATA))
    partial(folder, DATA).write_bytes(server.files[DATA][:100_000])
    server.always(DATA, whole)
    download_gpt2_files("124M", folder)
    assert found(folder) == digests(server.files)
    assert server.requests == [(DATA, "bytes=100000-")]


@pytest.mark.parametrize("first", ["0", "99999", "100001", "10000", "1000000", "", None])
def test_wrong_range(server: Server, folder: Path, first: str | None) -> None:
    size = len(server.files[DATA])
    span = "" if first is None else f"{first}-{size - 1}/{size}"
    put(folder, server.files, before(DATA))
    partial(folder, DATA).write_bytes(server.files[DATA][:100_000])
    server.will(DATA, lambda handler, data: send(handler, 206, data[100_000:], span=span))
    download_gpt2_files("124M", folder)
    assert found(folder) == digests(server.files)
    assert server.requests == [(DATA, "bytes=100000-"), (DATA, None)]


def test_range_that_nobody_asked_for(server: Server, folder: Path) -> None:
    server.always("checkpoint", lambda handler, data: send(handler, 206, data[5:], span="5-76/77"))
    with pytest.raises(DownloadError, match=f"can't download {server.address}/124M/checkpoint: "):
        download_gpt2_files("124M", folder)
    assert server.requests == [("checkpoint", None)] * ATTEMPTS


@pytest.mark.parametrize("name", [META, DATA])
def test_range_in_pieces(server: Server, folder: Path, name: str) -> None:
    """A server may send less than the range that was asked for, and Content-Range says so (RFC 9110, 15.3.7)."""

    def piece(handler: Handler, data: bytes) -> None:
        start = first_byte(handler)
        body = data[start : start + len(data) // 4]
        span = f"{start}-{start + len(body) - 1}/{len(data)}"
        send(handler, 206, body, span=span, **version(handler, data))

    put(folder, server.files, before(name))
    partial(folder, name).write_bytes(server.files[name][:100])
    server.always(name, piece)
    download_gpt2_files("124M", folder)
    assert found(folder) == digests(server.files)


def test_partial_longer_than_file(server: Server, folder: Path) -> None:
    put(folder, server.files, before(DATA))
    partial(folder, DATA).write_bytes(server.files[DATA] + b"more")
    download_gpt2_files("124M", folder)
    assert found(folder) == digests(server.files)
    assert server.requests == [(DATA, f"bytes={len(server.files[DATA]) + 4}-"), (DATA, None)]


@pytest.mark.parametrize("name", FILES)
def test_partial_of_other_contents(server: Server, folder: Path, name: str) -> None:
    put(folder, server.files, before(name))
    partial(folder, name).write_bytes(HTML[: len(server.files[name]) // 2])
    download_gpt2_files("124M", folder)
    assert found(folder) == digests(server.files)


def test_partial_that_is_complete(server: Server, folder: Path) -> None:
    """A run may be ended while it checks 6 GB. They are not downloaded again."""
    put(folder, server.files, before(DATA))
    partial(folder, DATA).write_bytes(server.files[DATA])
    download_gpt2_files("124M", folder)
    assert found(folder) == digests(server.files)
    assert None not in server.ranges(DATA)


def test_always_416(server: Server, folder: Path) -> None:
    server.always("checkpoint", status(416))
    with pytest.raises(DownloadError, match=f"{server.address}/124M/checkpoint"):
        download_gpt2_files("124M", folder)
    assert final(folder) == {}


@pytest.mark.parametrize("at", [0, 0.1, 0.5, 1])
@pytest.mark.parametrize("name", [*TOKENIZER_FILES, DATA])
def test_flipped_bit(server: Server, folder: Path, name: str, at: float) -> None:
    server.will(name, flipped(at))
    download_gpt2_files("124M", folder)
    assert found(folder) == digests(server.files)
    assert server.ranges(name) == [None, None]  # from the start, because no byte of it can be trusted


@pytest.mark.parametrize("at", [0, 0.1, 0.5, 1])  # not everywhere: no one reads the bytes between blocks
def test_flipped_bit_in_index(server: Server, folder: Path, at: float) -> None:
    server.will(INDEX, flipped(at))
    download_gpt2_files("124M", folder)
    assert found(folder) == digests(server.files)
    assert server.ranges(INDEX) == [None, None]


@pytest.mark.parametrize("name", [*TOKENIZER_FILES, INDEX, DATA])
def test_bit_is_always_flipped(server: Server, folder: Path, name: str) -> None:
    server.always(name, flipped(0.3))
    with pytest.raises(DownloadError, match=f"can't download {server.address}/124M/{name}: .*(differs|is damaged)"):
        download_gpt2_files("124M", folder)
    assert server.ranges(name) == [None] * ATTEMPTS
    assert final(folder) == digests(server.files, before(name))
    assert not partial(folder, name).exists()


def test_damaged_index_was_there(server: Server, folder: Path) -> None:
    """The data can't be checked then, and must not be downloaded again and again for that."""
    put(folder, server.files, before(DATA))
    (folder / INDEX).write_bytes(server.files[INDEX][:-100])
    with pytest.raises((OSError, ValueError), match=INDEX):
        download_gpt2_files("124M", folder)
    assert len(server.ranges(DATA)) <= 1
    assert DATA not in final(folder)


# -------------------------------------------------------------------------- a file that changes, and wrong lengths


def edited(data: bytes, *places: int) -> bytes:
    """Return data with one bit changed in the bytes at these places."""
    changed = bytearray(data)
    for place in places:
        changed[place] ^= 4
    return bytes(changed)


def modified(handler: Handler, seconds: float) -> dict[str, str]:
    """Return a header that says that the file was modified so many seconds before now."""
    return {"Last_Modified": handler.date_time_string(time.time() - seconds)}


def rest(data: bytes, headers: dict[str, str] | None = None) -> Answer:
    """Answer as servers do that don't know If-Range: with the rest of this version, whatever the client has."""

    def answer(handler: Handler, _: bytes) -> None:
        start, known = first_byte(handler), version(handler, data) if headers is None else headers
        if handler.headers["Range"] is None:
            return send(handler, 200, data, **known)
        send(handler, 206, data[start:], span=f"{start}-{len(data) - 1}/{len(data)}", **known)

    return answer


@pytest.mark.parametrize("runs", [1, 2])
@pytest.mark.parametrize("case", ["If-Range", "no If-Range", "no version", "weak version", "same second"])
def test_other_version_at_the_second_attempt(server: Server, folder: Path, case: str, runs: int) -> None:
    """A graph joined from two versions looks like a graph, so nothing but the version can tell."""
    old = server.files[META]
    new = server.files[META] = edited(old, 1000, len(old) - 1000)
    headers: Callable[[Handler], dict[str, str]] = {
        "weak version": lambda handler: {"ETag": 'W/"one"'},
        "same second": lambda handler: modified(handler, 0),
    }.get(case, lambda handler: {} if case == "no version" else version(handler, old))

    def begin(handler: Handler, data: bytes) -> None:
        send(handler, 200, old[: CHUNK + 1000], len(old), **headers(handler))

    def go_on(handler: Handler, data: bytes) -> None:
        plain(handler, data) if case == "If-Range" else rest(new, version(handler, new) or headers(handler))(
            handler, b""
        )

    server.etags = "no" not in case or case == "no If-Range"
    put(folder, server.files, before(META))
    if runs == 2:
        server.will(META, begin, then=itertools.repeat(hang_up))
        with pytest.raises(DownloadError):
            download_gpt2_files("124M", folder)
        server.requests.clear()
        server.will(META, then=itertools.repeat(go_on))
    else:
        server.will(META, begin, then=itertools.repeat(go_on))
    download_gpt2_files("124M", folder)
    assert found(folder) == digests(server.files)
    assert len(server.ranges(META)) <= 3


def test_same_version_is_continued(server: Server, folder: Path) -> None:
    """Last-Modified is enough, and a server's answer that a complete file has no more bytes needs no version."""
    server.etags = False
    data = server.files[META]
    put(folder, server.files, before(META))
    day = {"Last_Modified": "Mon, 02 Nov 2020 10:00:00 GMT"}
    server.will(META, lambda handler, data: send(handler, 200, data[: CHUNK + 9], len(data), **day), rest(data, day))
    download_gpt2_files("124M", folder)
    assert server.ranges(META) == [None, f"bytes={CHUNK}-"]
    assert found(folder) == digests(server.files)


def test_other_version_of_the_data_needs_no_third_attempt(server: Server, folder: Path) -> None:
    good = server.files[DATA]
    server.will(DATA, lambda handler, data: part(handler, edited(data, 1000), 5 * CHUNK))
    download_gpt2_files("124M", folder)
    assert server.ranges(DATA) == [None, f"bytes={5 * CHUNK}-"]
    assert hashlib.sha256((folder / DATA).read_bytes()).digest() == hashlib.sha256(good).digest()


@pytest.mark.parametrize("longer", [True, False])
def test_old_index_and_new_data(
    server: Server, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, longer: bool
) -> None:
    put(folder, server.files, before(DATA))
    (tmp_path / "new").mkdir()
    write_random_model(tmp_path / "new", ODD | {"n_embd": 96}, seed=4)
    new = {name: (tmp_path / "new" / name).read_bytes() for name in FILES}
    monkeypatch.setattr(server, "files", new)
    if longer:
        server.always(DATA, lambda handler, data: plain(handler, data + bytes(8)))
    with pytest.raises(DownloadError, match=f"If the server has new files, delete the old {folder / INDEX}"):
        download_gpt2_files("124M", folder)
    assert sorted(final(folder)) == sorted(before(DATA))
    server.will(DATA)
    (folder / INDEX).unlink()
    download_gpt2_files("124M", folder)
    assert (folder / DATA).read_bytes() == new[DATA]


def test_network_errors_do_not_blame_the_index(server: Server, folder: Path) -> None:
    server.always(DATA, hang_up)
    with pytest.raises(DownloadError) as caught:
        download_gpt2_files("124M", folder)
    assert "delete" not in str(caught.value)


def test_page_of_another_length_leaves_the_partial_file(server: Server, folder: Path) -> None:
    """The network of a hotel answers everything with a page. Half a gigabyte must not be lost for that."""
    put(folder, server.files, before(DATA))
    partial(folder, DATA).write_bytes(server.files[DATA][: 5 * CHUNK])
    server.always(DATA, page(HTML))
    with pytest.raises(DownloadError, match=f"{len(HTML):,} bytes, but {len(server.files[DATA]):,} are expected"):
        download_gpt2_files("124M", folder)
    assert partial(folder, DATA).read_bytes() == server.files[DATA][: 5 * CHUNK]
    server.will(DATA)
    download_gpt2_files("124M", folder)
    assert server.ranges(DATA)[-1] == f"bytes={5 * CHUNK}-"
    assert found(folder) == digests(server.files)


@pytest.mark.parametrize("name", FILES)
def test_last_byte_is_missing(server: Server, folder: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """The server's Content-Length is 1 too small, so that the answer seems to be complete."""
    known = utils.SHA256 | digests(server.files, ["hparams.json"])
    monkeypatch.setattr(utils, "SHA256", known)
    server.will(name, lambda handler, data: send(handler, 200, data[:-1]))
    download_gpt2_files("124M", folder)
    assert found(folder) == digests(server.files)
    assert server.ranges(name) == [None, None]


@pytest.mark.parametrize("name", FILES)
def test_endless_file(server: Server, folder: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """A server that never stops must not fill the disk."""
    limit = len(server.files[DATA]) if name == DATA else utils.LONGEST[name]
    sizes = []

    def endless(handler: Handler, data: bytes) -> None:
        handler.send_response(200)
        handler.end_headers()
        with contextlib.suppress(OSError):  # until the client goes away
            for _ in range(limit // 1000 + 20_000):
                handler.wfile.write(b"x" * 1000)

    def discard(path: Path, discard: Callable[[Path], None] = utils.discard) -> None:
        sizes.append(path.stat().st_size)
        discard(path)

    monkeypatch.setattr(utils, "discard", discard)
    server.always(name, endless)
    with pytest.raises(DownloadError, match=f"{name} goes on after [0-9,]+ bytes, but [a-z ]*{limit:,} are expected"):
        download_gpt2_files("124M", folder)
    assert final(folder) == digests(server.files, before(name))
    assert len(sizes) == ATTEMPTS
    assert limit - CHUNK <= max(sizes) <= limit


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("more", [1, 10**15, 10**3000], ids=["a byte", "a petabyte", "3000 digits"])
def test_announced_length_is_too_long(server: Server, folder: Path, name: str, more: int) -> None:
    limit = len(server.files[DATA]) if name == DATA else utils.LONGEST[name]
    server.always(name, lambda handler, data: send(handler, 200, data, limit + more))
    with pytest.raises(DownloadError, match=f"can't download {server.address}/124M/{name}: "):
        download_gpt2_files("124M", folder)
    assert final(folder) == digests(server.files, before(name))
    assert not partial(folder, name).exists()


def test_index_that_claims_too_much(server: Server, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    put(folder, server.files, before(DATA))
    monkeypatch.setitem(utils.LONGEST, DATA, len(server.files[DATA]) - 1)
    with pytest.raises(DownloadError, match=f"but at most {len(server.files[DATA]) - 1:,} are expected"):
        download_gpt2_files("124M", folder)


def test_longest_files_have_room(model: dict[str, bytes]) -> None:
    """OpenAI's largest model has 48 layers. Its graph and its index are about four times those of 12 layers."""
    assert utils.LONGEST.keys() == set(FILES)
    real = {"checkpoint": 77, "encoder.json": 1042301, "vocab.bpe": 456318, "hparams.json": 91}
    real |= {INDEX: 4 * 5215, META: 4 * 471155, DATA: 4 * 1557611200}
    for name, length in real.items():
        assert 1.3 * length < utils.LONGEST[name] < 60 * length


# ---------------------------------------------------------------------------------------- links, and others' folders


def make_odd(kind: str, path: Path, target: Path) -> None:
    """Put a link or something else that is no file of ours at a path."""
    if WINDOWS:
        pytest.skip("needs links and pipes")
    if kind in ("link", "dangling"):
        path.symlink_to(target)
    elif kind == "hard link":
        os.link(target, path)
    elif kind == "pipe":
        os.mkfifo(path)
    else:
        path.mkdir()


@pytest.mark.parametrize("kind", ["link", "dangling", "hard link", "pipe", "folder"])
@pytest.mark.parametrize("name", [DATA + ".partial", META + ".partial", META + ".version.partial", ".lock"])
def test_links_are_not_followed(server: Server, folder: Path, tmp_path: Path, name: str, kind: str) -> None:
    put(folder, server.files, before(META))
    target = tmp_path / "diary"
    if kind != "dangling":
        target.write_bytes(b"Dear diary")
    make_odd(kind, folder / name, target)
    result = run_main("utils.py", "124M", "--models_dir", folder.parent)
    assert (result.status, result.out) == (1, "")
    assert result.err.splitlines()[-1] == f"utils.py: {folder / name}: this is a link, a folder or a device; remove it"
    assert target.exists() == (kind != "dangling")
    if target.exists():
        assert target.read_bytes() == b"Dear diary"
    (folder / name).rmdir() if kind == "folder" else (folder / name).unlink()
    download_gpt2_files("124M", folder)
    assert found(folder) == digests(server.files)


def test_a_link_made_at_the_last_moment(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Between the check and the opening, somebody could make a link."""
    if not hasattr(os, "O_NOFOLLOW"):
        pytest.skip("needs O_NOFOLLOW")
    monkeypatch.setattr(utils, "length_of", lambda path: 0)
    (tmp_path / "link").symlink_to(tmp_path / "diary")
    with pytest.raises(OSError, match="link"):
        open(tmp_path / "link", "wb", opener=utils.open_regular)  # noqa: SIM115
    assert not (tmp_path / "diary").exists()


def test_an_empty_folder_of_the_users_stays(server: Server, folder: Path) -> None:
    server.always("checkpoint", status(404))
    folder.mkdir(parents=True)
    with pytest.raises(DownloadError):
        download_gpt2_files("124M", folder)
    assert list(folder.iterdir()) == []


@pytest.mark.parametrize("answer", [status(404), hang_up, drop(0), page(HTML)], ids=["404", "none", "no body", "page"])
def test_folders_that_were_made_for_nothing_are_removed(
    server: Server, folder: Path, tmp_path: Path, answer: Answer
) -> None:
    server.always("checkpoint", answer)
    with pytest.raises(DownloadError):
        download_gpt2_files("124M", folder)
    assert list(tmp_path.iterdir()) == []


# ------------------------------------------------------------------------------------------- passwords and messages


def with_password(address: str) -> str:
    return address.replace("://", "://us%20er:hush%40w%C3%B6rd%2F@")


def elsewhere(handler: Handler, data: bytes) -> None:
    """Redirect to the same server under another name, which must not get the password."""
    send(handler, 302, Location=f"http://localhost:{handler.server.server_port}{handler.path}")


def redirect(address: str) -> Answer:
    return lambda handler, data: send(handler, 302, Location=address)


def in_a_circle(handler: Handler, data: bytes) -> None:
    send(handler, 302, Location=handler.path)


@pytest.mark.parametrize(
    "answer",
    [
        *(plain, status(404), status(503), status(416), hang_up, drop(10), page(HTML), in_a_circle, elsewhere),
        *map(redirect, ("ftp://nowhere", "http://[", "http://me:hush@127.0.0.1:9")),
    ],
)
def test_password_is_sent_and_never_printed(
    server: Server, folder: Path, monkeypatch: pytest.MonkeyPatch, answer: Answer
) -> None:
    monkeypatch.setenv("PICOGPT_MIRROR", with_password(server.address))
    server.will("vocab.bpe", answer, then=itertools.repeat(plain if answer is elsewhere else answer))
    result = run_main("utils.py", "124M", "--models_dir", folder.parent)
    assert result.status == (0 if answer in (plain, elsewhere) else 1)
    for word in ("hush", "w%C3", "wörd", "us er", "us%20er", "@"):
        assert word not in result.out + result.err
    if answer is not elsewhere:
        basic = "Basic " + base64.b64encode("us er:hush@wörd/".encode()).decode()
        assert set(server.passwords) == {basic}
    else:
        assert server.passwords.count(None) == 1


def test_password_is_not_printed_if_nobody_answers(
    server: Server, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for address in ("http://127.0.0.1:9", "http://no.such.host.invalid", "http://[::1:9", "http://127.0.0.1:99999"):
        monkeypatch.setenv("PICOGPT_MIRROR", with_password(address))
        result = run_main("utils.py", "124M", "--models_dir", folder.parent)
        assert result.status == 1
        for word in ("hush", "w%C3", "wörd", "us er", "us%20er"):
            assert word not in result.err


@pytest.mark.parametrize(
    "mirror",
    [
        "user:secret@example.org/gpt-2",
        "ftp://user:secret@example.org",
        "http://user:sec/ret@example.org",
        "http://user:12/secret@example.org",
        "http://user:sec?ret@example.org",
        "http://user:sec#ret@example.org",
        "http://user:sec@ret/secret@example.org/",
        "http://us/er:secret@example.org",
        "http://example.org/?key=secret",
        "http://user:secret@",
    ],
)
def test_unclear_password_is_not_printed(
    server: Server, folder: Path, monkeypatch: pytest.MonkeyPatch, mirror: str
) -> None:
    monkeypatch.setenv("PICOGPT_MIRROR", mirror)
    result = run_main("utils.py", "124M", "--models_dir", folder.parent)
    assert_error(result, 2, "utils.py: PICOGPT_MIRROR is not an address")
    assert "sec" not in result.err
    assert not folder.parent.exists()


def test_mirrors_may_have_an_at_in_their_path(server: Server, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PICOGPT_MIRROR", "https://cdn.example/gh/someone/gpt-2@main/")
    assert utils.mirror() == ("https://cdn.example/gh/someone/gpt-2@main", None)


@pytest.mark.parametrize("code", [404, 503])
def test_reason_phrase_with_control_characters(server: Server, folder: Path, code: int) -> None:
    def answer(handler: Handler, data: bytes) -> None:
        handler.wfile.write(f"HTTP/1.0 {code} \x1b[2J\x07\x9b5A{'long ' * 5000}\r\n\r\n".encode("latin-1"))

    server.always("checkpoint", answer)
    result = run_main("utils.py", "124M", "--models_dir", folder.parent)
    assert result.status == 1
    assert result.err.replace("\n", "").isprintable()
    assert rf"{code} \x1b[2J\x07\x9b5Along long" in result.err
    assert max(map(len, result.err.splitlines())) < 1000


@pytest.mark.parametrize("address", ["http://[", "http://\x1b[2Jx/", "http://h\xff/", "ftp://x", "http://:x/"])
def test_redirect_to_a_wrong_address(server: Server, folder: Path, address: str) -> None:
    put(folder, server.files, before(DATA))
    partial(folder, DATA).write_bytes(server.files[DATA][: 5 * CHUNK])
    server.always(DATA, redirect(address))
    with pytest.raises(DownloadError) as caught:
        download_gpt2_files("124M", folder)
    assert "delete" not in str(caught.value)
    assert partial(folder, DATA).stat().st_size == 5 * CHUNK


@pytest.mark.parametrize("times", [1, 150])
def test_redirect_with_an_endless_body(server: Server, folder: Path, times: int) -> None:
    """Nobody needs the body. It must not be kept in memory."""
    sent = []

    def answer(handler: Handler, data: bytes) -> None:
        handler.send_response(302)
        handler.send_header("Location", handler.path)
        handler.end_headers()
        with contextlib.suppress(OSError):  # until the client goes away
            for _ in range(2000):
                handler.wfile.write(b"x" * CHUNK)
                sent.append(CHUNK)

    server.will("checkpoint", *[answer] * times)
    if times == 1:
        download_gpt2_files("124M", folder)
        assert found(folder) == digests(server.files)
    else:
        with pytest.raises(DownloadError, match="30 redirects"):
            download_gpt2_files("124M", folder)
    assert sum(sent) < times * 2000 * CHUNK / 4


# ---------------------------------------------------------------------------------------------------- no space left


def test_no_space_left(
    server: Server, folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    space = 5 * CHUNK

    class Full(io.FileIO):
        def write(self, data: bytes) -> int:
            if self.tell() + len(data) > space:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            return super().write(data)

    def open_full(path: Path, mode: str = "r", *args: object, **more: object) -> object:
        full = str(path).endswith(".partial") and set(mode) & set("wax+")
        return Full(path, mode) if full else open(path, mode, *args, **more)

    monkeypatch.setattr(sys, "argv", ["utils.py"])
    with monkeypatch.context() as patch:
        patch.setattr(utils, "open", open_full, raising=False)
        assert command_line.run(lambda: utils.main(["124M", "--models_dir", str(folder.parent)])) == 1
    lines = capsys.readouterr().err.splitlines()
    assert lines[-1].startswith("utils.py: ")
    assert os.strerror(errno.ENOSPC) in lines[-1]
    assert not any("Traceback" in line or "attempt" in line for line in lines)
    assert server.requests == [(name, None) for name in FILES]
    assert final(folder) == digests(server.files, before(DATA))
    download_gpt2_files("124M", folder)  # space was made
    assert found(folder) == digests(server.files)
    assert server.ranges(DATA) == [None, f"bytes={space}-"]


@pytest.mark.skipif(WINDOWS, reason="needs limits of resources")
def test_file_size_limit(server: Server, folder: Path) -> None:
    limit = "import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, resource.RLIM_INFINITY))"
    process = start(folder, limit)
    out, err = process.communicate(timeout=60)
    assert (process.returncode, out) == (1, "")
    assert err.splitlines()[-1].startswith("utils.py: ")
    assert os.strerror(errno.EFBIG) in err.splitlines()[-1]
    assert "Traceback" not in err
    assert final(folder) == digests(server.files, before(DATA))
    assert partial(folder, DATA).stat().st_size <= 100_000


# --------------------------------------------------------------------------------------------- killed, and together


class Meter:
    """Answer until so many bytes are sent, then wait until the client is killed."""

    def __init__(self, server: Server, mark: int) -> None:
        self.left, self.reached, self.killed = mark, threading.Event(), threading.Event()
        for name in FILES:
            server.always(name, self.answer)

    def answer(self, handler: Handler, data: bytes) -> None:
        start = first_byte(handler)
        if self.left == 0:
            self.killed.wait(20)
        if self.left == 0 or start >= len(data):
            return plain(handler, data)
        n = min(self.left, len(data) - start)
        self.left -= n
        part(handler, data, n)
        if self.left == 0:
            self.reached.set()
            self.killed.wait(20)


@pytest.mark.slow
@needs_sigkill
@pytest.mark.parametrize("seed", [0, 1])
def test_killed_while_it_downloads(server: Server, folder: Path, seed: int) -> None:
    rng = random.Random(seed)
    total = sum(map(len, server.files.values()))
    for _ in range(4):
        here = sum(path.stat().st_size for path in folder.iterdir()) if folder.exists() else 0
        meter = Meter(server, rng.randint(1, (total - here) // 2))
        process = start(folder)
        assert meter.reached.wait(60)
        process.kill()
        process.communicate()
        meter.killed.set()
        assert process.returncode == -signal.SIGKILL
        assert DATA not in final(folder)
        assert final(folder) == digests(server.files, sorted(final(folder)))
        for name in FILES:
            if partial(folder, name).exists():
                assert server.files[name].startswith(partial(folder, name).read_bytes())
    server.answers.clear()
    process = start(folder)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 0, err
    assert "all checksums are right" in out
    assert found(folder) == digests(server.files)


@pytest.mark.slow
@needs_sigkill
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_interrupted_and_continued(server: Server, folder: Path, number: signal.Signals) -> None:
    """Interrupted in the graph and in the data, it goes on where it was, and leaves nothing behind."""
    head = sum(len(server.files[name]) for name in before(META))
    for mark in (head + CHUNK + 100, len(server.files[META]) + 5 * CHUNK):
        meter = Meter(server, mark)
        process = start(folder, f"signal.signal({int(signal.SIGINT)}, signal.default_int_handler)")
        assert meter.reached.wait(60)
        time.sleep(0.2)  # the client receives what was sent
        process.send_signal(number)
        _, err = process.communicate(timeout=60)
        meter.killed.set()
        assert process.returncode == (130 if number == signal.SIGINT else 143), err
        assert "Traceback" not in err
        assert final(folder) == digests(server.files, sorted(final(folder)))
        assert not (folder / ".lock").exists()
    server.answers.clear()
    server.requests.clear()
    process = start(folder)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 0, err
    assert found(folder) == digests(server.files)
    assert server.requests[0][0] == DATA
    assert None not in server.ranges(DATA)


@pytest.mark.slow
@needs_sigkill
def test_killed_around_renaming(server: Server, folder: Path) -> None:
    """Kill the process just before (odd steps) or just after (even steps) a file gets its name."""
    extra = """
def step():
    global steps
    steps -= 1
    if steps == 0:
        os.kill(os.getpid(), signal.SIGKILL)

def replace(*args, rename=os.replace):
    step()
    rename(*args)
    step()

os.replace, steps = replace, """
    for steps, n_files in [(3, 1), (4, 3), (1, 3), (7, 6)]:
        process = start(folder, extra + str(steps))
        process.communicate(timeout=60)
        assert process.returncode == -signal.SIGKILL
        assert final(folder) == digests(server.files, FILES[:n_files])
    process = start(folder)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 0, err
    assert found(folder) == digests(server.files)


def hold(handler: Handler, data: bytes) -> None:
    """Answer when the test releases it."""
    handler.server.release.wait(30)
    plain(handler, data)


def test_two_at_once(server: Server, folder: Path) -> None:
    server.will("checkpoint", hold)
    processes = [start(folder), start(folder)]
    # One of them, we don't know which, has the lock and can't finish yet. The other one says that it waits.
    lines = [""] * 2
    said = threading.Event()

    def listen(i: int) -> None:
        lines[i] = processes[i].stderr.readline()
        said.set()

    threads = [threading.Thread(target=listen, args=(i,)) for i in range(2)]
    for thread in threads:
        thread.start()
    said.wait(60)
    server.release.set()
    for thread in threads:
        thread.join()
    results = [process.communicate(timeout=60) for process in processes]
    assert [process.returncode for process in processes] == [0, 0], results
    assert all("all checksums are right" in out for out, _ in results)
    assert sum(line == f"waiting for another process that is downloading to {folder}\n" for line in lines) == 1
    assert server.requests == [(name, None) for name in FILES]
    assert found(folder) == digests(server.files)


@needs_sigkill
def test_killed_while_another_waits(server: Server, folder: Path) -> None:
    meter = Meter(server, len(server.files["checkpoint"]) + 1000)
    first = start(folder)
    assert meter.reached.wait(60)
    second = start(folder)
    assert second.stderr.readline().startswith("waiting for another process")
    first.kill()
    first.communicate()
    meter.killed.set()
    _, err = second.communicate(timeout=60)
    assert second.returncode == 0, err
    assert found(folder) == digests(server.files)


def test_one_at_a_time(folder: Path) -> None:
    """Three come one after another. The third has to wait for the second, even when the first is gone."""
    folder.mkdir(parents=True)
    inside, leave = [threading.Event() for _ in range(2)], threading.Event()

    def enter(i: int) -> None:
        with utils.locked(folder):
            inside[i].set()
            leave.wait(20)

    threads = [threading.Thread(target=enter, args=(i,)) for i in range(2)]
    with utils.locked(folder):
        threads[0].start()
        assert not inside[0].wait(0.2)
    assert inside[0].wait(20)
    threads[1].start()
    entered = inside[1].wait(0.5)
    leave.set()
    for thread in threads:
        thread.join()
    assert not entered
    assert inside[1].is_set()
    assert list(folder.iterdir()) == []
