/** The field for a message: a draft for each chat, a limit that is seen before it is met, what goes with the text. */

import { Attachments } from "./attachments.js";
import { announce, isEnter, part } from "./dom.js";
import { keep, kept } from "./kept.js";

const COUNTED_FROM = 0.8; // A count is shown from this share of the limit on.
/** @import { Attachment } from "./attachments.js" */

const BUSY = "An answer is being written: stop it, or send this when it is over.";
const encoder = new TextEncoder();
const number = new Intl.NumberFormat("en");
let limitBytes = Infinity;

/** What the server takes as one message. @param {number} bytes */
export function limitMessages(bytes) {
  limitBytes = bytes;
}

/** What is wrong with the length of a message; empty: nothing. @param {string} text */
export function overLimit(text) {
  const bytes = encoder.encode(text).length;
  if (bytes <= limitBytes) return "";
  return `Too long by ${number.format(bytes - limitBytes)}: ${number.format(bytes)} of at most ${number.format(limitBytes)} bytes. Shorten it, or send it in parts.`;
}

export class Composer {
  #field = /** @type {HTMLTextAreaElement} */ (part("message"));
  #note = part("note");
  #attachments = new Attachments((text) => this.say(text));
  /** Whose draft is in the field; empty: a chat that has no name yet. */ #chat = "";
  /** Sent, and not taken by the server yet: still a draft to a page that is loaded anew. */ #sent = "";

  /** @param {{ onSend: (text: string, attachments: Attachment[]) => void, onEditLast: () => void, isBusy: () => boolean }} hooks */
  constructor(hooks) {
    this.hooks = hooks;
    part("composer").addEventListener("submit", (event) => {
      event.preventDefault();
      this.#submit();
    });
    this.#field.addEventListener("input", () => this.#changed());
    this.#field.addEventListener("keydown", (event) => this.#typed(event));
    this.#field.addEventListener("paste", (event) => {
      const { files = [], types = [] } = event.clipboardData ?? {};
      if (!files.length || types.includes("text/plain")) return;
      event.preventDefault();
      void this.#attachments.add([...files]);
    });
    for (const name of ["dragover", "dragleave", "drop"]) {
      document.addEventListener(name, (event) => {
        const data = /** @type {DragEvent} */ (event).dataTransfer;
        if (!data?.types.includes("Files")) return;
        event.preventDefault(); // Or else the browser leaves the page for the file.
        part("box").classList.toggle("dropping", name === "dragover");
        if (name === "drop") void this.#attachments.add([...data.files]);
      });
    }
  }

  /** The chat that is written to; its draft is in the field. @param {string | null} sessionId */
  open(sessionId) {
    const chat = sessionId ?? "";
    if (chat === this.#chat && this.#field.value) return;
    if (chat !== this.#chat) this.#attachments.put([]);
    this.#chat = chat;
    this.#sent = "";
    this.#fill(kept("session", `draft.${chat}`) ?? "");
  }

  /** The chat that is written to has got a name. @param {string} sessionId */
  name(sessionId) {
    keep("session", `draft.${this.#chat}`, null);
    this.#chat = sessionId;
    this.#keep();
  }

  /** The server has what was sent. */
  taken() {
    this.#sent = "";
    this.#keep();
  }

  focus() {
    this.#field.focus();
  }

  /** No answer is being written any more. */
  free() {
    if (this.#note.textContent === BUSY) this.say("");
  }

  /** A message was not taken: it is here again. @param {string} text @param {readonly Attachment[]} attachments @param {string} why */
  giveBack(text, attachments, why) {
    this.#sent = "";
    this.#attachments.put([...attachments, ...this.#attachments.take()]);
    if (text) this.#fill(this.#field.value ? `${text}\n\n${this.#field.value}` : text);
    this.say(why);
  }

  /** @param {string} text for who writes; empty: nothing */
  say(text) {
    this.#note.textContent = text;
  }

  /** @param {string} text */
  #fill(text) {
    this.#field.value = text;
    this.#changed();
  }

  #keep() {
    keep("session", `draft.${this.#chat}`, this.#field.value || this.#sent || null);
  }

  #changed() {
    const { value } = this.#field;
    this.#keep();
    this.#field.style.height = "auto";
    this.#field.style.height = `${this.#field.scrollHeight}px`;
    const isNear = value.length * 3 > limitBytes * COUNTED_FROM;
    const bytes = isNear ? encoder.encode(value.trim()).length : 0;
    const count = bytes > limitBytes * COUNTED_FROM ? `${number.format(bytes)} of ${number.format(limitBytes)} bytes` : "";
    this.say((isNear && overLimit(value.trim())) || count);
    this.#field.setAttribute("aria-invalid", String(bytes > limitBytes));
  }

  /** @param {KeyboardEvent} event */
  #typed(event) {
    if (isEnter(event) && !event.shiftKey) {
      event.preventDefault();
      this.#submit();
    } else if (event.key === "ArrowUp" && !this.#field.value) {
      event.preventDefault();
      this.hooks.onEditLast();
    }
  }

  #submit() {
    const text = this.#field.value.trim();
    if (!text && this.#attachments.isEmpty) return;
    if (this.hooks.isBusy()) return this.say(BUSY);
    if (overLimit(text)) return announce(overLimit(text));
    this.#sent = text;
    this.#fill("");
    this.hooks.onSend(text, this.#attachments.take());
  }
}
