// The connection to the server: pieces that are asked for again and again stay as they are while it is away, a line says so, and it goes by itself.
import { inWords, notice } from "./lib.js";
import { polls } from "./live.js";

const box = document.getElementById("offline");
const away = (status) => status === 0 || status === 502 || status === 503 || status === 504;
let looking = null;
let over = null; // the line that says that nobody is signed in any more

/** Puts a line above what the reader looks at. */
export function above(line) {
  const place = document.querySelector("dialog[open] .dialog-body") ?? document.querySelector("main"); // what is behind a dialog is not seen
  if (line.parentElement !== place) place.prepend(line);
}

function lost(text) {
  above(box);
  box.textContent = text;
  box.hidden = false;
  looking ??= setInterval(async () => {
    if (!navigator.onLine || document.hidden) return;
    try {
      const answer = await fetch("/livez", { cache: "no-store" });
      if (answer.ok) found();
    } catch { /* still away */ }
  }, 3000);
}

function found() {
  box.hidden = true;
  clearInterval(looking);
  looking = null;
}

/** Whether this answer to htmx must not be put into the page: a server that is away, or words that are for programs. */
export function refuses({ xhr, requestConfig }) {
  if (xhr.status < 400) return false;
  const byItself = !requestConfig.triggeringEvent; // no click: it was time to look again
  const isPage = (xhr.getResponseHeader("Content-Type") ?? "").startsWith("text/html");
  if (away(xhr.status) && (byItself || !isPage)) lost(box.dataset.offline);
  else if (byItself && (xhr.status >= 500 || xhr.status === 429)) lost(box.dataset.trouble);
  else if (!isPage) {
    let said = {};
    try { said = JSON.parse(xhr.responseText); } catch { /* whatever it is, it is not shown */ }
    inWords(said.detail).then((text) => notice(text ?? box.dataset.trouble, "danger"));
  } else return false;
  return true;
}

/** Whether a piece that looks again by itself heard that nobody is signed in any more: a line says so, and the piece stays and goes on looking. */
export function expired({ xhr, requestConfig: { elt } }) {
  if (xhr.status !== 401 || !polls(elt)) return false;
  if (!over?.isConnected) {
    const holder = document.createElement("template");
    holder.innerHTML = xhr.responseText; // a piece of ours, as those that htmx puts in
    over = holder.content.firstElementChild;
    if (over) above(over);
  }
  return true;
}

/** Whether such a piece was answered again: somebody has signed in. */
export function returned({ successful, requestConfig }) {
  if (!over || !successful || !polls(requestConfig?.elt)) return false;
  over.remove();
  over = null;
  return true;
}

document.addEventListener("htmx:sendError", () => lost(box.dataset.offline));
document.addEventListener("htmx:timeout", () => lost(box.dataset.offline));
document.addEventListener("htmx:afterRequest", (event) => { if (event.detail.successful) found(); });
addEventListener("online", found);
addEventListener("offline", () => lost(box.dataset.offline));

// the page for when there is no connection at all is kept by a worker, in the reader's language and colours; only over HTTPS, or on this machine
async function keepPage() {
  const found = await navigator.serviceWorker.register("/ui/service-worker.js", { scope: "/", updateViaCache: "all" });
  const looks = `${document.documentElement.lang} ${document.documentElement.dataset.themeChoice}`;
  if (!found?.active || sessionStorage.getItem("offline") === looks) return;
  navigator.serviceWorker.addEventListener("message", () => sessionStorage.setItem("offline", looks), { once: true });
  navigator.serviceWorker.startMessages();
  found.active.postMessage("renew");
}
if (navigator.serviceWorker) addEventListener("load", () => keepPage().catch(() => { /* the browser allows none */ }));
