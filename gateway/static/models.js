// The dialog that uploads a model, or a new version of one.
import { draftName } from "./lib.js";
import { Refused, Upload, send } from "./upload.js";

const form = document.getElementById("upload-form");
const language = document.documentElement.lang;
const MAIN = [".onnx", ".pmml", ".pt2", ".pt", ".pth", ".xml", ".zip", ".py"];

const find = (selector) => form.querySelector(selector);
const unit = (name) => new Intl.NumberFormat(language, { style: "unit", unit: name, unitDisplay: "short", maximumFractionDigits: 0 });
const seconds = unit("second"), minutes = unit("minute"), hours = unit("hour");

function amount(bytes) {
  const names = ["B", "kB", "MB", "GB", "TB"];
  let at = 0;
  for (; bytes >= 1000 && at < names.length - 1; at++) bytes /= 1000;
  return `${at === 0 || bytes >= 100 ? bytes.toFixed(0) : bytes.toFixed(1)} ${names[at]}`;
}

const time = (left) => (left < 90 ? seconds.format(left) : left < 5400 ? minutes.format(left / 60) : hours.format(left / 3600));
const rank = (file) => { const at = MAIN.findIndex((end) => file.name.toLowerCase().endsWith(end)); return at < 0 ? MAIN.length : at; };
const random = () => [...crypto.getRandomValues(new Uint8Array(16))].map((byte) => byte.toString(16).padStart(2, "0")).join("");

class Dialog {
  constructor() {
    this.files = [];
    this.sending = false;
    this.upload = null;
    this.suggested = "";
    this.dialog = form.closest("dialog");
    const drop = find(".drop"), input = find("#upload-files");
    input.addEventListener("change", () => { this.take(input.files); input.value = ""; });
    for (const kind of ["dragover", "dragleave", "drop"]) {
      drop.addEventListener(kind, (event) => {
        event.preventDefault();
        drop.classList.toggle("over", kind === "dragover");
        if (kind === "drop") this.take(event.dataTransfer.files);
      });
    }
    form.addEventListener("submit", (event) => { event.preventDefault(); event.stopPropagation(); this.send(); });
    form.addEventListener("input", (event) => this.clear(event.target.name));
    find("[data-pause]").addEventListener("click", () => this.turn());
    find("[data-cancel]").addEventListener("click", () => this.cancel());
    form.elements.visibility?.addEventListener("change", () => this.showTeam());
    this.showTeam();
    addEventListener("beforeunload", (event) => { if (this.sending) event.preventDefault(); });
    this.dialog.addEventListener("close", () => { if (this.done) location.assign(location.pathname.replace(/\/new$/, "")); });
  }

  showTeam() {
    const team = find("[data-team]");
    if (team) team.hidden = form.elements.visibility.value !== "team";
  }

  // files ---------------------------------------------------------------------------------------------------------------------

  take(files) {
    const names = new Set([...files].map((file) => file.name));
    this.files = [...this.files.filter((file) => !names.has(file.name)), ...files];
    this.files.sort((one, other) => rank(one) - rank(other));
    this.clear("upload-files");
    find("[data-refusal]").replaceChildren();
    this.list();
    this.suggest();
  }

  list() {
    const rows = this.files.map((file, index) => {
      const row = document.createElement("li");
      const name = document.createElement("span");
      name.className = "text-break flex-fill";
      name.textContent = file.name;
      const size = document.createElement("span");
      size.className = "text-secondary text-nowrap";
      size.textContent = this.files.length > 1 ? `${amount(file.size)} · ${index ? form.dataset.beside : form.dataset.main}` : amount(file.size);
      const remove = document.createElement("button");
      remove.type = "button";
      remove.className = "btn-close";
      remove.setAttribute("aria-label", `${form.dataset.remove} ${file.name}`);
      remove.addEventListener("click", () => { this.files.splice(index, 1); this.list(); });
      row.append(name, size, remove);
      return row;
    });
    if (rows.length > 1) {
      const note = document.createElement("li");
      note.className = "text-secondary small border-0";
      note.textContent = form.dataset.toomany;
      rows.push(note);
    }
    find("[data-files]").replaceChildren(...rows);
  }

  suggest() {
    const field = form.elements.name;
    if (!(field instanceof HTMLInputElement) || !this.files.length || (field.value && field.value !== this.suggested)) return;
    const plain = this.files[0].name.replace(/\.[^.]*$/, "").replace(/[^A-Za-z0-9_-]+/g, "-").replace(/^[^A-Za-z0-9]+|-+$/g, "").slice(0, 64);
    field.value = this.suggested = plain;
    this.clear("name");
  }

  // errors --------------------------------------------------------------------------------------------------------------------

  clear(name) {
    if (!name) return;
    if (name === "upload-files") find("#error-upload-files").textContent = "";
    const field = find(`#field-${CSS.escape(name)}`);
    if (!field?.classList.contains("is-invalid")) return;
    field.classList.remove("is-invalid");
    field.removeAttribute("aria-invalid");
    find(`#error-${CSS.escape(name)}`)?.remove();
  }

  wrong(name, text) {
    const field = find(`#field-${CSS.escape(name)}`);
    if (!field) {
      find("#error-upload-files").textContent = text;
      return find("#upload-files");
    }
    this.clear(name);
    field.classList.add("is-invalid");
    field.setAttribute("aria-invalid", "true");
    field.setAttribute("aria-describedby", `error-${name}`);
    const error = document.createElement("div");
    error.className = "invalid-feedback";
    error.id = `error-${name}`;
    error.textContent = text;
    field.parentElement.append(error);
    return field;
  }

  async refused({ status, body }) {
    const values = { code: body.code ?? "", detail: body.detail ?? `HTTP ${status}`, file: this.files[0]?.name ?? "", request_id: body.request_id ?? "" };
    for (const { field, message } of body.errors ?? []) values[`field.${field.split(/[.[]/)[0]}`] = message;
    const place = find("[data-refusal]");
    await htmx.ajax("POST", "/ui/models/refusal", { target: place, swap: "innerHTML", values });
    const fields = [...place.querySelectorAll("[data-error-for]")].map((said) => this.wrong(said.dataset.errorFor, said.textContent));
    (fields[0] ?? place).focus();
  }

  // sending -------------------------------------------------------------------------------------------------------------------

  values() {
    const given = {};
    for (const name of ["name", "description", "type", "visibility"]) {
      const value = form.elements[name]?.value?.trim?.();
      if (value) given[name] = value;
    }
    const tags = (form.elements.tags?.value ?? "").split(/[,，]/).map((tag) => tag.trim()).filter(Boolean);
    if (tags.length) given.tags = tags;
    if (given.visibility === "team") given.team = form.elements.team.value;
    return form.dataset.upload ? {} : given;
  }

  async send() {
    if (this.sending) return;
    find("[data-refusal]").replaceChildren();
    if (!this.files.length) return this.wrong("upload-files", form.dataset.missing).focus();
    if (!form.dataset.upload && !form.elements.name.value.trim()) return this.wrong("name", form.dataset.unnamed).focus();
    this.sending = true;
    this.show("send");
    try {
      this.arrived(this.files.length > 1 ? await this.together() : await this.pieces());
    } catch (error) {
      this.sending = false;
      this.show("choose");
      if (error instanceof Refused) await this.refused(error);
      else if (error.name === "Changed") this.wrong("upload-files", form.dataset.changed);
      else if (error.name !== "AbortError") this.wrong("upload-files", form.dataset.lost);
    }
  }

  async pieces() {
    const [file] = this.files;
    this.begin(file.name, file.size);
    this.upload = new Upload(file, (state, sent) => this.tell(state, sent));
    const id = await this.upload.run();
    this.trying();
    const headers = { "Content-Type": "application/json", "Idempotency-Key": random() };
    const body = JSON.stringify({ ...this.values(), upload: id });
    for (let wait = 1; ; wait = Math.min(10, 2 * wait)) {
      let answer;
      try { answer = await send("POST", this.where(), body, { headers }); } catch { /* the same key: it is made once */ }
      if (answer?.status === 201) {
        this.upload.forget();
        return answer.body;
      }
      const busy = answer && (answer.status === 429 || answer.status === 503 || (answer.status === 409 && answer.body?.code === "conflict"));
      if (answer?.status === 404 || answer?.status === 410) this.upload.forget();
      if (answer && !busy) throw new Refused(answer.status, answer.body);
      this.trouble(answer ? form.dataset.taken : form.dataset.lost);
      await new Promise((resolve) => { setTimeout(resolve, 1000 * wait); });
      if (this.upload.given) throw new DOMException("given up", "AbortError");
    }
  }

  async together() {
    const body = new FormData();
    for (const [name, value] of Object.entries(this.values())) body.append(name, Array.isArray(value) ? value.join(",") : value);
    const size = this.files.reduce((sum, file) => sum + file.size, 0);
    this.files.forEach((file, index) => body.append(index ? "files" : "model", file, file.name));
    this.begin(this.files.map((file) => file.name).join(", "), size);
    const control = new AbortController();
    this.upload = { giveUp: () => control.abort(), pause() {}, resume() {} };
    find("[data-pause]").hidden = true;
    const progress = (sent) => (sent < size ? this.tell("sending", sent) : this.trying());
    const answer = await send("POST", this.where(), body, { progress, signal: control.signal });
    if (answer.status !== 201) throw new Refused(answer.status, answer.body);
    return answer.body;
  }

  where() {
    return form.dataset.upload ? `/v1/models/${encodeURIComponent(form.dataset.upload)}/versions` : "/v1/models";
  }

  // what is seen --------------------------------------------------------------------------------------------------------------

  show(step) {
    for (const part of form.querySelectorAll("[data-step]")) part.hidden = part.dataset.step !== step;
    find("[data-send]").hidden = step !== "choose";
    find("[data-pause]").hidden = find("[data-cancel]").hidden = step !== "send";
    find("[data-pause]").textContent = form.dataset.pause;
    if (step === "send") find("[data-pause]").focus();
  }

  begin(what, size) {
    this.size = size;
    this.started = null;
    find("[data-what]").textContent = what;
    this.tell("sending", 0);
  }

  tell(state, sent) {
    const bar = find("[data-progress]");
    bar.value = this.size ? sent / this.size : 0;
    const now = performance.now() / 1000;
    if (state !== "sending" || !this.started || sent < this.started.sent) this.started = { now, sent };
    const rate = (sent - this.started.sent) / Math.max(0.001, now - this.started.now);
    const part = form.dataset.part.replace("{sent}", amount(sent)).replace("{size}", amount(this.size));
    find("[data-said]").textContent = state === "paused" ? form.dataset.paused : form.dataset.sending;
    const left = rate > 0 && now - this.started.now > 1 ? ` · ${amount(rate)}/s · ${form.dataset.left.replace("{}", time((this.size - sent) / rate))}` : "";
    find("[data-rate]").textContent = part + left;
    this.trouble({ lost: form.dataset.lost, ended: form.dataset.ended }[state]);
    find("[data-pause]").textContent = state === "sending" ? form.dataset.pause : form.dataset.resume;
    this.waiting = state !== "sending";
  }

  trouble(text) {
    const place = find("[data-trouble]");
    place.hidden = !text;
    place.textContent = text ?? "";
  }

  trying() {
    this.trouble();
    find("[data-progress]").removeAttribute("value");
    find("[data-said]").textContent = form.dataset.trying;
    find("[data-rate]").textContent = "";
    find("[data-pause]").hidden = true;
  }

  turn() {
    if (this.waiting) this.upload.resume();
    else this.upload.pause();
  }

  cancel() {
    this.upload?.giveUp();
  }

  async arrived(made) {
    this.sending = false;
    this.done = true;
    sessionStorage.removeItem(draftName(form));
    for (const part of form.querySelectorAll("[data-step], [data-buttons]")) part.hidden = true;
    const place = find("[data-result]");
    const [owner, name] = form.dataset.upload ? form.dataset.upload.split(".") : [made.owner, made.name];
    await htmx.ajax("GET", `/ui/models/${encodeURIComponent(owner)}/${encodeURIComponent(name)}/result`, { target: place, swap: "innerHTML" });
    place.focus();
  }
}

if (form) new Dialog();
