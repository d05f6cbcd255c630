"""Write files and folders so that they appear complete or not at all, even after an error or Ctrl-C."""

from __future__ import annotations

import contextlib
import errno
import glob
import os
import secrets
import shutil
import stat
import sys
import time
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import IO

from picogpt.command_line import UsageError
from utils import lock


@contextlib.contextmanager
def new_folder(path: Path, replace: bool = False) -> Iterator[Path]:
    """Make a folder. Inside the `with` block it is in a hidden place; it is moved to `path` if the block succeeds.

    If the block fails, the folder and the parents made for it are removed. An existing folder raises FileExistsError,
    unless `replace` is true and it holds a model.
    """
    target = folder_to_make(path, replace)
    made = [parent for parent in target.parents if not parent.exists()]
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with hidden_place(target, path) as place:
            partial = place / target.name
            partial.mkdir()
            yield partial
            folder_to_make(path, replace)  # another program may have made it in the meantime
            if target.exists():
                target.rename(place / "replaced")  # is removed with the hidden place
            partial.rename(target)
    finally:
        if not target.exists():
            for parent in made:
                with contextlib.suppress(OSError):  # the parent is not empty: another program uses it by now
                    parent.rmdir()


@contextlib.contextmanager
def new_file(path: Path, replace: bool = False) -> Iterator[IO[bytes]]:
    """Open a file for writing. It gets its name only if the `with` block succeeds.

    An old file raises FileExistsError, before the block and after it, unless `replace` is true. Then the new file takes
    its place and its permissions, behind all symbolic links. If the block fails, the old file stays as it was. Raises
    OSError as `file_to_write` does.
    """
    target = file_to_write(path, replace)
    with hidden_place(target, path) as place:
        partial = place / target.name
        with open(partial, "xb") as file:
            yield file
        with contextlib.suppress(FileNotFoundError):  # there is no old file
            old = target.stat()
            with contextlib.suppress(OSError, AttributeError):  # only root may give files away; Windows has no chown
                os.chown(partial, old.st_uid, old.st_gid)
            partial.chmod(stat.S_IMODE(old.st_mode))
        file_to_write(path, replace)  # another program may have made it in the meantime
        os.replace(partial, target)


def folder_to_make(path: Path, replace: bool = False) -> Path:
    """Return the absolute path of a folder to make. Raises FileExistsError, or UsageError for "new/..".

    If `replace` is true, a folder that holds a model may exist. Anything else that does is not ours to remove.
    """
    if path.name in ("", ".."):
        raise UsageError(f"{path} is not the name of a folder to make")
    if os.path.lexists(path):  # also a link that points to nothing
        is_model = not path.is_symlink() and any((path / name).is_file() for name in ("hparams.json", "config.json"))
        if not is_model:
            raise FileExistsError(f"{path} exists already, and is not a model's folder: choose another name")
        if not replace:
            raise FileExistsError(f"{path} exists already: choose another name, or replace it with --force")
    return Path(os.path.realpath(path.parent), path.name)


def file_to_write(path: Path, replace: bool = False) -> Path:
    """Return the absolute path of a file to write, behind all links.

    Raises OSError if `path` is a folder, a device, a pipe or a loop of links, or lies in no folder, and if it exists
    but must not be replaced.
    """
    target = Path(os.path.realpath(path))
    if target.is_dir():
        raise IsADirectoryError(f"{path} is a folder, not a file to write")
    if path.exists() and not path.is_file():  # `target` may not exist where `path` does, such as /dev/stdout
        raise FileExistsError(f"{path} is a device or a pipe, not a file to write")
    if target.is_symlink():
        raise FileExistsError(f"{path} is a loop of links, not a file to write")
    if not target.parent.is_dir():
        raise FileNotFoundError(f"{path.parent} is no folder to write {path.name} to")
    if not replace and target.exists():
        raise FileExistsError(f"{path} exists already: choose another name, or replace it with --force")
    return target


def check_readable(path: str | Path) -> None:
    """Raise OSError if there is no file at a path, or a folder. It may be a pipe, so it is not opened."""
    if stat.S_ISDIR(os.stat(path).st_mode):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))


def overwritten(outputs: Mapping[str, Path | None], inputs: Iterable[str | Path]) -> str:
    """Return what is wrong if an output is also an input, or the file of two options, and "" otherwise.

    `outputs` has the value of each option that names an output. Links count as the files behind them.
    """
    taken = {os.path.realpath(path): "a file to read" for path in inputs}
    for option, path in outputs.items():
        if path is not None:
            place = os.path.realpath(path)
            if place in taken:
                return f"argument {option}: {path} is also {taken[place]}"
            taken[place] = f"the file of {option}"
    return ""


@contextlib.contextmanager
def hidden_place(target: Path, path: Path) -> Iterator[Path]:
    """Make a folder in a folder .NAME.*.partial beside `target` to work in, and remove both at the end.

    Those of killed runs are removed first. While a run uses its folder, it locks a file in there. The system frees the
    lock when the process ends, however it ends. Errors name `path`, because that is all the user knows.
    """
    begin = f".{target.name[:40]}."  # a longer one could exceed the 255 bytes that a name may have
    for old in target.parent.glob(f"{glob.escape(begin)}*-{'[0-9a-f]' * 16}.partial"):
        remove_abandoned(old)
    place = target.with_name(f"{begin}{os.getpid()}-{secrets.token_hex(8)}.partial")
    try:
        place.mkdir(mode=0o700)
        with open(place / ".lock", "wb", buffering=0) as file:
            with contextlib.suppress(OSError):  # some network file systems have no locks; there, nothing is abandoned
                lock(file.fileno(), wait=False)
            file.write(b"locked")
            (place / "new").mkdir()
            yield place / "new"
    except OSError as error:
        if error.filename and Path(str(error.filename)).is_relative_to(place):
            error.filename = str(path)
        raise
    finally:
        remove_place(place)


def remove_place(place: Path) -> None:
    """Remove a folder of `hidden_place`. The lock goes last: after a kill, the next run finds it and goes on."""
    for folder in (place / "new", place):
        shutil.rmtree(folder, ignore_errors=True)


def remove_abandoned(place: Path) -> None:
    """Remove a folder of `hidden_place`, unless a living process works in it, or is just making it.

    Links, and what belongs to other users, stay: in a folder such as /tmp they may be traps.
    """
    with contextlib.suppress(OSError):  # another process has the lock, or removes the folder, too
        status = place.lstat()
        is_ours = stat.S_ISDIR(status.st_mode) and status.st_uid == getattr(os, "getuid", lambda: 0)()
        is_new = time.time() - status.st_mtime < 60
        if is_ours and not (place / ".lock").exists() and not is_new:
            place.rmdir()
        elif is_ours:
            with open(place / ".lock", "r+b") as file:
                lock(file.fileno(), wait=False)
                is_new = is_new and file.read() == b""  # its run writes to it when it has locked it
            if not is_new:
                remove_place(place)


def state_folder() -> Path | None:
    """Return the folder where picogpt keeps what a user should find again, such as chat's history.

    It may not exist yet. Returns None for a user without a home folder. Where XDG_STATE_HOME is set, it decides on all
    systems. Source: XDG Base Directory Specification, which says to ignore a relative folder in it.
    """
    if os.path.isabs(chosen := os.environ.get("XDG_STATE_HOME", "")):
        return Path(chosen, "picogpt")
    if sys.platform == "win32" and (chosen := os.environ.get("LOCALAPPDATA", "")):
        return Path(chosen, "picogpt")
    usual = {"win32": "AppData/Local", "darwin": "Library/Application Support"}
    try:
        return Path.home() / usual.get(sys.platform, ".local/state") / "picogpt"
    except RuntimeError:  # the system knows no home
        return None
