/** A tool call as a card: what is called with what, how it goes, what came back. */

import { duration, el, icon } from "./dom.js";

/** @import { ToolCallPart } from "../events.js" */

const SUMMARY_CHARS_LIMIT = 80;

export class ToolCard {
  #since = performance.now();
  /** @type {ReturnType<typeof setInterval> | undefined} */ #clock;
  #mark = el("span", { class: "mark" });
  #said = el("span", { class: "said" });
  #body = el("div", { class: "body" });
  element = el("details", { class: "tool" });

  /** @param {ToolCallPart} call */
  constructor(call) {
    this.element.setAttribute("aria-label", `Tool call: ${call.tool}`);
    const name = el("code", { class: "name" }, call.tool);
    const summary = el("summary", {}, this.#mark, name, el("span", { class: "args" }, brief(call.args)), this.#said);
    this.#body.append(section("Arguments", call.args));
    this.element.append(summary, this.#body);
    this.#run();
  }

  /** @param {ToolCallPart} call */
  update({ result, is_error, truncated, duration_ms }) {
    if (is_error === null) return;
    clearInterval(this.#clock);
    this.#state(is_error ? "failed" : "done", is_error ? "cross" : "check", duration_ms == null ? "" : duration(duration_ms));
    this.#body.append(section(is_error ? "Failed with" : truncated ? "Result, cut" : "Result", result));
    if (is_error) this.element.open = true;
  }

  /** It grows in no frame: what is told of it is told at once. */
  draw() {}

  /** The run is over without a result, or is no longer read. */
  leave() {
    clearInterval(this.#clock);
    if (this.element.dataset.state !== "done" && this.element.dataset.state !== "failed") this.#state("left", "cross", "no result");
  }

  #run() {
    this.#state("running", "", "");
    this.#clock = setInterval(() => (this.#said.textContent = duration(performance.now() - this.#since)), 100);
  }

  /** @param {string} state @param {string} picture @param {string} text */
  #state(state, picture, text) {
    this.element.dataset.state = state;
    const said = { running: "running", done: "done", failed: "failed", left: "no result" }[state];
    this.#mark.replaceChildren(picture ? icon(picture) : el("i", { class: "spinner" }), el("span", { class: "unseen" }, `${said}: `));
    this.#said.textContent = text;
  }
}

/** @param {string} title @param {unknown} value */
function section(title, value) {
  const text = typeof value === "string" ? value : JSON.stringify(value, null, 2);
  return el("div", { class: "section" }, el("h4", {}, title), el("pre", { tabindex: "0" }, text));
}

/** @param {Record<string, unknown>} args */
function brief(args) {
  const text = Object.entries(args).map(([name, value]) => `${name}: ${JSON.stringify(value)}`).join(", ");
  return text.length > SUMMARY_CHARS_LIMIT ? `${text.slice(0, SUMMARY_CHARS_LIMIT)}…` : text;
}
