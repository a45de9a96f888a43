/** What the page says about two sets of times, on numbers of which the answer is known. */

import assert from "node:assert/strict";
import { test } from "node:test";

import { Meter } from "../../clients/web/page/meter.js";
import { difference, quantile, summary } from "../../clients/web/page/statistics.js";

test("quantiles lie between the values", () => {
  assert.equal(quantile([1, 2, 3, 4], 0.5), 2.5);
  assert.equal(quantile([5], 0.99), 5);
  assert.ok(Number.isNaN(quantile([], 0.5)));
  assert.deepEqual(summary([3, 1, 2]), { count: 3, median: 2, p99: 2.98, min: 1, max: 3 });
});

/** @param {number} seed */
const noise = (seed) => () => ((seed = (seed * 16807) % 2147483647) / 2147483647 - 0.5) * 4;
/** @param {number} middle @param {() => number} random */
const runs = (middle, random, count = 12) => Array.from({ length: count }, () => Array.from({ length: 40 }, () => middle + random()));

test("a real difference is found, and so is its side", () => {
  const random = noise(5);
  const found = difference(runs(20, random), runs(23, random));
  assert.ok(found.isMeasurable && found.low > 2 && found.high < 4 && Math.abs(found.value - 3) < 1, JSON.stringify(found));
  assert.ok(difference(runs(23, random), runs(20, random)).high < 0);
});

test("noise is called noise, nearly always", () => {
  let wrong = 0;
  for (let seed = 1; seed <= 60; seed++) {
    const random = noise(seed * 7919);
    if (difference(runs(20, random, 8), runs(20, random, 8)).isMeasurable) wrong++;
  }
  assert.ok(wrong <= 9, `${wrong} of 60`); // 5 % of them are to be expected, more where the runs are few.
});

test("runs count, not values: one slow run among few proves nothing", () => {
  const even = Array.from({ length: 6 }, () => Array(50).fill(20));
  const slow = [...even.slice(1), Array(50).fill(90)];
  assert.equal(difference(even, slow).isMeasurable, false);
});

test("the difference is that of the medians", () => {
  const [a, b] = [[[1, 9, 4], [7]], [[10, 2], [5, 6, 30]]];
  assert.equal(difference(a, b).value, summary(b.flat()).median - summary(a.flat()).median);
});

test("thousands of values are sorted once, not for each resample", () => {
  let looks = 0;
  const counted = (/** @type {number} */ seed) => runs(20, noise(seed), 100).map((values) => values.map((value) => ({ valueOf: () => (looks++, value) })));
  difference(/** @type {any} */ (counted(3)), /** @type {any} */ (counted(4)));
  assert.ok(looks > 0 && looks < 8000 * 50, `${looks} looks at 8000 values`);
});

test("the same numbers give the same interval", () => {
  const [a, b] = [runs(20, noise(1)), runs(21, noise(2))];
  assert.deepEqual(difference(a, b), difference(a, b));
});

test("a meter knows first token, gaps, pace and where it resumed", () => {
  const meter = new Meter();
  meter.sentAt = 100;
  meter.arrive({ type: "start", seq: 1 }, 105, "ws");
  meter.arrive({ type: "token", seq: 2 }, 130, "ws");
  meter.arrive({ type: "token", seq: 3 }, 150, "ws");
  meter.arrive({ type: "token", seq: 3 }, 160, "ws"); // Twice: not counted.
  meter.resume();
  meter.arrive({ type: "token", seq: 4 }, 250, "sse");
  meter.arrive({ type: "done", seq: 5 }, 260, "sse");
  assert.equal(meter.firstTokenMs, 30);
  assert.deepEqual(meter.gaps, [{ ms: 20, via: "ws", isResumed: false, tokens: 1 }, { ms: 100, via: "sse", isResumed: true, tokens: 1 }]);
  assert.equal(Math.round(meter.tokensPerSecond ?? 0), 17);
  assert.deepEqual([...meter.vias], ["ws", "sse"]);
});

test("what is read from the log is not taken for live", () => {
  const meter = new Meter();
  meter.liveAfter = 3;
  for (const [seq, at] of [[1, 0], [2, 1], [3, 2], [4, 50], [5, 70]]) meter.arrive({ type: seq === 1 ? "start" : "token", seq }, at, "sse");
  assert.equal(meter.firstTokenMs, null);
  assert.deepEqual(meter.gaps.map((gap) => gap.ms), [20]);
});
