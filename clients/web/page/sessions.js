/** The list of chats: the last used one first, by days, as far back as there are any; and those whose title is looked for. */

import { ChatEntry } from "./chat_entry.js";
import { announce, el, isSure, part, said } from "./dom.js";

/** @import { Chat } from "./wire.js" */
/** @import { SessionPage, SessionResource } from "../resources.js" */

const PAGE = 40;
const SEARCH_MS = 200; // After the last key.
const DAY_MS = 86_400_000;

export class Sessions {
  /** @type {SessionResource[]} */ #sessions = [];
  /** @type {Map<string, ChatEntry>} */ #entries = new Map();
  /** Asks for older ones. @type {string | null} */ #cursor = null;
  /** @type {string | null} */ #current = null;
  #searched = "";
  #refreshes = 0;
  #sight = new IntersectionObserver((seen) => seen.at(-1)?.isIntersecting && void this.#older(), { root: part("sessions").parentElement, rootMargin: "200px" });
  #list = part("sessions");
  #more = part("more-sessions");
  #search = /** @type {HTMLInputElement} */ (part("search"));

  /**
   * @param {Chat} chat
   * @param {{ onDeleted: (id: string) => void, onTitle: (id: string, title: string) => void, onNews: () => void, onSignedOut: () => void }} hooks
   */
  constructor(chat, hooks) {
    this.chat = chat;
    this.hooks = hooks;
    this.#more.addEventListener("click", () => void this.#older());
    /** @type {ReturnType<typeof setTimeout> | undefined} */ let timer;
    this.#search.addEventListener("input", () => {
      clearTimeout(timer);
      timer = setTimeout(() => void this.#find(), SEARCH_MS);
    });
    this.#search.addEventListener("keydown", (event) => {
      if (event.key !== "Escape" || !this.#search.value) return;
      event.stopPropagation();
      this.#search.value = "";
      void this.#find();
    });
  }

  /** See what is new: the first page, in front of what is known. */
  async refresh() {
    const refresh = ++this.#refreshes;
    const page = await this.#ask(null);
    if (!page || refresh !== this.#refreshes) return;
    const last = page.sessions.at(-1);
    const isNew = new Set(page.sessions.map((each) => each.session_id));
    const rest = page.cursor && last ? this.#sessions.filter((each) => isBefore(each, last) && !isNew.has(each.session_id)) : [];
    if (!rest.length) this.#cursor = page.cursor;
    this.#sessions = [...page.sessions, ...rest];
    this.#draw();
  }

  async #find() {
    this.#searched = this.#search.value.trim();
    this.#sessions = [];
    await this.refresh();
    if (this.#searched) announce(`${this.#sessions.length}${this.#cursor ? " or more" : ""} chats found`);
  }

  async #older() {
    if (this.#cursor === null || this.#more.ariaBusy === "true") return;
    this.#more.ariaBusy = "true";
    const page = await this.#ask(this.#cursor);
    this.#more.ariaBusy = "false";
    if (!page) return;
    const known = new Set(this.#sessions.map((each) => each.session_id));
    this.#sessions.push(...page.sessions.filter((each) => !known.has(each.session_id)));
    this.#cursor = page.cursor;
    this.#draw();
  }

  /** @param {string | null} cursor @returns {Promise<SessionPage | null>} null: it could not be read, or something else was asked meanwhile */
  async #ask(cursor) {
    const searched = this.#searched;
    const query = new URLSearchParams({ limit: String(PAGE), ...(cursor && { cursor }), ...(searched && { search: searched }) });
    try {
      const page = await (await this.chat.request(`/chat/sessions?${query}`)).json();
      return searched === this.#searched ? page : null;
    } catch (error) {
      if (/** @type {any} */ (error).status === 401) this.hooks.onSignedOut();
      return null; // The list stays as it was; the state of the connection says why.
    }
  }

  /** @param {string | null} sessionId the one that is open */
  select(sessionId) {
    this.#current = sessionId;
    for (const [id, entry] of this.#entries) entry.mark(id === sessionId);
  }

  /** The next or previous one in the list. @param {number} by @returns {string | null} */
  beside(by) {
    const at = this.#sessions.findIndex((each) => each.session_id === this.#current);
    return this.#sessions[at < 0 ? 0 : at + by]?.session_id ?? null;
  }

  #draw() {
    if (this.#list.querySelector("input")) return; // Somebody is typing a new name.
    const focused = document.activeElement?.closest("li[data-id]")?.getAttribute("data-id");
    const entries = new Map(this.#sessions.map((each) => [each.session_id, this.#entry(each)]));
    this.#entries = entries;
    /** @type {HTMLElement[]} */ const groups = [];
    let day = "";
    for (const session of this.#sessions) {
      if (dayOf(session.updated_at) !== day) {
        day = dayOf(session.updated_at);
        groups.push(el("section", {}, el("h2", {}, day), el("ul", {})));
      }
      groups.at(-1)?.lastElementChild?.append(/** @type {ChatEntry} */ (entries.get(session.session_id)).element);
    }
    if (!groups.length) groups.push(el("p", { class: "none" }, this.#searched ? "No chat has this in its title" : "No chats yet"));
    this.#list.replaceChildren(...groups);
    const current = this.#sessions.find((each) => each.session_id === this.#current);
    if (current) this.hooks.onTitle(current.session_id, current.title);
    this.#more.hidden = this.#cursor === null;
    this.#sight.unobserve(this.#more);
    this.#sight.observe(this.#more); // It may be in sight still: then it is told again.
    if (focused) entries.get(focused)?.focus();
  }

  /** @param {SessionResource} session */
  #entry(session) {
    const known = this.#entries.get(session.session_id);
    const entry = known?.shows(session) ? known : new ChatEntry(session, { onRename: (title) => this.#rename(session, title), onDelete: () => void this.#delete(session) });
    entry.mark(session.session_id === this.#current);
    return entry;
  }

  /** @param {SessionResource} session @param {string | null} title null: it stays */
  async #rename(session, title) {
    const { session_id: id } = session;
    if (title !== null) {
      try {
        await this.chat.request(`/chat/sessions/${id}`, { method: "PATCH", body: JSON.stringify({ title }) });
        this.#sessions = this.#sessions.map((each) => (each.session_id === id ? { ...each, title } : each));
        this.hooks.onTitle(id, title);
        this.hooks.onNews();
      } catch (error) {
        announce(`It could not be renamed: ${said(error)}`);
      }
    }
    this.#entries.delete(id);
    this.#draw();
    this.#entries.get(id)?.focus();
  }

  /** @param {SessionResource} session */
  async #delete({ session_id: id, title }) {
    if (!(await isSure(`Delete “${title || "New chat"}” and all it holds?`))) return;
    try {
      await this.chat.request(`/chat/sessions/${id}`, { method: "DELETE" });
    } catch (error) {
      return announce(`It could not be deleted: ${said(error)}`);
    }
    announce("Deleted");
    this.#sessions = this.#sessions.filter((each) => each.session_id !== id);
    this.hooks.onDeleted(id);
    this.hooks.onNews();
    await this.refresh();
    if (document.activeElement === document.body) part("new").focus();
  }
}

/** Whether one comes later in the list than another. @param {SessionResource} session @param {SessionResource} other */
function isBefore(session, other) {
  return session.updated_at === other.updated_at ? session.session_id < other.session_id : session.updated_at < other.updated_at;
}

/** Such as Yesterday, or October 2026. @param {string} time */
function dayOf(time) {
  const date = new Date(time);
  const today = new Date().setHours(0, 0, 0, 0);
  const days = Math.round((today - new Date(date).setHours(0, 0, 0, 0)) / DAY_MS);
  if (days <= 0) return "Today";
  if (days === 1) return "Yesterday";
  if (days <= 7) return "Last 7 days";
  return days <= 30 ? "Last 30 days" : date.toLocaleDateString("en", { month: "long", year: "numeric" });
}
