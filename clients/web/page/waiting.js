/** What a call waits for, as a form: an approval, a question to the user, or the result of another client's tool. */

import { el, isEnter, part, said } from "./dom.js";
import { mistakeIn, parse, stringify } from "./exact.js";
import { Fields } from "./fields.js";
import { OWN_TOOLS } from "./own_tools.js";

/** @import { Answer } from "../chatserver.js" */
/** @import { ToolCallPart } from "../events.js" */
/** @import { Child } from "./dom.js" */
/** @typedef {{ label: string, answer: () => Answer | null, isMain?: boolean }} Choice a button, and what it says; null: that is not valid yet */

const QUESTION = "ask_user";
const FOR_USER = "waits for you";

/**
 * The form for a call that waits; null: this page runs the call by itself.
 * @param {ToolCallPart} call @param {(answer: Answer) => Promise<void>} answer @param {() => void} onAnswered here or elsewhere
 * @returns {{ element: HTMLElement, title: string, state: string } | null} `title`: what is asked; `state`: who is waited for
 */
export function waitingForm(call, answer, onAnswered) {
  if (call.needs_approval) return approval(call, answer, onAnswered);
  if (call.tool === QUESTION) return question(call, answer, onAnswered);
  if (Object.hasOwn(OWN_TOOLS, call.tool)) return null;
  const title = `${call.tool} waits for a client that has this tool.`;
  return { element: el("div", { class: "ask" }, el("p", { class: "what" }, title)), title, state: "waits for another client" };
}

/** @param {ToolCallPart} call @param {(answer: Answer) => Promise<void>} answer @param {() => void} onAnswered */
function approval({ tool, args }, answer, onAnswered) {
  const given = stringify(args, 2);
  const field = el("textarea", { rows: Math.min(12, given.split("\n").length), spellcheck: "false", dir: "ltr", class: "code-field" });
  const reason = el("input", { type: "text", dir: "auto", autocomplete: "off", placeholder: "told to the model" });
  field.value = given;
  const approve = () => {
    if (field.value === given) return { approve: true };
    field.setCustomValidity(mistakeIn(field.value) || (/^\s*\{/.test(field.value) ? "" : "The arguments are no JSON object."));
    return field.reportValidity() ? { approve: true, args: parse(field.value) } : null;
  };
  const refuse = () => ({ approve: false, ...(reason.value.trim() && { reason: reason.value.trim() }) });
  const title = `${tool} needs your approval.`;
  const element = form(title, [labelled("Arguments", field), labelled("Reason, if you refuse", reason)],
    [{ label: "Approve", answer: approve, isMain: true }, { label: "Refuse", answer: refuse }], answer, onAnswered);
  field.addEventListener("input", () => field.setCustomValidity(""));
  reason.addEventListener("keydown", (event) => {
    if (!isEnter(event)) return;
    event.preventDefault(); // Or else it would approve.
    /** @type {HTMLButtonElement} */ (element.querySelector("button:last-of-type")).click();
  });
  return { element, title, state: FOR_USER };
}

/** @param {ToolCallPart} call @param {(answer: Answer) => Promise<void>} answer @param {() => void} onAnswered */
function question({ args: { message, schema } }, answer, onAnswered) {
  const fields = new Fields(schema);
  const title = typeof message === "string" && message ? message : "A tool has a question.";
  const accept = () => {
    const content = fields.content();
    return content && { result: { action: "accept", content } };
  };
  const choices = [{ label: "Send", answer: accept, isMain: true }, ...["decline", "cancel"].map((action) =>
    ({ label: action === "decline" ? "Decline" : "Cancel", answer: () => ({ result: { action } }) }))];
  return { element: form(title, fields.elements, choices, answer, onAnswered), title, state: FOR_USER };
}

/**
 * @param {string} title @param {readonly Child[]} fields @param {readonly Choice[]} choices
 * @param {(answer: Answer) => Promise<void>} send @param {() => void} onAnswered
 */
function form(title, fields, choices, send, onAnswered) {
  const note = el("p", { class: "note", role: "status" });
  const inputs = el("fieldset", {}, ...fields);
  const choose = async (/** @type {Choice} */ choice) => {
    const chosen = choice.answer();
    if (!chosen) return;
    const focused = /** @type {HTMLElement | null} */ (document.activeElement);
    inputs.disabled = true;
    for (const button of buttons) button.disabled = true;
    note.textContent = "Sending…";
    try {
      await send(chosen);
      if (element.isConnected) onAnswered();
    } catch (error) {
      const { code } = /** @type {any} */ (error);
      if (code === "already_answered") return element.isConnected && onAnswered();
      inputs.disabled = false;
      for (const button of buttons) button.disabled = false;
      note.textContent = `${code === "bad_request" ? "It was refused" : "It could not be sent"}: ${said(error)}.`;
      focused?.focus();
    }
  };
  const buttons = choices.map((choice) => el("button", choice.isMain
    ? { class: "primary" } : { type: "button", class: "plain", onclick: () => void choose(choice) }, choice.label));
  const element = el("form", { class: "ask", "aria-label": title, onsubmit: (/** @type {Event} */ event) => {
    event.preventDefault();
    void choose(choices[0]);
  }, onkeydown: (/** @type {KeyboardEvent} */ event) => {
    if (event.key !== "Escape") return;
    event.stopPropagation(); // It would stop the answer.
    part("message").focus();
  } }, el("p", { class: "what", dir: "auto" }, title), inputs, note, el("div", { class: "row" }, ...buttons));
  return element;
}

/** @param {string} label @param {HTMLElement} field */
const labelled = (label, field) => el("label", {}, el("span", {}, label), field);
