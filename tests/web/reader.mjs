// Reads answers through whatever stands between, and tells how they came out: a JSON document of all of them.
// Its one argument is JSON: {module, url, transport, messages, hops, secret, lifetimes, ...options of `connect`}.
// With a `secret` it signs tokens of so many seconds, the last one again and again.
import { createHmac } from "node:crypto";

const { module, url, transport, messages, hops, secret, lifetimes, ...options } = JSON.parse(process.argv[2]);
const { connect } = await import(module);
const WebSocket = globalThis.WebSocket ?? (await import("ws")).WebSocket; // Node 20 has none.

const asked = [];
function token(refusal) {
  const seconds = lifetimes[Math.min(asked.push(refusal?.code ?? null), lifetimes.length) - 1];
  const part = (value) => Buffer.from(JSON.stringify(value)).toString("base64url");
  const said = `${part({ alg: "HS256", typ: "JWT" })}.${part({ sub: "ann", exp: Date.now() / 1000 + seconds })}`;
  return `${said}.${createHmac("sha256", secret).update(said).digest("base64url")}`;
}

const chat = connect(url, { transport, WebSocket, token: secret && token, backoff: () => Math.random() * 20, ...options });
const states = {};
const waits = new Set();
chat.on("state", (state, { reason }) => {
  states[state] = (states[state] ?? 0) + 1;
  if (reason?.status && !waits.has(reason.code)) void fetch(`${url}/livez?${reason.code}`).catch(() => {}); // The test shall know.
  if (reason) waits.add(reason.code);
});

const answers = await Promise.all(
  messages.map(async (message) => {
    const run = chat.send(message);
    let events = 0;
    let error = null;
    let refusal = null;
    try {
      for await (const event of run) {
        events += event.seq - (event.first_seq ?? event.seq) + 1; // Merged, it is several.
        if (hops && event.seq % hops === 0) chat.transport = chat.via === "ws" ? "sse" : "ws";
      }
    } catch (thrown) {
      error = `${thrown.name} ${thrown.code}: ${thrown.message}`;
      refusal = [thrown.status, thrown.code, thrown.message];
    }
    const { id, sessionId, seq, text, parts, usage, end } = run;
    return { id, sessionId, seq, events, text, parts, usage, end, error, refusal };
  }),
);
chat.close();
const told = JSON.stringify({ answers, states, waits: [...waits], asked });
process.stdout.write(told, () => process.exit()); // Frozen sockets would keep it here.
