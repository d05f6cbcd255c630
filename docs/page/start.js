// What a visitor does with the page: buttons, keys, sliders, links and folders. The last line starts it all.
"use strict";

function lookInside() {
  if (!ready || running) return;
  began = performance.now();
  quiet = true;  // it can't be stopped
  setRunning(true);
  showError("");
  $("status").textContent = "Looking inside …";
  worker.postMessage({ type: "inside", prompt: shownPrompt, ids: shownSteps.map(({ id }) => id) });
}

async function copy(text, copied, otherwise) {
  try {
    await navigator.clipboard.writeText(text);
    $("status").textContent = copied;
  } catch {
    $("status").textContent = otherwise;
  }
}

// Open a folder of a visitor's disk: files with a name and data. Only those directly in the folder count.
function openFolder(name, files) {
  if (!files.length) return;
  if (!ready) return showError("Python is still loading. Then the folder can be opened.");
  run += 1;  // no message of the old text is shown any more
  showError("");
  $("status").textContent = `Opening ${name} …`;
  worker.postMessage({ type: "open", name, files: files.map((file) => ({ name: file.name, data: file })) });
}

// Return all entries of a folder that was dropped: a browser gives them in parts.
async function filesIn(folder) {
  const reader = folder.createReader(), found = [];
  const next = () => new Promise((resolve, reject) => { reader.readEntries(resolve, reject); });
  for (let part = await next(); part.length; part = await next()) found.push(...part);
  const files = found.filter((entry) => entry.isFile);
  return Promise.all(files.map((entry) => new Promise((resolve, reject) => { entry.file(resolve, reject); })));
}

async function drop(event) {
  event.preventDefault();
  document.body.classList.remove("dropping");
  const files = [...event.dataTransfer.files];  // before the first await, after which the event forgets them
  const entries = [...event.dataTransfer.items].map((item) => item.webkitGetAsEntry());
  const folder = entries.find((entry) => entry?.isDirectory);
  if (folder) openFolder(folder.name, await filesIn(folder));
  else openFolder("model", files);
}

function chooseFolder(event) {
  const files = [...event.target.files].filter((file) => file.webkitRelativePath.split("/").length === 2);
  openFolder(files[0]?.webkitRelativePath.split("/")[0], files);
  event.target.value = "";  // so that the same folder can be chosen once more
}

function listenToForm() {
  $("form").addEventListener("submit", (event) => {
    event.preventDefault();
    if (ready) generate();
  });
  $("another").addEventListener("click", () => ready && generate(randomSeed()));
  $("stop").addEventListener("click", () => running && worker.postMessage({ type: "stop" }));
  $("prompt").addEventListener("keydown", (event) => {
    if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) $("form").requestSubmit();
  });
  $("prompt").addEventListener("input", count);
  $("n_tokens").addEventListener("input", () => { wanted = Number($("n_tokens").value); });
  $("prompts").addEventListener("click", ({ target }) => {
    if (target.tagName !== "BUTTON") return;
    $("prompt").value = target.textContent;
    whenReady(() => {
      whenCounted = generate;
      count();
    });
  });
  for (const id of ["temperature", "top_k", "top_p"]) $(id).addEventListener("input", redraw);
}

// Write the text that the address asks for, as soon as it is known how many tokens fit.
function writeAsked(kept) {
  whenCounted = () => write({ ...readSettings(), kept }, { keepAddress: true });
  count();
}

function listen() {
  listenToForm();
  listenToTokens();
  $("candidates").addEventListener("click", ({ target }) => {
    const id = target.closest("[data-take]")?.dataset.take;
    if (id && Number(id) !== shownSteps[current].id) take(current, Number(id));
  });
  $("inside").addEventListener("click", lookInside);
  $("link").addEventListener("click", () => {
    history.replaceState(null, "", address(written));
    const copied = isOwn ? "Copied. It opens with the page's own model, not with yours." : "Copied.";
    copy(location.href, copied, "The link is in the address of this page.");
  });
  $("copy").addEventListener("click", () => {
    copy($("command").textContent, "Copied.", "This browser does not let the page copy.");
  });
  $("folder").addEventListener("change", chooseFolder);
  window.addEventListener("dragover", (event) => {
    event.preventDefault();
    document.body.classList.add("dropping");
  });
  window.addEventListener("dragleave", (event) => {
    if (!event.relatedTarget) document.body.classList.remove("dropping");
  });
  window.addEventListener("drop", drop);
  window.addEventListener("hashchange", () => {
    const kept = readAddress();
    if (kept) whenReady(() => writeAsked(kept));
  });
  $("function").addEventListener("change", () => showSource($("function").value));
  document.addEventListener("click", (event) => {
    const name = event.target.closest("[data-source]")?.dataset.source;
    if (functions.has(name)) showSource(name);
  });
}

// Show the stored text of the default settings, which Python computes once more when it has started.
async function showFirst() {
  const response = await fetch("page/first.json", { cache: "no-cache" });
  if (!response.ok || shownSteps.length || ready) return;
  const [{ prompt, tokens }, ...steps] = await response.json();
  showPrompt(prompt, tokens);
  pin = FIRST_SHOWN;
  steps.forEach((step, i) => showStepAt(i, step));
}

// On GitHub Pages, files of the repository are read on GitHub. Elsewhere, the server of the page has them.
function linkRepository() {
  const [, account] = /^([\w-]+)\.github\.io$/.exec(location.hostname) ?? [];
  if (!account) return;
  const repository = `https://github.com/${account}/${location.pathname.split("/")[1]}`;
  document.querySelectorAll("[data-path]").forEach((link) => {
    link.href = link.dataset.path ? `${repository}/blob/HEAD/${link.dataset.path}` : repository;
  });
}

function start() {
  linkRepository();
  setRunning(false);
  listen();
  const kept = readAddress();
  if (location.protocol === "file:") {
    fail("A browser does not run Python from a file. In the folder of the repository, start "
      + "python -m http.server --bind 127.0.0.1 and open http://localhost:8000/docs/");
    return;
  }
  if (kept) whenReady(() => writeAsked(kept));
  showOutputs();
  showCommand();
  startWorker();
  measure();
  loadSource();
  if (!kept && (new URLSearchParams(location.search).get("model") ?? "tiny") === "tiny") showFirst();
}

start();
