// A hand-made WebSocket, fetch and clock for the client: the moments that a real network seldom gives.
import { beforeEach, mock } from "node:test";

export const { connect, eventStream, ChatError } = await import(process.env.CHATSERVER_CLIENT ?? "../../clients/web/chatserver.js");

export const RUN = "run-1";
let servers = 0;
export let url;
export const beat = 15_000;

/** Let everything that is ready happen, and then so much time pass. */
export async function pass(ms = 0) {
  await new Promise(setImmediate);
  if (ms) mock.timers.tick(ms);
  await new Promise(setImmediate);
}

export const start = (more) => ({ type: "start", run_id: RUN, seq: 1, session_id: "s", heartbeat_ms: beat, ...more });
export const token = (seq, content = `${seq} `) => ({ type: "token", run_id: RUN, seq, content });
export const done = (seq) => ({ type: "done", run_id: RUN, seq, session_id: "s", usage: { output_tokens: 1 } });
export const frames = (...events) => events.map((event) => `data: ${JSON.stringify(event)}\nid: ${event.seq}\n\n`).join("");

/** Sockets that do nothing by themselves. */
export function sockets() {
  const made = [];
  class Socket {
    sent = [];
    isClosed = false;
    constructor(url, protocol) {
      Object.assign(this, { url, protocol });
      made.push(this);
    }
    send(text) {
      this.sent.push(JSON.parse(text));
    }
    close() {
      this.isClosed = true;
    }
    open() {
      this.onopen?.({});
    }
    say(...messages) {
      for (const message of messages) this.onmessage?.({ data: JSON.stringify(message) });
    }
    accept(more) {
      const { ref } = this.sent.findLast(({ type }) => type === "send" || type === "attach");
      this.say({ type: "accepted", ref, run_id: RUN, ...more });
    }
    end(code = 1006, reason = "") {
      this.onclose?.({ code, reason });
    }
  }
  return Object.defineProperty(Object.assign(made, { WebSocket: Socket }), "last", { get: () => made.at(-1) });
}

/** Requests that are answered by hand. */
export function requests() {
  const made = [];
  const fetch = (url, init) =>
    new Promise((resolve, reject) => {
      const headers = Object.fromEntries(new Headers(init.headers));
      const request = { url, ...init, headers, reject, json: init.body && JSON.parse(init.body) };
      init.signal?.addEventListener("abort", () => reject(new Error("aborted")));
      request.stream = (text = "") => {
        let controller;
        const body = new ReadableStream({ start: (given) => (controller = given) });
        init.signal?.addEventListener("abort", () => controller.error(new Error("aborted")));
        resolve(new Response(body, { headers: { "Content-Type": "text/event-stream" } }));
        request.write = (text) => controller.enqueue(new TextEncoder().encode(text));
        request.end = () => controller.close();
        request.cut = () => controller.error(new TypeError("network error"));
        if (text) request.write(text);
      };
      request.answer = (status, document, headers = {}) =>
        resolve(new Response(document === null ? null : JSON.stringify(document), { status, headers }));
      made.push(request);
    });
  return Object.defineProperty(Object.assign(made, { fetch }), "last", { get: () => made.at(-1) });
}

/** Read a run; what it came to, and the events so far. */
export function reading(run) {
  const read = { events: [], error: null, isOver: false };
  read.over = (async () => {
    try {
      for await (const event of run) read.events.push(event.seq);
    } catch (error) {
      read.error = error;
    }
    read.isOver = true;
  })();
  return read;
}

beforeEach(() => {
  url = `http://server-${++servers}.test`;
  mock.timers.reset();
  mock.timers.enable({ apis: ["setTimeout", "Date"] });
});
