/** What can be said about two sets of times, and what cannot. No DOM; the same numbers give the same answer. */

const RESAMPLES = 2000;
const SEED = 0x2545f491;

/** @param {readonly number[]} sorted @param {number} q 0 to 1 @returns {number} NaN of nothing */
export function quantile(sorted, q) {
  if (!sorted.length) return NaN;
  const at = (sorted.length - 1) * q;
  const low = Math.floor(at);
  return sorted[low] + ((sorted[Math.min(low + 1, sorted.length - 1)] - sorted[low]) * (at - low));
}

/** @param {readonly number[]} values */
export function summary(values) {
  const sorted = [...values].sort((a, b) => a - b);
  return { count: sorted.length, median: quantile(sorted, 0.5), p99: quantile(sorted, 0.99), min: quantile(sorted, 0), max: quantile(sorted, 1) };
}

/**
 * The difference of two medians with its 95 % bootstrap interval. What is drawn again and again is whole runs: the gaps
 * within one run resemble each other, and single gaps would promise more than was measured.
 * @param {readonly (readonly number[])[]} a the values of each run @param {readonly (readonly number[])[]} b
 */
export function difference(a, b) {
  const random = xorshift(SEED);
  const [left, right] = [pooled(a), pooled(b)];
  const drawn = Array.from({ length: RESAMPLES }, () => right.median(draw(b.length, random)) - left.median(draw(a.length, random)));
  drawn.sort((x, y) => x - y);
  const [low, high] = [quantile(drawn, 0.025), quantile(drawn, 0.975)];
  const value = right.median(new Uint16Array(b.length).fill(1)) - left.median(new Uint16Array(a.length).fill(1));
  return { value, low, high, isMeasurable: low > 0 || high < 0, resamples: RESAMPLES };
}

/** How often each of so many runs is drawn. @param {number} count @param {() => number} random */
function draw(count, random) {
  const times = new Uint16Array(count);
  for (let i = 0; i < count; i++) times[Math.floor(random() * count)]++;
  return times;
}

/** All values of all runs, sorted once, so that each resample is one walk along them. @param {readonly (readonly number[])[]} runs */
function pooled(runs) {
  const sorted = runs.flatMap((values, run) => values.map((value) => ({ value, run }))).sort((x, y) => x.value - y.value);
  /** @param {Uint16Array} times how often each run counts */
  const median = (times) => {
    const middle = (runs.reduce((sum, values, run) => sum + values.length * times[run], 0) - 1) / 2;
    let [passed, lower] = [0, NaN];
    for (const { value, run } of sorted) {
      passed += times[run];
      if (Number.isNaN(lower) && passed > Math.floor(middle)) lower = value;
      if (passed > Math.ceil(middle)) return (lower + value) / 2;
    }
    return NaN;
  };
  return { median };
}

/** Numbers from 0 up to 1 that look random and are the same each time. @param {number} seed */
function xorshift(seed) {
  let state = seed;
  return () => {
    state ^= state << 13;
    state ^= state >>> 17;
    state ^= state << 5;
    return (state >>> 0) / 2 ** 32;
  };
}
