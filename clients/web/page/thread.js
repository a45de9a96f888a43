/** The conversation that is open: its messages, and the run that is writing the newest one. */

import { AnswerView } from "./answer.js";
import { announce, el, part } from "./dom.js";
import { questionView } from "./question.js";

/** @import { Chat, Wire } from "./wire.js" */
/** @typedef {ReturnType<Chat["send"]>} Run */
/** @typedef {{ message_id: string, parent_id: string | null, role: string, content: string, reasoning: string, tool_calls: any[], status: string, run_id: string | null, usage: any }} Message */
/** @typedef {{ session_id: string, title: string, updated_at: string, active_run_id: string | null, messages: Message[] }} Session */

const NEAR_END_PX = 80;

export class Thread {
  /** @type {string | null} */ sessionId = null;
  /** @type {Run | null} */ #run = null;
  #isSending = false;
  /** The newest message that is shown. @type {string | null} */ #newest = null;
  #follows = true;
  #opening = 0;
  #messages = part("messages");
  #scroller = part("scroller");

  /**
   * @param {Chat} chat @param {Wire} wire
   * @param {{ onSession: (id: string) => void, onChange: () => void, onTitle: (title: string) => void }} hooks
   */
  constructor(chat, wire, hooks) {
    this.chat = chat;
    this.wire = wire;
    this.hooks = hooks;
    this.#scroller.addEventListener("scroll", () => this.#scrolled(), { passive: true });
    part("to-end").addEventListener("click", () => this.#toEnd());
  }

  /** Whether an answer is being written here. */
  get isBusy() {
    return this.#isSending;
  }

  /** Show a session, or an empty one. @param {string | null} sessionId */
  async open(sessionId) {
    if (sessionId !== null && sessionId === this.sessionId) return;
    this.#leave();
    this.sessionId = sessionId;
    this.#newest = null;
    this.#messages.replaceChildren();
    this.#welcome(sessionId === null);
    this.hooks.onTitle("New chat");
    if (sessionId !== null) await this.#load();
  }

  /** Another tab, another device may have gone on here. */
  async refresh() {
    if (this.sessionId !== null && !this.#isSending) await this.#load();
  }

  async #load() {
    const opening = ++this.#opening;
    /** @type {Session} */ let session;
    try {
      session = await (await this.chat.request(`/chat/sessions/${this.sessionId}`)).json();
    } catch (error) {
      if (opening === this.#opening && !this.#messages.childElementCount) this.#missing(error);
      return;
    }
    if (opening !== this.#opening || this.#isSending) return;
    this.hooks.onTitle(session.title || "New chat");
    const newest = session.messages.at(-1)?.message_id ?? null;
    if (newest === this.#newest && !session.active_run_id) return; // What was measured here is known only here.
    this.#newest = newest;
    this.#messages.replaceChildren();
    for (const message of session.messages) this.#stored(message, session);
    this.#toEnd();
    if (session.active_run_id) await this.#join(session.active_run_id);
    else await this.#explain(session.messages.at(-1));
  }

  /** @param {unknown} error */
  #missing(error) {
    const isGone = /** @type {any} */ (error).status === 404;
    const text = isGone ? "This chat is not here any more." : `The chat cannot be read: ${said(error)}.`;
    this.#messages.replaceChildren(el("div", { class: "missing" }, el("p", {}, text),
      isGone ? el("a", { href: "#/", class: "plain" }, "Begin a new one") : el("button", { type: "button", class: "plain", onclick: () => void this.#load() }, "Try again")));
  }

  /** @param {Message} message @param {Session} session */
  #stored(message, session) {
    if (message.role === "user") return this.#question(message.content, message.message_id);
    if (message.run_id !== null && message.run_id === session.active_run_id) return;
    this.#answer(message.parent_id).show(message);
  }

  /** Why the newest answer is not whole. @param {Message | undefined} message */
  async #explain(message) {
    if (message?.role !== "assistant" || message.status !== "partial" || !message.run_id) return;
    const view = this.#last;
    try {
      const run = await (await this.chat.request(`/chat/runs/${message.run_id}`)).json();
      if (run.error) view?.fail(run.error);
    } catch {
      // It says "incomplete" already.
    }
  }

  /** Read a run that is going. @param {string} runId */
  async #join(runId) {
    const opening = this.#opening;
    const parent = this.#messages.querySelector(".question:last-of-type")?.getAttribute("data-id") ?? null;
    const record = await this.chat.request(`/chat/runs/${runId}`).then((response) => response.json(), () => null);
    if (opening !== this.#opening) return;
    this.wire.meter(runId).liveAfter = record?.last_seq ?? 0;
    await this.#follow(this.chat.attach(runId), this.#answer(parent), null);
  }

  /** @param {string} text */
  async send(text) {
    if (this.#isSending) return;
    if (this.sessionId === null) {
      this.sessionId = newId();
      this.hooks.onSession(this.sessionId);
    }
    this.#welcome(false);
    const question = this.#question(text, null);
    await this.#ask(text, {}, question);
  }

  /** Answer a message again, or its new text. @param {HTMLElement} question @param {string} [text] */
  async again(question, text) {
    if (this.#isSending) return;
    const { id } = question.dataset;
    while (question.nextSibling) question.nextSibling.remove();
    const old = question.dataset.text ?? "";
    if (!id) {
      question.remove(); // It never got to the server.
      return this.#ask(text ?? old, {}, this.#question(text ?? old, null));
    }
    const shown = text === undefined ? question : this.#question(text, null);
    if (shown !== question) question.replaceWith(shown);
    await this.#ask(text ?? null, { regenerate: id }, shown);
  }

  /** @param {string | null} text @param {{ regenerate?: string }} fields @param {HTMLElement} question */
  async #ask(text, fields, question) {
    const view = this.#answer(null, question);
    this.#opening++;
    const sentAt = performance.now();
    const request = { sessionId: this.sessionId ?? undefined, onDisconnect: /** @type {const} */ ("continue"), ...fields };
    this.#toEnd();
    await this.#follow(this.chat.send(text, request), view, sentAt, question);
  }

  /** Show a run from where it is to its end. @param {Run} run @param {AnswerView} view @param {number | null} sentAt @param {HTMLElement} [question] */
  async #follow(run, view, sentAt, question) {
    this.#run = run;
    this.#isSending = true;
    this.#live = view;
    this.hooks.onChange();
    try {
      for await (const event of run) {
        if (event.type === "start") {
          if (question) question.dataset.id = event.user_message_id;
          this.#newest = event.message_id;
          view.meter = this.wire.meter(event.run_id);
          view.meter.sentAt ??= sentAt;
          if (sentAt !== null) this.hooks.onChange();
        }
        view.meter ??= this.wire.meter(event.run_id);
        view.apply(event);
      }
      if (this.#run === run && view.isOpen) view.leave();
    } catch (error) {
      if (this.#run === run) this.#refused(error, view);
    } finally {
      if (this.#run === run) {
        this.#run = this.#live = null;
        this.#isSending = false;
        this.hooks.onChange();
      }
    }
  }

  /** @param {unknown} error @param {AnswerView} view */
  #refused(error, view) {
    const { code = "lost", retryAfter, isFinal } = /** @type {any} */ (error);
    view.fail({ code, message: said(error), retryable: !isFinal, retry_after: retryAfter ?? null });
    if (code === "run_active") queueMicrotask(() => void this.refresh());
  }

  /** End the answer that is being written. */
  async stop() {
    const run = this.#run;
    if (!run) return;
    announce("Stopping");
    await run.cancel().catch((error) => this.#live?.fail({ code: error.code ?? "lost", message: said(error) }));
  }

  /** @type {AnswerView | null} */ #live = null;
  /** @type {AnswerView | null} */ #last = null;

  #leave() {
    const run = this.#run;
    this.#run = null;
    this.#opening++;
    this.#isSending = false;
    this.#live?.leave();
    this.#live = null;
    run?.detach();
    this.hooks.onChange();
  }

  /** @param {string | null} parent @param {HTMLElement} [asked] */
  #answer(parent, asked) {
    const question = () => asked ?? (parent && this.#messages.querySelector(`[data-id="${CSS.escape(parent)}"]`));
    const view = new AnswerView({
      onRetry: () => {
        const found = question();
        if (found instanceof HTMLElement) void this.again(found);
      },
      onApprove: async (callId, approve) => void (await this.#run?.answer(callId, { approve })),
      onDrawn: () => this.#grew(),
    });
    this.#last = view;
    this.#messages.append(view.element);
    return view;
  }

  /** @param {string} text @param {string | null} id */
  #question(text, id) {
    const question = questionView(text, id, () => !this.#isSending, (found, now) => void this.again(found, now));
    this.#messages.append(question);
    return question;
  }

  /** Edit the newest message. */
  editLast() {
    const questions = this.#messages.querySelectorAll(".question");
    /** @type {HTMLElement | null | undefined} */ (questions[questions.length - 1]?.querySelector(".edit"))?.click();
  }

  /** @param {boolean} isNew */
  #welcome(isNew) {
    part("welcome").hidden = !isNew;
  }

  #scrolled() {
    const { scrollHeight, scrollTop, clientHeight } = this.#scroller;
    this.#follows = scrollHeight - scrollTop - clientHeight < NEAR_END_PX;
    if (this.#follows) part("to-end").hidden = true;
  }

  #grew() {
    if (this.#follows) this.#scroller.scrollTop = this.#scroller.scrollHeight;
    else if (this.#isSending) part("to-end").hidden = false;
  }

  #toEnd() {
    this.#follows = true;
    part("to-end").hidden = true;
    this.#scroller.scrollTop = this.#scroller.scrollHeight;
  }
}

/** @param {unknown} error */
const said = (error) => (error instanceof Error ? error.message : String(error));

/** An id of 128 random bits. `randomUUID` is for secure pages only. */
function newId() {
  return Array.from(crypto.getRandomValues(new Uint8Array(16)), (byte) => byte.toString(16).padStart(2, "0")).join("");
}
