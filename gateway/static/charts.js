// Charts over time, drawn by uPlot (vendor/uPlot.iife.min.js and its style sheet belong on the page).
// Colours are Okabe and Ito's, which differ for every eye, in a lighter row where the page is dark; lines differ in their dashes as well.
const LIGHT = ["#0072b2", "#d55e00", "#00795a", "#8a5a9e", "#6b5300", "#555f6b"];
const DARK = ["#56b4e9", "#f08a4b", "#2fc79a", "#d9a0c6", "#e6c229", "#a9b4c0"];
const DASHES = [[], [6, 4], [2, 3], [10, 3, 2, 3]];
const language = document.documentElement.lang;
const clock = new Intl.DateTimeFormat(language, { hour: "2-digit", minute: "2-digit", hourCycle: "h23" });
const day = new Intl.DateTimeFormat(language, { month: "numeric", day: "numeric" });
const moment = new Intl.DateTimeFormat(language, { dateStyle: "medium", timeStyle: "medium", hourCycle: "h23" });
const whole = new Intl.NumberFormat(language, { maximumFractionDigits: 2 });
const DAY_S = 86400;

const isDark = () => document.documentElement.dataset.bsTheme === "dark";

// a colour of the style sheet as a canvas takes it: what a variable holds may be an expression
function shade(name) {
  const probe = document.body.appendChild(document.createElement("span"));
  probe.style.color = `var(${name})`;
  const found = getComputedStyle(probe).color;
  probe.remove();
  return found;
}

/** The colour of a chart's `place`th series. */
export const colour = (place) => (isDark() ? DARK : LIGHT)[place % LIGHT.length];

/** A number with at most three digits that matter, or "–". */
export function number(value, digits = 3) {
  if (value === null || value === undefined || Number.isNaN(value)) return "–";
  if (value !== 0 && Math.abs(value) < 1e5) value = Number(value.toPrecision(Math.max(digits, Math.ceil(Math.log10(Math.abs(value) + 1)))));
  return whole.format(value);
}

/** Bytes with a unit. */
export function bytes(value) {
  if (value === null || value === undefined) return "–";
  let unit = "B";
  for (const bigger of ["kB", "MB", "GB", "TB"]) {
    if (value < 1000) break;
    [value, unit] = [value / 1000, bigger];
  }
  return `${number(value)} ${unit}`;
}

/** A moment in words, of seconds since the epoch. */
export const when = (seconds) => moment.format(seconds * 1000);

const element = (name, kind, text = "") => Object.assign(document.createElement(name), { className: kind, textContent: text });

function axes(spell) {
  const line = { stroke: shade("--tblr-border-color"), width: 1 };
  const text = { stroke: shade("--tblr-secondary-color"), font: "12px system-ui, sans-serif", ticks: { ...line, size: 4 } };
  const times = (_, splits, __, ___, step) => splits.map((each) => (step >= DAY_S ? day : clock).format(each * 1000));
  return [
    { ...text, grid: { show: false }, values: times, space: 64, size: 26 },
    { ...text, grid: line, values: (_, splits) => splits.map(spell), space: 36, gap: 4,
      size: (plot, values) => Math.max(34, ...(values ?? []).map((each) => each.length * 7 + 14)) },
  ];
}

// what stands under the pointer, in words
function tooltip(chart) {
  const box = element("div", "chart-tip");
  box.hidden = true;
  const show = (plot) => {
    const at = plot.cursor.idx;
    box.hidden = at === null || at === undefined || plot.cursor.left < 0;
    if (box.hidden) return;
    const rows = chart.series.map((one, place) => [one, place]).filter(([one]) => !chart.off.has(one.name));
    box.replaceChildren(element("strong", "", when(plot.data[0][at])), ...rows.map(([one, place]) => {
      const row = element("div", "chart-tip-row");
      row.append(swatch(one, place), element("span", "", one.name), element("b", "", chart.spell(chart.values[place]?.[at])));
      return row;
    }));
    const half = plot.cursor.left > plot.over.clientWidth / 2;
    box.style.left = half ? "auto" : `${plot.cursor.left + plot.over.offsetLeft + 12}px`;
    box.style.right = half ? `${plot.over.clientWidth - plot.cursor.left + 12}px` : "auto";
  };
  return { hooks: { init: (plot) => plot.root.append(box), setCursor: show } };
}

function swatch(one, place) {
  const mark = element("span", "chart-mark");
  mark.style.borderTopColor = colour(place);
  mark.style.borderTopStyle = one.bars || place % DASHES.length === 0 ? "solid" : place % DASHES.length === 1 ? "dashed" : "dotted";
  if (one.bars) mark.style.borderTopWidth = "10px";
  return mark;
}

/** The values that have none beside them: no line shows those. */
const alone = (plot, place) => plot.data[place].flatMap((value, at, all) => (value ?? null) !== null && (all[at - 1] ?? null) === null && (all[at + 1] ?? null) === null ? [at] : []);

/** A chart in `box`. `label`: what it shows; `spell`: a value in words; `series`: `[{name}]`, lines or with `stacked` bars, one on the other;
 * `sync`: charts of the same name show the same moment. */
export class Chart {
  constructor(box, { label, spell = number, series, stacked = false, sync = "time", least = 0 }) {
    Object.assign(this, { box, label, spell, stacked, sync, least, off: new Set(), values: [], times: [] });
    this.canvas = element("div", "chart-canvas");
    this.canvas.setAttribute("role", "img");
    this.legend = element("div", "chart-legend");
    box.replaceChildren(this.canvas, this.legend);
    this.series = series.map((one) => ({ ...one, bars: stacked }));
    new ResizeObserver(() => this.#fit()).observe(this.canvas);
    new MutationObserver(() => this.#draw()).observe(document.documentElement, { attributeFilter: ["data-bs-theme"] });
    this.#draw();
  }

  /** Other series than before, such as a code that was not there. */
  name(names) {
    if (names.join("\n") === this.series.map((one) => one.name).join("\n")) return;
    this.series = names.map((name) => ({ name, bars: this.stacked }));
    this.values = names.map(() => this.times.map(() => null));
    this.#draw();
  }

  /** `times` in seconds, a row of values for each series, null where nothing is known; shown from `low` to `high`. */
  show(times, values, low, high) {
    Object.assign(this, { times, values, low, high });
    this.#tell();
    if (!this.plot) return;
    this.plot.batch(() => {
      this.plot.setData(this.#data(), false);
      this.plot.setScale("x", { min: low, max: high });
    });
  }

  #data() {
    if (!this.stacked) return [this.times, ...this.values];
    const sums = this.times.map(() => 0); // the first is drawn last, in front, and lowest
    const rows = this.values.map((row, place) => row.map((value, at) => {
      if (!this.off.has(this.series[place].name)) sums[at] += value ?? 0;
      return sums[at] || null;
    }));
    return [this.times, ...rows.reverse()];
  }

  #drawn() {
    const lines = this.series.map((one, place) => ({
      label: one.name, stroke: colour(place), width: 2, dash: this.stacked ? [] : DASHES[place % DASHES.length],
      show: !this.off.has(one.name), points: { show: !this.stacked, size: 5, fill: colour(place), filter: alone }, spanGaps: false,
      ...(this.stacked ? { fill: colour(place), width: 0, paths: uPlot.paths.bars({ size: [0.8, 24, 1] }) } : {}),
    }));
    return this.stacked ? lines.reverse() : lines;
  }

  #draw() {
    this.plot?.destroy();
    const top = (_, low, high) => [0, Math.max(this.least, (high ?? 0) * 1.1) || 1];
    this.plot = new uPlot({
      width: Math.max(200, this.canvas.clientWidth), height: 190, series: [{}, ...this.#drawn()], axes: axes((value) => this.spell(value)),
      scales: { x: { time: true, auto: false }, y: { range: top } }, legend: { show: false },
      cursor: { sync: { key: this.sync, setSeries: false }, drag: { x: false, y: false }, points: { size: 7 } }, plugins: [tooltip(this)],
    }, this.#data(), this.canvas);
    if (this.low !== undefined) this.plot.setScale("x", { min: this.low, max: this.high });
    this.#key();
    this.#tell();
  }

  #fit() {
    const width = Math.max(200, this.canvas.clientWidth);
    if (this.plot && this.plot.width !== width) this.plot.setSize({ width, height: 190 });
  }

  // the legend: each series can be taken out
  #key() {
    this.legend.hidden = this.series.length < 2 && !this.stacked;
    this.legend.replaceChildren(...this.series.map((one, place) => {
      const key = element("button", "chart-key");
      key.type = "button";
      key.setAttribute("aria-pressed", String(!this.off.has(one.name)));
      key.append(swatch(one, place), element("span", "", one.name));
      key.addEventListener("click", () => {
        if (!this.off.delete(one.name)) this.off.add(one.name);
        this.#draw();
        this.legend.children[place]?.focus();
      });
      return key;
    }));
  }

  #tell() {
    const last = this.series.map((one, place) => [one.name, this.values[place]?.findLast((value) => value !== null && value !== undefined)]);
    this.canvas.setAttribute("aria-label", [this.label, ...last.map(([name, value]) => `${name} ${this.spell(value)}`)].join(", "));
  }
}
