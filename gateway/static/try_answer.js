// What a model has answered, as bars, pictures and tables.
import { make, shapeOf, size, spell } from "./try_values.js";

const MOST_ROWS = 50;
const MOST_COLUMNS = 24;
const MOST_JSON = 200_000;

/** Everything of an answer, for `words` as in try/form.html; the output that is `labelled` is there as its labels. */
export function answer(said, words, labelled) {
  const parts = [];
  (said.labels ?? []).slice(0, 8).forEach((labels, at) => {
    const heading = said.labels.length > 1 ? words.sample.replace("{}", at + 1) : words.labels;
    parts.push(part(heading, bars(labels.map((each) => [each.label ?? `#${each.index}`, each.score]), words)));
  });
  for (const [name, value] of Object.entries(said.outputs ?? {})) if (!said.labels || name !== labelled) parts.push(part(name, output(value, words), shapeText(value)));
  if (said.assumed) parts.push(make("p", { className: "small text-secondary mt-3 mb-0", textContent: `${words.assumed} ${Object.keys(said.assumed).join(", ")}` }));
  const raw = make("pre", { className: "try-raw mb-0", tabIndex: 0 });
  raw.setAttribute("aria-label", "JSON");
  const whole = make("details", { className: "mt-3" }, make("summary", { textContent: words.json }), raw);
  whole.addEventListener("toggle", () => {
    const text = spell(said);
    raw.textContent = text.length > MOST_JSON ? `${text.slice(0, MOST_JSON)} …` : text;
  }, { once: true });
  return [...parts, whole];
}

/** Queue, model, gateway and the way there and back, in milliseconds. */
export function times(timing, round, words) {
  const list = make("dl", { className: "try-times" });
  const told = [[words.queue, timing?.queue], [words.compute, timing?.compute], [words.total, timing?.total], [words.round, round]];
  for (const [name, value] of told) {
    if (value === undefined) continue;
    list.append(make("div", {}, make("dt", { textContent: name }), make("dd", { textContent: `${value < 10 ? value.toFixed(2) : value.toFixed(value < 100 ? 1 : 0)} ms` })));
  }
  return list;
}

function part(heading, inside, about = "") {
  const head = make("h3", { className: "h4 mt-3 mb-2 text-break", textContent: heading });
  if (about) head.append(" ", make("span", { className: "try-type", textContent: about }));
  return make("div", {}, head, inside);
}

function bars(pairs, words) {
  const numbers = pairs.map(([, value]) => Number(value));
  const shares = numbers.every((each) => each >= 0 && each <= 1);
  const most = shares ? 1 : Math.max(...numbers.map(Math.abs), 1e-12);
  const list = make("dl", { className: "bars" });
  pairs.forEach(([name, value], at) => {
    const meter = make("meter", { min: 0, max: 1 });
    meter.value = Math.max(0, numbers[at] / most) || 0;
    meter.setAttribute("aria-label", String(name));
    list.append(make("dt", { textContent: name }), make("dd", {}, meter), make("dd", { textContent: shares ? `${(100 * numbers[at]).toFixed(1)} %` : shown(value, words) }));
  });
  return list;
}

function shapeText(value) {
  const shape = shapeOf(value);
  return shape.length ? `[${shape.join(", ")}]` : "";
}

function output(value, words) {
  const shape = shapeOf(value);
  const image = pictureOf(value, shape, words);
  if (image) return image;
  if (shape.length === 2 && shape[0] === 1 && shape[1] > 1 && isShares(value[0])) {
    const best = value[0].map((each, at) => [`#${at}`, each]).sort((one, other) => other[1] - one[1]).slice(0, 10);
    const rest = shape[1] - best.length;
    return make("div", {}, bars(best, words), ...(rest > 0 ? [note(words.more.replace("{}", rest))] : []));
  }
  if (shape.length > 2) return make("pre", { className: "try-raw mb-0", tabIndex: 0, textContent: cut(spell(value)) });
  const rows = shape.length === 2 ? value : shape.length === 1 ? value.map((each) => [each]) : [[value]];
  return table(rows, words);
}

const isShares = (row) => row.every((each) => typeof each === "number" && each >= 0 && each <= 1) && Math.abs(row.reduce((sum, each) => sum + each, 0) - 1) < 0.01;
const cut = (text) => (text.length > 4000 ? `${text.slice(0, 4000)} …` : text);
const note = (text) => make("p", { className: "small text-secondary mb-0 mt-2", textContent: text });

function table(rows, words) {
  if (rows.length === 1 && rows[0].length === 1) return make("p", { className: "try-single text-break" }, cell(rows[0][0], words));
  const body = make("tbody");
  rows.slice(0, MOST_ROWS).forEach((row, at) => {
    const line = make("tr", {}, make("th", { scope: "row", className: "text-secondary", textContent: String(at) }));
    row.slice(0, MOST_COLUMNS).forEach((each) => line.append(make("td", {}, cell(each, words))));
    body.append(line);
  });
  const wide = make("div", { className: "table-wide", tabIndex: 0 }, make("table", { className: "table table-sm mb-0 try-table" }, body));
  wide.setAttribute("role", "region");
  wide.setAttribute("aria-label", words.table);
  const hidden = rows.length * (rows[0]?.length ?? 0) - Math.min(rows.length, MOST_ROWS) * Math.min(rows[0]?.length ?? 0, MOST_COLUMNS);
  return make("div", {}, wide, ...(hidden > 0 ? [note(words.more.replace("{}", hidden))] : []));
}

function shown(value) {
  if (typeof value !== "number") return String(value);
  return Number.isInteger(value) ? String(value) : String(Number(value.toPrecision(6)));
}

function cell(value, words) {
  if (value?.b64 === undefined) return document.createTextNode(shown(value, words));
  const bytes = Uint8Array.from(atob(value.b64), (each) => each.charCodeAt(0));
  const link = make("a", { href: URL.createObjectURL(new Blob([bytes])), download: "output.bin", textContent: words.bytes.replace("{}", size(bytes.length)) });
  return link;
}

// [1, 3, h, w], [1, h, w, 3], or one channel: drawn, from 0..1, 0..255, or from the least to the most
function pictureOf(value, shape, words) {
  if (shape.length < 3 || shape.length > 4) return null;
  let plane = shape.length === 4 ? value[0] : value;
  const [a, b, c] = shape.slice(-3);
  const first = [1, 3].includes(a) && b >= 8 && c >= 8;
  const last = [1, 3].includes(c) && a >= 8 && b >= 8;
  if (!first && !last) return null;
  const [channels, height, width] = first ? [a, b, c] : [c, a, b];
  if (width * height > 4_000_000) return null;
  const at = (channel, y, x) => Number(first ? plane[channel][y][x] : plane[y][x][channel]);
  let [low, high] = [Infinity, -Infinity];
  for (let y = 0; y < height; y += 1) for (let x = 0; x < width; x += 1) for (let k = 0; k < channels; k += 1) { const each = at(k, y, x); if (each < low) low = each; if (each > high) high = each; }
  if (low >= 0 && high <= 1) [low, high] = [0, 1];
  else if (low >= 0 && high <= 255) [low, high] = [0, 255];
  const canvas = make("canvas", { width, height, className: "try-picture" });
  const pixels = new ImageData(width, height);
  for (let y = 0, to = 0; y < height; y += 1) {
    for (let x = 0; x < width; x += 1, to += 4) {
      for (let k = 0; k < 3; k += 1) pixels.data[to + k] = (255 * (at(channels === 3 ? k : 0, y, x) - low)) / (high - low || 1);
      pixels.data[to + 3] = 255;
    }
  }
  canvas.getContext("2d").putImageData(pixels, 0, 0);
  canvas.setAttribute("role", "img");
  canvas.setAttribute("aria-label", words.picture);
  const more = shape.length === 4 && shape[0] > 1 ? [note(words.first.replace("{}", shape[0]))] : [];
  return make("div", {}, canvas, ...more);
}
