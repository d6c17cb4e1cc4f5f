// Shows what went into a prediction or came out of it: tables, labels as bars, pictures, text, and JSON; of what is large the beginning.
import { inWords } from "./lib.js";

const MOST_BYTES = 8 << 20;
const MOST_TEXT = 50_000;
const MOST_ROWS = 100;
const MOST_COLUMNS = 30;
const MOST_SAMPLES = 10;
const PICTURES = [[[0x89, 0x50, 0x4e, 0x47], "image/png"], [[0xff, 0xd8, 0xff], "image/jpeg"], [[0x47, 0x49, 0x46, 0x38], "image/gif"], [[0x52, 0x49, 0x46, 0x46], "image/webp"], [[0x42, 0x4d], "image/bmp"]];

const make = (name, text, ...classes) => {
  const element = document.createElement(name);
  if (text !== undefined) element.textContent = text;
  element.classList.add(...classes);
  return element;
};

const fill = (text, ...values) => values.reduce((so, value) => so.replace("{}", value), text);

export function size(bytes) {
  for (const unit of ["B", "kB", "MB"]) {
    if (bytes < 1000) return `${unit === "B" ? bytes : bytes.toPrecision(3)} ${unit}`;
    bytes /= 1000;
  }
  return `${bytes.toFixed(1)} GB`;
}

const figure = (value) => (typeof value === "number" && !Number.isInteger(value) ? String(Number(value.toPrecision(6))) : typeof value === "string" ? value : JSON.stringify(value));

// what a value is like -------------------------------------------------------------------------------------------------------

function shape(value) {
  const found = [];
  for (let at = value; Array.isArray(at); [at] = at) found.push(at.length);
  return found;
}

const isFlat = (list) => list.every((each) => each === null || typeof each !== "object");
const isFile = (value) => value !== null && typeof value === "object" && typeof value.b64 === "string" && Object.keys(value).length === 1;

function compact(value, deep = "") {
  const more = `${deep}  `;
  if (typeof value === "string") return JSON.stringify(value.length > 300 ? `${value.slice(0, 300)}… (${value.length})` : value);
  if (value === null || typeof value !== "object") return JSON.stringify(value);
  const isList = Array.isArray(value);
  const parts = isList ? value.map((each) => compact(each, more)) : Object.entries(value).map(([key, each]) => `${JSON.stringify(key)}: ${compact(each, more)}`);
  const [open, close] = isList ? "[]" : "{}";
  if (!parts.length) return open + close;
  const line = `${open}${parts.join(", ")}${close}`;
  return isList && isFlat(value) && line.length < 2000 ? line : `${open}\n${more}${parts.join(`,\n${more}`)}\n${deep}${close}`;
}

// pieces ---------------------------------------------------------------------------------------------------------------------

function table(columns, rows, words, label) {
  const wide = make("div", undefined, "table-wide");
  wide.tabIndex = 0;
  wide.setAttribute("role", "region");
  wide.setAttribute("aria-label", label);
  const made = make("table", undefined, "table", "table-sm", "table-vcenter", "m-0");
  const head = make("tr");
  for (const name of ["#", ...columns.slice(0, MOST_COLUMNS), ...(columns.length > MOST_COLUMNS ? ["…"] : [])]) {
    const cell = make("th", name, "text-none");
    cell.scope = "col";
    if (name === "#") cell.setAttribute("aria-label", words.index);
    head.append(cell);
  }
  made.append(make("thead"), make("tbody"));
  made.tHead.append(head);
  rows.slice(0, MOST_ROWS).forEach((row, place) => {
    const line = make("tr");
    line.append(make("td", String(place + 1), "text-secondary"));
    for (const value of row.slice(0, MOST_COLUMNS)) line.append(make("td", figure(value), "figures", typeof value === "number" ? "text-nowrap" : "value-cell"));
    if (row.length > MOST_COLUMNS) line.append(make("td", "…"));
    made.tBodies[0].append(line);
  });
  wide.append(made);
  if (rows.length <= MOST_ROWS) return [wide];
  return [wide, make("p", fill(words.rows, MOST_ROWS, rows.length), "small", "text-secondary", "mt-1", "mb-0")];
}

export function bars(labels, title) {
  const list = make("dl", undefined, "bars");
  list.setAttribute("aria-label", title);
  for (const { label, score } of labels) {
    const [name, bar, share, meter] = [make("dt", label), make("dd"), make("dd", score >= 0 && score <= 1 ? `${(100 * score).toFixed(1)} %` : figure(score), "figures"), make("meter")];
    meter.value = score;
    meter.setAttribute("aria-label", label);
    bar.append(meter);
    list.append(name, bar, share);
  }
  return list;
}

function bytes(text) {
  try {
    return Uint8Array.from(atob(text.replace(/-/g, "+").replace(/_/g, "/")), (character) => character.charCodeAt(0));
  } catch {
    return new Uint8Array();
  }
}

/** A picture is shown from its own bytes, with the type that they say themselves; anything else can only be saved. */
function file(value, name, words) {
  const content = bytes(value.b64);
  const type = PICTURES.find(([start]) => start.every((byte, place) => content[place] === byte))?.[1];
  if (type) {
    const picture = make("img", undefined, "value-picture");
    picture.src = URL.createObjectURL(new Blob([content], { type }));
    picture.alt = fill(words.picture, name);
    return picture;
  }
  const link = make("a", fill(words.bytes, size(content.length)), "btn", "btn-sm");
  link.href = URL.createObjectURL(new Blob([content], { type: "application/octet-stream" }));
  link.download = name;
  return link;
}

function tensor(name, value, words) {
  const box = make("div", undefined, "value");
  const heading = make("h3", name, "h4", "mb-1", "text-break");
  const sizes = shape(value);
  if (sizes.length) heading.append(make("span", ` ${sizes.join(" × ")}`, "text-secondary", "fw-normal"));
  box.append(heading);
  const files = Array.isArray(value) ? value : [value];
  if (files.length && files.every(isFile)) {
    const shown = make("div", undefined, "d-flex", "flex-wrap", "gap-2");
    shown.append(...files.slice(0, MOST_SAMPLES).map((each) => file(each, name, words)));
    box.append(shown);
  } else if (Array.isArray(value) && isFlat(value)) {
    box.append(...(value.length <= 1 ? [make("p", value.map(figure).join(""), "text-break", "m-0", "figures", "lead-value")] : table([name], value.map((each) => [each]), words, name)));
  } else if (Array.isArray(value) && value.every((row) => Array.isArray(row) && isFlat(row))) {
    const wide = Math.max(...value.map((row) => row.length));
    if (value.length === 1 && wide > 12) box.append(...table([name], value[0].map((each) => [each]), words, name));
    else if (wide === 1 && value.length === 1) box.append(make("p", figure(value[0][0]), "text-break", "m-0", "figures", "lead-value"));
    else box.append(...table(Array.from({ length: wide }, (_, place) => String(place)), value, words, name));
  } else if (value !== null && typeof value === "object") {
    box.append(plain(compact(value), name));
  } else {
    box.append(make("p", figure(value), "text-break", "m-0", "figures", "lead-value"));
  }
  return box;
}

function plain(text, label) {
  const shown = make("pre", text.length > MOST_TEXT ? `${text.slice(0, MOST_TEXT)}\n…` : text, "value-text");
  shown.tabIndex = 0;
  shown.setAttribute("aria-label", label);
  return shown;
}

function readable(value, words) {
  if (Array.isArray(value?.records)) {
    const columns = Object.keys(value.records[0] ?? {});
    return table(columns, value.records.map((each) => columns.map((name) => each[name])), words, "records");
  }
  if (Array.isArray(value?.columns) && Array.isArray(value?.data)) return table(value.columns, value.data, words, "data");
  const parts = [];
  if (Array.isArray(value?.labels)) {
    const samples = Array.isArray(value.labels[0]) ? value.labels : [value.labels];
    samples.slice(0, MOST_SAMPLES).forEach((labels, place) => {
      if (samples.length > 1) parts.push(make("h3", fill(words.label, place + 1), "h4", "mb-1"));
      parts.push(bars(labels, fill(words.label, place + 1)));
    });
    if (samples.length > MOST_SAMPLES) parts.push(make("p", fill(words.rows, MOST_SAMPLES, samples.length), "small", "text-secondary"));
  }
  const named = value?.outputs ?? value?.inputs ?? (value?.filetype ? value : null);
  if (named && typeof named === "object") {
    const tensors = Object.entries(named).map(([name, each]) => tensor(name, each, words));
    if (parts.length) { // the labels say it; the numbers are there for who wants them
      const more = make("details");
      more.append(make("summary", words.more), ...tensors);
      parts.push(more);
    } else parts.push(...tensors);
  }
  if (value?.timing_ms?.compute !== undefined) parts.push(make("p", fill(words.took, Number(value.timing_ms.compute).toFixed(1)), "small", "text-secondary", "m-0"));
  return parts;
}

// the whole ------------------------------------------------------------------------------------------------------------------

/** [text, bytes in all, whether the text is all of it] of an answer. */
async function beginning(answer) {
  const reader = answer.body.getReader();
  const pieces = [];
  let count = 0;
  for (;;) {
    const { done, value } = await reader.read();
    if (done) break;
    pieces.push(value);
    count += value.length;
    if (count > MOST_BYTES) {
      reader.cancel();
      return [await new Blob(pieces).slice(0, MOST_TEXT).text(), Number(answer.headers.get("Content-Length")) || count, false];
    }
  }
  return [await new Blob(pieces).text(), count, true];
}

function choice(box, ways) {
  const group = make("div", undefined, "btn-group");
  group.setAttribute("role", "group");
  group.setAttribute("aria-label", box.dataset.way);
  const shown = make("div", undefined, "view-body");
  const choose = (key) => {
    for (const button of group.children) {
      const here = button.dataset.key === key;
      button.classList.toggle("active", here);
      button.setAttribute("aria-pressed", here);
    }
    shown.replaceChildren(...ways[key].make());
  };
  for (const [key, { name }] of Object.entries(ways)) {
    const button = make("button", name, "btn", "btn-sm");
    button.type = "button";
    button.dataset.key = key;
    button.addEventListener("click", () => choose(key));
    group.append(button);
  }
  choose(Object.keys(ways)[0]);
  return [group, shown];
}

async function show(box) {
  const words = box.dataset;
  const download = make("a", words.download, "btn", "btn-sm");
  download.href = words.view;
  download.download = words.file;
  const tools = make("div", undefined, "view-tools");
  try {
    const answer = await fetch(words.view, { credentials: "same-origin" });
    if (!answer.ok) throw new Error(await inWords((await answer.json().catch(() => ({}))).detail ?? String(answer.status)));
    const [text, count, isWhole] = await beginning(answer);
    let value;
    try { value = isWhole ? JSON.parse(text) : undefined; } catch { value = undefined; }
    if (value === undefined) {
      tools.append(download);
      const note = isWhole ? [] : [make("p", fill(words.large, size(count), size(MOST_TEXT)), "text-secondary")];
      box.replaceChildren(tools, ...note, text ? plain(text, words.file) : make("p", words.empty));
      return;
    }
    const parts = readable(value, words);
    const pretty = () => [plain(compact(value), "JSON")];
    const ways = parts.length ? { readable: { name: words.asTable, make: () => readable(value, words) }, json: { name: words.asJson, make: pretty } } : { json: { name: words.asJson, make: pretty } };
    const [group, shown] = choice(box, ways);
    tools.append(group, download);
    box.replaceChildren(tools, shown);
  } catch (error) {
    tools.append(download);
    const said = make("p", `${words.failed}: ${error.message}`, "fw-bold");
    said.setAttribute("role", "alert");
    box.replaceChildren(said, tools);
  }
}

export function showAll(root = document) {
  const found = [...root.querySelectorAll("[data-view]:not([data-shown])")];
  for (const box of found) {
    box.dataset.shown = "";
    show(box);
  }
}

document.addEventListener("htmx:load", (event) => { if (event.target !== document.body) showAll(event.target.parentNode ?? event.target); });
showAll();
