// The settings of a text: in the form, in the page's address, and as a command.
"use strict";

const NUMBERS = ["n_tokens", "temperature", "top_k", "top_p", "seed"];  // fields; in the address, they have these names
const ALL = 101;  // the end of top_k's slider, where it lets all tokens be drawn
const DEFAULTS = { prompt: "ROMEO:", n_tokens: 44, temperature: 0.8, top_k: 0, top_p: 1, seed: 1, kept: [] };

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

// Fill the form from the address. Return the ids that the text begins with, or null if the address has no settings.
// What is outside of a field becomes its smallest or largest value. How many tokens fit is found later, by `count`.
function readAddress() {
  const words = new URLSearchParams(location.hash.slice(1));
  if (!words.has("prompt")) return null;
  const settings = { ...DEFAULTS, prompt: words.get("prompt") };
  for (const name of NUMBERS) {
    const asked = Number(words.get(name) ?? NaN), value = $(name).step === "1" ? Math.round(asked) : asked;
    const low = name === "top_k" ? 0 : Number($(name).min), high = name === "n_tokens" ? 1e6 : Number($(name).max);
    if (!Number.isNaN(value)) settings[name] = Math.min(Math.max(value, low), high);
  }
  fillForm(settings);
  return (words.get("kept") ?? "").split(".").filter((id) => /^\d+$/.test(id)).map(Number);
}

// Show the command that writes the same text, for the shells of Linux and macOS.
function showCommand() {
  const { prompt, n_tokens, temperature, top_k, top_p, seed, kept } = written;
  const quoted = /^[\w .,:;?-]*$/.test(prompt) ? `"${prompt}"` : `'${prompt.replace(/'/g, "'\\''")}'`;
  const options = [`-n ${n_tokens}`, `--temperature ${temperature}`];
  if (top_k) options.push(`--top_k ${top_k}`);
  if (top_p < 1) options.push(`--top_p ${top_p}`);
  if (temperature) options.push(`--seed ${seed}`);
  const first = prompt.startsWith("-") ? [] : [quoted], last = prompt.startsWith("-") ? ["--", quoted] : [];
  $("command").textContent = ["python gpt2.py", ...first, `--model ${model}`, ...options, ...last].join(" ");
  const isKnown = !kept.length && !isOwn && prompt !== "-";
  $("same").hidden = !isKnown;
  $("differs").hidden = isKnown;
}
