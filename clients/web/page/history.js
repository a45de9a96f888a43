/** What the server has of a session's messages, page by page from the newest, and the branch of them that is shown. */

import { Branches } from "./branches.js";
import { parse } from "./exact.js";
import { keep, kept } from "./kept.js";

/** @import { Chat } from "./wire.js" */
/** @import { MessageResource, SessionDetail } from "../resources.js" */
/** @typedef {Pick<MessageResource, "message_id" | "parent_id" | "role">} Place */

export class History {
  /** @type {Branches<Place>} */ branches = new Branches();
  /** Asks for older messages. @type {string | null} */ #cursor = null;

  /** @param {Chat} chat @param {string} sessionId */
  constructor(chat, sessionId) {
    this.chat = chat;
    this.sessionId = sessionId;
  }

  /**
   * Learn what is new. Shown is then the branch that is being written, or else the one that was shown before.
   * @param {() => boolean} isWanted whether anybody still waits for it
   * @returns {Promise<{ title: string, active: MessageResource | undefined } | null>} `active` is being written; null: not wanted
   */
  async load(isWanted) {
    const session = await this.#page();
    if (!isWanted()) return null;
    const { leaf, newest } = this.branches;
    this.#take(session, false);
    const active = session.messages.find((each) => each.run_id !== null && each.run_id === session.active_run_id);
    const chosen = leaf === null ? kept("session", `leaf.${this.sessionId}`) : leaf === newest ? null : leaf;
    const wanted = active?.message_id ?? chosen ?? this.branches.newest;
    while (!this.branches.has(wanted) && this.#cursor) {
      const older = await this.#page(this.#cursor);
      if (!isWanted()) return null;
      this.#take(older, true);
    }
    this.branches.leaf = this.branches.has(wanted) ? wanted : this.branches.newest;
    return { title: session.title, active };
  }

  /** The page of messages before those that are known. */
  async older() {
    if (this.#cursor) this.#take(await this.#page(this.#cursor), true);
  }

  /** Show the branch of a message; a reload will too. @param {string} id */
  show(id) {
    this.branches.show(id);
    const { leaf, newest } = this.branches;
    keep("session", `leaf.${this.sessionId}`, leaf === newest ? null : leaf);
  }

  /** @param {string} [cursor] @returns {Promise<SessionDetail>} */
  async #page(cursor) {
    const older = cursor ? `&cursor=${encodeURIComponent(cursor)}` : "";
    return parse(await (await this.chat.request(`/chat/sessions/${this.sessionId}?branches=all${older}`)).text());
  }

  /** @param {SessionDetail} session @param {boolean} areOlder */
  #take(session, areOlder) {
    const isGap = !areOlder && session.cursor && !session.messages.some((each) => this.branches.has(each.message_id));
    if (isGap) this.branches = new Branches(); // So much is new that what is known does not reach up to it.
    if (areOlder || this.branches.newest === null) this.#cursor = session.cursor;
    this.branches.load(session.messages, areOlder);
    this.branches.isWhole = this.#cursor === null;
  }
}
