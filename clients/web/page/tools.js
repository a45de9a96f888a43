/** A tool call as a card: what is called with what, how it goes, what it waits for, what came back. */

import { announce, duration, el, icon } from "./dom.js";
import { stringify } from "./exact.js";
import { waitingForm } from "./waiting.js";

/** @import { Answer } from "../chatserver.js" */
/** @import { ToolCallPart, ToolProgressEvent } from "../events.js" */
/** @typedef {"writing" | "waiting" | "running" | "done" | "failed" | "left"} State */
/** @typedef {(callId: string, answer: Answer) => Promise<void>} OnAnswer */

const SUMMARY_CHARS_LIMIT = 80;
const SAID = { writing: "being written", waiting: "waits", running: "running", done: "done", failed: "failed", left: "no result" };
const number = new Intl.NumberFormat("en", { maximumFractionDigits: 2 });

export class ToolCard {
  #since = performance.now();
  /** @type {ReturnType<typeof setInterval> | undefined} */ #clock;
  /** @type {State} */ #state = "writing";
  /** @type {ToolCallPart | null} */ #call = null;
  #mark = el("span", { class: "mark" });
  #said = el("span", { class: "said" });
  #brief = el("span", { class: "args" });
  #input = new Text();
  #body = el("div", { class: "body" });
  #details;
  #progress = el("div", { class: "progress", hidden: true });
  /** @type {HTMLElement | null} */ #form = null;
  element;

  /** @param {string} tool @param {OnAnswer} onAnswer */
  constructor(tool, onAnswer) {
    this.onAnswer = onAnswer;
    this.#body.append(section("Arguments", this.#input));
    const summary = el("summary", {}, this.#mark, el("code", { class: "name" }, tool), this.#brief, this.#said);
    this.#details = el("details", {}, summary, this.#body);
    this.element = el("div", { class: "tool", role: "group", "aria-label": `Tool call: ${tool}` }, this.#details, this.#progress);
    this.#enter("writing");
  }

  /** The arguments so far, as the model writes them. @param {string} text */
  write(text) {
    if (this.#call) return;
    this.#input.appendData(text.slice(this.#input.length));
    this.#brief.textContent = text.length > SUMMARY_CHARS_LIMIT ? `…${text.slice(-SUMMARY_CHARS_LIMIT)}` : text;
  }

  /** @param {ToolCallPart} call */
  update(call) {
    const { args, result, is_error, truncated, duration_ms, needs_approval, executor } = call;
    if (args !== this.#call?.args) {
      this.#brief.textContent = brief(args);
      this.#input.data = written(args);
    }
    const isNew = !this.#call;
    this.#call = call;
    if (is_error !== null) {
      this.#enter(is_error ? "failed" : "done", duration_ms == null ? "" : duration(duration_ms));
      this.#body.append(section(is_error ? "Failed with" : truncated ? "Result, cut" : "Result", written(result)));
      if (is_error) this.#details.open = true;
    } else if (isNew) {
      if (needs_approval || executor === "client") this.#wait(call);
      else this.#run();
    }
  }

  /** A tool that runs tells how far it is. @param {ToolProgressEvent} event */
  tell({ message, progress, total }) {
    if (this.#state === "waiting") this.#run();
    if (this.#state !== "running") return;
    const isMeasured = progress !== null && total !== null && total > 0;
    const bar = el("progress", { "aria-label": "Progress", ...(isMeasured && { max: total, value: Math.max(0, progress) }) });
    const count = progress === null ? "" : number.format(progress) + (total === null ? "" : ` of ${number.format(total)}`);
    this.#progress.replaceChildren(bar, el("span", { class: "message", dir: "auto" }, message ?? ""), el("span", { class: "count" }, count));
    this.#progress.hidden = false;
  }

  /** It grows in no frame: what is told of it is told at once. */
  draw() {}

  /** The run is over without a result, or is no longer read. */
  leave() {
    if (this.#state !== "done" && this.#state !== "failed") this.#enter("left", "no result");
    clearInterval(this.#clock);
  }

  #run() {
    this.#since = performance.now();
    this.#enter("running");
    this.#clock = setInterval(() => (this.#said.textContent = duration(performance.now() - this.#since)), 100);
  }

  /** @param {ToolCallPart} call */
  #wait(call) {
    const form = waitingForm(call, (answer) => this.onAnswer(call.call_id, answer), () => this.#run());
    if (!form) return this.#run();
    this.#enter("waiting", form.state);
    this.#form = form.element;
    this.element.append(form.element);
    announce(form.title);
  }

  /** @param {State} state @param {string} [text] */
  #enter(state, text = "") {
    clearInterval(this.#clock);
    if (this.#form?.contains(document.activeElement)) this.#details.querySelector("summary")?.focus();
    this.#form?.remove();
    this.#form = null;
    this.#progress.hidden = true;
    this.#state = this.element.dataset.state = state;
    const pictures = { writing: "edit", waiting: "ask", running: "", done: "check", failed: "cross", left: "cross" };
    const picture = pictures[state] ? icon(pictures[state]) : el("i", { class: "spinner" });
    this.#mark.replaceChildren(picture, el("span", { class: "unseen" }, `${SAID[state]}: `));
    this.#said.textContent = text;
  }
}

/** @param {string} title @param {Text | string} text */
function section(title, text) {
  return el("div", { class: "section" }, el("h4", {}, title), el("pre", { tabindex: "0" }, text));
}

/** @param {unknown} value */
const written = (value) => (typeof value === "string" ? value : stringify(value, 2));

/** @param {Record<string, unknown>} args */
function brief(args) {
  const text = Object.entries(args).map(([name, value]) => `${name}: ${stringify(value)}`).join(", ");
  return text.length > SUMMARY_CHARS_LIMIT ? `${text.slice(0, SUMMARY_CHARS_LIMIT)}…` : text;
}
