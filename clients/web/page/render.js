/**
 * Trees of Markdown into the page: nodes are made and patched, HTML is never parsed. What has not changed is the same
 * object as last time and is not looked at; text that grew is appended, so a selection in it survives.
 *
 * The parser makes nothing else than what is let through here; this is the second lock on the same door.
 */

import { safeUrl } from "./address.js";

/** @import { Node as TreeNode, Tree } from "./tree.js" */

const TAGS = new Set(
  "a blockquote br button code del div em h1 h2 h3 h4 h5 h6 hr li ol p pre span strong table tbody td th thead tr ul".split(" "),
);
/** Each is written from its own side: a Hebrew line in an English answer is one too. */
const BLOCKS = new Set("h1 h2 h3 h4 h5 h6 li p td th".split(" "));
const ATTRIBUTES = new Set(["class", "start", "type", "role", "aria-label", "tabindex"]);

/**
 * Make the children of an element those of a tree. They were made from `before` the last time.
 * @param {Element} parent @param {readonly Tree[]} before @param {readonly Tree[]} now
 */
export function patch(parent, before, now) {
  for (let i = 0; i < now.length; i++) {
    const [was, is] = [before[i], now[i]];
    if (was === is) continue;
    const child = parent.childNodes[i];
    if (was === undefined) parent.append(make(is));
    else if (typeof was === "string" && typeof is === "string") write(/** @type {Text} */ (child), was, is);
    else if (typeof was !== "string" && typeof is !== "string" && isAlike(was, is)) {
      patch(/** @type {Element} */ (child), was.children, is.children);
    } else child.replaceWith(make(is));
  }
  for (let i = before.length; i > now.length; i--) parent.lastChild?.remove();
}

/** @param {Tree} tree @returns {Node} */
function make(tree) {
  if (typeof tree === "string") return document.createTextNode(tree);
  if (!TAGS.has(tree.tag)) return document.createTextNode("");
  const element = document.createElement(tree.tag);
  for (const [name, value] of Object.entries(tree.attrs ?? {})) {
    if (name === "href") link(/** @type {HTMLAnchorElement} */ (element), value);
    else if (ATTRIBUTES.has(name)) element.setAttribute(name, value);
  }
  if (BLOCKS.has(tree.tag)) element.dir = "auto";
  patch(element, [], tree.children);
  return element;
}

/** @param {HTMLAnchorElement} element @param {string} address */
function link(element, address) {
  const href = safeUrl(address);
  if (!href) return;
  element.href = href;
  element.title = href;
  element.target = "_blank";
  element.rel = "noopener noreferrer nofollow";
  element.referrerPolicy = "no-referrer";
}

/** @param {Text} text @param {string} was @param {string} is */
function write(text, was, is) {
  if (is.startsWith(was)) text.appendData(is.slice(was.length));
  else text.data = is;
}

/** Whether one element can become the other. @param {TreeNode} was @param {TreeNode} is */
function isAlike(was, is) {
  if (was.tag !== is.tag) return false;
  const [a, b] = [was.attrs ?? {}, is.attrs ?? {}];
  return Object.keys(a).length === Object.keys(b).length && Object.entries(a).every(([name, value]) => b[name] === value);
}
