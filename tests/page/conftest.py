"""The server, the runtime and the browser that the tests of docs/index.html share."""

from __future__ import annotations

import shutil
import ssl
import subprocess
import sys
import threading
import time
import zipfile
from collections.abc import Iterator
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from browser import find_chromium, start_chromium
from helpers import ROOT

from page import CDN, VERSION

# A package that has files of Pyodide in it: those of the npm package, and the wheels that Pyodide's own network has.
# The page compares the sha256 of each with its own, so it does not matter who packed them.
CARRIER, INSIDE = "open-webui==0.12.4", "open_webui/frontend/pyodide/"


class Server(ThreadingHTTPServer):
    """Serve folders of this machine, each below its own path. `answers` lists (path, status) of what was asked for."""

    daemon_threads = True

    def __init__(self, folders: dict[str, Path], **headers: str):
        super().__init__(("127.0.0.1", 0), Handler)
        self.folders, self.headers, self.is_down = folders, headers, False
        self.pause = 0.0  # seconds after each 256 KB of a file, to be as slow as a network
        self.answers: list[tuple[str, int]] = []
        self.port = self.server_address[1]
        self.url = f"http://127.0.0.1:{self.port}/"

    def run(self) -> Iterator[Server]:
        threading.Thread(target=self.serve_forever, daemon=True).start()
        yield self
        self.shutdown()
        self.server_close()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Say nothing when the browser hangs up, as it does with a file that it no longer needs."""


class Handler(SimpleHTTPRequestHandler):
    server: Server

    def translate_path(self, path: str) -> str:
        path = path.partition("?")[0]
        for start, folder in self.server.folders.items():
            if path.startswith(start) and ".." not in path:
                return str(folder / path[len(start) :])
        return str(ROOT / "no such file")

    def do_GET(self) -> None:
        if self.server.is_down:
            self.send_error(503)
        else:
            super().do_GET()

    def copyfile(self, source: Any, outputfile: Any) -> None:
        while chunk := source.read(1 << 18):
            outputfile.write(chunk)
            time.sleep(self.server.pause)

    def end_headers(self) -> None:
        for name, value in self.server.headers.items():
            self.send_header(name, value)
        super().end_headers()

    def log_request(self, code: Any = "-", size: Any = "-") -> None:
        self.server.answers.append((self.path.partition("?")[0], int(code)))

    def log_message(self, *args: Any) -> None:
        pass


@pytest.fixture(scope="session")
def runtime(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with the files of Pyodide that docs/page/runtime.js names. Skip if they can't be had."""
    find_chromium()  # without a browser, nothing needs to be downloaded
    cache = getattr(request.config, "cache", None)
    folder = Path(cache.mkdir("pyodide")) if cache else tmp_path_factory.mktemp("pyodide")
    kept = folder / CARRIER
    if not kept.exists():
        target = tmp_path_factory.mktemp("carrier")
        command = [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "--only-binary=:all:"]
        command += ["--python-version", "3.12", "-d", str(target), CARRIER]
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
        except subprocess.TimeoutExpired:
            pytest.skip(f"needs Pyodide, from the package {CARRIER}: no answer within 120 s")
        if done.returncode:
            pytest.skip(f"needs Pyodide, from the package {CARRIER}: {done.stderr.strip().splitlines()[-1]}")
        unpack(next(target.glob("*.whl")), target / "new")
        shutil.move(target / "new", kept)
        next(target.glob("*.whl")).unlink()
    return kept


def unpack(package: Path, folder: Path) -> None:
    """Write the files of Pyodide, and no others, from a package into a new folder."""
    folder.mkdir()
    with zipfile.ZipFile(package) as archive:
        for name in archive.namelist():
            file = name.removeprefix(INSIDE)
            wanted = file.startswith(("pyodide.", "python_stdlib", "numpy-", "regex-"))
            if name.startswith(INSIDE) and wanted and not file.endswith((".d.ts", ".map")):
                (folder / file).write_bytes(archive.read(name))


@pytest.fixture(scope="session")
def tampered(runtime: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a copy of the runtime in which one bit of NumPy differs."""
    folder = tmp_path_factory.mktemp("runtime") / "tampered"
    shutil.copytree(runtime, folder)
    (wheel,) = folder.glob("numpy-*.whl")
    data = bytearray(wheel.read_bytes())
    data[len(data) // 2] ^= 1
    wheel.write_bytes(data)
    return folder


@pytest.fixture(scope="session")
def server(runtime: Path, tampered: Path) -> Iterator[Server]:
    """Serve the repository as GitHub Pages does, and folders with the runtime beside it."""
    folders = {"/runtime/": runtime, "/tampered/": tampered, "/only-docs/": ROOT / "docs", "/picogpt/": ROOT}
    folders |= {"/no-worker/docs/page/worker.js": ROOT / "no such file", "/no-worker/": ROOT}
    yield from Server(folders).run()


@pytest.fixture(scope="session")
def network(runtime: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """Serve the runtime by https at the addresses of the network that the page takes it from, in its place."""
    if not shutil.which("openssl"):
        pytest.skip("needs openssl, to make a certificate")
    folder = tmp_path_factory.mktemp("certificate")
    command = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", f"/CN={CDN}"]
    command += ["-keyout", str(folder / "key"), "-out", str(folder / "certificate")]
    subprocess.run(command, capture_output=True, check=True)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(folder / "certificate", folder / "key")
    folders = {f"/npm/pyodide@{VERSION}/": runtime, f"/pyodide/v{VERSION}/full/": runtime}
    server = Server(folders, **{"Access-Control-Allow-Origin": "*"})
    server.socket = context.wrap_socket(server.socket, server_side=True)
    yield from server.run()


@pytest.fixture(scope="session")
def chromium(network: Server) -> Iterator[Any]:
    """Start a browser for which all other servers do not exist, and which takes `network` for the real one."""
    rules = f"MAP {CDN}:443 127.0.0.1:{network.port}, MAP * ~NOTFOUND, EXCLUDE 127.0.0.1"
    driver = start_chromium("--ignore-certificate-errors", f"--host-resolver-rules={rules}")
    yield driver
    driver.quit()
