// The overview of a deployment: its statistics, asked for again and again, as figures, charts and a table.
import { Chart, bytes, number, when } from "./charts.js";
import { ask, inWords } from "./lib.js";

const EVERY_MS = 1500; // with the host's counters read at most every 0.4 s, a call is seen within 2 s
const WHOLE_EVERY_MS = 60000;
const LONG = 400; // of more points than these only the last are asked for each time
const MOST_ROWS = 60;
const root = document.getElementById("charts");
const ms = (value) => `${number(value)} ms`;
const part = (name) => root.querySelector(`[data-chart=${name}]`);

const chart = (name, options) => new Chart(part(name), { label: part(name).dataset.label, series: [{ name: part(name).dataset.one }], ...options });
const charts = {
  rate: chart("rate", {}),
  latency: chart("latency", { spell: ms, series: [{ name: "p50" }, { name: "p95" }, { name: "p99" }] }),
  errors: chart("errors", { series: [], stacked: true, least: 4 }),
  queue: chart("queue", { spell: ms, least: 1 }),
  memory: chart("memory", { spell: bytes, least: 1e6 }),
};

let range = root.querySelector("[data-range][aria-current]");
let points = new Map(); // begin in seconds -> point
let total = null;
let wholeAt = -Infinity;
let turn = 0;

const counted = (errors) => Object.values(errors).reduce((sum, count) => sum + count, 0);
const figure = (name, text) => { root.querySelector(`[data-figure=${name}]`).textContent = text; };
const span = () => Number(range.dataset.spanS);

// seconds that a point's counts are of: what happened while nobody looked is in the point after that; the last one has only begun
function lasted(at, before, now) {
  const begin = before !== undefined && at - before <= 6 * span() ? before + span() : at;
  return Math.max(Math.min(at + span(), now) - begin, 2);
}

function grouped(times, step) {
  const sums = new Map();
  for (const at of times) {
    const begin = Math.floor(at / step) * step;
    const sum = sums.get(begin) ?? {};
    for (const [code, count] of Object.entries(points.get(at).errors)) sum[code] = (sum[code] ?? 0) + count;
    sums.set(begin, sum);
  }
  return sums;
}

function drawErrors(times, low, high) {
  const step = span() * Math.max(1, Math.round(Number(range.dataset.seconds) / span() / 60));
  const sums = grouped(times, step);
  const codes = [...new Set([...sums.values()].flatMap(Object.keys))].sort();
  const begins = [];
  for (let at = Math.floor(low / step) * step; at <= high; at += step) begins.push(at);
  charts.errors.name(codes);
  charts.errors.show(begins.map((at) => at + step / 2), codes.map((code) => begins.map((at) => sums.get(at)?.[code] ?? null)), low, high);
  part("errors").hidden = codes.length === 0;
  root.querySelector("[data-none]").hidden = codes.length > 0;
}

// where nothing is known for long there is a gap, and no line through it
function withGaps(times) {
  const all = [];
  times.forEach((at, place) => {
    if (place && at - times[place - 1] > 6 * span()) all.push(times[place - 1] + span());
    all.push(at);
  });
  return all;
}

function draw() {
  const now = Date.now() / 1000;
  const low = now - Number(range.dataset.seconds);
  for (const at of points.keys()) if (at < low - span()) points.delete(at);
  const known = [...points.keys()].sort((one, other) => one - other);
  const times = withGaps(known);
  const row = (value) => times.map((at, place) => (points.has(at) ? value(points.get(at), at, times[place - 1]) : null));
  charts.rate.show(times, [row((point, at, before) => point.requests / lasted(at, before, now))], low, now);
  charts.latency.show(times, ["p50", "p95", "p99"].map((name) => row((point) => point.latency_ms[name])), low, now);
  charts.queue.show(times, [row((point) => point.queue_ms)], low, now);
  charts.memory.show(times, [row((point) => point.memory || null)], low, now);
  drawErrors(known, low, now);
  const requests = known.reduce((sum, at) => sum + points.get(at).requests, 0);
  const errors = known.reduce((sum, at) => sum + counted(points.get(at).errors), 0);
  figure("requests", number(requests, 15));
  figure("errors", `${(requests ? (100 * errors) / requests : 0).toFixed(1)} %`);
  figure("p95", total?.latency_ms.p95 == null ? "–" : ms(total.latency_ms.p95));
  figure("memory", known.length && points.get(known.at(-1)).memory ? bytes(points.get(known.at(-1)).memory) : "–");
  if (requests && !document.getElementById("no-calls").hidden) {
    document.getElementById("no-calls").hidden = true;
    document.getElementById("drawn").hidden = false;
  }
}

function writeTable() {
  const table = document.getElementById("as-table");
  const now = Date.now() / 1000;
  const known = [...points.keys()].sort((one, other) => one - other);
  const rows = known.map((at, place) => {
    const point = points.get(at);
    const rate = point.requests / lasted(at, known[place - 1], now);
    const errors = Object.entries(point.errors).map(([code, count]) => `${code} ${count}`).join(", ") || "0";
    const { p50, p95, p99 } = point.latency_ms;
    return [when(at), number(point.requests, 15), number(rate), number(p50), number(p95), number(p99), errors, number(point.queue_ms), bytes(point.memory || null)];
  });
  table.querySelector("tbody").replaceChildren(...rows.reverse().slice(0, MOST_ROWS).map((cells) => {
    const line = document.createElement("tr");
    line.append(...cells.map((text, place) => {
      const cell = document.createElement(place ? "td" : "th");
      if (!place) cell.scope = "row";
      cell.textContent = text;
      return cell;
    }));
    return line;
  }));
  const asOf = table.querySelector("[data-as-of]");
  asOf.textContent = asOf.dataset.asOf.replace("{}", when(now));
}

function complain(text, link) {
  const box = document.getElementById("late");
  box.hidden = !text;
  box.replaceChildren(text);
  if (!link) return;
  const to = Object.assign(document.createElement("a"), { href: link, target: "_blank", rel: "noopener", textContent: " →" });
  to.setAttribute("aria-label", text);
  box.append(to);
}

async function look() {
  const mine = turn;
  const now = Date.now();
  const long = Number(range.dataset.seconds) / span() > LONG;
  const isWhole = !long || now - wholeAt > WHOLE_EVERY_MS;
  const begin = isWhole ? now / 1000 - Number(range.dataset.seconds) : Math.max(...points.keys(), now / 1000 - 4 * span()) - span();
  const query = new URLSearchParams({ span: range.dataset.span, from: new Date(begin * 1000).toISOString() });
  try {
    const [status, said] = await ask("GET", `${root.dataset.stats}?${query}`);
    if (mine !== turn) return; // another range was chosen meanwhile
    if (status === 401) complain(root.dataset.ended, root.dataset.signin);
    else if (status !== 200) {
      const words = await inWords(said?.detail ?? String(status));
      if (mine === turn) complain(root.dataset.late.replace("{}", words));
    }
    else {
      complain("");
      if (isWhole) [points, total, wholeAt] = [new Map(), said.total, now];
      for (const point of said.points) points.set(Date.parse(point.begin) / 1000, point);
      draw();
    }
    document.getElementById("offline").hidden = true;
  } catch {
    document.getElementById("offline").hidden = false;
  }
}

async function again() {
  if (!document.hidden) await look();
  setTimeout(again, EVERY_MS);
}

root.addEventListener("click", async (event) => {
  const chosen = event.target.closest("[data-range]");
  if (chosen && !event.ctrlKey && !event.metaKey) {
    event.preventDefault();
    range.removeAttribute("aria-current");
    range = chosen;
    range.setAttribute("aria-current", "true");
    history.replaceState(null, "", chosen.href);
    [points, total, wholeAt, turn] = [new Map(), null, -Infinity, turn + 1];
    await look();
    writeTable();
  }
  if (event.target.closest("#as-table button")) writeTable();
});
document.getElementById("as-table").addEventListener("toggle", writeTable);
document.addEventListener("visibilitychange", () => { if (!document.hidden) look(); });
document.addEventListener("htmx:afterRequest", () => {
  const told = document.getElementById("instances-now");
  if (told) document.getElementById("instances").textContent = told.textContent;
});
again();
