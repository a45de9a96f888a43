/** Why nothing comes, in words: one line for who waits for an answer. */

import { duration } from "./dom.js";

/** @import { State, Wait } from "../chatserver.js" */

/** @param {State} state @param {Wait | null} wait of the run that is waited for */
export function whyNothingComes(state, wait) {
  if (state === "offline") return "You are offline. It goes on when the network is back.";
  if (state === "stalled") return "Nothing came for too long: connecting anew.";
  if (!wait) return "";
  const next = wait.delayMs >= 1000 ? ` Next try in ${duration(wait.delayMs)}.` : "";
  const { code, message, status } = wait.reason;
  if (code === "draining") return `The server is restarting.${next}`;
  if (status === 429) return `Waits: ${message}.${next}`;
  return status ? `The server cannot take it now: ${message}.${next}` : `The server cannot be reached.${next}`;
}
