// What calls of tools ask of the client: to be told, to be answered, and to be run here.
import assert from "node:assert/strict";
import { afterEach, describe, test } from "node:test";

import { RUN, connect, done, frames, pass, reading, requests, sockets, start, token, url } from "./hand_made.mjs";

const call = (seq, call_id, more) => ({
  type: "tool_call", run_id: RUN, seq, call_id, tool: "book", args: { people: 2 }, needs_approval: false, executor: "server", ...more,
});
const result = (seq, call_id, more) => ({
  type: "tool_result", run_id: RUN, seq, call_id, tool: "book", result: 1, is_error: false, truncated: false, duration_ms: 1, ...more,
});
const progress = (seq, call_id) => ({ type: "tool_progress", run_id: RUN, seq, call_id, message: null, progress: 1, total: 2 });

async function opened(events, options = {}) {
  const ws = sockets(), http = requests();
  const chat = connect(url, { transport: "ws", WebSocket: ws.WebSocket, fetch: http.fetch, backoff: () => 1, ...options });
  const run = chat.send("Hi");
  ws.last.open();
  ws.last.accept();
  ws.last.say(start(), ...events);
  const read = reading(run);
  await pass();
  return { ws, http, chat, run, read };
}

/** What the newest command over a WebSocket says, and how to reply to it. */
function told(ws) {
  const { ref, ...command } = ws.last.sent.at(-1);
  return { command, accept: () => ws.last.say({ type: "accepted", ref, run_id: RUN }), reject: (facts) => ws.last.say({ type: "rejected", ref, run_id: RUN, message: "no", ...facts }) };
}

describe("a call that waits", () => {
  test("is told until it is answered, here or elsewhere", async () => {
    const calls = [call(2, "plain"), call(3, "a", { needs_approval: true }), call(4, "b", { needs_approval: true }), call(5, "c", { executor: "client" })];
    const { ws, chat, run } = await opened([...calls, result(6, "plain")]);
    const open = () => run.openCalls.map((each) => each.call_id);
    assert.deepEqual(open(), ["a", "b", "c"]);
    ws.last.say(progress(7, "a")); // It was approved on another device: it runs.
    await pass();
    assert.deepEqual(open(), ["b", "c"]);
    ws.last.say(result(8, "c"));
    const answered = run.answer("b", { approve: true });
    await pass();
    told(ws).accept();
    await answered;
    assert.deepEqual(open(), []);
    chat.close();
  });

  test("has the arguments with which it was approved", async () => {
    const { ws, chat, run } = await opened([call(2, "a", { needs_approval: true })]);
    ws.last.say(result(3, "a", { args: { people: 4 } }));
    await pass();
    assert.deepEqual([run.parts[0].args, run.parts[0].result], [{ people: 4 }, 1]);
    chat.close();
  });

  test("is answered over the run's WebSocket", async () => {
    const { ws, chat, run } = await opened([call(2, "a", { needs_approval: true })]);
    const answered = run.answer("a", { approve: true, args: { people: 4 } });
    await pass();
    assert.deepEqual(told(ws).command, { type: "answer", run_id: RUN, call_id: "a", approve: true, args: { people: 4 } });
    told(ws).accept();
    await answered;
    chat.close();
  });

  test("is answered by a request where there is none, and where the answer is too long for a frame", async () => {
    const http = requests();
    const sse = connect(url, { transport: "sse", fetch: http.fetch });
    const { http: long, chat, run } = await opened([call(2, "a", { executor: "client" })]);
    for (const [asked, made, answer] of [[sse.attach(RUN), http, { approve: false, reason: "no" }], [run, long, { result: "x".repeat(80_000) }]]) {
      const answered = asked.answer("a", answer);
      await pass();
      assert.deepEqual([made.last.method, made.last.url, made.last.json], ["POST", `${url}/chat/runs/${RUN}/tool_calls/a`, answer]);
      made.last.answer(202, {});
      await answered;
    }
    sse.close();
    chat.close();
  });

  test("has the numbers that a json of the page keeps, over both transports", async () => {
    const big = "9007199254740993";
    const json = { parse: (text) => JSON.parse(text.replace(big, '"kept"')), stringify: (value) => JSON.stringify(value)?.replace('"kept"', big) };
    const event = frames(call(2, "a", { needs_approval: true, args: { n: "big" } })).replace('"big"', big);
    const { ws, chat, run } = await opened([], { json });
    const texts = [];
    chat.on("frame", ({ text }) => texts.push(text));
    ws.last.onmessage({ data: event.match(/^data: (.*)/)[1] });
    const http = requests();
    const sse = connect(url, { transport: "sse", fetch: http.fetch, json });
    const streamed = sse.send("kept");
    await pass();
    assert.ok(http.last.body.includes(`"message":${big}`));
    http.last.stream(frames(start()) + event);
    void reading(streamed);
    await pass();
    for (const [asked, sent] of [[run, () => texts.at(-1)], [streamed, () => http.last.body]]) {
      assert.deepEqual(asked.parts[0].args, { n: "kept" });
      void asked.answer("a", { approve: true, args: asked.parts[0].args }).catch(() => {});
      await pass();
      assert.ok(sent().includes(`"args":{"n":${big}}`));
    }
    sse.close();
    chat.close();
  });

  test("that somebody else has answered refuses the answer", async () => {
    const { ws, chat, run } = await opened([call(2, "a", { needs_approval: true })]);
    const refused = assert.rejects(run.answer("a", { approve: true }), { status: 409, code: "already_answered" });
    await pass();
    told(ws).reject({ status: 409, code: "already_answered" });
    await refused;
    chat.close();
  });

  test("waits on after an answer that does not fit, and takes another one", async () => {
    const { ws, chat, run } = await opened([call(2, "a", { needs_approval: true })]);
    const refused = assert.rejects(run.answer("a", { approve: true, args: { people: "many" } }), { status: 400, code: "bad_request", message: "no" });
    await pass();
    told(ws).reject({ status: 400, code: "bad_request" });
    await refused;
    assert.deepEqual(run.openCalls.map((each) => each.call_id), ["a"]);
    const taken = run.answer("a", { approve: true, args: { people: 3 } });
    await pass();
    told(ws).accept();
    await taken;
    assert.deepEqual(run.openCalls, []);
    chat.close();
  });

  test("is answered again where the reply was lost: that it is answered already is well then", async () => {
    const { ws, http, chat, run } = await opened([call(2, "a", { needs_approval: true })]);
    const answered = run.answer("a", { approve: true });
    await pass();
    ws.last.end();
    await pass();
    await pass(1);
    assert.deepEqual(http.last.json, { approve: true });
    http.last.answer(409, { code: "already_answered" });
    await answered;
    chat.close();
  });

  test("is answered again where the server was too busy: that somebody else was first is told then", async () => {
    const { ws, chat, run } = await opened([call(2, "a", { needs_approval: true })]);
    const refused = assert.rejects(run.answer("a", { approve: true }), { status: 409 });
    await pass();
    told(ws).reject({ status: 429, code: "too_many" });
    await pass();
    await pass(1);
    told(ws).reject({ status: 409, code: "already_answered" });
    await refused;
    chat.close();
  });
});

describe("a client's tool", () => {
  const mine = { tool: "size", args: { unit: "px" }, executor: "client" };
  const size = (run) => ({ size: { description: "How large?", parameters: { type: "object" }, run } });

  /** Answer the question how far the run's log is. */
  async function tells(http, lastSeq) {
    assert.deepEqual([http.last.method ?? "GET", http.last.url], ["GET", `${url}/chat/runs/${RUN}`]);
    http.last.answer(200, { run_id: RUN, last_seq: lastSeq });
    await pass();
    await pass();
  }

  afterEach(() => {
    delete globalThis.document;
    delete globalThis.localStorage;
    Reflect.deleteProperty(globalThis, "navigator");
  });

  test("is declared with each request, all of them or those that are named", async () => {
    const http = requests();
    const tools = { ...size(() => 1), other: { description: "O", parameters: { type: "object" }, run: () => 2 } };
    const chat = connect(url, { transport: "sse", fetch: http.fetch, tools });
    for (const [names, declared] of [[undefined, ["size", "other"]], [["other"], ["other"]], [[], undefined]]) {
      chat.send("Hi", { tools: names });
      await pass();
      assert.deepEqual(http.last.json.tools?.map(({ name }) => name), declared);
    }
    chat.send("Hi");
    await pass();
    assert.deepEqual(http.last.json.tools[0], { name: "size", description: "How large?", parameters: { type: "object" } });
    chat.close();
  });

  test("is run when it is called, and what it gives is the answer", async () => {
    const seen = [];
    const run = (args, { runId, callId, signal }) => void seen.push([args, runId, callId, signal.aborted]);
    const { ws, http, chat } = await opened([call(2, "a", mine)], { tools: size(run) });
    await tells(http, 2);
    assert.deepEqual(seen, [[{ unit: "px" }, RUN, "a", false]]);
    assert.deepEqual(told(ws).command, { type: "answer", run_id: RUN, call_id: "a", result: null });
    chat.close();
  });

  for (const [name, run, said] of [
    ["throws", () => { throw new Error("no screen"); }, "no screen"],
    ["rejects", () => Promise.reject("no screen"), "no screen"],
    ["gives what is no JSON", () => 10n, /BigInt/],
  ]) {
    test(`that ${name} has failed`, async () => {
      const { ws, http, chat } = await opened([call(2, "a", mine)], { tools: size(run) });
      await tells(http, 2);
      const { result: words, is_error } = told(ws).command;
      assert.match(words, RegExp(said));
      assert.equal(is_error, true);
      chat.close();
    });
  }

  test("is not run for a call that the log answers, nor where the run is over", async () => {
    let runs = 0;
    const { ws, http, chat } = await opened([call(2, "a", mine)], { tools: size(() => ++runs) });
    await tells(http, 3);
    assert.equal(runs, 0, "its result may be on the way");
    ws.last.say(result(3, "a"), call(4, "b", mine));
    await pass();
    ws.last.say(done(5));
    await pass();
    http.last.answer(200, { last_seq: 5 });
    await pass();
    assert.equal(runs, 0);
    chat.close();
  });

  test("is run for an open call of the parts that were kept, and of a snapshot", async () => {
    const seen = [];
    const http = requests();
    const chat = connect(url, { transport: "sse", fetch: http.fetch, tools: size((_, { callId }) => void seen.push(callId)) });
    const open = { type: "tool_call", call_id: "a", ...mine, needs_approval: false, result: null, is_error: null, truncated: null, duration_ms: null };
    const run = chat.attach(RUN, { after: 4, parts: [open, { ...open, call_id: "b", is_error: false }] });
    await pass();
    const [asked, stream] = http;
    asked.answer(200, { last_seq: 4 });
    await pass();
    stream.stream(frames({ type: "snapshot", run_id: RUN, seq: 9, parts: [open, { ...open, call_id: "c" }] }));
    reading(run);
    await pass();
    http.findLast(({ url: each }) => each.endsWith(RUN)).answer(200, { last_seq: 9 });
    await pass();
    await pass();
    assert.deepEqual(seen, ["a", "c"]);
    chat.close();
  });

  test("of another client is left to that", async () => {
    const { http, chat, run } = await opened([call(2, "a", { ...mine, tool: "constructor" })], { tools: size(() => 1) });
    assert.deepEqual([http.length, run.openCalls.length], [0, 1]);
    chat.close();
  });

  test("that was answered elsewhere meanwhile is told so", async () => {
    let signal;
    const tools = size((_, given) => ((signal = given.signal), new Promise(() => {})));
    const { ws, http, chat } = await opened([call(2, "a", mine)], { tools });
    await tells(http, 2);
    assert.equal(signal.aborted, false);
    ws.last.say(result(3, "a"));
    assert.equal(signal.aborted, true);
    chat.close();
  });

  test("gives what the server refuses: then the call has failed", async () => {
    const { ws, http, chat } = await opened([call(2, "a", mine)], { tools: size(() => "x") });
    await tells(http, 2);
    told(ws).reject({ status: 413, code: "too_large", message: "too long" });
    await pass();
    assert.deepEqual([told(ws).command.result, told(ws).command.is_error], ["refused: too long", true]);
    chat.close();
  });

  /** What a browser keeps. */
  function keeping(entries) {
    const kept = new Map(entries);
    const localStorage = { getItem: (name) => kept.get(name) ?? null, setItem: (name, text) => kept.set(name, text), removeItem: (name) => kept.delete(name) };
    Object.assign(globalThis, { document: { addEventListener() {} }, localStorage });
    return kept;
  }

  for (const [name, noted, answer] of [
    ["was done is not run again after a reload: the answer is sent again", '{"result":7}', { result: 7 }],
    ["was begun is not run again after a reload: that is told", "", { result: "The page was left while this ran: what became of it is not known.", is_error: true }],
  ]) {
    test(`that ${name}`, async () => {
      const kept = keeping([[`chatserver.call.${RUN}.a`, noted]]);
      const { ws, http, chat } = await opened([call(2, "a", mine)], { tools: size(() => assert.fail("again")) });
      await tells(http, 2);
      assert.deepEqual(told(ws).command, { type: "answer", run_id: RUN, call_id: "a", ...answer });
      told(ws).accept();
      ws.last.say(result(3, "a"));
      await pass();
      assert.equal(kept.size, 0);
      chat.close();
    });
  }

  test("notes that it is run, and what came of it, before that is sent", async () => {
    const kept = keeping([]);
    let give;
    const { ws, http, chat } = await opened([call(2, "a", mine)], { tools: size(() => new Promise((resolve) => (give = resolve))) });
    await tells(http, 2);
    assert.deepEqual([...kept.values()], [""]);
    give(7);
    await pass();
    assert.deepEqual([...kept.values()], ['{"result":7}']);
    assert.equal(told(ws).command.result, 7);
    chat.close();
  });

  test("is run in one of the pages that read the run", async () => {
    /** One holder of each name at a time, as of `navigator.locks`. */
    const holders = new Map();
    const request = async (name, { signal }, hold) => {
      while (holders.has(name)) await Promise.race([holders.get(name), new Promise((_, leave) => signal.addEventListener("abort", () => leave(signal.reason)))]);
      const held = hold();
      holders.set(name, held);
      return held.finally(() => holders.delete(name));
    };
    Object.defineProperty(globalThis, "navigator", { value: { locks: { request } }, configurable: true });
    let runs = 0;
    const tools = size(() => ++runs);
    const first = await opened([call(2, "a", mine)], { tools });
    const second = await opened([call(2, "a", mine)], { tools });
    await tells(first.http, 2);
    told(first.ws).accept();
    await pass();
    assert.deepEqual([runs, second.http.length], [1, 0]);
    for (const { ws } of [first, second]) ws.last.say(result(3, "a"), token(4));
    await pass();
    assert.deepEqual([runs, second.http.length], [1, 0]);
    first.chat.close();
    second.chat.close();
  });
});
