"""Read the facts, and recognize the files that some of them need."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection
from pathlib import Path
from typing import Any

from encoder import Encoder
from picogpt.command_line import log, read_text

FACTS = Path(__file__).with_name("facts.json")


def read_facts(size: str) -> tuple[list[dict[str, Any]], dict[str, dict[str, Any]]]:
    """Return the facts about one of OpenAI's sizes, with the values for it, and the files that facts may name."""
    content = json.loads(FACTS.read_text(encoding="utf-8"))
    facts = [fact | {"published": fact["published"][size]} for fact in content["facts"] if size in fact["published"]]
    for fact in facts:
        if isinstance(name := fact.get("prompts"), str):  # several facts share these
            fact["prompts"] = content["prompts"][name]
    return facts, content["files"]


def find_files(
    folder: Path, names: Collection[str], files: dict[str, dict[str, Any]], encoder: Encoder
) -> dict[str, Path]:
    """Return the paths of those of these files that are in a folder or below it, by name.

    For each other one, a line on stderr says what is expected, and where it is published. A file of the right name is
    not taken if it is another one. Raises NotADirectoryError if the folder is none.
    """
    if not folder.is_dir():
        raise NotADirectoryError(f"{folder} is not a folder: --data names the one with the data files")
    found = {}
    for name in names:
        there = sorted(folder.rglob(name))
        right = next((path for path in there if is_right(path, files[name], encoder)), None)
        if right:
            found[name] = right
        else:
            problem = f"{there[0]} is another file" if there else f"{name} is not in {folder}"
            log(f"{problem}: expected is {description(files[name])}")
    return found


def is_right(path: Path, expected: dict[str, Any], encoder: Encoder) -> bool:
    """Return whether a file is the expected one: by its size and sha256, or by the number of its tokens."""
    if not path.is_file() or path.stat().st_size != expected.get("bytes", path.stat().st_size):
        return False
    if "sha256" in expected:
        return hashlib.sha256(path.read_bytes()).hexdigest() == str(expected["sha256"])
    return len(encoder.encode(read_text(path))) == int(expected["tokens"])


def description(expected: dict[str, Any]) -> str:
    """Return what identifies a file, and where it is published, as text."""
    if "sha256" in expected:
        what = f"the file of {expected['bytes']:,} bytes with sha256 {expected['sha256'][:12]}…"
    else:
        what = f"the file of {expected['tokens']:,} tokens"
    return f"{what}, published in {expected['where']}"
