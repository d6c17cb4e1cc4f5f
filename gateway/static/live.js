// What is asked for again and again (hx-trigger "every …", hx-swap "outerHTML"): only what has changed in it is put in, so that the focus,
// a click that has begun, and what the reader has opened stay as they are.
const kept = new Set(["open", "data-sent", "title", "class"]); // what the browser and our scripts set by themselves; class: see below

function attributes(old, fresh) {
  for (const { name, value } of fresh.attributes) if (old.getAttribute(name) !== value) old.setAttribute(name, value);
  for (const { name } of [...old.attributes]) if (!kept.has(name) && !fresh.hasAttribute(name)) old.removeAttribute(name);
  if (!fresh.hasAttribute("class") && old.hasAttribute("class")) old.className = "";
}

function children(old, fresh, added) {
  let at = old.firstChild;
  for (const wanted of [...fresh.childNodes]) {
    const known = wanted.id ? [...old.children].find((each) => each.id === wanted.id) : at?.id ? null : at;
    if (known && known !== at) old.insertBefore(known, at);
    if (known) {
      at = known.nextSibling;
      patch(known, wanted, added);
    } else {
      old.insertBefore(wanted, at);
      if (wanted.nodeType === Node.ELEMENT_NODE) added.push(wanted);
    }
  }
  while (at) {
    const next = at.nextSibling;
    at.remove();
    at = next;
  }
}

/** Makes `old` what `fresh` is. `added` gets the elements that were put in. */
export function patch(old, fresh, added) {
  if (old.nodeType !== fresh.nodeType || old.nodeName !== fresh.nodeName) {
    old.replaceWith(fresh);
    if (fresh.nodeType === Node.ELEMENT_NODE) added.push(fresh);
  } else if (old.nodeType !== Node.ELEMENT_NODE) {
    if (old.data !== fresh.data) old.data = fresh.data;
  } else if (old.nodeName !== "TIME" || old.dateTime !== fresh.dateTime) { // a time is told in the reader's words
    attributes(old, fresh);
    children(old, fresh, added);
  }
}

/** Whether an element looks again by itself. */
export const polls = (element) => /\bevery\b/.test(element?.getAttribute?.("hx-trigger") ?? "");

/** Does it for an answer to htmx. True where it was one of those. */
export function renew({ target, xhr, requestConfig: { elt } }, prepare) { // detail.elt is the target, whoever asked
  if (xhr.status !== 200 || elt !== target || elt.getAttribute("hx-swap") !== "outerHTML") return false;
  if (!polls(elt)) return false;
  const holder = document.createElement("template");
  holder.innerHTML = xhr.responseText;
  const fresh = holder.content.firstElementChild;
  if (!fresh || fresh.nodeName !== elt.nodeName || fresh.id !== elt.id) return false;
  const added = [];
  patch(elt, fresh, added);
  for (const each of added) {
    if (!each.isConnected) continue;
    htmx.process(each);
    prepare(each);
  }
  return true;
}
