// The form that tries a model: made from its signature, in step with the JSON beside it, its answer below.
import { ask, formToken, inWords, user } from "./lib.js";
import { answer, times } from "./try_answer.js";
import { field } from "./try_fields.js";
import { base64, cells, make, number, spell } from "./try_values.js";

for (const form of document.querySelectorAll("form[data-try]")) begin(form);

function begin(form) {
  const signature = JSON.parse(form.dataset.signature);
  const words = JSON.parse(form.dataset.words);
  const json = form.querySelector("[data-json]");
  const jsonError = form.querySelector("[data-json-error]");
  const problem = form.querySelector("[data-problem]");
  const into = form.querySelector("[data-answer]");
  const button = form.querySelector("button[type=submit]");
  const table = form.querySelector("[data-table]");
  const draft = `try ${user} ${form.dataset.try}`;
  const topK = form.querySelector("[data-top-k]");
  let other = {}; // what the JSON has and the form has no piece for
  let beyond = new Map(); // inputs that only the JSON can show
  const several = signature.inputs.length > 1;
  const fields = signature.inputs.map((given) => ({ ...given, prefix: several ? `${given.name}/` : "" })).map((input) => field(input, words, () => { beyond.delete(input.name); toJson(); }));

  // form and JSON, in step -------------------------------------------------------------------------------------------------------

  function body() {
    const rows = table ? cells(table.value) : [];
    if (signature.open) return signature.example; // a script takes what it likes: the JSON alone says it
    const inputs = Object.fromEntries(fields.map((each) => [each.input.name, beyond.has(each.input.name) ? beyond.get(each.input.name) : each.value() ?? null]));
    const asked = { ...other };
    if (topK?.value && Number(topK.value) !== signature.top_k) asked.top_k = Number(topK.value);
    else delete asked.top_k;
    if (signature.streams) return inputs;
    if (rows.length > 1) return { columns: rows[0], data: rows.slice(1).map((row) => row.map((each) => number(each) ?? each)), ...asked };
    return { inputs, ...asked };
  }

  function keep() {
    try { sessionStorage.setItem(draft, json.value.length < 200_000 ? json.value : ""); } catch { /* the browser keeps nothing */ }
  }

  function toJson() {
    json.value = spell(body());
    wrongJson("");
    keep();
  }

  function fromJson() {
    let given;
    try {
      given = JSON.parse(json.value);
    } catch (error) {
      wrongJson(`${words.noJson} ${error.message}`);
      return false;
    }
    if (given === null || typeof given !== "object" || Array.isArray(given)) {
      wrongJson(words.noJson);
      return false;
    }
    wrongJson("");
    keep();
    const { inputs, columns, data, ...rest } = signature.streams ? { inputs: given } : given;
    other = rest;
    if (topK) topK.value = rest.top_k ?? signature.top_k;
    if (table) table.value = Array.isArray(columns) && Array.isArray(data) ? [columns, ...data].map((row) => (Array.isArray(row) ? row.join("\t") : "")).join("\n") : "";
    for (const name of signature.open ? [] : Object.keys(inputs ?? {})) if (!fields.some((each) => each.input.name === name)) wrongJson(words.unknown.replace("{}", name));
    for (const each of fields) {
      const value = inputs?.[each.input.name];
      beyond.delete(each.input.name);
      each.wrong("");
      if (value !== undefined && value !== null && !each.show(value)) {
        beyond.set(each.input.name, value);
        each.wrong(words.jsonOnly);
      }
    }
    return true;
  }

  function wrongJson(text) {
    jsonError.textContent = text;
    json.classList.toggle("is-invalid", Boolean(text));
    if (text) json.setAttribute("aria-invalid", "true");
    else json.removeAttribute("aria-invalid");
  }

  // asking -----------------------------------------------------------------------------------------------------------------------

  /** The JSON as it is sent: names of files with their content. */
  async function whole() {
    let text = json.value;
    for (const each of fields) {
      for (const [name, file] of each.files) {
        const place = JSON.stringify(name);
        if (text.includes(place)) text = text.replaceAll(place, `"${await base64(file)}"`);
      }
    }
    return text;
  }

  async function refuse(english, heading = words.failed) {
    const named = /^input (?:'((?:[^'\\]|\\.)*)'|"([^"]*)")/.exec(english);
    const text = await inWords(english);
    const where = named && fields.find((each) => each.input.name === (named[1] ?? named[2]));
    if (where) {
      where.wrong(text);
      where.focus();
    }
    complain(text, heading);
  }

  function complain(text, heading = words.failed) {
    problem.replaceChildren(make("div", { className: "alert alert-danger", role: "alert" }, make("div", {}, make("div", { className: "alert-heading", textContent: heading }), make("div", { className: "text-break", textContent: text }))));
  }

  function missing() {
    if (table && cells(table.value).length > 1) return null;
    return fields.find((each) => !beyond.has(each.input.name) && each.value() === undefined);
  }

  function expired() {
    const link = make("a", { href: `/ui/sign-in?next=${encodeURIComponent(location.pathname)}`, target: "_blank", textContent: words.signIn });
    problem.replaceChildren(make("div", { className: "alert alert-warning", role: "alert" }, make("div", {}, words.expired, " ", link)));
  }

  async function run() {
    const empty = json.classList.contains("is-invalid") ? null : missing();
    if (json.classList.contains("is-invalid")) return json.focus();
    if (empty) {
      empty.wrong(empty.problem ?? words.noJson);
      return empty.focus();
    }
    problem.replaceChildren();
    fields.forEach((each) => beyond.has(each.input.name) || each.wrong(""));
    const text = await whole();
    const started = performance.now();
    if (signature.streams) return stream(text, started);
    const asked = { path: form.dataset.try, body: text };
    form.dispatchEvent(new CustomEvent("try:ask", { detail: asked })); // a page may ask for more
    const [status, said] = await ask("POST", asked.path, asked.body);
    const round = performance.now() - started;
    if (status === 401) return expired();
    form.dispatchEvent(new CustomEvent("try:told", { detail: { status, said } }));
    if (status !== 200) {
      into.replaceChildren();
      return refuse(said?.detail ?? String(status), words.codes[said?.code] ?? words.failed);
    }
    into.replaceChildren(times(said.timing_ms, round, words), ...answer(said, words, signature.labelled));
  }

  // server-sent events, as they come
  async function stream(text, started) {
    const reply = await fetch(form.dataset.try, { method: "POST", body: text, headers: { "Content-Type": "application/json", "X-Form-Token": formToken() }, credentials: "same-origin" });
    if (reply.status === 401) return expired();
    if (!reply.ok) return refuse((await reply.json().catch(() => null))?.error ?? String(reply.status));
    const shown = make("p", { className: "try-single text-break" });
    const time = make("div");
    into.replaceChildren(time, shown);
    let left = "";
    let first = 0;
    for await (const part of chunks(reply.body.pipeThrough(new TextDecoderStream()))) {
      first ||= performance.now() - started;
      const events = (left + part).split(/\r?\n\r?\n/);
      left = events.pop();
      for (const event of events) {
        if (!event.startsWith("data:")) continue;
        const said = JSON.parse(event.slice(5));
        if (said.error) return refuse(said.error);
        for (const { name } of signature.outputs) if (said[name] !== undefined) shown.append(typeof said[name] === "string" ? said[name] : `${JSON.stringify(said[name])} `);
      }
    }
    time.replaceChildren(times({}, performance.now() - started, words));
    const before = make("div", {}, make("dt", { textContent: words.firstPart }), make("dd", { textContent: `${first.toFixed(1)} ms` }));
    time.firstChild.prepend(before);
  }

  form.addEventListener("submit", async (event) => {
    event.preventDefault();
    event.stopImmediatePropagation();
    if (button.disabled) return;
    button.disabled = true;
    const text = button.lastChild.textContent;
    button.lastChild.textContent = words.running;
    try {
      await run();
    } catch (error) {
      complain(error instanceof TypeError ? words.offline : error.message);
    } finally {
      button.disabled = false;
      button.lastChild.textContent = text;
    }
  });
  form.addEventListener("keydown", (event) => { if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) form.requestSubmit(); });
  json.addEventListener("input", fromJson);
  table?.addEventListener("input", toJson);
  topK?.addEventListener("input", toJson);
  form.querySelector("[data-example]").addEventListener("click", () => { example(); toJson(); });

  function example() {
    beyond.clear();
    if (table) table.value = "";
    for (const each of fields) {
      each.wrong("");
      if (each.input.sample !== null) each.show(each.input.sample);
    }
  }

  form.querySelector("[data-fields]").replaceChildren(...fields.map((each) => each.box));
  const kept = sessionStorage.getItem(draft);
  example();
  toJson();
  if (kept && !kept.includes('"@')) { // files are not kept
    json.value = kept;
    fromJson();
  }
  button.disabled = false;
}

async function* chunks(readable) {
  const reader = readable.getReader();
  for (;;) {
    const { done, value } = await reader.read();
    if (done) return;
    yield value;
  }
}
