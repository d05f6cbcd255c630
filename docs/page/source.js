// The source that runs: gpt2.py and encoder.py, cut into functions, whose calls are links.
"use strict";

const SOURCES = ["gpt2.py", "encoder.py"];
const functions = new Map();  // name: {file, line, group, text}

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

// Make a docstring running text, with its line ends as spaces: a block for each paragraph. Examples keep their lines.
function docstring(text) {
  const made = element("span", "", "doc");
  made.style.setProperty("--indent", `${/^ */.exec(text)[0].length}ch`);
  for (const part of text.split(/(\n *\n)/)) {
    const kind = part.trim().startsWith(">>>") ? "example" : "paragraph";
    made.append(/\S/.test(part) ? element("span", part, kind) : part);
  }
  return made;
}

// Turn source into elements: docstrings and comments in a quieter colour, and calls of other functions as links.
function coloured(text, own) {
  const made = [];
  let at = 0;
  for (const found of text.matchAll(/ *r?"""[^]*?"""|f?"(?:\\.|[^"\\\n])*"|#.*|\b([A-Za-z_]\w*)(?=\()/g)) {
    const [word, name] = found;
    const isLink = name && name !== own && functions.has(name) && text[found.index - 1] !== ".";
    const isDoc = /^ *r?"""/.test(word);
    if (!isLink && !isDoc && !word.startsWith("#")) continue;
    made.push(text.slice(at, found.index));
    const part = isDoc ? docstring(word) : element(isLink ? "button" : "span", word, isLink ? "link" : "words");
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
