/** Where the blocks of Markdown begin and end. Lines in, numbers of lines out. */

/**
 * @typedef {object} Block
 * @property {"code" | "math" | "heading" | "rule" | "quote" | "list" | "table" | "paragraph"} type
 * @property {number} from its first line
 * @property {number} to the line behind it
 * @property {number} decided the line that makes it what it is, once it is complete
 */

const DEPTH_LIMIT = 12;
export const FENCE = /^( *)(`{3,}|~{3,})[ \t]*([^`]*)$/;
const MATH = /^ {0,3}(?:\\\[(?!.*\\\])|\$\$(?!.*\$\$))/;
export const HEADING = /^ {0,3}(#{1,6})(?:[ \t]+(.*))?$/;
const RULE = /^ {0,3}([-*_])(?:[ \t]*\1){2,}[ \t]*$/;
export const QUOTE = /^ {0,3}> ?/;
export const MARKER = /^( *)([-*+]|(\d{1,9})([.)]))(?:([ \t]+)(.*)|$)/;
const DELIMITER = /^ {0,3}\|?[ \t]*:?-+:?[ \t]*(?:\|[ \t]*:?-+:?[ \t]*)*\|?[ \t]*$/;

/** Find the blocks. @param {string[]} lines @param {number} depth @returns {Block[]} */
export function split(lines, depth) {
  /** @type {Block[]} */ const blocks = [];
  for (let at = 0; at < lines.length; ) {
    if (isBlank(lines[at])) at++;
    else {
      const type = typeAt(lines, at, depth) ?? "paragraph";
      const to = ENDS[type](lines, at, depth);
      blocks.push({ type, from: at, to, decided: type === "table" ? at + 1 : at });
      at = to;
    }
  }
  return blocks;
}

/** Which block begins at this line, if it is not a paragraph. @param {string[]} lines @param {number} at @param {number} depth */
function typeAt(lines, at, depth) {
  const line = lines[at];
  if (FENCE.test(line)) return "code";
  if (MATH.test(line)) return "math";
  if (HEADING.test(line)) return "heading";
  if (RULE.test(line)) return "rule";
  if (depth < DEPTH_LIMIT && QUOTE.test(line)) return "quote";
  if (depth < DEPTH_LIMIT && MARKER.test(line)) return "list";
  if (line.includes("|") && DELIMITER.test(lines[at + 1] ?? "") && lines[at + 1].includes("-")) {
    return cells(line).length === cells(lines[at + 1]).length ? "table" : null;
  }
  return null;
}

/** Whether a paragraph ends before this line. @param {string[]} lines @param {number} at @param {number} depth */
function interrupts(lines, at, depth) {
  const type = typeAt(lines, at, depth);
  if (type !== "list") return type !== null;
  const [, , , number, , , text] = /** @type {RegExpExecArray} */ (MARKER.exec(lines[at]));
  return Boolean(text) && (number === undefined || number === "1"); // "… in\n1986. That was" is no list.
}

/** Where each block ends. @type {Record<Block["type"], (lines: string[], at: number, depth: number) => number>} */
const ENDS = {
  heading: (_, at) => at + 1,
  rule: (_, at) => at + 1,
  code(lines, at) {
    const [, , fence] = /** @type {RegExpExecArray} */ (FENCE.exec(lines[at]));
    for (let i = at + 1; i < lines.length; i++) {
      const end = /^ *(`{3,}|~{3,})[ \t]*$/.exec(lines[i])?.[1];
      if (end && end[0] === fence[0] && end.length >= fence.length) return i + 1;
    }
    return lines.length;
  },
  math(lines, at) {
    const end = lines[at].includes("$$") ? "$$" : "\\]";
    let i = at + 1;
    while (i < lines.length && !isBlank(lines[i])) if (lines[i++].includes(end)) break;
    return i;
  },
  quote: (lines, at) => while_(lines, at, (line) => QUOTE.test(line)),
  table: (lines, at) => while_(lines, at + 1, (line) => !isBlank(line) && (line.includes("|") || !startsBlock(line))),
  paragraph(lines, at, depth) {
    let i = at + 1;
    while (i < lines.length && !isBlank(lines[i]) && !interrupts(lines, i, depth)) i++;
    return i;
  },
  list(lines, at) {
    const [, lead, mark] = /** @type {RegExpExecArray} */ (MARKER.exec(lines[at]));
    let end = at + 1;
    for (let i = at + 1; i < lines.length; i++) {
      const line = lines[i];
      if (isBlank(line)) continue;
      const isInside = indentOf(line) >= lead.length + 2;
      const sibling = isInside ? null : RULE.test(line) ? null : MARKER.exec(line);
      const isLazy = !sibling && i === end && !startsBlock(line);
      if (!isInside && !isLazy && (!sibling || kindOf(sibling[2]) !== kindOf(mark))) break;
      end = i + 1;
    }
    return end;
  },
};

/** @param {string[]} lines @param {number} at @param {(line: string) => boolean} holds */
function while_(lines, at, holds) {
  let i = at + 1;
  while (i < lines.length && holds(lines[i])) i++;
  return i;
}

/** @param {string} line */
const startsBlock = (line) => [FENCE, MATH, HEADING, RULE, QUOTE, MARKER].some((pattern) => pattern.test(line));
/** @param {string} line */
export const isBlank = (line) => !/[^ \t]/.test(line);
/** @param {string} mark */
const kindOf = (mark) => mark.at(-1);

/** @param {string} line */
export function indentOf(line) {
  let width = 0;
  for (const char of line) {
    if (char === " ") width++;
    else if (char === "\t") width += 4 - (width % 4);
    else break;
  }
  return width;
}

/** @param {string} line @param {number} width the line without so much of its indent */
export function dedent(line, width) {
  let at = 0;
  let left = width;
  for (; left > 0 && (line[at] === " " || line[at] === "\t"); at++) left -= line[at] === " " ? 1 : 4;
  return " ".repeat(Math.max(0, -left)) + line.slice(at);
}

/** @param {string} line */
export function cells(line) {
  const row = line.trim().replace(/^\|/, "").replace(/((?:^|[^\\])(?:\\\\)*)\|$/, "$1");
  /** @type {string[]} */ const found = [""];
  for (let i = 0; i < row.length; i++) {
    if (row[i] === "\\" && row[i + 1] === "|") found[found.length - 1] += row[++i];
    else if (row[i] === "|") found.push("");
    else found[found.length - 1] += row[i];
  }
  return found.map((cell) => cell.trim());
}
