// Signing in and registering without leaving the page: the links open their forms in a dialog. htmx sends these and puts the next one in.
const dialog = document.getElementById("account");
const inside = document.getElementById("account-inside");

function tell(text) {
  const box = document.createElement("div");
  box.className = "alert alert-warning m-3";
  box.setAttribute("role", "alert");
  box.textContent = text;
  inside.querySelector(":scope > .alert")?.remove();
  inside.prepend(box);
}

document.addEventListener("click", (event) => {
  const link = event.target.closest('a[href^="/ui/sign-in"], a[href^="/ui/register"]');
  const wantsTab = event.button !== 0 || event.ctrlKey || event.metaKey || event.shiftKey || event.altKey;
  if (!link || wantsTab || dialog.contains(link) || !window.htmx) return;
  event.preventDefault();
  const wait = document.createElement("p");
  wait.className = "account-wait text-secondary";
  wait.textContent = "…";
  inside.replaceChildren(wait);
  dialog.showModal();
  window.htmx.ajax("GET", link.getAttribute("href"), { source: inside, target: inside, swap: "innerHTML" });
});

// what refuses a whole form is said above it, and what was typed stays
inside.addEventListener("htmx:beforeSwap", (event) => {
  if (event.detail.xhr.status < 400 || event.detail.serverResponse.includes('id="account-title"')) return;
  event.detail.swapOverride = "afterbegin";
  inside.querySelectorAll(":scope > .alert, .account-wait").forEach((each) => each.remove());
});
inside.addEventListener("htmx:sendError", () => {
  inside.querySelector(".account-wait")?.remove();
  tell(inside.dataset.away);
});
inside.addEventListener("htmx:afterSettle", () => {
  (inside.querySelector(".is-invalid") ?? inside.querySelector("[autofocus]") ?? inside.querySelector("input:not([type=hidden])"))?.focus();
});
