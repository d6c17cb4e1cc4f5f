// The pages of deployments: asks before one is deleted, fills in what is proposed, shows the share of a canary, pins requests.
import { ask, inWords, notice } from "./lib.js";

document.addEventListener("click", (event) => {
  const opener = event.target.closest("[data-delete]");
  if (!opener) return;
  event.preventDefault();
  const dialog = document.getElementById("delete");
  dialog.querySelector("form").action = `${opener.dataset.delete}/delete`;
  dialog.querySelector("[data-what]").textContent = opener.dataset.what;
  dialog.showModal();
});

// what is proposed, into the fields
document.addEventListener("click", (event) => {
  const filler = event.target.closest("[data-fill-cpus]");
  if (!filler) return;
  document.getElementById("field-cpus").value = filler.dataset.fillCpus;
  const memory = document.getElementById("field-memory");
  memory.value = filler.dataset.fillMemory;
  memory.dispatchEvent(new Event("input", { bubbles: true }));
});

document.addEventListener("input", (event) => {
  const shown = event.target.dataset?.shown;
  if (shown) document.getElementById(shown).textContent = `${event.target.value} %`;
});

// pinning a request: it goes to /v1 as it was typed, and the list is asked for again
async function pin(form) {
  const words = form.dataset, wrong = form.querySelector("[role=alert]"), button = form.querySelector("button[type=submit]");
  const name = form.querySelector("input").value.trim();
  wrong.textContent = "";
  let body;
  try { body = JSON.parse(form.querySelector("textarea").value); } catch (error) {
    wrong.textContent = `${words.wordsJson}: ${error.message}`;
    return;
  }
  button.disabled = true;
  try {
    const [status, answer] = await ask("POST", `${words.pin}?name=${encodeURIComponent(name)}`, body);
    if (status === 201) {
      notice(words.wordsPinned, "success");
      htmx.ajax("GET", words.again, { target: "#part-golden", swap: "outerHTML" });
      return;
    }
    const reasons = await Promise.all((answer?.errors ?? []).map(async ({ field, message }) => `${field}: ${await inWords(message)}`));
    wrong.textContent = status === 401 ? words.wordsEnded : reasons.join("; ") || await inWords(answer?.detail) || status;
  } catch {
    wrong.textContent = words.wordsAway;
  } finally {
    button.disabled = false;
  }
}

document.addEventListener("submit", (event) => {
  if (event.target.dataset.pin === undefined) return;
  event.preventDefault();
  pin(event.target);
});
