// Values of a model's inputs: from what is typed or pasted, to JSON and back.

/** JSON as people read it: a row of numbers in one line. */
export function spell(value, indent = "") {
  if (value === null || typeof value !== "object") return JSON.stringify(value);
  const inner = `${indent}  `;
  if (!Array.isArray(value)) {
    const keys = Object.keys(value);
    if (!keys.length) return "{}";
    if (keys.length === 1 && (value[keys[0]] === null || typeof value[keys[0]] !== "object")) return `{${JSON.stringify(keys[0])}: ${spell(value[keys[0]])}}`;
    return `{\n${keys.map((key) => `${inner}${JSON.stringify(key)}: ${spell(value[key], inner)}`).join(",\n")}\n${indent}}`;
  }
  if (value.every((each) => each === null || typeof each !== "object") || value.length === 1) return `[${value.map((each) => spell(each, indent)).join(", ")}]`;
  return `[\n${value.map((each) => inner + spell(each, inner)).join(",\n")}\n${indent}]`;
}

const WORDS = { nan: "NaN", infinity: "Infinity", inf: "Infinity", "-infinity": "-Infinity", "-inf": "-Infinity", "+inf": "Infinity" };
const NUMBER = /^[+-]?(\d+\.?\d*|\.\d+)(e[+-]?\d+)?$/i;

/** The number that a text says, undefined for none. Not finite ones are the words that the interface takes. */
export function number(text) {
  const clean = text.trim().replace(/\u2212/g, "-");
  if (WORDS[clean.toLowerCase()] !== undefined) return WORDS[clean.toLowerCase()];
  return NUMBER.test(clean) ? Number(clean) : undefined;
}

/** Rows of cells out of what a spreadsheet or a csv file has. */
export function cells(text) {
  const lines = text.replace(/\r\n?/g, "\n").split("\n").filter((line) => line.trim());
  const by = ["\t", ";", ","].find((each) => lines.some((line) => line.includes(each)));
  return lines.map((line) => (by ? line.split(by) : line.trim().split(/\s+/)).map((cell) => cell.trim()));
}

/** How deep lists lie in each other. */
export const depth = (value) => (Array.isArray(value) ? 1 + (value.length ? depth(value[0]) : 0) : 0);

/** One element in as many lists as the input has axes. */
export const wrapped = (value, axes) => (axes ? [wrapped(value, axes - 1)] : value);

/** The element, where there is just one; else undefined. */
export function unwrapped(value) {
  while (Array.isArray(value)) {
    if (value.length !== 1) return undefined;
    [value] = value;
  }
  return value;
}

/** The bytes of a file in base64. */
export function base64(file) {
  return new Promise((resolve, reject) => {
    const reader = new FileReader();
    reader.onload = () => resolve(reader.result.slice(reader.result.indexOf(",") + 1));
    reader.onerror = () => reject(reader.error);
    reader.readAsDataURL(file);
  });
}

export function make(tag, more = {}, ...inside) {
  const element = document.createElement(tag);
  for (const [key, value] of Object.entries(more)) {
    if (key in element && key !== "list") element[key] = value;
    else element.setAttribute(key, value);
  }
  element.append(...inside);
  return element;
}

export function size(bytes) {
  const units = ["B", "kB", "MB", "GB"];
  let at = 0;
  while (bytes >= 1000 && at < 3) [bytes, at] = [bytes / 1000, at + 1];
  return `${at && bytes < 100 ? bytes.toFixed(1) : Math.round(bytes)} ${units[at]}`;
}

/** The sizes of nested lists. */
export function shapeOf(value) {
  const shape = [];
  while (Array.isArray(value)) {
    shape.push(value.length);
    [value] = value;
  }
  return shape;
}
