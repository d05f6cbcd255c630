"""The three files stay as small as the README says, and code stays narrow enough to be read where it is quoted."""

from __future__ import annotations

import ast
import re

import pytest
from helpers import ROOT

SOURCE = (ROOT / "gpt2.py").read_text(encoding="utf-8")


def wider(text: str, width: int) -> list[str]:
    return [line for line in text.splitlines() if len(line) > width]


@pytest.mark.parametrize(("name", "n_lines"), [("gpt2.py", 450), ("encoder.py", 200), ("utils.py", 550)])
def test_a_file_is_read_in_one_sitting(name, n_lines):
    text = (ROOT / name).read_text(encoding="utf-8")
    assert len(text.splitlines()) <= n_lines
    assert wider(text, 120) == []


def test_the_docstring_of_gpt2_is_short():
    assert len(ast.get_docstring(ast.parse(SOURCE)).splitlines()) <= 25


def test_from_gelu_to_generate_100_columns_are_enough():
    """GitHub and blogs show about this many."""
    start, end = (SOURCE.index(f"def {name}(") for name in ("gelu", "stop_before"))
    assert "\ndef generate(" in SOURCE[start:end]
    assert wider(SOURCE[start:end], 100) == []


def test_the_model_is_short():
    """Its statements are counted, since comments and docstrings cost a reader nothing that is not paid back."""
    model = ast.parse(SOURCE[SOURCE.index("def gelu(") : SOURCE.index("# ---", SOURCE.index("def gpt2("))])
    statements = [node for node in ast.walk(model) if isinstance(node, ast.stmt)]
    docstrings = [node for node in statements if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)]
    assert len(statements) - len(docstrings) <= 58


def test_no_function_is_longer_than_a_screen():
    """Without docstrings and comments behind arguments."""
    functions = [node for node in ast.walk(ast.parse(SOURCE)) if isinstance(node, ast.FunctionDef)]
    lengths = {node.name: node.end_lineno - node.body[0].lineno + 1 for node in functions}
    assert {name: n for name, n in lengths.items() if n > 25} == {}


def test_the_readme_s_code_is_not_cut_on_github():
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    assert wider("".join(re.findall(r"^```\w+\n(.*?)^```", readme, re.DOTALL | re.MULTILINE)), 88) == []


def test_the_walkthrough_s_own_code_is_not_cut_on_github():
    """The cells of its source that are shown, but not the functions that it quotes."""
    cells = re.split(r"^# %%", (ROOT / "docs" / "walkthrough.py").read_text(encoding="utf-8"), flags=re.MULTILINE)
    shown = [cell for cell in cells if not re.match(r".*(\[markdown\]|remove-)", cell)]
    assert len(shown) > 20
    assert wider("".join(shown), 88) == []
