/** When the events of an answer arrived, and over what: time to first token, pace, gaps, cuts. No DOM. */

import { quantile } from "./statistics.js";

/** @typedef {"ws" | "sse"} Via */
/** @typedef {{ ms: number, via: Via, isResumed: boolean, tokens: number }} Gap before so many tokens, that came in one event; `isResumed`: a connection was lost or left within it */
/**
 * @typedef {object} Measured what is shown of an answer, and kept
 * @property {Via[]} vias
 * @property {number | null} firstTokenMs
 * @property {number | null} tokensPerSecond
 * @property {Gap[]} bars the gaps, the longest of each bin where there are too many
 * @property {number} medianMs
 * @property {number} p99Ms
 * @property {number} cuts
 * @property {number | null} backMs the longest time from a loss to the server's word that the run goes on
 * @property {number} lost events that were asked for and never came
 * @property {number} twice events that came although they had not been asked for
 * @property {number[]} [thoughtsMs] how long each thought took
 */

const BARS_LIMIT = 66;

export class Meter {
  /** When the message was sent; null: somebody else sent it. @type {number | null} */ sentAt = null;
  /** What came later than this is live; before, it is read from the log. */ liveAfter = 0;
  /** @type {number | null} */ firstEventAt = null;
  /** @type {number | null} */ firstTokenAt = null;
  /** @type {Gap[]} */ gaps = [];
  /** @type {Set<Via>} */ vias = new Set();

  /** The newest event that was measured. */ #seq = 0;
  /** The newest event that came over the connection of now. */ #cursor = 0;
  /** @type {number | null} */ #before = null;
  /** @type {number | null} */ #lostAt = null;
  /** @type {Via | null} */ #via = null;
  #isResumed = false;
  #cuts = 0;
  #lost = 0;
  #twice = 0;
  /** @type {number | null} */ #backMs = null;

  /** @param {{ type: string, seq: number, first_seq?: number | undefined }} event `first_seq`: it stands for all from there @param {number} at @param {Via} via */
  arrive({ type, seq, first_seq: first = seq }, at, via) {
    this.#count(type, first, seq);
    if (seq <= this.#seq) return;
    const isLive = seq > this.liveAfter;
    this.#seq = seq;
    this.#via = via;
    this.vias.add(via);
    this.firstEventAt ??= at;
    if (type === "snapshot" || type === "tool_result") this.#before = null; // The wait was for a tool, or for somebody.
    if (type !== "token") return;
    if (isLive && this.#before !== null) this.gaps.push({ ms: at - this.#before, via, isResumed: this.#isResumed, tokens: seq - first + 1 });
    this.#isResumed = false;
    this.firstTokenAt ??= at;
    this.#before = isLive ? at : null;
  }

  /** @param {string} type @param {number} first @param {number} seq */
  #count(type, first, seq) {
    this.#twice += Math.max(0, Math.min(seq, this.#cursor) - first + 1);
    if (type !== "snapshot") this.#lost += Math.max(0, first - this.#cursor - 1);
    this.#cursor = Math.max(this.#cursor, seq);
  }

  /** The run is asked for again, from a cursor. @param {number} after @param {number} lostAt @param {Via} via */
  resume(after, lostAt, via) {
    this.#cursor = after;
    if (this.firstEventAt === null || after === 0) return; // From the start it is another reading, no cut.
    this.#isResumed = true;
    if (via === this.#via) this.#cuts++; // Over the other transport it was a change, not a cut.
    this.#lostAt = via === this.#via ? lostAt : null;
  }

  /** The server has said that the run goes on. @param {number} at */
  back(at) {
    if (this.#lostAt !== null) this.#backMs = Math.max(this.#backMs ?? 0, at - this.#lostAt);
    this.#lostAt = null;
  }

  get firstTokenMs() {
    return this.sentAt === null || this.firstTokenAt === null ? null : this.firstTokenAt - this.sentAt;
  }

  get tokensPerSecond() {
    const total = this.gaps.reduce((sum, gap) => sum + gap.ms, 0);
    const tokens = this.gaps.reduce((sum, gap) => sum + gap.tokens, 0);
    return this.gaps.length > 1 && total > 0 ? (1000 * tokens) / total : null;
  }

  /** @returns {Measured} */
  get measured() {
    const { firstTokenMs, tokensPerSecond, gaps } = this;
    const steady = gaps.filter((gap) => !gap.isResumed).map((gap) => gap.ms).sort((a, b) => a - b);
    const [medianMs, p99Ms] = [0.5, 0.99].map((q) => quantile(steady, q) || 0);
    const [cuts, backMs, lost, twice] = [this.#cuts, this.#backMs, this.#lost, this.#twice];
    return { vias: [...this.vias], firstTokenMs, tokensPerSecond, bars: bars(gaps), medianMs, p99Ms, cuts, backMs, lost, twice };
  }
}

/** @param {Gap[]} gaps */
function bars(gaps) {
  const bin = Math.ceil(gaps.length / BARS_LIMIT) || 1;
  /** @type {Gap[]} */ const found = [];
  for (let i = 0; i < gaps.length; i += bin) {
    const part = gaps.slice(i, i + bin);
    const longest = part.reduce((a, b) => (b.ms > a.ms ? b : a));
    found.push({ ...longest, isResumed: part.some((gap) => gap.isResumed) });
  }
  return found;
}
