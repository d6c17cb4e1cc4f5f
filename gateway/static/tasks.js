// Lists of tasks and batches: the reader's zone for days, and choosing several.
const zone = String(new Date().getTimezoneOffset());
for (const field of document.querySelectorAll("[data-zone]")) field.value = zone;

const boxes = () => [...document.querySelectorAll("input[form=several]")];

function count() {
  const form = document.querySelector("[data-several]");
  if (!form) return;
  const all = boxes();
  const chosen = all.filter((box) => box.checked).length;
  for (const button of form.querySelectorAll("button")) button.disabled = chosen === 0;
  const words = form.querySelector("[data-count]");
  words.textContent = chosen ? words.dataset.count.replace("{}", chosen) : "";
  const every = form.querySelector("[data-all]");
  every.checked = chosen > 0 && chosen === all.length;
  every.indeterminate = chosen > 0 && chosen < all.length;
  form.hidden = all.length === 0;
}

document.addEventListener("change", (event) => {
  if (event.target.matches("[data-all]")) for (const box of boxes()) box.checked = event.target.checked;
  count();
});
document.addEventListener("htmx:afterSettle", count);
// what is asked for again is put in without htmx's own swap
document.addEventListener("htmx:afterRequest", () => setTimeout(count));
addEventListener("pageshow", count);
count();
