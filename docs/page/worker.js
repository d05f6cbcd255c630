// Runs Python beside the page, in a web worker, so that the page can answer while the model computes.
//
// The worker loads Pyodide, the repository's files and a model, and tells the page when it is ready. The page then
// sends what a visitor asks for (see `answers` below), and the worker posts messages to it, whose `type` is a function
// of page.js: one for each token of a text.

import { PAGE, REPOSITORY, browserFetch, downloadAll, downloadModel, runtimeFolders } from "./loading.js";
import { CORE, LOCK, VERSION, WHEELS } from "./runtime.js";

const SOURCES = [
  "gpt2.py", "encoder.py", "utils.py",
  "picogpt/__init__.py", "picogpt/command_line.py", "picogpt/files.py", "picogpt/notebook.py", "picogpt/options.py",
  "picogpt/probabilities.py", "picogpt/terminal_text.py",
  "picogpt/explain/__init__.py", "picogpt/explain/numbers.py", "picogpt/explain/text.py", "picogpt/explain/page.py",
  "picogpt/explain/page.html", "picogpt/explain/page.css", "picogpt/explain/page.js",
  "picogpt/tracing/__init__.py", "picogpt/tracing/names.py", "picogpt/tracing/recorder.py",
  "picogpt/tracing/replacing.py",
  "picogpt/checkpoints/__init__.py", "picogpt/checkpoints/foreign.py", "picogpt/checkpoints/safetensors.py",
  "picogpt/checkpoints/tokenizer.py",  // the last three open Hugging Face's folders
];
const GLUE = ["page/glue.py", "page/tqdm.py"];
const TYPES = { mjs: "text/javascript", wasm: "application/wasm" };
const FOLDER = "/picogpt/";
let pyodide, glue, writer;
let current = 0;  // the run that goes on; 0 if none does
let nOpened = 0;

// ----------------------------------------------------------------------------------------------------------- the model

// Let Python map files that the browser keeps outside of Python's memory: read them into it once, in pieces.
function addMmap({ stream_ops }) {
  stream_ops.mmap = (stream, length, position) => {
    const size = 65536 * Math.ceil(length / 65536), piece = 1 << 26;
    const ptr = pyodide._module._emscripten_builtin_memalign(65536, size);
    if (!ptr) throw new pyodide.FS.ErrnoError(48);  // no memory
    for (let at = 0; at < length; at += piece) {
      stream_ops.read(stream, pyodide._module.HEAPU8, ptr + at, Math.min(piece, length - at), position + at);
    }
    return { ptr, allocated: true };
  };
}

// Open a model: {name, files}, where files is a list of {name, data} with a blob or a visitor's file as data. The old
// model goes on if the new one can't be opened.
function openModel({ name, files }) {
  const { FS } = pyodide, folder = `/models/${nOpened += 1}/${name}`;
  FS.mkdirTree(folder);
  FS.mount(FS.filesystems.WORKERFS, { blobs: files }, folder);
  const opened = glue.load(folder);
  writer?.destroy();
  writer = opened;
  postMessage({ type: "opened", ...JSON.parse(writer.about()) });
}

// -------------------------------------------------------------------------------------------------------------- Python

const javascriptModule = (body) => import(URL.createObjectURL(new Blob([body], { type: TYPES.mjs })));

// Tell the page which of three steps begins. Nobody knows how long one takes, but the page counts the seconds.
const starting = (step, what) => postMessage({ type: "starting", step, of: 3, what });

// Start Python from files that are downloaded already. While it starts, it can fetch these and no others.
async function startPython(files, core, wheels) {
  self.fetch = async (address) => {
    const body = files.get(String(address));
    if (!body) throw new Error(`${address} is not pinned in runtime.js`);
    const type = TYPES[String(address).split(".").pop()] ?? "application/zip";
    return new Response(body, { headers: { "Content-Type": type } });
  };
  starting(1, "Python");
  const { loadPyodide } = await javascriptModule(files.get(`${core}pyodide.mjs`));
  const createPyodideModule = (await javascriptModule(files.get(`${core}pyodide.asm.mjs`))).default;
  const stderr = (text) => postMessage({ type: "note", text });
  pyodide = await loadPyodide({
    indexURL: core, packageBaseUrl: wheels, lockFileContents: LOCK, createPyodideModule, stderr,
  });
  starting(2, "NumPy");
  await pyodide.loadPackage(Object.keys(WHEELS).map((name) => wheels + name), { messageCallback: () => {} });
  self.fetch = browserFetch;
}

// Write the repository's files into Python's file system, at the same places in a folder.
async function importGlue(files) {
  const write = async (path, url) => {
    pyodide.FS.mkdirTree(FOLDER + path.split("/").slice(0, -1).join("/"));
    pyodide.FS.writeFile(FOLDER + path, new Uint8Array(await files.get(url).arrayBuffer()));
  };
  for (const path of SOURCES) await write(path, new URL(path, REPOSITORY).href);
  for (const path of GLUE) await write(path.split("/").pop(), new URL(path, PAGE).href);
  pyodide.pyimport("sys").path.insert(0, FOLDER);
  glue = pyodide.pyimport("glue");
  pyodide.pyimport("tqdm").tqdm.report = (text) => postMessage({ type: "working", text });
  addMmap(pyodide.FS.filesystems.WORKERFS);
}

// Return one line for an error. The last line of Python's traceback has its type and its message.
function oneLine(error) {
  const line = String(error.message ?? error).trim().split("\n").pop().replace(/\/models\/\d+\//g, "");
  if (/^MemoryError|Cannot allocate memory/.test(line)) return "The browser has no memory left for this model.";
  return error.type ? line.replace(/^([\w.]+\.)?(UsageError|\w+Error): (\[Errno \d+\] )?/, "") : line;
}

async function start() {
  if (typeof WebAssembly !== "object") {
    throw new Error("Python can't run here: this browser has no WebAssembly, or it is switched off.");
  }
  const [core, wheels] = runtimeFolders();
  const name = new URLSearchParams(location.search).get("model") ?? "tiny";
  const [folder, files] = await Promise.all([downloadModel(name), downloadAll([
    ...Object.entries(CORE).map(([name, sha256]) => [core + name, sha256]),
    ...Object.entries(WHEELS).map(([name, sha256]) => [wheels + name, sha256]),
    ...SOURCES.map((path) => [new URL(path, REPOSITORY).href]),
    ...GLUE.map((path) => [new URL(path, PAGE).href]),
  ])]);
  await startPython(files, core, wheels);
  starting(3, "the model");
  await importGlue(files);
  openModel(folder);
  const python = pyodide.pyimport("platform").python_version(), numpy = pyodide.pyimport("numpy").__version__;
  postMessage({ type: "ready", python, numpy, version: VERSION });
}

// ---------------------------------------------------------------------------------------------- what the page asks for

// Generate a text, and look for messages of the page after each token.
async function generate(run, settings) {
  let steps;
  try {
    steps = writer.steps(JSON.stringify(settings));
    for (const step of steps) {
      postMessage({ type: "step", run, ...JSON.parse(step) });
      await new Promise((resolve) => { setTimeout(resolve); });
      if (current !== run) break;
    }
    postMessage({ type: "end", run, stopped: current !== run });
  } catch (error) {
    postMessage({ type: "end", run, error: oneLine(error) });
  } finally {
    steps?.destroy();
  }
}

const answers = {
  run({ run, settings }) {
    current = run;
    generate(run, settings);
  },
  stop() { current = 0; },
  count({ prompt }) { postMessage({ type: "counted", prompt, ...JSON.parse(writer.room(prompt)) }); },
  redraw({ run, settings }) {
    postMessage({ type: "redrawn", run, drawn: JSON.parse(writer.redraw(JSON.stringify(settings))) });
  },
  inside({ prompt, ids }) { postMessage({ type: "inside", html: writer.inside(prompt, JSON.stringify(ids)) }); },
  open(folder) {
    current = 0;
    openModel(folder);
  },
};

self.addEventListener("message", ({ data }) => {
  try {
    answers[data.type](data);
  } catch (error) {
    postMessage({ type: "refused", what: data.type, error: oneLine(error) });
  }
});

start().catch((error) => postMessage({ type: "failed", error: oneLine(error) }));
