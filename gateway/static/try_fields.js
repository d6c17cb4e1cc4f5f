// The pieces of the form that tries a model, one for each input. Each has `element`, `value()` (undefined: not whole yet), `show(value)`
// (false: this piece cannot show it) and `files` (name that stands in the JSON -> File).
import { cells, depth, make, number, size, unwrapped, wrapped } from "./try_values.js";

let count = 0;
const nextId = () => `try-${(count += 1)}`;

/** `input` as the signature has it; `words`: sentences; `changed()` is called when the reader has changed something. */
export function field(input, words, changed) {
  const made = (KINDS[input.kind] ?? anything)(input, words, changed);
  const box = make("div", { className: "try-field mb-3" });
  const error = make("div", { className: "invalid-feedback", id: nextId() });
  const hint = make("div", { className: "form-hint", id: nextId(), textContent: made.hint ?? "" });
  const about = make("span", { className: "try-type", textContent: `${input.type} ${shapeText(input.shape)}` });
  const label = made.group ? make("legend", { className: "form-label" }) : make("label", { className: "form-label", htmlFor: made.control.id });
  label.append(make("span", { textContent: input.name }), " ", about);
  const whole = made.group ? make("fieldset", {}, label, made.element, hint, error) : make("div", {}, label, made.element, hint, error);
  box.append(whole);
  made.control.setAttribute("aria-describedby", `${hint.id} ${error.id}`);
  made.control.addEventListener("input", () => wrong(""));
  const wrong = (text) => {
    error.textContent = text;
    error.classList.toggle("d-block", Boolean(text));
    made.control.classList.toggle("is-invalid", Boolean(text));
    if (text) made.control.setAttribute("aria-invalid", "true");
    else made.control.removeAttribute("aria-invalid");
  };
  return { ...made, input, box, wrong, files: made.files ?? new Map(), focus: () => made.control.focus() };
}

export const shapeText = (shape) => (shape.length ? `[${shape.map((axis) => (axis === -1 ? "?" : axis)).join(", ")}]` : "");

function rangeText(input, words) {
  const { low, high } = input;
  if (low !== null && high !== null) return words.between.replace("{low}", low).replace("{high}", high);
  return low !== null ? words.atLeast.replace("{low}", low) : high !== null ? words.atMost.replace("{high}", high) : "";
}

function numeric(input, words, changed) {
  const control = make("input", { className: "form-control", id: nextId(), type: "text", inputMode: "decimal", autocomplete: "off", spellcheck: false });
  control.addEventListener("input", changed);
  return {
    control,
    element: control,
    hint: rangeText(input, words),
    problem: words.noNumber,
    value: () => { const found = number(control.value); return found === undefined ? undefined : wrapped(found, input.shape.length); },
    show: (value) => {
      const one = unwrapped(value);
      if (one === undefined || typeof one === "object" || typeof one === "boolean") return false;
      control.value = String(one);
      return true;
    },
  };
}

function choice(input, words, changed) {
  const control = make("select", { className: "form-select", id: nextId() });
  const values = input.values.map((text) => (input.type === "BYTES" ? text : number(text) ?? text));
  for (const [at, value] of values.entries()) control.append(make("option", { value: String(at), textContent: String(value) }));
  control.addEventListener("change", changed);
  return {
    control,
    element: control,
    value: () => wrapped(values[Number(control.value)], input.shape.length),
    show: (value) => {
      const at = values.indexOf(unwrapped(value));
      if (at < 0) return false;
      control.value = String(at);
      return true;
    },
  };
}

function check(input, words, changed) {
  const control = make("select", { className: "form-select", id: nextId() }, make("option", { value: "true", textContent: words.yes }), make("option", { value: "false", textContent: words.no }));
  control.addEventListener("change", changed);
  return {
    control,
    element: control,
    value: () => wrapped(control.value === "true", input.shape.length),
    show: (value) => { const one = unwrapped(value); if (typeof one !== "boolean") return false; control.value = String(one); return true; },
  };
}

// a text, or the content of any file
function text(input, words, changed) {
  const control = make("textarea", { className: "form-control", id: nextId(), rows: 3 });
  const picker = make("input", { className: "visually-hidden", type: "file", id: nextId(), tabIndex: -1 });
  const open = make("button", { className: "btn btn-sm mt-2", type: "button", textContent: words.file });
  const chosen = make("span", { className: "ms-2 text-secondary small" });
  const files = new Map();
  const take = (file) => {
    files.clear();
    if (file) files.set(`@${input.prefix}${file.name}`, file);
    control.disabled = Boolean(file);
    chosen.replaceChildren();
    if (file) {
      const away = make("button", { className: "btn btn-sm ms-2", type: "button", textContent: words.without });
      away.addEventListener("click", () => { take(null); changed(); control.focus(); });
      chosen.append(`${file.name} (${size(file.size)})`, away);
    }
  };
  open.addEventListener("click", () => picker.click());
  picker.setAttribute("aria-hidden", "true");
  picker.addEventListener("change", () => { take(picker.files[0]); picker.value = ""; changed(); });
  control.addEventListener("input", changed);
  return {
    control,
    element: make("div", {}, control, open, picker, chosen),
    files,
    value: () => wrapped(files.size ? { b64: [...files.keys()][0] } : control.value, input.shape.length),
    show: (value) => {
      const one = unwrapped(value);
      if (one?.b64 !== undefined) return files.has(one.b64);
      if (typeof one !== "string") return false;
      take(null);
      control.value = one;
      return true;
    },
  };
}

function picture(input, words, changed) {
  const control = make("input", { className: "visually-hidden", type: "file", accept: "image/*", id: nextId() });
  const preview = make("img", { alt: "", hidden: true });
  const said = make("span", { className: "text-secondary", textContent: words.drop });
  const drop = make("label", { className: "drop", htmlFor: control.id }, said, preview);
  const files = new Map();
  const take = (file) => {
    if (!file) return;
    files.clear();
    files.set(`@${input.prefix}${file.name}`, file);
    if (preview.src) URL.revokeObjectURL(preview.src);
    preview.src = URL.createObjectURL(file);
    preview.hidden = false;
    said.textContent = `${file.name} (${size(file.size)})`;
    changed();
  };
  preview.addEventListener("error", () => { preview.hidden = true; });
  control.addEventListener("change", () => { take(control.files[0]); control.value = ""; });
  for (const kind of ["dragover", "dragleave", "drop"]) {
    drop.addEventListener(kind, (event) => {
      event.preventDefault();
      drop.classList.toggle("over", kind === "dragover");
      if (kind === "drop") take(event.dataTransfer.files[0]);
    });
  }
  return {
    control,
    element: make("div", {}, control, drop),
    files,
    take,
    problem: words.noPicture,
    value: () => (files.size ? { b64: [...files.keys()][0] } : undefined),
    show: (value) => value?.b64 !== undefined && files.has(value.b64),
  };
}

// cells, as many as the input has columns; a block of a spreadsheet can be pasted into them
function grid(input, words, changed) {
  const columns = input.shape.at(-1);
  const flat = input.shape.length === 1;
  const body = make("tbody");
  const more = make("button", { className: "btn btn-sm mt-2", type: "button", textContent: words.addRow, hidden: flat || !input.rows });
  const control = make("div", { className: "try-grid", role: "group", id: nextId(), tabIndex: -1 });
  const cellOf = (row, at) => {
    const cell = make("input", { className: "form-control form-control-sm", type: "text", inputMode: "decimal", autocomplete: "off" });
    cell.setAttribute("aria-label", `${input.name} ${row + 1}, ${at + 1}`);
    return cell;
  };
  const add = (values = []) => {
    const row = make("tr");
    const index = body.rows.length;
    for (let at = 0; at < columns; at += 1) {
      const cell = cellOf(index, at);
      cell.value = values[at] === undefined ? "" : String(values[at]);
      row.append(make("td", {}, cell));
    }
    body.append(row);
  };
  control.addEventListener("paste", (event) => {
    const rows = cells(event.clipboardData.getData("text"));
    if (rows.length < 2 && (rows[0]?.length ?? 0) < 2) return;
    event.preventDefault();
    const cell = event.target.closest("td");
    const top = cell ? cell.parentNode.rowIndex : 0;
    const left = cell ? cell.cellIndex : 0;
    const kept = rows.filter((row, at) => at || row.some((each) => number(each) !== undefined)); // a first row of names
    kept.slice(0, flat || !input.rows ? 1 : kept.length).forEach((row, at) => {
      while (body.rows.length <= top + at) add();
      row.slice(0, columns - left).forEach((each, place) => { body.rows[top + at].cells[left + place].firstChild.value = each; });
    });
    changed();
  });
  control.addEventListener("input", changed);
  more.addEventListener("click", () => { add(); body.rows[body.rows.length - 1].cells[0].firstChild.focus(); changed(); });
  control.append(make("div", { className: "table-wide" }, make("table", { className: "try-cells" }, body)));
  add();
  const rows = () => [...body.rows].map((row) => [...row.cells].map((cell) => cell.firstChild.value)).filter((row, at) => !at || row.some((each) => each.trim()));
  return {
    control,
    group: true,
    element: make("div", {}, control, more),
    hint: input.rows && !flat ? words.paste : "",
    problem: words.noCell,
    value: () => {
      const found = rows().map((row) => row.map(number));
      if (found.some((row) => row.includes(undefined))) return undefined;
      return flat ? found[0] : found;
    },
    show: (value) => {
      const wanted = flat ? [value] : value;
      if (depth(wanted) !== 2 || wanted.some((row) => !Array.isArray(row) || row.length !== columns || row.some((each) => each !== null && typeof each === "object"))) return false;
      body.replaceChildren();
      wanted.forEach(add);
      return true;
    },
  };
}

// numbers, one sample in each line
function lines(input, words, changed) {
  const flat = input.shape.length === 1;
  const control = make("textarea", { className: "form-control font-monospace", id: nextId(), rows: 4, spellcheck: false });
  control.addEventListener("input", changed);
  return {
    control,
    element: control,
    hint: flat ? words.numbers : words.lines,
    problem: words.noNumbers,
    value: () => {
      const found = cells(control.value).map((row) => row.filter((each) => each !== "").map(number));
      if (!found.length || found.some((row) => row.includes(undefined))) return undefined;
      return flat ? found.flat() : found;
    },
    show: (value) => {
      const rows = flat ? [value] : value;
      if (depth(rows) !== 2 || rows.some((row) => !Array.isArray(row) || row.some((each) => each !== null && typeof each === "object"))) return false;
      control.value = rows.map((row) => row.join(", ")).join("\n");
      return true;
    },
  };
}

function anything(input, words, changed) {
  const control = make("textarea", { className: "form-control font-monospace", id: nextId(), rows: 5, spellcheck: false });
  control.addEventListener("input", changed);
  return {
    control,
    element: control,
    hint: words.nested.replace("{}", shapeText(input.shape)),
    problem: words.noJson,
    value: () => { try { return JSON.parse(control.value); } catch { return undefined; } },
    show: (value) => {
      const text = JSON.stringify(value);
      if (text.length > 200_000) return false;
      control.value = text;
      return true;
    },
  };
}

const KINDS = { number: numeric, choice, check, text, picture, grid, lines, json: anything };
