// The drawing comes when somebody wants it.
for (const box of document.querySelectorAll("[data-graph]")) {
  const open = box.querySelector("[data-graph-open]");
  open.addEventListener("click", async () => {
    open.disabled = true;
    try {
      const { begin } = await import("./graph_view.js");
      await begin(box);
    } catch (error) {
      box.querySelector("[data-graph-problem]").textContent = error.message;
      open.disabled = false;
    }
  });
}
