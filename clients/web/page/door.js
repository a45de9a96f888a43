/** Signed out: said, with the way in if there is one; and when there is a new cookie, all goes on by itself. */

import { announce, part } from "./dom.js";

/** @import { Chat } from "./wire.js" */

export class Door {
  #isShut = false;
  #knocks = 0;

  /** @param {Chat} chat @param {() => void} onOpen */
  constructor(chat, onOpen) {
    this.chat = chat;
    this.onOpen = onOpen;
    for (const name of ["focus", "pageshow"]) window.addEventListener(name, () => void this.knock());
    document.addEventListener("visibilitychange", () => document.hidden || void this.knock());
    part("signed-in").addEventListener("click", () => void this.knock());
  }

  /** Where one signs in. @param {string | null | undefined} url */
  set way(url) {
    part("sign-in").hidden = !url;
    if (url) part("sign-in").setAttribute("href", url);
  }

  /** The server does not know who this is. */
  shut() {
    if (this.#isShut) return;
    this.#isShut = true;
    part("signed-out").hidden = false;
    announce("You are signed out");
  }

  /** Is it open again? Who knocks in the meantime may have signed in since: then it is asked once more. */
  async knock() {
    if (!this.#isShut || this.#knocks++ > 0) return;
    let isOpen;
    do {
      this.#knocks = 1;
      isOpen = await this.chat.request("/chat/sessions?limit=1").then(() => true, () => false);
    } while (!isOpen && this.#knocks > 1);
    this.#knocks = 0;
    if (!isOpen) return;
    this.#isShut = false;
    part("signed-out").hidden = true;
    announce("You are signed in");
    this.onOpen();
  }
}
