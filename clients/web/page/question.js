/** A message of the user: a bubble that can be copied, and edited to be asked anew. */

import { gallery } from "./attachments.js";
import { overLimit } from "./composer.js";
import { copyButton, el, iconButton, isEnter, part } from "./dom.js";

/** @import { Attachment } from "./attachments.js" */

export class QuestionView {
  element = el("article", { class: "question" }, el("h2", { class: "unseen" }, "You"));
  /** Where its versions are shown. */ corner = el("div", { class: "corner" });
  #bubble;

  /**
   * @param {string} text @param {readonly Attachment[]} attachments @param {string | null} id of the message, once the server has it
   * @param {{ mayEdit: () => boolean, onEdit: (question: QuestionView, text: string) => void }} hooks
   */
  constructor(text, attachments, id, hooks) {
    this.text = text;
    this.attachments = attachments;
    this.id = id;
    this.hooks = hooks;
    this.#bubble = el("div", { class: "bubble", dir: "auto", hidden: !text }, text);
    if (attachments.length) this.element.append(el("ul", { class: "attachments" }, ...gallery(attachments)));
    const actions = el("div", { class: "actions" }, copyButton("Copy", () => text), iconButton("edit", "Edit", () => this.edit(), { class: "icon edit" }));
    this.element.append(this.#bubble, actions, this.corner);
  }

  edit() {
    if (!this.hooks.mayEdit() || this.element.querySelector("form")) return;
    const field = el("textarea", { "aria-label": "Edit the message", rows: 1, dir: "auto" });
    const note = el("p", { class: "note", role: "status" });
    field.value = this.text;
    const leave = () => {
      form.remove();
      this.#bubble.hidden = !this.text;
      this.element.classList.remove("editing");
      part("message").focus();
    };
    const submit = (/** @type {Event} */ event) => {
      event.preventDefault();
      const text = field.value.trim();
      if ((note.textContent = overLimit(text))) return;
      leave();
      if (text && text !== this.text) this.hooks.onEdit(this, text);
    };
    const form = el("form", { class: "editor", onsubmit: submit }, field, note, el("div", { class: "row" },
      el("button", { type: "button", class: "plain", onclick: leave }, "Cancel"), el("button", { class: "primary" }, "Ask this instead")));
    field.addEventListener("input", () => (note.textContent = overLimit(field.value.trim())));
    field.addEventListener("keydown", (event) => {
      if (event.key === "Escape") leave();
      else if (isEnter(event) && !event.shiftKey) form.requestSubmit();
      else return;
      event.preventDefault();
      event.stopPropagation();
    });
    this.#bubble.hidden = true;
    this.element.classList.add("editing");
    this.element.prepend(form);
    field.focus();
  }
}
