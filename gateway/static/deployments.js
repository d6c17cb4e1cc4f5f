// The pages of deployments: asks before one is deleted.
document.addEventListener("click", (event) => {
  const opener = event.target.closest("[data-delete]");
  if (!opener) return;
  event.preventDefault();
  const dialog = document.getElementById("delete");
  dialog.querySelector("form").action = `${opener.dataset.delete}/delete`;
  dialog.querySelector("[data-what]").textContent = opener.dataset.what;
  dialog.showModal();
});
