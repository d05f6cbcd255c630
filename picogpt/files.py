"""Write files and folders so that they appear complete or not at all, even after an error or Ctrl-C."""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import IO


@contextlib.contextmanager
def new_folder(path: Path) -> Iterator[Path]:
    """Make a folder. Inside the `with` block it has a temporary name; it is renamed to `path` if the block succeeds.

    If the block fails, the folder and the parents made for it are removed. An existing folder is never replaced: that
    raises FileExistsError.
    """
    exists = f"{path} exists already: remove it, or choose another name"
    if os.path.lexists(path):
        raise FileExistsError(exists)
    made = [parent for parent in path.parents if not parent.exists()]
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    try:
        partial.mkdir(parents=True)
        yield partial
        if os.path.lexists(path):  # another program made it in the meantime
            raise FileExistsError(exists)
        partial.rename(path)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
        if not path.exists():
            for parent in made:
                with contextlib.suppress(OSError):  # the parent is not empty: another program uses it by now
                    parent.rmdir()


@contextlib.contextmanager
def new_file(path: Path) -> Iterator[IO[bytes]]:
    """Open a file for writing. It gets its name, and replaces an old file, only if the `with` block succeeds.

    If the block fails, the old file stays as it was. If `path` is a symbolic link, the file that it points to is
    replaced. Raises OSError if the file can't be made, or if `path` is a folder, a device or a pipe.
    """
    target = Path(os.path.realpath(path))
    if target.is_dir():
        raise IsADirectoryError(f"{path} is a folder, not a file to write")
    if target.exists() and not target.is_file():
        raise FileExistsError(f"{path} is a device or a pipe, not a file to write")
    if not target.parent.is_dir():
        raise FileNotFoundError(f"{path.parent} is no folder to write {path.name} to")
    partial = target.with_name(f".{target.name}.{os.getpid()}.partial")
    try:
        with open(partial, "wb") as file:
            yield file
        os.replace(partial, target)
    except OSError as error:
        if error.filename and Path(error.filename) == partial:  # the user knows only the file's own name
            error.filename = str(path)
        raise
    finally:
        with contextlib.suppress(OSError):  # after the replacement there is nothing left to remove
            partial.unlink()
