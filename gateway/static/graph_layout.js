// Where the operators of a graph stand: in layers from top to bottom, few crossings, edges as straight as they get.
const LAYER_GAP = 34;
const NODE_GAP = 18;
const LONG = 40; // an edge over more layers than that bends past the others instead of finding its way between them
const MOST_BENDS = 8000;

/** `nodes`: [{width, height, source}] (`source`: it stands at the top), `edges`: [[from, to]] by their numbers. Gives {nodes: [{x, y}] (the middle), edges: [[{x, y}, ...]], width, height}. */
export function layout(nodes, edges) {
  const layers = layersOf(nodes, edges);
  const all = nodes.map((node, at) => ({ ...node, at, layer: layers[at], up: [], down: [] }));
  const paths = edges.map(([from, to]) => [from, to]);
  let bends = 0;
  edges.forEach(([from, to], number) => {
    const long = layers[to] - layers[from];
    const bent = long > 1 && long <= LONG && bends < MOST_BENDS;
    let last = from;
    if (bent) {
      paths[number] = [from];
      for (let layer = layers[from] + 1; layer < layers[to]; layer += 1) {
        all.push({ width: 6, height: 0, at: all.length, layer, up: [last], down: [], bend: true });
        all[last].down.push(all.length - 1);
        last = all.length - 1;
        paths[number].push(last);
        bends += 1;
      }
      paths[number].push(to);
    }
    if (bent || long === 1) {
      all[last].down.push(to);
      all[to].up.push(last);
    }
  });
  const rows = inRows(all);
  sweep(all, rows);
  align(all, rows);
  const { width, height } = place(all, rows);
  return { nodes: all.slice(0, nodes.length).map(({ x, y }) => ({ x, y })), edges: paths.map((path) => path.map((at) => ends(all, path, at))), width, height };
}

function ends(all, path, at) {
  const { x, y, height } = all[at];
  if (at === path[0]) return { x, y: y + height / 2 };
  return at === path.at(-1) ? { x, y: y - height / 2 } : { x, y };
}

/** The longest way from the top; what comes from no source, as what is made of weights alone, stands right above what takes it. */
function layersOf(nodes, edges) {
  const count = nodes.length;
  const below = Array.from({ length: count }, () => []);
  const waits = new Array(count).fill(0);
  for (const [from, to] of edges) {
    below[from].push(to);
    waits[to] += 1;
  }
  const layers = new Array(count).fill(0);
  const reached = nodes.map((node) => Boolean(node.source));
  const order = [...layers.keys()].filter((at) => !waits[at]);
  for (let next = 0; next < order.length; next += 1) {
    const at = order[next];
    for (const to of below[at]) {
      layers[to] = Math.max(layers[to], layers[at] + 1);
      reached[to] ||= reached[at];
      waits[to] -= 1;
      if (!waits[to]) order.push(to);
    }
  }
  for (const at of order.toReversed()) if (below[at].length && (!reached[at] || nodes[at].source)) layers[at] = Math.max(layers[at], Math.min(...below[at].map((to) => layers[to])) - 1);
  return layers;
}

function inRows(all) {
  const rows = [];
  const seen = new Set();
  const visit = (start) => {
    const stack = [start];
    while (stack.length) {
      const at = stack.pop();
      if (seen.has(at)) continue;
      seen.add(at);
      (rows[all[at].layer] ??= []).push(at);
      stack.push(...all[at].down.toReversed());
    }
  };
  [...all].sort((one, other) => one.layer - other.layer || one.at - other.at).forEach(({ at }) => visit(at));
  for (let layer = 0; layer < rows.length; layer += 1) rows[layer] ??= [];
  return rows;
}

/** Each row in the order of the middles of what it hangs from; the best of some rounds is kept. */
function sweep(all, rows) {
  const number = () => rows.forEach((row) => row.forEach((at, place) => { all[at].place = place; }));
  number();
  let best = rows.map((row) => [...row]);
  let least = crossings(all, rows);
  for (let round = 0; round < 10 && least; round += 1) {
    const down = round % 2 === 0;
    for (const row of down ? rows : rows.toReversed()) {
      for (const at of row) {
        const near = down ? all[at].up : all[at].down;
        all[at].middle = near.length ? near.reduce((sum, each) => sum + all[each].place, 0) / near.length : all[at].place;
      }
      row.sort((one, other) => all[one].middle - all[other].middle || all[one].place - all[other].place);
      row.forEach((at, place) => { all[at].place = place; });
    }
    const now = crossings(all, rows);
    if (now < least) [least, best] = [now, rows.map((row) => [...row])];
  }
  best.forEach((row, layer) => { rows[layer] = row; });
  number();
}

function crossings(all, rows) {
  let count = 0;
  for (const row of rows) {
    const pairs = row.flatMap((at) => all[at].down.map((to) => [all[at].place, all[to].place]));
    if (pairs.length > 400) continue; // too many to count each with each
    for (let one = 0; one < pairs.length; one += 1) for (let other = one + 1; other < pairs.length; other += 1) if ((pairs[one][0] - pairs[other][0]) * (pairs[one][1] - pairs[other][1]) < 0) count += 1;
  }
  return count;
}

/** Middles as near as possible to those of the neighbours, in the row's order and without overlap (pool adjacent violators). */
function align(all, rows) {
  for (const row of rows) {
    let x = 0;
    for (const at of row) {
      all[at].x = x + all[at].width / 2;
      x += all[at].width + NODE_GAP;
    }
    for (const at of row) all[at].x -= (x - NODE_GAP) / 2;
  }
  for (let round = 0; round < 14; round += 1) {
    const down = round % 2 === 0;
    for (const row of down ? rows : rows.toReversed()) settle(all, row, down);
  }
}

function settle(all, row, down) {
  let offset = 0;
  const pools = [];
  row.forEach((at, place) => {
    const node = all[at];
    if (place) offset += (all[row[place - 1]].width + node.width) / 2 + NODE_GAP;
    node.offset = offset;
    const near = down ? node.up : node.down;
    const wanted = near.length ? near.reduce((sum, each) => sum + all[each].x, 0) / near.length : node.x;
    const weight = near.length ? (node.bend ? 4 : 1) : 0.05;
    pools.push({ sum: (wanted - offset) * weight, weight, members: [node] });
    while (pools.length > 1 && pools.at(-2).sum / pools.at(-2).weight > pools.at(-1).sum / pools.at(-1).weight) {
      const last = pools.pop();
      const before = pools.at(-1);
      before.sum += last.sum;
      before.weight += last.weight;
      before.members.push(...last.members);
    }
  });
  for (const { sum, weight, members } of pools) for (const node of members) node.x = sum / weight + node.offset;
}

function place(all, rows) {
  let [y, left, right] = [0, Infinity, -Infinity];
  for (const row of rows) {
    const height = Math.max(0, ...row.map((at) => all[at].height));
    for (const at of row) {
      all[at].y = y + height / 2;
      left = Math.min(left, all[at].x - all[at].width / 2);
      right = Math.max(right, all[at].x + all[at].width / 2);
    }
    y += height + LAYER_GAP;
  }
  for (const node of all) node.x -= left;
  return { width: right - left || 1, height: y - LAYER_GAP || 1 };
}
