/** What is measured of an answer: what a cut cost is told as it was, above all when something is lost or comes twice. */

import assert from "node:assert/strict";
import { test } from "node:test";

import { Meter } from "../../clients/web/page/meter.js";

/** Events from one number to another, a millisecond apart. */
const arrive = (meter, from, to, via = "ws", at = from) => {
  for (let seq = from; seq <= to; seq++) meter.arrive({ type: seq === 1 ? "start" : "token", seq }, at++, via);
};
const told = ({ measured: { cuts, backMs, lost, twice } }) => ({ cuts, backMs, lost, twice });

test("an answer without a cut", () => {
  const meter = new Meter();
  meter.sentAt = -4;
  arrive(meter, 1, 11);
  assert.deepEqual(told(meter), { cuts: 0, backMs: null, lost: 0, twice: 0 });
  assert.equal(meter.firstTokenMs, 6);
  assert.equal(meter.tokensPerSecond, 1000);
  assert.equal(meter.measured.bars.length, 9);
});

test("cuts that cost nothing", () => {
  const meter = new Meter();
  arrive(meter, 1, 10);
  meter.resume(10, 12, "ws");
  meter.back(15);
  arrive(meter, 11, 20);
  meter.resume(20, 30, "ws");
  meter.back(32);
  arrive(meter, 21, 30);
  assert.deepEqual(told(meter), { cuts: 2, backMs: 3, lost: 0, twice: 0 });
  assert.equal(meter.measured.bars.filter((bar) => bar.isResumed).length, 2);
});

test("what is lost, and what comes twice", () => {
  const meter = new Meter();
  arrive(meter, 1, 10);
  meter.resume(10, 12, "ws");
  arrive(meter, 9, 10);
  arrive(meter, 14, 15);
  assert.deepEqual(told(meter), { cuts: 1, backMs: null, lost: 3, twice: 2 });
});

test("merged events count as all that they stand for", () => {
  const meter = new Meter();
  arrive(meter, 1, 10);
  meter.resume(10, 12, "ws");
  meter.arrive({ type: "token", first_seq: 11, seq: 30 }, 20, "ws");
  assert.deepEqual(told(meter), { cuts: 1, backMs: null, lost: 0, twice: 0 });
  assert.equal(meter.gaps.at(-1).tokens, 20);
  assert.equal(meter.tokensPerSecond, (1000 * 28) / 18);
  meter.arrive({ type: "token", first_seq: 29, seq: 32 }, 21, "ws");
  meter.arrive({ type: "token", first_seq: 35, seq: 36 }, 22, "ws");
  assert.deepEqual(told(meter), { cuts: 1, backMs: null, lost: 2, twice: 2 });
});

test("what is asked for again on purpose is not twice", () => {
  const meter = new Meter();
  arrive(meter, 1, 10);
  meter.resume(4, 12, "ws");
  arrive(meter, 5, 11);
  assert.deepEqual(told(meter), { cuts: 1, backMs: null, lost: 0, twice: 0 });
  const again = meter.measured.bars.length;
  meter.resume(0, 20, "ws"); // Somebody looks at the answer anew.
  arrive(meter, 1, 11);
  assert.deepEqual(told(meter), { cuts: 1, backMs: null, lost: 0, twice: 0 });
  assert.equal(meter.measured.bars.length, again);
});

test("a change of the transport is no cut, and a snapshot is no loss", () => {
  const meter = new Meter();
  arrive(meter, 1, 10);
  meter.resume(10, 12, "sse");
  meter.back(20);
  meter.arrive({ type: "snapshot", seq: 40 }, 21, "sse");
  arrive(meter, 41, 42, "sse");
  assert.deepEqual(told(meter), { cuts: 0, backMs: null, lost: 0, twice: 0 });
  assert.deepEqual(meter.measured.vias, ["ws", "sse"]);
});

test("of many gaps the longest of each bin is kept", () => {
  const meter = new Meter();
  arrive(meter, 1, 1000);
  meter.arrive({ type: "token", seq: 1001 }, 5000, "ws");
  assert.ok(meter.measured.bars.length <= 66);
  assert.equal(Math.max(...meter.measured.bars.map((bar) => bar.ms)), 4000);
});
