/** The run that writes the answer which is looked at: read to its end, through a wait, a closed door, a stop. */

import { announce, said } from "./dom.js";
import { whyNothingComes } from "./waits.js";

/** @import { AnswerView } from "./answer.js" */
/** @import { Answer } from "../chatserver.js" */
/** @import { StartEvent } from "../events.js" */
/** @import { Chat, Wire } from "./wire.js" */
/** @typedef {ReturnType<Chat["send"]>} Run */

export class Reading {
  /** Whether an answer is being written. */ isGoing = false;
  /** @type {Run | null} */ #run = null;
  /** @type {AnswerView | null} */ #view = null;
  /** Goes on with what ended at a closed door. @type {(() => void) | null} */ #goOn = null;
  #isStopping = false;
  #isConnected = false;

  /**
   * @param {Chat} chat @param {Wire} wire
   * @param {{ onBegan: (event: StartEvent) => void, onRefused: (error: any, view: AnswerView) => void, onWithdrawn: () => void,
   *           onSignedOut: () => void, onChange: () => void, onNews: () => void }} hooks
   * `onBegan`: the server has taken what was asked; `onWithdrawn`: it has not, and will not be asked again; `onNews`: other pages of this user may want to know
   */
  constructor(chat, wire, hooks) {
    this.chat = chat;
    this.wire = wire;
    this.hooks = hooks;
  }

  /** Show a run from where it is to its end. @param {() => Run} begin @param {AnswerView} view @param {number | null} sentAt null: it was not asked for here */
  async follow(begin, view, sentAt) {
    const run = begin();
    this.#run = run;
    this.#view = view;
    this.#goOn = null;
    this.#isStopping = false;
    this.isGoing = true;
    this.showState();
    this.hooks.onChange();
    try {
      for await (const event of run) {
        view.meter ??= this.wire.meter(event.run_id);
        if (event.type === "start") this.#began(event, view, sentAt);
        view.apply(event, run.parts);
      }
      if (this.#run === run && view.isOpen) view.leave();
    } catch (error) {
      if (this.#run !== run) return;
      if (/** @type {any} */ (error).status === 401) return this.#shut(run, begin, view, sentAt);
      this.hooks.onRefused(error, view);
    }
    if (this.#run === run) this.#over(sentAt !== null);
  }

  /** @param {StartEvent} event @param {AnswerView} view @param {number | null} sentAt */
  #began(event, view, sentAt) {
    if (view.meter) view.meter.sentAt ??= sentAt;
    this.hooks.onBegan(event);
    if (sentAt !== null) this.hooks.onNews();
  }

  /** @param {Run} run @param {() => Run} begin @param {AnswerView} view @param {number | null} sentAt */
  #shut({ id, seq, parts }, begin, view, sentAt) {
    this.#goOn = () => void this.follow(id ? () => this.chat.attach(id, { after: seq, parts }) : begin, view, sentAt);
    view.wait("You are signed out. It goes on when you have signed in.");
    this.hooks.onSignedOut();
  }

  /** @param {boolean} isOwn */
  #over(isOwn) {
    this.#run = this.#view = null;
    this.isGoing = false;
    this.hooks.onChange();
    if (isOwn) this.hooks.onNews();
  }

  /** The connection has changed: does it keep the answer waiting? */
  showState() {
    if (!this.#view || this.#goOn) return;
    if (this.#isConnected && !["open", "idle"].includes(this.chat.state)) this.#view.mark();
    this.#isConnected = this.chat.state === "open";
    const why = whyNothingComes(this.chat.state, this.#run?.waits ?? null);
    this.#view.wait(why && this.#isStopping ? "It will stop as soon as the server can be reached." : why);
  }

  /** The door is open again. @returns {boolean} whether something goes on */
  signedIn() {
    this.#goOn?.();
    return this.#goOn !== null || this.isGoing;
  }

  /** End the answer that is being written. */
  async stop() {
    const run = this.#run;
    if (!run || this.#goOn) return;
    if (run.id === null && run.waits?.reason.status) {
      this.hooks.onWithdrawn(); // The server has refused it so far: there is nothing to stop.
      return run.detach();
    }
    announce("Stopping");
    this.#isStopping = true;
    this.showState();
    await run.cancel().catch((error) => this.#view?.fail({ code: error.code ?? "lost", message: said(error) }));
  }

  /** Answer a call of the answer that is being written. @param {string} callId @param {Answer} answer */
  async answer(callId, answer) {
    if (!this.#run) throw new Error("this answer is not read any more");
    await this.#run.answer(callId, answer);
  }

  /** Read it no more; it goes on. */
  leave() {
    const run = this.#run;
    this.#view?.leave();
    this.#run = this.#view = this.#goOn = null;
    this.isGoing = false;
    run?.detach();
    this.hooks.onChange();
  }
}
