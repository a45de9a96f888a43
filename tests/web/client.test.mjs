// The client alone: connections, runs, tokens. What calls of tools ask of it is in calls.test.mjs.
import assert from "node:assert/strict";
import { describe, mock, test } from "node:test";

import "./calls.test.mjs";
import { ChatError, RUN, beat, connect, done, eventStream, frames, pass, reading, requests, sockets, start, token, url } from "./hand_made.mjs";

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
  const final = [1000, 1002, 1003, 1007, 1009, 4400, 4401, 4418];
  const refusals = {
    1000: [0, "ws_1000"], 1002: [400, "bad_http"], 1003: [415, "unsupported_media_type"], 1007: [400, "bad_json"],
    1009: [413, "too_large"], 1011: [500, "internal"], 1012: [503, "draining"], 1013: [503, "overloaded"],
    4400: [400, "bad_request"], 4401: [401, "unauthenticated"],
    4408: [408, "too_slow"], 4418: [418, "ws_4418"], 4429: [429, "too_many"],
  };
  for (const code of [1001, 1005, 1006, 1011, 1012, 1013, 4408, 4429, ...final]) {
    test(`closed with ${code} is ${final.includes(code) ? "final" : "come back from"}`, async () => {
      const ws = sockets();
      const chat = connect(url, { transport: "ws", WebSocket: ws.WebSocket, backoff: () => 100 });
      const run = chat.send("Hi");
      const read = reading(run);
      ws.last.open();
      ws.last.accept();
      ws.last.say(start(), token(2));
      await pass();
      ws.last.end(code, "so it is");
      await pass();
      const [status, word] = refusals[code] ?? [0, "lost"];
      const why = read.error ?? run.waits?.reason;
      assert.deepEqual(code === 1012 || [why.status, why.code, why.message], code === 1012 || [status, word, "so it is"]);
      await pass(code === 1012 ? 0 : 100);
      if (final.includes(code)) {
        assert.equal(ws.length, 1);
        assert.ok(read.error instanceof ChatError && read.error.isFinal);
        assert.deepEqual(read.events, [1, 2], "what has come is given first");
      } else {
        assert.equal(ws.length, 2);
        ws.last.open();
        assert.deepEqual(ws.last.sent.find(({ type }) => type === "attach")?.after, 2);
      }
      chat.close();
    });
  }

  test("a retry: line at the end of the stream is obeyed, that at its beginning is not", async () => {
    const http = requests();
    const chat = connect(url, { transport: "sse", fetch: http.fetch, backoff: () => 1 });
    const run = chat.send("Hi");
    await pass();
    http.last.stream(`retry: 9000\n${frames(start())}`);
    await pass();
    http.last.end();
    await pass();
    assert.equal(run.waits.delayMs, 1);
    await pass(1);
    http.last.stream(`retry: 9000\n${frames(token(2))}: ping\nretry: 1234\n`);
    await pass();
    http.last.end();
    await pass();
    assert.equal(run.waits.delayMs, 1234);
    await pass(1233);
    chat.wake();
    await pass();
    assert.equal(http.length, 2);
    await pass(1);
    assert.equal(http.length, 3);
    chat.close();
  });

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

  for (const transport of ["sse", "ws"]) {
    test(`${transport}: a quota that is used up is no reason to wait`, async () => {
      const ws = sockets(), http = requests();
      const run = connect(url, { transport, WebSocket: ws.WebSocket, fetch: http.fetch }).send("Hi");
      const failed = assert.rejects(run[Symbol.asyncIterator]().next(), { code: "quota", status: 429, isFinal: true });
      await pass();
      const refusal = { status: 429, code: "quota" };
      if (transport === "sse") http.last.answer(429, refusal);
      else {
        ws.last.open();
        await pass();
        ws.last.say({ type: "rejected", ref: ws.last.sent.at(-1).ref, ...refusal, message: "full" });
      }
      await failed;
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
    assert.deepEqual([big.error.status, big.error.code], [413, "too_large"]);
    assert.equal(going.isOver, false);
    ws.last.open();
    assert.deepEqual(ws.last.sent.map(({ type }) => type), ["ping", "attach"]);
    chat.close();
  });
});

describe("closing", () => {
  test("leaves no timer behind, also where the stream hears nothing of it", async () => {
    const timers = new Set();
    const { setTimeout, clearTimeout } = globalThis;
    mock.method(globalThis, "setTimeout", (...given) => (timers.add(setTimeout(...given)), [...timers].at(-1)));
    mock.method(globalThis, "clearTimeout", (timer) => (timers.delete(timer), clearTimeout(timer)));
    const deaf = new ReadableStream({ start: (to) => to.enqueue(new TextEncoder().encode(frames(start(), token(2), done(3)))) });
    const answer = new Response(deaf, { headers: { "Content-Type": "text/event-stream" } });
    const chat = connect(url, { transport: "sse", fetch: () => Promise.resolve(answer) });
    await reading(chat.send("Hi")).over;
    assert.notEqual(timers.size, 0);
    chat.close();
    await pass();
    mock.restoreAll();
    assert.equal(timers.size, 0);
  });
});

describe("giving up", () => {
  for (const transport of ["sse", "ws"]) {
    const begin = async (options) => {
      const ws = sockets(), http = requests();
      const chat = connect(url, { transport, WebSocket: ws.WebSocket, fetch: http.fetch, backoff: () => 1000, ...options });
      const run = chat.send("Hi");
      const read = reading(run);
      const made = transport === "sse" ? http : ws;
      await pass();
      const lose = async () => {
        if (transport === "sse") http.last.reject(new TypeError("failed to fetch"));
        else {
          ws.last.open();
          ws.last.end();
        }
        await pass();
      };
      const serve = async (...events) => {
        if (transport === "sse") http.last.stream(frames(...events));
        else {
          ws.last.open();
          ws.last.accept();
          ws.last.say(...events);
        }
        await pass();
      };
      return { ws, http, chat, run, read, made, lose, serve };
    };

    test(`${transport}: after maxTries losses with no event between`, async () => {
      const { http, ws, read, made, lose, serve, chat } = await begin({ maxTries: 3 });
      await lose();
      await pass(1000);
      await lose();
      await pass(1000);
      await serve(start());
      transport === "sse" ? http.last.cut() : ws.last.end();
      await pass();
      await pass(1000);
      await lose();
      await pass(1000);
      assert.equal(read.isOver, false, "an event came between");
      await lose();
      assert.deepEqual([read.isOver, read.error?.name, read.error?.isFinal, made.length], [true, "ChatError", false, 5]);
      await pass(10_000);
      assert.equal(made.length, 5);
      assert.equal(chat.state, "idle");
      chat.close();
    });

    test(`${transport}: when the next try would be later than giveUpMs`, async () => {
      const { read, made, lose, serve, chat, http, ws } = await begin({ giveUpMs: 2500 });
      await serve(start({ heartbeat_ms: 60_000 }));
      await pass(50_000);
      transport === "sse" ? http.last.cut() : ws.last.end();
      await pass();
      await pass(1000);
      assert.deepEqual([made.length, read.isOver], [2, false], "it had been served until then");
      await lose();
      await pass(1000);
      await lose();
      assert.deepEqual([made.length, read.isOver, read.error?.code], [3, true, "lost"]);
      chat.close();
    });

    test(`${transport}: a refusal for the moment that asks for too long is passed on`, async () => {
      const { read, chat, http, ws } = await begin({ giveUpMs: 5000 });
      const refusal = { status: 429, code: "too_many", retry_after: 7 };
      if (transport === "sse") http.last.answer(429, refusal);
      else {
        ws.last.open();
        ws.last.say({ type: "rejected", ref: ws.last.sent.at(-1).ref, ...refusal });
      }
      await pass();
      assert.deepEqual([read.error?.code, read.error?.retryAfter, chat.state], ["too_many", 7, "idle"]);
      chat.close();
    });

    test(`${transport}: in the middle of a connection that says nothing`, async () => {
      const { read, chat } = await begin({ giveUpMs: 3000, connectMs: 10_000 });
      await pass(2999);
      assert.equal(read.isOver, false);
      await pass(1);
      await pass(1);
      assert.deepEqual([read.isOver, read.error?.name], [true, "ChatError"]);
      chat.close();
    });
  }

  test("a cancel gives up too", async () => {
    const http = requests();
    const chat = connect(url, { transport: "sse", fetch: http.fetch, maxTries: 2, backoff: () => 1 });
    const run = chat.attach(RUN);
    run.detach();
    const cancelled = assert.rejects(run.cancel(), { name: "ChatError", code: "lost" });
    await pass();
    for (let round = 0; round < 2; round++) {
      http.last.reject(new TypeError());
      await pass();
      await pass(1);
    }
    await cancelled;
    chat.close();
  });

  for (const [name, says] of [
    ["nobody", [["TypeError"], "unreachable"]],
    ["a gateway", [[502, {}], "http_502"]],
    ["a server that takes no such Host", [[403, { code: "forbidden" }], "forbidden"]],
    ["a server behind what lets no WebSocket through", [[426, { code: "upgrade_required" }], "lost"]],
  ]) {
    test(`a WebSocket that never opened: ${name} answers`, async () => {
      const ws = sockets(), http = requests();
      const chat = connect(url, { transport: "ws", WebSocket: ws.WebSocket, fetch: http.fetch, backoff: () => 100 });
      const run = chat.send("Hi");
      const read = reading(run);
      ws.last.end();
      await pass();
      assert.equal(http.last.url, `${url}/chat/ws`);
      const [[status, document], code] = says;
      if (document) http.last.answer(status, document);
      else http.last.reject(new TypeError("failed to fetch"));
      await pass();
      if (code === "forbidden") assert.deepEqual([read.error.code, read.error.status], ["forbidden", 403]);
      else assert.equal(run.waits.reason.code, code);
      await pass(100);
      assert.equal(ws.length, code === "forbidden" ? 1 : 2);
      chat.close();
    });
  }

  for (const [isThere, code] of [[true, "forbidden"], [false, "unreachable"]]) {
    test(`a page of another origin whose requests all fail: ${code}`, async () => {
      const http = requests(), { fetch } = globalThis;
      const asked = [];
      globalThis.location = { origin: "https://page.test" };
      globalThis.fetch = async (url, { mode }) => {
        asked.push([url, mode]);
        if (!isThere) throw new TypeError("failed to fetch");
        return { type: "opaque" };
      };
      try {
        const chat = connect(url, { transport: "sse", fetch: http.fetch, backoff: () => 100 });
        const run = chat.send("Hi");
        await pass();
        http.last.reject(new TypeError("failed to fetch"));
        await pass();
        assert.deepEqual(asked, [[`${url}/livez`, "no-cors"]]);
        assert.deepEqual([run.waits.reason.code, run.waits.reason.isFinal, chat.state], [code, false, "waiting"]);
        await pass(100);
        http.last.stream(frames(start()));
        await pass();
        http.last.cut();
        await pass();
        assert.equal(run.waits.reason.code, "lost");
        assert.equal(asked.length, 1, "a server that has let us in is not asked why");
        chat.close();
      } finally {
        globalThis.fetch = fetch;
        delete globalThis.location;
      }
    });
  }

  for (const address of ["", ".", "/chat", "chat.example.org", "localhost:8000", "ws://a", "http://", "http://a b", "http://u:p@a", "ftp://a"]) {
    test(`connect throws for ${JSON.stringify(address)}, outside of a page`, () => {
      assert.throws(() => connect(address), TypeError);
    });
  }

  test("connect throws without an address, outside of a page", () => {
    assert.throws(() => connect(), TypeError);
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
        if (transport === "sse") http.last.write(": ping\n");
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

  for (const transport of ["sse", "ws"]) {
    test(`${transport}: what froze at its first byte is given up by the heartbeat, not by the patience to connect`, async () => {
      const ws = sockets(), http = requests();
      const options = { transport, WebSocket: ws.WebSocket, fetch: http.fetch, heartbeatMs: 1000, connectMs: 10_000 };
      const chat = connect(url, options);
      reading(chat.attach(RUN, { after: 1 }));
      await pass();
      if (transport === "sse") http.last.stream(": ping\n");
      else {
        ws.last.open();
        ws.last.say({ type: "pong" });
      }
      await pass();
      const made = transport === "sse" ? http : ws;
      await pass(2499);
      assert.equal(made.length, 1);
      await pass(1);
      await pass();
      assert.equal(made.length, 2);
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

  test("holds what the loop has been given, in the order in which it happened", async () => {
    const call = { call_id: "c", tool: "t", args: {}, needs_approval: false, executor: "server" };
    const result = { call_id: "c", tool: "t", result: 1, is_error: false, truncated: false, duration_ms: 2 };
    const { run, chat } = await opened(
      start(),
      { type: "reasoning", run_id: RUN, seq: 2, content: "hm" },
      token(3, "a"),
      token(4, ""),
      { type: "tool_call", run_id: RUN, seq: 5, ...call },
      { type: "tool_result", run_id: RUN, seq: 6, ...result },
      { type: "tool_result", run_id: RUN, seq: 7, ...result, call_id: "of nobody" },
      { type: "of tomorrow", run_id: RUN, seq: 8 },
      token(9, ""),
      token(10, "b"),
      { ...token(15, "cdefg"), first_seq: 11 },
      { type: "snapshot", run_id: RUN, seq: 20, parts: [{ type: "reasoning", text: "hmm" }, { type: "text", text: "abc" }] },
      token(21, "d"),
      done(22),
    );
    const seen = [];
    for await (const event of run) seen.push([event.seq, run.seq, run.text, [...run.parts]]);
    const [hm, a] = [{ type: "reasoning", text: "hm" }, { type: "text", text: "a" }];
    const open = { type: "tool_call", ...call, result: null, is_error: null, truncated: null, duration_ms: null };
    const before = [hm, a, { type: "tool_call", ...call, ...result }];
    const [hmm, abc] = [{ type: "reasoning", text: "hmm" }, { type: "text", text: "abc" }];
    const abcd = [hmm, { type: "text", text: "abcd" }];
    assert.deepEqual(seen, [
      [1, 1, "", []],
      [2, 2, "", [hm]],
      [3, 3, "a", [hm, a]],
      [4, 4, "a", [hm, a]],
      [5, 5, "a", [hm, a, open]],
      ...[6, 7, 8, 9].map((seq) => [seq, seq, "a", before]),
      [10, 10, "ab", [...before, { type: "text", text: "b" }]],
      [15, 15, "abcdefg", [...before, { type: "text", text: "bcdefg" }]],
      [20, 20, "abc", [hmm, abc]],
      [21, 21, "abcd", abcd],
      [22, 22, "abcd", abcd],
    ]);
    assert.deepEqual([run.id, run.sessionId, run.usage, run.end.type], [RUN, "s", { output_tokens: 1 }, "done"]);
    chat.close();
  });

  test("attached to with what was read before goes on with that", async () => {
    const http = requests();
    const chat = connect(url, { transport: "sse", fetch: http.fetch });
    const run = chat.attach(RUN, { after: 2, parts: [{ type: "text", text: "a" }] });
    await pass();
    http.last.stream(frames(token(3, "b"), done(4)));
    await reading(run).over;
    assert.deepEqual([run.parts, run.text], [[{ type: "text", text: "ab" }], "ab"]);
    chat.close();
  });

  test("takes merged events: what it knows is dropped, what begins elsewhere than behind it is a gap", async () => {
    const merged = (first, seq) => ({ ...token(seq, "x".repeat(seq - first + 1)), first_seq: first });
    for (const [first, seq] of [[5, 6], [3, 6], [4, 5]]) {
      const { run, chat } = await opened(start(), merged(2, 4), merged(2, 3), token(4), merged(first, seq), merged(5, 8), done(9));
      const read = reading(run);
      await read.over;
      if (first === 5) assert.deepEqual([read.events, read.error?.code], [[1, 4, 6], "gap"], "5 to 8 again, behind 6");
      else assert.deepEqual([read.events, read.error?.code], [[1, 4], "gap"]);
      chat.close();
    }
  });

  test("is read by one loop: the next one is told, and takes nothing from it", async () => {
    for (const transport of ["ws", "sse"]) {
      const ws = sockets(), http = requests();
      const chat = connect(url, { transport, WebSocket: ws.WebSocket, fetch: http.fetch });
      const run = chat.send("Hi");
      await pass();
      if (transport === "ws") {
        ws.last.open();
        ws.last.accept();
        ws.last.say(start(), token(2));
      } else http.last.stream(frames(start(), token(2)));
      const [first, second] = [reading(run), reading(run)];
      await second.over;
      assert.deepEqual([second.events, second.error.name, second.error.code], [[], "ChatError", "read"]);
      if (transport === "ws") ws.last.say(token(3), done(4));
      else http.last.write(frames(token(3), done(4)));
      await first.over;
      assert.deepEqual([first.events, first.error], [[1, 2, 3, 4], null]);
      const third = reading(run);
      await third.over;
      assert.deepEqual([third.events, third.error.code], [[], "read"], "after its end");
      chat.close();
    }
  });

  test("that was left is not looped over again: that would say nothing", async () => {
    const { run, chat } = await opened(start(), token(2), token(3));
    for await (const event of run) if (event.seq === 2) break;
    const again = reading(run);
    await again.over;
    assert.deepEqual([again.events, again.error.code], [[], "read"]);
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

  test("is cancelled over its WebSocket, or by a request when that is lost", async () => {
    const { ws, http, run, chat } = await opened(start(), token(2));
    reading(run);
    const refused = run.cancel();
    await pass();
    const { ref, ...command } = ws.last.sent.at(-1);
    assert.deepEqual(command, { type: "cancel", run_id: RUN });
    ws.last.say({ type: "rejected", ref, status: 404, code: "not_found", message: "no such run" });
    await assert.rejects(refused, { status: 404, code: "not_found" });
    const cancelled = run.cancel();
    await pass();
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
    const more = { parentId: "a", system: undefined };
    chat.send("Hi", { sessionId: "s", idempotencyKey: "k", maxOutputTokens: 5, onDisconnect: "continue", model: "m", ...more });
    await pass();
    const fields = { session_id: "s", parent_id: "a", idempotency_key: "k", max_output_tokens: 5, on_disconnect: "continue", model: "m" };
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

  test("read twice: each reader has a connection of its own, since on one the server has one cursor for a run", async () => {
    const { ws, run, chat } = await opened(start(), token(2));
    const first = reading(run);
    const second = reading(chat.attach(RUN));
    assert.equal(ws.length, 2);
    ws.last.open();
    assert.equal(ws.last.sent.at(-1).after, 0);
    ws.last.accept();
    ws.last.say(start(), { ...token(3), first_seq: 2 }, done(4));
    ws[0].say(token(3), done(4));
    await Promise.all([first.over, second.over]);
    assert.deepEqual([first.events, second.events], [[1, 2, 3, 4], [1, 3, 4]]);
    chat.close();
  });

  test("asked for twice with one key: who was first goes on over another connection, from where it is", async () => {
    const { ws, run, chat } = await opened(start(), token(2));
    const first = reading(run);
    const second = reading(chat.send("Hi", { idempotencyKey: "the same" }));
    ws[0].accept();
    ws[0].say(start(), { ...token(3), first_seq: 2 }, done(4));
    await second.over;
    assert.equal(ws.length, 2);
    ws.last.open();
    assert.deepEqual([ws.last.sent.at(-1).type, ws.last.sent.at(-1).after], ["attach", 2]);
    ws.last.accept();
    ws.last.say(token(3), done(4));
    await first.over;
    assert.deepEqual([first.events, first.error], [[1, 2, 3, 4], null]);
    assert.deepEqual([second.events, second.error], [[1, 3, 4], null]);
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

describe("a token that is not taken", () => {
  const refused = { code: "unauthenticated", detail: "a valid token is needed" };
  const facts = ({ status, code, message, isFinal }) => [status, code, message, isFinal];
  const final = [401, "unauthenticated", "a valid token is needed", true];

  /** A chat with tokens t1, t2, …; and with what each was asked for. */
  function signedIn(options) {
    const ws = sockets(), http = requests(), asked = [];
    const token = async (refusal) => `t${asked.push(refusal?.code)}`;
    return { ws, http, asked, chat: connect(url, { token, WebSocket: ws.WebSocket, fetch: http.fetch, backoff: () => 1, ...options }) };
  }

  /** The newest WebSocket, with its ticket. */
  async function admitted({ ws, http }) {
    await pass();
    http.last.answer(200, { ticket: "one", expires_in: 60 });
    await pass();
    ws.last.open();
  }

  for (const transport of ["ws", "auto"]) {
    test(`${transport}: one that expires in mid answer is asked for anew, and the answer goes on`, async () => {
      const each = signedIn({ transport });
      const { ws, http, asked, chat } = each;
      const read = reading(chat.send("Hi"));
      await admitted(each);
      ws.last.accept();
      ws.last.say(start(), token(2));
      for (const seq of [3, 4, 5]) {
        await pass();
        ws.last.end(4401, "the token has expired");
        await admitted(each);
        assert.equal(http.last.headers.authorization, `Bearer t${seq - 1}`);
        assert.equal(ws.last.sent.at(-1).after, seq - 1);
        ws.last.accept();
        ws.last.say(token(seq));
      }
      ws.last.say(done(6));
      await read.over;
      assert.deepEqual([read.events, read.error, asked.length, chat.via], [[1, 2, 3, 4, 5, 6], null, 4, "ws"]);
      chat.close();
    });
  }

  for (const transport of ["sse", "ws", "auto"]) {
    test(`${transport}: a stale one is asked for once more, and told so`, async () => {
      const each = signedIn({ transport });
      const { ws, http, asked, chat } = each;
      const read = reading(chat.send("Hi"));
      await pass();
      http.last.answer(401, refused);
      await pass();
      assert.deepEqual([http.last.headers.authorization, asked], ["Bearer t2", [undefined, "unauthenticated"]]);
      if (transport === "sse") http.last.stream(frames(start(), done(2)));
      else {
        await admitted(each);
        ws.last.accept();
        ws.last.say(start(), done(2));
      }
      await read.over;
      assert.deepEqual([read.events, read.error], [[1, 2], null]);
      chat.close();
    });

    test(`${transport}: it is final when the fresh one is not taken either`, async () => {
      const { http, asked, chat } = signedIn({ transport });
      const read = reading(chat.send("Hi"));
      for (let round = 0; round < 2; round++) {
        await pass();
        http.last.answer(401, refused);
      }
      await read.over;
      await pass(1000);
      assert.deepEqual([facts(read.error), asked.length, http.length], [final, 2, 2]);
      chat.close();
    });
  }

  test("ws: a ticket that is not taken is asked for once more, then it is final", async () => {
    const each = signedIn({ transport: "ws" });
    const read = reading(each.chat.send("Hi"));
    for (let round = 0; round < 2; round++) {
      await admitted(each);
      each.ws.last.end(4401, refused.detail);
      await pass();
      await pass(1);
    }
    await read.over;
    assert.deepEqual([facts(read.error), each.ws.length], [final, 2]);
    each.chat.close();
  });

  test("a request asks once more too, with the same body", async () => {
    const { http, chat } = signedIn({});
    const renamed = chat.request("/chat/sessions/s", { method: "PATCH", body: '{"title":"t"}' });
    await pass();
    http.last.answer(401, refused);
    await pass();
    assert.deepEqual(http.map(({ method, json }) => [method, json]), Array(2).fill(["PATCH", { title: "t" }]));
    http.last.answer(401, refused);
    await assert.rejects(renamed, { status: 401, code: "unauthenticated" });
  });

  test("without a token option it is final at once, and the same over both transports", async () => {
    for (const transport of ["sse", "ws"]) {
      const ws = sockets(), http = requests();
      const chat = connect(url, { transport, WebSocket: ws.WebSocket, fetch: http.fetch });
      const read = reading(chat.send("Hi"));
      await pass();
      if (transport === "sse") http.last.answer(401, refused);
      else {
        ws.last.open();
        ws.last.end(4401, refused.detail);
      }
      await read.over;
      assert.deepEqual(facts(read.error), final);
      chat.close();
    }
  });

  test("auto: a ticket that is refused for the moment says nothing against the WebSocket", async () => {
    const { ws, http, chat } = signedIn({ transport: "auto" });
    const run = chat.send("Hi");
    await pass();
    http.last.answer(429, { code: "too_many", retry_after: 3 });
    await pass();
    assert.deepEqual([chat.via, run.waits.reason.code], ["ws", "too_many"]);
    await pass(3000);
    assert.equal(new URL(http.last.url).pathname, "/chat/tickets");
    assert.equal(ws.length, 0);
    chat.close();
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
