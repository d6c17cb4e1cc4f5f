// What the scripts of several pages use.

/** Says something at the edge of the page for a while, in milliseconds. */
export function notice(text, kind = "info", stays = 6000) {
  const box = document.createElement("div");
  box.className = `alert alert-${kind}`;
  box.textContent = text;
  document.getElementById("notices").append(box);
  setTimeout(() => box.remove(), stays);
  return box;
}

/** Whose page it is: an id, "" where nobody is signed in. What the browser keeps for somebody has it in its key. */
export const user = document.querySelector("meta[name=user]")?.content ?? "";

/** Where what is typed in a form is kept until it is sent. */
export const draftName = (form) => `draft ${user} ${location.pathname}${location.search} ${form.id}`;

export const formToken = () => document.querySelector("meta[name=form-token]").content;

const worded = new Map();

/** What the server said in English, in the page's language where that has it; at once, or as it is. */
export async function inWords(text) {
  if (document.documentElement.lang === "en" || !text || text.length > 800) return text;
  if (worded.has(text)) return worded.get(text);
  try {
    const answer = await fetch("/ui/sentence", {
      method: "POST", headers: { "X-Form-Token": formToken() }, body: new URLSearchParams({ text }), credentials: "same-origin",
      signal: AbortSignal.timeout(2000),
    });
    if (answer.ok) worded.set(text, await answer.text());
  } catch { /* it is told in English */ }
  return worded.get(text) ?? text;
}

/** A request to the REST interface, as whoever is signed in. Resolves to [status, body]. */
export async function ask(method, path, body) {
  const headers = { "X-Form-Token": formToken() };
  if (body && !(body instanceof FormData)) {
    headers["Content-Type"] = "application/json";
    if (typeof body !== "string") body = JSON.stringify(body); // a text is JSON already
  }
  const answer = await fetch(path, { method, headers, body, credentials: "same-origin" });
  const text = await answer.text();
  let content = null;
  try { content = text ? JSON.parse(text) : null; } catch { content = { detail: text }; }
  return [answer.status, content];
}
