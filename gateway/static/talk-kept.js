// Conversations and what is being typed, in this browser: one for each reader and each model.
const most = 500;

export class Kept {
  /** `full`: called when the browser had no room and the oldest turns were dropped. */
  constructor(user, name, full) {
    this.key = `outboard talk ${user} ${name}`;
    this.draftKey = `outboard talk draft ${user} ${name}`;
    this.full = full;
  }

  turns() {
    try {
      const found = JSON.parse(localStorage.getItem(this.key) ?? "[]");
      return Array.isArray(found) ? found.filter((turn) => typeof turn?.asked === "string") : [];
    } catch { return []; }
  }

  save(turns) {
    while (turns.length > most) turns.shift();
    let dropped = false;
    for (;;) {
      try {
        localStorage.setItem(this.key, JSON.stringify(turns));
        break;
      } catch {
        if (turns.length < 2) break;
        turns.splice(0, Math.ceil(turns.length / 4));
        dropped = true;
      }
    }
    if (dropped) this.full();
  }

  clear() { localStorage.removeItem(this.key); }

  get draft() { return localStorage.getItem(this.draftKey) ?? ""; }

  set draft(text) {
    try { text ? localStorage.setItem(this.draftKey, text) : localStorage.removeItem(this.draftKey); } catch { /* no room: it is still in the box */ }
  }
}
