/**
 * The chatserver client: one answer, over WebSocket or SSE, through cuts, sleep and a change of transport.
 *
 *     const chat = connect("https://chat.example.org");
 *     for await (const event of chat.send("Hello")) if (event.type === "token") show(event.content);
 *
 *     chat ──has──▶ lines ──carry──▶ runs ──yield──▶ events
 *
 * A `Run` is one answer and a cursor into its log. A `Line` is one connection at a time, made again until its runs are
 * over: one for all runs over WebSocket, one for each over SSE. What differs between the two is in `overWebSocket` and
 * `overFetch`, and nowhere else. PROTOCOL.md of the server is the contract.
 */

/** @import { ChatEvent, DoneEvent, ErrorEvent, ReasoningPart, TextPart, TokenEvent, ToolCallEvent, ToolCallPart, Usage } from "./events.js" */
/** @import { FieldProblem, FilePart, ImagePart, RunResource } from "./resources.js" */

/** @typedef {TextPart | ReasoningPart | ToolCallPart} Part what an answer is made of */
/** @typedef {readonly (TextPart | Sendable<ImagePart> | Sendable<FilePart>)[]} Message a text with images and files */
/** @template T @typedef {{ [K in keyof T as null extends T[K] ? never : K]: T[K] } & { [K in keyof T as null extends T[K] ? K : never]?: T[K] | undefined }} Sendable */
/** @typedef {{ parse(text: string): any, stringify(value: unknown): string }} Json */
/** @typedef {"auto" | "ws" | "sse"} Transport `auto`: WebSocket, or SSE where no WebSocket gets through */
/** @typedef {"idle" | "connecting" | "open" | "stalled" | "waiting" | "offline" | "closed"} State */
/**
 * @typedef {object} ClientTool what the model may call and this client runs
 * @property {string} description for the model
 * @property {Record<string, unknown>} parameters JSON Schema of an object: the arguments
 * @property {(args: any, call: { runId: string, callId: string, signal: AbortSignal }) => unknown} run gives the result, as
 *   JSON, or a promise of it; what it throws is the call's failure. `signal` aborts when the call needs no result any more
 */
/**
 * @typedef {{ approve: boolean, args?: Record<string, unknown> | undefined, reason?: string | undefined }
 *   | { result: unknown, is_error?: boolean | undefined }} Answer to a call that waits: an approval, maybe with other
 *   arguments; a refusal, maybe with its reason; or the result of a client's tool
 */
/**
 * @typedef {object} Options
 * @property {Transport | undefined} [transport] default `auto`
 * @property {((refusal?: ChatError) => string | Promise<string>) | undefined} [token] asked before each connection and
 *   request; once more, with the refusal, where the server did not take it: then a fresh one is needed
 * @property {(new (url: string, protocol: string) => any) | undefined} [WebSocket] for runtimes without one, such as Node 20
 * @property {typeof fetch | undefined} [fetch] for cookies, proxies and tests
 * @property {Json | undefined} [json] reads events and writes requests, for those who need the numbers that `JSON` rounds;
 *   default `JSON`
 * @property {Record<string, ClientTool> | undefined} [tools] what the model may call and this client runs, by name
 * @property {((tries: number) => number) | undefined} [backoff] ms to wait after so many losses without progress
 * @property {number | undefined} [heartbeatMs] the server's heartbeat, until a `start` event tells it
 * @property {number | undefined} [connectMs] how long a connection may take to its first byte; default 10,000
 * @property {number | undefined} [maxTries] so many losses and refusals in a row, with no event between, and the loop
 *   throws the last one; default: it tries on
 * @property {number | undefined} [giveUpMs] the same for a run that the server has not taken for so long; default: for ever
 */
/**
 * @typedef {object} ChatRequest
 * @property {string[] | undefined} [tools] names of the chat's tools that the model may call; absent: all of them
 * @property {string | undefined} [sessionId] absent: a new session
 * @property {string | undefined} [idempotencyKey] absent: one is made, so that a repeated request starts nothing twice
 * @property {string | undefined} [model]
 * @property {string | undefined} [system]
 * @property {number | undefined} [temperature]
 * @property {number | undefined} [maxOutputTokens]
 * @property {string | undefined} [regenerate] the user's message to answer again; with a text, to edit
 * @property {string | undefined} [parentId] the answer that the message follows; absent: the newest
 * @property {Record<string, unknown> | undefined} [responseFormat] the form of the answer, as PROTOCOL.md has it
 * @property {"cancel" | "continue" | undefined} [onDisconnect]
 */
/**
 * @typedef {object} Frame what went over the wire, as it went
 * @property {number} at `performance.now()`
 * @property {"ws" | "sse"} transport
 * @property {"in" | "out"} way
 * @property {string} text
 */
/**
 * @typedef {object} Wait
 * @property {ChatError} reason what was refused or lost: `code`, `status`, `message`, `retryAfter`
 * @property {number} delayMs how long until the next try
 * @property {number} until when that is, as `Date.now()` tells it
 */
/** @typedef {{ state: [State, Partial<Wait>], frame: [Frame] }} Happenings */

const HEARTBEAT_MS = 15_000;
const FRAME_CHARS = 80_000; // A longer request or answer is not sent as a frame, which may have 256 KiB of UTF-8.
const SILENT_HEARTBEATS = 2.5; // After so many without a byte a connection is dead, whatever it says of itself.
const PATIENCE_MS = 2_500; // For the first word of a WebSocket that may not get through, and for the answer to a check.
const CONNECT_MS = 10_000; // After failures, Chromium itself holds a WebSocket back for up to 5 s.
const BACKOFF_MS = 500;
const BACKOFF_LIMIT_MS = 20_000;
const TIMER_LIMIT_MS = 2 ** 31 - 1;
const MISSES_LIMIT = 3; // Handshakes that fail in a row before a WebSocket that has worked is given up for SSE.
const UNKNOWN_OUTCOME = "The page was left while this ran: what became of it is not known.";
const LOST_CODES = [1001, 1005, 1006, 1011, 1012, 1013, 1014, 1015, 4408, 4429]; // Any other close is final.

/** Closes of a WebSocket as the refusals that they are: what a request would have got, with its status and code. */
const REFUSALS = /** @type {Record<number, [number, string]>} */ ({
  1002: [400, "bad_http"],
  1003: [415, "unsupported_media_type"],
  1007: [400, "bad_json"],
  1009: [413, "too_large"],
  1011: [500, "internal"],
  1012: [503, "draining"],
  1013: [503, "overloaded"],
  4400: [400, "bad_request"],
  4401: [401, "unauthenticated"],
  4408: [408, "too_slow"],
  4429: [429, "too_many"],
});

/** Full jitter: any wait up to a limit that doubles. @param {number} tries */
const fullJitter = (tries) => Math.random() * Math.min(BACKOFF_LIMIT_MS, BACKOFF_MS * 2 ** tries);

/** The transport that got through to a server, remembered for the page. @type {Map<string, "ws" | "sse">} */
const gotThrough = new Map();

/** What the server refused, or why a connection was lost. `isFinal`: asking again would not help. */
export class ChatError extends Error {
  /**
   * @param {string} message
   * @param {{ status?: number | undefined, code?: string | undefined, retryAfter?: number | undefined,
   *   runId?: string | undefined, errors?: FieldProblem[] | undefined, isFinal?: boolean | undefined,
   *   atOnce?: boolean | undefined, cause?: unknown }} [facts]
   */
  constructor(message, { status = 0, code = "lost", retryAfter, runId, errors, isFinal, atOnce = false, cause } = {}) {
    super(message, { cause });
    this.name = "ChatError";
    this.status = status;
    this.code = code;
    /** Seconds. */
    this.retryAfter = retryAfter;
    /** With `run_active`: the run that is going. */
    this.runId = runId;
    this.errors = errors;
    const mayPass = [408, 425, 429].includes(status) && code !== "quota"; // A quota ends with what is deleted.
    this.isFinal = isFinal ?? (status >= 400 && status < 500 && !mayPass);
    /** Worth coming back without a wait. */
    this.atOnce = atOnce;
  }
}

/**
 * A chat with a server. Nothing is sent until there is something to say.
 * @param {string | URL} [url] default: the folder that the page is in; outside of a page it has to be a whole address
 * @param {Options} [options]
 * @throws {TypeError} this is no address of a server
 */
export function connect(url = ".", options = {}) {
  return new Chat(url, options);
}

/** All runs of a page, and the lines that carry them. */
export class Chat {
  /** @internal */ url;
  /** @internal */ options;
  /** @internal */ WebSocket;
  /** @internal @type {Json} */ json;
  /** @internal */ backoff;
  /** @internal */ heartbeatMs;
  /** @internal The server has let us in, if only once. */ hasMet = false;

  /** @type {Set<Line>} */ #lines = new Set();
  /** @type {Transport} */ #transport;
  /** @type {State} */ #state = "idle";
  /** @type {Map<string, Set<Function>>} */ #listeners = new Map();
  #closing = new AbortController();
  #misses = 0;

  /** @internal @param {string | URL} url @param {Options} options */
  constructor(url, options) {
    this.url = String(new URL(url, globalThis.document?.baseURI)).replace(/[?#].*$/, "").replace(/\/+$/, "");
    if (!/^https?:\/\/[^/@]+(\/|$)/.test(this.url)) throw new TypeError(`${url} is no http address of a server`);
    this.options = options;
    this.WebSocket = options.WebSocket ?? globalThis.WebSocket;
    this.json = options.json ?? JSON;
    this.backoff = options.backoff ?? fullJitter;
    this.heartbeatMs = options.heartbeatMs ?? HEARTBEAT_MS;
    this.#transport = options.transport ?? "auto";
    const once = { signal: this.#closing.signal };
    const listen = globalThis.addEventListener?.bind(globalThis);
    listen?.("online", () => this.wake(true), once);
    listen?.("offline", () => this.#lines.forEach((line) => line.enter("offline")), once);
    listen?.("pageshow", () => this.wake(), once);
    globalThis.document?.addEventListener("resume", () => this.wake(), once);
    globalThis.document?.addEventListener("visibilitychange", () => document.hidden || this.wake(), once);
  }

  /**
   * Ask. The answer is read in a loop; it comes whether or not anybody loops.
   * @param {string | Message | null} message a text, or parts; null: only with `regenerate`
   * @param {ChatRequest & { signal?: AbortSignal | undefined }} [request] `signal` leaves the answer; it does not cancel it
   */
  send(message, { signal, ...fields } = {}) {
    const own = this.options.tools ?? {};
    const { idempotencyKey = newKey(), tools: names = Object.keys(own), ...rest } = fields;
    const tools = names.map((name) => ({ name, description: own[name].description, parameters: own[name].parameters }));
    /** @type {Record<string, unknown>} */
    const request = { message: message ?? undefined, idempotency_key: idempotencyKey, tools: tools.length ? tools : undefined };
    for (const [name, value] of Object.entries(rest)) {
      request[name.replace(/[A-Z]/g, (capital) => "_" + capital.toLowerCase())] = value;
    }
    return this.#begin(new Run(this, request, null), signal);
  }

  /**
   * Read a run that exists: after a reload, in another tab. Without `after` it is read from its start; `parts` is what was
   * read up to there, and grows on.
   * @param {string} runId
   * @param {{ after?: number | undefined, parts?: Part[] | undefined, signal?: AbortSignal | undefined }} [where]
   */
  attach(runId, { after, parts, signal } = {}) {
    return this.#begin(new Run(this, {}, runId, after, parts), signal);
  }

  /** @param {Run} run @param {AbortSignal} [signal] */
  #begin(run, signal) {
    if (this.#state === "closed") throw over("the chat is closed", "closed");
    const leave = () => run.fail(signal?.reason ?? over("aborted", "aborted"));
    signal?.addEventListener("abort", leave, { once: true });
    if (signal?.aborted) leave();
    else this.place(run);
    return run;
  }

  /** @internal Put a run on a line that can carry it, a new one if need be: on a connection the server has one cursor for
   *  a run. @param {Run} run */
  place(run) {
    const via = this.via;
    run.line?.runs.delete(run);
    let line = [...this.#lines].find((each) => via === "ws" && each.via === via && !each.reader(run.id));
    if (!line) this.#lines.add((line = new Line(this, via)));
    line.add(run);
  }

  /** What is asked for; setting it moves every answer that is going over, and none loses or repeats an event. */
  get transport() {
    return this.#transport;
  }

  set transport(transport) {
    this.#transport = transport;
    this.#misses = 0;
    if (transport === "auto") gotThrough.delete(this.url);
    for (const line of [...this.#lines]) if (line.via !== this.via) this.move(line);
  }

  /** What is used now, for the next connection. @returns {"ws" | "sse"} */
  get via() {
    if (!this.WebSocket) return "sse";
    if (!globalThis.ReadableStream) return "ws"; // React Native: its fetch has no streams.
    if (this.#transport !== "auto") return this.#transport;
    const known = gotThrough.get(this.url);
    return known === "sse" || this.#misses >= (known ? MISSES_LIMIT : 1) ? "sse" : "ws";
  }

  /** @internal A line's runs go on over the transport of now. @param {Line} line */
  move(line) {
    this.#lines.delete(line);
    for (const run of line.runs) this.place(run);
    line.leave();
  }

  /** @internal Remember whether a line's transport got through. @param {Line} line @param {boolean} hasGotThrough */
  learn({ via }, hasGotThrough) {
    if (this.#transport === "auto" && hasGotThrough) gotThrough.set(this.url, via);
    this.#misses = hasGotThrough || via === "sse" ? 0 : this.#misses + 1;
  }

  /** @internal Whether a WebSocket that stays silent is soon given up. */
  get isUnsure() {
    return this.#transport === "auto" && gotThrough.get(this.url) !== "ws";
  }

  /** @returns {State} */
  get state() {
    return this.#state;
  }

  /**
   * @template {keyof Happenings} T @param {T} what @param {(...facts: Happenings[T]) => void} listener
   * @returns {() => void} takes the listener off again
   */
  on(what, listener) {
    const listeners = this.#listeners.get(what) ?? new Set();
    this.#listeners.set(what, listeners.add(listener));
    return () => void listeners.delete(listener);
  }

  /** @template {keyof Happenings} T @param {T} what @param {Happenings[T]} facts */
  #emit(what, ...facts) {
    this.#listeners.get(what)?.forEach((listener) => {
      try {
        listener(...facts);
      } catch (error) {
        setTimeout(() => {
          throw error; // The page's own: its console shall have it, our connections shall not.
        });
      }
    });
  }

  /** @internal @param {"ws" | "sse"} transport @param {"in" | "out"} way @param {string} text */
  show(transport, way, text) {
    if (this.#listeners.has("frame")) this.#emit("frame", { at: performance.now(), transport, way, text });
  }

  /** @internal Whether the next try is one too many. @param {number} tries @param {number} since @param {Wait} wait */
  hasEnough(tries, since, wait) {
    const { maxTries = Infinity, giveUpMs = Infinity } = this.options;
    return tries >= maxTries || wait.until >= since + giveUpMs;
  }

  /** @internal The chat is in the worst state that one of its lines is in. @param {Wait | null} [wait] what is new */
  update(wait) {
    /** @type {State[]} */ const order = ["idle", "open", "connecting", "stalled", "waiting", "offline"];
    const states = [...this.#lines].map((line) => order.indexOf(line.runs.size ? line.shown : "idle"));
    const state = this.#closing.signal.aborted ? "closed" : order[Math.max(0, ...states)];
    if (state === this.#state && wait === undefined) return;
    this.#state = state;
    this.#emit("state", state, wait ?? {});
  }

  /** @internal @param {Line} line */
  drop(line) {
    this.#lines.delete(line);
    this.update();
  }

  /** See whether the connections live; where one does not, go on over a new one. For `AppState` and `NetInfo`.
   *  @param {boolean} [hasMoved] the network is another one: a silent connection is dead */
  wake(hasMoved = false) {
    for (const line of this.#lines) line.check(hasMoved);
  }

  /** Cut all connections, as a tunnel would. The answers go on. */
  cut() {
    for (const line of this.#lines) line.lose(new ChatError("cut", { atOnce: true }));
  }

  /** Leave all runs. They can be attached to again. */
  close() {
    this.#closing.abort();
    for (const line of [...this.#lines]) {
      for (const run of line.runs) run.fail(over("the chat is closed", "closed"));
      line.leave();
    }
    this.update();
  }

  /**
   * A request with the token, to a path of the server.
   * @param {string} path such as `/chat/sessions` @param {RequestInit} [init]
   * @returns {Promise<Response>}
   * @throws {ChatError} it was refused
   */
  async request(path, init = {}) {
    const { token } = this.options;
    for (/** @type {ChatError | undefined} */ let refused; ; ) {
      const headers = new Headers(init.headers);
      if (init.body) headers.set("Content-Type", "application/json");
      if (token) headers.set("Authorization", `Bearer ${await token(refused)}`);
      const response = await (this.options.fetch ?? fetch)(this.url + path, { cache: "no-store", ...init, headers });
      if (response.ok) {
        this.hasMet = true;
        return response;
      }
      const problem = await response.json().catch(() => ({}));
      const { status } = response;
      const facts = { retry_after: response.headers.get("Retry-After"), ...problem, status, message: problem.detail };
      if (!token || status !== 401 || refused) throw refusal(facts);
      refused = refusal(facts);
    }
  }

  /** @internal Say a command about a run, over its WebSocket if it has one, until the server has answered.
   *  @param {Run} run @param {string} type @param {string} path of the request that says the same @param {string} [callId] @param {Answer} [answer] */
  async tell(run, type, path, callId, answer) {
    await run.named;
    const body = this.json.stringify(answer);
    let mayBeDone = false;
    await this.persist(run, async () => {
      const { order } = run.line ?? {};
      const command = { type, run_id: run.id, call_id: callId, ...answer };
      try {
        if (order && !(body?.length > FRAME_CHARS)) await new Promise((...settle) => order(command, ...settle));
        else await this.request(`/chat/runs/${run.id}/${path}`, { method: "POST", body });
      } catch (error) {
        const { status } = lossOf(error);
        if (status === 409 && mayBeDone) return; // The reply to an earlier try was lost.
        mayBeDone ||= !status || status >= 500;
        throw error;
      }
    });
  }

  /** @internal Ask the server about a run until it has answered. @template T @param {Run} run @param {() => Promise<T>} attempt
   *  @returns {Promise<T | undefined>} undefined: the run is over, or will never be */
  async persist(run, attempt) {
    const since = Date.now();
    for (let tries = 0; run.id && !run.hasEnded; ) {
      try {
        return await attempt();
      } catch (error) {
        const reason = lossOf(error);
        const wait = waitFor(reason, this.backoff(tries++));
        if (reason.isFinal || this.hasEnough(tries, since, wait)) throw reason;
        await new Promise((resolve) => setTimeout(resolve, wait.delayMs));
      }
    }
  }
}

/** One answer. What it holds is as of the last event that the loop over it was given. @implements {AsyncIterable<ChatEvent>} */
export class Run {
  /** The run's id, once the server has said it. @type {string | null} */ id;
  /** The cursor to attach with. @type {number} */ seq;
  /** @type {string | null} */ sessionId = null;
  /** @type {string | null} */ messageId = null;
  /** @type {string | null} */ userMessageId = null;
  /** The answer in the order in which it happened; it grows in place, and a part that changes is a new object. @type {Part[]} */ parts;
  /** @type {Usage | null} */ usage = null;
  /** The terminal event. @type {DoneEvent | ErrorEvent | null} */ end = null;
  /** Why it has to wait, until the server takes it; a `state` event tells of each change. @type {Wait | null} */ waits = null;

  /** @internal What asks for it, again and again if need be. */ request;
  /** @internal The newest event that has arrived. */ cursor;
  /** @internal Its last event has arrived. */ hasEnded = false;
  /** @internal @type {Line | null} */ line = null;
  /** @internal The id is known, or will never be. @type {Promise<void>} */ named;
  /** @internal Losses and refusals since the last event. */ tries = 0;

  #chat;
  /** Of each call that this client runs: aborted when it needs no result any more. @type {Map<string, AbortController>} */ #own = new Map();
  /** Calls that wait no more, although they have no result yet. @type {Set<string>} */ #begun = new Set();
  /** Since when the server does not have it. @type {number | undefined} */ #awaySince = Date.now();
  #isOver = false;
  #isRead = false;
  /** @type {ChatEvent[]} */ #arrived = [];
  /** @type {unknown} */ #failure;
  /** What waits for something to happen. @type {(() => void)[]} */ #waiting = [];
  #name = () => {};

  /** @internal @param {Chat} chat @param {Record<string, unknown>} request @param {string | null} id @param {number} [after] @param {Part[]} [parts] */
  constructor(chat, request, id, after = 0, parts = []) {
    this.#chat = chat;
    this.id = id;
    this.seq = after;
    this.parts = parts;
    this.request = request;
    this.cursor = after;
    this.named = id ? Promise.resolve() : new Promise((resolve) => (this.#name = resolve));
    this.#perform(parts);
  }

  /** The text of the answer so far: its text parts, joined. */
  get text() {
    return this.parts.map((part) => (part.type === "text" ? part.text : "")).join("");
  }

  /** The calls that wait for an answer: for an approval, for the result of a client's tool, for what a user says. */
  get openCalls() {
    return this.parts.filter((part) => part.type === "tool_call").filter(
      (call) => call.is_error === null && (call.needs_approval || call.executor === "client") && !this.#begun.has(call.call_id),
    );
  }

  /**
   * Answer a call that waits. The first answer counts; where the reply to this one was lost, it is sent again.
   * @param {string} callId @param {Answer} answer
   * @returns {Promise<void>} the call is answered; its result comes as an event
   * @throws {ChatError} it was refused: `already_answered` by somebody else, who was first; `bad_request`: it does not fit,
   *   and the call waits on
   */
  async answer(callId, answer) {
    await this.#chat.tell(this, "answer", `tool_calls/${callId}`, callId, answer);
    this.#begun.add(callId);
  }

  /** End the run, for every reader. @returns {Promise<void>} the server has obeyed; the end comes as an event */
  cancel() {
    return this.#chat.tell(this, "cancel", "cancel");
  }

  /** Stop reading, as leaving the loop does. The run goes on. */
  detach() {
    this.#finish(true);
  }

  /** The events, once. @returns {AsyncGenerator<ChatEvent, void, void>} @throws {ChatError} there is a loop already */
  [Symbol.asyncIterator]() {
    if (this.#isRead) throw over("a run is read once: attach to it again", "read");
    this.#isRead = true;
    return this.#read();
  }

  async *#read() {
    try {
      for (;;) {
        for (let event; (event = this.#arrived.shift()); ) yield this.#fold(event);
        if (this.#failure) throw this.#failure;
        if (this.#isOver) return;
        await this.#stirred();
      }
    } finally {
      this.detach();
    }
  }

  /** @returns {Promise<void>} something has happened */
  #stirred() {
    return new Promise((resolve) => this.#waiting.push(resolve));
  }

  #stir() {
    for (const resolve of this.#waiting.splice(0)) resolve();
  }

  /** @internal @param {() => boolean} isSo @returns {Promise<boolean>} false: the run was over, or left, before it was so */
  async until(isSo) {
    while (!isSo() && !this.#isOver) await this.#stirred();
    return isSo();
  }

  /** Begin what this client is to run of open calls. @param {readonly (Part | ToolCallEvent)[]} calls */
  #perform(calls) {
    const tools = this.#chat.options.tools ?? {};
    for (const call of calls) {
      if (call.type !== "tool_call" || call.executor !== "client" || ("is_error" in call && call.is_error !== null)) continue;
      if (!Object.hasOwn(tools, call.tool) || this.#own.has(call.call_id)) continue;
      const closing = new AbortController();
      this.#own.set(call.call_id, closing);
      void perform(this.#chat, this, call, tools[call.tool], closing.signal);
    }
  }

  /** @param {ChatEvent} event */
  #fold(event) {
    this.seq = event.seq;
    switch (event.type) {
      case "start":
        this.sessionId = event.session_id;
        this.messageId = event.message_id;
        this.userMessageId = event.user_message_id;
        break;
      case "token":
        this.#say("text", event.content);
        break;
      case "reasoning":
        this.#say("reasoning", event.content);
        break;
      case "tool_call": {
        const { run_id, seq, ...call } = event;
        this.parts.push({ ...call, result: null, is_error: null, truncated: null, duration_ms: null });
        break;
      }
      case "tool_progress":
        this.#begun.add(event.call_id);
        break;
      case "tool_result": {
        const { run_id, seq, ...result } = event;
        const at = this.parts.findLastIndex((part) => part.type === "tool_call" && part.call_id === event.call_id);
        const call = /** @type {ToolCallPart | undefined} */ (this.parts[at]);
        if (call) this.parts[at] = { ...call, ...result, type: call.type };
        break;
      }
      case "snapshot":
        this.parts = [...event.parts];
        break;
      case "done":
        this.sessionId = event.session_id;
        this.messageId = event.message_id;
        this.usage = event.usage;
      case "error":
        this.end = event;
    }
    return event;
  }

  /** Texts of one kind that follow each other are one part. @param {"text" | "reasoning"} type @param {string} text */
  #say(type, text) {
    const last = this.parts.at(-1);
    if (last?.type === type) this.parts[this.parts.length - 1] = { type, text: last.text + text };
    else if (text) this.parts.push({ type, text });
  }

  /** @internal Take an event that arrived. @param {ChatEvent} event @returns {boolean} whether it was a new one */
  take(event) {
    if (this.#isOver || event.seq <= this.cursor) return false;
    const first = /** @type {TokenEvent} */ (event).first_seq ?? event.seq; // It may be several, merged.
    if (first !== this.cursor + 1 && event.type !== "snapshot") {
      this.fail(over(`event ${first} follows ${this.cursor}`, "gap"));
      return false;
    }
    this.cursor = event.seq;
    this.tries = 0;
    this.is(event.run_id);
    this.#arrived.push(event);
    if (event.type === "tool_call") this.#perform([event]);
    if (event.type === "snapshot") this.#perform(event.parts);
    if (event.type === "tool_result") this.#own.get(event.call_id)?.abort();
    this.#stir();
    if (event.type === "done" || event.type === "error") this.finish();
    return true;
  }

  /** @internal The server has said which run this is. @param {string} id */
  is(id) {
    this.id = id;
    this.#name();
  }

  /** @internal It has to be asked for again, at once or later. @param {Wait} wait */
  wait(wait) {
    this.#awaySince ??= Date.now();
    if (this.#chat.hasEnough(++this.tries, this.#awaySince, wait)) this.fail(wait.reason);
    else if (wait.delayMs) this.waits = wait;
  }

  /** @internal How long it may still be away. */
  get leftMs() {
    return (this.#awaySince ?? Infinity) + (this.#chat.options.giveUpMs ?? Infinity) - Date.now();
  }

  /** @internal The server has taken it. */
  serve() {
    this.#awaySince = undefined;
    if (!this.waits) return;
    this.waits = null;
    this.#chat.update(null);
  }

  /** @internal Nothing more is to come, and that is well. */
  finish() {
    this.hasEnded = true;
    for (const closing of this.#own.values()) closing.abort();
    this.#finish(false);
  }

  /** @internal @param {unknown} reason what the loop throws, behind the events that have arrived */
  fail(reason) {
    if (!this.#isOver) this.#failure = reason;
    this.#finish(true);
  }

  /** @param {boolean} isLeft */
  #finish(isLeft) {
    if (this.#isOver) return;
    this.#isOver = true;
    this.waits = null;
    this.line?.drop(this, isLeft);
    this.#name();
    this.#stir();
  }
}

/**
 * One connection at a time, made again until its runs are over. Both transports live by this:
 *
 *     connecting ──▶ open ──no byte──▶ stalled ──▶ connecting
 *         ▲            │
 *         └─ waiting ◀─┴─ lost        (offline: waiting while the device says that it has no network)
 *
 * @internal
 */
class Line {
  /** @type {State} */ state = "connecting";
  /** @type {Set<Run>} */ runs = new Set();
  /** Whether anything came over the connection of now. */ hasHeard = false;
  /** Say a command and hear how it went. WebSocket, while it is open. @type {Order | undefined} */ order;
  /** The server has taken who we are, since it was last asked whether it would. */ isAdmitted = true;

  #heardAt = 0;
  #deadline = 0;
  /** @type {ReturnType<typeof setTimeout> | undefined} */ #timer;
  #connection = new AbortController();
  #isLiving = false;
  #hasLeft = false;
  /** Ends the wait. @type {(() => void) | undefined} */ #hurry;
  #mayHurry = true;
  /** Why we gave the connection up. @type {ChatError | undefined} */ #loss;

  /** @param {Chat} chat @param {"ws" | "sse"} via */
  constructor(chat, via) {
    this.chat = chat;
    this.via = via;
  }

  /** Losses in a row without progress. */
  get tries() {
    return Math.min(...[...this.runs].map((run) => run.tries));
  }

  /** Its state, to the page: an open line may be told to wait with one of its runs. @returns {State} */
  get shown() {
    return this.state === "open" && [...this.runs].some((run) => run.waits) ? "waiting" : this.state;
  }

  /** Who reads a run. @param {string | null} id */
  reader(id) {
    return [...this.runs].find((run) => id && run.id === id);
  }

  /** @param {Run} run */
  add(run) {
    this.runs.add(run);
    run.line = this;
    if (!this.#isLiving) void this.#live();
    else if (this.order) ask(this, run);
    if (this.#hurry || this.#isSilent) this.check();
    this.chat.update();
  }

  /** A run is over, or has been left. @param {Run} run @param {boolean} isLeft */
  drop(run, isLeft) {
    this.runs.delete(run);
    run.line = null;
    if (isLeft && this.via === "sse") this.leave();
    else if (isLeft && run.id) this.order?.({ type: "detach", run_id: run.id });
    if (!this.runs.size) this.#hurry?.();
    this.chat.update();
  }

  /** Give the connection up, and never come back. */
  leave() {
    this.#hasLeft = true;
    this.#hurry?.();
    this.lose(new ChatError("left"));
    this.chat.drop(this);
  }

  /** Connect, listen, lose, wait; again. */
  async #live() {
    this.#isLiving = true;
    while (this.runs.size) {
      let loss = await this.#connect();
      if (this.#hasLeft) return;
      // A ticket that is refused tells nothing of the WebSocket.
      if (!this.hasHeard && (this.via === "sse" || !loss.status)) this.chat.learn(this, loss.isFinal);
      const isBarred = this.chat.via !== this.via && this.via === "ws";
      if (!isBarred && !this.chat.hasMet && !loss.status) loss = await this.#explain(loss);
      if (this.#hasLeft) return;
      if (loss.isFinal && !isBarred) this.#fail(loss);
      if (this.runs.size && !isBarred) await this.#pause(loss);
      if (this.#hasLeft) return;
      if (this.runs.size && this.chat.via !== this.via) return this.chat.move(this);
    }
    this.chat.drop(this);
  }

  /** One connection, from its first byte to its loss. @returns {Promise<ChatError>} why it was lost */
  async #connect() {
    this.hasHeard = false;
    this.#loss = undefined;
    this.#connection = new AbortController();
    this.enter("connecting");
    const isUnsure = this.via === "ws" && this.chat.isUnsure;
    this.#expect(this.#atMost(isUnsure ? PATIENCE_MS : (this.chat.options.connectMs ?? CONNECT_MS)));
    try {
      await (this.via === "ws" ? overWebSocket : overFetch)(this, this.#connection.signal);
      return this.#loss ?? new ChatError("the run is over");
    } catch (error) {
      return this.#loss ?? lossOf(error);
    } finally {
      clearTimeout(this.#timer);
      this.order = undefined;
    }
  }

  /**
   * Why nothing ever came, as far as a page can find out: a browser tells it neither how a handshake was refused, nor
   * that a foreign server does not know its origin. @param {ChatError} loss
   */
  async #explain(loss) {
    const { chat, via } = this;
    const { signal } = (this.#connection = new AbortController());
    this.#timer = setTimeout(() => this.#connection.abort(), this.#atMost(PATIENCE_MS));
    const why = via === "ws" ? await chat.request("/chat/ws", { signal }).then(() => loss, lossOf) : loss;
    const isForeign = globalThis.location && !`${chat.url}/`.startsWith(`${location.origin}/`);
    const look = async () => isForeign && (await fetch(`${chat.url}/livez`, { mode: "no-cors", signal }));
    const isThere = why.status || chat.hasMet || (await look().catch(() => false));
    clearTimeout(this.#timer);
    if (!isThere) return new ChatError(`no server answers at ${chat.url}`, { code: "unreachable", cause: loss });
    if (chat.hasMet || why.status === 426) return new ChatError("no WebSocket gets through", { cause: loss });
    if (why.status) return Object.assign(why, { isFinal: why.code === "forbidden" });
    const facts = { status: 403, code: "forbidden", isFinal: false, cause: loss };
    return new ChatError("the server does not let this page in: is its origin allowed?", facts);
  }

  /** No longer than one of the runs has patience. @param {number} ms */
  #atMost(ms) {
    return Math.min(ms, ...[...this.runs].map((run) => run.leftMs));
  }

  /** @param {ChatError} loss */
  async #pause(loss) {
    const wait = waitFor(loss, loss.atOnce && !this.tries ? 0 : this.chat.backoff(this.tries));
    for (const run of this.runs) run.wait(wait);
    if (!wait.delayMs || !this.runs.size) return;
    this.enter(globalThis.navigator?.onLine === false ? "offline" : "waiting", wait);
    this.#mayHurry = waitMs(loss) === undefined;
    let timer;
    await /** @type {Promise<void>} */ (
      new Promise((resolve) => {
        timer = setTimeout(resolve, wait.delayMs);
        this.#hurry = resolve;
      })
    );
    clearTimeout(timer);
    this.#hurry = undefined;
  }

  /** The server will have none of this: those who had no answer yet are to blame, or else all. @param {ChatError} loss */
  #fail(loss) {
    const runs = [...this.runs];
    const unanswered = runs.filter((run) => !run.id);
    for (const run of unanswered.length ? unanswered : runs) run.fail(loss);
  }

  /** @param {State} state @param {Wait} [wait] */
  enter(state, wait) {
    this.state = state;
    this.chat.update(wait);
  }

  /** Whether a WebSocket that was refused is worth another token: one that was let in, or the first of a row. */
  mayAskAgain() {
    const { isAdmitted } = this;
    this.isAdmitted = false;
    return isAdmitted && !!this.chat.options.token;
  }

  /** Something came, if only a comment. */
  hear() {
    const isFirst = !this.hasHeard;
    if (isFirst) this.chat.learn(this, true);
    this.hasHeard = true;
    this.#heardAt = Date.now();
    this.#deadline = this.#heardAt + SILENT_HEARTBEATS * this.chat.heartbeatMs;
    if (isFirst) this.#watch(); // The deadline of an open connection may be sooner than that of its beginning.
    if (this.state !== "open") this.enter("open");
  }

  /** An event came. @param {Run} run @param {ChatEvent} event */
  take(run, event) {
    if (event.type === "start") this.#expect(SILENT_HEARTBEATS * (this.chat.heartbeatMs = event.heartbeat_ms));
    run.take(event);
  }

  /** @param {number} ms */
  #expect(ms) {
    this.#deadline = Date.now() + ms;
    this.#watch();
  }

  /** Wake at the deadline, which may have moved by then. By the clock on the wall: timers stand still in sleep. */
  #watch() {
    clearTimeout(this.#timer);
    const left = this.#deadline - Date.now();
    if (left > 0) this.#timer = setTimeout(() => this.#watch(), left);
    else {
      this.enter("stalled");
      this.lose(new ChatError("nothing came for too long", { atOnce: true }));
    }
  }

  get #isSilent() {
    return this.hasHeard && Date.now() - this.#heardAt > this.chat.heartbeatMs;
  }

  /** Is it alive? If it is waiting to try again, try now. @param {boolean} [hasMoved] */
  check(hasMoved = false) {
    if (this.#hurry) this.#mayHurry && this.#hurry();
    else if (this.#isSilent) this.#expect(0);
    else if (this.hasHeard) {
      this.order?.({ type: "ping" });
      const isAnswered = this.order || hasMoved;
      const left = isAnswered ? 0 : this.#heardAt + this.chat.heartbeatMs - Date.now();
      this.#expect(left + PATIENCE_MS);
    }
  }

  /** The connection is over, from our side. @param {ChatError} loss */
  lose(loss) {
    this.#loss = loss;
    this.#connection.abort();
  }
}

/**
 * @callback Order
 * @param {Record<string, unknown>} command @param {(answer: any) => void} [accept]
 * @param {(error: ChatError) => void} [refuse]
 * @returns {void}
 * @internal
 */

/** Carry all runs of a line over one WebSocket. @param {Line} line @param {AbortSignal} signal */
async function overWebSocket(line, signal) {
  const { chat } = line;
  let url = chat.url.replace(/^http/, "ws") + "/chat/ws";
  if (chat.options.token) {
    const response = await chat.request("/chat/tickets", { method: "POST", signal });
    url += `?ticket=${encodeURIComponent((await response.json()).ticket)}`;
  }
  if (signal.aborted) return;
  /** @type {WebSocket} */ const socket = new chat.WebSocket(url, "chatserver.v1");
  /** @type {Map<string, { accept?: (answer: any) => void, refuse?: (error: ChatError) => void }>} */
  const asked = new Map();
  try {
    await new Promise((_, lose) => {
      signal.addEventListener("abort", lose);
      socket.onopen = () => {
        chat.hasMet = true;
        let refs = 0;
        line.order = (command, accept, refuse) => {
          const ref = command.type === "ping" ? undefined : String(++refs);
          if (ref) asked.set(ref, { accept, refuse });
          const text = chat.json.stringify({ ...command, ref });
          chat.show("ws", "out", text);
          socket.send(text);
        };
        line.order({ type: "ping" });
        for (const run of line.runs) ask(line, run);
      };
      socket.onmessage = ({ data }) => {
        chat.show("ws", "in", data);
        line.hear();
        line.isAdmitted = true;
        const message = chat.json.parse(data);
        const { accept, refuse } = asked.get(message.ref) ?? {};
        asked.delete(message.ref);
        if (message.seq) for (const run of line.runs) if (run.id === message.run_id) line.take(run, message);
        if (message.type === "accepted") accept?.(message);
        if (message.type === "rejected") refuse?.(refusal(message));
      };
      socket.onerror = () => {}; // A close follows, and says more.
      socket.onclose = ({ code, reason }) => {
        if (code !== 1006) line.hear();
        lose(closing(code, reason, code === 4401 && line.mayAskAgain()));
      };
    });
  } finally {
    socket.onopen = socket.onmessage = socket.onclose = null;
    socket.close();
    for (const { refuse } of asked.values()) refuse?.(new ChatError("the connection was lost"));
  }
}

/** Ask for a run over a line's WebSocket: start it, or go on where it was. @param {Line} line @param {Run} run */
function ask(line, run) {
  const order = /** @type {Order} */ (line.order);
  const body = run.id ? "" : line.chat.json.stringify(run.request);
  if (body.length > FRAME_CHARS) return post(line, run, body);
  order(
    run.id ? { type: "attach", run_id: run.id, after: run.cursor } : { type: "send", ...run.request },
    ({ run_id, ended }) => {
      if (!line.runs.has(run)) return order({ type: "detach", run_id });
      const other = line.reader(run_id);
      run.is(run_id);
      if (other && other !== run) line.chat.place(other); // A key was used twice.
      run.serve();
      if (ended) run.finish();
    },
    (error) => refused(line, run, order, error),
  );
}

/** @param {Line} line @param {Run} run @param {Order} order @param {ChatError} error */
function refused(line, run, order, error) {
  if (error.isFinal) return run.fail(error);
  if (error.code === "lost") return;
  const wait = waitFor(error, line.chat.backoff(run.tries));
  run.wait(wait);
  if (run.waits) line.chat.update(wait);
  setTimeout(() => line.order === order && line.runs.has(run) && ask(line, run), wait.delayMs);
}

/** Start a run by a request of its own, then read it over the WebSocket. @param {Line} line @param {Run} run @param {string} body */
function post(line, run, body) {
  const order = /** @type {Order} */ (line.order);
  const isHere = () => line.order === order && line.runs.has(run);
  line.chat.show("sse", "out", `POST /chat/runs\n\n${body}`);
  line.chat.request("/chat/runs", { method: "POST", body }).then((response) => response.json()).then(
    ({ run_id: id }) => isHere() && (run.is(id), ask(line, run)),
    (error) => isHere() && refused(line, run, order, error instanceof ChatError ? error : new ChatError("the connection was lost", { code: "unsent", cause: error })),
  );
}

/** Carry a line's one run over SSE. @param {Line} line @param {AbortSignal} signal */
async function overFetch(line, signal) {
  const { chat, runs } = line;
  const [run] = runs;
  const path = run.id ? `/chat/runs/${run.id}/events` : "/chat/stream";
  /** @type {RequestInit} */
  const init = { signal, headers: { Accept: "text/event-stream", ...(run.id && { "Last-Event-ID": String(run.cursor) }) } };
  if (!run.id) Object.assign(init, { method: "POST", body: chat.json.stringify(run.request) });
  chat.show("sse", "out", run.id ? `GET ${path}\nLast-Event-ID: ${run.cursor}` : `POST ${path}\n\n${init.body}`);
  const response = await chat.request(path, init);
  run.serve();
  line.hear();
  if (response.status === 204) return run.finish();
  if (!response.headers.get("Content-Type")?.startsWith("text/event-stream")) throw new ChatError("this is no stream");
  const reader = /** @type {ReadableStream<Uint8Array>} */ (response.body).getReader();
  // Node 20 has streams that hear nothing of an abort near their end: this read would never end.
  signal.addEventListener("abort", () => reader.cancel().catch(() => {}), { once: true });
  /** What the stream asked to wait behind its last event. @type {number | undefined} */ let retryAfter;
  const take = (/** @type {string} */ data) => {
    retryAfter = undefined;
    line.take(run, chat.json.parse(data));
  };
  const parse = eventStream(take, (ms) => (retryAfter = ms / 1000));
  for (;;) {
    const { value, done } = await reader.read();
    if (done || signal.aborted) throw new ChatError("the stream ended", { retryAfter });
    line.hear();
    chat.show("sse", "in", parse(value));
  }
}

/**
 * Run a client's tool for a call, once: not again after a reload, and in one of the pages that read the run. A page that
 * has the lock keeps it until the result is in the log; the others see it there.
 * @param {Chat} chat @param {Run} run @param {ToolCallPart | ToolCallEvent} call @param {ClientTool} tool @param {AbortSignal} signal
 */
async function perform(chat, run, { call_id: callId, args }, tool, signal) {
  const runId = /** @type {string} */ (run.id);
  const name = `chatserver.call.${runId}.${callId}`;
  const once = async () => {
    const told = await chat.persist(run, async () => (await chat.request(`/chat/runs/${runId}`)).json());
    const { last_seq: lastSeq = Infinity } = /** @type {RunResource} */ (told ?? {});
    if (!(await run.until(() => run.cursor >= lastSeq)) || signal.aborted) return; // Its result may be there already.
    let text = note(name) ?? undefined;
    if (text === undefined) {
      note(name, "");
      text = await outcome(chat, () => tool.run(args, { runId, callId, signal }));
      note(name, text);
    }
    if (signal.aborted) return;
    const answer = text ? chat.json.parse(text) : { result: UNKNOWN_OUTCOME, is_error: true };
    await run.answer(callId, answer).catch(({ status, message }) =>
      status === 409 ? undefined : run.answer(callId, { result: `refused: ${message}`, is_error: true }));
    await run.until(() => signal.aborted);
  };
  const { locks } = globalThis.navigator ?? {};
  await (locks ? locks.request(name, { signal }, once) : once()).catch(() => {}); // Closed, or refused for good.
  if (signal.aborted) note(name, null);
}

/** What a tool gives, as the text of an answer. @param {Chat} chat @param {() => unknown} call */
async function outcome({ json }, call) {
  try {
    return json.stringify({ result: (await call()) ?? null });
  } catch (error) {
    return json.stringify({ result: error instanceof Error ? error.message : String(error), is_error: true });
  }
}

/** What a page notes for those after it. @param {string} name @param {string | null} [text] to be noted; null: forget it */
function note(name, text) {
  try {
    const kept = globalThis.document && localStorage;
    if (text === undefined) return kept?.getItem(name);
    if (text === null) kept?.removeItem(name);
    else kept?.setItem(name, text);
  } catch {} // It keeps nothing.
}

/**
 * A parser of `text/event-stream`, fed with bytes that may be cut anywhere.
 * @param {(data: string) => void} dispatch gets the data of each event
 * @param {(ms: number) => void} [retry] gets what each `retry:` line asks to wait
 * @returns {(bytes: Uint8Array) => string} takes bytes, gives their text
 */
export function eventStream(dispatch, retry) {
  const decoder = new TextDecoder(); // It takes the BOM away, and keeps what is left of a character.
  let rest = "";
  let endedWithCr = false;
  /** @type {string[]} */ let data = [];
  return (bytes) => {
    const text = decoder.decode(bytes, { stream: true });
    const lines = (rest + (endedWithCr && text[0] === "\n" ? text.slice(1) : text)).split(/\r\n|\r|\n/);
    if (text) endedWithCr = text.endsWith("\r"); // That line has ended; a LF may still belong to its end.
    rest = /** @type {string} */ (lines.pop());
    for (const line of lines) {
      if (line.startsWith("data:")) data.push(line.slice(line[5] === " " ? 6 : 5));
      if (/^retry: ?\d+$/.test(line)) retry?.(Number(line.slice(6)));
      if (line || !data.length) continue;
      dispatch(data.join("\n"));
      data = [];
    }
    return text;
  };
}

/** What the server refused: a problem document or a `rejected` frame. @param {any} problem */
function refusal({ message, status, code = `http_${status}`, retry_after, run_id, errors }) {
  const seconds = Number.isNaN(Number(retry_after)) ? (Date.parse(retry_after) - Date.now()) / 1000 : Number(retry_after);
  const retryAfter = retry_after != null && seconds >= 0 ? seconds : undefined;
  return new ChatError(message ?? `refused with ${status}`, { status, code, retryAfter, runId: run_id, errors });
}

/**
 * Why a WebSocket was closed.
 * @param {number} code @param {string} reason @param {boolean} isExpired with another token it goes on
 */
function closing(code, reason, isExpired) {
  const isLost = LOST_CODES.includes(code);
  const [status, word] = REFUSALS[code] ?? [Math.max(0, code - 4000), isLost ? "lost" : `ws_${code}`];
  const facts = { status, code: word, isFinal: !isLost && !isExpired, atOnce: isExpired || code === 1012 };
  return new ChatError(reason || `closed with ${code}`, facts);
}

/** How long an error asks to wait. @param {any} error */
function waitMs(error) {
  return error?.retryAfter === undefined ? undefined : Math.min(TIMER_LIMIT_MS, error.retryAfter * 1000);
}

/** Wait as long as an error asks to, or else so long. @param {ChatError} reason @param {number} ms @returns {Wait} */
function waitFor(reason, ms) {
  const delayMs = waitMs(reason) ?? ms;
  return { reason, delayMs, until: Date.now() + delayMs };
}

/** Nothing more is read. @param {string} message @param {string} code */
const over = (message, code) => new ChatError(message, { code, isFinal: true });

/** Whatever was thrown, as why a connection was lost. @param {unknown} error */
const lossOf = (error) => (error instanceof ChatError ? error : new ChatError("the connection was lost", { cause: error }));

/** Unique is enough: the server keeps the keys of each user apart. `randomUUID` is for secure pages only. */
function newKey() {
  return globalThis.crypto?.randomUUID?.() ?? [Date.now(), Math.random(), Math.random()].join("-");
}
