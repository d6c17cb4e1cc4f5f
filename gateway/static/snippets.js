// Snippets as tabs. The language that somebody reads stays chosen.
const KEPT = "outboard snippet";

for (const box of document.querySelectorAll("[data-snippets]")) {
  const tabs = [...box.querySelectorAll("[data-tab]")];
  const choose = (key, focus = false) => {
    const known = tabs.some((tab) => tab.dataset.tab === key) ? key : tabs[0]?.dataset.tab;
    for (const tab of tabs) {
      const here = tab.dataset.tab === known;
      tab.classList.toggle("active", here);
      tab.setAttribute("aria-selected", String(here));
      tab.tabIndex = here ? 0 : -1;
      if (here && focus) tab.focus();
    }
    for (const panel of box.querySelectorAll("[data-panel]")) {
      panel.hidden = panel.dataset.panel !== known;
      panel.setAttribute("role", "tabpanel");
      panel.setAttribute("aria-labelledby", `tab-${panel.dataset.panel}`);
    }
    return known;
  };
  const keep = (key) => { try { localStorage.setItem(KEPT, key); } catch { /* the browser keeps nothing */ } };
  const kept = () => { try { return localStorage.getItem(KEPT); } catch { return null; } };
  box.querySelector("[role=tablist]").hidden = false;
  box.querySelectorAll("[data-heading]").forEach((each) => each.classList.add("visually-hidden"));
  choose(kept());
  box.addEventListener("click", (event) => {
    const tab = event.target.closest("[data-tab]");
    if (tab) keep(choose(tab.dataset.tab));
  });
  box.addEventListener("keydown", (event) => {
    const at = tabs.indexOf(event.target);
    if (at < 0) return;
    const to = { ArrowRight: at + 1, ArrowLeft: at - 1, Home: 0, End: tabs.length - 1 }[event.key];
    if (to === undefined) return;
    event.preventDefault();
    keep(choose(tabs[(to + tabs.length) % tabs.length].dataset.tab, true));
  });
}
