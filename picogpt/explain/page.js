"use strict";
const data = JSON.parse(document.getElementById("data").textContent);
const n = data.tokens.length, nLayers = data.layers.length, top_ = data.top;
const bytes = Uint8Array.from(atob(data.attention), (char) => char.charCodeAt(0));
const shares = new DataView(bytes.buffer);
const $ = (id) => document.getElementById(id);
const before = data.first ? 1 : 0;  // the lens begins one token before the first that is shown, if there is one
let chosen = 0;  // the token that was last clicked or focused
let shown = 0;  // the token under the pointer while there is one, or else the chosen token

// ------------------------------------------------------------------------------------------------------ the numbers

const textOf = (i) => i < 0 ? data.before : i < n ? data.shown[i] : "next";
const touch = () => matchMedia("(hover: none)").matches;
const percent = (p) => p === null ? "–" : p > 0 && p < 0.0005 ? "<0.1 %" : `${(100 * p).toFixed(1)} %`;

// Return the predictions of a layer after token i, the most likely first, as pairs [id, probability].
function lens(layer, i) {
  const start = (layer * (n + before) + i + before) * top_;
  return data.lensIds.slice(start, start + top_).map((id, k) => [id, data.lensProbs[start + k]])
    .filter(([, p]) => p > 0);
}

// Return the attention of token i to token j in the chosen layer, and in the chosen head or another one. Only j <= i
// is stored.
function attention(i, j, head = Number($("head").value)) {
  const triangle = n * (n + 1) / 2;
  const square = data.attentionLayers.indexOf(Number($("layer").value)) * data.nHead + head;
  return shares.getUint16(2 * (square * triangle + i * (i + 1) / 2 + j), true) / 65535;
}

// ---------------------------------------------------------------------------------------------------- making elements

function element(tag, text = "", className = "") {
  const made = document.createElement(tag);
  made.textContent = text;  // not innerHTML, because a token may look like HTML
  made.className = className;
  return made;
}

function shaded(made, p) {
  made.classList.add("shaded");
  made.style.setProperty("--shade", Math.sqrt(p ?? 0).toFixed(3));  // with the square root, 1 % is visible
  return made;
}

function weighted(text, p) {
  const made = shaded(element("span", text, "token"), p);
  made.append(element("small", percent(p)));
  return made;
}

const token = (i) => element("span", textOf(i), "token");

// Set a heading that contains token i, in an element of its own.
const title = (id, start, i, end = "") => $(id).replaceChildren(start, token(i), end);

// -------------------------------------------------------------------------------------------------------- the sections

function drawTokens() {
  for (let i = 0; i <= n; i++) {
    const p = i < n ? data.tokens[i][1] : null;
    const button = shaded(element("button", textOf(i), i < n ? "token" : "token next"), p);
    button.type = "button";
    button.dataset.index = i;
    button.setAttribute("aria-label", i < n ? `token ${data.first + i}: ${textOf(i)}, ${percent(p)}` : "the next token");
    $("tokens").append(button);
    if (i < n && /(^|[^\\])\\n$/.test(textOf(i))) $("tokens").append(element("span", "", "break"));
  }
}

function drawFacts(i) {
  const facts = [];
  if (i < n) {
    const [id, p, bits, rank] = data.tokens[i];
    facts.push(["position", data.first + i], ["token id", id]);
    if (data.first + i > 0) facts.push(["probability", percent(p)], ["surprisal", bits === null ? "∞" : `${bits.toFixed(2)} bits`],
      ["rank", p === 0 ? "–" : rank === 1 ? "1 (most likely)" : rank]);
    if (data.whole && data.first + i > 0) {
      const [p, change] = data.whole[i], bits = Number((change ?? 0).toFixed(2));
      facts.push(["in the whole model", percent(p)],
        ["change", change === null ? "–" : `${bits < 0 ? "−" : "+"}${Math.abs(bits).toFixed(2)} bits`]);
    }
    if (data.texts[id] !== textOf(i)) facts.push(["bytes", data.texts[id]]);
    facts.push(["merges", data.merges[id].join(", ") || "a single byte"]);
  }
  if (i < n) title("chosen", "", i);
  else $("chosen").textContent = "The next token";
  $("facts").replaceChildren(...facts.flatMap(([name, value]) => [element("dt", name), element("dd", value)]));
}

function drawAlternatives(i) {
  const given = data.first + i === 0;
  const rows = given ? [] : lens(nLayers - 1, i - 1).map(([id, p]) => {
    const row = element("tr", "", i < n && id === data.tokens[i][0] ? "this" : "");
    row.append(shaded(element("td", data.texts[id], "token"), p), element("td", percent(p), "number"),
      element("td", row.className ? "this token" : ""));
    return row;
  });
  if (given) $("alternatives-title").textContent = "The first token is given, not predicted";
  else title("alternatives-title", "Predictions after ", i - 1);
  $("alternatives").replaceChildren(...rows);
}

function drawAttention(i) {
  i = Math.min(i, n - 1);  // the next token does not look at anything yet
  const from = [], to = [];
  let rest = 1;
  for (let j = 0; j <= i; j++) {
    from.push(weighted(textOf(j), attention(i, j)));
    rest -= attention(i, j);
  }
  if (before) from.unshift(weighted("earlier tokens", Math.max(0, rest)));
  for (let j = i; j < n; j++) to.push(weighted(textOf(j), attention(j, i)));
  title("from-title", "", i, " attends to");
  title("to-title", "", i, " is attended to by");
  $("from").replaceChildren(...from);
  $("to").replaceChildren(...to);
}

// Paint a head's attention with one pixel for each pair of tokens. With a limit, a pixel shows the largest of a block.
function paint(canvas, head, limit = n) {
  const block = Math.ceil(n / limit), size = canvas.width = canvas.height = Math.ceil(n / block);
  const context = canvas.getContext("2d"), image = context.createImageData(size, size);
  const hot = getComputedStyle(document.documentElement).getPropertyValue("--hot").trim().split(/\s+/).map(Number);
  for (let i = 0; i < n; i++) {
    for (let j = 0; j <= i; j++) {
      const at = 4 * (Math.floor(i / block) * size + Math.floor(j / block));
      const strength = 255 * Math.sqrt(attention(i, j, head));
      if (strength > image.data[at + 3]) image.data.set([...hot, strength], at);
    }
  }
  context.putImageData(image, 0, 0);
}

function drawMaps() {
  const head = Number($("head").value), where = `layer ${$("layer").value}, head ${head}`;
  paint($("map"), head);
  $("map").setAttribute("aria-label", `Attention of all tokens in ${where}`);
  $("map-title").textContent = `All tokens in ${where}`;
  $("heads").querySelectorAll("button").forEach((button, k) => {
    paint(button.firstChild, k, 88);
    button.setAttribute("aria-pressed", k === head);
    button.tabIndex = k === head ? 0 : -1;
  });
  drawAttention(shown);
}

function drawHeads() {
  for (let head = 0; head < data.nHead; head++) {
    const button = element("button");
    button.type = "button";
    button.dataset.index = head;
    button.append(element("canvas"), `head ${head}`);
    button.firstChild.setAttribute("aria-hidden", true);
    $("heads").append(button);
  }
}

// Name the rows and columns of the map, as many as have room, and mark the row of the shown token.
function labelMap() {
  const current = Math.min(shown, n - 1), step = Math.ceil(14 * n / Math.max(1, $("map").clientWidth));
  for (const [id, side] of [["map-rows", "top"], ["map-columns", "left"]]) {
    const labels = [];
    for (let i = 0; i < n; i++) {
      const marked = id === "map-rows" && i === current;
      if (i % step && !marked) continue;
      const label = token(i);
      label.classList.toggle("current", marked);
      label.style[side] = `${100 * (i + 0.5) / n}%`;
      labels.push(label);
    }
    $(id).replaceChildren(...labels);
  }
  Object.assign($("map-row").style, { top: `${100 * current / n}%`, height: `${100 / n}%` });
}

// Return the row and the column of the map that are under the pointer.
function cellAt(event) {
  const at = (offset) => Math.max(0, Math.min(n - 1, Math.floor(offset / $("map").clientWidth * n)));
  return [at(event.offsetY), at(event.offsetX)];
}

// Show the attention of token i to token j below the map, and mark their cell. Without them, say how to see it.
function showCell(i, j) {
  $("map-cell").hidden = i === undefined;
  if (i === undefined) return $("map-value").replaceChildren(`${touch() ? "Tap" : "Hover over"} the map to see its values.`);
  Object.assign($("map-cell").style,
    { top: `${100 * i / n}%`, left: `${100 * j / n}%`, width: `${100 / n}%`, height: `${100 / n}%` });
  const value = j <= i ? [" attends to ", token(j), `: ${percent(attention(i, j))}`] : [" can't look at ", token(j), ", which comes later"];
  $("map-value").replaceChildren(token(i), ...value);
}

function drawLens() {
  $("lens").style.setProperty("--layers", nLayers);
  const head = element("tr");
  head.append(...["after", ...data.layers].map((name) => Object.assign(element("th", name), { scope: "col" })));
  $("lens").append(head);
  for (let i = 0; i < n; i++) {
    const row = element("tr");
    row.append(Object.assign(element("th", textOf(i), "token"), { scope: "row" }));
    for (let layer = 0; layer < nLayers; layer++) {
      const [id, p] = lens(layer, i)[0];
      const cell = shaded(element("td", data.texts[id], layer ? "token" : "token embedding"), p);
      cell.dataset.index = i * nLayers + layer;
      row.append(cell);
    }
    $("lens").append(row);
  }
}

// Say that the table goes on, unless it fits, and let it fade out on the right until its end is in view.
function sayMore() {
  const box = $("lens").parentElement;
  $("more").hidden = box.scrollWidth <= box.clientWidth + 1;
  box.classList.toggle("continues", box.scrollLeft + box.clientWidth < box.scrollWidth - 1);
}

function readOut(cell) {
  const i = Math.floor(cell / nLayers), layer = cell % nLayers;
  $("readout").setAttribute("aria-live", $("lens").contains(document.activeElement) ? "polite" : "off");
  title("predictions-title", `${data.layers[layer]}: predictions after `, i);
  $("predictions").replaceChildren(...lens(layer, i).map(([id, p]) => weighted(data.texts[id], p)));
  if ($("predictions").scrollWidth > $("predictions").clientWidth) $("predictions").tabIndex = 0;  // keys can scroll it
  else $("predictions").removeAttribute("tabindex");
}

// Show the predictions of the focused cell, or else those of the last layer after the shown token.
function readOutFocused() {
  const focused = $("lens").querySelector("td:focus");
  readOut(focused ? Number(focused.dataset.index) : (Math.min(shown, n - 1) + 1) * nLayers - 1);
}

// ------------------------------------------------------------------------------------------------------------- events

function show(i) {
  shown = i;
  $("tokens").querySelectorAll("button").forEach((button, k) => button.classList.toggle("current", k === i));
  $("lens").querySelectorAll("tr").forEach((row, k) => row.classList.toggle("current", k === Math.min(i, n - 1) + 1));
  drawFacts(i);
  drawAlternatives(i);
  drawAttention(i);
  labelMap();
  readOutFocused();
}

function choose(i) {
  chosen = i;
  show(i);
}

// Let the arrow keys move the focus between the elements with an index. The Tab key reaches only one of them.
function keys(container, steps, first, onFocus) {
  const items = [...container.querySelectorAll("[data-index]")];
  items.forEach((item, k) => { item.tabIndex = k === first ? 0 : -1; });
  const moves = { ...steps, Home: -items.length, End: items.length };
  container.addEventListener("keydown", (event) => {
    if (event.altKey || event.ctrlKey || event.metaKey) return;  // these belong to the browser
    const at = items.indexOf(document.activeElement), to = at + moves[event.key];
    if (at < 0 || !(event.key in moves)) return;
    event.preventDefault();
    items[event.key in steps && (to < 0 || to >= items.length) ? at
      : Math.max(0, Math.min(to, items.length - 1))].focus();
  });
  container.addEventListener("focusin", (event) => {
    items.forEach((item) => { item.tabIndex = item === event.target ? 0 : -1; });
    onFocus(Number(event.target.dataset.index));
  });
}

const indexed = (event) => event.target.closest("[data-index]");

function start() {
  for (const p of [0.01, 0.1, 0.5, 1]) $("legend").append(shaded(element("span", `${Math.round(100 * p)} %`), p));
  for (const layer of data.attentionLayers) $("layer").append(new Option(layer, layer, false, layer === data.layer));
  for (let head = 0; head < data.nHead; head++) $("head").append(new Option(head, head, false, head === data.head));
  drawTokens();
  drawHeads();
  drawLens();
  choose(Math.min(1, n));
  drawMaps();
  showCell();
  keys($("tokens"), { ArrowRight: 1, ArrowLeft: -1 }, chosen, choose);
  keys($("lens"), { ArrowRight: 1, ArrowLeft: -1, ArrowDown: nLayers, ArrowUp: -nLayers }, nLayers - 1, readOut);
  keys($("heads"), { ArrowRight: 1, ArrowLeft: -1 }, data.head, (head) => { $("head").value = head; drawMaps(); });
  $("heads").addEventListener("click", (event) => indexed(event)?.focus({ preventScroll: true }));
  $("tokens").addEventListener("click", (event) => indexed(event)?.focus({ preventScroll: true }));
  $("tokens").addEventListener("pointerover", (event) => indexed(event) && show(Number(indexed(event).dataset.index)));
  $("tokens").addEventListener("pointerleave", () => show(chosen));
  $("lens").addEventListener("click", (event) => indexed(event)?.focus({ preventScroll: true }));
  $("lens").addEventListener("pointerover", (event) => indexed(event) && readOut(Number(indexed(event).dataset.index)));
  $("lens").addEventListener("pointerleave", readOutFocused);
  $("lens").addEventListener("focusout", readOutFocused);
  $("map").addEventListener("click", (event) => { choose(cellAt(event)[0]); showCell(...cellAt(event)); });
  $("map").addEventListener("pointermove", (event) => showCell(...cellAt(event)));
  $("map").addEventListener("pointerleave", () => touch() || showCell());  // a finger that is gone leaves its value
  new ResizeObserver(labelMap).observe($("map"));
  new ResizeObserver(sayMore).observe($("lens").parentElement);
  $("lens").parentElement.addEventListener("scroll", sayMore);
  for (const id of ["layer", "head"]) $(id).addEventListener("change", drawMaps);
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", drawMaps);
}

start();
