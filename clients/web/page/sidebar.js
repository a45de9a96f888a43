/** The list of chats where there is no room for it beside the chat: opened over it, which is then out of reach. */

import { part } from "./dom.js";

const NARROW = matchMedia("(max-width: 56rem)");
const BEHIND = ["main", "#wire", "#skip"];

export class Sidebar {
  #opener = part("open-sidebar");

  constructor() {
    this.#opener.addEventListener("click", () => this.show(true));
    part("close-sidebar").addEventListener("click", () => this.show(false));
    part("shade").addEventListener("click", () => this.show(false));
    NARROW.addEventListener("change", () => this.show(false));
  }

  get isShown() {
    return document.body.classList.contains("with-sidebar");
  }

  /** @param {boolean} isShown */
  show(isShown) {
    const wasShown = this.isShown;
    document.body.classList.toggle("with-sidebar", isShown);
    part("shade").hidden = !isShown;
    this.#opener.setAttribute("aria-expanded", String(isShown));
    for (const each of document.querySelectorAll(BEHIND.join())) each.toggleAttribute("inert", isShown);
    if (isShown) part("close-sidebar").focus();
    else if (wasShown && NARROW.matches) this.#opener.focus();
  }
}
