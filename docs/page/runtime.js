// Which Python the page runs: Pyodide, which is CPython compiled to WebAssembly, with its builds of NumPy and regex.
// Each file is pinned by its sha256, wherever it comes from. CORE lists files of the npm package pyodide. The sha256 of
// the wheels stand in the pyodide-lock.json of that package. docs/page.md says how to change the version. BYTES is the
// size of all these files together.

export const VERSION = "314.0.3";
export const LOCK = { info: { abi_version: "2026_0", arch: "wasm32", platform: "emscripten_5_0_3" }, packages: {} };
export const CORE_URL = `https://cdn.jsdelivr.net/npm/pyodide@${VERSION}/`;
export const WHEELS_URL = `https://cdn.jsdelivr.net/pyodide/v${VERSION}/full/`;

export const CORE = {
  "pyodide.mjs": "5cfc46f5dcbaf2a16f26e2363f441873eb424762609cc03db00d6a2ace4d00e5",
  "pyodide.asm.mjs": "1a9775427ef6e8abaa7db88ece0515422d1886915ae5c9093776410c865dfd8d",
  "pyodide.asm.wasm": "e7f8fac36f8bf11085309cbc5c829b3ec3057c18bf1d73b05a6741612d63cdbf",
  "python_stdlib.zip": "444c770dfd75a32097fc0a7d5c1413fd3140601f49c3a1f2e9af0376fcd124b4",
};
export const WHEELS = {
  "numpy-2.4.3-cp314-cp314-pyemscripten_2026_0_wasm32.whl":
    "0cad9c1b91f0082e4f959bc0e0bf5835a2efbba6ab3b1e9d1fe6e7e564cca98e",
  "regex-2026.3.32-cp314-cp314-pyemscripten_2026_0_wasm32.whl":
    "116203af92638f05a67791cc5a217f860bfab7f6635a41cb6dce08e2691ae6bc",
};
export const BYTES = 16528199;
