// A model's graph: drawn, with the details of an operator beside it, and as a list.
import { layout } from "./graph_layout.js";
import { pan } from "./graph_pan.js";
import { make } from "./try_values.js";

const SVG = "http://www.w3.org/2000/svg";
const KINDS = Object.entries({
  layer: "Conv ConvTranspose ConvInteger QLinearConv DeformConv MatMul MatMulInteger QLinearMatMul Gemm FusedConv FusedMatMul Einsum LSTM GRU RNN Attention MultiHeadAttention GroupQueryAttention MatMulNBits Embedding",
  activation: "Relu LeakyRelu PRelu Elu Selu Celu Sigmoid HardSigmoid HardSwish Tanh Softmax LogSoftmax Softplus Softsign Clip Gelu Erf Mish ThresholdedRelu Hardmax Swish FastGelu",
  normalisation: "BatchNormalization InstanceNormalization LayerNormalization GroupNormalization RMSNormalization LpNormalization LRN MeanVarianceNormalization SkipLayerNormalization Scaler Normalizer Dropout",
  pooling: "MaxPool AveragePool GlobalAveragePool GlobalMaxPool LpPool ReduceMean ReduceSum ReduceMax ReduceMin ReduceProd ReduceL1 ReduceL2 ArgMax ArgMin TopK",
  shaping: "Reshape Transpose Concat Split Slice Gather GatherND GatherElements Scatter ScatterND ScatterElements Squeeze Unsqueeze Flatten Expand Tile Pad Resize Upsample Shape Size Cast CastLike Identity Constant ConstantOfShape Range OneHot SpaceToDepth DepthToSpace NonZero Where ZipMap ArrayFeatureExtractor FeatureVectorizer",
  learnt: "TreeEnsembleClassifier TreeEnsembleRegressor TreeEnsemble LinearClassifier LinearRegressor SVMClassifier SVMRegressor LabelEncoder OneHotEncoder TfIdfVectorizer Imputer Binarizer StringNormalizer",
  control: "If Loop Scan SequenceAt SequenceConstruct SequenceEmpty SequenceInsert Optional",
}).flatMap(([kind, names]) => names.split(" ").map((name) => [name, kind]));
const KIND_OF = new Map(KINDS);
const HEIGHT = 34;

export async function begin(box) {
  const words = JSON.parse(box.dataset.words);
  const part = (name) => box.querySelector(`[data-graph-${name}]`);
  const stage = part("stage");
  let shown = null;
  let view = null;
  let boxes = [];

  async function fetchPiece(query) {
    const answer = await fetch(`${box.dataset.graph}${query}`, { credentials: "same-origin" });
    if (answer.redirected) throw new Error(words.expired);
    const piece = await answer.json().catch(() => ({ error: words.failed }));
    if (!answer.ok) throw new Error(piece.error);
    return piece;
  }

  async function show(query = "") {
    part("problem").textContent = words.reading;
    try {
      shown = await fetchPiece(query);
    } catch (error) {
      part("problem").textContent = error instanceof TypeError ? words.offline : error.message;
      return false;
    }
    part("problem").textContent = shown.cut ? words.cut : "";
    part("inside").hidden = false;
    part("start").hidden = true;
    draw();
    return true;
  }

  function draw() {
    const { items, edges } = itemsOf(shown);
    const placed = layout(items, edges);
    boxes = items.map((item, at) => ({ ...item, ...placed.nodes[at] }));
    const layer = svg("g");
    for (const path of placed.edges) layer.append(svg("path", { class: "graph-edge", d: curve(path) }));
    boxes.forEach((item) => layer.append(drawn(item)));
    const picture = svg("svg", { "aria-hidden": "true", focusable: "false" });
    picture.append(layer);
    stage.replaceChildren(picture);
    view = pan(stage, layer, placed, boxes.find((item) => item.source) ?? boxes[0] ?? { x: 0, y: 0 });
    tell();
    list();
    choose(null);
  }

  function tell() {
    const last = shown.first + shown.nodes.length;
    part("range").textContent = words.range.replace("{first}", shown.nodes.length ? shown.first + 1 : 0).replace("{last}", last).replace("{total}", shown.total);
    part("earlier").disabled = shown.first === 0;
    part("later").disabled = last >= shown.total;
    part("pages").hidden = shown.total <= shown.nodes.length;
    const kinds = [...new Set(boxes.filter((item) => item.node).map((item) => item.kind))];
    part("legend").replaceChildren(...kinds.map((kind) => make("li", {}, make("span", { className: `graph-swatch graph-${kind}` }), words.kinds[kind])));
  }

  function drawn(item) {
    const group = svg("g", { class: `graph-node graph-${item.kind}`, transform: `translate(${item.x - item.width / 2} ${item.y - item.height / 2})` });
    group.append(svg("rect", { width: item.width, height: item.height, rx: item.node ? 6 : item.height / 2 }));
    const text = svg("text", { x: item.width / 2, y: item.second ? 14 : item.height / 2 + 4, "text-anchor": "middle" });
    text.textContent = item.label;
    group.append(text);
    if (item.second) {
      const second = svg("text", { x: item.width / 2, y: 28, "text-anchor": "middle", class: "graph-second" });
      second.textContent = item.second;
      group.append(second);
    }
    item.group = group;
    group.addEventListener("click", () => choose(item));
    return group;
  }

  function choose(item, move = false) {
    for (const each of boxes) each.group.classList.toggle("graph-chosen", each === item);
    part("details").replaceChildren(...(item ? details(item, shown, words) : [make("p", { className: "text-secondary m-0", textContent: words.choose })]));
    if (item && move) view.to(item.x, item.y);
  }

  function list() {
    const rows = [];
    boxes.filter((item) => item.node).forEach((item) => {
      const open = make("button", { type: "button", className: "btn btn-sm btn-link p-0", textContent: item.node.op });
      open.addEventListener("click", () => { choose(item, true); part("details").focus(); });
      const out = item.node.out[0] ?? "";
      rows.push(make("tr", {}, make("td", { textContent: item.number + 1 }), make("td", {}, open), make("td", { className: "text-break", textContent: out }), make("td", { textContent: shapeOf(shown, out) })));
    });
    part("rows").replaceChildren(...rows);
  }

  part("form").addEventListener("submit", async (event) => {
    event.preventDefault();
    event.stopPropagation();
    const text = part("find").value.trim();
    if (!text) return;
    const chosen = boxes.find((item) => item.group.classList.contains("graph-chosen") && item.node);
    const query = `&find=${encodeURIComponent(text)}&after=${chosen ? chosen.number : ""}`;
    const found = await fetchPiece(query).catch(() => null);
    if (!found || found.found === null) {
      part("problem").textContent = words.notFound;
      return;
    }
    part("problem").textContent = "";
    if (found.first !== shown.first) {
      shown = found;
      draw();
    }
    choose(boxes.find((item) => item.number === found.found), true);
  });
  part("earlier").addEventListener("click", () => show(`&first=${Math.max(0, shown.first - shown.nodes.length)}`));
  part("later").addEventListener("click", () => show(`&first=${shown.first + shown.nodes.length}`));
  part("in").addEventListener("click", () => view.zoom(1.25));
  part("out").addEventListener("click", () => view.zoom(0.8));
  part("fit").addEventListener("click", () => view.fit(true));
  if (!(await show())) part("open").disabled = false;
  else stage.focus({ preventScroll: true });
}

/** What is drawn: operators, the inputs and outputs of the graph, and values that come from operators before those shown. */
function itemsOf(shown) {
  const items = shown.nodes.map((node, at) => {
    const kind = KIND_OF.get(node.op) ?? (/Norm/.test(node.op) ? "normalisation" : /Quantize|Quant/.test(node.op) ? "shaping" : "other");
    return sized({ node, number: shown.first + at, kind, label: node.op, second: second(node, shown) });
  });
  const made = new Map();
  items.forEach((item, at) => item.node.out.forEach((name) => name && made.set(name, at)));
  const edges = [];
  const seen = new Set();
  const before = new Map();
  items.slice().forEach((item, at) => {
    for (const name of item.node.in) {
      if (!name || name in shown.weights) continue;
      let from = made.get(name);
      if (from === undefined) {
        from = before.get(name);
        if (from === undefined) {
          const outer = shown.inputs.includes(name);
          from = items.push(sized({ source: true, kind: outer ? "end" : "beyond", label: short(name, 28), name })) - 1;
          before.set(name, from);
        }
      }
      if (from !== at && !seen.has(`${from} ${at}`)) {
        seen.add(`${from} ${at}`);
        edges.push([from, at]);
      }
    }
  });
  for (const name of shown.outputs) if (made.has(name)) edges.push([made.get(name), items.push(sized({ kind: "end", label: short(name, 28), name })) - 1]);
  return { items, edges };
}

function sized(item) {
  const letters = Math.max(item.label.length * 7.4, (item.second ?? "").length * 6);
  return { ...item, width: Math.max(56, letters + 22), height: item.node ? (item.second ? HEIGHT : 26) : 24 };
}

/** The size of its kernel or its weights: what tells one such operator from another. */
function second(node, shown) {
  const weight = node.in.map((name) => shown.weights[name]).find((each) => each && each.shape.length > 1);
  if (weight) return short(weight.shape.join(" × "), 24);
  const said = node.attributes.find(([name]) => ["kernel_shape", "axis", "axes", "perm", "to"].includes(name));
  return said ? short(`${said[0]} ${said[1]}`, 24) : "";
}

const short = (text, most) => (text.length > most ? `${text.slice(0, most - 1)}…` : text);
const axes = (shape) => (shape ? `[${shape.join(", ")}]` : "");
const shapeOf = (shown, name) => { const known = shown.values[name] ?? shown.weights[name]; return known ? `${known.type} ${axes(known.shape)}`.trim() : ""; };

function details(item, shown, words) {
  const about = [];
  const row = (name, value, more = "") => about.push(make("div", {}, make("dt", { textContent: name }), make("dd", { className: "text-break" }, value, ...(more ? [make("div", { className: "try-type", textContent: more })] : []))));
  const heading = make("h3", { className: "h4 mb-2 text-break", textContent: item.node ? item.node.op : item.name });
  if (!item.node) {
    row(words.value, item.kind === "end" ? words.end : words.beyond, shapeOf(shown, item.name));
    return [heading, make("dl", { className: "model-facts" }, ...about)];
  }
  const { node } = item;
  row(words.number, String(item.number + 1));
  if (node.name) row(words.name, node.name);
  if (node.domain) row(words.domain, node.domain);
  node.in.forEach((name) => name && row(name in shown.weights ? words.weight : words.input, name, shapeOf(shown, name)));
  node.out.forEach((name) => name && row(words.output, name, shapeOf(shown, name)));
  node.attributes.forEach(([name, value]) => row(name, value));
  node.graphs.forEach(([name, count]) => row(name, words.graphs.replace("{}", count)));
  return [heading, make("dl", { className: "model-facts" }, ...about)];
}

function svg(tag, attributes = {}) {
  const element = document.createElementNS(SVG, tag);
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
  return element;
}

function curve(points) {
  let path = `M ${points[0].x} ${points[0].y}`;
  for (let at = 1; at < points.length; at += 1) {
    const [from, to] = [points[at - 1], points[at]];
    const middle = (from.y + to.y) / 2;
    path += ` C ${from.x} ${middle}, ${to.x} ${middle}, ${to.x} ${to.y}`;
  }
  return path;
}
