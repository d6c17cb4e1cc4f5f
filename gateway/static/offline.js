// What stands in place of a page that could not be loaded: it has that page's address, and loads it once there is a connection.
let wasAway = false; // else it is that page alone which does not come: its reader may try it again

async function look() {
  try {
    if ((await fetch("/livez", { cache: "no-store" })).ok && wasAway) location.reload();
  } catch { wasAway = true; }
}

document.getElementById("back").addEventListener("click", () => history.back());
addEventListener("online", look);
setInterval(look, 3000);
look();
