// Reads answers through whatever stands between, and tells how they came out: a JSON document of all of them.
// Its one argument is JSON: {module, url, transport, messages, hops, heartbeatMs, connectMs}.
const { module, url, transport, messages, hops, ...pace } = JSON.parse(process.argv[2]);
const { connect } = await import(module);
const WebSocket = globalThis.WebSocket ?? (await import("ws")).WebSocket; // Node 20 has none.

const chat = connect(url, { transport, WebSocket, ...pace, backoff: () => Math.random() * 20 });
const states = {};
chat.on("state", (state) => (states[state] = (states[state] ?? 0) + 1));

const answers = await Promise.all(
  messages.map(async (message) => {
    const run = chat.send(message);
    let events = 0;
    let error = null;
    try {
      for await (const event of run) {
        events++;
        if (hops && event.seq % hops === 0) chat.transport = chat.via === "ws" ? "sse" : "ws";
      }
    } catch (thrown) {
      error = `${thrown.name} ${thrown.code}: ${thrown.message}`;
    }
    const { id, sessionId, seq, text, reasoning, toolCalls, usage, end } = run;
    return { id, sessionId, seq, events, text, reasoning, toolCalls, usage, end, error };
  }),
);
chat.close();
process.stdout.write(JSON.stringify({ answers, states }), () => process.exit()); // Frozen sockets would keep it here.
