/** What stands under an answer: over what it came, how fast, what it took, which cuts it survived, how it ended. */

import { duration, el, icon } from "./dom.js";
import { gapPlot } from "./plot.js";

/** @import { Usage } from "../events.js" */
/** @import { Measured } from "./meter.js" */

const TRANSPORTS = { sse: "SSE", ws: "WebSocket" };

/** @param {Measured | null} measured @param {Usage | null} usage @param {string} note why it ended, if there is something to say */
export function facts(measured, usage, note) {
  const found = [note && el("span", { class: "note" }, note)];
  if (measured?.vias.length) found.push(el("span", { class: "via" }, ...measured.vias.map((via) => el("span", { class: `badge ${via}` }, TRANSPORTS[via]))));
  if (measured?.firstTokenMs != null) found.push(fact("first token", duration(measured.firstTokenMs), "From sending the message to the first token"));
  if (measured?.tokensPerSecond != null) found.push(fact("tokens/s", measured.tokensPerSecond.toFixed(measured.tokensPerSecond < 10 ? 1 : 0), "Token events a second, as they arrived"));
  if (usage) found.push(tokens(usage));
  if (measured && measured.bars.length > 1) found.push(el("span", { class: "plot" }, gapPlot(measured)));
  if (measured?.cuts) found.push(cuts(measured));
  return el("div", { class: "facts" }, ...found);
}

/** @param {string} name @param {string} value @param {string} title */
function fact(name, value, title) {
  return el("span", { class: "fact", title }, el("b", {}, value), ` ${name}`);
}

/** @param {Usage} usage */
function tokens({ input_tokens: read, output_tokens: written, estimated }) {
  const title = `Tokens read and written, ${estimated ? "estimated: the model did not say" : "as the model counts them"}`;
  const mark = estimated ? "~" : "";
  return el("span", { class: "fact", title }, el("b", {}, `${mark}${read}`), " tokens in, ", el("b", {}, `${mark}${written}`), " out");
}

/** @param {Measured} measured */
function cuts({ cuts: count, backMs, lost, twice }) {
  const back = backMs === null ? "" : `, back in ${duration(backMs)}`;
  const title = "Cut where the text is underlined. Of the events that were asked for again: how many are missing, how many came although they were there";
  return el("span", { class: "cuts", title }, icon("cut"), `${count} ${count === 1 ? "cut" : "cuts"} survived${back}, ${lost} lost, ${twice} twice`);
}
