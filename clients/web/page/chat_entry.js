/** A chat in the list: a link, and what can be done with it. */

import { el, iconButton, isEnter } from "./dom.js";

/** @import { SessionResource } from "../resources.js" */

export class ChatEntry {
  #link;

  /** @param {SessionResource} session @param {{ onRename: (title: string | null) => void, onDelete: () => void }} hooks `onRename`: null: it stays */
  constructor(session, hooks) {
    this.session = session;
    this.hooks = hooks;
    const title = session.title || "New chat";
    const when = new Date(session.updated_at).toLocaleString("en", { dateStyle: "medium", timeStyle: "short" });
    this.#link = el("a", { href: `#/s/${session.session_id}`, title: `${title}\n${when}` }, el("span", { dir: "auto" }, title),
      session.active_run_id && el("i", { class: "going", role: "img", "aria-label": "an answer is being written" }));
    this.element = el("li", { "data-id": session.session_id }, this.#link,
      el("div", { class: "actions" },
        iconButton("edit", `Rename “${title}”`, () => this.#rename()), iconButton("trash", `Delete “${title}”`, hooks.onDelete)));
  }

  /** Whether it shows this already. @param {SessionResource} session */
  shows({ title, updated_at, active_run_id }) {
    return title === this.session.title && updated_at === this.session.updated_at && active_run_id === this.session.active_run_id;
  }

  /** @param {boolean} isCurrent */
  mark(isCurrent) {
    if (isCurrent) this.#link.setAttribute("aria-current", "page");
    else this.#link.removeAttribute("aria-current");
  }

  focus() {
    this.#link.focus();
  }

  #rename() {
    const { title } = this.session;
    const field = el("input", { type: "text", value: title, "aria-label": "New name", maxlength: 200, dir: "auto" });
    let isOver = false; // Taking the field away takes the focus from it, and that is a reason to keep the name too.
    const leave = (/** @type {string | null} */ now) => {
      if (isOver) return;
      isOver = true;
      field.remove();
      this.hooks.onRename(now && now !== title ? now : null);
    };
    field.addEventListener("keydown", (event) => {
      event.stopPropagation();
      if (isEnter(event)) leave(field.value.trim());
      else if (event.key === "Escape") leave(null);
    });
    field.addEventListener("blur", () => leave(field.value.trim()));
    this.element.replaceChildren(field);
    field.focus();
    field.select();
  }
}
