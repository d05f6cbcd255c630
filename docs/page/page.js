// The page: loads the source to show, starts the worker that runs Python, and draws what it sends.
"use strict";

const $ = (id) => document.getElementById(id);
const SOURCES = ["gpt2.py", "encoder.py"];
const functions = new Map();  // name: {file, line, group, text}
let worker, ready = false;
let run = 0, running = false, began;  // runs are numbered, so that a late message of an older one can be told apart
let shownSteps = [];  // the new tokens, in order: {id, candidates, text}
let current = -1;  // the token whose candidates are shown

const percent = (p) => p === 0 ? "0 %" : p < 0.0005 ? "<0.1 %" : `${(100 * p).toFixed(1)} %`;

function element(tag, text = "", className = "") {
  const made = document.createElement(tag);
  made.textContent = text;  // not innerHTML, because a token may look like HTML
  made.className = className;
  return made;
}

function shaded(made, p) {
  made.classList.add("shaded");
  made.style.setProperty("--shade", Math.sqrt(p).toFixed(3));  // with the square root, 1 % is visible
  return made;
}

// --------------------------------------------------------------------------------------------------------- the source

// Cut a file into its functions and classes. Each ends before the next line that begins in the first column, except for
// the parenthesis that closes a long list of parameters.
function cut(file, text) {
  let group = file;
  text.split(/^(?=[^\s)])/m).reduce((line, part) => {
    const [, name] = /^(?:def|class) (\w+)/.exec(part) ?? [];
    if (name) functions.set(name, { file, line, group, text: part.trimEnd() });
    const [, title] = /^# -{10,} (.+)/.exec(part) ?? [];
    if (title) group = `${file}: ${title}`;
    return line + part.split("\n").length - 1;
  }, 1);
}

// Turn source into elements: docstrings and comments in a quieter colour, and calls of other functions as links.
function coloured(text, own) {
  const made = [];
  let at = 0;
  for (const found of text.matchAll(/r?"""[^]*?"""|f?"(?:\\.|[^"\\\n])*"|#.*|\b([A-Za-z_]\w*)(?=\()/g)) {
    const [word, name] = found;
    const isLink = name && name !== own && functions.has(name) && text[found.index - 1] !== ".";
    const isWords = word.startsWith("#") || word.endsWith('"""');
    if (!isLink && !isWords) continue;
    made.push(text.slice(at, found.index));
    const part = element(isLink ? "button" : "span", word, isLink ? "link" : "words");
    if (isLink) Object.assign(part, { type: "button" }).dataset.source = name;
    made.push(part);
    at = found.index + word.length;
  }
  return [...made, text.slice(at)];
}

function showSource(name) {
  const { file, line, text } = functions.get(name);
  $("function").value = name;
  $("place").textContent = `${file}, lines ${line} to ${line + text.split("\n").length - 1}`;
  $("source").replaceChildren(...coloured(text, name));
  $("source").scrollTo(0, 0);
}

async function loadSource() {
  for (const file of SOURCES) {
    const response = await fetch(`../${file}`, { cache: "no-cache" });
    if (!response.ok) return;  // the worker, which needs the same files, says so
    cut(file, await response.text());
  }
  for (const [name, { group }] of functions) {
    let box = [...$("function").children].find((one) => one.label === group);
    if (!box) $("function").append(box = Object.assign(document.createElement("optgroup"), { label: group }));
    box.append(new Option(name, name));
  }
  showSource("gpt2");
}

// ---------------------------------------------------------------------------------------------------------- the tokens

function tokenButton(step, i) {
  const { token, p } = step.candidates.find(({ id }) => id === step.id);
  const button = shaded(element("button", token, "token"), p);
  button.type = "button";
  button.dataset.index = i;
  button.tabIndex = i === 0 ? 0 : -1;
  button.setAttribute("aria-label", `token ${i + 1}: ${token}, ${percent(p)}`);
  button.append(element("small", percent(p)));
  return button;
}

function candidateRow({ id, token, p, drawn }, chosen) {
  const row = element("tr", "", id === chosen ? "this" : "");
  const name = element("td"), shade = shaded(element("span", token, "token"), p);
  shade.title = `token id ${id}`;
  name.append(shade, element("small", id === chosen ? " ← chosen" : ""));
  row.append(name, element("td", percent(p)), element("td", percent(drawn)));
  return row;
}

function showStep(i) {
  const step = shownSteps[i];
  const { token } = step.candidates.find(({ id }) => id === step.id);
  current = i;
  $("tokens").querySelectorAll("button").forEach((button, k) => button.classList.toggle("current", k === i));
  $("candidates-title").replaceChildren(`New token ${i + 1}, id ${step.id}: `, element("span", token, "token"));
  $("candidates").tBodies[0].replaceChildren(...step.candidates.map((one) => candidateRow(one, step.id)));
  $("candidates").hidden = false;
}

function addStep(step) {
  $("new").append(step.text);
  if (!step.candidates) return;  // the end of the text, which has no token of its own
  const follow = current === shownSteps.length - 1 && !$("tokens").contains(document.activeElement);
  shownSteps.push(step);
  const button = tokenButton(step, shownSteps.length - 1);
  $("tokens").append(button);
  if (/\\n$/.test(button.firstChild.data)) $("tokens").append(element("span", "", "break"));
  if (follow) {
    showStep(shownSteps.length - 1);
    $("tokens").scrollTop = $("tokens").scrollHeight;
  }
}

function showPrompt(prompt, tokens) {
  shownSteps = [];
  current = -1;
  $("result").hidden = false;
  $("given").textContent = prompt;
  $("new").textContent = "";
  $("candidates").hidden = true;
  $("tokens").replaceChildren(...tokens.map((token) => element("span", token, "token given")));
}

// --------------------------------------------------------------------------------------------------------- the worker

function fail(message) {
  $("error").textContent = message;
  $("error").hidden = false;
  $("loading").hidden = true;
  $("status").textContent = "";
  setRunning(false);
}

function setRunning(now) {
  running = now;
  $("generate").setAttribute("aria-disabled", String(!ready));
  $("stop").setAttribute("aria-disabled", String(!running));
  $("text").setAttribute("aria-busy", String(running));
}

function end({ error, stopped }) {
  setRunning(false);
  const n = shownSteps.length, seconds = (performance.now() - began) / 1000;
  $("status").textContent = error ? `No text: ${error}`
    : `${stopped ? "Stopped after" : "Done:"} ${n} tokens in ${seconds.toFixed(2)} s.`;
}

const receive = {
  progress({ total, missing }) {
    Object.assign($("progress"), { max: total, value: total - missing.length });
    $("missing").textContent = `${total - missing.length} of ${total} files. Still to come: ${missing.join(", ")}`;
  },
  starting() {
    $("progress").removeAttribute("value");  // from here on, nobody knows how long it takes
    $("missing").textContent = "";
    $("status").textContent = "Starting Python …";
  },
  ready({ python, numpy, version }) {
    ready = true;
    $("loading").hidden = true;
    $("status").textContent = "Ready.";
    $("runtime").textContent = `Pyodide ${version}, with Python ${python} and NumPy ${numpy}`;
    setRunning(false);
  },
  failed({ error }) { fail(error); },
  note({ text }) { $("note").append(element("span", text), document.createElement("br")); },
  step(message) {
    if (message.tokens) showPrompt(message.prompt, message.tokens);
    else addStep(message);
  },
  end(message) { if (message.run === run) end(message); },
};

function startWorker() {
  $("status").textContent = "Loading Python, NumPy and the model …";
  worker = new Worker(`page/worker.js${location.search}`, { type: "module" });
  worker.addEventListener("message", ({ data }) => receive[data.type](data));
  worker.addEventListener("error", (event) => {
    event.preventDefault();
    ready = false;
    fail(`Python can't run here: ${event.message || "the browser did not start page/worker.js."}`);
  });
}

// ------------------------------------------------------------------------------------------------------------- events

function generate(event) {
  event.preventDefault();
  if (!ready) return;
  run += 1;
  began = performance.now();
  $("note").replaceChildren();
  setRunning(true);
  $("status").textContent = "Writing …";
  const number = (id) => $(id).value === "" ? null : Number($(id).value);
  const names = ["n_tokens", "temperature", "top_k", "seed"];
  const settings = { prompt: $("prompt").value, ...Object.fromEntries(names.map((name) => [name, number(name)])) };
  worker.postMessage({ run, settings });
}

function moveFocus(event) {
  const items = [...$("tokens").querySelectorAll("button")], at = items.indexOf(document.activeElement);
  const to = { ArrowRight: at + 1, ArrowLeft: at - 1, Home: 0, End: items.length - 1 }[event.key];
  if (at < 0 || to === undefined || event.altKey || event.ctrlKey || event.metaKey) return;
  event.preventDefault();
  items[Math.max(0, Math.min(to, items.length - 1))].focus();
}

function listen() {
  $("form").addEventListener("submit", generate);
  $("stop").addEventListener("click", () => { if (running) worker.postMessage({ run: 0 }); });
  $("prompt").addEventListener("keydown", (event) => {
    if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) $("form").requestSubmit();
  });
  $("tokens").addEventListener("keydown", moveFocus);
  $("tokens").addEventListener("click", (event) => event.target.closest("button")?.focus());
  $("tokens").addEventListener("focusin", (event) => {
    $("tokens").querySelectorAll("button").forEach((button) => { button.tabIndex = button === event.target ? 0 : -1; });
    $("details").setAttribute("aria-live", "polite");
    showStep(Number(event.target.dataset.index));
  });
  $("tokens").addEventListener("focusout", () => $("details").setAttribute("aria-live", "off"));
  $("function").addEventListener("change", () => showSource($("function").value));
  document.addEventListener("click", (event) => {
    const name = event.target.closest("[data-source]")?.dataset.source;
    if (functions.has(name)) showSource(name);
  });
}

function start() {
  for (const p of [0.01, 0.1, 0.5, 1]) $("legend").append(shaded(element("span", ` ${100 * p} % `), p), " ");
  setRunning(false);
  listen();
  if (location.protocol === "file:") {
    fail("A browser does not run Python from a file. In the folder of the repository, start python -m http.server --bind 127.0.0.1 "
      + "and open http://localhost:8000/docs/");
    return;
  }
  startWorker();
  loadSource();
}

start();
