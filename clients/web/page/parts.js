/** The parts of an answer on the page, in the order in which they happened: the same while it is written and after a reload. */

import { duration, el } from "./dom.js";
import { Flow } from "./flow.js";
import { ToolCard } from "./tools.js";

/** @import { Part } from "../chatserver.js" */
/** @import { ReasoningPart, TextPart, ToolInputEvent, ToolProgressEvent } from "../events.js" */
/** @import { OnAnswer } from "./tools.js" */

const THOUGHT_MS = 100; // A shorter thought was read from the log, not waited for.

/** Text, as Markdown. */
class Prose {
  element = el("div", { class: "prose" });
  flow = new Flow(this.element);

  /** @param {TextPart | ReasoningPart} part */
  update({ text }) {
    this.flow.append(text.slice(this.flow.text.length));
  }

  /** @param {boolean} isOpen whether more may follow in this part */
  draw(isOpen) {
    if (this.flow.isDirty || !isOpen) this.flow.draw(isOpen);
  }
}

/** Reasoning, folded away. */
class Thoughts {
  #prose = new Prose();
  #summary = el("summary", {}, "Thinking…");
  #since = performance.now();
  element = el("details", { class: "reasoning" }, this.#summary, this.#prose.element);

  /** @param {number | undefined} ms how long it took; undefined: that is measured now */
  constructor(ms) {
    this.ms = ms;
  }

  /** @param {TextPart | ReasoningPart} part */
  update(part) {
    this.#prose.update(part);
  }

  /** @param {boolean} isOpen */
  draw(isOpen) {
    this.#prose.draw(isOpen);
    if (isOpen) return;
    this.ms ??= performance.now() - this.#since;
    this.#summary.textContent = this.ms > THOUGHT_MS ? `Thought for ${duration(this.ms)}` : "Thoughts";
  }
}

export class PartsView {
  element = el("div", { class: "parts" });
  /** @type {readonly Part[]} */ #parts = [];
  /** What is shown of each part, and as what it was shown the last time. @type {{ view: Prose | Thoughts | ToolCard, part: Part | null }[]} */ #shown = [];
  /** How long each thought took, where that is known. @type {readonly number[]} */ #knownMs = [];
  /** Of each call, what no part has: its arguments so far, and how far it is. @type {Map<string, { tool: string, input: string, progress: ToolProgressEvent | null }>} */ #live = new Map();
  /** Calls that are being written: no part yet. @type {Map<string, ToolCard>} */ #drafts = new Map();

  /** @param {OnAnswer} onAnswer */
  constructor(onAnswer) {
    this.onAnswer = onAnswer;
  }

  /** Keep what an event tells of a call, to be shown with the parts. @param {ToolInputEvent | ToolProgressEvent} event */
  hear(event) {
    const known = this.#live.get(event.call_id) ?? { tool: "", input: "", progress: null };
    this.#live.set(event.call_id, known);
    if (event.type === "tool_progress") known.progress = event;
    else Object.assign(known, { tool: event.tool, input: known.input + event.delta });
  }

  /**
   * Make the page that of these parts. Of the array of last time, a part that did not change is the same object.
   * @param {readonly Part[]} parts @param {boolean} isOpen whether more may come @param {readonly number[]} [thoughtsMs]
   */
  show(parts, isOpen, thoughtsMs = []) {
    if (parts !== this.#parts) this.clear();
    this.#parts = parts;
    this.#knownMs = thoughtsMs;
    for (const [i, part] of parts.entries()) {
      const shown = this.#shown[i] ?? this.#begin(part);
      if (shown.part === part) continue;
      shown.part = part;
      if (shown.view instanceof ToolCard) part.type === "tool_call" && shown.view.update(part);
      else if (part.type !== "tool_call") shown.view.update(part);
    }
    this.#showLive(isOpen);
    this.#shown.at(-1)?.view.draw(isOpen && !this.#drafts.size);
    if (!isOpen) for (const card of this.#views(ToolCard)) card.leave();
  }

  /** @param {boolean} isOpen */
  #showLive(isOpen) {
    for (const { part, view } of this.#shown) {
      if (part?.type !== "tool_call" || !(view instanceof ToolCard)) continue;
      const live = this.#live.get(part.call_id);
      if (live?.progress) view.tell(live.progress);
      this.#live.delete(part.call_id);
    }
    for (const [id, { tool, input }] of this.#live) if (input) this.#draft(id, tool).write(input);
    if (!isOpen) this.#forgetDrafts();
  }

  /** @param {string} id @param {string} tool */
  #draft(id, tool) {
    const card = this.#drafts.get(id) ?? new ToolCard(tool, this.onAnswer);
    if (!this.#drafts.has(id)) this.element.append(card.element);
    this.#drafts.set(id, card);
    return card;
  }

  #forgetDrafts() {
    for (const card of this.#drafts.values()) card.element.remove();
    this.#drafts.clear();
  }

  clear() {
    for (const card of this.#views(ToolCard)) card.leave();
    this.#shown = [];
    this.#drafts.clear();
    this.element.replaceChildren();
  }

  /** The texts, without thoughts and tools. */
  get text() {
    return this.#views(Prose).map(({ flow }) => flow.text).join("\n\n").trim();
  }

  get thoughtsMs() {
    return this.#views(Thoughts).map(({ ms }) => ms ?? 0);
  }

  /** The connection was cut at what there is of the text. */
  mark() {
    const view = this.#shown.at(-1)?.view;
    if (view instanceof Prose) view.flow.mark();
  }

  /** The blocks of text that are complete and were not announced yet. @param {boolean} isOpen */
  unannounced(isOpen) {
    return this.#views(Prose).map(({ flow }) => flow.unannounced(isOpen)).join(" ").trim();
  }

  /** Show a part behind the others: the last of them grows no more. @param {Part} part */
  #begin(part) {
    this.#shown.at(-1)?.view.draw(false);
    const view = this.#made(part);
    const shown = { view, part: null };
    this.#shown.push(shown);
    const [next] = this.#drafts.values();
    if (!view.element.isConnected || view.element.nextElementSibling !== (next?.element ?? null)) {
      this.element.insertBefore(view.element, next?.element ?? null);
    }
    return shown;
  }

  /** @param {Part} part */
  #made(part) {
    if (part.type === "tool_call") {
      const card = this.#drafts.get(part.call_id) ?? new ToolCard(part.tool, this.onAnswer);
      this.#drafts.delete(part.call_id);
      return card;
    }
    return part.type === "text" ? new Prose() : new Thoughts(this.#knownMs[this.#views(Thoughts).length]);
  }

  /** @template {Prose | Thoughts | ToolCard} V @param {new (...given: any[]) => V} kind @returns {V[]} */
  #views(kind) {
    return this.#shown.flatMap(({ view }) => (view instanceof kind ? [view] : []));
  }
}
