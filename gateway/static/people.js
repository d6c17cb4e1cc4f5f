// The account and administration: choosing a part of a picture, forms whose page stays, dates in the reader's zone.
import { formToken, inWords } from "./lib.js";

// What an answer says that is no answer of the form stands in the form, and what was typed stays.
document.addEventListener("htmx:beforeSwap", (event) => {
  const place = event.detail.elt.closest("form")?.querySelector("[data-problem]");
  if (!place || [200, 400, 409].includes(event.detail.xhr.status)) return;
  event.detail.target = place;
  event.detail.shouldSwap = true;
});

// What is shown once is where the keyboard goes next.
document.addEventListener("htmx:afterSwap", () => {
  const wrong = document.querySelector("#section .is-invalid, #section [role=alert]");
  const made = document.querySelector("#section [data-secret]");
  (made ?? wrong)?.focus();
});

for (const field of document.querySelectorAll("input[name=offset]")) field.value = -new Date().getTimezoneOffset();

// the picture ---------------------------------------------------------------------------------------------------------------

const form = document.getElementById("crop");
const dialog = document.getElementById("picture");
const input = document.getElementById("picture-file");
if (form) {
  const canvas = form.querySelector("canvas");
  const zoom = form.querySelector("input[type=range]");
  const problem = form.querySelector("[data-problem]");
  const button = form.querySelector("[type=submit]");
  const side = Number(form.dataset.side);
  let file = null;
  let image = null;
  let middle = [0.5, 0.5];

  const scale = () => (side / Math.min(image.width, image.height)) * Number(zoom.value);
  const draw = () => {
    const context = canvas.getContext("2d");
    context.fillStyle = "white";
    context.fillRect(0, 0, side, side);
    if (!image) return;
    const [wide, high] = [image.width * scale(), image.height * scale()];
    const within = (share, size) => Math.min(Math.max(share, side / 2 / size), 1 - side / 2 / size);
    middle = [within(middle[0], wide), within(middle[1], high)];
    context.imageSmoothingQuality = "high";
    context.drawImage(image, side / 2 - middle[0] * wide, side / 2 - middle[1] * high, wide, high);
  };
  const move = (x, y) => {
    if (!image) return;
    middle = [middle[0] - x / (image.width * scale()), middle[1] - y / (image.height * scale())];
    draw();
  };
  const say = (text) => {
    const box = document.createElement("div");
    box.className = "alert alert-danger";
    box.textContent = text;
    problem.replaceChildren(...(text ? [box] : []));
  };

  const choose = async (chosen) => {
    if (!chosen) return;
    file = chosen;
    image = null;
    middle = [0.5, 0.5];
    zoom.value = 1;
    say("");
    try {
      image = await createImageBitmap(chosen);
    } catch {
      say(chosen.size > Number(form.dataset.most) ? form.dataset.large : form.dataset.unknown);
    }
    zoom.disabled = !image;
    draw();
    if (!dialog.open) dialog.showModal();
  };

  document.querySelector("[data-picture]").addEventListener("click", () => input.click());
  form.querySelector("[data-other]").addEventListener("click", () => input.click());
  input.addEventListener("change", () => { choose(input.files[0]); input.value = ""; });
  zoom.addEventListener("input", draw);
  canvas.addEventListener("pointerdown", (event) => canvas.setPointerCapture(event.pointerId));
  canvas.addEventListener("pointermove", (event) => {
    const shown = side / canvas.clientWidth;
    if (event.buttons) move(event.movementX * shown, event.movementY * shown);
  });
  canvas.addEventListener("keydown", (event) => {
    const by = { ArrowLeft: [8, 0], ArrowRight: [-8, 0], ArrowUp: [0, 8], ArrowDown: [0, -8] }[event.key];
    if (!by) return;
    event.preventDefault();
    move(...by);
  });

  const send = async (body) => {
    const headers = { "X-Form-Token": formToken(), "Content-Type": body.type };
    const answer = await fetch("/v1/me/avatar", { method: "PUT", headers, body, credentials: "same-origin" });
    if (answer.ok) return location.reload();
    const said = await answer.json().catch(() => ({}));
    say(answer.status === 401 ? form.dataset.expired : `${form.dataset.failed}: ${await inWords(said.detail) ?? answer.status}`);
  };
  form.addEventListener("submit", async (event) => {
    event.preventDefault();
    if (!file || button.disabled) return;
    button.disabled = true;
    say("");
    try {
      const cut = image && (await new Promise((done) => canvas.toBlob(done, "image/png")));
      await send(cut ?? new Blob([file], { type: "application/octet-stream" }));
    } catch {
      say(form.dataset.offline);
    } finally {
      button.disabled = false;
    }
  });
}
