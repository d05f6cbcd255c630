"""Files and folders that become visible complete or not at all."""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import IO


@contextlib.contextmanager
def new_folder(path: Path) -> Iterator[Path]:
    """A folder that gets its name when the block ends well, and is gone when it does not. Never replaces one."""
    exists = f"{path} exists already: remove it, or choose another name"
    if os.path.lexists(path):
        raise FileExistsError(exists)
    made = [parent for parent in path.parents if not parent.exists()]
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    try:
        partial.mkdir(parents=True)
        yield partial
        if os.path.lexists(path):  # made by somebody else in the meantime
            raise FileExistsError(exists)
        partial.rename(path)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
        if not path.exists():
            for parent in made:
                with contextlib.suppress(OSError):  # not empty: somebody else is using it by now
                    parent.rmdir()


@contextlib.contextmanager
def new_file(path: Path) -> Iterator[IO[bytes]]:
    """A file to write that gets its name only when it is complete; a link's target is replaced, not the link.

    Raises OSError where it can't be made, or would take the place of what is no file.
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
    finally:
        with contextlib.suppress(OSError):
            partial.unlink()
