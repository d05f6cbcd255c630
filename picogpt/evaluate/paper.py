"""The results of GPT-2's paper on language modeling datasets, and a table that puts ours beside them.

Source: Radford et al. 2019, "Language Models are Unsupervised Multitask Learners", table 3. The paper calls the four
sizes 117M, 345M, 762M and 1542M. OpenAI's folders call them 124M, 355M, 774M and 1558M.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

SIZES = {"124M": "117M", "355M": "345M", "774M": "762M", "1558M": "1542M"}  # folder: name in the paper


class Row(NamedTuple):
    """A row of the table: a dataset and a figure, with the paper's value for each size.

    `variant` is "" where a task has only one dataset. `files` gives the published names of the data, and the protocol
    for each; the first that a folder holds is taken.
    """

    label: str
    task: str
    variant: str
    figure: str
    files: dict[str, str]
    values: tuple[float, float, float, float]


LAMBADA = {"lambada_test.jsonl": "stop-words", "lambada_test_plain_text.txt": "plain"}
CBT_CN = {"cbtest_CN_valid_2000ex.txt": "paper", "cbtest_CN_test_2500ex.txt": "paper"}
CBT_NE = {"cbtest_NE_valid_2000ex.txt": "paper", "cbtest_NE_test_2500ex.txt": "paper"}
WIKITEXT_2 = {"wikitext-2/wiki.test.tokens": "paper", "wikitext-2-raw/wiki.test.raw": "paper"}
WIKITEXT_103 = {"wikitext-103/wiki.test.tokens": "paper", "wikitext-103-raw/wiki.test.raw": "paper"}

ROWS = [
    Row("LAMBADA, PPL", "lambada", "", "perplexity", LAMBADA, (35.13, 15.60, 10.87, 8.63)),
    Row("LAMBADA, %", "lambada", "", "accuracy", LAMBADA, (45.99, 55.48, 60.12, 63.24)),
    Row("CBT-CN, %", "cbt", "CN", "accuracy", CBT_CN, (87.65, 92.35, 93.45, 93.30)),
    Row("CBT-NE, %", "cbt", "NE", "accuracy", CBT_NE, (83.4, 87.1, 88.0, 89.05)),
    Row("WikiText-2, PPL", "wikitext", "2", "perplexity", WIKITEXT_2, (29.41, 22.76, 19.93, 18.34)),
    Row("PTB, PPL", "ptb", "", "perplexity", {"ptb.test.txt": "paper"}, (65.85, 47.33, 40.31, 35.76)),
    Row("enwik8, BPB", "enwik8", "", "bits per byte", {"enwik8": "paper"}, (1.16, 1.01, 0.97, 0.93)),
    Row("text8, BPC", "text8", "", "bits per character", {"text8": "paper"}, (1.17, 1.06, 1.02, 0.98)),
    Row("WikiText-103, PPL", "wikitext", "103", "perplexity", WIKITEXT_103, (37.50, 26.37, 22.05, 17.48)),
    Row(
        "1BW, PPL", "1bw", "", "perplexity", {"news.en.heldout-00000-of-00050": "paper"}, (75.20, 55.72, 44.575, 42.16)
    ),
]

# The variants of a task, and the pattern in the names of their files and folders.
VARIANTS = {"cbt": {"CN": "_cn_", "NE": "_ne_"}, "wikitext": {"2": r"wikitext-2\b", "103": r"wikitext-103\b"}}


def variant_of(task: str, data: Path) -> str:
    """Return the variant that the name of a data file shows, or else that of its folder; "" if neither does.

    >>> variant_of("wikitext", Path("data/wikitext-103-raw/wiki.test.raw"))
    '103'
    """
    places = (data.name.lower(), data.absolute().parent.name.lower())
    patterns = VARIANTS.get(task, {}).items()
    return next((name for place in places for name, pattern in patterns if re.search(pattern, place)), "")


def published(model: str, task: str, variant: str) -> dict[str, float]:
    """Return the paper's figures by name for one of OpenAI's models; {} if it has none for this task or model."""
    if model not in SIZES:
        return {}
    column = list(SIZES).index(model)
    return {row.figure: row.values[column] for row in ROWS if (row.task, row.variant) == (task, variant)}


def find(folder: Path, row: Row) -> tuple[Path, str] | None:
    """Return the data file for a row in a folder and the protocol for it, or None if the folder has none."""
    found = [(folder / name, protocol) for name, protocol in row.files.items() if (folder / name).is_file()]
    return found[0] if found else None


def ours(value: float | None) -> str:
    """Return a figure of ours, in seven characters below 1e100, or "-" for none.

    >>> ours(35.128), ours(123456.7), ours(None)
    ('35.13', '1.2e+05', '-')
    """
    if value is None:
        return "-"
    return f"{value:.2f}" if value < 9999.995 else f"{value:.1e}"


def theirs(value: float | None) -> str:
    """Return a figure of the paper, which has two decimals or three, or "-" for none."""
    return "-" if value is None else f"{value:.3f}".removesuffix("0")


def heading(models: Sequence[str], in_markdown: bool = False) -> str:
    """Return the first line of the table: the paper's names of the sizes, then ours of the models."""
    names = [name if len(name) <= 7 else name[:6] + "…" for name in models]
    if in_markdown:
        return markdown_heading(["dataset", *(f"paper, {size}" for size in SIZES.values()), *models])
    return line("dataset", list(SIZES.values()), names)


def line(label: str, left: Sequence[str], right: Sequence[str], in_markdown: bool = False) -> str:
    """Return a line of the table: the four columns of the paper, then ours. With four of ours it has 77 characters."""
    if in_markdown:
        return markdown([label, *left, *right])
    return f"{label:17}" + "".join(f"{text:>7}" for text in left) + "".join(f"{text:>8}" for text in right)


def markdown(cells: Sequence[str]) -> str:
    """Return a row of a table in Markdown.

    >>> markdown(["PTB, PPL", "65.85"])
    '| PTB, PPL | 65.85 |'
    """
    return f"| {' | '.join(cell.strip() for cell in cells)} |"


def markdown_heading(cells: Sequence[str]) -> str:
    """Return the heading of a table in Markdown whose columns, but for the first, have numbers."""
    return markdown(cells) + "\n|---" + "|---:" * (len(cells) - 1) + "|"
