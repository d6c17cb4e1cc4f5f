// One question to a model, and its answer piece by piece.
import { formToken } from "./lib.js";

/** What went wrong. `code` is one of the server's, or "offline" and "broken"; `wait` seconds until it makes sense to ask again. */
export class Refused extends Error {
  constructor(code, message, request = "", wait = 0) {
    super(message);
    Object.assign(this, { code, request, wait });
  }
}

const texts = (value) => Array.isArray(value) ? value.map(texts).join("") : typeof value === "string" ? value : "";

async function refusal(answer) {
  const text = await answer.text();
  let said = {};
  try { said = JSON.parse(text); } catch { /* not the server's own words */ }
  const code = answer.headers.get("Outboard-Code") ?? said?.code ?? (answer.status === 401 ? "unauthenticated" : "");
  return new Refused(code, said?.error ?? said?.detail ?? String(answer.status), answer.headers.get("X-Request-Id") ?? "",
    Number(answer.headers.get("Retry-After")) || 0);
}

async function post(path, body, partner, signal) {
  // who may be asked by anyone is asked without the session: then the server's event loops answer
  const known = partner.anyone ? {} : { "X-Form-Token": formToken() };
  try {
    const answer = await fetch(path, {
      method: "POST", headers: { "Content-Type": "application/json", ...known }, body: JSON.stringify(body), signal,
      credentials: partner.anyone ? "omit" : "same-origin",
    });
    if (!answer.ok) throw await refusal(answer);
    return answer;
  } catch (error) {
    if (error instanceof Refused || error.name === "AbortError") throw error;
    throw new Refused("offline", error.message);
  }
}

/** The JSON of each server-sent event. A body that ends within one, or without an end, is an error. */
async function* events(answer) {
  const reader = answer.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  for (;;) {
    let piece;
    try { piece = await reader.read(); } catch (error) {
      if (error.name === "AbortError") throw error;
      throw new Refused("broken", error.message);
    }
    if (piece.done) break;
    const parts = (rest + piece.value).split("\n\n");
    rest = parts.pop();
    for (const part of parts) {
      const data = part.split("\n").filter((line) => line.startsWith("data:")).map((line) => line.slice(5).trimStart()).join("\n");
      if (data) yield JSON.parse(data);
    }
  }
  if (rest.trim()) throw new Refused("broken", "");
}

async function* streamed(partner, text, topic, signal) {
  const body = { [partner.question]: text, ...(topic ? { parameters: { topic } } : {}) };
  const answer = await post(`/v2/models/${encodeURIComponent(partner.name)}/generate_stream`, body, partner, signal);
  const request = answer.headers.get("X-Request-Id") ?? "";
  for await (const event of events(answer)) {
    if (event.error !== undefined) throw new Refused(event.code ?? "", event.error, request);
    yield { text: texts(event[partner.answer]), topic: event.parameters?.topic, request };
  }
}

async function* whole(partner, text, signal) {
  const path = `/v1/deployments/${encodeURIComponent(partner.name)}/predictions`;
  const answer = await post(path, { inputs: { [partner.question]: [text] } }, { ...partner, anyone: false }, signal);
  const said = await answer.json();
  yield { text: texts(said.outputs?.[partner.answer] ?? Object.values(said.outputs ?? {})[0]), request: answer.headers.get("X-Request-Id") ?? "" };
}

/** Pieces {text, topic, request} of the answer. Throws Refused, and AbortError once `signal` says so. */
export const asked = (partner, text, topic, signal) => partner.streams ? streamed(partner, text, topic, signal) : whole(partner, text, signal);
