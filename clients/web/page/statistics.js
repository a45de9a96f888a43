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
  const median = (/** @type {readonly (readonly number[])[]} */ runs) => quantile(runs.flat().sort((x, y) => x - y), 0.5);
  const draw = (/** @type {readonly (readonly number[])[]} */ runs) => runs.map(() => runs[Math.floor(random() * runs.length)]);
  const drawn = Array.from({ length: RESAMPLES }, () => median(draw(b)) - median(draw(a))).sort((x, y) => x - y);
  const [low, high] = [quantile(drawn, 0.025), quantile(drawn, 0.975)];
  return { value: median(b) - median(a), low, high, isMeasurable: low > 0 || high < 0, resamples: RESAMPLES };
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
