// Feeds a stream of SSE, cut or split at every byte, to the readers that the field uses, and tells where one went wrong.
// Its one argument names a file of JSON: {streams: [base64 of the body from each cursor], from: the first byte to cut at}.
// The answer: {reader: {how: [at]}}.
import { readFileSync } from "node:fs";
import { fetchEventSource } from "@microsoft/fetch-event-source";
import { EventSource } from "eventsource";
import { createParser } from "eventsource-parser";
import { EventSourceParserStream } from "eventsource-parser/stream";
import { events } from "fetch-event-stream";

const { streams: bodies, from } = JSON.parse(readFileSync(process.argv[2]));
const streams = bodies.map((body) => Buffer.from(body, "base64"));
const types = ["start", "token", "tool_call", "tool_result", "done"];
const { setTimeout: later } = globalThis;
globalThis.setTimeout = (call, ms, ...rest) => later(call, ms / 100, ...rest); // They wait a second before each return.
globalThis.window = globalThis;
globalThis.document = { hidden: false, addEventListener() {}, removeEventListener() {} };

/** A server whose first answer ends after some bytes with a lost connection, or comes in two pieces. */
function server(at, isCut) {
  let count = 0;
  return async (_, init) => {
    const headers = new Headers(init?.headers);
    const after = Number(headers.get("last-event-id") ?? 0);
    if (after === streams.length) return new Response(null, { status: 204 });
    const [whole, isFirst] = [streams[after], count++ === 0];
    const body = new ReadableStream({
      async start(out) {
        if (isFirst && at) out.enqueue(new Uint8Array(whole.subarray(0, at)));
        if (isFirst) await new Promise((done) => later(done)); // What was enqueued is lost with an error in the same turn.
        if (isFirst && isCut) return out.error(new TypeError("terminated"));
        out.enqueue(new Uint8Array(whole.subarray(isFirst ? at : 0)));
        out.close();
      },
    });
    return new Response(body, { headers: { "content-type": "text/event-stream" } });
  };
}

/** Readers that come back only by what is written around them. */
const again = (read) => async (fetch) => {
  const seen = [];
  for (let tries = 0; tries < 2 && seen.at(-1)?.event !== "done"; tries++) {
    const last = seen.at(-1)?.id;
    try {
      await read(await fetch("", { headers: last === undefined ? {} : { "last-event-id": String(last) } }), seen);
    } catch (error) {
      if (error.message !== "terminated") throw error;
    }
  }
  return seen;
};

const readers = {
  "eventsource": (fetch) =>
    new Promise((done) => {
      const [seen, source] = [[], new EventSource("http://a.example/", { fetch })];
      const take = (event) => {
        seen.push({ event: event.type, data: event.data, id: event.lastEventId });
        if (event.type === "done") done(source.close() ?? seen);
      };
      for (const type of ["message", ...types]) source.addEventListener(type, take);
      source.addEventListener("error", (event) => event.code === 204 && done(seen));
    }),
  "@microsoft/fetch-event-source": async (fetch) => {
    const [seen, over] = [[], new AbortController()];
    await fetchEventSource("http://a.example/", {
      fetch,
      signal: over.signal,
      openWhenHidden: true,
      onopen: async (response) => void (response.status === 204 && over.abort()),
      onmessage: (event) => void seen.push(event),
      onclose() {
        if (seen.at(-1)?.event !== "done") throw new Error("cut");
      },
    });
    return seen;
  },
  "eventsource-parser": again(async (response, seen) => {
    const [parser, decoder] = [createParser({ onEvent: (event) => void seen.push(event) }), new TextDecoder()];
    for await (const bytes of response.body) parser.feed(decoder.decode(bytes, { stream: true }));
  }),
  "eventsource-parser/stream": again(async (response, seen) => {
    const parsed = response.body.pipeThrough(new TextDecoderStream()).pipeThrough(new EventSourceParserStream());
    for await (const event of parsed) seen.push(event);
  }),
  "fetch-event-stream": again(async (response, seen) => {
    for await (const event of events(response)) seen.push(event);
  }),
};

const isRight = (seen) =>
  seen.length === streams.length &&
  seen.every(({ event, data, id }, at) => JSON.parse(data || "{}").seq === at + 1 && Number(id) === at + 1 && types.includes(event));

const wrong = {};
for (const [name, read] of Object.entries(readers)) {
  wrong[name] = { cut: [], split: [] };
  const places = [...Array(streams[0].length + 1).keys()].slice(from);
  const trials = places.flatMap((at) => [[at, true], [at, false]]);
  await Promise.all(
    trials.map(async ([at, isCut]) => {
      if (!isRight(await read(server(at, isCut)))) wrong[name][isCut ? "cut" : "split"].push(at);
    }),
  );
}
process.stdout.write(JSON.stringify(wrong), () => process.exit());
