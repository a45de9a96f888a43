/** Small drawings: the gaps of one answer, and two distributions on one axis. */

import { svg } from "./dom.js";
import { quantile } from "./statistics.js";

/** @import { Measured } from "./meter.js" */

const WIDTH = 132;
const HEIGHT = 24;

/** The gaps between tokens, each a bar. @param {Measured} measured */
export function gapPlot({ bars, medianMs, p99Ms }) {
  const top = Math.max(1, p99Ms * 1.15);
  const step = WIDTH / Math.max(bars.length, 24);
  /** @type {SVGElement[]} */ const resumed = [];
  const shapes = bars.map((gap, i) => {
    const height = Math.max(1.5, Math.min(1, gap.ms / top) * HEIGHT);
    if (gap.isResumed) resumed.push(svg("path", { class: "resumed", d: `M${(i * step + step / 2).toFixed(1)} 0V${HEIGHT}` }));
    const box = { x: (i * step).toFixed(1), y: (HEIGHT - height).toFixed(1), width: Math.max(1, step - 1).toFixed(1), height: height.toFixed(1) };
    return svg("rect", { ...box, rx: 0.5, class: gap.via });
  });
  const label = `Gaps between tokens: median ${Math.round(medianMs)} ms, 99th percentile ${Math.round(p99Ms)} ms${resumed.length ? `, ${resumed.length} resumed` : ""}`;
  return svg(
    "svg", { class: "gaps", viewBox: `0 0 ${WIDTH} ${HEIGHT}`, width: WIDTH, height: HEIGHT, role: "img", "aria-label": label },
    svg("title", {}, label), ...shapes, ...resumed,
  );
}

const PLOT = { width: 640, height: 190, left: 8, right: 8, top: 14, bottom: 34 };
const BINS_LIMIT = 48;

/**
 * Two sets of numbers as overlaid histograms, with their medians and, below the axis, each value.
 * @param {{ name: "sse" | "ws", values: number[] }[]} sets @param {string} label
 */
export function distributions(sets, label) {
  const all = sets.flatMap((set) => set.values).sort((a, b) => a - b);
  const [low, high] = range(all);
  const { width, height, left, right, top, bottom } = PLOT;
  const floor = height - bottom;
  /** @param {number} value */
  const x = (value) => left + ((Math.min(high, Math.max(low, value)) - low) / (high - low)) * (width - left - right);
  const bins = Math.min(BINS_LIMIT, Math.max(8, Math.ceil(2 * Math.sqrt(all.length))));
  const counts = sets.map((set) => histogram(set.values, low, high, bins));
  const tallest = Math.max(...counts.flat(), Number.EPSILON);
  const shapes = sets.flatMap(({ name, values }, i) => [
    svg("path", { class: `area ${name}`, d: steps(counts[i], x, (share) => floor - (share / tallest) * (floor - top), low, high, floor) }),
    ...values.map((value) => svg("path", { class: `tick ${name}`, d: `M${x(value).toFixed(1)} ${floor + 4 + i * 5}v4` })),
  ]);
  const medians = sets.map(({ name, values }) => {
    const at = x(quantile([...values].sort((a, b) => a - b), 0.5)).toFixed(1);
    return svg("path", { class: `median ${name}`, d: `M${at} ${top - 6}V${floor}` });
  });
  const axis = ticks(low, high).map((value) =>
    svg("text", { x: x(value).toFixed(1), y: height - 4, "text-anchor": anchorAt(value, low, high) }, `${Number(value.toPrecision(3))}`));
  const beyond = all.filter((value) => value > high).length;
  return svg(
    "svg", { class: "distributions", viewBox: `0 0 ${width} ${height}`, role: "img", "aria-label": label },
    svg("title", {}, label), ...shapes, svg("path", { class: "axis", d: `M${left} ${floor}H${width - right}` }), ...medians, ...axis,
    beyond ? svg("text", { class: "beyond", x: width - right, y: top, "text-anchor": "end" }, `${beyond} longer, drawn at the edge`) : null,
  );
}

/** From where to where: all but the few that would squeeze the rest. @param {number[]} sorted @returns {[number, number]} */
function range(sorted) {
  const low = sorted[0] ?? 0;
  const far = quantile(sorted, 0.99) || 1;
  const max = sorted.at(-1) ?? 1;
  const high = max > far * 1.5 ? far * 1.2 : max;
  const margin = Math.max((high - low) * 0.04, 0.05);
  return [Math.max(0, low - margin), high + margin];
}

/** The share of the values in each bin. @param {number[]} values @param {number} low @param {number} high @param {number} bins */
function histogram(values, low, high, bins) {
  const shares = new Array(bins).fill(0);
  for (const value of values) {
    const bin = Math.floor(((value - low) / (high - low)) * bins);
    shares[Math.min(bins - 1, Math.max(0, bin))] += 1 / values.length;
  }
  return shares;
}

/**
 * @param {number[]} shares @param {(value: number) => number} x @param {(share: number) => number} y
 * @param {number} low @param {number} high @param {number} floor
 */
function steps(shares, x, y, low, high, floor) {
  const edge = (/** @type {number} */ i) => x(low + (i / shares.length) * (high - low)).toFixed(1);
  return `M${edge(0)} ${floor}${shares.map((share, i) => `V${y(share).toFixed(1)}H${edge(i + 1)}`).join("")}V${floor}Z`;
}

/** Round numbers between two. @param {number} low @param {number} high */
function ticks(low, high) {
  const rough = (high - low) / 6;
  const power = 10 ** Math.floor(Math.log10(rough));
  const step = power * ([1, 2, 5, 10].find((each) => each * power >= rough) ?? 10);
  const found = [];
  for (let value = Math.ceil(low / step) * step; value <= high; value += step) found.push(value);
  return found;
}

/** @param {number} value @param {number} low @param {number} high */
function anchorAt(value, low, high) {
  const place = (value - low) / (high - low);
  return place < 0.04 ? "start" : place > 0.96 ? "end" : "middle";
}
