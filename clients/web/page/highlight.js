/**
 * Colours for code, one line at a time, so that code may grow. Not a parser: comments, strings, numbers, keywords,
 * names that are called. `state` is what a line leaves open for the next one: a comment or a string.
 */

/** @import { Tree } from "./tree.js" */
/**
 * @typedef {object} Language
 * @property {Set<string>} words
 * @property {string[]} line what begins a comment that the line ends
 * @property {[string, string][]} spans what begins and ends a comment or string over many lines
 * @property {string} quotes
 * @property {boolean} [tags] markup
 */

const LINE_CHARS_LIMIT = 2000; // A longer line is a file of data, and stays plain.

/** @param {string} words @param {string[]} line @param {[string, string][]} spans @returns {Language} */
const language = (words, line, spans, quotes = `"'`) => ({ words: new Set(words.split(" ")), line, spans, quotes });

/** @type {[string, string]} */ const C_COMMENT = ["/*", "*/"];

const PYTHON = language(
  "and as assert async await break case class continue def del elif else except False finally for from global if import in is lambda match None nonlocal not or pass raise return True try type while with yield self",
  ["#"], [['"""', '"""'], ["'''", "'''"]]);
const SCRIPT = language(
  "abstract any as async await boolean break case catch class const continue debugger declare default delete do else enum export extends false finally for from function get if implements import in instanceof interface is keyof let new null number of private protected public readonly return satisfies set static string super switch this throw true try type typeof undefined unknown var void while yield",
  ["//"], [C_COMMENT, ["`", "`"]]);
const SHELL = language(
  "if then else elif fi for while until do done case esac in function return export local set unset source echo cd exit exec sudo read trap eval",
  ["#"], []);
const SQL = language(
  "select from where insert into values update set delete create table index view drop alter add primary key foreign references not null unique default and or in is like between join left right inner outer full on group by order having limit offset union all distinct as case when then else end with returning exists asc desc begin commit rollback",
  ["--"], [C_COMMENT], `'"`);
const C_LIKE = language(
  "abstract alignas auto bool boolean break byte case catch char class const constexpr continue default delete do double else enum explicit export extends extern false final finally float fn for friend func go goto if impl implements import in inline instanceof int interface internal let long loop map match mod move mut namespace new nil null nullptr operator override package private protected pub public range ref return self short signed sizeof static string struct super switch template this throw throws trait true try type typedef typename union unsafe unsigned use using val var virtual void volatile when where while yield defer chan select crate dyn async await",
  ["//"], [C_COMMENT]);
const JSON_ = language("true false null", ["//"], [C_COMMENT], `"`);
const CONFIG = language("true false null yes no on off", ["#"], []);
const CSS = language("important media supports layer container import from to and not only", [], [C_COMMENT]);
const MARKUP = { ...language("", [], [["<!--", "-->"]]), tags: true };

/** @type {Record<string, Language>} */
const LANGUAGES = {
  python: PYTHON, py: PYTHON, javascript: SCRIPT, js: SCRIPT, mjs: SCRIPT, jsx: SCRIPT, typescript: SCRIPT, ts: SCRIPT,
  tsx: SCRIPT, bash: SHELL, sh: SHELL, shell: SHELL, zsh: SHELL, console: SHELL, dockerfile: SHELL, sql: SQL,
  c: C_LIKE, cpp: C_LIKE, "c++": C_LIKE, "c#": C_LIKE, cs: C_LIKE, csharp: C_LIKE, java: C_LIKE, kotlin: C_LIKE,
  go: C_LIKE, rust: C_LIKE, rs: C_LIKE, swift: C_LIKE, dart: C_LIKE, php: C_LIKE, scala: C_LIKE,
  json: JSON_, jsonc: JSON_, yaml: CONFIG, yml: CONFIG, toml: CONFIG, ini: CONFIG, css: CSS, scss: CSS,
  html: MARKUP, xml: MARKUP, svg: MARKUP, vue: MARKUP,
};

/**
 * @param {string} line @param {string} name the language @param {string} state what the line before left open
 * @returns {{ trees: Tree[], state: string }}
 */
export function highlight(line, name, state) {
  const kind = Object.hasOwn(LANGUAGES, name) ? LANGUAGES[name] : null;
  if (name === "diff") return { trees: diff(line), state: "" };
  if (!kind || line.length > LINE_CHARS_LIMIT) return { trees: line ? [line] : [], state };
  /** @type {Tree[]} */ const trees = [];
  /** @param {string} text @param {string} [look] */
  const put = (text, look) => {
    const last = trees.length - 1;
    if (!text) return;
    if (look) trees.push({ tag: "span", attrs: { class: look }, children: [text] });
    else if (typeof trees[last] === "string") trees[last] += text;
    else trees.push(text);
  };
  let at = 0;
  let open = state;
  while (at < line.length) {
    if (open) {
      const end = line.indexOf(open, at);
      const to = end < 0 ? line.length : end + open.length;
      put(line.slice(at, to), lookOf(open));
      at = to;
      if (end < 0) break;
      open = "";
      continue;
    }
    const span = kind.spans.find(([begin]) => line.startsWith(begin, at));
    if (span) {
      const end = line.indexOf(span[1], at + span[0].length);
      const to = end < 0 ? line.length : end + span[1].length;
      put(line.slice(at, to), lookOf(span[1]));
      at = to;
      if (end < 0) open = span[1];
      continue;
    }
    if (kind.line.some((begin) => line.startsWith(begin, at) && (at === 0 || begin !== "#" || /\s/.test(line[at - 1])))) {
      put(line.slice(at), "comment");
      break;
    }
    const [text, look] = kind.tags ? markup(line, at) : token(line, at, kind);
    put(text, look);
    at += text.length;
  }
  return { trees, state: open };
}

/** @param {string} end */
const lookOf = (end) => (end === "*/" || end === "-->" ? "comment" : "string");

/** The token that begins here, and its look. @param {string} line @param {number} at @param {Language} kind @returns {[string, string?]} */
function token(line, at, kind) {
  const char = line[at];
  if (kind.quotes.includes(char)) {
    let end = at + 1;
    while (end < line.length && line[end] !== char) end += line[end] === "\\" ? 2 : 1;
    return [line.slice(at, end + 1), "string"];
  }
  const word = match(/[\p{L}_$@][\p{L}\p{N}_$]*/uy, line, at);
  if (word) {
    const isWord = kind.words.has(kind === SQL ? word.toLowerCase() : word);
    if (isWord) return [word, "keyword"];
    if (line[at + word.length] === "(") return [word, "call"];
    return [word, /^\p{Lu}/u.test(word) ? "type" : undefined];
  }
  const number = match(/0[xb][\da-f_]+|\d[\d_]*(?:\.\d+)?(?:e[+-]?\d+)?/iy, line, at);
  if (number) return [number, "number"];
  return [match(/[^\p{L}\p{N}_$@"'`/#\-*]+/uy, line, at) || char];
}

/** @param {string} line @param {number} at @returns {[string, string?]} */
function markup(line, at) {
  const tag = match(/<\/?[\w:-]+|\/?>/y, line, at);
  if (tag) return [tag, "keyword"];
  const name = match(/[\w:@.-]+(?==)/y, line, at);
  if (name) return [name, "type"];
  const value = match(/"[^"]*"?|'[^']*'?/y, line, at);
  if (value && line[at - 1] === "=") return [value, "string"];
  return [match(/[^<>="'\w]+|\w+/y, line, at) || line[at]];
}

/** @param {string} line @returns {Tree[]} */
function diff(line) {
  const look = line[0] === "+" ? "added" : line[0] === "-" ? "removed" : line[0] === "@" ? "comment" : "";
  if (!look) return line ? [line] : [];
  return [{ tag: "span", attrs: { class: look }, children: [line] }];
}

/** @param {RegExp} pattern sticky @param {string} text @param {number} at */
function match(pattern, text, at) {
  pattern.lastIndex = at;
  return pattern.exec(text)?.[0] ?? "";
}
