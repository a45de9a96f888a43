/** One answer on the page: from events as they come, or from a stored message. Draws at most once a frame. */

import { announce, copyButton, duration, el, iconButton } from "./dom.js";
import { facts } from "./facts.js";
import { keep, kept } from "./kept.js";
import { PartsView } from "./parts.js";

/** @import { Part } from "../chatserver.js" */
/** @import { ChatEvent, DoneEvent, ErrorEvent, Usage } from "../events.js" */
/** @import { MessageResource } from "../resources.js" */
/** @import { Child } from "./dom.js" */
/** @import { Measured, Meter } from "./meter.js" */
/** @import { OnAnswer } from "./tools.js" */

const PLOT_MS = 250; // The plot is drawn anew so often while an answer is written.
const ANNOUNCE_MS = 2000;
const ENDINGS = { stop: "", length: "cut at its greatest length", content_filter: "stopped by a content filter", cancelled: "stopped", turn_limit: "stopped after too many turns" };
const FAILURES = {
  rate_limited: "The model is busy", llm_error: "The model failed", upstream_unavailable: "The model cannot be reached",
  upstream_timeout: "The model went silent", upstream_truncated: "The answer broke off", context_length: "This chat is too long for the model",
  auth_failed: "The server may not use this model", interrupted: "The server stopped in the middle", internal: "The server failed",
};

export class AnswerView {
  element = el("article", { class: "answer" }, el("h2", { class: "unseen" }, "Answer"));
  /** @type {Meter | null} */ meter = null;
  /** What a meter said of it before the page was loaded. @type {Measured | null} */ #measured = null;
  /** @type {Usage | null} */ #usage = null;
  #note = "";
  #view;
  /** @type {readonly Part[]} */ #parts = [];
  #why = el("p", { class: "why", hidden: true });
  /** Where its versions are shown. */ corner = el("div", { class: "corner" });
  #foot = el("footer", {});
  #failure = el("div", { class: "failure", role: "alert", hidden: true });
  /** @type {string | null} */ runId = null;
  #isOpen = true;
  #isDue = false;
  #plottedAt = 0;
  #announcedAt = 0;

  /**
   * @param {{ onRetry: () => void, onDrawn: () => void, onAnswer: OnAnswer }} hooks
   */
  constructor(hooks) {
    this.hooks = hooks;
    this.#view = new PartsView(hooks.onAnswer);
    this.element.append(this.#view.element, this.#why, this.#failure, this.#foot);
    this.element.dataset.state = "waiting";
    this.#view.element.append(el("p", { class: "pending" }, el("span", { class: "unseen" }, "The answer is on its way"), el("i"), el("i"), el("i")));
  }

  /** @param {ChatEvent} event @param {readonly Part[]} parts the answer after it */
  apply(event, parts) {
    this.runId = event.run_id;
    this.#parts = parts;
    if (event.type !== "start") this.#begin();
    if (event.type === "tool_input" || event.type === "tool_progress") this.#view.hear(event);
    if (event.type === "error") return this.fail(event);
    if (event.type !== "done") return this.#soon();
    this.#usage = event.usage;
    this.end(ENDINGS[event.finish_reason] ?? event.finish_reason);
  }

  /** Show a stored answer. @param {MessageResource} message */
  show(message) {
    this.#measured = kept("session", `measured.${message.run_id}`);
    this.#parts = /** @type {Part[]} */ (message.parts);
    this.#usage = message.usage;
    this.end(message.finish_reason ? ENDINGS[message.finish_reason] : message.status === "complete" ? "" : "incomplete");
  }

  get text() {
    return this.#view.text;
  }

  get isOpen() {
    return this.#isOpen;
  }

  /** Whether it was no longer read before it ended. */
  get isLeft() {
    return this.element.dataset.state === "left";
  }

  /** The connection was cut, or left, at what there is of the text. */
  mark() {
    if (!this.#isOpen) return;
    this.#draw();
    this.#view.mark();
  }

  /** Why nothing comes, while nothing does. @param {string} text empty: it comes */
  wait(text) {
    if (text === this.#why.textContent) return;
    this.#why.textContent = text;
    this.#why.hidden = !text;
    if (text) announce(text);
    this.hooks.onDrawn();
  }

  /** @param {string} [note] why it ended, if there is something to say */
  end(note = "") {
    this.#close("done");
    this.#note = note;
    this.#drawFoot();
  }

  /**
   * @param {Pick<ErrorEvent, "message"> & { code: string, retryable?: boolean, retry_after?: number | null }} error
   * @param {Child} [way] out of it, beside trying again
   */
  fail(error, way) {
    this.#close("failed");
    const title = FAILURES[/** @type {keyof typeof FAILURES} */ (error.code)] ?? "That did not work";
    const again = el("button", { type: "button", class: error.retryable === false ? "plain" : "primary", onclick: () => this.hooks.onRetry() }, "Try again");
    if (error.retry_after) countDown(again, error.retry_after);
    this.#failure.replaceChildren(
      el("div", {}, el("strong", {}, title), el("p", {}, `${sentence(error.message)} `, el("code", {}, error.code))),
      el("div", { class: "row" }, ...(way ? [way] : []), again));
    this.#failure.hidden = false;
    this.#drawFoot();
    this.hooks.onDrawn();
  }

  /** No longer read; the run goes on. */
  leave() {
    this.#close("left");
  }

  #begin() {
    if (this.element.dataset.state !== "waiting") return;
    this.element.dataset.state = "writing";
    this.#view.clear();
  }

  /** @param {string} state */
  #close(state) {
    this.#begin();
    this.#isOpen = false;
    this.wait("");
    this.#draw();
    this.element.dataset.state = state;
  }

  #soon() {
    if (this.#isDue) return;
    this.#isDue = true;
    requestAnimationFrame(() => {
      this.#isDue = false;
      if (this.#isOpen) this.#draw();
    });
  }

  #draw() {
    if (this.element.dataset.state !== "waiting") this.#view.show(this.#parts, this.#isOpen, this.#measured?.thoughtsMs);
    const now = performance.now();
    if (this.#isOpen && now - this.#plottedAt > PLOT_MS) {
      this.#plottedAt = now;
      this.#drawFoot();
    }
    if (this.meter && (!this.#isOpen || now - this.#announcedAt > ANNOUNCE_MS)) {
      this.#announcedAt = now;
      const said = this.#view.unannounced(this.#isOpen);
      if (said) announce(said);
    }
    this.hooks.onDrawn();
  }

  #drawFoot() {
    const measured = this.meter ? { ...this.meter.measured, thoughtsMs: this.#view.thoughtsMs } : this.#measured;
    if (!this.#isOpen && this.meter) keep("session", `measured.${this.runId}`, measured);
    const actions = [];
    if (!this.#isOpen && this.text) actions.push(copyButton("Copy the answer", () => this.text));
    if (!this.#isOpen && this.#failure.hidden) actions.push(iconButton("again", "Answer again", () => this.hooks.onRetry()));
    this.#foot.replaceChildren(this.corner, facts(this.text || this.#failure.hidden ? measured : null, this.#usage, this.#note), el("div", { class: "actions" }, ...actions));
  }
}

/** A button that says how long it is better to wait. @param {HTMLButtonElement} button @param {number} seconds */
function countDown(button, seconds) {
  const until = performance.now() + seconds * 1000;
  const show = () => {
    const leftMs = 1000 * Math.ceil((until - performance.now()) / 1000);
    button.textContent = leftMs > 0 ? `Try again in ${leftMs < 60_000 ? `${leftMs / 1000} s` : duration(leftMs)}` : "Try again";
    button.className = leftMs > 0 ? "plain" : "primary";
    if (leftMs > 0) setTimeout(show, 1000);
  };
  show();
}

/** @param {string} text */
const sentence = (text) => (/[.!?]$/.test(text) ? text : `${text}.`).replace(/^./, (first) => first.toUpperCase());
