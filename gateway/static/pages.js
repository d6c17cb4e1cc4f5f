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

const secret = (field) => ["password", "hidden", "file"].includes(field.type) || ["code", "invitation"].includes(field.name);

function keepDraft(form) {
  const kept = {};
  for (const field of form.elements) {
    if (field.name && !secret(field)) kept[field.name] = field.type === "checkbox" ? field.checked : field.value;
  }
  sessionStorage.setItem(draftName(form), JSON.stringify(kept));
}

function restoreDrafts(root = document) {
  for (const form of root.querySelectorAll("form[data-draft]")) {
    const text = sessionStorage.getItem(draftName(form));
    if (!text) continue;
    const kept = JSON.parse(text);
    for (const field of form.elements) {
      if (!(field.name in kept) || secret(field)) continue;
      if (field.type === "checkbox") field.checked = kept[field.name];
      else if (!field.value) field.value = kept[field.name];
    }
  }
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
  if (name && visit?.redirectCount && !new URLSearchParams(location.search).has("next")) sessionStorage.removeItem(name);
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
  restoreDrafts(root);
  root.querySelectorAll("[data-wait]").forEach(countDown);
  for (const dialog of root.querySelectorAll("dialog[data-now]")) { // open without a script; with one, in front of the rest
    dialog.close();
    dialog.showModal();
  }
}

document.addEventListener("htmx:load", (event) => { if (event.target !== document.body) prepare(event.target); });
setInterval(tellTimes, 30000);
prepare(document);
document.querySelector(".tabs .active")?.scrollIntoView({ inline: "center", block: "nearest" }); // where there is no room for all
