/** The view of a conversation stays at its end while that grows or the view shrinks, unless somebody has scrolled away. */

import { part } from "./dom.js";

const NEAR_END_PX = 80;

export class End {
  #follows = true;
  #scroller = part("scroller");
  #button = part("to-end");

  constructor() {
    this.#scroller.addEventListener("scroll", () => this.#scrolled(), { passive: true });
    this.#button.addEventListener("click", () => this.show());
    new ResizeObserver(() => this.grew(false)).observe(this.#scroller);
  }

  show() {
    this.#follows = true;
    this.#button.hidden = true;
    this.#scroller.scrollTop = this.#scroller.scrollHeight;
  }

  /** There is more to see. @param {boolean} isNew text that somebody waits for */
  grew(isNew) {
    if (this.#follows) this.#scroller.scrollTop = this.#scroller.scrollHeight;
    else if (isNew) this.#button.hidden = false;
  }

  /** Change what is above, and leave in view what is. @param {() => void} change */
  keep(change) {
    const below = this.#scroller.scrollHeight - this.#scroller.scrollTop;
    change();
    this.#scroller.scrollTop = this.#scroller.scrollHeight - below;
  }

  #scrolled() {
    const { scrollHeight, scrollTop, clientHeight } = this.#scroller;
    this.#follows = scrollHeight - scrollTop - clientHeight < NEAR_END_PX;
    if (this.#follows) this.#button.hidden = true;
  }
}
