"""Shards, their results in a folder, and the same numbers from one process, from several, and from a Dask cluster."""

from __future__ import annotations

import argparse
import contextlib
import importlib.util
import io
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from clusters import Cluster, files_in, half_way, wait_for
from helpers import ENVIRONMENT, ROOT, Result, assert_error, command, decoded, run_command, run_main
from hypothesis import given
from hypothesis import strategies as st

from picogpt.checkpoints.convert import to_hf
from picogpt.scoring import jobs, shards, work
from picogpt.scoring.shards import fingerprint, shards_of
from picogpt.scoring.windows import Window, score_windows, windows

TINY = ["--models_dir", ROOT / "models", "--model_size", "tiny"]
TEXT = [ROOT / "README.md", ROOT / "docs" / "explain.md", *TINY]
MANY = [*TEXT, "--stride", 40]  # many shards: seconds of work


def options(*words):
    parser = argparse.ArgumentParser()
    work.add_work_options(parser)
    return parser.parse_args([str(word) for word in words])


@pytest.fixture(scope="module")
def tiny():
    return work.open_model(argparse.Namespace(model_size="tiny", models_dir=ROOT / "models", results=True))


@pytest.fixture
def parts(tiny, monkeypatch):
    """Windows of a real text, in five shards, which are smaller here than usual."""
    monkeypatch.setattr(shards_of, "__defaults__", (512,))
    ids = tiny.encoder.encode((ROOT / "README.md").read_text(encoding="utf-8")[:2000])
    return list(windows(np.array(ids), tiny.hparams["n_ctx"], stride=64))[:10]


@pytest.fixture
def counted(monkeypatch):
    """Return a list that gets the number of windows of each shard that this process scores."""
    counts = []

    def score(windows, *args):
        counts.append(len(windows))
        return score_windows(windows, *args)

    monkeypatch.setattr(jobs, "score_windows", score)
    return counts


def equal(ours, theirs):
    return len(ours) == len(theirs) and all(np.array_equal(a, b) for x, y in zip(ours, theirs) for a, b in zip(x, y))


def needs(*modules):
    for module in modules:
        pytest.importorskip(module)


# -------------------------------------------------------------------------------------------------------------- shards


@given(st.lists(st.integers(1, 12)), st.integers(1, 20))
def test_shards_hold_every_window_once_in_order_and_are_full(lengths, n_positions):
    many = [Window(np.arange(n + 1), 1) for n in lengths]
    cut = shards_of(many, n_positions)
    assert [id(window) for shard in cut for window in shard] == [id(window) for window in many]
    sizes = [[len(window.ids) - 1 for window in shard] for shard in cut]
    assert all(sum(shard) <= n_positions or len(shard) == 1 for shard in sizes)
    assert all(sum(shard) + after[0] > n_positions for shard, after in zip(sizes, sizes[1:]))


def test_scores_of_many_shards_equal_those_of_the_windows(tiny, parts, counted):
    scores = work.score_all(parts, tiny, options())
    assert len(counted) == len(shards_of(parts)) == 5
    assert sum(counted) == len(parts)
    for ours, theirs in zip(scores, score_windows(parts, tiny.params, tiny.hparams["n_head"])):
        assert ours.log_probs == pytest.approx(theirs.log_probs, abs=1e-4)
        assert ours.log_probs.shape == theirs.log_probs.shape


def test_no_windows_have_no_scores(tiny, tmp_path):
    assert work.score_all([], tiny, options("--results", tmp_path / "new")) == []


def test_the_fingerprint_depends_on_the_weights_and_the_hyperparameters(tmp_path):
    folder = Path(shutil.copytree(ROOT / "models" / "tiny", tmp_path / "tiny"))
    same = fingerprint(folder)
    assert same == fingerprint(ROOT / "models" / "tiny")
    hparams = json.loads((folder / "hparams.json").read_text())
    (folder / "hparams.json").write_text(json.dumps(hparams | {"n_head": 4}))
    other = fingerprint(folder)
    shutil.copy(ROOT / "models" / "tiny" / "hparams.json", folder)
    assert fingerprint(folder) == same
    found = {same, other}
    for name in ("model.ckpt.index", "model.ckpt.data-00000-of-00001"):
        data = bytearray((folder / name).read_bytes())
        data[len(data) // 2] ^= 1
        (folder / name).write_bytes(data)
        found.add(fingerprint(folder))
    assert len(found) == 4


def test_the_fingerprint_depends_on_the_program(tmp_path, monkeypatch):
    before = fingerprint(ROOT / "models" / "tiny")
    (tmp_path / "gpt2.py").write_text((ROOT / "gpt2.py").read_text(encoding="utf-8") + "#", encoding="utf-8")
    monkeypatch.setattr(shards.gpt2, "__file__", str(tmp_path / "gpt2.py"))
    assert fingerprint(ROOT / "models" / "tiny") != before


def test_the_fingerprint_of_another_layout_depends_on_the_weights(tmp_path):
    needs("safetensors")
    to_hf(ROOT / "models" / "tiny", tmp_path / "hf")
    before = fingerprint(tmp_path / "hf")
    assert jobs.open_params(str(tmp_path / "hf"), before)[1] == 5
    with open(tmp_path / "hf" / "model.safetensors", "r+b") as file:
        file.seek(-1, os.SEEK_END)
        file.write(b"x")
    assert fingerprint(tmp_path / "hf") != before


NO_ADDRESSES = ["", "tcp://", "what://host:8786", "tcp://host", "tls://host:8786", "host:65536"]
TWO_PLACES = ["--jobs", "2", "--dask", "tcp://127.0.0.1:8786"]


@pytest.mark.parametrize(
    "words", [["--jobs", "0"], ["--jobs", "x"], TWO_PLACES, *(["--dask", address] for address in NO_ADDRESSES)]
)
def test_wrong_options_are_refused(words):
    assert_error(run_main("picogpt score", ROOT / "README.md", *TINY, *words), 2, words[-2])


@pytest.mark.parametrize(("words", "module"), [(["--jobs", 2], "joblib"), (["--dask", "node:8786"], "distributed")])
def test_a_missing_library_is_named(monkeypatch, words, module):
    find = importlib.util.find_spec
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None if name == module else find(name))
    result = run_main("picogpt score", ROOT / "README.md", *TINY, *words)
    assert_error(result, 1, f"{module} is not installed: pip install {module}")


# ------------------------------------------------------------------------------------------------------------- results


def test_a_rerun_scores_only_what_is_missing(tiny, parts, counted, tmp_path, capsys):
    here = options("--results", tmp_path / "deep" / "results")
    first = work.score_all(parts, tiny, here)
    assert capsys.readouterr().err == ""
    assert sorted(path.name for path in here.results.iterdir()) == [
        shards.DESCRIPTION,
        *(f"shard-{i:06d}.npz" for i in range(5)),
    ]
    for i in (1, 4):
        (here.results / f"shard-{i:06d}.npz").unlink()
    sizes = counted.copy()
    counted.clear()
    again = work.score_all(parts, tiny, here)
    assert counted == [sizes[1], sizes[4]]
    assert equal(first, again)
    assert capsys.readouterr().err == f"[3 of 5 shards are in {here.results} already]\n"
    counted.clear()
    assert equal(first, work.score_all(parts, tiny, here))
    assert counted == []


def test_no_damage_goes_unnoticed(tmp_path):
    results = shards.Results(tmp_path, {"model": "model", "windows": "work"})
    shard = [Window(np.arange(9), n) for n in (3, 4)]
    scores = [shards.Scores(np.linspace(-1, 0, n), np.arange(1, n + 1)) for n in (3, 4)]
    results.save(0, scores)
    file = results.path(0)
    whole = file.read_bytes()
    n_noticed = 0
    flipped = [whole[:i] + bytes([whole[i] ^ 1]) + whole[i + 1 :] for i in range(len(whole))]
    for data in [*flipped, *(whole[:i] for i in range(0, len(whole), 9))]:
        file.write_bytes(data)
        try:
            assert equal(shards.read_shard(file, shard, "model work 0"), scores)  # such as a date in the zip file
        except shards.DAMAGED:
            n_noticed += 1
    assert n_noticed > len(whole) / 2


@pytest.mark.parametrize("change", ["cut", "swapped", "other model", "other windows", "dtype", "infinite", "rank"])
def test_a_shard_that_says_something_else_is_computed_anew(tiny, parts, counted, tmp_path, capsys, change):
    here = options("--results", tmp_path / "a")
    first = work.score_all(parts, tiny, here)
    file = tmp_path / "a" / "shard-000001.npz"
    whole = file.read_bytes()
    if change == "cut":
        file.write_bytes(whole[:-100])
    elif change == "swapped":
        shutil.copy(tmp_path / "a" / "shard-000003.npz", file)
    elif change.startswith("other"):
        others = [window._replace(ids=window.ids[::-1]) for window in parts] if change == "other windows" else parts
        model = tiny._replace(fingerprint="other") if change == "other model" else tiny
        work.score_all(others, model, options("--results", tmp_path / "b"))
        shutil.copy(tmp_path / "b" / "shard-000001.npz", file)
    else:
        with np.load(file) as old:
            arrays = dict(old)
        if change == "dtype":
            arrays["log_probs"] = arrays["log_probs"].astype(np.float32)
        arrays["log_probs"][0] = -np.inf if change == "infinite" else arrays["log_probs"][0]
        arrays["ranks"][0] = 0 if change == "rank" else arrays["ranks"][0]
        np.savez(file, **arrays)
    counted.clear()
    assert equal(first, work.score_all(parts, tiny, here))
    assert (len(counted), file.read_bytes()) == (1, whole)
    assert f"[{file} is damaged, or of other work: it is computed anew]\n" in capsys.readouterr().err


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_a_folder_of_other_work_is_refused_and_stays(tmp_path):
    folder = tmp_path / "results"
    text = tmp_path / "text"
    text.write_text("To be, or not to be")
    assert run_main("picogpt score", text, *TINY, "--results", folder).status == 0
    before = contents(folder)
    assert len(before) == 2
    other = Path(shutil.copytree(ROOT / "models" / "tiny", tmp_path / "other"))
    hparams = json.loads((other / "hparams.json").read_text())
    (other / "hparams.json").write_text(json.dumps(hparams | {"n_head": 4}))
    for words, name in (
        ([*TINY, "--no_bos"], "other texts or windows"),
        ([*TINY, "--max_context", 3], "other texts or windows"),
        (["--models_dir", tmp_path, "--model_size", "other"], "another model"),
    ):
        assert_error(run_main("picogpt score", text, *words, "--results", folder), 2, str(folder), name)
        assert contents(folder) == before


def test_work_with_other_windows_is_other_work():
    """The same ids, cut or scored in another way."""
    ids = np.arange(8)
    works = [
        [[Window(ids, 2)]],
        [[Window(ids, 3)]],
        [[Window(ids, 2, [5])]],
        [[Window(np.append(ids, 5), 2)]],
        [[Window(ids[:4], 1), Window(ids[4:], 1)]],
        [[Window(ids[:4], 1)], [Window(ids[4:], 1)]],
    ]
    assert len({shards.describe(work, "model")["windows"] for work in works}) == len(works)
    assert shards.describe(works[0], "model") == shards.describe([[Window(ids.astype(np.int32), 2)]], "model")


@pytest.mark.parametrize(("name", "text"), [("notes.txt", "mine"), ("run.json", "mine"), ("run.json", "[]")])
def test_a_folder_with_foreign_files_is_refused_and_stays(tmp_path, name, text):
    (tmp_path / name).write_text(text)
    before = contents(tmp_path)
    status = 1 if name == "run.json" else 2
    assert_error(run_main("picogpt score", ROOT / "README.md", *TINY, "--results", tmp_path), status, name)
    assert contents(tmp_path) == before


def test_results_in_a_file_are_refused(tmp_path):
    file = tmp_path / "file"
    file.write_text("mine")
    assert_error(run_main("picogpt score", ROOT / "README.md", *TINY, "--results", file), 1, "file: File exists")
    assert file.read_text() == "mine"


def test_a_result_that_cannot_be_written_ends_the_run_and_the_others_stay(tiny, parts, tmp_path, monkeypatch):
    here = options("--results", tmp_path)
    (tmp_path / "shard-000002.npz").mkdir()
    monkeypatch.setattr(shards.Results, "begin", lambda self, shards: {})
    with pytest.raises(FileExistsError, match="shard-000002"):
        work.score_all(parts, tiny, here)
    assert {path.name for path in tmp_path.iterdir()} == {f"shard-{i:06d}.npz" for i in range(3)}
    with pytest.raises(IsADirectoryError, match="shard-000002"):
        dict(shards.Results(tmp_path, {"model": "", "windows": ""}).load(shards_of(parts)))


@pytest.mark.parametrize("here", [True, False])
def test_the_bar_ends_at_the_number_of_tokens(tiny, parts, monkeypatch, tmp_path, here):
    import tqdm

    class Bar(tqdm.tqdm):
        def __init__(self, **settings):
            super().__init__(**settings | {"disable": False, "file": io.StringIO()})
            bars.append(self)

    bars = []
    monkeypatch.setattr(tqdm, "tqdm", Bar)
    if not here:  # as other processes do, which report a shard when it is done
        engine = work.engine
        monkeypatch.setattr(work, "engine", lambda *args: engine(*args[:-1], lambda n: None))
    total = sum(window.n_targets for window in parts)
    work.score_all(parts, tiny, options("--results", tmp_path))
    (tmp_path / "shard-000001.npz").unlink()
    work.score_all(parts, tiny, options("--results", tmp_path))
    assert [bar.n for bar in bars] == [total, total]
    assert bars[0].initial == 0 < bars[1].initial < total


# ------------------------------------------------------------------------------------------------ with a --json file


def numbers(path):
    """Return the log-probabilities and ranks of each text from a file of --json."""
    return [(text["log_probs"], text["ranks"]) for text in json.loads(path.read_text(encoding="utf-8"))["texts"]]


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    """Return the numbers that one process computes for MANY, and the number of shards."""
    folder = tmp_path_factory.mktemp("alone")
    result = run_main("picogpt score", *MANY, "--json", folder / "scores", "--results", folder / "results")
    assert result.status == 0, result
    return numbers(folder / "scores"), len(list((folder / "results").glob("*.npz")))


def start(*words):
    """Start `score` on MANY, in a session of its own. It begins Python with Ctrl-C in force, as a terminal does."""
    return subprocess.Popen(
        command("picogpt score", *MANY, *words),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=ENVIRONMENT,
        cwd=ROOT,
        start_new_session=True,
    )


def ended(process):
    out, err = process.communicate(timeout=120)
    return Result(process.returncode, decoded(out), decoded(err))


def assert_goes_on(folder, alone, *words):
    """Run the same work again. Assert that it takes the results that are there, and that the scores are equal."""
    expected, n = alone
    before = files_in(folder)
    assert 3 <= len(before) < n - 2
    result = run_command("picogpt score", *MANY, "--results", folder, "--json", folder.with_name("scores"), *words)
    assert result.status == 0, result
    assert result.err == f"[{len(before)} of {n} shards are in {folder} already]\n"
    after = files_in(folder)
    assert len(after) == n
    assert {name: after[name] for name in before} == before
    assert numbers(folder.with_name("scores")) == expected
    assert {path.name for path in folder.iterdir() if path.suffix != ".partial"} == {shards.DESCRIPTION, *after}


@pytest.mark.slow
@pytest.mark.parametrize("by", ["SIGKILL", "SIGINT"])
def test_a_run_goes_on_after_its_process_was_ended(tmp_path, alone, by):
    folder = tmp_path / "results"
    process = start("--results", folder)
    half_way(process, folder)
    process.send_signal(getattr(signal, by))
    result = ended(process)
    assert (result.out, result.err) == ("", "")
    assert result.status == {"SIGKILL": -9, "SIGINT": 130}[by]
    assert_goes_on(folder, alone)


# --------------------------------------------------------------------------------------------------- several processes


@pytest.mark.slow
def test_two_processes_give_the_numbers_of_one(tmp_path, alone):
    needs("joblib")
    result = run_command("picogpt score", *MANY, "--jobs", 2, "--json", tmp_path / "scores")
    assert (result.status, result.err) == (0, "")
    assert numbers(tmp_path / "scores") == alone[0]
    assert [path.name for path in tmp_path.iterdir()] == ["scores"]


THREADS = """
import sys
import joblib
import threadpoolctl
from picogpt.scoring import jobs

def threads(*args):
    return [pool["num_threads"] for pool in threadpoolctl.threadpool_info()], "params" in sys.argv

if __name__ == "__main__":
    jobs.score_shard = threads
    print(joblib.cpu_count(), *(n for (n,), _ in jobs.in_processes({1: [], 2: []}, "", "", int(sys.argv[1]))))
"""


@pytest.mark.slow
@pytest.mark.parametrize("n_jobs", [2, 3])
def test_each_process_has_its_share_of_the_cores(tmp_path, n_jobs):
    needs("joblib", "threadpoolctl")
    (tmp_path / "threads.py").write_text(THREADS)
    free = {name: value for name, value in ENVIRONMENT.items() if not name.endswith("_NUM_THREADS")}
    path = os.pathsep.join([str(tmp_path), str(ROOT)])
    code = [sys.executable, tmp_path / "threads.py", str(n_jobs)]
    done = subprocess.run(code, env=free | {"PYTHONPATH": path}, capture_output=True, text=True, check=True, timeout=60)
    n_cores, *threads = map(int, done.stdout.split())
    assert threads == [max(1, n_cores // n_jobs)] * 2


def workers_of(process):
    """Return the processes in which joblib runs shards."""
    psutil = pytest.importorskip("psutil")
    return [
        child for child in psutil.Process(process.pid).children() if "loky.backend.popen" in " ".join(child.cmdline())
    ]


@pytest.mark.slow
@pytest.mark.parametrize("keep", [True, False])
def test_a_killed_worker_ends_the_run_which_goes_on_later(tmp_path, alone, keep):
    needs("joblib", "psutil")
    folder = tmp_path / "results"
    process = start("--jobs", 2, *(["--results", folder] if keep else []))
    if keep:
        half_way(process, folder)
    victim = wait_for(lambda: workers_of(process), "no worker")[0]
    used = victim.cpu_times().user
    wait_for(lambda: victim.cpu_times().user > used + 0.1, "the worker does not work")
    assert process.poll() is None
    victim.kill()
    assert_error(ended(process), 1, "a worker process was killed", "with --results FOLDER, the same command goes on")
    if keep:
        assert_goes_on(folder, alone, "--jobs", 2)


@pytest.mark.slow
@pytest.mark.parametrize("by", ["SIGKILL", "SIGTERM", "SIGINT"])
def test_no_worker_outlives_its_run(tmp_path, by):
    needs("joblib", "psutil")
    folder = tmp_path / "results"
    process = start("--jobs", 2, "--results", folder)
    half_way(process, folder)
    workers = workers_of(process)
    assert len(workers) == 2
    (os.killpg if by == "SIGINT" else os.kill)(process.pid, getattr(signal, by))  # Ctrl-C reaches the whole group
    result = ended(process)
    assert result.status == {"SIGKILL": -9, "SIGTERM": 143, "SIGINT": 130}[by]
    assert result.out == ""
    assert by == "SIGKILL" or result.err == ""  # after SIGKILL, a process of joblib cleans up, and says so
    wait_for(lambda: not any(worker.is_running() for worker in workers), "a worker is still there", 10)


@pytest.mark.slow
def test_an_error_in_a_worker_is_one_line(tiny):
    needs("joblib")
    wrong = [Window(np.array([1, 5000]), 1)]
    with pytest.raises(ValueError, match="the ids are 1 to 5000") as error:
        work.score_all(wrong, tiny, options("--jobs", 2))
    assert "\n" not in str(error.value)


# ----------------------------------------------------------------------------------------------------- a Dask cluster


@pytest.fixture
def cluster(tmp_path):
    needs("distributed")
    cluster = Cluster(tmp_path, ROOT)
    yield cluster
    cluster.end()


@pytest.mark.slow
def test_a_cluster_gives_the_same_numbers_though_a_worker_is_killed(tmp_path, cluster, alone):
    from distributed import Client

    workers = [cluster.start_worker() for _ in range(2)]
    with Client(cluster.address) as client:
        client.wait_for_workers(2)
        pids = {pid: worker for worker, pid in client.run(os.getpid).items()}
        assert set(pids) == {worker.pid for worker in workers}
        folder = tmp_path / "results"
        process = start("--dask", cluster.address, "--results", folder, "--json", tmp_path / "scores")
        half_way(process, folder)
        victim = workers[0]
        wait_for(lambda: client.call_stack().get(pids[victim.pid]), "the worker does not work")
        victim.kill()
        assert len(files_in(folder)) < alone[1] - 5
        result = ended(process)
        assert list(client.nthreads()) == [pids[workers[1].pid]]
    assert (result.status, result.err) == (0, "")
    assert numbers(tmp_path / "scores") == alone[0]
    assert len(files_in(folder)) == alone[1]


@pytest.mark.slow
def test_a_scheduler_without_workers_is_waited_for_and_one_that_dies_is_named(tmp_path, cluster, alone):
    folder = tmp_path / "results"
    process = start("--dask", cluster.address, "--results", folder)
    line = process.stderr.readline().decode()
    assert line == f"[the Dask scheduler at {cluster.address} has no workers yet: waiting up to 600 s for the first]\n"
    cluster.start_worker()
    half_way(process, folder)
    cluster.processes[0].kill()
    assert_error(ended(process), 1, f"the Dask scheduler at {cluster.address} is gone")
    assert_goes_on(folder, alone)


@pytest.mark.slow
def test_ctrl_c_ends_the_work_of_the_cluster(tmp_path, cluster):
    from distributed import Client

    cluster.start_worker()
    with Client(cluster.address) as client:
        client.wait_for_workers(1)
    folder = tmp_path / "results"
    process = start("--dask", cluster.address, "--results", folder)
    half_way(process, folder)
    os.killpg(process.pid, signal.SIGINT)
    assert ended(process) == Result(130, "", "")
    with Client(cluster.address) as client:
        wait_for(lambda: not any(client.processing().values()), "the cluster goes on", 10)


@pytest.mark.slow
def test_what_workers_lack_is_named(tmp_path, cluster, tiny, parts, monkeypatch):
    here = options("--dask", cluster.address)
    monkeypatch.setattr(jobs, "N_SENT", 2)  # fewer than there are
    good = cluster.start_worker()
    assert equal(work.score_all(parts, tiny, here), work.score_all(parts, tiny, options()))
    missing = tiny._replace(folder=tmp_path / "no-model")
    other = tiny._replace(fingerprint="other")
    with pytest.raises(ValueError, match=f"{re.escape(str(tiny.folder))} on .*: the model or the program differs"):
        work.score_all(parts, other, here)
    with pytest.raises(ValueError, match=r"no-model on .*: no model is there \(No such file"):
        work.score_all(parts, missing, here)
    wrong = [Window(np.array([1, 5000]), 1)]
    with pytest.raises(ValueError, match="the ids are 1 to 5000"):
        work.score_all(wrong, tiny, here)
    cluster.start_worker(cwd=tmp_path)  # where there is no picogpt
    from distributed import Client

    with Client(cluster.address) as client:
        client.wait_for_workers(2)
    good.kill()
    with pytest.raises(OSError, match="worker at tcp://127.0.0.1:.* fails with No module named 'picogpt'"):
        work.score_all(parts, tiny, here)


@pytest.mark.slow
def test_a_server_that_says_nothing_is_no_scheduler():
    needs("distributed")
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = f"127.0.0.1:{server.getsockname()[1]}"
        result = run_command("picogpt score", ROOT / "LICENSE", *TINY, "--dask", address, timeout=60)
    assert_error(result, 1, f"picogpt score: no Dask scheduler answers at {address}: start one, or check the address")


@pytest.mark.slow
def test_workers_are_not_waited_for_for_ever(cluster, tiny, parts, monkeypatch, capsys):
    monkeypatch.setattr(jobs, "WAIT", 1)
    here, address = options("--dask", cluster.address), re.escape(cluster.address)
    with pytest.raises(OSError, match=f"no worker has joined the Dask scheduler at {address} in 1 s: start one"):
        work.score_all(parts, tiny, here)
    monkeypatch.setattr(jobs, "check_imports", lambda client, address: None)  # as if all had gone since then
    with pytest.raises(ConnectionError, match=f"all workers at {address} are gone, and none came in 1 s: start one"):
        work.score_all(parts, tiny, here)
    assert "has no workers any more: waiting up to 1 s for one]" in capsys.readouterr().err


def test_a_shard_that_ends_several_workers_is_one_line(tiny, parts, monkeypatch):
    distributed = pytest.importorskip("distributed")

    def results_of(*args):
        raise distributed.KilledWorker("task", None, 3)

    monkeypatch.setattr(jobs, "connected", lambda address: contextlib.nullcontext())
    monkeypatch.setattr(jobs, "check_imports", lambda client, address: None)
    monkeypatch.setattr(jobs, "results_of", results_of)
    with pytest.raises(ChildProcessError, match="^4 workers died of the same shard; with --results FOLDER"):
        work.score_all(parts, tiny, options("--dask", "node:8786"))


@pytest.mark.slow
def test_a_scheduler_that_lacks_picogpt_is_named(tmp_path, tiny, parts):
    needs("distributed")
    cluster = Cluster(tmp_path, tmp_path)
    try:
        cluster.start_worker()
        with pytest.raises(OSError, match="scheduler at tcp://.* fails with No module named 'picogpt'"):
            work.score_all(parts, tiny, options("--dask", cluster.address))
    finally:
        cluster.end()


@pytest.mark.slow
def test_an_unreachable_scheduler_is_one_line():
    address = "tcp://127.0.0.1:9"
    needs("distributed")
    begin = time.perf_counter()
    result = run_command("picogpt score", ROOT / "README.md", *TINY, "--dask", address)
    assert_error(result, 1, f"no Dask scheduler answers at {address}:")
    assert time.perf_counter() - begin < 15
