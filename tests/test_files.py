"""Files and folders that appear complete or not at all."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from helpers import ROOT

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


def test_ctrl_c_between_two_renames_keeps_the_old_folder(tmp_path, monkeypatch):
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "hparams.json").write_text("old")
    rename, done = Path.rename, []

    def interrupted(self, target):
        done.append(target)
        if len(done) == 2:
            raise KeyboardInterrupt
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", interrupted)
    with pytest.raises(KeyboardInterrupt), new_folder(tmp_path / "model", replace=True):
        pass
    assert (tmp_path / "model" / "hparams.json").read_text() == "old"
    assert names(tmp_path) == ["model"]


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
    ("name", "message"),
    [
        ("folder", "folder is a folder, not a file"),
        ("missing/file", "missing is no folder to write file to"),
        ("other/file", "other is no folder to write file to"),
    ],
)
def test_a_place_where_no_file_can_be_is_refused_at_once(tmp_path, name, message):
    (tmp_path / "folder").mkdir()
    (tmp_path / "other").write_text("a file")
    with pytest.raises(OSError, match=message), new_file(tmp_path / name, replace=True):
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
def test_a_failure_leaves_no_folder(tmp_path, error):
    def fail() -> None:
        with new_folder(tmp_path / "model") as folder:
            (folder / "file").write_text("half")
            raise error

    with pytest.raises(error):
        fail()
    assert names(tmp_path) == []


def test_errors_name_the_path_that_the_user_knows(tmp_path):
    with pytest.raises(FileNotFoundError) as caught, new_folder(tmp_path / "x") as folder:
        (folder / "missing" / "file").write_text("new")
    assert caught.value.filename == str(tmp_path / "x")


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
        assert Path(file.name).stat().st_mode & 0o7777 == mode  # before there is anything to read
        file.write(b"new")
    assert path.read_bytes() == b"new"
    assert path.stat().st_mode & 0o7777 == mode


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
