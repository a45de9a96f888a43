/** The same answer over both transports, in turns: how long until the first event, how even the gaps, and is it noise? */

import { connect } from "../chatserver.js";
import { el, icon, said } from "./dom.js";
import { distributions } from "./plot.js";
import { difference, summary } from "./statistics.js";
import { whyNothingComes } from "./waits.js";
import { Wire } from "./wire.js";

/** @typedef {"sse" | "ws"} Via */
/** @typedef {{ via: Via, round: number, place: number, firstEventMs: number, firstTokenMs: number, gapsMs: number[] }} Sample `place`: first or second of its round */
/** @typedef {{ via: Via, round: number, error: string }} Failure */

const ROUNDS = 8;
const ROUNDS_LIMIT = 200;
const ANSWER = "Count to 50";
const WARM_UP = "Count to 2";
const NAMES = { sse: "SSE", ws: "WebSocket" };
/** @type {Via[]} */ const BOTH = ["sse", "ws"];
const MEASURES = [
  { key: "firstEvent", name: "Time to first event", about: "From asking to the first byte of the answer's log.", of: (/** @type {Sample} */ each) => [each.firstEventMs] },
  { key: "gaps", name: "Gaps between tokens", about: "From each token to the next, as the page got them.", of: (/** @type {Sample} */ each) => each.gapsMs },
];

export class Compare {
  isDemo = true;
  /** @type {Sample[]} */ #samples = [];
  /** @type {Failure[]} */ #failures = [];
  #wasHidden = false;
  #asked = "";
  /** @type {AbortController | null} */ #running = null;

  /** @param {HTMLElement} element */
  constructor(element) {
    this.element = element;
    this.answer = el("input", { type: "text", value: ANSWER, required: true, maxlength: 500 });
    this.rounds = el("input", { type: "number", value: ROUNDS, min: 2, max: ROUNDS_LIMIT, required: true });
    this.start = el("button", { class: "primary" }, "Run");
    this.halt = el("button", { type: "button", class: "plain", hidden: true, onclick: () => this.stop() }, "Stop");
    this.save = el("button", { type: "button", class: "plain", disabled: true, onclick: () => this.#export() }, icon("save"), "Export JSON");
    this.progress = el("progress", { max: 1, value: 0, hidden: true, "aria-label": "Progress" });
    this.status = el("p", { class: "status", role: "status" });
    this.why = el("p", { class: "why", role: "status" });
    this.results = el("div", { class: "results" });
    const form = el("form", { onsubmit: (/** @type {Event} */ event) => {
      event.preventDefault();
      void this.run();
    } },
      el("label", {}, el("span", {}, "Ask"), this.answer), el("label", { class: "few" }, el("span", {}, "Rounds"), this.rounds),
      el("div", { class: "row" }, this.start, this.halt, this.save));
    element.append(el("div", { class: "column" },
      el("p", { class: "lead" }, "The same question goes over SSE and over WebSocket, in turns: who begins changes with every round. Connections are warm, and the first answer over each is thrown away."),
      form, this.progress, this.status, this.why, this.results));
  }

  show() {
    this.answer.focus();
    this.status.textContent ||= this.isDemo ? "" : "This asks for two real answers in each round.";
    if (!this.#samples.length) this.#draw();
  }

  stop() {
    this.#running?.abort();
  }

  async run() {
    if (this.#running) return;
    const running = (this.#running = new AbortController());
    const rounds = this.rounds.valueAsNumber;
    this.#asked = this.answer.value.trim() || ANSWER;
    this.#samples = [];
    this.#failures = [];
    this.#wasHidden = document.hidden;
    this.#busy(true);
    this.#draw();
    const noteHidden = () => (this.#wasHidden ||= document.hidden);
    document.addEventListener("visibilitychange", noteHidden);
    const say = (/** @type {string} */ text) => (this.why.textContent = text);
    const lanes = { sse: new Lane("sse", say), ws: new Lane("ws", say) };
    try {
      this.status.textContent = "Warming up …";
      for (const via of BOTH) await lanes[via].measure(WARM_UP, running.signal);
      for (let round = 0; round < rounds && !running.signal.aborted; round++) {
        const order = round % 2 ? [...BOTH].reverse() : BOTH;
        for (const [place, via] of order.entries()) {
          this.status.textContent = `Round ${round + 1} of ${rounds}, ${NAMES[via]}`;
          await this.#sample(lanes[via], { via, round, place }, running.signal);
          this.progress.value = (round + (place + 1) / 2) / rounds;
        }
        this.#draw();
      }
    } catch (error) {
      if (!running.signal.aborted) this.#failures.push({ via: "ws", round: -1, error: said(error) });
    } finally {
      document.removeEventListener("visibilitychange", noteHidden);
      for (const via of BOTH) lanes[via].close();
      this.#running = null;
      this.#busy(false);
      this.#draw();
      this.#conclude(running.signal.aborted);
    }
  }

  /** @param {Lane} lane @param {{ via: Via, round: number, place: number }} which @param {AbortSignal} signal */
  async #sample(lane, which, signal) {
    try {
      const { hasWaited, ...measured } = await lane.measure(this.#asked, signal);
      if (hasWaited) throw new Error("it had to wait for the server");
      this.#samples.push({ ...which, ...measured });
    } catch (error) {
      if (!signal.aborted) this.#failures.push({ via: which.via, round: which.round, error: said(error) });
    }
  }

  /** @param {boolean} isBusy */
  #busy(isBusy) {
    this.start.hidden = isBusy;
    this.halt.hidden = !isBusy;
    this.progress.hidden = !isBusy;
    this.progress.value = 0;
    this.answer.disabled = this.rounds.disabled = isBusy;
  }

  /** @param {boolean} isStopped */
  #conclude(isStopped) {
    const failed = this.#failures.length ? ` ${this.#failures.length} failed: ${this.#failures[0].error}.` : "";
    const hidden = this.#wasHidden ? " The tab was hidden meanwhile, and browsers slow hidden tabs: do not trust these numbers." : "";
    this.status.textContent = `${isStopped ? "Stopped" : "Done"}: ${this.#samples.length} answers.${failed}${hidden}`;
    this.save.disabled = !this.#samples.length;
  }

  /** What was measured, for programs. */
  document() {
    return {
      asked: this.#asked,
      at: new Date().toISOString(),
      browser: navigator.userAgent,
      was_hidden: this.#wasHidden,
      method: "interleaved, the first of each round alternates; warm connections; one warm-up answer over each thrown away",
      samples: this.#samples,
      failures: this.#failures,
      results: Object.fromEntries(MEASURES.map(({ key, of }) => [key, this.#result(of)])),
    };
  }

  /** @param {(sample: Sample) => number[]} of */
  #result(of) {
    const runs = (/** @type {Via} */ via) => this.#samples.filter((each) => each.via === via).map(of).filter((values) => values.length);
    const [sse, ws] = [runs("sse"), runs("ws")];
    if (sse.length < 2 || ws.length < 2) return null;
    return { sse: summary(sse.flat()), ws: summary(ws.flat()), difference: difference(sse, ws) };
  }

  #draw() {
    if (!this.#samples.length) {
      const text = this.#running ? "" : "Nothing measured yet. A run with eight rounds takes about twenty seconds.";
      return this.results.replaceChildren(el("p", { class: "nothing" }, text));
    }
    this.results.replaceChildren(...MEASURES.map((measure) => this.#card(measure)));
  }

  /** @param {typeof MEASURES[number]} measure */
  #card({ key, name, about, of }) {
    const result = this.#result(of);
    const sets = BOTH.map((via) => ({ name: via, values: this.#samples.filter((each) => each.via === via).flatMap(of) }));
    const head = [el("h2", {}, name), el("p", { class: "about" }, about)];
    if (!result) return el("section", { class: "measure", "data-measure": key }, ...head, el("p", { class: "nothing" }, "Drawn after two rounds."));
    const { value, low, high, isMeasurable } = result.difference;
    const verdict = isMeasurable ? `${NAMES[value < 0 ? "ws" : "sse"]} is faster by ${ms(Math.abs(value))}` : "No measurable difference";
    const interval = `WebSocket − SSE, medians: ${signed(value)}, 95 % interval ${signed(low)} to ${signed(high)}`;
    const row = (/** @type {Via} */ via) => el("tr", {}, el("th", { scope: "row" }, el("i", { class: `dot ${via}` }), NAMES[via]),
      el("td", {}, ms(result[via].median)), el("td", {}, ms(result[via].p99)), el("td", {}, ms(result[via].max)), el("td", {}, String(result[via].count)));
    const few = Math.min(result.sse.count, result.ws.count) < 100;
    return el("section", { class: "measure", "data-measure": key }, ...head,
      el("p", { class: "verdict", "data-measurable": String(isMeasurable) }, el("strong", {}, verdict), el("span", {}, interval)),
      distributions(sets, `${name}: SSE median ${ms(result.sse.median)}, WebSocket median ${ms(result.ws.median)}`),
      el("p", { class: "unit" }, "milliseconds; the lines are the medians, each tick below is one value"),
      el("table", {},
        el("thead", {}, el("tr", {}, el("td", {}), ...["median", "p99", "longest", "values"].map((title) => el("th", { scope: "col" }, title)))),
        el("tbody", {}, row("sse"), row("ws"))),
      few && el("p", { class: "small" }, "Of fewer than 100 values the 99th percentile is little else than the longest."));
  }

  #export() {
    const text = JSON.stringify(this.document(), null, 2);
    const href = URL.createObjectURL(new Blob([text], { type: "application/json" }));
    el("a", { href, download: "chatserver-compare.json" }).click();
    setTimeout(() => URL.revokeObjectURL(href), 10_000);
  }
}

/** A client of its own, that knows one transport. */
class Lane {
  /** @type {ReturnType<ReturnType<typeof connect>["send"]> | undefined} */ #run;
  #hasWaited = false;

  /** @param {Via} via @param {(text: string) => void} say why nothing comes; empty: it comes */
  constructor(via, say) {
    this.chat = connect("", { transport: via });
    this.wire = new Wire(this.chat);
    this.chat.on("state", (state) => {
      this.#hasWaited ||= Boolean(this.#run?.waits);
      say(whyNothingComes(state, this.#run?.waits ?? null));
    });
  }

  /** @param {string} text @param {AbortSignal} signal */
  async measure(text, signal) {
    signal.throwIfAborted();
    const sentAt = performance.now();
    const run = this.chat.send(text, { signal });
    this.#run = run;
    this.#hasWaited = false;
    try {
      for await (const event of run) if (event.type === "error") throw new Error(event.message);
    } finally {
      if (!run.end) await run.cancel().catch(() => {});
      // It was a measurement, no chat: nothing of it is kept.
      if (run.sessionId) await this.chat.request(`/chat/sessions/${run.sessionId}`, { method: "DELETE" }).catch(() => {});
    }
    const meter = this.wire.meter(run.id ?? "");
    return {
      hasWaited: this.#hasWaited,
      firstEventMs: (meter.firstEventAt ?? NaN) - sentAt,
      firstTokenMs: (meter.firstTokenAt ?? NaN) - sentAt,
      gapsMs: meter.gaps.map((gap) => gap.ms),
    };
  }

  close() {
    this.chat.close();
  }
}

/** @param {number} value */
const ms = (value) => `${value.toFixed(value < 10 ? 2 : 1)} ms`;
/** @param {number} value */
const signed = (value) => `${value < 0 ? "−" : "+"}${ms(Math.abs(value))}`;
