// Keeps one page, for when there is no connection, and shows it where another could not be loaded. It touches nothing else.
const KEPT = "outboard";
const PAGE = "/ui/offline";
const shown = new Set(); // where it is shown now

async function renew() {
  const answer = await fetch(PAGE, { cache: "no-store" });
  if (!answer.ok) throw new Error(`${PAGE}: ${answer.status}`);
  const needed = (await answer.clone().text()).match(/\/ui\/static\/[^"]+/g) ?? [];
  const kept = await caches.open(KEPT);
  await Promise.all(needed.map(async (path) => await kept.match(path) ?? await kept.add(path)));
  await kept.put(PAGE, answer);
  for (const { url } of await kept.keys()) if (!needed.concat(PAGE).some((path) => url.endsWith(path))) await kept.delete(url);
}

const found = (request) => caches.match(request, { ignoreVary: true });

async function load(event) {
  try {
    return await event.preloadResponse ?? await fetch(event.request);
  } catch {
    shown.add(event.resultingClientId);
    return await found(PAGE) ?? Response.error();
  }
}

addEventListener("install", (event) => event.waitUntil(renew().then(() => skipWaiting())));
// the page is asked for while this starts, not after it
addEventListener("activate", (event) => event.waitUntil(Promise.all([registration.navigationPreload?.enable(), clients.claim()])));
addEventListener("message", (event) => event.waitUntil(renew().then(() => event.source.postMessage("renewed"))));
addEventListener("fetch", (event) => {
  if (event.request.mode === "navigate" && event.request.method === "GET") event.respondWith(load(event));
  else if (shown.has(event.clientId)) event.respondWith(found(event.request).then((kept) => kept ?? fetch(event.request)));
});
