// An error that passes: the link to try again counts down, and where waiting helps it is followed by itself, later each time.
const link = document.getElementById("again");
if (link?.dataset.count) {
  const text = link.querySelector("span");
  const name = `tries ${location.pathname}`;
  const before = JSON.parse(sessionStorage.getItem(name) ?? "[0, 0]");
  const tries = Date.now() - before[1] < 120000 ? before[0] : 0;
  const said = text.textContent;
  const until = Date.now() + 1000 * Math.max(Number(link.dataset.count), "byItself" in link.dataset ? Math.min(3 * 2 ** tries, 30) : 0);
  const tick = () => {
    const left = Math.ceil((until - Date.now()) / 1000);
    if (left > 0) {
      text.textContent = link.dataset.words.replace("{}", left);
      setTimeout(tick, 250);
      return;
    }
    text.textContent = said;
    if (!("byItself" in link.dataset)) link.focus();
    else if (document.hidden) document.addEventListener("visibilitychange", tick, { once: true });
    else {
      sessionStorage.setItem(name, JSON.stringify([tries + 1, Date.now()]));
      location.replace(link.href);
    }
  };
  tick();
}
