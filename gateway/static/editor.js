// An editor for Python: a text field over its own text in colours, with numbers of lines and marks of those that are wrong.
// Tab indents, Shift+Tab takes back; Escape, then Tab, leaves the field, as does a mouse.
const WORDS = "False|None|True|and|as|assert|async|await|break|class|continue|def|del|elif|else|except|finally|for|from|global|if|import|in|is|lambda|nonlocal|not|or|pass|raise|return|try|while|with|yield|match|case";
const TOKENS = new RegExp([
  String.raw`(?<comment>#[^\n]*)`,
  String.raw`(?<string>(?:\b[rRbBuUfF]{1,2})?(?:"""[\s\S]*?(?:"""|$)|'''[\s\S]*?(?:'''|$)|"(?:\\.|[^"\\\n])*(?:"|$)?|'(?:\\.|[^'\\\n])*(?:'|$)?))`,
  String.raw`(?<decorator>^[ \t]*@[\w.]+)`,
  String.raw`(?<=\b(?:def|class)\s+)(?<name>\w+)`,
  String.raw`\b(?<keyword>${WORDS})\b`,
  String.raw`\b(?<number>0[xXbBoO][\da-fA-F_]+|\d[\d_]*(?:\.[\d_]*)?(?:[eE][+-]?\d+)?)`,
].join("|"), "gm");
const INDENT = "    ";

/** The text as nodes: what has a colour is a span of the class `code-KIND`. */
export function coloured(text) {
  const nodes = [];
  let done = 0;
  for (const found of text.matchAll(TOKENS)) {
    const [kind, token] = Object.entries(found.groups).find(([, value]) => value !== undefined);
    if (found.index > done) nodes.push(text.slice(done, found.index));
    nodes.push(Object.assign(document.createElement("span"), { className: `code-${kind}`, textContent: token }));
    done = found.index + token.length;
  }
  nodes.push(text.slice(done));
  return nodes;
}

/** Makes an editor of `box`, which holds a textarea. */
export class Editor {
  #leaving = false;
  #wrong = 0;

  constructor(box) {
    this.field = box.querySelector("textarea");
    this.box = box;
    this.lines = Object.assign(document.createElement("div"), { className: "editor-lines" });
    this.shown = Object.assign(document.createElement("pre"), { className: "editor-shown" });
    for (const each of [this.lines, this.shown]) each.setAttribute("aria-hidden", "true");
    this.field.before(this.lines, this.shown);
    box.classList.add("editor-live");
    this.field.addEventListener("input", () => this.#input());
    this.field.addEventListener("keydown", (event) => this.#key(event));
    this.field.addEventListener("blur", () => { this.#leaving = false; });
    addEventListener("pageshow", () => this.#draw()); // after a reload the browser puts back what was typed, and says nothing
    this.#draw();
  }

  get value() { return this.field.value; }

  /** Puts another text in, as one step that can be undone. */
  put(text) {
    this.field.focus();
    this.field.select();
    this.#insert(text);
    this.field.setSelectionRange(0, 0);
    this.box.scrollTop = 0;
  }

  /** Marks a line as wrong, from 1 on; 0: none is. */
  mark(line) {
    this.#wrong = line;
    this.#draw();
    if (line) this.#reveal(line);
  }

  /** Puts the cursor into a line. */
  go(line) {
    const begin = this.value.split("\n").slice(0, line - 1).join("\n").length + (line > 1 ? 1 : 0);
    this.field.focus({ preventScroll: true });
    this.field.setSelectionRange(begin, begin);
    this.#reveal(line);
  }

  #reveal(line) {
    const row = this.lines.children[line - 1];
    if (row) this.box.scrollTop = Math.max(0, row.offsetTop - this.box.clientHeight / 2);
  }

  #input() {
    this.#wrong = 0;
    this.#draw();
  }

  #draw() {
    const count = this.value.split("\n").length;
    this.shown.replaceChildren(...coloured(this.value), "\n");
    while (this.lines.childElementCount > count) this.lines.lastChild.remove();
    while (this.lines.childElementCount < count) this.lines.append(Object.assign(document.createElement("div"), { textContent: this.lines.childElementCount + 1 }));
    this.lines.querySelector(".wrong")?.classList.remove("wrong");
    this.lines.children[this.#wrong - 1]?.classList.add("wrong");
    if (this.#wrong) this.field.setAttribute("aria-invalid", "true");
    else this.field.removeAttribute("aria-invalid");
  }

  // with the browser's own command, so that it can be undone
  #insert(text) {
    if (!(text ? document.execCommand("insertText", false, text) : document.execCommand("delete"))) {
      this.field.setRangeText(text, this.field.selectionStart, this.field.selectionEnd, "end");
      this.field.dispatchEvent(new Event("input", { bubbles: true }));
    }
  }

  #key(event) {
    if (event.isComposing) return;
    if (event.key === "Escape") {
      this.#leaving = true;
      return;
    }
    const leaving = this.#leaving;
    if (event.key !== "Shift") this.#leaving = false;
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    if (event.key === "Tab" && !leaving) {
      event.preventDefault();
      this.#indent(event.shiftKey);
    } else if (event.key === "Enter" && !event.shiftKey) {
      event.preventDefault();
      const before = this.value.slice(0, this.field.selectionStart).split("\n").at(-1);
      this.#insert(`\n${/^ */.exec(before)[0]}${before.trimEnd().endsWith(":") ? INDENT : ""}`);
    }
  }

  #indent(back) {
    const { selectionStart: start, selectionEnd: end } = this.field;
    const first = this.value.lastIndexOf("\n", start - 1) + 1;
    if (start === end && !back) {
      this.#insert(" ".repeat(INDENT.length - ((start - first) % INDENT.length)));
      return;
    }
    const last = end > start && this.value[end - 1] === "\n" ? end - 1 : end;
    const rows = this.value.slice(first, last).split("\n");
    const moved = rows.map((row) => (back ? row.replace(/^ {1,4}/, "") : row && INDENT + row));
    if (moved.join("\n") === rows.join("\n")) return;
    this.field.setSelectionRange(first, last);
    this.#insert(moved.join("\n"));
    const by = moved.join("\n").length - rows.join("\n").length;
    const at = Math.max(first, start + moved[0].length - rows[0].length);
    this.field.setSelectionRange(start === end ? at : first, start === end ? at : last + by);
  }
}
