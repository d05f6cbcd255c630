"""What the tests of docs/index.html have in common: where the page takes its runtime from, and its Python files."""

import importlib.util
from pathlib import Path
from typing import Any

CDN = "cdn.jsdelivr.net"
VERSION = "314.0.3"
DOCS = Path(__file__).parents[2] / "docs"


def load_script(path: str) -> Any:
    """Return a Python file of docs/ as a module. Its folder is no place to import from: tqdm.py is for the browser."""
    spec = importlib.util.spec_from_file_location(Path(path).stem, DOCS / path)
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
