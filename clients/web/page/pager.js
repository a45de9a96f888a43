/** Between the versions of a message: ‹ 2/3 ›. */

import { announce, el } from "./dom.js";

/**
 * Show in a place which version of a message is seen, if there are several.
 * @param {HTMLElement} place @param {string} what such as "answer" @param {string[]} versions ids @param {string} id of the one that is seen
 * @param {(id: string) => HTMLElement | undefined} onTurn shows another one, and gives the element that shows it
 */
export function showPager(place, what, versions, id, onTurn) {
  const old = place.querySelector(":scope > .pager");
  const at = versions.indexOf(id);
  const said = `${at + 1} of ${versions.length}`;
  const label = `Version ${said} of this ${what}`;
  if (old?.getAttribute("aria-label") === label) return;
  old?.remove();
  if (versions.length < 2) return;
  /** @param {-1 | 1} by @param {string} name @param {string} sign */
  const arrow = (by, name, sign) => {
    const onclick = () => {
      const shown = onTurn(versions[at + by]);
      announce(`Version ${at + by + 1} of ${versions.length}`);
      const arrows = [...(shown?.querySelectorAll(".pager button") ?? [])].sort((a) => (a.getAttribute("data-by") === String(by) ? -1 : 1));
      /** @type {HTMLElement | undefined} */ (arrows.find((each) => !(/** @type {HTMLButtonElement} */ (each).disabled)))?.focus();
    };
    return el("button", { type: "button", "data-by": by, "aria-label": `${name} version, now ${said}`, title: `${name} version`, disabled: !versions[at + by], onclick }, sign);
  };
  place.prepend(el("div", { class: "pager", role: "group", "aria-label": label },
    arrow(-1, "Previous", "‹"), el("span", { "aria-hidden": "true" }, `${at + 1}/${versions.length}`), arrow(1, "Next", "›")));
}
