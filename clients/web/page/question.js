/** A message of the user: a bubble that can be copied, and edited to be asked anew. */

import { copyButton, el, iconButton, part } from "./dom.js";

/**
 * @param {string} text @param {string | null} id of the message, once the server has it
 * @param {() => boolean} mayEdit @param {(question: HTMLElement, text: string) => void} onEdit
 */
export function questionView(text, id, mayEdit, onEdit) {
  const bubble = el("div", { class: "bubble" }, text);
  const question = el("article", { class: "question", "aria-label": "You", "data-text": text, "data-id": id });
  const begin = () => mayEdit() && !question.querySelector("form") && edit(question, bubble, (now) => onEdit(question, now));
  const actions = el("div", { class: "actions" }, copyButton("Copy", () => text), iconButton("edit", "Edit", begin, { class: "icon edit" }));
  question.append(actions, bubble);
  return question;
}

/** @param {HTMLElement} question @param {HTMLElement} bubble @param {(text: string) => void} onEdit */
function edit(question, bubble, onEdit) {
  const old = question.dataset.text ?? "";
  const field = el("textarea", { "aria-label": "Edit the message", rows: 1 });
  field.value = old;
  const leave = () => {
    form.remove();
    bubble.hidden = false;
    question.classList.remove("editing");
    part("message").focus();
  };
  const submit = (/** @type {Event} */ event) => {
    event.preventDefault();
    leave();
    const text = field.value.trim();
    if (text && text !== old) onEdit(text);
  };
  const form = el("form", { class: "editor", onsubmit: submit }, field, el("div", { class: "row" },
    el("button", { type: "button", class: "plain", onclick: leave }, "Cancel"), el("button", { class: "primary" }, "Ask this instead")));
  field.addEventListener("keydown", (event) => {
    if (event.key === "Escape") leave();
    else if (event.key === "Enter" && !event.shiftKey && !event.isComposing) form.requestSubmit();
    else return;
    event.preventDefault();
    event.stopPropagation();
  });
  bubble.hidden = true;
  question.classList.add("editing");
  question.prepend(form);
  field.focus();
}
