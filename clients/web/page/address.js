/** Addresses and entities: what a link may lead to, and what `&amp;` stands for. */

export const URL_CHARS_LIMIT = 2048;
const ENTITIES = new Map(Object.entries({
  amp: "&", lt: "<", gt: ">", quot: '"', apos: "'", nbsp: " ", copy: "©", reg: "®", trade: "™", hellip: "…",
  mdash: "—", ndash: "–", lsquo: "‘", rsquo: "’", ldquo: "“", rdquo: "”", laquo: "«", raquo: "»", bull: "•",
  middot: "·", times: "×", divide: "÷", deg: "°", plusmn: "±", euro: "€", pound: "£", yen: "¥", sect: "§",
  larr: "←", rarr: "→", uarr: "↑", darr: "↓", harr: "↔", le: "≤", ge: "≥", ne: "≠", infin: "∞",
}));
export const ENTITY = /&(?:#x([0-9a-f]{1,6})|#([0-9]{1,7})|([a-z]{2,8}));/iy;

/**
 * The address of a link, if it is one that may be clicked: http, https or mailto, and nobody's name in it.
 * @param {string} text @returns {string | null}
 */
export function safeUrl(text) {
  if (text.length > URL_CHARS_LIMIT || !/^(?:https?:\/\/|mailto:)[^\s\\\p{C}]+$/iu.test(text)) return null;
  try {
    const url = new URL(text);
    const isWeb = url.protocol === "https:" || url.protocol === "http:";
    if (!isWeb && url.protocol !== "mailto:") return null;
    return url.username || url.password ? null : url.href;
  } catch {
    return null;
  }
}

/** The address that a text begins with, without what belongs to the sentence around it; empty: none. @param {string} text */
export function bareAddress(text) {
  let address = /^(?:https?:\/\/|www\.)[^\s<>`]+/i.exec(text)?.[0].replace(/[*_~]+(?=[\s.,:;!?)]*$)/, "") ?? "";
  for (let trimmed = ""; trimmed !== address; ) {
    trimmed = address;
    address = address.replace(/[.,:;!?'"*_~]+$|&[a-z]+;$/i, "");
    const isExtra = address.endsWith(")") && address.split(")").length > address.split("(").length;
    if (isExtra || address.endsWith("]")) address = address.slice(0, -1);
  }
  return address;
}

/** @param {string} text */
export function unescape(text) {
  return text.replace(/\\([!-/:-@[-`{-~])/g, "$1").replace(new RegExp(ENTITY, "gi"), (...found) => decoded(found));
}

/** @param {ArrayLike<string>} found a match of ENTITY */
export function decoded(found) {
  if (found[3]) return ENTITIES.get(found[3]) ?? found[0];
  const code = found[1] ? parseInt(found[1], 16) : parseInt(found[2], 10);
  const isText = code >= 32 && code <= 0x10ffff && !(code >= 0xd800 && code <= 0xdfff);
  return isText ? String.fromCodePoint(code) : "\ufffd";
}
