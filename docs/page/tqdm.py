"""Stands in for tqdm in the browser, which has no terminal: a bar becomes one line of text on the page."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any


class tqdm:  # noqa: N801  # the name that the importing modules expect
    """The part of tqdm that picogpt uses. Each change of a bar goes to `report`, which the page's worker sets."""

    report: Callable[[str], object] = staticmethod(lambda text: None)

    def __init__(self, total: int | None = None, desc: str = "", **settings: Any):
        self.total, self.desc, self.n = total, desc, 0

    def __enter__(self) -> tqdm:
        return self

    def __exit__(self, *error: object) -> None:
        pass

    def set_description(self, desc: str) -> None:
        self.desc = desc

    def update(self, n: int = 1) -> None:
        self.n += n
        tqdm.report(f"{self.desc}, {self.n} of {self.total}")
