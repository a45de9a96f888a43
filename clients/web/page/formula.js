/** Formulas in TeX's notation. They are not drawn, but stay as they were typed, backslashes and all. */

const ENDS = new Map([["\\(", "\\)"], ["\\[", "\\]"], ["$$", "$$"], ["$", "$"]]);

/**
 * Where a formula ends that begins at a place; -1: none begins there.
 * @param {string} text @param {number} at @param {boolean} isOpen more text may follow
 * @param {Set<unknown>} lonely ends that were looked for in vain, and come no more
 */
export function formulaEnd(text, at, isOpen, lonely) {
  const two = text.slice(at, at + 2);
  const begin = ENDS.has(two) ? two : two[0];
  const close = ENDS.get(begin);
  if (!close) return -1;
  const end = lonely.has(close) ? -1 : text.indexOf(close, at + begin.length);
  if (end < 0) lonely.add(close);
  if (begin === "$") return end > 0 && isFormula(text.slice(at + 1, end), text[end + 1]) ? end + 1 : -1;
  if (end < 0) return isOpen && at + begin.length < text.length ? text.length : -1;
  return end + close.length;
}

/** Whether dollars hold a formula, and not money. It has to hold what Markdown would take away, too. @param {string} inner @param {string} [next] */
function isFormula(inner, next = "") {
  return /[\\^_*{]/.test(inner) && !/^\s|\s$|\n/.test(inner) && !/\d/.test(next);
}
