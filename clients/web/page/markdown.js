/**
 * Markdown that grows: blocks as a tree of plain objects, of which only the last one is read again when text comes.
 *
 *     text ──append──▶ closed blocks + open block ──▶ trees ──▶ render.js
 *
 * What was read before is remembered by its source, so an unchanged part is the very same object and costs nothing to
 * draw. Raw HTML is text. Indented code, setext headings and link references are left out: models write them by mistake.
 */

import { cells, dedent, FENCE, HEADING, indentOf, isBlank, MARKER, QUOTE, split } from "./blocks.js";
import { highlight } from "./highlight.js";
import { parseInline } from "./inline.js";

/** @import { Block } from "./blocks.js" */
/** @import { Node, Tree } from "./tree.js" */
const TASK = /^\[([ xX])\][ \t]+/;

/** The text of one answer, as it grows. */
export class Markdown {
  #open = "";
  /** @type {Node[]} */ #closed = [];
  /** @type {Node[]} */ #tail = [];
  #memo = new Memo();

  /** @param {string} text */
  append(text) {
    this.#open += text;
  }

  /** All blocks as they stand. @param {boolean} [isOpen] more may come @returns {Node[]} */
  blocks(isOpen = true) {
    const lines = this.#open.replace(/\r\n?/g, "\n").replaceAll("\0", "\ufffd").split("\n");
    const blocks = split(lines, 0);
    // What the last, half line makes of a block is not certain: `#` may become `#hashtag`.
    const last = blocks.findLastIndex((block) => block.decided < lines.length - 1);
    const nodes = blocks.map((block, i) => build(block, lines, isOpen && i === blocks.length - 1, this.#memo, 0));
    if (last > 0) {
      // The blocks before the last certain one can change no more. Built once as closed, they are never read again.
      this.#closed.push(...nodes.slice(0, last));
      this.#open = lines.slice(blocks[last].from).join("\n");
    }
    this.#tail = nodes.slice(Math.max(last, 0));
    this.#memo.turn();
    return [...this.#closed, ...this.#tail];
  }

  /** How many blocks will change no more. */
  get closed() {
    return this.#closed.length;
  }
}

/** @param {string} text @returns {Node[]} */
export function parse(text) {
  const markdown = new Markdown();
  markdown.append(text);
  return markdown.blocks(false);
}

/** What was built in the last two rounds, by its source. */
class Memo {
  /** @type {Map<string, any>} */ #now = new Map();
  /** @type {Map<string, any>} */ #before = new Map();

  /** @template T @param {string} key @param {() => T} make @returns {T} */
  get(key, make) {
    const value = this.#now.get(key) ?? this.#before.get(key) ?? make();
    this.#now.set(key, value);
    return value;
  }

  turn() {
    this.#before = this.#now;
    this.#now = new Map();
  }
}

/**
 * @param {Block} block @param {string[]} all @param {boolean} isOpen @param {Memo} memo @param {number} depth
 * @returns {Node}
 */
function build({ type, from, to }, all, isOpen, memo, depth) {
  const lines = all.slice(from, to);
  if (type === "code") return code(lines, memo); // Remembers its lines.
  const key = `${depth} ${type} ${isOpen}\n${lines.join("\n")}`;
  return memo.get(key, () => {
    switch (type) {
      case "heading": {
        const [, marks, text = ""] = /** @type {RegExpExecArray} */ (HEADING.exec(lines[0]));
        return node(`h${marks.length}`, parseInline(text.replace(/(?:^|[ \t]+)#*[ \t]*$/, ""), isOpen));
      }
      case "rule": return node("hr", []);
      case "math": return node("pre", [lines.join("\n")], { class: "math", tabindex: "0" });
      case "quote": return node("blockquote", inner(lines.map((line) => line.replace(QUOTE, "")), isOpen, memo, depth + 1));
      case "list": return list(lines, isOpen, memo, depth);
      case "table": return table(lines, isOpen, memo);
      default: return paragraph(lines, isOpen, memo);
    }
  });
}

/** @param {string[]} lines @param {boolean} isOpen @param {Memo} memo @param {number} depth */
function inner(lines, isOpen, memo, depth) {
  const blocks = split(lines, depth);
  return blocks.map((block, i) => build(block, lines, isOpen && i === blocks.length - 1, memo, depth));
}

/** @param {string} tag @param {Tree[]} children @param {Record<string, string>} [attrs] @returns {Node} */
const node = (tag, children, attrs) => (attrs ? { tag, attrs, children } : { tag, children });

/** @param {string[]} lines @param {boolean} isOpen @param {Memo} memo */
function paragraph(lines, isOpen, memo) {
  // A table whose second line has not come yet would be shown as text first, and jump.
  const isHalfTable = isOpen && /^ *\|/.test(lines[0]) && /^[|:\- \t]*$/.test(lines.slice(1).join(""));
  if (isHalfTable && lines.length <= 2) return table([lines[0], ""], true, memo);
  const text = lines.map((line) => line.replace(/^[ \t]+/, "")).join("\n").trimEnd();
  if (isOpen && /^(?:`{1,2}|[-*+#>|]|\d+[.)]?)$/.test(text)) return node("p", []); // Half of a mark.
  return node("p", parseInline(text, isOpen));
}

/** @param {string[]} lines @param {Memo} memo */
function code(lines, memo) {
  const [, lead, fence, info] = /** @type {RegExpExecArray} */ (FENCE.exec(lines[0]));
  const last = lines.at(-1) ?? "";
  const isEnded = lines.length > 1 && last.trim().length >= fence.length && last.trim() === fence[0].repeat(last.trim().length);
  const body = lines.slice(1, isEnded ? -1 : undefined);
  const language = /^[\w+#.-]{1,20}/.exec(info)?.[0].toLowerCase() ?? "";
  let state = "";
  const rows = body.map((line, i) => {
    const before = state;
    const isLast = i === body.length - 1;
    const row = memo.get(`${language}\n${before}\n${isLast}\n${line}`, () => {
      const lit = highlight(dedent(line, lead.length), language, before);
      return { state: lit.state, tree: node("span", isLast ? lit.trees : [...lit.trees, "\n"], { class: "line" }) };
    });
    state = row.state;
    return row.tree;
  });
  const head = memo.get(`head ${language}`, () =>
    node("div", [
      node("span", [language || "text"], { class: "language" }),
      node("button", ["Copy"], { type: "button", class: "copy-code" }),
    ], { class: "code-head" }));
  return node("div", [head, node("pre", [node("code", rows)], { tabindex: "0" })], { class: "code" });
}

/** @param {string[]} lines @param {boolean} isOpen @param {Memo} memo @param {number} depth */
function list(lines, isOpen, memo, depth) {
  const [, lead, mark, number] = /** @type {RegExpExecArray} */ (MARKER.exec(lines[0]));
  /** @type {string[][]} */ const items = [];
  let width = 0;
  for (const line of lines) {
    const found = indentOf(line) < lead.length + 2 ? MARKER.exec(line) : null;
    if (found) {
      const [, indent, own, , , space = " ", text = ""] = found;
      width = indent.length + own.length + Math.min(space.length, 4);
      items.push([text]);
    } else items.at(-1)?.push(dedent(line, Math.min(width, indentOf(line))));
  }
  for (const item of items) while (item.length > 1 && isBlank(/** @type {string} */ (item.at(-1)))) item.pop();
  const joined = lines.join("\n").trimEnd();
  const isLoose = /\n[ \t]*\n/.test(joined) && isSpread(lines, lead.length);
  const children = items.map((item, i) => {
    const isLast = isOpen && i === items.length - 1;
    const key = `item ${depth} ${isLast} ${isLoose}\n${item.join("\n")}`;
    return memo.get(key, () => listItem(item, isLast, isLoose, memo, depth));
  });
  if (number === undefined) return node("ul", children);
  return node("ol", children, Number(number) === 1 ? undefined : { start: String(Number(number)) });
}

/** Whether a blank line stands before one of the list's own items or paragraphs. @param {string[]} lines @param {number} lead */
function isSpread(lines, lead) {
  return lines.some((line, i) => i > 0 && isBlank(lines[i - 1]) && !isBlank(line) && indentOf(line) < lead + 4 && !FENCE.test(line));
}

/** @param {string[]} item @param {boolean} isOpen @param {boolean} isLoose @param {Memo} memo @param {number} depth */
function listItem(item, isOpen, isLoose, memo, depth) {
  const task = TASK.exec(item[0]);
  const lines = task ? [item[0].slice(task[0].length), ...item.slice(1)] : item;
  /** @type {Tree[]} */ const children = [];
  if (task) {
    const isDone = task[1] !== " ";
    const label = { class: isDone ? "task done" : "task", role: "img", "aria-label": isDone ? "done" : "to do" };
    children.push(node("span", [], label));
  }
  for (const block of inner(lines, isOpen, memo, depth + 1)) {
    if (block.tag !== "p" || isLoose) children.push(block);
    else for (const child of block.children) children.push(child);
  }
  return node("li", children, task ? { class: "task-item" } : undefined);
}

/** @param {string[]} lines @param {boolean} isOpen @param {Memo} memo */
function table([head, delimiter, ...rows], isOpen, memo) {
  const sides = cells(delimiter).map((cell) => (cell.endsWith(":") ? (cell[0] === ":" ? "center" : "end") : ""));
  const count = cells(head).length;
  /** @param {string} tag @param {string} line @param {boolean} isLast */
  const row = (tag, line, isLast) =>
    memo.get(`${tag} ${delimiter} ${isLast}\n${line}`, () => {
      const texts = cells(line).slice(0, count);
      const last = texts.length - 1;
      while (texts.length < count) texts.push("");
      return node("tr", texts.map((text, i) =>
        node(tag, parseInline(text, isLast && i === last), sides[i] ? { class: sides[i] } : undefined)));
    });
  const body = rows.map((line, i) => row("td", line, isOpen && i === rows.length - 1));
  const children = [node("thead", [row("th", head, isOpen && !body.length)])];
  if (body.length) children.push(node("tbody", body));
  return node("div", [node("table", children)], { class: "table", tabindex: "0" });
}
