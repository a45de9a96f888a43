/** The conversation that is open: the branch of its messages that is shown, and what is asked behind it. */

import { AnswerView } from "./answer.js";
import { attachmentsOf, messageOf } from "./attachments.js";
import { announce, el, part, said } from "./dom.js";
import { End } from "./end.js";
import { forgetCuts } from "./flow.js";
import { History } from "./history.js";
import { showPager } from "./pager.js";
import { QuestionView } from "./question.js";
import { Reading } from "./reading.js";

/** @import { MessageResource } from "../resources.js" */
/** @import { Attachment } from "./attachments.js" */
/** @import { Place } from "./history.js" */
/** @import { Chat, Wire } from "./wire.js" */
/** @typedef {{ after: string | null, question: QuestionView | null, answer: AnswerView, text: string | null }} Asked what the server has not taken yet: a question and its answer, or a known question's other answer, behind a message */

export class Thread {
  /** @type {History | null} */ #history = null;
  /** @type {Map<string, QuestionView | AnswerView>} */ #views = new Map();
  /** @type {Asked | null} */ #asked = null;
  #opening = 0;
  #messages = part("messages");
  #end = new End();
  /** What the model may ask of this page. @type {string[]} */ tools = [];

  /**
   * @param {Chat} chat @param {Wire} wire
   * @param {{ onSession: (id: string) => void, onTitle: (title: string) => void, onTaken: () => void, onRefused: (text: string, attachments: readonly Attachment[], why: string) => void,
   *           onChange: () => void, onNews: () => void, onSignedOut: () => void }} hooks
   * `onTaken`: the server has the message; `onRefused`: it has not, and will not
   */
  constructor(chat, wire, hooks) {
    this.chat = chat;
    this.wire = wire;
    this.hooks = hooks;
    this.reading = new Reading(chat, wire, {
      ...hooks,
      onBegan: (event) => this.#began(event),
      onRefused: (error, view) => this.#refused(error, view),
      onWithdrawn: () => this.#giveBack("It was not sent."),
    });
  }

  get sessionId() {
    return this.#history?.sessionId ?? null;
  }

  /** Whether an answer is being written here. */
  get isBusy() {
    return this.reading.isGoing;
  }

  /** Show a session, or an empty one. @param {string | null} sessionId */
  async open(sessionId) {
    if (sessionId !== null && sessionId === this.sessionId) return;
    this.#opening++;
    this.reading.leave();
    this.#history = sessionId === null ? null : new History(this.chat, sessionId);
    this.#views.clear();
    forgetCuts();
    this.#asked = null;
    this.#messages.replaceChildren();
    part("welcome").hidden = sessionId !== null;
    this.hooks.onTitle("New chat");
    if (sessionId !== null) await this.#load();
  }

  /** Another tab, another device may have gone on here. */
  async refresh() {
    if (this.sessionId !== null && !this.reading.isGoing) await this.#load();
  }

  async #load() {
    const opening = ++this.#opening;
    const isWanted = () => opening === this.#opening && !this.reading.isGoing;
    const history = /** @type {History} */ (this.#history);
    const { leaf } = history.branches;
    try {
      const found = await history.load(isWanted);
      if (!found) return;
      this.hooks.onTitle(found.title || "New chat");
      this.#draw();
      if (leaf !== history.branches.leaf) this.#end.show();
      if (found.active?.run_id) await this.#join(found.active.run_id, /** @type {AnswerView} */ (this.#view(found.active)));
    } catch (error) {
      if (isWanted()) this.#unread(error);
    }
  }

  async #older() {
    const { branches } = /** @type {History} */ (this.#history);
    await this.#history?.older().catch((error) => announce(`They cannot be read: ${said(error)}`));
    if (branches === this.#history?.branches) this.#end.keep(() => this.#draw());
  }

  /** @param {unknown} error */
  #unread(error) {
    const { status } = /** @type {any} */ (error);
    if (status === 401) return this.hooks.onSignedOut();
    if (this.#messages.childElementCount) return;
    const again = el("button", { type: "button", class: "plain", onclick: () => void this.#load() }, "Try again");
    const isGone = status === 404;
    const text = isGone ? "This chat is not here any more. What you write begins a new one." : `The chat cannot be read: ${said(error)}.`;
    this.#messages.replaceChildren(el("div", { class: "missing" }, el("p", {}, text), isGone ? el("a", { href: "#/", class: "plain" }, "Begin a new one") : again));
    if (isGone) this.#history = null;
  }

  /** Bring the page to what is to be shown; what stays is not touched. */
  #draw() {
    const { branches } = /** @type {History} */ (this.#history);
    const { path } = branches;
    const asked = this.#asked;
    const shown = asked ? path.slice(0, 1 + path.findIndex((each) => each.message_id === asked.after)) : path;
    const views = shown.map((each) => this.#view(each));
    const earlier = path[0] && path[0].parent_id !== null && el("button", { type: "button", class: "quiet earlier", onclick: () => void this.#older() }, "Earlier messages");
    const elements = [...(earlier ? [earlier] : []), ...views.map((view) => view.element)];
    if (asked) elements.push(...(asked.question ? [asked.question.element] : []), asked.answer.element);
    let same = 0;
    while (same < elements.length && this.#messages.children[same] === elements[same]) same++;
    while (this.#messages.children.length > same) this.#messages.lastChild?.remove();
    this.#messages.append(...elements.slice(same));
    for (const [i, { message_id: id, role }] of shown.entries()) {
      showPager(views[i].corner, role === "user" ? "message" : "answer", branches.versions(id), id, (other) => this.#turn(other));
    }
  }

  /** Show another version of a message, and what followed it last. @param {string} id @returns {HTMLElement | undefined} */
  #turn(id) {
    if (this.reading.isGoing) return;
    this.#asked = null;
    this.#history?.show(id);
    this.#draw();
    return this.#views.get(id)?.corner;
  }

  /** @param {Place} place */
  #view(place) {
    const message = /** @type {MessageResource} */ (place);
    const { message_id: id, role } = message;
    const known = this.#views.get(id);
    if (known && !(known instanceof AnswerView && known.isLeft)) return known;
    const view = role === "user" ? this.#question(message.content, attachmentsOf(message), id) : this.#answer(() => this.#views.get(message.parent_id ?? ""));
    if (view instanceof AnswerView && message.status !== "streaming") {
      view.show(message);
      if (message.status === "partial" && !message.finish_reason) void this.#explain(message, view);
    }
    this.#views.set(id, view);
    return view;
  }

  /** Why an answer is not whole. @param {MessageResource} message @param {AnswerView} view */
  async #explain({ run_id: runId }, view) {
    const run = await this.chat.request(`/chat/runs/${runId}`).then((response) => response.json(), () => null);
    if (run?.error) view.fail(run.error); // Otherwise it says "incomplete" already.
  }

  /** Read a run that is going. @param {string} runId @param {AnswerView} view */
  async #join(runId, view) {
    const opening = this.#opening;
    const run = await this.chat.request(`/chat/runs/${runId}`).then((response) => response.json(), () => null);
    if (opening !== this.#opening) return;
    this.wire.meter(runId).liveAfter = run?.last_seq ?? 0;
    await this.reading.follow(() => this.chat.attach(runId), view, null);
  }

  /** Say something behind what is shown. @param {string} text @param {readonly Attachment[]} [attachments] */
  async send(text, attachments = []) {
    if (this.reading.isGoing) return;
    if (!this.#history) {
      this.#history = new History(this.chat, newId());
      this.#messages.replaceChildren();
      this.hooks.onSession(this.#history.sessionId);
    }
    part("welcome").hidden = true;
    const { leaf } = this.#history.branches;
    await this.#ask(leaf, this.#question(text, attachments, null), text, leaf === null ? {} : { parentId: leaf });
  }

  /** Answer a message again, or its new text: beside what there is. @param {QuestionView} question @param {string} [text] */
  async again(question, text) {
    if (this.reading.isGoing) return;
    const { id } = question;
    const shown = text === undefined ? null : this.#question(text, question.attachments, null);
    if (id !== null) return this.#ask(shown ? this.#parentOf(id) : id, shown, text ?? null, { regenerate: id });
    const after = this.#asked?.after ?? null; // It never got to the server.
    await this.#ask(after, shown ?? question, text ?? question.text, after === null ? {} : { parentId: after });
  }

  /** @param {string} id */
  #parentOf(id) {
    return /** @type {History} */ (this.#history).branches.get(id).parent_id;
  }

  /** @param {string | null} after @param {QuestionView | null} question @param {string | null} text @param {{ regenerate?: string, parentId?: string }} fields */
  async #ask(after, question, text, fields) {
    const answer = this.#answer(() => question ?? this.#views.get(after ?? ""));
    this.#asked = { after, question, answer, text };
    this.#opening++;
    this.#draw();
    this.#end.show();
    const message = text === null ? null : messageOf(text, question?.attachments ?? []);
    const request = { sessionId: this.sessionId ?? undefined, idempotencyKey: newId(), onDisconnect: /** @type {const} */ ("continue"), tools: this.tools, ...fields };
    await this.reading.follow(() => this.chat.send(message, request), answer, performance.now());
  }

  /** The server has taken what was asked. @param {{ message_id: string, user_message_id: string }} event */
  #began(event) {
    if (!this.#asked) return;
    const { after, question, answer } = this.#asked;
    const history = /** @type {History} */ (this.#history);
    this.#asked = null;
    if (question) {
      question.id = event.user_message_id;
      this.#views.set(question.id, question);
      history.branches.load([{ message_id: question.id, parent_id: after, role: "user" }]);
    }
    this.#views.set(event.message_id, answer);
    history.branches.load([{ message_id: event.message_id, parent_id: event.user_message_id, role: "assistant" }]);
    history.show(event.message_id);
    this.#draw();
    this.hooks.onTaken();
    this.hooks.onChange();
  }

  /** What was asked is not on the page any more, but in the field. @param {string} why */
  #giveBack(why) {
    const { text = null, question = null } = this.#asked ?? {};
    this.#asked = null;
    this.#draw();
    this.hooks.onRefused(text ?? "", (text !== null && question?.attachments) || [], why);
  }

  /** @param {unknown} error @param {AnswerView} view */
  #refused(error, view) {
    const { code = "lost", status, retryAfter, isFinal } = /** @type {any} */ (error);
    const asked = this.#asked;
    if (asked && (status === 413 || code === "run_active")) {
      this.#giveBack(code === "run_active" ? "An answer was being written here already. Send this when it is over." : said(error));
      if (code === "run_active") setTimeout(() => void this.refresh());
      return;
    }
    const back = asked && asked.after !== this.#history?.branches.leaf && el("button", { type: "button", class: "plain", onclick: () => {
      this.#asked = null;
      this.#draw();
    } }, "Back to what was there");
    view.fail({ code, message: said(error), retryable: !isFinal, retry_after: retryAfter ?? null }, back);
  }

  /** The door is open again. */
  signedIn() {
    if (!this.reading.signedIn()) void this.refresh();
  }

  /** @param {() => unknown} asked the question that it answers */
  #answer(asked) {
    return new AnswerView({
      onRetry: () => {
        const question = asked();
        if (question instanceof QuestionView) void this.again(question);
      },
      onDrawn: () => this.#end.grew(this.reading.isGoing),
      onAnswer: (callId, answer) => this.reading.answer(callId, answer),
    });
  }

  /** @param {string} text @param {readonly Attachment[]} attachments @param {string | null} id */
  #question(text, attachments, id) {
    return new QuestionView(text, attachments, id, { mayEdit: () => !this.reading.isGoing, onEdit: (question, now) => void this.again(question, now) });
  }

  /** Edit the newest message. */
  editLast() {
    const questions = [...(this.#history?.branches.path ?? []).map((each) => this.#views.get(each.message_id)), this.#asked?.question];
    questions.findLast((each) => each instanceof QuestionView)?.edit();
  }
}

/** An id of 128 random bits. `randomUUID` is for secure pages only. */
function newId() {
  return Array.from(crypto.getRandomValues(new Uint8Array(16)), (byte) => byte.toString(16).padStart(2, "0")).join("");
}
