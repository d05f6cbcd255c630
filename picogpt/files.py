"""Write files and folders so that they appear complete or not at all, even after an error or Ctrl-C."""

from __future__ import annotations

import contextlib
import errno
import os
import secrets
import shutil
import sys
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import IO


@contextlib.contextmanager
def new_folder(path: Path, replace: bool = False) -> Iterator[Path]:
    """Make a folder. Inside the `with` block it has a hidden name; it is renamed to `path` if the block succeeds.

    If the block fails, the folder is removed. An existing folder raises FileExistsError, unless `replace` is true and
    it holds a model.
    """
    target = folder_to_make(path, replace)
    target.parent.mkdir(parents=True, exist_ok=True)
    with temporary(target, path) as partial, temporary(target, path) as replaced:
        partial.mkdir()
        yield partial
        folder_to_make(path, replace)  # another program may have made it in the meantime
        try:
            if target.exists():
                target.rename(replaced)
            partial.rename(target)
        except BaseException:  # also Ctrl-C between the two
            if replaced.exists() and not target.exists():
                replaced.rename(target)
            raise


@contextlib.contextmanager
def new_file(path: Path, replace: bool = False) -> Iterator[IO[bytes]]:
    """Open a file for writing. It gets its name only if the `with` block succeeds.

    An old file raises FileExistsError, before the block and after it, unless `replace` is true. Then the new file takes
    its place and its permissions, behind all symbolic links. If the block fails, the old file stays as it was. Raises
    OSError as `file_to_write` does.
    """
    target = file_to_write(path, replace)
    with temporary(target, path) as partial:
        with open(partial, "xb") as file:
            with contextlib.suppress(FileNotFoundError):  # there is no old file
                shutil.copymode(target, partial)
            yield file
        file_to_write(path, replace)  # another program may have made it in the meantime
        os.replace(partial, target)


@contextlib.contextmanager
def temporary(target: Path, path: Path) -> Iterator[Path]:
    """Choose a hidden name beside `target`, and remove the file or folder that still has it at the end.

    Errors name `path`, because that is all the user knows. A run that is killed leaves what it had written.
    """
    partial = target.with_name(f".{target.name[:40]}.{secrets.token_hex(8)}.partial")  # a name has at most 255 bytes
    try:
        yield partial
    except OSError as error:
        is_full = not error.filename and error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)  # they have no name
        if is_full or (error.filename and Path(str(error.filename)).is_relative_to(partial)):
            error.filename = str(path)
        raise
    finally:
        if partial.is_dir():
            shutil.rmtree(partial, ignore_errors=True)
        else:
            partial.unlink(missing_ok=True)


def folder_to_make(path: Path, replace: bool = False) -> Path:
    """Return the absolute path of a folder to make. Raises FileExistsError if something is there.

    If `replace` is true, a folder that holds a model may be there. Anything else is not ours to remove.
    """
    if os.path.lexists(path):  # also a link that points to nothing
        is_model = not path.is_symlink() and any((path / name).is_file() for name in ("hparams.json", "config.json"))
        if not is_model:
            raise FileExistsError(f"{path} exists already, and is not a model's folder: choose another name")
        if not replace:
            raise FileExistsError(f"{path} exists already: choose another name, or replace it with --force")
    return Path(os.path.realpath(path.parent), path.name)


def file_to_write(path: Path, replace: bool = False) -> Path:
    """Return the absolute path of a file to write, behind all links.

    Raises OSError if `path` is a folder, a device or a pipe, if it lies in no folder or in one that can't be written
    to, and if it exists but must not be replaced.
    """
    target = Path(os.path.realpath(path))
    if path.exists() and not path.is_file():
        kind = "a folder" if path.is_dir() else "a device or a pipe"
        raise FileExistsError(f"{path} is {kind}, not a file to write")
    if not target.parent.is_dir():
        raise FileNotFoundError(f"{path.parent} is no folder to write {path.name} to")
    if not replace and os.path.lexists(target):
        raise FileExistsError(f"{path} exists already: choose another name, or replace it with --force")
    if not os.access(target.parent, os.W_OK):
        raise PermissionError(f"{path}: its folder can't be written to")
    return target


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
