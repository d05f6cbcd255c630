// The page: starts the worker that runs Python, sends it what a visitor asks for, and shows what it answers.
"use strict";

let worker, ready = false, waiting = null;  // what to do as soon as Python runs
let run = 0, running = false, began;  // runs are numbered, so that a late message of an older one can be told apart
let written = DEFAULTS, writtenBefore;  // the settings of the text that is shown, and of the one before it
let quiet = false;  // whether this run only computes once more what is shown already
let wanted = DEFAULTS.n_tokens;  // how many tokens the visitor has asked for, which may be more than fit
let whenCounted = null;  // what to do as soon as it is known how many fit
let model = "tiny", isOwn = false, redrawing = false, redrawAgain = false;

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
  [writtenBefore, written, quiet, pin] = [written, settings, isQuiet, pinned];
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
  if (!$("form").reportValidity()) return;
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

// -------------------------------------------------------------------------------------------------- what the page says

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
    written = writtenBefore;  // its text is still there
    history.replaceState(null, "", address(written));
    showCommand();
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
      const left = Math.ceil(seconds * (total - loaded) / loaded), rest = seconds > 1 ? `, about ${left} s left` : "";
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
    $("model").textContent = `${name}, ${million} million parameters, ${n_layer} layers of width ${n_embd} `
      + `with ${n_head} heads, context of ${n_ctx} tokens`;
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
    else if (shownSteps.length) write(written, { keepAddress: true, isQuiet: true, pinned: current });
    else whenCounted = () => write(readSettings(), { keepAddress: true });  // as many tokens as this model has room for
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
