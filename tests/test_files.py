"""Files and folders that appear complete or not at all."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from helpers import ROOT

from picogpt import files
from picogpt.command_line import UsageError
from picogpt.files import new_file, new_folder

ERRORS = [KeyboardInterrupt, SystemExit, OSError]


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_a_file_appears_when_it_is_complete(tmp_path):
    path = tmp_path / "file"
    with new_file(path) as file:
        file.write(b"new")
        assert not path.exists()
    assert path.read_bytes() == b"new"
    assert names(tmp_path) == ["file"]


def test_a_file_replaces_an_old_one_at_the_end(tmp_path):
    path = tmp_path / "file"
    path.write_bytes(b"old")
    with new_file(path, replace=True) as file:
        file.write(b"new")
        file.flush()
        assert path.read_bytes() == b"old"
    assert path.read_bytes() == b"new"


def test_no_file_is_replaced_without_being_asked(tmp_path):
    mine, later = tmp_path / "mine", tmp_path / "later"
    mine.write_bytes(b"precious")
    message = "exists already: choose another name, or replace it with --force"
    with pytest.raises(FileExistsError, match=f"mine {message}"), new_file(mine):
        pytest.fail("the block must not begin")
    with pytest.raises(FileExistsError, match=f"later {message}"), new_file(later):
        later.write_bytes(b"of another program")
    assert (mine.read_bytes(), later.read_bytes()) == (b"precious", b"of another program")
    assert names(tmp_path) == ["later", "mine"]


def test_only_a_model_s_folder_can_be_replaced(tmp_path):
    for name, content in {"model": "hparams.json", "hf": "config.json", "photos": "me.png"}.items():
        (tmp_path / name).mkdir()
        (tmp_path / name / content).write_text("old")
    (tmp_path / "link").symlink_to("model")
    for name in ("model", "hf"):
        with pytest.raises(FileExistsError, match="--force"), new_folder(tmp_path / name):
            pytest.fail("the block must not begin")
        with pytest.raises(KeyError), new_folder(tmp_path / name, replace=True):
            raise KeyError
        with new_folder(tmp_path / name, replace=True) as folder:
            (folder / "new").write_text("new")
            assert len(names(tmp_path / name)) == 1
        assert names(tmp_path / name) == ["new"]
    for name in ("photos", "link"):
        with pytest.raises(FileExistsError, match="is not a model's folder"), new_folder(tmp_path / name, replace=True):
            pytest.fail("the block must not begin")
    assert (tmp_path / "photos" / "me.png").read_text() == "old"
    assert names(tmp_path) == ["hf", "link", "model", "photos"]


@pytest.mark.parametrize("error", ERRORS)
@pytest.mark.parametrize("there", [True, False])
def test_a_failure_leaves_the_old_file_or_none(tmp_path, error, there):
    path = tmp_path / "file"
    if there:
        path.write_bytes(b"old")

    def fail() -> None:
        with new_file(path, replace=True) as file:
            file.write(b"half")
            raise error

    with pytest.raises(error):
        fail()
    assert names(tmp_path) == (["file"] if there else [])
    assert not there or path.read_bytes() == b"old"


@pytest.mark.parametrize(
    ("name", "error", "message"),
    [
        ("folder", IsADirectoryError, "folder is a folder, not a file"),
        ("missing/file", FileNotFoundError, "missing is no folder to write file to"),
        ("other/file", FileNotFoundError, "other is no folder to write file to"),
    ],
)
def test_a_place_where_no_file_can_be_is_refused_at_once(tmp_path, name, error, message):
    (tmp_path / "folder").mkdir()
    (tmp_path / "other").write_text("a file")
    with pytest.raises(error, match=message), new_file(tmp_path / name):
        pytest.fail("the block must not begin")
    assert names(tmp_path) == ["folder", "other"]


@pytest.mark.skipif(sys.platform == "win32", reason="links and pipes of POSIX")
def test_the_file_behind_a_link_is_replaced_and_the_link_stays(tmp_path):
    (tmp_path / "there").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "there" / "file")
    for content in (b"first", b"second"):  # the first one makes the file
        with new_file(tmp_path / "link", replace=True) as file:
            file.write(content)
        assert (tmp_path / "there" / "file").read_bytes() == content
    assert (tmp_path / "link").is_symlink()
    assert names(tmp_path / "there") == ["file"]


@pytest.mark.skipif(sys.platform == "win32", reason="links and pipes of POSIX")
def test_a_pipe_or_device_is_not_replaced(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path / "pipe", Path("/dev/null")):
        with pytest.raises(FileExistsError, match="is a device or a pipe"), new_file(path):
            pytest.fail("the block must not begin")
    assert (tmp_path / "pipe").is_fifo()


NEW_FILE = """
import sys, time
from pathlib import Path
from picogpt.files import new_file
with new_file(Path(sys.argv[1]), replace=True) as file:
    for _ in range(30):
        file.write(sys.argv[2].encode() * 1000)
        file.flush()
        time.sleep(0.01)
"""


def test_two_processes_at_once_leave_one_whole_file(tmp_path):
    command = [sys.executable, "-c", NEW_FILE, str(tmp_path / "file")]
    both = [subprocess.Popen([*command, letter], cwd=ROOT) for letter in "ab"]
    assert [process.wait() for process in both] == [0, 0]
    assert (tmp_path / "file").read_text() in ("a" * 30_000, "b" * 30_000)
    assert names(tmp_path) == ["file"]


def test_a_folder_appears_when_it_is_complete(tmp_path):
    with new_folder(tmp_path / "a" / "b" / "model") as folder:
        (folder / "file").write_text("x")
        assert not (tmp_path / "a" / "b" / "model").exists()
    assert names(tmp_path / "a" / "b") == ["model"]
    assert names(tmp_path / "a" / "b" / "model") == ["file"]


@pytest.mark.parametrize("error", ERRORS)
def test_a_failure_leaves_neither_the_folder_nor_parents_made_for_it(tmp_path, error):
    (tmp_path / "there").mkdir()

    def fail() -> None:
        with new_folder(tmp_path / "there" / "new" / "model") as folder:
            (folder / "file").write_text("half")
            raise error

    with pytest.raises(error):
        fail()
    assert list(tmp_path.rglob("*")) == [tmp_path / "there"]


@pytest.mark.parametrize("kind", ["folder", "file", "broken link"])
@pytest.mark.parametrize("when", ["before", "in the meantime"])
def test_nothing_that_exists_is_replaced_by_a_folder(tmp_path, kind, when):
    path = tmp_path / "x"

    def make() -> None:
        if kind == "folder":
            path.mkdir()
        elif kind == "file":
            path.write_text("kept")
        else:
            path.symlink_to("nowhere")

    def attempt() -> None:
        with new_folder(path):
            assert when == "in the meantime"  # or the block must not begin
            make()

    if when == "before":
        make()
    with pytest.raises(FileExistsError, match="exists already"):
        attempt()
    assert names(tmp_path) == ["x"]
    assert path.is_symlink() == (kind == "broken link")


# ------------------------------------------------------------------------------------- what is there already


@pytest.mark.skipif(sys.platform == "win32", reason="permissions of POSIX")
@pytest.mark.parametrize("mode", [0o600, 0o640, 0o755])
def test_a_file_keeps_the_permissions_of_the_one_that_it_replaces(tmp_path, mode):
    path = tmp_path / "secret"
    path.write_bytes(b"old")
    path.chmod(mode)
    with new_file(path, replace=True) as file:
        file.write(b"new")
    assert path.read_bytes() == b"new"
    assert path.stat().st_mode & 0o7777 == mode


@pytest.mark.skipif(sys.platform == "win32", reason="permissions of POSIX")
def test_nobody_else_can_read_a_file_before_it_has_its_permissions(tmp_path):
    with new_file(tmp_path / "secret", replace=True) as file:
        folder = Path(file.name).parent.parent
        assert folder.parent == tmp_path
        assert folder.stat().st_mode & 0o077 == 0


@pytest.mark.parametrize("name", ["x.partial", ".x.PID.partial", ".x.partial"])
@pytest.mark.parametrize("kind", ["file", "link", "folder"])
def test_a_user_s_own_files_with_names_like_ours_stay(tmp_path, name, kind):
    """A link is not followed, and nothing is removed that `new_file` and `new_folder` have not made."""
    (tmp_path / "other").write_bytes(b"other")
    own = tmp_path / name.replace("PID", str(os.getpid()))
    if kind == "file":
        own.write_bytes(b"own")
    elif kind == "link":
        own.symlink_to(tmp_path / "other")
    else:
        own.mkdir()
        (own / "kept").write_bytes(b"own")
    with new_file(tmp_path / "x", replace=True) as file:
        file.write(b"new")
    (tmp_path / "x").unlink()
    with new_folder(tmp_path / "x") as folder:
        (folder / "new").write_bytes(b"new")
    assert (tmp_path / "other").read_bytes() == b"other"
    assert own.is_symlink() == (kind == "link")
    assert ((own / "kept") if kind == "folder" else own).read_bytes() == (b"other" if kind == "link" else b"own")
    assert names(tmp_path) == sorted(["other", own.name, "x"])


@pytest.mark.parametrize("name", ["nd/..", "there/..", "", "nd/new/.."])
def test_a_name_that_is_not_one_of_a_folder_is_refused_at_once(tmp_path, name, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "there").mkdir()
    message = "not the name of a folder|exists already"
    with pytest.raises((UsageError, FileExistsError), match=message), new_folder(Path(name)):
        pytest.fail("the block must not begin")
    assert names(tmp_path) == ["there"]


def test_a_folder_in_a_parent_that_leads_back(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with new_folder(Path("nd/../new")) as folder:
        (folder / "file").write_text("x")
    assert names(tmp_path) == ["new"]


@pytest.mark.skipif(sys.platform == "win32", reason="links of POSIX")
def test_a_loop_of_links_is_refused(tmp_path):
    (tmp_path / "a").symlink_to("b")
    (tmp_path / "b").symlink_to("a")
    with pytest.raises(FileExistsError, match="a is a loop of links"), new_file(tmp_path / "a"):
        pytest.fail("the block must not begin")
    assert names(tmp_path) == ["a", "b"]


@pytest.mark.skipif(sys.platform != "linux", reason="Linux's names of open files")
def test_a_pipe_without_a_name_is_refused():
    read, write = os.pipe()
    with pytest.raises(FileExistsError, match="is a device or a pipe"), new_file(Path(f"/dev/fd/{write}")):
        pytest.fail("the block must not begin")
    os.close(read)
    os.close(write)


def test_names_as_long_as_the_file_system_allows(tmp_path):
    for name in ("x" * 255, "é" * 127):
        with new_file(tmp_path / name, replace=True) as file:
            file.write(b"new")
        (tmp_path / name).unlink()
        with new_folder(tmp_path / name):
            pass
    with pytest.raises(OSError) as caught, new_file(tmp_path / ("x" * 256)):  # noqa: PT011
        pytest.fail("the block must not begin")
    assert str(tmp_path / ("x" * 256)) in str(caught.value)


# ------------------------------------------------------------------------------------------ runs that were killed

UNFINISHED = """
import sys
from pathlib import Path
from picogpt import files
with getattr(files, sys.argv[1])(Path(sys.argv[2]), replace=True) as new:
    if sys.argv[1] == "new_file":
        new.write(b"half")
        new.flush()
    else:
        (new / "half").write_bytes(b"half")
    print("begun", flush=True)
    sys.stdin.read()
"""


@contextlib.contextmanager
def unfinished(kind: str, path: Path) -> Iterator[subprocess.Popen[str]]:
    """Run a process that is in the middle of a new file or folder. It ends when its standard input is closed."""
    command = [sys.executable, "-c", UNFINISHED, kind, str(path)]
    with subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout
        assert process.stdout.readline() == "begun\n"
        yield process


@pytest.mark.parametrize("kind", ["new_file", "new_folder"])
def test_what_a_killed_run_left_is_removed_by_the_next_one(tmp_path, kind):
    with unfinished(kind, tmp_path / "x") as process:
        process.kill()
    assert len(names(tmp_path)) == 1
    with new_file(tmp_path / "x.png"):  # another name
        pass
    assert len(names(tmp_path)) == 2
    with new_file(tmp_path / "x", replace=True) as file:
        assert [path for path in tmp_path.rglob("half") if path.is_file()] == []
        file.write(b"new")
    assert names(tmp_path) == ["x", "x.png"]


@pytest.mark.parametrize("left", ["nothing", "an empty lock", "a lock", "a lock and a file"])
def test_a_run_that_was_killed_at_its_begin_or_end(tmp_path, left):
    """Without a written lock, its folder may belong to a run that has just begun. After a minute it does not."""
    place = tmp_path / ".x.99999-0123456789abcdef.partial"
    place.mkdir()
    if left != "nothing":
        (place / ".lock").write_bytes(b"" if "empty" in left else b"locked")
    if "file" in left:
        (place / "new").mkdir()
        (place / "new" / "x").write_bytes(b"half")
    assert names(tmp_path) == [place.name]
    with new_file(tmp_path / "x", replace=True):
        pass
    assert names(tmp_path) == ([place.name, "x"] if left in ("nothing", "an empty lock") else ["x"])
    if place.exists():
        os.utime(place, (0, 0))
    with new_file(tmp_path / "x", replace=True):
        pass
    assert names(tmp_path) == ["x"]


@pytest.mark.skipif(sys.platform == "win32", reason="links and owners of POSIX")
@pytest.mark.parametrize("trap", ["link", "lock", "owner", "no lock"])
def test_a_trap_with_the_name_of_our_folders_stays(tmp_path, monkeypatch, trap):
    place = tmp_path / ".x.99999-0123456789abcdef.partial"
    other = tmp_path / "other"
    (other / "new").mkdir(parents=True)
    (other / "new" / "kept").write_bytes(b"kept")
    if trap != "no lock":
        (other / ".lock").write_bytes(b"locked")
    os.utime(other, (0, 0))
    if trap == "link":
        place.symlink_to(other)
    elif trap == "lock":
        place.mkdir()
        (place / ".lock").symlink_to(other)
        (place / "new").symlink_to(other / "new")
    else:
        other.rename(place)
    if trap == "owner":
        monkeypatch.setattr(os, "getuid", lambda: place.lstat().st_uid + 1)
    with new_file(tmp_path / "x", replace=True):
        pass
    kept = (place if trap in ("owner", "no lock") else other) / "new" / "kept"
    assert kept.read_bytes() == b"kept"


def test_the_lock_is_removed_last(tmp_path, monkeypatch):
    """A run that is killed while it removes its folder must not leave data without the lock that marks them."""
    order = []
    rmtree = shutil.rmtree

    def note(path: Path, **options: Any) -> None:
        order.append((path.name, (path / ".lock").exists(), (path / "x").exists()))
        rmtree(path, **options)

    monkeypatch.setattr(files.shutil, "rmtree", note)
    with pytest.raises(OSError, match="in time"), new_file(tmp_path / "x"):
        raise OSError("in time")
    assert [entry[1:] for entry in order] == [(False, True), (True, False)]
    assert order[0][0] == "new"


@pytest.mark.parametrize("kind", ["new_file", "new_folder"])
def test_what_a_living_run_makes_stays(tmp_path, kind):
    with unfinished(kind, tmp_path / "x") as process:
        if kind == "new_file":
            with new_file(tmp_path / "x", replace=True) as file:
                file.write(b"new")
        else:
            with pytest.raises(OSError, match="in time"), new_folder(tmp_path / "x"):
                raise OSError("in time")
        assert process.stdin
        process.stdin.close()
        assert process.wait() == 0
    assert names(tmp_path) == ["x"]
    path = tmp_path / "x"
    assert (path if kind == "new_file" else path / "half").read_bytes() == b"half"


def test_a_file_system_without_locks(tmp_path, monkeypatch):
    def fail(descriptor: int, wait: bool) -> None:
        raise OSError("no locks")

    monkeypatch.setattr(files, "lock", fail)
    with new_file(tmp_path / "x", replace=True) as outer:
        outer.write(b"outer")
        with new_file(tmp_path / "x", replace=True) as inner:
            inner.write(b"inner")
    assert (tmp_path / "x").read_bytes() == b"outer"
    assert names(tmp_path) == ["x"]
