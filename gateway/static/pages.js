// What every page does in the browser: times in the reader's zone, dialogs, copies, forms that are sent once and keep what was typed.
import { above, expired, refuses, returned } from "./connection.js";
import { draftName, formToken, notice, user } from "./lib.js";
import { renew } from "./live.js";

const words = document.getElementById("words").dataset;
const language = document.documentElement.lang;

// times ---------------------------------------------------------------------------------------------------------------------

const steps = [["year", 31536000], ["month", 2592000], ["day", 86400], ["hour", 3600], ["minute", 60], ["second", 1]];
const ago = new Intl.RelativeTimeFormat(language, { numeric: "auto" });
const whole = new Intl.DateTimeFormat(language, { dateStyle: "medium", timeStyle: "medium" });
const day = new Intl.DateTimeFormat(language, { dateStyle: "medium" });

function since(at) {
  const seconds = (at - Date.now()) / 1000;
  if (Math.abs(seconds) < 5) return words.now;
  const [unit, size] = steps.find(([, size]) => Math.abs(seconds) >= size) ?? steps.at(-1);
  return ago.format(Math.round(seconds / size), unit);
}

function tellTimes(root = document) {
  for (const element of root.querySelectorAll("time[data-time]")) {
    const at = new Date(element.dateTime);
    if (Number.isNaN(at.getTime())) continue;
    element.textContent = element.dataset.time === "ago" ? since(at) : (element.dataset.time === "day" ? day : whole).format(at);
    element.title = whole.format(at);
  }
}

// forms ---------------------------------------------------------------------------------------------------------------------

const isLeftOut = (field) => ["password", "hidden", "file", "submit", "button", "reset"].includes(field.type) || ["code", "invitation"].includes(field.name);

const isChoice = (field) => field.type === "checkbox" || field.type === "radio";
const typed = (field) => isChoice(field) ? field.checked : field.value;

/** What a field had when its page came. */
function given(field) {
  if (isChoice(field)) return field.defaultChecked;
  if (!field.options) return field.defaultValue;
  return ([...field.options].find((option) => option.defaultSelected) ?? field.options[0])?.value ?? "";
}

/** The fields of a form that are kept, each with a name of its own. */
function* named(form) {
  const seen = {};
  for (const field of form.elements) {
    if (!field.name || isLeftOut(field)) continue;
    seen[field.name] = (seen[field.name] ?? 0) + 1;
    yield [`${field.name} ${seen[field.name]}`, field];
  }
}

function keepDraft(form) {
  const kept = {};
  for (const [name, field] of named(form)) kept[name] = [typed(field), given(field)];
  try { sessionStorage.setItem(draftName(form), JSON.stringify(kept)); } catch { /* no room: it is still in the form */ }
}

/** What was typed comes back into a form that is as it was then: else it has been changed elsewhere, or has what was sent and refused. */
function restoreDrafts(root = document) {
  for (const form of root.querySelectorAll("form[data-draft]")) {
    const kept = JSON.parse(sessionStorage.getItem(draftName(form)) ?? "{}");
    const fields = [...named(form)].filter(([name]) => name in kept);
    if (fields.some(([name, field]) => given(field) !== kept[name][1])) continue;
    const changed = fields.filter(([name, field]) => typed(field) !== kept[name][0]);
    for (const [name, field] of changed) {
      if (isChoice(field)) field.checked = kept[name][0];
      else field.value = kept[name][0];
    }
    for (const [, field] of changed) tellOf(field);
    if (changed.some(([name]) => kept[name][1] !== "" && kept[name][1] !== false)) offerToDiscard(form);
  }
}

/** To whoever listens to the field. */
function tellOf(field) {
  for (const kind of ["input", "change"]) field.dispatchEvent(new Event(kind, { bubbles: true }));
}

function offerToDiscard(form) {
  const box = notice(words.restored, "info", 60000);
  const button = Object.assign(document.createElement("button"), { type: "button", className: "btn btn-sm ms-2", textContent: words.discard });
  button.addEventListener("click", () => {
    form.reset();
    for (const [, field] of named(form)) tellOf(field);
    sessionStorage.removeItem(draftName(form));
    box.remove();
  });
  box.append(button);
}

async function renewToken() {
  try {
    const answer = await fetch("/ui/form-token", { credentials: "same-origin" });
    if (!answer.ok) return;
    const { token, user: now } = await answer.json();
    const other = document.getElementById("somebody-else");
    other.hidden = !user || !now || now === user;
    if (!other.hidden) { // with the token of another account this page would act for it
      above(other);
      return;
    }
    document.querySelector("meta[name=form-token]").content = token;
    for (const field of document.querySelectorAll("input[name=form_token]")) field.value = token;
  } catch { /* offline: the next return to this page asks again */ }
}

// what was sent, and led on to a page by a redirect, was taken; a refusal is the answer itself, and a sign-in on the way says what comes next
function forgetDraft() {
  const name = sessionStorage.getItem("sent");
  sessionStorage.removeItem("sent");
  const [visit] = performance.getEntriesByType("navigation");
  const isTaken = visit?.redirectCount && !new URLSearchParams(location.search).has("next");
  if (name && (isTaken || document.querySelector("form[data-draft]"))) sessionStorage.removeItem(name); // a form that comes again has it
}

// at the sign-out
function forgetAll() {
  for (const name of Object.keys(sessionStorage)) if (/^(draft|try) |^sent$/.test(name)) sessionStorage.removeItem(name);
}

document.addEventListener("input", (event) => {
  const form = event.target.form;
  if (form?.matches("[data-draft]")) keepDraft(form);
});

// a second click on what htmx sends: by then the button may stand for something else
const sentAt = new WeakMap();
document.addEventListener("submit", (event) => {
  if (!event.target.hasAttribute("hx-post")) return;
  if (Date.now() - (sentAt.get(event.target) ?? 0) > 600) sentAt.set(event.target, Date.now());
  else {
    event.preventDefault();
    event.stopImmediatePropagation();
  }
}, true);
document.addEventListener("htmx:sendError", (event) => sentAt.delete(event.target)); // it did not arrive: send it again at once

document.addEventListener("submit", (event) => {
  const form = event.target;
  if (form.dataset.sure !== undefined && !form.hasAttribute("hx-confirm") && !confirm(form.dataset.sure || words.sure)) {
    event.preventDefault();
    return;
  }
  if (form.method === "dialog" || form.hasAttribute("hx-post") || form.hasAttribute("hx-get")) return;
  if (form.dataset.sent) { // a second click
    event.preventDefault();
    return;
  }
  form.dataset.sent = "yes";
  if (form.getAttribute("action") === "/ui/sign-out") forgetAll();
  if (form.matches("[data-draft]")) sessionStorage.setItem("sent", draftName(form));
  setTimeout(() => delete form.dataset.sent, 8000);
});

addEventListener("pageshow", (event) => { // Back may show a page as it was
  for (const form of document.querySelectorAll("form[data-sent]")) delete form.dataset.sent;
  if (event.persisted) renewToken();
});
document.addEventListener("visibilitychange", () => { if (!document.hidden) renewToken(); });

document.addEventListener("change", (event) => {
  const form = event.target.closest("form[data-choices]");
  if (form) form.requestSubmit();
});

// clicks --------------------------------------------------------------------------------------------------------------------

document.addEventListener("click", async (event) => {
  const opener = event.target.closest("[data-open]");
  if (opener) {
    event.preventDefault();
    document.getElementById(opener.dataset.open).showModal();
  }
  if (event.target.closest("[data-close]")) event.target.closest("dialog").close();
  if (event.target.closest("[data-reload]")) location.reload();
  if (event.target.closest("[data-back]")) history.back();
  const copier = event.target.closest("[data-copy]");
  if (copier) {
    await navigator.clipboard.writeText(document.getElementById(copier.dataset.copy).textContent);
    notice(words.copied, "success");
  }
});

// a code that may be sent again after a while
function countDown(button) {
  const text = button.textContent;
  let left = Number(button.dataset.wait);
  button.disabled = true;
  const tick = () => {
    if (left <= 0) {
      button.disabled = false;
      button.textContent = text;
      return;
    }
    button.textContent = words.again.replace("{}", left);
    left -= 1;
    setTimeout(tick, 1000);
  };
  tick();
}

// htmx ----------------------------------------------------------------------------------------------------------------------

document.addEventListener("htmx:configRequest", (event) => { event.detail.headers["X-Form-Token"] = formToken(); });
document.addEventListener("htmx:beforeSwap", (event) => {
  if (refuses(event.detail)) event.detail.shouldSwap = false;
  else if (expired(event.detail)) event.detail.shouldSwap = false;
  else if (event.detail.xhr.status === 401) event.detail.shouldSwap = true;
  else if (renew(event.detail, prepare)) event.detail.shouldSwap = false;
});
document.addEventListener("htmx:afterRequest", ({ detail }) => {
  const form = detail.requestConfig?.elt;
  if (detail.successful && form?.matches?.("form[data-draft][hx-post]")) sessionStorage.removeItem(draftName(form));
  if (returned(detail)) renewToken(); // it may be somebody else
});
document.addEventListener("changed", () => document.getElementById("refused")?.replaceChildren());

forgetDraft();
function prepare(root) {
  tellTimes(root);
  if (root !== document) restoreDrafts(root);
  root.querySelectorAll("[data-wait]").forEach(countDown);
  for (const dialog of root.querySelectorAll("dialog[data-now]")) { // open without a script; with one, in front of the rest
    dialog.close();
    dialog.showModal();
  }
}

document.addEventListener("htmx:load", (event) => { if (event.target !== document.body) prepare(event.target); });
setInterval(tellTimes, 30000);
prepare(document);
addEventListener("DOMContentLoaded", () => restoreDrafts()); // scripts of the page, and htmx, listen by then
for (const here of document.querySelectorAll(".places .active, .tabs .active")) here.scrollIntoView({ inline: "center", block: "nearest" }); // where there is no room for all
