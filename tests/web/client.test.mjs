// The client alone, with a hand-made WebSocket, fetch and clock: the moments that a real network seldom gives.
import assert from "node:assert/strict";
import { beforeEach, describe, mock, test } from "node:test";

const { connect, eventStream, ChatError } = await import(process.env.CHATSERVER_CLIENT ?? "../../clients/web/chatserver.js");

const RUN = "run-1";
let servers = 0;
let url;
const beat = 15_000;

/** Let everything that is ready happen, and then so much time pass. */
async function pass(ms = 0) {
  await new Promise(setImmediate);
  if (ms) mock.timers.tick(ms);
  await new Promise(setImmediate);
}

const start = (more) => ({ type: "start", run_id: RUN, seq: 1, session_id: "s", heartbeat_ms: beat, ...more });
const token = (seq, content = `${seq} `) => ({ type: "token", run_id: RUN, seq, content });
const done = (seq) => ({ type: "done", run_id: RUN, seq, session_id: "s", usage: { output_tokens: 1 } });
const frames = (...events) => events.map((event) => `id: ${event.seq}\ndata: ${JSON.stringify(event)}\n\n`).join("");

/** Sockets that do nothing by themselves. */
function sockets() {
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
function requests() {
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
function reading(run) {
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

describe("the parser of event streams", () => {
  const events = ["one", "two\nlines", "drei: ü", "👩‍👧 ", "", "\u2028 is no line end"];
  for (const [name, end] of [["LF", "\n"], ["CR", "\r"], ["CRLF", "\r\n"]]) {
    const text = [": comment", "retry: 1000", "", ...events.flatMap((data, n) => [
      `id: ${n}`, "event: token", ...data.split("\n").map((line) => `data: ${line}`), ": ping", "",
    ]), "data: cut off"].join(end);
    const bytes = new TextEncoder().encode(`\ufeff${text}`);
    const wanted = events.filter(Boolean);
    test(`${name}, cut anywhere`, () => {
      for (let cut = 0; cut <= bytes.length; cut++) {
        const found = [];
        const parse = eventStream((data) => data && found.push(data));
        parse(bytes.subarray(0, cut));
        parse(bytes.subarray(cut));
        assert.deepEqual(found, wanted, `cut at ${cut}`);
      }
    });
    test(`${name}, one byte at a time`, () => {
      const found = [];
      const parse = eventStream((data) => data && found.push(data));
      for (const byte of bytes) parse(Uint8Array.of(byte));
      assert.deepEqual(found, wanted);
    });
  }
  test("an event is given at once, not with the byte that follows", () => {
    for (const end of ["\n", "\r", "\r\n"]) {
      const found = [];
      eventStream((data) => found.push(data))(new TextEncoder().encode(`data: x${end}${end}`));
      assert.deepEqual(found, ["x"]);
    }
  });
});

describe("auto", () => {
  test("takes the WebSocket that opens", async () => {
    const ws = sockets(), http = requests();
    const chat = connect(url, { WebSocket: ws.WebSocket, fetch: http.fetch });
    const read = reading(chat.send("Hi"));
    assert.equal(ws.last.url, `${url.replace("http", "ws")}/chat/ws`);
    assert.equal(ws.last.protocol, "chatserver.v1");
    ws.last.open();
    ws.last.accept();
    ws.last.say(start(), token(2), done(3));
    await read.over;
    assert.deepEqual([read.events, http.length, chat.via], [[1, 2, 3], 0, "ws"]);
    const again = reading(chat.send("Again"));
    assert.equal(ws.length, 1, "one connection for all runs");
    assert.equal(ws[0].sent.filter(({ type }) => type === "send").length, 2);
    chat.close();
    await again.over;
  });

  for (const [name, lose] of [["is refused", (socket) => socket.end()], ["says nothing for 2.5 s", () => pass(2500)]]) {
    test(`goes over to SSE when the WebSocket ${name}, and remembers`, async () => {
      const ws = sockets(), http = requests();
      const chat = connect(url, { WebSocket: ws.WebSocket, fetch: http.fetch });
      const read = reading(chat.send("Hi"));
      await pass();
      await lose(ws.last);
      await pass();
      assert.equal(http.last.method, "POST");
      http.last.stream(frames(start(), done(2)));
      await pass();
      http.last.end();
      await read.over;
      const other = connect(url, { WebSocket: ws.WebSocket, fetch: http.fetch });
      reading(other.send("Again"));
      await pass();
      assert.deepEqual([ws.length, http.length, other.via], [1, 2, "sse"]);
      other.close();
    });
  }

  test("tries both again and again while neither gets through", async () => {
    const ws = sockets(), http = requests();
    const chat = connect(url, { WebSocket: ws.WebSocket, fetch: http.fetch, backoff: () => 100 });
    const read = reading(chat.send("Hi"));
    for (let round = 1; round <= 5; round++) {
      await pass();
      assert.equal(ws.length, round);
      ws.last.end();
      await pass();
      assert.equal(http.length, round);
      http.last.reject(new TypeError("failed to fetch"));
      await pass(100);
    }
    assert.equal(new Set([...http.map(({ json }) => json.idempotency_key)]).size, 1);
    chat.close();
    await read.over;
  });

  test("is SSE without a WebSocket, and WebSocket without streams", async () => {
    assert.equal(connect(url, { WebSocket: undefined }).via, globalThis.WebSocket ? "ws" : "sse");
    const { ReadableStream } = globalThis;
    try {
      delete globalThis.ReadableStream;
      assert.equal(connect(url, { WebSocket: sockets().WebSocket, transport: "sse" }).via, "ws");
    } finally {
      globalThis.ReadableStream = ReadableStream;
    }
  });
});

describe("a lost connection", () => {
  const final = [1000, 1002, 1003, 1007, 1009, 4400, 4401, 4403, 4404];
  for (const code of [1001, 1005, 1006, 1011, 1012, 1013, 4408, 4429, ...final]) {
    test(`closed with ${code} is ${final.includes(code) ? "final" : "come back from"}`, async () => {
      const ws = sockets();
      const chat = connect(url, { transport: "ws", WebSocket: ws.WebSocket, backoff: () => 100 });
      const read = reading(chat.send("Hi"));
      ws.last.open();
      ws.last.accept();
      ws.last.say(start(), token(2));
      await pass();
      ws.last.end(code, "so it is");
      await pass(code === 1012 ? 0 : 100);
      if (final.includes(code)) {
        assert.equal(ws.length, 1);
        assert.ok(read.error instanceof ChatError && read.error.isFinal);
        assert.equal(read.error.status, code > 4000 ? code - 4000 : 0);
        assert.deepEqual(read.events, [1, 2], "what has come is given first");
      } else {
        assert.equal(ws.length, 2);
        ws.last.open();
        assert.deepEqual(ws.last.sent.find(({ type }) => type === "attach")?.after, 2);
      }
      chat.close();
    });
  }

  test("waits longer each time, up to 20 s, and anew after progress", async () => {
    const http = requests(), waits = [];
    mock.method(Math, "random", () => 1);
    const chat = connect(url, { transport: "sse", fetch: http.fetch });
    chat.on("state", (state, { delayMs }) => state === "waiting" && waits.push(delayMs));
    reading(chat.send("Hi"));
    for (let round = 0; round < 8; round++) {
      await pass();
      http.last.reject(new TypeError("failed to fetch"));
      await pass();
      await pass(waits.at(-1));
    }
    assert.deepEqual(waits, [500, 1000, 2000, 4000, 8000, 16000, 20000, 20000]);
    http.last.stream(": ping\n\n");
    await pass();
    http.last.cut();
    await pass();
    assert.equal(waits.at(-1), 20000, "an open connection is no progress");
    await pass(20000);
    http.last.stream(frames(start()));
    await pass();
    http.last.cut();
    await pass();
    assert.equal(waits.at(-1), 500, "an event is");
    mock.restoreAll();
    chat.close();
  });

  for (const [name, answer] of [
    ["429 with a header", (last) => last.answer(429, { code: "too_many" }, { "Retry-After": "7" })],
    ["503 with a date", (last) => last.answer(503, {}, { "Retry-After": new Date(Date.now() + 7000).toUTCString() })],
    ["503 with a document", (last) => last.answer(503, { code: "draining", retry_after: 7 })],
  ]) {
    test(`${name} is obeyed, whoever wakes`, async () => {
      const http = requests();
      const chat = connect(url, { transport: "sse", fetch: http.fetch, backoff: () => 1 });
      reading(chat.send("Hi"));
      await pass();
      answer(http.last);
      await pass();
      await pass(5900);
      chat.wake();
      await pass();
      assert.equal(http.length, 1);
      await pass(1100);
      assert.equal(http.length, 2);
      chat.close();
    });
  }

  test("429 to one run leaves the others on their WebSocket alone", async () => {
    const ws = sockets();
    const chat = connect(url, { transport: "ws", WebSocket: ws.WebSocket });
    reading(chat.send("Hi"));
    ws.last.open();
    const { ref, ...request } = ws.last.sent.at(-1);
    ws.last.say({ type: "rejected", ref, status: 429, code: "too_many", message: "later", retry_after: 7 });
    await pass(6999);
    assert.equal(ws.last.sent.filter(({ type }) => type === "send").length, 1);
    ws.last.say({ type: "ping" });
    await pass(1);
    const { ref: other, ...repeated } = ws.last.sent.at(-1);
    assert.deepEqual(repeated, request, "with the same key");
    assert.notEqual(other, ref);
    assert.equal(ws.length, 1);
    chat.close();
  });

  for (const transport of ["sse", "ws"]) {
    test(`${transport}: a run that waits says why, and until when`, async () => {
      const ws = sockets(), http = requests(), told = [];
      const chat = connect(url, { transport, WebSocket: ws.WebSocket, fetch: http.fetch });
      const run = chat.send("Hi");
      chat.on("state", (state, { reason, delayMs }) => told.push([state, reason?.code, delayMs, run.waits?.delayMs]));
      await pass();
      if (transport === "ws") ws.last.open();
      for (const retry_after of [7, 3]) {
        const refusal = { status: 429, code: "too_many", retry_after };
        if (transport === "sse") http.last.answer(429, { ...refusal, detail: "4 answers are being written" });
        else {
          ws.last.say({ type: "pong" });
          const { ref } = ws.last.sent.at(-1);
          ws.last.say({ type: "rejected", ref, ...refusal, message: "4 answers are being written" });
        }
        await pass();
        const { reason, until } = run.waits;
        assert.deepEqual(
          [chat.state, reason.code, reason.status, reason.message, reason.retryAfter, until - Date.now()],
          ["waiting", "too_many", 429, "4 answers are being written", retry_after, retry_after * 1000],
        );
        await pass(retry_after * 1000);
        assert.ok(run.waits, "until it is taken, it waits");
      }
      if (transport === "sse") http.last.stream();
      else ws.last.accept();
      await pass();
      assert.deepEqual([run.waits, chat.state], [null, "open"]);
      assert.deepEqual(told.filter(([, code]) => code), [
        ["waiting", "too_many", 7000, 7000],
        ["waiting", "too_many", 3000, 3000],
      ]);
      assert.deepEqual(told.at(-1), ["open", undefined, undefined, undefined]);
      chat.close();
    });
  }

  test("one run of a WebSocket waits, the others do not", async () => {
    const ws = sockets();
    const chat = connect(url, { transport: "ws", WebSocket: ws.WebSocket });
    const going = chat.send("Hi");
    ws.last.open();
    ws.last.accept();
    ws.last.say(start());
    const late = chat.send("Me too");
    const { ref } = ws.last.sent.at(-1);
    ws.last.say({ type: "rejected", ref, status: 503, code: "draining", message: "later", retry_after: 1 });
    assert.deepEqual([going.waits, late.waits.reason.code, chat.state], [null, "draining", "waiting"]);
    late.detach();
    assert.deepEqual([late.waits, chat.state], [null, "open"]);
    chat.close();
  });

  for (const status of [400, 401, 403, 404, 409, 413, 422]) {
    test(`${status} is final`, async () => {
      const http = requests();
      const chat = connect(url, { transport: "sse", fetch: http.fetch, backoff: () => 1 });
      const read = reading(chat.send("Hi"));
      await pass();
      http.last.answer(status, { code: "so", detail: "because", run_id: "other", errors: [{ pointer: "/x" }] });
      await read.over;
      await pass(1000);
      const { name, code, message, runId, errors } = read.error;
      assert.deepEqual({ name, status: read.error.status, code, message, runId, errors }, {
        name: "ChatError", status, code: "so", message: "because", runId: "other", errors: [{ pointer: "/x" }],
      });
      assert.equal(http.length, 1);
      chat.close();
    });
  }

  for (const answer of [(last) => last.answer(502, {}), (last) => last.answer(500, {}), (last) => last.answer(200, {})]) {
    test(`an answer that is not the server's is a loss: ${answer}`, async () => {
      const http = requests();
      const chat = connect(url, { transport: "sse", fetch: http.fetch, backoff: () => 1 });
      reading(chat.send("Hi"));
      await pass();
      answer(http.last);
      await pass();
      await pass(1);
      assert.equal(http.length, 2);
      assert.deepEqual(http[1].json, http[0].json);
      chat.close();
    });
  }

  test("a command too big for the WebSocket fails its own run, not the one that is going", async () => {
    const ws = sockets();
    const chat = connect(url, { transport: "ws", WebSocket: ws.WebSocket, backoff: () => 1 });
    const going = reading(chat.send("Hi"));
    ws.last.open();
    ws.last.accept();
    ws.last.say(start());
    const big = reading(chat.send("very long"));
    ws.last.end(1009);
    await pass();
    await pass(1);
    assert.equal(big.error.code, "1009");
    assert.equal(going.isOver, false);
    ws.last.open();
    assert.deepEqual(ws.last.sent.map(({ type }) => type), ["ping", "attach"]);
    chat.close();
  });
});

describe("liveness", () => {
  for (const transport of ["sse", "ws"]) {
    test(`${transport}: comments and pings count; 2.5 heartbeats of silence are a loss`, async () => {
      const ws = sockets(), http = requests(), states = [];
      const chat = connect(url, { transport, WebSocket: ws.WebSocket, fetch: http.fetch });
      chat.on("state", (state) => states.push(state));
      reading(chat.send("Hi"));
      await pass();
      if (transport === "sse") http.last.stream(frames(start({ heartbeat_ms: 1000 })));
      else {
        ws.last.open();
        ws.last.accept();
        ws.last.say(start({ heartbeat_ms: 1000 }));
      }
      const made = transport === "sse" ? http : ws;
      for (let beats = 0; beats < 20; beats++) {
        await pass(2400);
        if (transport === "sse") http.last.write(": ping\n\n");
        else ws.last.say({ type: "ping" });
        await pass();
      }
      assert.deepEqual([made.length, chat.state], [1, "open"]);
      await pass(2499);
      assert.equal(made.length, 1);
      await pass(1);
      await pass();
      assert.deepEqual(states, ["connecting", "open", "stalled", "connecting"]);
      assert.equal(made.length, 2);
      if (transport === "sse") assert.equal(http.last.headers["last-event-id"], "1");
      chat.close();
    });
  }

  test("to wake is one ping where bytes flow, and a new connection where none answers", async () => {
    const ws = sockets();
    const chat = connect(url, { transport: "ws", WebSocket: ws.WebSocket });
    reading(chat.send("Hi"));
    ws.last.open();
    ws.last.accept();
    ws.last.say(start());
    const pings = () => ws.last.sent.filter(({ type }) => type === "ping").length;
    chat.wake();
    assert.equal(pings(), 2);
    await pass(2400);
    ws.last.say({ type: "pong" });
    await pass(2600);
    assert.equal(ws.length, 1, "it answered");
    chat.wake();
    await pass(2500);
    await pass();
    assert.equal(ws.length, 2, "it did not");
    ws.last.open();
    assert.equal(ws.last.sent.filter(({ type }) => type === "send").length, 0, "never a second start");
    chat.close();
  });

  test("to wake after a long sleep comes back at once, by GET", async () => {
    const http = requests();
    const chat = connect(url, { transport: "sse", fetch: http.fetch });
    reading(chat.send("Hi"));
    await pass();
    http.last.stream(frames(start(), token(2)));
    await pass();
    await pass(beat + 1);
    for (let times = 0; times < 4; times++) chat.wake();
    await pass();
    assert.deepEqual(http.map(({ method }) => method ?? "GET"), ["POST", "GET"]);
    assert.equal(http.last.headers["last-event-id"], "2");
    chat.close();
  });

  test("to wake ends a wait, and leaves a stream alone whose bytes flow", async () => {
    const http = requests();
    const chat = connect(url, { transport: "sse", fetch: http.fetch, backoff: () => 20_000 });
    reading(chat.send("Hi"));
    await pass();
    http.last.reject(new TypeError());
    await pass();
    assert.equal(chat.state, "waiting");
    chat.wake();
    await pass();
    assert.equal(http.length, 2);
    http.last.stream(frames(start()));
    await pass();
    chat.wake();
    await pass(beat - 1);
    http.last.write(": ping\n\n");
    await pass(beat);
    assert.equal(http.length, 2);
    chat.close();
  });
});

describe("a run", () => {
  async function opened(...events) {
    const ws = sockets(), http = requests();
    const chat = connect(url, { transport: "ws", WebSocket: ws.WebSocket, fetch: http.fetch, backoff: () => 1 });
    const run = chat.send("Hi");
    ws.last.open();
    ws.last.accept();
    ws.last.say(...events);
    return { ws, http, chat, run };
  }

  test("drops a duplicate, and takes a gap for an error", async () => {
    const { ws, run, chat } = await opened(start(), token(2), token(2), start(), token(3), token(5), token(4));
    const read = reading(run);
    await read.over;
    assert.deepEqual(read.events, [1, 2, 3]);
    assert.equal(read.error.code, "gap");
    assert.equal(ws.last.sent.at(-1).type, "detach");
    chat.close();
  });

  test("holds what the loop has been given", async () => {
    const call = { call_id: "c", tool: "t", args: {}, needs_approval: false };
    const result = { call_id: "c", tool: "t", result: 1, is_error: false, truncated: false, duration_ms: 2 };
    const { run, chat } = await opened(
      start(),
      { type: "reasoning", run_id: RUN, seq: 2, content: "hm" },
      token(3, "a"),
      { type: "tool_call", run_id: RUN, seq: 4, ...call },
      { type: "tool_result", run_id: RUN, seq: 5, ...result },
      { type: "of tomorrow", run_id: RUN, seq: 6 },
      token(7, "b"),
      { type: "snapshot", run_id: RUN, seq: 20, content: "abc", reasoning: "hmm", tool_calls: [] },
      done(21),
    );
    const seen = [];
    for await (const event of run) seen.push([event.seq, run.seq, run.text, run.reasoning, run.toolCalls]);
    const whole = { ...call, ...result };
    const open = { ...call, result: null, is_error: null, truncated: null, duration_ms: null };
    assert.deepEqual(seen, [
      [1, 1, "", "", []],
      [2, 2, "", "hm", []],
      [3, 3, "a", "hm", []],
      [4, 4, "a", "hm", [open]],
      [5, 5, "a", "hm", [whole]],
      [6, 6, "a", "hm", [whole]],
      [7, 7, "ab", "hm", [whole]],
      [20, 20, "abc", "hmm", []],
      [21, 21, "abc", "hmm", []],
    ]);
    assert.deepEqual([run.id, run.sessionId, run.usage, run.end.type], [RUN, "s", { output_tokens: 1 }, "done"]);
    chat.close();
  });

  test("that is left is detached from, not cancelled; that is cancelled afterwards is", async () => {
    const { ws, http, run, chat } = await opened(start(), token(2));
    for await (const event of run) if (event.seq === 2) break;
    assert.deepEqual(ws.last.sent.at(-1), { type: "detach", run_id: RUN, ref: "2" });
    const cancelled = run.cancel();
    await pass();
    assert.deepEqual([http.last.method, http.last.url], ["POST", `${url}/chat/runs/${RUN}/cancel`]);
    http.last.answer(202, {});
    await cancelled;
    chat.close();
  });

  test("is cancelled and answered over its WebSocket, or by a request when that is lost", async () => {
    const { ws, http, run, chat } = await opened(start(), token(2));
    reading(run);
    const answered = run.answer("call", { approve: false, reason: "no" });
    await pass();
    const { ref, ...command } = ws.last.sent.at(-1);
    assert.deepEqual(command, { type: "answer", run_id: RUN, call_id: "call", approve: false, reason: "no" });
    ws.last.say({ type: "rejected", ref, status: 409, code: "answered", message: "too late" });
    await assert.rejects(answered, { status: 409, code: "answered" });
    const cancelled = run.cancel();
    await pass();
    assert.equal(ws.last.sent.at(-1).type, "cancel");
    ws.last.end();
    await pass();
    await pass(1);
    http.last.reject(new TypeError());
    await pass();
    await pass(1);
    assert.deepEqual(http.map(({ url }) => new URL(url).pathname), Array(2).fill(`/chat/runs/${RUN}/cancel`));
    http.last.answer(202, {});
    await cancelled;
    chat.close();
  });

  test("left before the server named it is detached from as soon as it does", async () => {
    const ws = sockets();
    const chat = connect(url, { transport: "ws", WebSocket: ws.WebSocket });
    const leaving = new AbortController();
    const read = reading(chat.send("Hi", { signal: leaving.signal }));
    ws.last.open();
    leaving.abort(new Error("changed my mind"));
    await read.over;
    assert.equal(read.error.message, "changed my mind");
    ws.last.accept();
    assert.deepEqual(ws.last.sent.map(({ type }) => type), ["ping", "send", "detach"]);
    chat.close();
  });

  test("sends the fields of the contract", async () => {
    const http = requests();
    const chat = connect(url, { transport: "sse", fetch: http.fetch });
    chat.send("Hi", { sessionId: "s", idempotencyKey: "k", maxOutputTokens: 5, onDisconnect: "continue", model: "m" });
    await pass();
    const fields = { session_id: "s", idempotency_key: "k", max_output_tokens: 5, on_disconnect: "continue", model: "m" };
    assert.deepEqual(http.last.json, { message: "Hi", ...fields });
    chat.send(null, { regenerate: "u" });
    await pass();
    const { idempotency_key, ...rest } = http.last.json;
    assert.deepEqual(rest, { regenerate: "u" });
    assert.ok(idempotency_key.length > 20);
    chat.close();
  });

  test("attached to at its end is over", async () => {
    const ws = sockets(), http = requests();
    for (const transport of ["ws", "sse"]) {
      const chat = connect(url, { transport, WebSocket: ws.WebSocket, fetch: http.fetch });
      const read = reading(chat.attach(RUN, { after: 9 }));
      await pass();
      if (transport === "ws") {
        ws.last.open();
        ws.last.accept({ ended: true });
      } else http.last.answer(204, null);
      await read.over;
      assert.deepEqual([read.events, read.error], [[], null]);
      chat.close();
    }
  });

  test("read twice on one WebSocket: the server's one cursor is that of the slower reader", async () => {
    const { ws, run, chat } = await opened(start(), token(2));
    const first = reading(run);
    const second = reading(chat.attach(RUN));
    assert.equal(ws.last.sent.at(-1).after, 0);
    ws.last.say(start(), token(2), token(3), done(4));
    await Promise.all([first.over, second.over]);
    assert.deepEqual([first.events, second.events], [[1, 2, 3, 4], [1, 2, 3, 4]]);
    chat.close();
  });
});

describe("tokens", () => {
  test("are asked for at each connection: a header for fetch, a ticket for a WebSocket", async () => {
    for (const transport of ["sse", "ws"]) {
      const ws = sockets(), http = requests();
      let asked = 0;
      const token = async () => `t${++asked}`;
      const chat = connect(url, { transport, token, WebSocket: ws.WebSocket, fetch: http.fetch, backoff: () => 1 });
      reading(chat.send("Hi"));
      for (let round = 1; round <= 2; round++) {
        await pass();
        assert.equal(http.last.headers.authorization, `Bearer t${round}`);
        if (transport === "ws") {
          assert.equal(http.last.url, `${url}/chat/tickets`);
          http.last.answer(200, { ticket: `one/use+${round}`, expires_in: 60 });
          await pass();
          assert.equal(new URL(ws.last.url).searchParams.get("ticket"), `one/use+${round}`);
          ws.last.end();
        } else http.last.reject(new TypeError());
        await pass();
        await pass(1);
      }
      chat.close();
    }
  });
});

describe("a switch of the transport", () => {
  test("moves what is going, with its cursor, and what was not answered, with its key", async () => {
    const ws = sockets(), http = requests();
    const chat = connect(url, { transport: "ws", WebSocket: ws.WebSocket, fetch: http.fetch });
    const states = [];
    chat.on("state", (state) => states.push(state));
    const going = reading(chat.send("Hi"));
    ws.last.open();
    ws.last.accept();
    ws.last.say(start(), token(2));
    reading(chat.send("unanswered"));
    const { idempotency_key } = ws.last.sent.at(-1);
    chat.transport = "sse";
    await pass();
    assert.equal(ws.last.isClosed, true);
    assert.deepEqual(http.map(({ url }) => new URL(url).pathname), [`/chat/runs/${RUN}/events`, "/chat/stream"]);
    assert.equal(http[0].headers["last-event-id"], "2");
    assert.equal(http[1].json.idempotency_key, idempotency_key);
    http[0].stream(frames(token(3), done(4)));
    await pass();
    assert.deepEqual(going.events, [1, 2, 3, 4]);
    assert.ok(!states.includes("idle"));
    chat.close();
    assert.equal(chat.state, "closed");
  });
});
