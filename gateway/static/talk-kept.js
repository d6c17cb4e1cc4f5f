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

  /** Puts one turn, as it is now, among those that are kept: what other tabs have added, answered or cleared stays so. Gives all of them;
   * `shown` with that turn where the browser keeps nothing. */
  save(own, shown) {
    const among = (turns) => [...turns.filter((turn) => turn.id !== own.id), own].sort((one, other) => one.at - other.at);
    const turns = among(this.turns()).slice(-most);
    let dropped = false;
    for (;;) {
      try {
        localStorage.setItem(this.key, JSON.stringify(turns));
        break;
      } catch {
        if (turns.length < 2) return among(shown);
        turns.splice(0, Math.ceil(turns.length / 4));
        dropped = true;
      }
    }
    if (dropped) this.full();
    return turns;
  }

  clear() { localStorage.removeItem(this.key); }

  get draft() { return localStorage.getItem(this.draftKey) ?? ""; }

  set draft(text) {
    try { text ? localStorage.setItem(this.draftKey, text) : localStorage.removeItem(this.draftKey); } catch { /* no room: it is still in the box */ }
  }
}
