/** Elements in one expression each, and the few that every part of the page needs. No HTML is ever parsed. */

const SVG = "http://www.w3.org/2000/svg";

/** @typedef {Node | string | null | undefined | false} Child */

/**
 * An element. Names that begin with `on` are listeners, others are attributes; false and null leave one out.
 * @template {keyof HTMLElementTagNameMap} T
 * @param {T} tag @param {Record<string, any>} [attributes] @param {Child[]} children
 * @returns {HTMLElementTagNameMap[T]}
 */
export function el(tag, attributes = {}, ...children) {
  return dressed(document.createElement(tag), attributes, children);
}

/**
 * @template {keyof SVGElementTagNameMap} T
 * @param {T} tag @param {Record<string, any>} [attributes] @param {Child[]} children
 * @returns {SVGElementTagNameMap[T]}
 */
export function svg(tag, attributes = {}, ...children) {
  return dressed(document.createElementNS(SVG, tag), attributes, children);
}

/** @template {Element} E @param {E} element @param {Record<string, any>} attributes @param {Child[]} children @returns {E} */
function dressed(element, attributes, children) {
  for (const [name, value] of Object.entries(attributes)) {
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else if (value !== false && value != null) element.setAttribute(name, value === true ? "" : String(value));
  }
  element.append(...children.filter((child) => child !== null && child !== undefined && child !== false));
  return element;
}

/** A part of index.html. @template {HTMLElement} [E=HTMLElement] @param {string} id @returns {E} */
export function part(id) {
  const found = document.getElementById(id);
  if (!found) throw new Error(`the page has no #${id}`);
  return /** @type {E} */ (found);
}

/** @param {string} name */
export function icon(name) {
  return svg("svg", { "aria-hidden": "true" }, svg("use", { href: `#i-${name}` }));
}

/** A button that is a picture. @param {string} name @param {string} label @param {(event: MouseEvent) => void} onclick */
export function iconButton(name, label, onclick, attributes = {}) {
  return el("button", { type: "button", class: "icon", title: label, "aria-label": label, onclick, ...attributes }, icon(name));
}

/** A button that copies a text, and says that it did. @param {string} label @param {() => string} text */
export function copyButton(label, text) {
  const button = iconButton("copy", label, () => void copy(text()).then((isDone) => {
    button.replaceChildren(icon(isDone ? "check" : "cross"));
    announce(isDone ? "Copied" : "Copying is not allowed here");
    setTimeout(() => button.replaceChildren(icon("copy")), 1500);
  }));
  return button;
}

/** @param {string} text @returns {Promise<boolean>} whether it could be copied */
export async function copy(text) {
  try {
    await navigator.clipboard.writeText(text);
    return true;
  } catch {
    return copyBySelection(text); // No clipboard on a page without TLS.
  }
}

/** @param {string} text */
function copyBySelection(text) {
  const area = el("textarea", { class: "unseen", readonly: true });
  area.value = text;
  document.body.append(area);
  area.select();
  const isDone = document.execCommand("copy");
  area.remove();
  return isDone;
}

/** Whether a key is the Enter that ends a text, and not the one that ends a word of an input method. @param {KeyboardEvent} event */
export function isEnter({ key, isComposing, keyCode }) {
  return key === "Enter" && !isComposing && keyCode !== 229; // Safari ends the composition first: only the code is left.
}

/** Say something to those who listen to the page, after what they are hearing. @param {string} text */
export function announce(text) {
  part("announcer").append(el("span", {}, `${text} `));
  while (part("announcer").childNodes.length > 20) part("announcer").firstChild?.remove();
}

/** @param {number} ms */
export function duration(ms) {
  if (ms < 1) return "<1 ms";
  if (ms < 1000) return `${Math.round(ms)} ms`;
  return ms < 60_000 ? `${(ms / 1000).toFixed(1)} s` : `${Math.floor(ms / 60_000)} min ${Math.round((ms % 60_000) / 1000)} s`;
}

/** @param {number} bytes */
export function size(bytes) {
  if (bytes < 1000) return `${bytes} B`;
  return bytes < 1_000_000 ? `${(bytes / 1000).toFixed(1)} kB` : `${(bytes / 1_000_000).toFixed(1)} MB`;
}

/** @param {unknown} error */
export const said = (error) => (error instanceof Error ? error.message : String(error));

/** Ask before something is lost. @param {string} question @returns {Promise<boolean>} */
export function isSure(question) {
  const dialog = /** @type {HTMLDialogElement} */ (part("confirm"));
  part("confirm-text").textContent = question;
  dialog.returnValue = "no";
  dialog.showModal();
  return new Promise((resolve) => dialog.addEventListener("close", () => resolve(dialog.returnValue === "yes"), { once: true }));
}
