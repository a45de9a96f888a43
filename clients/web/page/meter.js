/** When the events of an answer arrived, and over what: time to first token, pace, gaps. No DOM. */

/** @typedef {"ws" | "sse"} Via */
/** @typedef {{ ms: number, via: Via, isResumed: boolean }} Gap `isResumed`: a connection was lost or left within it */

export class Meter {
  /** When the message was sent; null: somebody else sent it. @type {number | null} */ sentAt = null;
  /** What came later than this is live; before, it is read from the log. */ liveAfter = 0;
  /** @type {number | null} */ firstEventAt = null;
  /** @type {number | null} */ firstTokenAt = null;
  /** @type {Gap[]} */ gaps = [];
  tokens = 0;
  /** @type {Set<Via>} */ vias = new Set();
  resumes = 0;

  #seq = 0;
  /** @type {number | null} */ #before = null;
  #isResumed = false;

  /** @param {{ type: string, seq: number }} event @param {number} at @param {Via} via */
  arrive({ type, seq }, at, via) {
    if (seq <= this.#seq) return;
    const isLive = seq > this.liveAfter;
    this.#seq = seq;
    this.vias.add(via);
    this.firstEventAt ??= at;
    if (type === "snapshot") this.#before = null;
    if (type !== "token") return;
    if (isLive && this.#before !== null) this.gaps.push({ ms: at - this.#before, via, isResumed: this.#isResumed });
    this.#isResumed = false;
    this.firstTokenAt ??= at;
    this.#before = isLive ? at : null;
    this.tokens++;
  }

  /** The run is asked for again, from a cursor. */
  resume() {
    if (this.firstEventAt === null) return;
    this.#isResumed = true;
    this.resumes++;
  }

  get firstTokenMs() {
    return this.sentAt === null || this.firstTokenAt === null ? null : this.firstTokenAt - this.sentAt;
  }

  get tokensPerSecond() {
    const total = this.gaps.reduce((sum, gap) => sum + gap.ms, 0);
    return this.gaps.length > 1 && total > 0 ? (1000 * this.gaps.length) / total : null;
  }
}
