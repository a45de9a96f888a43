/**
 * JSON with each number as it is written, so that a user approves what is called. `JSON` rounds 9007199254740993, writes
 * 1.0 as 1, and 1e400 as null.
 */

const TOKENS = /"[^"\\]*(?:\\.[^"\\]*)*"|-?\d[\d.eE+-]*/g;
/** Begins the strings that stand for numbers on their way through `JSON`. Nobody else can know it. */
const MARK = crypto.getRandomValues(new Uint32Array(4)).join("-") + ":";
const MARKED = new RegExp(`"${MARK}([^"]*)"`, "g");

/** A number that JavaScript would write otherwise. It counts as the nearest number that JavaScript has. */
export class Exact extends Number {
  /** @param {string} text */
  constructor(text) {
    super(text);
    this.text = text;
  }

  toString() {
    return this.text;
  }
}

/** @param {string} text JSON @returns {any} with an `Exact` for each number that JavaScript would write otherwise @throws {SyntaxError} */
export function parse(text) {
  const value = JSON.parse(text);
  const marked = text.replace(TOKENS, (token) => (token[0] === '"' || String(Number(token)) === token ? token : `"${MARK}${token}"`));
  if (marked === text) return value;
  return JSON.parse(marked, (_, each) => (typeof each === "string" && each.startsWith(MARK) ? new Exact(each.slice(MARK.length)) : each));
}

/** As `JSON.stringify`, with each `Exact` as it was written. @param {unknown} value @param {number} [space] */
export function stringify(value, space) {
  const marked = JSON.stringify(value, (_, each) => (each instanceof Exact ? MARK + each.text : each), space);
  return marked?.replace(MARKED, "$1");
}

/** What is wrong with a text that shall be JSON, as a sentence; empty: nothing. @param {string} text */
export function mistakeIn(text) {
  try {
    JSON.parse(text);
  } catch {
    return "This is no JSON.";
  }
  const [huge] = text.match(TOKENS)?.filter((token) => token[0] !== '"' && !Number.isFinite(Number(token))) ?? [];
  return huge ? `The number ${huge} is too large to be sent.` : "";
}
