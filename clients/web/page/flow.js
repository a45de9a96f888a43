/** Text that grows in one element, as Markdown. */

import { Markdown } from "./markdown.js";
import { patch } from "./render.js";

export class Flow {
  /** @type {import("./tree.js").Node[]} */ #drawn = [];
  #markdown = new Markdown();
  #announced = 0;
  isDirty = false;
  text = "";

  /** @param {HTMLElement} element */
  constructor(element) {
    this.element = element;
  }

  /** @param {string} text */
  append(text) {
    this.text += text;
    this.#markdown.append(text);
    this.isDirty = true;
  }

  /** @param {boolean} isOpen */
  draw(isOpen) {
    const now = this.#markdown.blocks(isOpen);
    patch(this.element, this.#drawn, now);
    this.#drawn = now;
    this.isDirty = false;
  }

  /** The blocks that are complete and were not announced yet. @param {boolean} isOpen */
  unannounced(isOpen) {
    const to = isOpen ? this.#markdown.closed : this.#drawn.length;
    const said = [...this.element.children].slice(this.#announced, to).map((block) => block.textContent ?? "");
    this.#announced = to;
    return said.join(" ");
  }
}
