/** The list of chats: newest first, with rename and delete. */

import { announce, el, iconButton, part } from "./dom.js";

/** @import { Chat } from "./wire.js" */
/** @typedef {{ session_id: string, title: string, updated_at: string, active_run_id: string | null }} Entry */

const PAGE = 30;

export class Sessions {
  /** @type {Entry[]} */ #entries = [];
  /** @type {string | null} */ #cursor = null;
  #limit = PAGE;
  /** @type {string | null} */ #current = null;
  #list = part("sessions");

  /** @param {Chat} chat @param {{ onDeleted: (id: string) => void, onTitle: (id: string, title: string) => void }} hooks */
  constructor(chat, hooks) {
    this.chat = chat;
    this.hooks = hooks;
    part("more-sessions").addEventListener("click", () => {
      this.#limit += PAGE;
      void this.refresh();
    });
  }

  async refresh() {
    try {
      const answer = await this.chat.request(`/chat/sessions?limit=${Math.min(100, this.#limit)}`);
      const { sessions, cursor } = await answer.json();
      this.#entries = sessions;
      this.#cursor = cursor;
    } catch {
      return; // The list stays as it was; the state of the connection says why.
    }
    this.#draw();
  }

  /** @param {string | null} sessionId the one that is open */
  select(sessionId) {
    this.#current = sessionId;
    for (const item of this.#list.children) this.#mark(/** @type {HTMLElement} */ (item));
  }

  /** The next or previous one in the list. @param {number} by @returns {string | null} */
  beside(by) {
    const at = this.#entries.findIndex((entry) => entry.session_id === this.#current);
    return this.#entries[at < 0 ? 0 : at + by]?.session_id ?? null;
  }

  #draw() {
    if (this.#list.querySelector("input")) return; // Somebody is typing a new name.
    const focused = document.activeElement?.closest("li[data-id]")?.getAttribute("data-id");
    this.#list.replaceChildren(...this.#entries.map((entry) => this.#item(entry)));
    if (!this.#entries.length) this.#list.append(el("li", { class: "none" }, "No chats yet"));
    const current = this.#entries.find((entry) => entry.session_id === this.#current);
    if (current) this.hooks.onTitle(current.session_id, current.title);
    part("more-sessions").hidden = this.#cursor === null || this.#limit >= 100;
    if (focused) /** @type {HTMLElement | null} */ (this.#list.querySelector(`[data-id="${CSS.escape(focused)}"] a`))?.focus();
  }

  /** @param {Entry} entry */
  #item(entry) {
    const title = entry.title || "New chat";
    const item = el("li", { "data-id": entry.session_id },
      el("a", { href: `#/s/${entry.session_id}`, title }, el("span", {}, title), entry.active_run_id && el("i", { class: "going", role: "img", "aria-label": "an answer is being written" })),
      el("div", { class: "actions" },
        iconButton("edit", `Rename “${title}”`, () => this.#rename(item, entry)),
        iconButton("trash", `Delete “${title}”`, () => void this.#delete(entry))));
    this.#mark(item);
    return item;
  }

  /** @param {HTMLElement} item */
  #mark(item) {
    const link = item.querySelector("a");
    if (item.dataset.id === this.#current) link?.setAttribute("aria-current", "page");
    else link?.removeAttribute("aria-current");
  }

  /** @param {HTMLElement} item @param {Entry} entry */
  #rename(item, entry) {
    const field = el("input", { type: "text", value: entry.title, "aria-label": "New name", maxlength: 200 });
    let isOver = false; // Taking the field away takes the focus from it, and that is a reason to keep the name too.
    const leave = () => {
      isOver = true;
      field.remove();
      this.#draw();
      /** @type {HTMLElement | null} */ (this.#list.querySelector(`[data-id="${CSS.escape(entry.session_id)}"] a`))?.focus();
    };
    const keep = async () => {
      if (isOver) return;
      isOver = true;
      const title = field.value.trim();
      if (title && title !== entry.title) {
        try {
          await this.chat.request(`/chat/sessions/${entry.session_id}`, { method: "PATCH", body: JSON.stringify({ title }) });
          entry.title = title;
          this.hooks.onTitle(entry.session_id, title);
        } catch (error) {
          announce(`It could not be renamed: ${error instanceof Error ? error.message : error}`);
        }
      }
      leave();
    };
    field.addEventListener("keydown", (event) => {
      event.stopPropagation();
      if (event.key === "Enter" && !event.isComposing) void keep();
      else if (event.key === "Escape") leave();
    });
    field.addEventListener("blur", () => void keep());
    item.replaceChildren(field);
    field.focus();
    field.select();
  }

  /** @param {Entry} entry */
  async #delete(entry) {
    if (!(await isSure(`Delete “${entry.title || "New chat"}” and all it holds?`))) return;
    try {
      await this.chat.request(`/chat/sessions/${entry.session_id}`, { method: "DELETE" });
    } catch (error) {
      return announce(`It could not be deleted: ${error instanceof Error ? error.message : error}`);
    }
    announce("Deleted");
    this.hooks.onDeleted(entry.session_id);
    await this.refresh();
    if (document.activeElement === document.body) part("new").focus();
  }
}

/** @param {string} question @returns {Promise<boolean>} */
function isSure(question) {
  const dialog = /** @type {HTMLDialogElement} */ (part("confirm"));
  part("confirm-text").textContent = question;
  dialog.returnValue = "no";
  dialog.showModal();
  return new Promise((resolve) => dialog.addEventListener("close", () => resolve(dialog.returnValue === "yes"), { once: true }));
}
