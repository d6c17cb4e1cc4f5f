// The script of a deployment: its editor, what it may begin with, a look at it, and the form that tries it before it is kept.
import { Editor } from "./editor.js";
import { formToken, inWords } from "./lib.js";

const form = document.getElementById("script-form");
const editor = new Editor(form.querySelector(".editor"));
const words = form.dataset;
const said = document.getElementById("script-said");
const clean = editor.field.defaultValue;
let sent = false;

function tell(text, kind, line = 0) {
  said.className = `alert alert-${kind} mt-3`;
  said.replaceChildren(text);
  said.hidden = false;
  editor.mark(line);
  if (!line) return;
  const go = Object.assign(document.createElement("button"), { type: "button", className: "btn btn-sm ms-2", textContent: words.goto.replace("{}", line) });
  go.addEventListener("click", () => editor.go(line));
  said.append(go);
}

/** The line of the script that a message names; 0: none. */
const lineIn = (text) => Number(/\bline (\d+)/.exec(text ?? "")?.[1] ?? 0);

editor.field.addEventListener("input", () => { if (!said.hidden && !said.classList.contains("alert-info")) said.hidden = true; });

document.getElementById("script-begin").addEventListener("change", (event) => {
  const chosen = document.getElementById(`template-${event.target.value}`);
  if (chosen && (!editor.value.trim() || confirm(words.replace))) editor.put(chosen.content.textContent);
  event.target.value = "";
});

document.getElementById("script-check").addEventListener("click", async (event) => {
  const button = event.currentTarget;
  button.disabled = true;
  tell(words.checking, "info");
  try {
    const answer = await fetch("/v1/script-checks", {
      method: "POST", body: editor.value, credentials: "same-origin", headers: { "Content-Type": "text/x-python", "X-Form-Token": formToken() },
    });
    const told = await answer.json();
    if (answer.ok) tell(words.fine.replace("{}", told.functions.join(", ")), "success");
    else tell(answer.status === 401 ? words.ended : await inWords(told.detail), answer.status === 401 ? "warning" : "danger", lineIn(told.detail));
  } catch {
    tell(words.offline, "warning");
  } finally {
    button.disabled = false;
  }
});

const trial = document.querySelector("form[data-try]");
trial.addEventListener("try:ask", (event) => {
  editor.mark(0);
  event.detail.body = JSON.stringify({ script: editor.value, request: JSON.parse(event.detail.body) });
});
trial.addEventListener("try:told", ({ detail }) => {
  const line = detail.status === 200 ? 0 : lineIn(detail.said?.detail);
  if (line) inWords(detail.said.detail).then((text) => tell(text, "danger", line));
  else if (detail.status === 200) said.hidden = true;
});

form.addEventListener("submit", () => { sent = true; });
addEventListener("beforeunload", (event) => { if (!sent && editor.value !== clean) event.preventDefault(); });
addEventListener("pageshow", () => { sent = false; });
if (words.line) tell(said.textContent, "danger", Number(words.line));
