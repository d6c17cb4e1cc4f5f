// A file sent in pieces through /v1/uploads. It goes on where it was: after a lost connection, a pause, or another visit to the page.
import { formToken, user } from "./lib.js";

const PIECE = 4 * 1024 * 1024;
const WAITS_S = [1, 2, 4, 8, 15];

/** What the server said against it: `status`, `body` (a problem document) and in `message` its sentence. */
export class Refused extends Error {
  constructor(status, body) {
    super(body?.detail ?? `HTTP ${status}`);
    this.status = status;
    this.body = body ?? {};
  }
}

/** A request whose sending is measured. Resolves to {status, body, headers}; rejects with TypeError where there is no connection. */
export function send(method, path, body, { headers = {}, progress, signal } = {}) {
  return new Promise((resolve, reject) => {
    const request = new XMLHttpRequest();
    request.open(method, path);
    request.setRequestHeader("X-Form-Token", formToken());
    for (const [name, value] of Object.entries(headers)) request.setRequestHeader(name, value);
    if (progress) request.upload.onprogress = (event) => progress(event.loaded);
    request.onerror = request.ontimeout = () => reject(new TypeError("no connection"));
    request.onabort = () => reject(new DOMException("aborted", "AbortError"));
    request.onload = () => {
      let content = null;
      try { content = request.responseText ? JSON.parse(request.responseText) : null; } catch { content = null; }
      resolve({ status: request.status, body: content, header: (name) => request.getResponseHeader(name) });
    };
    signal?.addEventListener("abort", () => request.abort(), { once: true });
    request.send(body);
  });
}

/** One file on its way. `tell(state, sent)` hears of every change; states: sending, paused, lost, ended (the session). */
export class Upload {
  constructor(file, tell) {
    this.file = file;
    this.tell = tell;
    this.offset = 0;
    this.id = "";
    this.stopped = false;
    this.given = false;
    this.key = `upload ${user} ${file.name} ${file.size} ${file.lastModified}`;
  }

  /** The id of the whole upload. Rejects with Refused, "changed" where the file is not what it was, AbortError after `give up`. */
  async run() {
    for (let failures = 0; ;) {
      try {
        await this.#open();
        while (this.offset < this.file.size) {
          await this.#piece();
          failures = 0;
        }
        return this.id;
      } catch (error) {
        if (this.given) throw new DOMException("given up", "AbortError");
        if (error.name === "AbortError") await this.#wait("paused");
        else if (error instanceof Refused && error.status === 401) await this.#wait("ended");
        else if (error instanceof TypeError || [409, 429, 502, 503, 504].includes(error.status)) {
          await this.#unchanged();
          await this.#wait("lost", WAITS_S[Math.min(failures++, WAITS_S.length - 1)]);
        } else {
          this.forget();
          throw error;
        }
      }
    }
  }

  pause() {
    this.stopped = true;
    this.control?.abort();
  }

  resume() {
    this.stopped = false;
    this.wake?.();
  }

  /** The next time the file is sent anew. Until then one that has come whole is not sent again, whatever was refused beside it. */
  forget() { localStorage.removeItem(this.key); }

  giveUp() {
    this.given = true;
    this.control?.abort();
    this.wake?.();
    this.forget();
    if (this.id) fetch(`/v1/uploads/${this.id}`, { method: "DELETE", headers: { "X-Form-Token": formToken() } }).catch(() => {});
  }

  /** Where to go on; a new upload where there is none. */
  async #open() {
    this.id ||= localStorage.getItem(this.key) ?? "";
    if (this.id) {
      const answer = await send("GET", `/v1/uploads/${this.id}`);
      if (answer.status === 200) {
        this.offset = answer.body.offset;
        this.tell("sending", this.offset);
        return;
      }
      if (answer.status !== 404) throw new Refused(answer.status, answer.body);
    }
    const begun = await send("POST", "/v1/uploads", JSON.stringify({ file_name: this.file.name, size: this.file.size }), { headers: { "Content-Type": "application/json" } });
    if (begun.status !== 201) throw new Refused(begun.status, begun.body);
    this.id = begun.body.id;
    this.offset = 0;
    localStorage.setItem(this.key, this.id);
    this.tell("sending", 0);
  }

  async #piece() {
    if (this.stopped) throw new DOMException("paused", "AbortError");
    this.control = new AbortController();
    const headers = { "Content-Type": "application/octet-stream", "Upload-Offset": String(this.offset) };
    const progress = (sent) => this.tell("sending", Math.min(this.file.size, this.offset + sent));
    const piece = this.file.slice(this.offset, this.offset + PIECE);
    const answer = await send("PATCH", `/v1/uploads/${this.id}`, piece, { headers, progress, signal: this.control.signal });
    if (answer.status !== 200) throw new Refused(answer.status, answer.body);
    this.offset = answer.body.offset;
    this.tell("sending", this.offset);
  }

  /** A file that cannot be read any more looks like a lost connection. */
  async #unchanged() {
    try { await this.file.slice(0, 1).arrayBuffer(); } catch { throw Object.assign(new Error("changed"), { name: "Changed" }); }
  }

  /** Until somebody wants to go on, the connection is back, or after so many seconds. */
  async #wait(state, seconds) {
    this.tell(state, this.offset);
    await new Promise((resolve) => {
      this.wake = resolve;
      if (seconds) {
        setTimeout(resolve, seconds * 1000);
        addEventListener("online", resolve, { once: true });
      }
    });
    if (this.given) throw new DOMException("given up", "AbortError");
  }
}
