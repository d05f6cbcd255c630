"""Print the figures of a task as a table: aligned for a terminal, or in Markdown."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from picogpt.evaluate import paper


def show_table(results: Sequence[dict[str, Any]], in_markdown: bool) -> None:
    """Print the figures of models on one data file, those of the paper, and what others report."""
    heading, *rows = table_of(results)
    if in_markdown:
        print("\n" + paper.markdown_heading(heading))
    for cells in rows if in_markdown else [heading, *rows]:
        numbers = "".join(cell.rjust(9 if i % 2 else 14) for i, cell in enumerate(cells[1:]))
        print(paper.markdown(cells) if in_markdown else f"{cells[0]:30}{numbers}".rstrip())
    for line in [line for result in results for line in result["others"]]:
        print("\n" * in_markdown + line)


def table_of(results: Sequence[dict[str, Any]]) -> list[list[str]]:
    """Return the cells of the table: a heading, then a row for each figure and each standard error."""
    heading = [""]
    for result in results:
        heading += ["ours" if len(results) == 1 else result["model"], "paper"]
    rows = [heading]
    for name in results[0]["figures"]:
        row, errors = [name + ", %" * (name == "accuracy")], ["  standard error"]
        for result in results:
            value = result["figures"][name]
            row += [shown(name, value), "" if isinstance(value, int) else paper.theirs(result["paper"].get(name))]
            errors += [shown(name, result["standard errors"].get(name)), ""]
        rows += [row, errors] if name in results[0]["standard errors"] else [row]
    return rows


def shown(name: str, value: float | None) -> str:
    """Return a figure as text: a count as a whole number, bits with four decimals, all others with two."""
    if value is None or value >= 1e9:
        return "-" if value is None else f"{value:.4g}"
    return f"{value:,}" if isinstance(value, int) else f"{value:,.{4 if name.startswith('bits') else 2}f}"
