// Downloads files for worker.js: those of the runtime, which are pinned, those of the repository, and a model's.

import { BYTES, CORE_URL, VERSION, WHEELS_URL } from "./runtime.js";

export const PAGE = new URL("../", import.meta.url);
export const REPOSITORY = new URL("../../", import.meta.url);
export const browserFetch = self.fetch.bind(self);
const MODEL = [
  "model.ckpt.data-00000-of-00001", "checkpoint", "encoder.json", "hparams.json", "model.ckpt.index", "vocab.bpe",
];
const HUGGING_FACE = ["tokenizer.json", "vocab.json", "merges.txt", "tokenizer_config.json", "added_tokens.json"];

// Return the folders of the runtime: those of the network, or the one that the page's address asks for by ?runtime=.
// Only this server may have it, since its programs run with the rights of this page.
export function runtimeFolders() {
  const asked = new URLSearchParams(location.search).get("runtime");
  if (asked === null) return [CORE_URL, WHEELS_URL];
  const folder = new URL(asked.replace(/\/*$/, "/"), PAGE);
  if (folder.origin !== location.origin) {
    throw new Error(`?runtime= names another server, ${folder.host}. `
      + `Copy the files of Pyodide ${VERSION} to a folder of this one.`);
  }
  return [folder.href, folder.href];
}

// Counts the bytes of all downloads, and tells the page about them at most every 100 ms. `total` grows with each answer
// of a server that gives the length of a file.
const progress = {
  total: BYTES, loaded: 0, last: 0,
  add(n, nTotal) {
    this.loaded += n;
    this.total = Math.max(this.total + nTotal, this.loaded);
    if (performance.now() - this.last < 100 && this.loaded < this.total) return;
    this.last = performance.now();
    postMessage({ type: "progress", loaded: this.loaded, total: this.total });
  },
};

// Return the body of an answer, and report its bytes as they come. Those of the runtime are in `total` from the start.
async function receive(response, isPinned) {
  const isUnknown = isPinned || response.headers.has("Content-Encoding");  // the length is that of the packed bytes
  const length = isUnknown ? 0 : Number(response.headers.get("Content-Length"));
  progress.add(0, length);
  const chunks = [], reader = response.body.getReader();
  for (let step = await reader.read(); !step.done; step = await reader.read()) {
    chunks.push(step.value);
    progress.add(step.value.length, isPinned || length ? 0 : step.value.length);
  }
  return new Blob(chunks);
}

// Raise an error unless the browser finds that a blob has this sha256. It does so for files on their way to a page,
// also for those that come out of its memory.
async function check(blob, sha256) {
  const bytes = sha256.match(/../g).map((pair) => parseInt(pair, 16)), url = URL.createObjectURL(blob);
  try {
    await (await browserFetch(url, { integrity: `sha256-${btoa(String.fromCharCode(...bytes))}` })).blob();
  } finally {
    URL.revokeObjectURL(url);
  }
}

// Download a file as a blob. With a sha256, other bytes are refused. A file that may be missing gives null.
async function download(url, sha256, mayBeMissing = false) {
  const options = sha256 ? {} : { cache: "no-cache" };  // ask whether our own files have changed
  let response, blob;
  try {
    response = await browserFetch(url, options);
    if (response.ok) blob = await receive(response, Boolean(sha256));
    if (blob && sha256) await check(blob, sha256);
    else if (sha256) throw new Error();
  } catch {
    throw new Error(sha256
      ? `Python can't be loaded: ${url} can't be reached, or is not the file of Pyodide ${VERSION}. `
        + "Try again later, or take it from a folder: docs/page.md says how."
      : `${url} can't be reached.`);
  }
  if (response.status === 404 && mayBeMissing) return null;
  if (!response.ok) {
    throw new Error(`${url} can't be loaded: the server answers ${response.status}. `
      + "It has to serve the whole repository, not only docs/.");
  }
  return blob;
}

// Download files side by side, from a list of pairs [address, sha256].
export async function downloadAll(files) {
  return new Map(await Promise.all(files.map(async ([url, sha256]) => [url, await download(url, sha256)])));
}

// Download models/NAME, in OpenAI's layout or in Hugging Face's. Return {name, files}, as a visitor's folder is sent.
export async function downloadModel(name) {
  if (!/^[\w.-]+$/.test(name) || /^\.+$/.test(name)) {
    throw new Error(`?model= is no name of a folder in models/: ${name}`);
  }
  const folder = new URL(`models/${name}/`, REPOSITORY).href;
  const get = async (file, mayBeMissing) => ({ name: file, data: await download(folder + file, null, mayBeMissing) });
  const all = async (names, mayBeMissing) => (await Promise.all(names.map((file) => get(file, mayBeMissing))))
    .filter(({ data }) => data);
  if (name === "tiny") return { name, files: await all(MODEL) };
  const hparams = await get("hparams.json", true);
  if (hparams.data) {
    const checkpoint = await get("checkpoint", true);
    const [, prefix] = /^model_checkpoint_path: *"(?:.*[/\\])?([^"/\\]+)"/m.exec(await checkpoint.data?.text()) ?? [];
    const weights = [`${prefix ?? "model.ckpt"}.index`, `${prefix ?? "model.ckpt"}.data-00000-of-00001`];
    const files = await all(["encoder.json", "vocab.bpe", ...weights]);
    return { name, files: [hparams, checkpoint, ...files].filter(({ data }) => data) };
  }
  const [config] = await all(["config.json"], true);
  if (!config) throw new Error(`There is no model ${name}: ${folder} has neither hparams.json nor config.json.`);
  const index = await get("model.safetensors.index.json", true);
  const shards = index.data ? Object.values(JSON.parse(await index.data.text()).weight_map) : ["model.safetensors"];
  const files = [config, index, ...await all(HUGGING_FACE, true), ...await all([...new Set(shards)])];
  return { name, files: files.filter(({ data }) => data) };
}
