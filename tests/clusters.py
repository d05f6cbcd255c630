"""Work that runs in processes of its own, and a Dask cluster: started, watched and ended by tests."""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
import time

from helpers import ENVIRONMENT, ROOT


def wait_for(condition, what, seconds=60):
    for _ in range(seconds * 50):
        if found := condition():
            return found
        time.sleep(0.02)
    raise AssertionError(f"{what} after {seconds} s")


def files_in(folder):
    return {path.name: path.stat().st_mtime_ns for path in folder.glob("shard-*.npz")}


def half_way(process, folder):
    """Wait until some results are there, of a run that goes on."""
    wait_for(lambda: len(files_in(folder)) >= 3 or process.poll() is not None, "no results")
    assert process.poll() is None, process.communicate()


class Cluster:
    """A Dask scheduler, and workers that come and go. Each is a process of its own."""

    def __init__(self, folder, cwd):
        self.folder, self.processes = folder, []
        self.run(cwd, "scheduler", "--host", "127.0.0.1", "--port", "0", "--scheduler-file", folder / "scheduler.json")
        self.address = wait_for(self.listens, "no scheduler")["address"]

    def listens(self):
        with contextlib.suppress(OSError, ValueError):
            return json.loads((self.folder / "scheduler.json").read_text())

    def run(self, cwd, *words):
        code = [sys.executable, "-m", "dask", *map(str, words), "--no-dashboard"]
        with open(self.folder / f"log-{len(self.processes)}", "wb") as log:
            self.processes.append(subprocess.Popen(code, cwd=cwd, stdout=log, stderr=log, env=ENVIRONMENT))
        return self.processes[-1]

    def start_worker(self, cwd=ROOT):
        place = ["--host", "127.0.0.1", "--local-directory", self.folder]
        return self.run(cwd, "worker", self.address, "--nthreads", "1", "--no-nanny", *place)

    def end(self):
        for process in self.processes[::-1]:
            process.kill()
            process.wait()
