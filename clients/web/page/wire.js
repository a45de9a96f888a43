/** The wire, as it is: every frame that comes or goes, kept for the drawer, and measured for the answers. */

import { eventStream } from "../chatserver.js";
import { el, part, size } from "./dom.js";
import { Meter } from "./meter.js";

/** @import { connect, Frame } from "../chatserver.js" */
/** @typedef {ReturnType<typeof connect>} Chat */

const FRAMES_LIMIT = 400;
const METERS_LIMIT = 50;
const SHOWN_CHARS_LIMIT = 2000;

const encoder = new TextEncoder();
const ARROWS = { in: "↓", out: "↑" };
const NAMES = { ws: "WebSocket", sse: "SSE" };

/** Measures every run of a chat. */
export class Wire {
  /** @type {Map<string, Meter>} */ #meters = new Map();
  #parse = eventStream(() => {});
  /** Since when there is no connection. @type {number | null} */ #lostAt = null;
  /** Of the stream over SSE. @type {string | undefined} */ #runId;

  /** @param {Chat} chat */
  constructor(chat) {
    chat.on("state", (state) => (this.#lostAt = state === "open" || state === "idle" ? null : (this.#lostAt ?? performance.now())));
    chat.on("frame", (frame) => (frame.way === "in" ? this.#read(frame) : this.#asked(frame)));
  }

  /** The meter of a run. @param {string} runId */
  meter(runId) {
    let meter = this.#meters.get(runId);
    if (!meter) {
      this.#meters.set(runId, (meter = new Meter()));
      const [oldest] = this.#meters.keys();
      if (this.#meters.size > METERS_LIMIT) this.#meters.delete(oldest);
    }
    return meter;
  }

  /** @param {Frame} frame */
  #read({ at, transport, text }) {
    /** @param {string} data */
    const take = (data) => {
      const event = JSON.parse(data);
      if (event.seq) this.meter(event.run_id).arrive(event, at, transport);
      else if (event.type === "accepted") this.meter(event.run_id).back(at);
    };
    if (transport === "ws") return take(text);
    if (this.#runId) this.meter(this.#runId).back(at);
    this.#take = take;
    this.#parse(encoder.encode(text));
  }

  /** @type {(data: string) => void} */ #take = () => {};

  /** @param {Frame} frame */
  #asked({ at, transport, text }) {
    if (transport === "sse") this.#parse = eventStream((data) => this.#take(data)); // Another stream begins.
    const { runId, after } = transport === "sse" ? read(text) : attached(text);
    this.#runId = runId;
    if (runId) this.meter(runId).resume(after, this.#lostAt ?? at, transport);
  }
}

/** What a request reads, if it reads a run that exists. @param {string} text */
function read(text) {
  const [, runId, after] = /^GET \/chat\/runs\/([\w-]+)\/events\nLast-Event-ID: (\d+)/.exec(text) ?? [];
  return { runId, after: Number(after) };
}

/** What a command attaches to. @param {string} text @returns {{ runId?: string, after: number }} */
function attached(text) {
  const { type, run_id: runId, after } = JSON.parse(text);
  return type === "attach" ? { runId, after } : { after };
}

/** The drawer: what went over the wire, newest at the end. It draws only while it is open. */
export class Drawer {
  /** @type {Frame[]} */ #frames = [];
  #drawn = 0;
  #sum = { frames: 0, in: 0, out: 0 };
  #isDue = false;
  #begin = 0;
  #list = part("frames");

  /** @param {Chat} chat */
  constructor(chat) {
    chat.on("frame", (frame) => this.#take(frame));
    part("open-wire").addEventListener("click", () => this.toggle());
    part("close-wire").addEventListener("click", () => this.toggle(false));
    part("clear-wire").addEventListener("click", () => this.#clear());
    this.#summarise();
  }

  /** @param {boolean} [isOpen] */
  toggle(isOpen = Boolean(part("wire").hidden)) {
    part("wire").hidden = !isOpen;
    part("open-wire").setAttribute("aria-expanded", String(isOpen));
    document.body.classList.toggle("with-wire", isOpen);
    if (isOpen) this.#draw();
    else if (part("wire").contains(document.activeElement) || !document.activeElement) part("open-wire").focus();
  }

  #clear() {
    this.#frames = [];
    this.#drawn = 0;
    this.#sum = { frames: 0, in: 0, out: 0 };
    this.#list.replaceChildren();
    this.#summarise();
  }

  /** @param {Frame} frame */
  #take(frame) {
    this.#begin ||= frame.at;
    this.#frames.push(frame);
    if (this.#frames.length > FRAMES_LIMIT) {
      this.#frames.shift();
      this.#drawn--;
    }
    this.#sum.frames++;
    this.#sum[frame.way] += encoder.encode(frame.text).length;
    if (this.#isDue || part("wire").hidden) return;
    this.#isDue = true;
    requestAnimationFrame(() => this.#draw());
  }

  #draw() {
    this.#isDue = false;
    if (part("wire").hidden) return;
    const { scrollHeight, scrollTop, clientHeight } = this.#list;
    const isAtEnd = scrollHeight - scrollTop - clientHeight < 40;
    const fresh = this.#frames.slice(Math.max(0, this.#drawn));
    this.#drawn = this.#frames.length;
    this.#list.append(...fresh.map((frame) => this.#row(frame)));
    while (this.#list.children.length > FRAMES_LIMIT) this.#list.firstChild?.remove();
    this.#summarise();
    if (isAtEnd) this.#list.scrollTop = this.#list.scrollHeight;
  }

  #summarise() {
    const { frames, in: read, out } = this.#sum;
    part("wire-sum").textContent = frames ? `${frames} frames · ${size(read)} in · ${size(out)} out` : "Nothing yet";
  }

  /** @param {Frame} frame */
  #row({ at, transport, way, text }) {
    const shown = text.length > SHOWN_CHARS_LIMIT ? `${text.slice(0, SHOWN_CHARS_LIMIT)}…` : text;
    const name = `${NAMES[transport]} ${way === "in" ? "received" : "sent"}`;
    return el(
      "li", { class: `frame ${transport} ${way}` },
      el("span", { class: "time" }, `${((at - this.#begin) / 1000).toFixed(3)}`),
      el("span", { class: "way", title: name }, el("span", { class: "unseen" }, name), ARROWS[way]),
      el("span", { class: "bytes" }, size(encoder.encode(text).length)),
      el("code", {}, ...lit(transport === "sse" && way === "in" ? shown.replaceAll("\n", "↵\n").trimEnd() : shown)),
    );
  }
}

/** A line may end behind a field. @param {string} text */
const foldable = (text) => text.split(/(?<=,)(?="|$)/).flatMap((piece, i) => (i ? [el("wbr"), piece] : [piece]));

/** What one reads of a frame stands out from what repeats; ids are begun only. @param {string} text */
function lit(text) {
  const parts = text.replace(/("(?:run_id|session_id|message_id|user_message_id|parent_id|regenerate|idempotency_key)":"[\w-]{6})[\w-]+/g, "$1…").split(/("(?:type|content|code|message)":"(?:[^"\\]|\\.)*"|"(?:first_seq|seq|after)":\d+)/);
  return parts.flatMap((part, i) => (i % 2 ? [el("b", {}, part)] : foldable(part)));
}
