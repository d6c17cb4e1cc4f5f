// Moving about in a drawing: mouse, touch and keyboard.
const LEAST = 0.05;
const MOST = 4;

/** `box`: what is looked through; `layer`: the SVG group that is moved, `extent` large; `start`: a point to begin at. Gives {fit, to(x, y), zoom(factor)}. */
export function pan(box, layer, extent, start) {
  let [x, y, scale] = [0, 0, 1];
  const fingers = new Map();
  const apply = () => layer.setAttribute("transform", `translate(${x} ${y}) scale(${scale})`);
  const size = () => ({ width: box.clientWidth, height: box.clientHeight });

  function zoom(factor, at = { x: size().width / 2, y: size().height / 2 }) {
    const next = Math.min(MOST, Math.max(LEAST, scale * factor));
    x = at.x - ((at.x - x) * next) / scale;
    y = at.y - ((at.y - y) * next) / scale;
    scale = next;
    apply();
  }

  /** All of it, where that can still be read or is wanted; else where it starts. */
  function fit(whole = false) {
    const { width, height } = size();
    const all = Math.min((width - 32) / extent.width, (height - 32) / extent.height, 1);
    scale = Math.max(LEAST, whole ? all : Math.max(all, Math.min(0.85, (width - 32) / extent.width), 0.6));
    const fits = extent.width * scale <= width;
    x = fits ? (width - extent.width * scale) / 2 : width / 2 - start.x * scale;
    y = extent.height * scale <= height ? (height - extent.height * scale) / 2 : 16 - (fits ? 0 : Math.max(0, start.y - 60) * scale);
    apply();
  }

  function to(atX, atY) {
    const { width, height } = size();
    scale = Math.max(scale, 0.7);
    x = width / 2 - atX * scale;
    y = height / 2 - atY * scale;
    apply();
  }

  const inside = (event) => {
    const corner = box.getBoundingClientRect();
    return { x: event.clientX - corner.left, y: event.clientY - corner.top };
  };
  box.addEventListener("wheel", (event) => { // without Ctrl the page scrolls, unless somebody works in here
    if (!event.ctrlKey && !event.metaKey && document.activeElement !== box) return;
    event.preventDefault();
    zoom(Math.exp(-event.deltaY * (event.ctrlKey ? 0.01 : 0.002)), inside(event));
  }, { passive: false });
  box.addEventListener("pointerdown", (event) => {
    if (event.button) return;
    fingers.set(event.pointerId, inside(event));
  });
  box.addEventListener("pointermove", (event) => {
    const before = fingers.get(event.pointerId);
    if (!before) return;
    const now = inside(event);
    if (!box.hasPointerCapture(event.pointerId) && Math.hypot(now.x - before.x, now.y - before.y) < 4) return;
    box.setPointerCapture(event.pointerId);
    const other = [...fingers].find(([id]) => id !== event.pointerId)?.[1];
    if (other) {
      const far = Math.hypot(before.x - other.x, before.y - other.y) || 1;
      zoom(Math.hypot(now.x - other.x, now.y - other.y) / far, { x: (now.x + other.x) / 2, y: (now.y + other.y) / 2 });
    } else {
      x += now.x - before.x;
      y += now.y - before.y;
      apply();
    }
    fingers.set(event.pointerId, now);
  });
  for (const kind of ["pointerup", "pointercancel", "pointerleave"]) box.addEventListener(kind, (event) => fingers.delete(event.pointerId));
  box.addEventListener("keydown", (event) => {
    if (event.target !== box || event.ctrlKey || event.metaKey || event.altKey) return;
    const step = { ArrowLeft: [60, 0], ArrowRight: [-60, 0], ArrowUp: [0, 60], ArrowDown: [0, -60], PageUp: [0, 400], PageDown: [0, -400] }[event.key];
    if (step) {
      x += step[0];
      y += step[1];
      apply();
    } else if (event.key === "+" || event.key === "=") zoom(1.25);
    else if (event.key === "-") zoom(0.8);
    else if (event.key === "0") fit();
    else return;
    event.preventDefault();
  });
  fit();
  return { fit, to, zoom };
}
