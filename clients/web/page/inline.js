/**
 * The inside of a line of Markdown: emphasis, code, links, as a tree of plain objects. No DOM, no HTML.
 *
 * The delimiter algorithm is CommonMark's. `isOpen` means that more text may follow: what is begun is shown as if it
 * were ended, so that half a link or one asterisk does not flicker.
 */

import { bareAddress, decoded, ENTITY, safeUrl, unescape, URL_CHARS_LIMIT } from "./address.js";
import { formulaEnd } from "./formula.js";
import { anchor, append, textOf } from "./tree.js";

/** @import { Tree } from "./tree.js" */
/**
 * @typedef {object} Item a place in the list that becomes the tree
 * @property {Tree} tree
 * @property {number} depth
 * @property {Item | null} prev
 * @property {Item | null} next
 * @property {string} [mark] `*`, `_`, `~`, `[` or `!`: a delimiter that may find its partner
 * @property {number} [count]
 * @property {boolean} [opens]
 * @property {boolean} [closes]
 */

const DEPTH_LIMIT = 16; // Nesting beyond it is shown as it was written: a deep tree overflows a browser's stack.
const SPECIAL = /[\\`*_~[\]!<&\n$]|https?:\/\/|www\.(?=[a-z0-9])/gi;
const PUNCTUATION = /[\p{P}\p{S}]/u;

/** @param {string} text @param {boolean} [isOpen] @returns {Tree[]} */
export function parseInline(text, isOpen = false) {
  return new Inline(text, isOpen).parse();
}

class Inline {
  /** @type {Item} */ #head = { tree: "", depth: 0, prev: null, next: null };
  #tail = this.#head;
  /** @type {Item[]} */ #brackets = [];
  /** Lengths of backtick runs, and ends of formulas, that do not come further on. @type {Set<number | string>} */ #lonely = new Set();
  #at = 0;

  /** @param {string} text @param {boolean} isOpen */
  constructor(text, isOpen) {
    this.text = text;
    this.isOpen = isOpen;
  }

  parse() {
    const { text } = this;
    const special = new RegExp(SPECIAL);
    while (this.#at < text.length) {
      special.lastIndex = this.#at;
      const found = special.exec(text);
      const end = found?.index ?? text.length;
      if (end > this.#at) this.#push(text.slice(this.#at, end));
      this.#at = end;
      if (found) this.#step(found[0]);
    }
    this.#emphasise(this.#head);
    if (this.isOpen) this.#close();
    return collect(this.#head.next);
  }

  /** Take what begins here. @param {string} what */
  #step(what) {
    switch (what[0]) {
      case "\\": return this.#formula() || this.#escape();
      case "$": return this.#formula() || this.#literal(1);
      case "`": return this.#code();
      case "*": case "_": case "~": return this.#delimiters(what);
      case "[": return this.#bracket(1);
      case "!": return this.text[this.#at + 1] === "[" ? this.#bracket(2) : this.#literal(1);
      case "]": return this.#link();
      case "<": return this.#angle();
      case "&": return this.#entity();
      case "\n": return this.#newline();
      default: return this.#bareUrl();
    }
  }

  /** @param {Tree} tree @param {number} [depth] @returns {Item} */
  #push(tree, depth = 0) {
    const item = { tree, depth, prev: this.#tail, next: null };
    this.#tail.next = item;
    return (this.#tail = item);
  }

  /** @param {number} length */
  #literal(length) {
    this.#push(this.text.slice(this.#at, (this.#at += length)));
  }

  /** @returns {boolean} whether one begins here */
  #formula() {
    const end = formulaEnd(this.text, this.#at, this.isOpen, this.#lonely);
    if (end > 0) this.#push({ tag: "code", attrs: { class: "math" }, children: [this.text.slice(this.#at, (this.#at = end))] }, 1);
    return end > 0;
  }

  #escape() {
    const next = this.text[this.#at + 1];
    if (next === "\n") this.#push({ tag: "br", children: [] });
    else if (next && /[!-/:-@[-`{-~]/.test(next)) this.#push(next);
    else return this.#literal(1);
    this.#at += 2;
  }

  #newline() {
    const last = this.#tail;
    this.#at++;
    if (typeof last.tree === "string" && !last.mark) {
      const isHard = last.tree.endsWith("  ");
      last.tree = last.tree.trimEnd();
      if (isHard) return this.#push({ tag: "br", children: [] });
    }
    this.#push("\n");
  }

  #code() {
    const { text } = this;
    const length = runLength(text, this.#at);
    const begin = this.#at + length;
    let end = this.#lonely.has(length) ? -1 : text.indexOf("`", begin);
    while (end >= 0) {
      const other = runLength(text, end);
      if (other === length) break;
      end = text.indexOf("`", end + other);
    }
    if (end < 0) this.#lonely.add(length);
    if (end < 0 && !(this.isOpen && length < 3 && begin < text.length)) return this.#literal(length);
    let code = text.slice(begin, end < 0 ? undefined : end).replaceAll("\n", " ");
    if (/^ .*[^ ].* $/.test(code)) code = code.slice(1, -1);
    this.#push({ tag: "code", children: code ? [code] : [] }, 1);
    this.#at = end < 0 ? text.length : end + length;
  }

  /** @param {string} mark */
  #delimiters(mark) {
    const { text } = this;
    const count = runLength(text, this.#at);
    const before = this.#at ? text[this.#at - 1] : " ";
    const after = text[this.#at + count] ?? " ";
    const left = !/\s/.test(after) && (!PUNCTUATION.test(after) || /\s/.test(before) || PUNCTUATION.test(before));
    const right = !/\s/.test(before) && (!PUNCTUATION.test(before) || /\s/.test(after) || PUNCTUATION.test(after));
    const isWord = mark === "_";
    this.#literal(count);
    if (mark === "~" && count !== 2) return;
    Object.assign(this.#tail, {
      mark, count,
      opens: left && (!isWord || !right || PUNCTUATION.test(before)),
      closes: right && (!isWord || !left || PUNCTUATION.test(after)),
    });
  }

  /** @param {number} length */
  #bracket(length) {
    this.#literal(length);
    this.#tail.mark = length === 1 ? "[" : "!";
    this.#brackets.push(this.#tail);
  }

  #link() {
    const opener = this.#brackets.pop();
    if (!opener) return this.#literal(1);
    const isDead = !opener.mark;
    const rest = this.text.slice(this.#at + 1, this.#at + 2 + 2 * URL_CHARS_LIMIT);
    const found = /^\(\s*(?:<([^<>\n]*)>|((?:[^\s()\\]|\\.|\((?:[^\s()\\]|\\.)*\))*))(?:\s+(?:"[^"]*"|'[^']*'|\([^()]*\)))?\s*\)/.exec(rest);
    const isHalf = !found && this.isOpen && /^\([^\s)]*$/.test(rest) && this.#at + 1 + rest.length === this.text.length;
    const isImage = opener.mark === "!";
    opener.mark = undefined;
    if (isDead || !(found || isHalf)) return this.#literal(1);
    this.#emphasise(opener);
    const label = collect(opener.next);
    const depth = depthOf(opener.next) + 1;
    const address = found ? unescape(found[1] ?? found[2] ?? "") : "";
    this.#tail = opener;
    opener.next = null;
    opener.tree = "";
    this.#at += 1 + (found ? found[0].length : rest.length);
    const href = depth <= DEPTH_LIMIT ? safeUrl(address) : null;
    const children = isImage ? [label.map(textOf).join("") || address] : label;
    if (href) this.#push(anchor(href, children, isImage), depth);
    else for (const child of children) this.#push(child, depth - 1);
    if (!isImage) for (const other of this.#brackets) if (other.mark === "[") other.mark = undefined; // No links in links.
  }

  #angle() {
    const rest = this.text.slice(this.#at, this.#at + URL_CHARS_LIMIT);
    const link = /^<((?:https?:\/\/|mailto:)[^\s<>]*|[\w.+-]{1,64}@[\w-]+(?:\.[\w-]+)+)>/i.exec(rest);
    const href = link && safeUrl(/^[a-z]+:/i.test(link[1]) ? link[1] : `mailto:${link[1]}`);
    const br = /^<br ?\/?>/i.exec(rest);
    if (link && href) this.#push(anchor(href, [link[1]]), 1);
    else if (br) this.#push({ tag: "br", children: [] });
    else return this.#literal(1);
    this.#at += (link && href ? link : /** @type {RegExpExecArray} */ (br))[0].length;
  }

  #entity() {
    ENTITY.lastIndex = this.#at;
    const found = ENTITY.exec(this.text);
    if (!found) return this.#literal(1);
    this.#push(decoded(found));
    this.#at += found[0].length;
  }

  #bareUrl() {
    const address = bareAddress(this.text.slice(this.#at, this.#at + URL_CHARS_LIMIT));
    if (!address || /[\p{L}\p{N}]/u.test(this.text[this.#at - 1] ?? " ") || this.#brackets.some((each) => each.mark)) return this.#literal(1);
    const href = safeUrl(/^www/i.test(address) ? `https://${address}` : address);
    if (!href) return this.#literal(1);
    this.#push(anchor(href, [address]), 1);
    this.#at += address.length;
  }

  /** Pair the delimiters behind an item. @param {Item} bottom */
  #emphasise(bottom) {
    /** Where looking for an opener is in vain. @type {Map<string, Item>} */ const floors = new Map();
    let closer = bottom.next;
    while (closer) {
      const { mark, count = 0 } = closer;
      if (!mark || !closer.closes || !count) {
        closer = closer.next;
        continue;
      }
      const key = `${mark}${count % 3}${closer.opens}`;
      const floor = floors.get(key) ?? bottom;
      let opener = closer.prev;
      while (opener && opener !== floor && opener !== bottom && !pairs(opener, closer)) opener = opener.prev;
      if (!opener || opener === floor || opener === bottom) {
        floors.set(key, /** @type {Item} */ (closer.prev));
        closer = closer.next;
        continue;
      }
      closer = this.#wrap(opener, closer);
    }
    for (let item = bottom.next; item; item = item.next) if (item.mark !== "[" && item.mark !== "!") item.closes = false;
  }

  /** What lies between two delimiters becomes one item. @param {Item} opener @param {Item} closer @returns {Item | null} */
  #wrap(opener, closer) {
    const used = Math.min(opener.count ?? 0, closer.count ?? 0, 2);
    const depth = depthOf(opener.next, closer) + 1;
    const children = collect(opener.next, closer);
    if (depth <= DEPTH_LIMIT) {
      const tag = opener.mark === "~" ? "del" : used === 2 ? "strong" : "em";
      const item = { tree: { tag, children }, depth, prev: opener, next: closer };
      opener.next = closer.prev = item;
      for (const each of [opener, closer]) {
        each.count = (each.count ?? 0) - used;
        each.tree = String(each.tree).slice(used);
      }
      return closer.count ? closer : closer.next;
    }
    opener.opens = false;
    return closer;
  }

  /** The text ends in the middle: end what was begun. */
  #close() {
    let inner = this.#tail;
    while (inner.next) inner = inner.next;
    for (let item = /** @type {Item | null} */ (inner); item && item !== this.#head; item = item.prev) {
      if (!item.mark || !item.opens || !item.count || item.count > 3 || !item.next) continue;
      const depth = depthOf(item.next) + 1;
      if (depth > DEPTH_LIMIT) return;
      const children = collect(item.next);
      const tag = item.mark === "~" ? "del" : item.count === 1 ? "em" : "strong";
      item.tree = "";
      item.next = { tree: { tag, children }, depth, prev: item, next: null };
    }
  }
}

/** @param {Item} opener @param {Item} closer */
function pairs(opener, closer) {
  const { count = 0 } = opener;
  const { count: other = 0 } = closer;
  if (opener.mark !== closer.mark || !opener.opens || !count) return false;
  return !((opener.closes || closer.opens) && (count + other) % 3 === 0 && (count % 3 || other % 3));
}

/** The trees from an item up to another, texts joined. @param {Item | null} item @param {Item | null} [end] @returns {Tree[]} */
function collect(item, end = null) {
  /** @type {Tree[]} */ const trees = [];
  for (; item && item !== end; item = item.next) append(trees, item.tree);
  return trees;
}

/** @param {Item | null} item @param {Item | null} [end] */
function depthOf(item, end = null) {
  let depth = 0;
  for (; item && item !== end; item = item.next) depth = Math.max(depth, item.depth);
  return depth;
}

/** @param {string} text @param {number} at how often its character is repeated from here on */
function runLength(text, at) {
  let end = at + 1;
  while (text[end] === text[at]) end++;
  return end - at;
}
