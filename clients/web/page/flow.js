/** Text that grows in one element, as Markdown. */

import { Markdown } from "./markdown.js";
import { patch } from "./render.js";

/** Where connections were cut, in all texts. Marked without an element: the text does not change, nor a selection in it. */
const cuts = globalThis.CSS?.highlights && new Highlight();
if (cuts) CSS.highlights.set("cut", cuts);
const LAST_WORD = /\S{0,12}\s*$/;

/** All texts are gone. */
export function forgetCuts() {
  cuts?.clear();
}

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

  /** Here a connection was cut. */
  mark() {
    let end = /** @type {Node | null} */ (this.element);
    while (end?.lastChild) end = end.lastChild;
    if (!(end instanceof Text)) return;
    const range = new Range();
    const tail = end.data.slice(-24);
    range.setStart(end, end.length - tail.length + tail.search(LAST_WORD));
    range.setEnd(end, end.length);
    cuts?.add(range);
  }

  /** The blocks that are complete and were not announced yet. @param {boolean} isOpen */
  unannounced(isOpen) {
    const to = isOpen ? this.#markdown.closed : this.#drawn.length;
    const said = [...this.element.children].slice(this.#announced, to).map((block) => block.textContent ?? "");
    this.#announced = to;
    return said.join(" ");
  }
}
