"""Write the parts of docs/index.html that are computed: python docs/build_page.py

These are docs/page/first.json, the text that a visitor sees while Python loads, and the hashes in the page's
Content-Security-Policy, which let it open the page of `explain`, and no other script. With --preview and the folder of
Pyodide, the picture docs/page/preview.png is made, too, by Chromium (see docs/page.md).
"""

from __future__ import annotations

import argparse
import base64
import hashlib
import importlib.util
import json
import re
import sys
from pathlib import Path
from typing import Any

DOCS = Path(__file__).parent
FIRST, PREVIEW, INDEX = DOCS / "page" / "first.json", DOCS / "page" / "preview.png", DOCS / "index.html"
sys.path.insert(0, str(DOCS.parent))

DEFAULTS = {"prompt": "ROMEO:", "n_tokens": 44, "temperature": 0.8, "top_k": 0, "top_p": 1, "seed": 1, "kept": []}


def writer() -> Any:
    """Open models/tiny with page/glue.py, whose folder is no place to import from: its tqdm.py is for the browser."""
    spec = importlib.util.spec_from_file_location("glue", DOCS / "page" / "glue.py")
    assert spec
    assert spec.loader
    glue = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(glue)
    return glue.load(str(DOCS.parent / "models" / "tiny"))


def rounded(value: Any) -> Any:
    """Round the probabilities in a step to seven digits, as many as float32 has."""
    if isinstance(value, float):
        return float(f"{value:.7g}")
    if isinstance(value, dict):
        return {name: rounded(part) for name, part in value.items()}
    return [rounded(part) for part in value] if isinstance(value, list) else value


def first(tiny: Any) -> str:
    """Return first.json: what the page's worker sends for the default settings, one message in a line."""
    steps = [json.dumps(rounded(json.loads(step)), ensure_ascii=False) for step in tiny.steps(json.dumps(DEFAULTS))]
    return "[\n" + ",\n".join(steps) + "\n]\n"


def hashes(tiny: Any) -> dict[str, str]:
    """Return the hashes of the style and the script of the pages that `explain` makes."""
    page = tiny.inside("ROMEO:", "[]")
    parts = {name: re.findall(f"<{name}>(.*?)</{name}>", page, re.DOTALL) for name in ("style", "script")}
    assert all(len(found) == 1 for found in parts.values())
    digests = {name: hashlib.sha256(found[0].encode()).digest() for name, found in parts.items()}
    return {name: f"'sha256-{base64.b64encode(digest).decode()}'" for name, digest in digests.items()}


def with_hashes(index: str, tiny: Any) -> str:
    """Return index.html with these hashes in its Content-Security-Policy."""
    for name, value in hashes(tiny).items():
        index = re.sub(rf"({name}-src 'self') 'sha256-[^']*'", rf"\1 {value}", index)
    return index


def preview(runtime: Path) -> bytes:
    """Return a picture of the page, 1200 x 630, as the networks show it where somebody shares the address."""
    import io
    import threading
    from http.server import ThreadingHTTPServer

    from PIL import Image

    sys.path.insert(0, str(DOCS.parent / "tests"))
    from browser import start_chromium  # type: ignore[import-not-found]
    from page.conftest import Server  # type: ignore[import-not-found]
    from selenium.webdriver.support.ui import WebDriverWait

    server: ThreadingHTTPServer = Server({"/runtime/": runtime, "/picogpt/": DOCS.parent})
    threading.Thread(target=server.serve_forever, daemon=True).start()
    driver = start_chromium()
    try:
        size = {"width": 1440, "height": 756, "deviceScaleFactor": 1200 / 1440, "mobile": False}
        driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
        driver.get(f"http://127.0.0.1:{server.server_port}/picogpt/docs/?runtime=../../runtime")
        is_ready = "return document.getElementById('status').textContent.startsWith('Ready. ')"
        WebDriverWait(driver, 120).until(lambda driver: driver.execute_script(is_ready))
        picture, file = Image.open(io.BytesIO(driver.get_screenshot_as_png())), io.BytesIO()
        picture.convert("RGB").quantize(64).save(file, "PNG", optimize=True)
        return file.getvalue()
    finally:
        driver.quit()
        server.shutdown()


def main(argv: list[str] | None = None) -> None:
    """Write the files."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--preview", type=Path, metavar="FOLDER", help="make the picture, with Pyodide in this folder")
    args = parser.parse_args(argv)
    tiny = writer()
    FIRST.write_text(first(tiny), encoding="utf-8")
    INDEX.write_text(with_hashes(INDEX.read_text(encoding="utf-8"), tiny), encoding="utf-8")
    if args.preview:
        PREVIEW.write_bytes(preview(args.preview.absolute()))


if __name__ == "__main__":
    main()
