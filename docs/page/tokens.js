// The text, its tokens and their alternatives.
"use strict";

const $ = (id) => document.getElementById(id);
let shownSteps = [];  // the new tokens, in order: {id, candidates, text}
let shownPrompt = "";
let current = -1;  // the token whose alternatives are shown
let pin = null;  // the token whose alternatives come into view with it, or null: those of the newest token do
let nextStep = 0;  // the place of the next token that comes
let ending = "";  // text behind the last token: half a character, or nothing
const FIRST_SHOWN = 3;  // the token of the stored text whose alternatives a visitor sees first

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

const chosenOf = (step) => step.candidates.find(({ id }) => id === step.id);

// Show a token and its probability with the settings. A screen reader also hears its number.
function fillToken(button, step, i) {
  const { token, drawn } = chosenOf(step);
  button.replaceChildren(element("span", `token ${i + 1}: `, "unseen"), token, element("small", percent(drawn)));
  shaded(button, drawn).dataset.index = i;
  if (i === current) showStep(i);
}

function candidateRow({ id, token, p, drawn }, step) {
  const row = element("tr", "", id === step.id ? "this" : "");
  const name = element("td"), take = shaded(element("button", token, "token"), p);
  Object.assign(take, { type: "button", title: `token id ${id}` }).dataset.take = id;
  name.append(take, element("small", id === step.id ? " ← chosen" : ""));
  const bar = element("td", percent(drawn), "bar");
  bar.style.setProperty("--part", drawn.toFixed(4));
  row.append(name, element("td", percent(p)), bar);
  return row;
}

// Show the alternatives of a token. The focus stays on the row where it was.
function showStep(i) {
  const step = shownSteps[i], rows = $("candidates").tBodies[0];
  const focused = [...rows.querySelectorAll("button")].indexOf(document.activeElement);
  current = i;
  $("tokens").querySelectorAll("button").forEach((button, k) => button.classList.toggle("current", k === i));
  const token = element("span", chosenOf(step).token, "token");
  $("candidates-title").replaceChildren(`New token ${i + 1}, id ${step.id}: `, token);
  rows.replaceChildren(...step.candidates.map((one) => candidateRow(one, step)));
  $("details").hidden = false;
  if (focused >= 0) rows.querySelectorAll("button")[focused]?.focus();
}

const writeText = () => { $("new").textContent = shownSteps.map(({ text }) => text).join("") + ending; };

// Show step i of a text. One that is there already, with the same token, only gets new numbers. Another one takes its
// place, and all that follow it go away.
function showStepAt(i, step) {
  if (!step.candidates) {
    ending = step.text;
    return cutSteps(i);
  }
  const isSame = shownSteps[i]?.id === step.id;
  if (!isSame) cutSteps(i);
  const isNext = !isSame && pin === null && current === i - 1;
  shownSteps[i] = step;
  ending = "";
  if (!isSame) {
    const button = element("button", "", "token");
    button.type = "button";
    button.tabIndex = i === 0 ? 0 : -1;
    $("tokens").append(button);
  }
  fillToken($("tokens").querySelectorAll("button")[i], step, i);
  if (!isSame) writeText();
  if (pin === i && current !== i) showStep(i);
  if (isNext && !$("tokens").contains(document.activeElement)) {
    showStep(i);
    $("tokens").scrollTop = $("tokens").scrollHeight;
  }
}

// Take away the tokens from the n-th on.
function cutSteps(n) {
  const button = $("tokens").querySelectorAll("button")[n];
  while (button?.nextSibling) button.nextSibling.remove();
  button?.remove();
  shownSteps = shownSteps.slice(0, n);
  writeText();
  if (current < n) return;
  current = n - 1;
  if (n && pin === null) showStep(n - 1);
  if (!n) $("details").hidden = true;
}

function showPrompt(prompt, tokens) {
  if (prompt !== shownPrompt || $("result").hidden) {
    cutSteps(0);
    $("tokens").replaceChildren(...tokens.map((token) => element("span", token, "token given")));
  }
  shownPrompt = prompt;
  $("result").hidden = false;
  $("given").textContent = prompt;
}

// Show other probabilities of the candidates of all tokens.
function showDrawn(drawn) {
  const buttons = $("tokens").querySelectorAll("button");
  drawn.slice(0, shownSteps.length).forEach((probs, i) => {
    shownSteps[i].candidates.forEach((one, k) => { one.drawn = probs[k]; });
    fillToken(buttons[i], shownSteps[i], i);
  });
}

function moveFocus(event) {
  const items = [...$("tokens").querySelectorAll("button")], at = items.indexOf(document.activeElement);
  const to = { ArrowRight: at + 1, ArrowLeft: at - 1, Home: 0, End: items.length - 1 }[event.key];
  if (at < 0 || to === undefined || event.altKey || event.ctrlKey || event.metaKey) return;
  event.preventDefault();
  items[Math.max(0, Math.min(to, items.length - 1))].focus();
}

function listenToTokens() {
  for (const p of [0.01, 0.1, 0.5, 1]) $("legend").append(shaded(element("span", ` ${100 * p} % `), p), " ");
  $("tokens").addEventListener("keydown", moveFocus);
  $("tokens").addEventListener("click", (event) => event.target.closest("button")?.focus());
  $("tokens").addEventListener("focusin", (event) => {
    $("tokens").querySelectorAll("button").forEach((button) => { button.tabIndex = button === event.target ? 0 : -1; });
    $("details").setAttribute("aria-live", "polite");
    showStep(Number(event.target.dataset.index));
  });
  $("tokens").addEventListener("focusout", () => $("details").setAttribute("aria-live", "off"));
}
