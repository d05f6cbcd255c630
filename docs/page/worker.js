// Runs Python beside the page, in a web worker, so that the page can answer while the model computes.
//
// The worker loads Pyodide and the repository's files, and tells the page when it is ready. The page sends
// {run, settings} to begin a text, and {run: 0} to stop it. The worker answers with one message for each token.

import { CORE, CORE_URL, LOCK, VERSION, WHEELS, WHEELS_URL } from "./runtime.js";

const PAGE = new URL("../", import.meta.url);
const REPOSITORY = new URL("../../", import.meta.url);
const SOURCES = [
  "gpt2.py", "encoder.py", "utils.py",
  "picogpt/__init__.py", "picogpt/batch.py", "picogpt/command_line.py", "picogpt/continuation.py", "picogpt/files.py",
  "picogpt/generate.py", "picogpt/options.py",
  "picogpt/explain/__init__.py", "picogpt/explain/text.py", "picogpt/terminal_text.py",  // how a token is shown
];
const MODEL = [
  "checkpoint", "encoder.json", "hparams.json", "model.ckpt.data-00000-of-00001", "model.ckpt.index", "vocab.bpe",
].map((name) => `models/tiny/${name}`);
const TYPES = { mjs: "text/javascript", wasm: "application/wasm" };
const browserFetch = self.fetch.bind(self);
let pyodide, glue, model;
let current = 0;  // the run that goes on; 0 if none does

// ------------------------------------------------------------------------------------------------------ loading files

// Return the folders of the runtime: those of the network, or the one that the page's address asks for by ?runtime=.
// Only this server may have it, since its programs run with the rights of this page.
function runtimeFolders() {
  const asked = new URLSearchParams(location.search).get("runtime");
  if (asked === null) return [CORE_URL, WHEELS_URL];
  const folder = new URL(asked.replace(/\/*$/, "/"), PAGE);
  if (folder.origin !== location.origin) {
    throw new Error(`?runtime= names another server, ${folder.host}. `
      + `Copy the files of Pyodide ${VERSION} to a folder of this one.`);
  }
  return [folder.href, folder.href];
}

function integrity(sha256) {
  const bytes = sha256.match(/../g).map((pair) => parseInt(pair, 16));
  return `sha256-${btoa(String.fromCharCode(...bytes))}`;
}

// Download a file. With a sha256, the browser refuses other bytes, and does not say whether they or the network failed.
async function download(url, sha256) {
  const options = sha256 ? { integrity: integrity(sha256) } : { cache: "no-cache" };  // ask whether our files changed
  let response, body;
  try {
    response = await browserFetch(url, options);
    body = await response.arrayBuffer();
  } catch {
    throw new Error(sha256
      ? `Python can't be loaded: ${url} can't be reached, or is not the file of Pyodide ${VERSION}. `
        + "Try again later, or take it from a folder: docs/page.md says how."
      : `${url} can't be reached.`);
  }
  if (!response.ok) {
    throw new Error(`${url} can't be loaded: the server answers ${response.status}. `
      + "It has to serve the whole repository, not only docs/.");
  }
  return body;
}

// Download files side by side, from a list of pairs [address, sha256], and tell the page which of them are missing.
async function downloadAll(files) {
  const missing = new Set(files.map(([url]) => url));
  const names = () => [...missing].map((url) => url.split("/").pop());
  const report = () => postMessage({ type: "progress", total: files.length, missing: names() });
  report();
  return new Map(await Promise.all(files.map(async ([url, sha256]) => {
    const body = await download(url, sha256);
    missing.delete(url);
    report();
    return [url, body];
  })));
}

// ------------------------------------------------------------------------------------------------------------- Python

const javascriptModule = (body) => import(URL.createObjectURL(new Blob([body], { type: TYPES.mjs })));

// Start Python from files that are downloaded already. While it starts, it can fetch these and no others.
async function startPython(files, core, wheels) {
  self.fetch = async (address) => {
    const body = files.get(String(address));
    if (!body) throw new Error(`${address} is not pinned in runtime.js`);
    const type = TYPES[String(address).split(".").pop()] ?? "application/zip";
    return new Response(body, { headers: { "Content-Type": type } });
  };
  const { loadPyodide } = await javascriptModule(files.get(`${core}pyodide.mjs`));
  const createPyodideModule = (await javascriptModule(files.get(`${core}pyodide.asm.mjs`))).default;
  const stderr = (text) => postMessage({ type: "note", text });
  pyodide = await loadPyodide({
    indexURL: core, packageBaseUrl: wheels, lockFileContents: LOCK, createPyodideModule, stderr,
  });
  await pyodide.loadPackage(Object.keys(WHEELS).map((name) => wheels + name), { messageCallback: () => {} });
  self.fetch = browserFetch;
}

// Write the repository's files into Python's file system, at the same places in a folder, and open the model.
function openModel(files) {
  const folder = "/picogpt/";
  for (const path of [...SOURCES, ...MODEL]) {
    pyodide.FS.mkdirTree(folder + path.split("/").slice(0, -1).join("/"));
    pyodide.FS.writeFile(folder + path, new Uint8Array(files.get(new URL(path, REPOSITORY).href)));
  }
  pyodide.FS.writeFile(`${folder}glue.py`, new Uint8Array(files.get(new URL("page/glue.py", PAGE).href)));
  pyodide.pyimport("sys").path.insert(0, folder);
  glue = pyodide.pyimport("glue");
  model = glue.load();
}

// Return one line for an error. The last line of Python's traceback has its type and its message.
function oneLine(error) {
  const line = String(error.message ?? error).trim().split("\n").pop();
  return error.type ? line.replace(/^([\w.]+\.)?(UsageError|ValueError): /, "") : line;
}

async function start() {
  if (typeof WebAssembly !== "object") {
    throw new Error("Python can't run here: this browser has no WebAssembly, or it is switched off.");
  }
  const [core, wheels] = runtimeFolders();
  const files = await downloadAll([
    ...Object.entries(CORE).map(([name, sha256]) => [core + name, sha256]),
    ...Object.entries(WHEELS).map(([name, sha256]) => [wheels + name, sha256]),
    ...[...SOURCES, ...MODEL].map((path) => [new URL(path, REPOSITORY).href]),
    [new URL("page/glue.py", PAGE).href],
  ]);
  postMessage({ type: "starting" });
  await startPython(files, core, wheels);
  openModel(files);
  const python = pyodide.pyimport("platform").python_version(), numpy = pyodide.pyimport("numpy").__version__;
  postMessage({ type: "ready", python, numpy, version: VERSION });
}

// ---------------------------------------------------------------------------------------------------------- generating

// Generate a text, and look for messages of the page after each token.
async function generate(run, settings) {
  const steps = glue.steps(model, JSON.stringify(settings));
  try {
    for (const step of steps) {
      postMessage({ type: "step", run, ...JSON.parse(step) });
      await new Promise((resolve) => { setTimeout(resolve); });
      if (current !== run) break;
    }
    postMessage({ type: "end", run, stopped: current !== run });
  } catch (error) {
    postMessage({ type: "end", run, error: oneLine(error) });
  } finally {
    steps.destroy();
  }
}

self.addEventListener("message", ({ data }) => {
  current = data.run;
  if (data.settings) generate(data.run, data.settings);
});

start().catch((error) => postMessage({ type: "failed", error: oneLine(error) }));
