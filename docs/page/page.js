// The page: starts the worker that runs Python, sends it what a visitor asks for, and shows what it answers.
"use strict";

const NUMBERS = ["n_tokens", "temperature", "top_k", "top_p", "seed"];  // fields; in the address, they have these names
const ALL = 101;  // the end of top_k's slider, where it lets all tokens be drawn
const DEFAULTS = { prompt: "ROMEO:", n_tokens: 44, temperature: 0.8, top_k: 0, top_p: 1, seed: 1, kept: [] };
let worker, ready = false, waiting = null;  // what to do as soon as Python runs
let run = 0, running = false, began;  // runs are numbered, so that a late message of an older one can be told apart
let written = DEFAULTS;  // the settings of the text that is shown
let quiet = false;  // whether this run only computes once more what is shown already
let wanted = DEFAULTS.n_tokens;  // how many tokens the visitor has asked for, which may be more than fit
let whenCounted = null;  // what to do as soon as it is known how many fit
let model = "tiny", isOwn = false, redrawing = false, redrawAgain = false;

// -------------------------------------------------------------------------------------------- settings and the address

const randomSeed = () => crypto.getRandomValues(new Uint32Array(1))[0] % 10000;

function readSettings() {
  if ($("seed").value === "") $("seed").value = randomSeed();
  const numbers = Object.fromEntries(NUMBERS.map((name) => [name, Number($(name).value)]));
  return { prompt: $("prompt").value, ...numbers, top_k: numbers.top_k === ALL ? 0 : numbers.top_k, kept: [] };
}

function showOutputs() {
  const { temperature, top_k, top_p } = readSettings();
  for (const [name, text] of Object.entries({ temperature, top_k: top_k || "all", top_p })) {
    document.querySelector(`output[for=${name}]`).textContent = text;
  }
}

function fillForm(settings) {
  $("prompt").value = settings.prompt;
  for (const name of NUMBERS) $(name).value = name === "top_k" && !settings.top_k ? ALL : settings[name];
  wanted = settings.n_tokens;
  showOutputs();
}

// Write settings as the end of the page's address, without those that are as they were.
function address(settings) {
  const words = new URLSearchParams({ prompt: settings.prompt });
  for (const name of NUMBERS) if (settings[name] !== DEFAULTS[name] || name === "seed") words.set(name, settings[name]);
  if (settings.kept.length) words.set("kept", settings.kept.join("."));
  return `#${words}`;
}

// Read settings from the address. What is no number, or outside of its field, becomes what the field makes of it.
function readAddress() {
  const words = new URLSearchParams(location.hash.slice(1));
  if (!words.has("prompt")) return null;
  const settings = { ...DEFAULTS, prompt: words.get("prompt") };
  for (const name of NUMBERS) {
    const value = Number(words.get(name) ?? NaN), low = name === "top_k" ? 0 : Number($(name).min);
    if (!Number.isNaN(value)) settings[name] = Math.min(Math.max(value, low), Number($(name).max));
  }
  settings.kept = (words.get("kept") ?? "").split(".").filter((id) => /^\d+$/.test(id)).map(Number);
  fillForm(settings);
  return { ...readSettings(), kept: settings.kept };
}

// ---------------------------------------------------------------------------------------------------------- a new text

function whenReady(action) {
  if (ready) return action();
  waiting = action;
  $("measure").dataset.promise = " Your text comes as soon as Python runs.";
}

// Write a text. `pin` is the token whose alternatives stay in view; without one, they are those of the newest token.
function write(settings, { keepAddress = false, isQuiet = false, pinned = null } = {}) {
  run += 1;
  began = performance.now();
  [written, quiet, pin] = [settings, isQuiet, pinned];
  showError("");
  $("note").replaceChildren();
  $("inside-page").hidden = true;
  setRunning(true);
  if (!isQuiet) $("status").textContent = "Writing …";
  if (!keepAddress) history.replaceState(null, "", address(settings));
  showCommand();
  worker.postMessage({ type: "run", run, settings });
}

function generate(seed) {
  if (seed !== undefined) $("seed").value = seed;
  if ($("form").reportValidity()) write(readSettings());
}

// Take another token at place i, and go on from there. The ids before it stay, whatever the settings are by now.
function take(i, id) {
  const kept = [...shownSteps.slice(0, i).map((step) => step.id), id];
  fillForm({ ...readSettings(), prompt: shownPrompt });
  const settings = readSettings();
  count();
  whenReady(() => write({ ...settings, n_tokens: Math.max(settings.n_tokens, i + 1), kept }, { pinned: i }));
}

// Ask for the probabilities with the settings of the sliders. While an answer is awaited, a further question waits.
function redraw() {
  showOutputs();
  redrawAgain = ready && redrawing;
  if (!ready || redrawing || !shownSteps.length) return;
  redrawing = true;
  worker.postMessage({ type: "redraw", run, settings: readSettings() });
}

const count = () => ready && worker.postMessage({ type: "count", prompt: $("prompt").value });

// Show the command that writes the same text, for the shells of Linux and macOS.
function showCommand() {
  const { prompt, n_tokens, temperature, top_k, top_p, seed, kept } = written;
  const quoted = /^[\w .,:;?-]*$/.test(prompt) ? `"${prompt}"` : `'${prompt.replace(/'/g, "'\\''")}'`;
  const options = [`-n ${n_tokens}`, `--temperature ${temperature}`];
  if (top_k) options.push(`--top_k ${top_k}`);
  if (top_p < 1) options.push(`--top_p ${top_p}`);
  if (temperature) options.push(`--seed ${seed}`);
  const isOption = prompt.startsWith("-");
  $("command").textContent = ["python gpt2.py", isOption ? "" : quoted, `--model ${model}`, ...options, isOption ? `-- ${quoted}` : ""]
    .filter(Boolean).join(" ");
  const isKnown = !kept.length && !isOwn && prompt !== "-";
  $("same").hidden = !isKnown;
  $("differs").hidden = isKnown;
}

// --------------------------------------------------------------------------------------------------- what the page says

function showError(text) {
  $("error").textContent = text;
  $("error").hidden = !text;
  if (text) $("error").scrollIntoView({ block: "nearest" });
}

function fail(message) {
  showError(message);
  $("loading").hidden = true;
  $("status").textContent = "";
  setRunning(false);
}

function setRunning(now) {
  running = now;
  for (const id of ["generate", "another"]) $(id).setAttribute("aria-disabled", String(!ready));
  $("inside").setAttribute("aria-disabled", String(!ready || running));
  $("stop").setAttribute("aria-disabled", String(!running || quiet));
  $("text").setAttribute("aria-busy", String(running));
}

function end({ error, stopped }) {
  setRunning(false);
  const n = shownSteps.length, seconds = ((performance.now() - began) / 1000).toFixed(2);
  if (error) {
    showError(`No text: ${error}`);
    $("status").textContent = "";
  } else if (quiet) $("status").textContent = `Ready. Python computed this text in ${seconds} s.`;
  else $("status").textContent = `${stopped ? "Stopped after" : "Done:"} ${n} tokens in ${seconds} s.`;
  if (address(written) !== address({ ...readSettings(), kept: written.kept })) redraw();
}

const megabytes = (n) => (n / 1e6).toFixed(1);
let measured = () => "Loading Python …";  // returns what is shown beside the bar, after a number of seconds
let phase = performance.now();

function measure() {
  if ($("loading").hidden) return;
  $("measure").textContent = measured((performance.now() - phase) / 1000) + ($("measure").dataset.promise ?? "");
  setTimeout(measure, 100);
}

const receive = {
  progress({ loaded, total }) {
    Object.assign($("progress"), { max: total, value: loaded });
    measured = (seconds) => {
      const left = seconds * (total - loaded) / loaded, rest = seconds > 1 ? `, about ${Math.ceil(left)} s left` : "";
      return `Loading Python: ${megabytes(loaded)} of ${megabytes(total)} MB, ${seconds.toFixed(0)} s${rest}.`;
    };
  },
  starting({ step, of, what }) {
    if (step === 1) phase = performance.now();
    Object.assign($("progress"), { max: of + 1, value: step });
    measured = (seconds) => `Starting ${what}, step ${step} of ${of}: ${seconds.toFixed(1)} s.`;
  },
  opened({ name, n_params, n_layer, n_head, n_embd, n_ctx }) {
    model = name;
    const million = (n_params / 1e6).toFixed(n_params < 1e7 ? 1 : 0);
    $("model").textContent = `${name}, ${million} million parameters, ${n_layer} layers of width ${n_embd} with ${n_head} heads,`
      + ` context of ${n_ctx} tokens`;
    if (!ready) return;
    isOwn = true;
    cutSteps(0);
    $("result").hidden = true;
    $("status").textContent = `${name} is open.`;
    whenCounted = generate;
    count();
  },
  ready({ python, numpy, version }) {
    ready = true;
    $("loading").hidden = true;
    $("status").textContent = "Ready.";
    $("runtime").textContent = `Pyodide ${version}, with Python ${python} and NumPy ${numpy}`;
    setRunning(false);
    count();
    if (waiting) waiting();
    else write(written, { keepAddress: true, isQuiet: shownSteps.length > 0, pinned: shownSteps.length ? current : null });
  },
  failed({ error }) { fail(error); },
  refused({ what, error }) {
    if (what === "redraw") redrawing = false;
    showError(what === "open" ? `This folder can't be opened: ${error}` : error);
    $("status").textContent = "";
    setRunning(false);
  },
  note({ text }) { $("note").append(element("span", text), document.createElement("br")); },
  working({ text }) { if (performance.now() - began > 1000) $("status").textContent = `Looking inside: ${text} …`; },
  step(message) {
    if (message.run !== run) return;
    if (message.tokens) {
      message.notes.forEach((text) => receive.note({ text }));
      showPrompt(message.prompt, message.tokens);
      nextStep = 0;
    } else showStepAt(nextStep++, message);
  },
  end(message) {
    if (message.run !== run) return;
    if (message.stopped) cutSteps(nextStep);
    end(message);
  },
  redrawn(message) {
    redrawing = false;
    if (message.run === run) showDrawn(message.drawn);
    if (redrawAgain) redraw();
  },
  counted({ prompt, n_tokens, room, n_ctx }) {
    if (prompt !== $("prompt").value) return;
    const tooLong = room ? "" : `The prompt is longer than the ${n_ctx} tokens that this model reads.`;
    $("prompt").setCustomValidity(tooLong);
    $("prompt").setAttribute("aria-invalid", String(!room));
    $("count").textContent = tooLong || `${n_tokens} token${n_tokens === 1 ? "" : "s"}, room for ${room} more`;
    $("count").classList.toggle("bad", !room);
    $("n_tokens").max = Math.max(1, room);
    if (room) $("n_tokens").value = Math.min(wanted, room);
    whenCounted?.();
    whenCounted = null;
  },
  inside({ html }) {
    setRunning(false);
    $("status").textContent = `The view is ready, after ${((performance.now() - began) / 1000).toFixed(2)} s.`;
    URL.revokeObjectURL($("inside-page").href);
    $("inside-page").href = URL.createObjectURL(new Blob([html], { type: "text/html" }));
    $("inside-page").hidden = Boolean(window.open($("inside-page").href, "_blank"));  // a browser may refuse to open it
  },
};

function startWorker() {
  worker = new Worker(`page/worker.js${location.search}`, { type: "module" });
  worker.addEventListener("message", ({ data }) => receive[data.type](data));
  worker.addEventListener("error", (event) => {
    event.preventDefault();
    ready = false;
    fail(`Python can't run here: ${event.message || "the browser did not start page/worker.js."}`);
  });
}
