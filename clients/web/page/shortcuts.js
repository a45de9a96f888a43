/** The keys, and the list of them. What may be typed into a field is left to it. */

import { el, part } from "./dom.js";

/** By `code`, not by `key`: with Alt, a Mac types other characters. @type {{ keys: string, does: string, action: string, matches: (event: KeyboardEvent) => boolean }[]} */
const SHORTCUTS = [
  { keys: "Esc", does: "Stop the answer", action: "stop", matches: (event) => event.key === "Escape" },
  { keys: "/", does: "Go to the message", action: "focus", matches: (event) => event.key === "/" && !isField(event) },
  { keys: "Alt N", does: "New chat", action: "new", matches: alt("KeyN") },
  { keys: "Alt ↓", does: "Next chat", action: "next", matches: alt("ArrowDown") },
  { keys: "Alt ↑", does: "Previous chat", action: "previous", matches: alt("ArrowUp") },
  { keys: "Alt T", does: "Next transport: auto, SSE, WebSocket", action: "transport", matches: alt("KeyT") },
  { keys: "Alt X", does: "Cut the connection", action: "cut", matches: alt("KeyX") },
  { keys: "Alt W", does: "Open or close the wire", action: "wire", matches: alt("KeyW") },
  { keys: "Alt C", does: "Compare transports", action: "compare", matches: alt("KeyC") },
  { keys: "?", does: "This list", action: "help", matches: (event) => event.key === "?" && !isField(event) },
];
const TYPING = [["Enter", "Send"], ["Shift Enter", "New line"], ["↑", "In an empty message: edit the last one"]];

/** @param {string} code @returns {(event: KeyboardEvent) => boolean} */
function alt(code) {
  return (event) => event.altKey && !event.ctrlKey && !event.metaKey && event.code === code;
}

/** @param {Event} event */
function isField({ target }) {
  return target instanceof HTMLElement && (target.matches("input:not([type=radio]), textarea") || target.isContentEditable);
}

/** @param {Record<string, () => void>} actions what each shortcut does */
export function listen(actions) {
  const dialog = /** @type {HTMLDialogElement} */ (part("shortcuts"));
  const help = () => dialog.showModal();
  part("show-shortcuts").addEventListener("click", help);
  part("shortcut-list").replaceChildren(
    ...[...TYPING, ...SHORTCUTS.map(({ keys, does }) => [keys, does])].flatMap(([keys, does]) => [
      el("dt", {}, ...keys.split(" ").map((key) => el("kbd", {}, key))),
      el("dd", {}, does),
    ]),
  );
  document.addEventListener("keydown", (event) => {
    if (event.defaultPrevented || event.isComposing || document.querySelector("dialog[open]")) return;
    const found = SHORTCUTS.find(({ matches }) => matches(event));
    if (!found) return;
    event.preventDefault();
    (found.action === "help" ? help : actions[found.action])();
  });
}
