// The example on the first page: a picture to the demo model, its answer as bars.
import { ask, inWords } from "./lib.js";

const form = document.querySelector("form[data-classify]");
if (form) {
  const drop = form.querySelector(".drop");
  const input = form.querySelector("input[type=file]");
  const preview = document.getElementById("preview");
  const answer = document.getElementById("answer");

  const show = (labels, took) => {
    const list = document.createElement("dl");
    list.className = "bars";
    for (const { label, score } of labels) {
      const name = document.createElement("dt");
      name.textContent = label;
      const bar = document.createElement("dd");
      const meter = document.createElement("meter");
      meter.value = score;
      meter.setAttribute("aria-label", label);
      bar.append(meter);
      const share = document.createElement("dd");
      share.textContent = `${(100 * score).toFixed(1)} %`;
      list.append(name, bar, share);
    }
    const time = document.createElement("p");
    time.className = "small text-secondary mt-2 mb-0";
    time.textContent = took === undefined ? "" : form.dataset.took.replace("{}", took.toFixed(1));
    answer.replaceChildren(list, time);
  };

  const classify = async (file, sample = null) => {
    if (!file) return;
    for (const each of form.querySelectorAll("[data-sample]")) each.setAttribute("aria-pressed", String(each === sample));
    URL.revokeObjectURL(preview.src);
    preview.src = URL.createObjectURL(file);
    preview.hidden = false;
    answer.textContent = "…";
    const body = new FormData();
    body.append("image", file);
    try {
      const [status, said] = await ask("POST", `/v1/models/${form.dataset.classify}/predictions`, body);
      if (status !== 200) throw new Error(await inWords(said?.detail ?? String(status)));
      show(said.labels[0], said.timing_ms?.compute);
    } catch (error) {
      preview.hidden = true;
      const said = document.createElement("div");
      said.className = "alert alert-danger m-0";
      said.setAttribute("role", "alert");
      said.textContent = `${form.dataset.failed}: ${error.message}`;
      answer.replaceChildren(said);
    }
  };

  input.addEventListener("change", () => classify(input.files[0]));
  for (const sample of form.querySelectorAll("[data-sample]")) {
    sample.setAttribute("aria-pressed", "false");
    sample.addEventListener("click", async () => {
      const picture = await fetch(sample.querySelector("img").src);
      classify(await picture.blob(), sample);
    });
  }
  for (const kind of ["dragover", "dragleave", "drop"]) {
    drop.addEventListener(kind, (event) => {
      event.preventDefault();
      drop.classList.toggle("over", kind === "dragover");
      if (kind === "drop") classify(event.dataTransfer.files[0]);
    });
  }
}
