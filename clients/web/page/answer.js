/** One answer on the page: from events as they come, or from a stored message. Draws at most once a frame. */

import { announce, copyButton, duration, el, iconButton } from "./dom.js";
import { Markdown } from "./markdown.js";
import { gapPlot } from "./plot.js";
import { patch } from "./render.js";
import { ToolCard } from "./tools.js";

/** @import { ChatEvent, DoneEvent, ErrorEvent, ToolCallState, Usage } from "../events.js" */
/** @import { Meter } from "./meter.js" */
/** @import { Answer as Approve } from "./tools.js" */

const PLOT_MS = 250; // The plot is drawn anew so often while an answer is written.
const ANNOUNCE_MS = 2000;
const TRANSPORTS = { sse: "SSE", ws: "WebSocket" };
const ENDINGS = { stop: "", length: "cut at its greatest length", content_filter: "stopped by a content filter", cancelled: "stopped", turn_limit: "stopped after too many turns" };
const FAILURES = {
  rate_limited: "The model is busy", llm_error: "The model failed", upstream_unavailable: "The model cannot be reached",
  upstream_timeout: "The model went silent", upstream_truncated: "The answer broke off", context_length: "This chat is too long for the model",
  auth_failed: "The server may not use this model", interrupted: "The server stopped in the middle", internal: "The server failed",
};

/** Text that grows in one element. */
class Flow {
  /** @type {import("./tree.js").Node[]} */ #drawn = [];
  #markdown = new Markdown();
  #announced = 0;
  isDirty = false;
  text = "";

  /** @param {HTMLElement} element */
  constructor(element) {
    this.element = element;
  }

  /** @param {string} text */
  append(text) {
    this.text += text;
    this.#markdown.append(text);
    this.isDirty = true;
  }

  /** @param {boolean} isOpen */
  draw(isOpen) {
    const now = this.#markdown.blocks(isOpen);
    patch(this.element, this.#drawn, now);
    this.#drawn = now;
    this.isDirty = false;
  }

  /** The blocks that are complete and were not announced yet. @param {boolean} isOpen */
  unannounced(isOpen) {
    const to = isOpen ? this.#markdown.closed : this.#drawn.length;
    const said = [...this.element.children].slice(this.#announced, to).map((block) => block.textContent ?? "");
    this.#announced = to;
    return said.join(" ");
  }
}

export class AnswerView {
  element = el("article", { class: "answer", "aria-label": "Answer" });
  /** @type {Meter | null} */ meter = null;
  /** @type {Usage | null} */ #usage = null;
  #parts = el("div", { class: "parts" });
  #foot = el("footer", {});
  #failure = el("div", { class: "failure", role: "alert", hidden: true });
  /** @type {Flow[]} */ #flows = [];
  /** @type {Flow | null} */ #flow = null;
  /** @type {{ flow: Flow, details: HTMLDetailsElement, summary: HTMLElement, since: number } | null} */ #thoughts = null;
  /** @type {Map<string, ToolCard>} */ #tools = new Map();
  #isOpen = true;
  #isDue = false;
  #plottedAt = 0;
  #announcedAt = 0;

  /**
   * @param {{ onRetry: () => void, onApprove: Approve, onDrawn: () => void }} hooks
   */
  constructor(hooks) {
    this.hooks = hooks;
    this.element.append(this.#parts, this.#failure, this.#foot);
    this.element.dataset.state = "waiting";
    this.#parts.append(el("p", { class: "pending" }, el("span", { class: "unseen" }, "The answer is on its way"), el("i"), el("i"), el("i")));
  }

  /** @param {ChatEvent} event */
  apply(event) {
    if (event.type !== "start") this.#begin();
    switch (event.type) {
      case "token": this.#text(event.content); break;
      case "reasoning": this.#reason(event.content); break;
      case "tool_call": this.#call(event); break;
      case "tool_result": this.#tools.get(event.call_id)?.finish(event); break;
      case "snapshot": this.#restore(event); break;
      case "done": this.#usage = event.usage; return this.end(ENDINGS[event.finish_reason] ?? event.finish_reason);
      case "error": return this.fail(event);
    }
    this.#soon();
  }

  /** Show a stored answer. @param {{ content: string, reasoning: string, tool_calls: ToolCallState[], usage: Usage | null, status: string }} message */
  show(message) {
    this.#begin();
    this.#restore(message);
    this.#usage = message.usage;
    this.end(message.status === "complete" ? "" : "incomplete");
  }

  get text() {
    return this.#flows.map((flow) => flow.text).join("\n\n").trim();
  }

  get isOpen() {
    return this.#isOpen;
  }

  /** @param {string} [note] why it ended, if there is something to say */
  end(note = "") {
    this.#close("done");
    if (note) this.#foot.dataset.note = note;
    this.#drawFoot();
  }

  /** @param {Pick<ErrorEvent, "message"> & { code: string, retryable?: boolean, retry_after?: number | null }} error */
  fail(error) {
    this.#close("failed");
    const title = FAILURES[/** @type {keyof typeof FAILURES} */ (error.code)] ?? "That did not work";
    const again = el("button", { type: "button", class: error.retryable === false ? "plain" : "primary" }, "Try again");
    again.addEventListener("click", () => this.hooks.onRetry());
    const wait = error.retry_after ?? 0;
    const hint = el("p", { class: "wait" }, wait > 0 ? `It asks to wait ${Math.ceil(wait)} s.` : "");
    this.#failure.replaceChildren(
      el("div", {}, el("strong", {}, title), el("p", {}, `${sentence(error.message)} `, el("code", {}, error.code)), wait > 0 && hint), again);
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
    this.#parts.replaceChildren();
  }

  /** @param {string} state */
  #close(state) {
    this.#begin();
    this.#isOpen = false;
    for (const card of this.#tools.values()) card.leave();
    this.#endThoughts();
    this.#draw();
    this.element.dataset.state = state;
  }

  /** @param {string} text */
  #text(text) {
    this.#endThoughts();
    if (!this.#flow) {
      this.#flow = new Flow(el("div", { class: "prose" }));
      this.#flows.push(this.#flow);
      this.#parts.append(this.#flow.element);
    }
    this.#flow.append(text);
  }

  /** @param {string} text */
  #reason(text) {
    if (!this.#thoughts) {
      this.#endFlow();
      const summary = el("summary", {}, "Thinking…");
      const flow = new Flow(el("div", { class: "prose" }));
      const details = el("details", { class: "reasoning" }, summary, flow.element);
      this.#thoughts = { flow, details, summary, since: performance.now() };
      this.#parts.append(details);
    }
    this.#thoughts.flow.append(text);
  }

  #endFlow() {
    this.#flow?.draw(false);
    this.#flow = null;
  }

  #endThoughts() {
    if (!this.#thoughts) return;
    const { flow, summary, since } = this.#thoughts;
    flow.draw(false);
    const took = performance.now() - since;
    summary.textContent = this.meter && took > 100 ? `Thought for ${duration(took)}` : "Thoughts";
    this.#thoughts = null;
  }

  /** @param {Omit<ToolCallState, "result" | "is_error" | "truncated" | "duration_ms">} call */
  #call(call) {
    this.#endThoughts();
    this.#endFlow();
    const card = new ToolCard(call, this.hooks.onApprove);
    this.#tools.set(call.call_id, card);
    this.#parts.append(card.element);
    if (call.needs_approval) announce(`The tool ${call.tool} waits for your approval`);
    return card;
  }

  /** Everything so far at once. @param {{ content: string, reasoning: string, tool_calls: ToolCallState[] }} state */
  #restore({ content, reasoning, tool_calls: calls }) {
    for (const card of this.#tools.values()) card.leave();
    this.#tools.clear();
    this.#parts.replaceChildren();
    this.#flows = [];
    this.#flow = this.#thoughts = null;
    if (reasoning) this.#reason(reasoning);
    for (const call of calls) {
      const card = this.#call(call);
      if (call.duration_ms !== null) card.finish(call);
    }
    if (content) this.#text(content);
    this.#endThoughts();
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
    if (this.#thoughts?.flow.isDirty) this.#thoughts.flow.draw(true);
    if (this.#flow) this.#flow.draw(this.#isOpen);
    const now = performance.now();
    if (this.#isOpen && now - this.#plottedAt > PLOT_MS) {
      this.#plottedAt = now;
      this.#drawFoot();
    }
    if (this.meter && (!this.#isOpen || now - this.#announcedAt > ANNOUNCE_MS)) {
      this.#announcedAt = now;
      const said = this.#flows.map((flow) => flow.unannounced(this.#isOpen)).join(" ").trim();
      if (said) announce(said);
    }
    this.hooks.onDrawn();
  }

  #drawFoot() {
    const { meter } = this;
    const facts = [];
    if (meter?.vias.size) facts.push(el("span", { class: "via" }, ...[...meter.vias].map((via) => el("span", { class: `badge ${via}` }, TRANSPORTS[via]))));
    if (meter?.firstTokenMs != null) facts.push(fact("first token", duration(meter.firstTokenMs), "From sending the message to the first token"));
    if (meter?.tokensPerSecond != null) facts.push(fact("tokens/s", meter.tokensPerSecond.toFixed(meter.tokensPerSecond < 10 ? 1 : 0), "Token events a second, as they arrived"));
    if (this.#usage) {
      const { input_tokens: read, output_tokens: written, estimated } = this.#usage;
      const about = `Tokens read and written, ${estimated ? "estimated: the model did not say" : "as the model counts them"}`;
      const mark = estimated ? "~" : "";
      facts.push(el("span", { class: "fact", title: about }, "tokens", el("b", {}, `${mark}${read}`), "in", el("b", {}, `${mark}${written}`), "out"));
    }
    if (meter && meter.gaps.length > 1) facts.push(el("span", { class: "plot" }, gapPlot(meter.gaps)));
    if (this.#foot.dataset.note) facts.push(el("span", { class: "note" }, this.#foot.dataset.note));
    const actions = [];
    if (!this.#isOpen && this.text) actions.push(copyButton("Copy the answer", () => this.text));
    if (!this.#isOpen && this.#failure.hidden) actions.push(iconButton("again", "Answer again", () => this.hooks.onRetry()));
    this.#foot.replaceChildren(el("div", { class: "facts" }, ...facts), el("div", { class: "actions" }, ...actions));
  }
}

/** @param {string} name @param {string} value @param {string} title */
function fact(name, value, title) {
  return el("span", { class: "fact", title }, el("b", {}, value), ` ${name}`);
}

/** @param {string} text */
const sentence = (text) => (/[.!?]$/.test(text) ? text : `${text}.`).replace(/^./, (first) => first.toUpperCase());
