"""Build docs/walkthrough.md, its pictures and docs/walkthrough.ipynb from docs/walkthrough.py.

    python docs/build_walkthrough.py

jupytext turns the source into a notebook, and nbclient runs it. The Markdown and the pictures are written from what the
cells displayed. In a cell with the tag `quote`, which imports functions of the repository, their source takes the place
of the imports. A cell with the tag `remove-input` shows its output only, and its code is folded in the notebook. One
with the tag `remove-cell` appears in neither. If a cell fails or warns, nothing is written.
"""

from __future__ import annotations

import ast
import base64
import importlib
import inspect
import os
import sys
import tempfile
from pathlib import Path
from typing import Any

DOCS = Path(__file__).resolve().parent
sys.path.insert(0, str(DOCS.parent))

from picogpt.files import new_file

SOURCE = DOCS / "walkthrough.py"
NOTICE = "<!-- Built from walkthrough.py by `python docs/build_walkthrough.py`. Change that file, not this one. -->"
KERNEL = {"display_name": "Python 3", "language": "python", "name": "python3"}


def read_source() -> Any:
    """Return the source as a notebook that was not run, without anything that differs from one run to the next."""
    import jupytext

    notebook = jupytext.read(SOURCE, fmt="py:percent")
    notebook.metadata = {"kernelspec": KERNEL, "language_info": {"name": "python"}}
    for i, cell in enumerate(notebook.cells):
        cell.id = f"cell-{i}"
        cell.metadata = {name: value for name, value in cell.metadata.items() if name in ("name", "tags")}
        if has_tag(cell, "quote"):
            cell.source = quoted(cell.source)
        if has_tag(cell, "remove-input"):
            cell.metadata["jupyter"] = {"source_hidden": True}
    return notebook


def quoted(imports: str) -> str:
    """Return the source of what a cell imports: functions and classes, in the order in which they are defined.

    Raises TypeError if the cell holds anything else.
    """
    found = []
    for node in ast.parse(imports).body:
        if not isinstance(node, ast.ImportFrom) or node.module is None:
            raise TypeError(f"a cell with the tag quote holds imports only, not {ast.unparse(node)}")
        module = importlib.import_module(node.module)
        found += [inspect.getsourcelines(getattr(module, name.name)) for name in node.names]
    return "\n\n".join("".join(lines) for lines, _ in sorted(found, key=lambda lines: lines[1])).rstrip()


def execute(notebook: Any, folder: Path = DOCS) -> None:
    """Run the cells in a new kernel that starts in the folder, and keep what they display. Raises CellExecutionError.

    The kernel does not read the settings of the user's IPython.
    """
    from nbclient import NotebookClient

    client = NotebookClient(
        notebook,
        timeout=300,
        record_timing=False,
        coalesce_streams=True,
        extra_arguments=["--log-level=ERROR"],
        resources={"metadata": {"path": folder}},
    )
    with tempfile.TemporaryDirectory() as settings:
        client.execute(env=os.environ | {"IPYTHONDIR": settings, "MPLBACKEND": "agg"})
    notebook.metadata["language_info"] = {"name": "python"}  # without the version of this Python


def has_tag(cell: Any, tag: str) -> bool:
    return tag in cell.metadata.get("tags", [])


def clean(notebook: Any) -> None:
    """Drop the cells that are only checks, and number the others as if they had been run alone."""
    notebook.cells = [cell for cell in notebook.cells if not has_tag(cell, "remove-cell")]
    for count, cell in enumerate((cell for cell in notebook.cells if cell.cell_type == "code"), 1):
        cell.execution_count = count


def pictures_of(notebook: Any) -> dict[str, bytes]:
    """Return the pictures of an executed notebook, by the names of their cells."""
    return {
        cell.metadata["name"]: base64.b64decode(output.data["image/png"])
        for cell in notebook.cells
        for output in cell.get("outputs", [])
        if "image/png" in output.get("data", {})
    }


def shown(output: Any, cell: Any) -> str:
    """Return an output of a cell as Markdown. Raises ValueError for a warning, and for what has no form here."""
    if output.get("name") == "stdout":
        return f"```text\n{output.text.rstrip()}\n```"
    data = output.get("data", {})
    if "image/png" in data:
        return f"![{output.metadata['image/png']['alt']}](walkthrough/{cell.metadata['name']}.png)"
    if "text/markdown" in data:
        return str(data["text/markdown"])
    raise ValueError(f"a cell displayed what the Markdown can't show: {output}")


def markdown(notebook: Any) -> str:
    """Return an executed notebook as Markdown."""
    parts = [NOTICE]
    for cell in notebook.cells:
        if cell.cell_type == "markdown":
            parts.append(cell.source)
            continue
        if not has_tag(cell, "remove-input"):
            parts.append(f"```python\n{cell.source}\n```")
        parts += [shown(output, cell) for output in cell.outputs]
    return "\n\n".join(parts) + "\n"


def build(folder: Path) -> None:
    """Write walkthrough.md, walkthrough.ipynb and walkthrough/*.png into the folder."""
    import nbformat

    notebook = read_source()
    execute(notebook)
    clean(notebook)
    files = {"walkthrough.md": markdown(notebook).encode(), "walkthrough.ipynb": nbformat.writes(notebook).encode()}
    files |= {f"walkthrough/{name}.png": data for name, data in pictures_of(notebook).items()}
    (folder / "walkthrough").mkdir(exist_ok=True)
    for name, data in files.items():
        with new_file(folder / name, replace=True) as file:
            file.write(data)


if __name__ == "__main__":
    build(DOCS)
