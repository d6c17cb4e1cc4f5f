// The page of a dialogue.
import { inWords, notice } from "./lib.js";
import { asked } from "./talk-ask.js";
import { Kept } from "./talk-kept.js";

const box = document.getElementById("talk");
const words = document.getElementById("talk-words").dataset;
const [list, empty, form, text, send, stop, said, down] =
  ["turns", "empty", "form", "text", "send", "stop", "said", "down"].map((name) => document.getElementById(`talk-${name}`));
const partner = {
  name: box.dataset.name, question: box.dataset.question, answer: box.dataset.answer,
  streams: box.dataset.streams === "yes", anyone: box.dataset.anyone === "yes",
};
const kept = new Kept(box.dataset.user, partner.name, () => notice(words.full, "warning"));
const language = document.documentElement.lang;
const milliseconds = new Intl.NumberFormat(language, { style: "unit", unit: "millisecond", maximumFractionDigits: 0 });
const seconds = new Intl.NumberFormat(language, { style: "unit", unit: "second", maximumFractionDigits: 2 });
const moment = new Intl.DateTimeFormat(language, { dateStyle: "medium", timeStyle: "short" });
let turns = kept.turns();
let current = null; // the turn that is being answered, and how to stop it
let stale = false; // another tab has gone on meanwhile

const took = (time) => time < 1000 ? milliseconds.format(time) : seconds.format(time / 1000);

function made(tag, classes = "", content = "") {
  const element = document.createElement(tag);
  element.className = classes;
  if (content) element.textContent = content;
  return element;
}

function icon(name) {
  const picture = document.getElementById("talk-send").querySelector("svg").cloneNode(true);
  const use = picture.querySelector("use");
  use.setAttribute("href", use.getAttribute("href").replace(/#.*$/, `#${name}`));
  return picture;
}

function button(label, picture, act) {
  const element = made("button", "btn btn-sm");
  element.type = "button";
  element.append(icon(picture), document.createTextNode(label));
  element.addEventListener("click", act);
  return element;
}

// turns ---------------------------------------------------------------------------------------------------------------------

/** The sentence for what went wrong with a turn. */
function trouble({ error }) {
  const sentences = {
    offline: words.offline, broken: words.broken, left: words.left, stopped: words.stopped, empty: words.empty,
    unauthenticated: words.expired, deployment_paused: words.paused, overloaded: words.wait.replace("{}", error.wait || 1),
  };
  return sentences[error.code] ?? (error.message ? `${words.failed} ${error.message}` : words.failed);
}

function foot(turn) {
  const line = made("div", "talk-foot small text-secondary");
  if (turn.first !== undefined) {
    const figures = [words.first.replace("{}", took(turn.first)), words.whole.replace("{}", took(turn.whole ?? turn.first))];
    line.append(made("span", "talk-time", figures.join(" · ")));
  }
  const tools = made("span", "talk-acts");
  if (turn.answer) {
    tools.append(button(words.copy, "copy", async () => {
      await navigator.clipboard.writeText(turn.answer);
      notice(words.copied, "success");
    }));
  }
  if (turn.error) tools.append(button(words.retry, "refresh", () => ask(turn)));
  line.append(tools);
  return line;
}

function troubleBox(turn) {
  const calm = turn.error.code === "stopped" || turn.error.code === "left" || turn.error.code === "empty";
  const element = made("div", calm ? "talk-trouble calm" : "talk-trouble");
  const sentence = made("p", "m-0");
  sentence.append(icon(calm ? "info-circle" : "alert-circle"), document.createTextNode(trouble(turn)));
  element.append(sentence);
  if (turn.error.code === "unauthenticated") {
    const link = made("a", "", words.signin);
    Object.assign(link, { href: "/ui/sign-in", target: "_blank" });
    element.append(link);
  }
  if (turn.error.request && !calm) element.append(made("div", "small", words.request.replace("{}", turn.error.request)));
  return element;
}

/** Fills an element with what a turn is now. */
function draw(element, turn) {
  const question = made("div", "talk-message talk-mine");
  question.append(made("span", "visually-hidden", `${words.you}: `), made("div", "talk-text", turn.asked));
  question.title = moment.format(new Date(turn.at));
  const answer = made("div", "talk-message talk-theirs");
  answer.append(made("span", "talk-who", words.model));
  const content = made("div", "talk-text", turn.answer);
  answer.append(content);
  if (turn === current?.turn) {
    if (!turn.answer) content.append(waiting());
  } else {
    if (turn.error) answer.append(troubleBox(turn));
    answer.append(foot(turn));
  }
  element.replaceChildren(question, answer);
  return content;
}

function waiting() {
  const dots = made("span", "talk-dots");
  dots.append(made("span", "visually-hidden", words.thinking), made("i"), made("i"), made("i"));
  return dots;
}

function place(turn) {
  const element = made("article", "talk-turn");
  element.dataset.turn = turn.id;
  list.append(element);
  return element;
}

const elementOf = (turn) => list.querySelector(`[data-turn="${turn.id}"]`);

function drawAll(toEnd = true) {
  const before = list.scrollTop;
  stale = false;
  for (const element of list.querySelectorAll(".talk-turn")) element.remove();
  for (const turn of turns) draw(place(turn), turn);
  if (toEnd) follow();
  else list.scrollTop = before;
  settle();
}

/** Which buttons there are now. */
function settle() {
  empty.hidden = turns.length > 0;
  send.disabled = Boolean(current) || !text.value.trim();
  send.hidden = Boolean(current);
  stop.hidden = !current;
  for (const name of ["export", "clear"]) document.getElementById(`talk-${name}`).disabled = !turns.length || Boolean(current);
  for (const each of list.querySelectorAll(".talk-acts button")) each.disabled = Boolean(current);
  list.setAttribute("aria-busy", String(Boolean(current)));
}

// the end of what is said stays in sight, unless the reader went up
const atEnd = () => list.scrollHeight - list.scrollTop - list.clientHeight < 60;
function follow() { list.scrollTop = list.scrollHeight; }
list.addEventListener("scroll", () => { down.hidden = atEnd(); });
down.addEventListener("click", () => { follow(); text.focus(); });

// asking --------------------------------------------------------------------------------------------------------------------

async function ask(turn) {
  if (current) return;
  const stopper = new AbortController();
  current = { turn, stopper };
  Object.assign(turn, { answer: "", error: undefined, first: undefined, whole: undefined, topic: undefined });
  const content = draw(elementOf(turn) ?? place(turn), turn);
  turn.error = { code: "left" }; // what is kept, should this page go before the answer is there
  turns = kept.save(turn, turns);
  settle();
  follow();
  said.textContent = `${words.model} ${words.thinking}`;
  turn.error = await answered(turn, content, stopper.signal);
  current = null;
  const near = atEnd();
  turns = kept.save(turn, turns);
  if (stale) drawAll(near);
  else draw(elementOf(turn), turn);
  if (near) follow();
  settle();
  said.textContent = turn.error ? trouble(turn) : words.answered.replace("{}", turn.answer);
  if (document.activeElement === document.body) text.focus();
}

/** Writes the answer as it comes; resolves to what went wrong, undefined for nothing. */
async function answered(turn, content, signal) {
  const before = turns[turns.indexOf(turn) - 1];
  const begun = performance.now();
  let request = "", saved = begun, node = null;
  try {
    for await (const piece of asked(partner, turn.asked, before?.topic, signal)) {
      request = piece.request;
      if (piece.topic !== undefined) turn.topic = piece.topic;
      if (!piece.text) continue;
      const now = performance.now();
      turn.first ??= now - begun;
      turn.answer += piece.text;
      const near = atEnd();
      if (node) node.appendData(piece.text);
      else content.replaceChildren(node = document.createTextNode(piece.text));
      if (near) follow();
      if (now - saved > 500) {
        turns = kept.save(turn, turns);
        saved = now;
      }
    }
    turn.whole = performance.now() - begun;
    return turn.answer ? undefined : { code: "empty" };
  } catch (error) {
    turn.whole = performance.now() - begun;
    if (error.name === "AbortError") return { code: "stopped" };
    const message = !error.code ? String(error) : ["offline", "broken"].includes(error.code) ? error.message : await inWords(error.message);
    return { code: error.code ?? "", message, request: error.request || request, wait: error.wait };
  }
}

function say(words) {
  const question = words.trim();
  if (!question || current) return;
  const turn = { id: crypto.getRandomValues(new Uint32Array(2)).join("-"), asked: question, answer: "", at: Date.now() };
  turns.push(turn);
  ask(turn);
}

// the box -------------------------------------------------------------------------------------------------------------------

function fit() {
  const near = atEnd();
  text.style.height = "auto";
  text.style.height = `${Math.min(text.scrollHeight + 2, Math.max(96, innerHeight / 3))}px`;
  if (near) follow();
}

const byTouch = matchMedia("(pointer: coarse)");
text.addEventListener("input", () => { kept.draft = text.value; fit(); settle(); });
text.addEventListener("keydown", (event) => {
  if (event.key !== "Enter" || event.shiftKey || event.isComposing || event.keyCode === 229 || byTouch.matches) return;
  event.preventDefault();
  form.requestSubmit();
});
form.addEventListener("submit", (event) => {
  event.preventDefault();
  event.stopPropagation(); // a form that may be sent again at once
  if (current || !text.value.trim()) return;
  const question = text.value;
  text.value = kept.draft = "";
  fit();
  say(question);
  text.focus();
});
stop.addEventListener("click", () => { current?.stopper.abort(); text.focus(); });
addEventListener("keydown", (event) => { if (event.key === "Escape" && current && !document.querySelector("dialog[open]")) current.stopper.abort(); });
addEventListener("pagehide", () => { if (current) kept.save(current.turn, turns); });
for (const each of box.querySelectorAll("[data-ask]")) each.addEventListener("click", () => { say(each.textContent); text.focus(); });

// all of it -----------------------------------------------------------------------------------------------------------------

document.getElementById("talk-clear").addEventListener("click", () => document.getElementById("talk-sure").showModal());
document.getElementById("talk-clear-now").addEventListener("click", () => {
  document.getElementById("talk-sure").close();
  turns = [];
  kept.clear();
  drawAll();
  said.textContent = words.cleared;
  text.focus();
});

document.getElementById("talk-export").addEventListener("click", () => {
  const lines = turns.map((turn) => `**${words.you}** (${new Date(turn.at).toISOString()})\n\n${turn.asked}\n\n**${words.model}**\n\n${turn.answer || `(${trouble(turn)})`}\n`);
  const link = made("a");
  link.href = URL.createObjectURL(new Blob([`# ${words.model}\n\n${lines.join("\n---\n\n")}`], { type: "text/markdown" }));
  link.download = `${partner.name}.md`;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 60000);
});

document.getElementById("field-with")?.addEventListener("change", (event) => event.target.form.requestSubmit());
addEventListener("storage", (event) => { // another tab went on with it
  if (event.key !== kept.key) return;
  stale = true; // an answer on its way is put among the others when it is there
  if (current) return;
  turns = kept.turns();
  drawAll();
});

text.value = kept.draft;
drawAll();
fit();
text.focus({ preventScroll: true });
