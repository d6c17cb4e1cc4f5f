// A new batch: looks into the chosen file, compares its columns with what the model takes, and sends it with its progress.
import { draftName, formToken, inWords } from "./lib.js";
import { size } from "./values.js";

const PEEK_BYTES = 256 << 10;
const ROWS = 5;
const COLUMNS = 12;
const FORMATS = { csv: "csv", jsonl: "jsonl", ndjson: "jsonl", zip: "zip" };

const form = document.querySelector("[data-new-batch]");
const words = form.dataset;
const input = form.querySelector("#field-file");
const drop = form.querySelector(".drop");
const preview = document.getElementById("preview");
const trouble = document.getElementById("trouble");
let chosen = null;
let head = null;

const fill = (text, ...values) => values.reduce((so, value) => so.replace("{}", value), text);
const make = (name, text, className = "") => Object.assign(document.createElement(name), { className, textContent: text ?? "" });
const kind = (file) => FORMATS[file.name.split(".").pop().toLowerCase()];

function alarm(text, level = "danger", link = null) {
  const box = make("div", "", `alert alert-${level}`);
  box.append(make("div", text));
  if (link) {
    const to = make("a", words.signIn, "ms-2");
    to.href = link;
    to.target = "_blank";
    box.append(to);
  }
  trouble.replaceChildren(box);
}

// looking into the file ------------------------------------------------------------------------------------------------------

/** The first records of a csv text; quotes may hold line ends. */
function records(text, most) {
  const found = [];
  let [cells, cell, quoted] = [[], "", false];
  for (let at = 0; at < text.length && found.length < most; at += 1) {
    const character = text[at];
    if (quoted) {
      if (character !== '"') cell += character;
      else if (text[at + 1] === '"') { cell += '"'; at += 1; } else quoted = false;
    } else if (character === '"') quoted = true;
    else if (character === ",") { cells.push(cell); cell = ""; } else if (character === "\n" || character === "\r") {
      if (cell || cells.length) found.push([...cells, cell]);
      [cells, cell] = [[], ""];
    } else cell += character;
  }
  if ((cell || cells.length) && found.length < most) found.push([...cells, cell]);
  return found;
}

function table(columns, rows) {
  const wide = make("div", "", "table-wide mb-2");
  wide.tabIndex = 0;
  wide.setAttribute("role", "region");
  wide.setAttribute("aria-label", fill(words.rows, rows.length));
  const made = make("table", "", "table table-sm m-0");
  const first = make("tr");
  for (const name of columns.slice(0, COLUMNS)) first.append(Object.assign(make("th", name, "text-none"), { scope: "col" }));
  made.append(make("thead"), make("tbody"));
  made.tHead.append(first);
  for (const row of rows) {
    const line = make("tr");
    for (const value of row.slice(0, COLUMNS)) line.append(make("td", value.length > 80 ? `${value.slice(0, 80)}…` : value, "figures"));
    made.tBodies[0].append(line);
  }
  wide.append(made);
  return [make("p", fill(words.rows, rows.length), "small text-secondary mb-1"), wide];
}

/** Whether it is the file of another batch's failed rows: the server leaves out what says why they failed. */
const isOfFailedRows = ([row, error], [number, why] = []) => row === "row" && error === "error" && /^\d+$/.test(number) && /^$|^[a-z_]+: /.test(why);

/** What does not fit between the columns of the file and the inputs, "" for nothing; null where it is not known. */
function misfit(columns) {
  const expected = document.getElementById("expected");
  const inputs = JSON.parse(expected.dataset.columns || "[]");
  if (!inputs.length) return null;
  const missing = inputs.filter((name) => !columns.includes(name));
  const unknown = columns.filter((name) => !inputs.includes(name));
  if (!missing.length && !unknown.length) return "";
  if (expected.dataset.one) {
    const wide = Number(expected.dataset.width);
    return wide > 0 && wide !== columns.length ? fill(words.counts, wide, columns.length) : "";
  }
  return [...missing.map((name) => fill(words.missing, name)), ...unknown.map((name) => fill(words.unknown, name))].join("; ");
}

function judge() {
  preview.querySelector("[data-judged]")?.remove();
  if (!head) return;
  const wrong = misfit(head);
  if (wrong === null) return;
  const said = make("p", wrong || words.fits, `alert alert-${wrong ? "danger" : "success"} py-2`);
  said.dataset.judged = "";
  preview.append(said);
}

/** How many files an archive holds, and the names of the first; from its end, where the directory is. */
async function names(file) {
  const tail = new DataView(await file.slice(Math.max(0, file.size - 65_557)).arrayBuffer());
  let end = tail.byteLength - 22;
  while (end >= 0 && tail.getUint32(end, true) !== 0x06054b50) end -= 1;
  if (end < 0) return [0, []];
  const [count, length, start] = [tail.getUint16(end + 10, true), tail.getUint32(end + 12, true), tail.getUint32(end + 16, true)];
  const directory = new DataView(await file.slice(start, start + Math.min(length, PEEK_BYTES)).arrayBuffer());
  const found = [];
  for (let at = 0; at + 46 <= directory.byteLength && found.length < 8 && directory.getUint32(at, true) === 0x02014b50;) {
    const [name, extra, comment] = [28, 30, 32].map((place) => directory.getUint16(at + place, true));
    const text = new TextDecoder().decode(new Uint8Array(directory.buffer, at + 46, Math.min(name, directory.byteLength - at - 46)));
    if (!text.endsWith("/")) found.push(text);
    at += 46 + name + extra + comment;
  }
  return [count, found];
}

async function look(file) {
  chosen = file;
  head = null;
  trouble.replaceChildren();
  drop.querySelector("[data-name]").textContent = `${file.name} · ${size(file.size)}`;
  drop.querySelector("[data-name]").classList.add("drop-file");
  const format = kind(file);
  if (!format || !file.size) {
    preview.replaceChildren();
    alarm(file.size ? words.format : words.empty);
    return;
  }
  if (format === "zip") {
    const [count, first] = await names(file);
    const list = make("ul", "", "mb-2");
    list.append(...first.map((name) => make("li", name, "text-break")));
    preview.replaceChildren(make("p", fill(words.files, count), "small text-secondary mb-1"), list);
    return;
  }
  const text = (await file.slice(0, PEEK_BYTES).text()).replace(/^\ufeff/, "");
  if (format === "csv") {
    const [columns = [], ...rows] = records(text, ROWS + 1);
    const names = columns.map((name) => name.trim());
    head = isOfFailedRows(names, rows[0]) ? names.slice(2) : names;
    preview.replaceChildren(...table(names, rows));
    judge();
    return;
  }
  const lines = text.split("\n").filter((line) => line.trim()).slice(0, ROWS);
  const shown = make("pre", lines.map((line) => (line.length > 300 ? `${line.slice(0, 300)}…` : line)).join("\n"), "value-text mb-2");
  shown.tabIndex = 0;
  shown.setAttribute("aria-label", fill(words.rows, lines.length));
  preview.replaceChildren(make("p", fill(words.rows, lines.length), "small text-secondary mb-1"), shown);
}

input.addEventListener("change", () => { if (input.files[0]) look(input.files[0]); });
for (const type of ["dragover", "dragleave", "drop"]) {
  drop.addEventListener(type, (event) => {
    event.preventDefault();
    drop.classList.toggle("over", type === "dragover");
    if (type === "drop" && event.dataTransfer.files[0]) look(event.dataTransfer.files[0]);
  });
}
document.addEventListener("htmx:afterSettle", judge);

// sending --------------------------------------------------------------------------------------------------------------------

const bar = document.getElementById("sending");
const stop = form.querySelector("[data-stop]");
const send = form.querySelector("button[type=submit]");
let request = null;
let key = null; // of what is sent: the same again is the same batch

function busy(is) {
  send.disabled = is;
  stop.hidden = !is;
  bar.hidden = !is;
}

async function refused(status, said) {
  if (status === 401) alarm(words.expired, "warning", "/ui/sign-in");
  else alarm(`${words.failed}: ${await inWords(said?.detail ?? String(status))}`);
}

form.addEventListener("submit", (event) => {
  event.preventDefault();
  event.stopPropagation();
  if (request) return;
  const [what, ...name] = form.target.value.split(":");
  if (!chosen || !name.length) {
    alarm(words.choose, "warning");
    (name.length ? input : form.target).focus();
    return;
  }
  trouble.replaceChildren();
  const body = new FormData();
  body.append(what, name.join(":"));
  for (const field of ["result_format", "top_k", "outputs"]) if (form.elements[field].value.trim()) body.append(field, form.elements[field].value.trim());
  body.append("file", chosen, chosen.name);
  const begun = performance.now();
  const [progress, words_] = [bar.querySelector("progress"), bar.querySelector("[data-said]")];
  request = new XMLHttpRequest();
  request.open("POST", "/v1/batches");
  request.setRequestHeader("X-Form-Token", formToken());
  key ??= crypto.randomUUID?.() ?? `${Date.now()}-${Math.random()}`;
  request.setRequestHeader("Idempotency-Key", key);
  request.upload.addEventListener("progress", ({ loaded, total }) => {
    progress.value = total ? loaded / total : 0;
    const seconds = (performance.now() - begun) / 1000;
    words_.textContent = loaded < total ? fill(words.sent, size(loaded), size(total), size(loaded / Math.max(seconds, 0.1))) : words.checking;
  });
  const end = (act) => () => {
    const done = request;
    request = null;
    busy(false);
    act(done);
  };
  request.addEventListener("load", end(({ status, responseText }) => {
    let said = null;
    try { said = JSON.parse(responseText); } catch { /* an answer of a proxy */ }
    key = null;
    if (status === 202 && said?.id) {
      sessionStorage.removeItem(draftName(form));
      location.assign(`/ui/batches/${said.id}`);
    } else refused(status, said);
  }));
  request.addEventListener("error", end(() => alarm(words.offline, "warning")));
  request.addEventListener("abort", end(() => { key = null; }));
  busy(true);
  request.send(body);
});
stop.addEventListener("click", () => request?.abort());
form.addEventListener("change", () => { key = null; });
if (input.files[0]) look(input.files[0]); // Back
