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
import type { ChatEvent, DoneEvent, ErrorEvent, ReasoningPart, TextPart, ToolCallPart, Usage } from "./events.js";
import type { FieldProblem, FilePart, ImagePart } from "./resources.js";
export type Part = TextPart | ReasoningPart | ToolCallPart;
export type Message = readonly (TextPart | Sendable<ImagePart> | Sendable<FilePart>)[];
export type Sendable<T> = {
    [K in keyof T as null extends T[K] ? never : K]: T[K];
} & {
    [K in keyof T as null extends T[K] ? K : never]?: T[K] | undefined;
};
export type Json = {
    parse(text: string): any;
    stringify(value: unknown): string;
};
export type Transport = "auto" | "ws" | "sse";
export type State = "idle" | "connecting" | "open" | "stalled" | "waiting" | "offline" | "closed";
export type ClientTool = {
    /**
     * for the model
     */
    description: string;
    /**
     * JSON Schema of an object: the arguments
     */
    parameters: Record<string, unknown>;
    /**
     * gives the result, as
     * JSON, or a promise of it; what it throws is the call's failure. `signal` aborts when the call needs no result any more
     */
    run: (args: any, call: {
        runId: string;
        callId: string;
        signal: AbortSignal;
    }) => unknown;
};
export type Answer = {
    approve: boolean;
    args?: Record<string, unknown> | undefined;
    reason?: string | undefined;
} | {
    result: unknown;
    is_error?: boolean | undefined;
};
export type Options = {
    /**
     * default `auto`
     */
    transport?: Transport | undefined;
    /**
     * asked before each connection and
     * request; once more, with the refusal, where the server did not take it: then a fresh one is needed
     */
    token?: ((refusal?: ChatError) => string | Promise<string>) | undefined;
    /**
     * for runtimes without one, such as Node 20
     */
    WebSocket?: (new (url: string, protocol: string) => any) | undefined;
    /**
     * for cookies, proxies and tests
     */
    fetch?: typeof fetch | undefined;
    /**
     * reads events and writes requests, for those who need the numbers that `JSON` rounds;
     * default `JSON`
     */
    json?: Json | undefined;
    /**
     * what the model may call and this client runs, by name
     */
    tools?: Record<string, ClientTool> | undefined;
    /**
     * ms to wait after so many losses without progress
     */
    backoff?: ((tries: number) => number) | undefined;
    /**
     * the server's heartbeat, until a `start` event tells it
     */
    heartbeatMs?: number | undefined;
    /**
     * how long a connection may take to its first byte; default 10,000
     */
    connectMs?: number | undefined;
    /**
     * so many losses and refusals in a row, with no event between, and the loop
     * throws the last one; default: it tries on
     */
    maxTries?: number | undefined;
    /**
     * the same for a run that the server has not taken for so long; default: for ever
     */
    giveUpMs?: number | undefined;
};
export type ChatRequest = {
    /**
     * names of the chat's tools that the model may call; absent: all of them
     */
    tools?: string[] | undefined;
    /**
     * absent: a new session
     */
    sessionId?: string | undefined;
    /**
     * absent: one is made, so that a repeated request starts nothing twice
     */
    idempotencyKey?: string | undefined;
    model?: string | undefined;
    system?: string | undefined;
    temperature?: number | undefined;
    maxOutputTokens?: number | undefined;
    /**
     * the user's message to answer again; with a text, to edit
     */
    regenerate?: string | undefined;
    /**
     * the answer that the message follows; absent: the newest
     */
    parentId?: string | undefined;
    /**
     * the form of the answer, as PROTOCOL.md has it
     */
    responseFormat?: Record<string, unknown> | undefined;
    onDisconnect?: "cancel" | "continue" | undefined;
};
export type Frame = {
    /**
     * `performance.now()`
     */
    at: number;
    transport: "ws" | "sse";
    way: "in" | "out";
    text: string;
};
export type Wait = {
    /**
     * what was refused or lost: `code`, `status`, `message`, `retryAfter`
     */
    reason: ChatError;
    /**
     * how long until the next try
     */
    delayMs: number;
    /**
     * when that is, as `Date.now()` tells it
     */
    until: number;
};
export type Happenings = {
    state: [State, Partial<Wait>];
    frame: [Frame];
};
/** What the server refused, or why a connection was lost. `isFinal`: asking again would not help. */
export declare class ChatError extends Error {
    status: number;
    code: string;
    /** Seconds. */
    retryAfter: number | undefined;
    /** With `run_active`: the run that is going. */
    runId: string | undefined;
    errors: FieldProblem[] | undefined;
    isFinal: boolean;
    /** Worth coming back without a wait. */
    atOnce: boolean;
    /**
     * @param {string} message
     * @param {{ status?: number | undefined, code?: string | undefined, retryAfter?: number | undefined,
     *   runId?: string | undefined, errors?: FieldProblem[] | undefined, isFinal?: boolean | undefined,
     *   atOnce?: boolean | undefined, cause?: unknown }} [facts]
     */
    constructor(message: string, { status, code, retryAfter, runId, errors, isFinal, atOnce, cause }?: {
        status?: number | undefined;
        code?: string | undefined;
        retryAfter?: number | undefined;
        runId?: string | undefined;
        errors?: FieldProblem[] | undefined;
        isFinal?: boolean | undefined;
        atOnce?: boolean | undefined;
        cause?: unknown;
    });
}
/**
 * A chat with a server. Nothing is sent until there is something to say.
 * @param {string | URL} [url] default: the folder that the page is in; outside of a page it has to be a whole address
 * @param {Options} [options]
 * @throws {TypeError} this is no address of a server
 */
export declare function connect(url?: string | URL, options?: Options): Chat;
/** All runs of a page, and the lines that carry them. */
export declare class Chat {
    #private;
    /**
     * Ask. The answer is read in a loop; it comes whether or not anybody loops.
     * @param {string | Message | null} message a text, or parts; null: only with `regenerate`
     * @param {ChatRequest & { signal?: AbortSignal | undefined }} [request] `signal` leaves the answer; it does not cancel it
     */
    send(message: string | Message | null, { signal, ...fields }?: ChatRequest & {
        signal?: AbortSignal | undefined;
    }): Run;
    /**
     * Read a run that exists: after a reload, in another tab. Without `after` it is read from its start; `parts` is what was
     * read up to there, and grows on.
     * @param {string} runId
     * @param {{ after?: number | undefined, parts?: Part[] | undefined, signal?: AbortSignal | undefined }} [where]
     */
    attach(runId: string, { after, parts, signal }?: {
        after?: number | undefined;
        parts?: Part[] | undefined;
        signal?: AbortSignal | undefined;
    }): Run;
    /** What is asked for; setting it moves every answer that is going over, and none loses or repeats an event. */
    get transport(): Transport;
    set transport(transport: Transport);
    /** What is used now, for the next connection. @returns {"ws" | "sse"} */
    get via(): "ws" | "sse";
    /** @returns {State} */
    get state(): State;
    /**
     * @template {keyof Happenings} T @param {T} what @param {(...facts: Happenings[T]) => void} listener
     * @returns {() => void} takes the listener off again
     */
    on<T extends keyof Happenings>(what: T, listener: (...facts: Happenings[T]) => void): () => void;
    /** See whether the connections live; where one does not, go on over a new one. For `AppState` and `NetInfo`.
     *  @param {boolean} [hasMoved] the network is another one: a silent connection is dead */
    wake(hasMoved?: boolean): void;
    /** Cut all connections, as a tunnel would. The answers go on. */
    cut(): void;
    /** Leave all runs. They can be attached to again. */
    close(): void;
    /**
     * A request with the token, to a path of the server.
     * @param {string} path such as `/chat/sessions` @param {RequestInit} [init]
     * @returns {Promise<Response>}
     * @throws {ChatError} it was refused
     */
    request(path: string, init?: RequestInit): Promise<Response>;
}
/** One answer. What it holds is as of the last event that the loop over it was given. @implements {AsyncIterable<ChatEvent>} */
export declare class Run implements AsyncIterable<ChatEvent> {
    #private;
    /** The run's id, once the server has said it. @type {string | null} */ id: string | null;
    /** The cursor to attach with. @type {number} */ seq: number;
    /** @type {string | null} */ sessionId: string | null;
    /** @type {string | null} */ messageId: string | null;
    /** @type {string | null} */ userMessageId: string | null;
    /** The answer in the order in which it happened; it grows in place, and a part that changes is a new object. @type {Part[]} */ parts: Part[];
    /** @type {Usage | null} */ usage: Usage | null;
    /** The terminal event. @type {DoneEvent | ErrorEvent | null} */ end: DoneEvent | ErrorEvent | null;
    /** Why it has to wait, until the server takes it; a `state` event tells of each change. @type {Wait | null} */ waits: Wait | null;
    /** The text of the answer so far: its text parts, joined. */
    get text(): string;
    /** The calls that wait for an answer: for an approval, for the result of a client's tool, for what a user says. */
    get openCalls(): ToolCallPart[];
    /**
     * Answer a call that waits. The first answer counts; where the reply to this one was lost, it is sent again.
     * @param {string} callId @param {Answer} answer
     * @returns {Promise<void>} the call is answered; its result comes as an event
     * @throws {ChatError} it was refused: `already_answered` by somebody else, who was first; `bad_request`: it does not fit,
     *   and the call waits on
     */
    answer(callId: string, answer: Answer): Promise<void>;
    /** End the run, for every reader. @returns {Promise<void>} the server has obeyed; the end comes as an event */
    cancel(): Promise<void>;
    /** Stop reading, as leaving the loop does. The run goes on. */
    detach(): void;
    /** The events, once. @returns {AsyncGenerator<ChatEvent, void, void>} @throws {ChatError} there is a loop already */
    [Symbol.asyncIterator](): AsyncGenerator<ChatEvent, void, void>;
}
export type Order = (command: Record<string, unknown>, accept?: (answer: any) => void, refuse?: (error: ChatError) => void) => void;
/**
 * A parser of `text/event-stream`, fed with bytes that may be cut anywhere.
 * @param {(data: string) => void} dispatch gets the data of each event
 * @param {(ms: number) => void} [retry] gets what each `retry:` line asks to wait
 * @returns {(bytes: Uint8Array) => string} takes bytes, gives their text
 */
export declare function eventStream(dispatch: (data: string) => void, retry?: (ms: number) => void): (bytes: Uint8Array) => string;
