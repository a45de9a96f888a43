/** What Markdown becomes before it becomes elements: plain objects and strings. */

/** @typedef {{ tag: string, attrs?: Record<string, string>, children: Tree[] }} Node */
/** @typedef {Node | string} Tree */

/** @param {Tree[]} trees @param {Tree} tree */
export function append(trees, tree) {
  const last = trees.length - 1;
  if (typeof tree !== "string") trees.push(tree);
  else if (tree && typeof trees[last] === "string") trees[last] += tree;
  else if (tree) trees.push(tree);
}

/** @param {Tree} tree @returns {string} */
export function textOf(tree) {
  return typeof tree === "string" ? tree : tree.tag === "br" ? "\n" : tree.children.map(textOf).join("");
}

/** A link; an image is one too: to load it would tell somebody what was said. @param {string} href @param {Tree[]} children */
export function anchor(href, children, isImage = false) {
  /** @type {Record<string, string>} */ const attrs = isImage ? { href, class: "image" } : { href };
  return { tag: "a", attrs, children: children.filter(Boolean) };
}
