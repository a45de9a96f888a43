/**
 * The page, put together.
 *
 *     address ──▶ sessions, thread or compare;   chat ──frames──▶ wire ──▶ meters, drawer
 */

import { connect } from "../chatserver.js";
import { Compare } from "./compare.js";
import { announce, copy, duration, el, part } from "./dom.js";
import { Sessions } from "./sessions.js";
import { listen } from "./shortcuts.js";
import { Thread } from "./thread.js";
import { Drawer, Wire } from "./wire.js";

/** @import { Transport } from "../chatserver.js" */

const DEMO_SUGGESTIONS = ["What time is it in Tokyo, and what is 17 * 23?", "Think about rivers.", "Count to 500", "Fail with 429"];
const SUGGESTIONS = ["Explain Server-Sent Events and WebSocket in a table.", "Write a binary search in Python, with a test.", "What can you do for me?"];
const NAMES = { ws: "WS", sse: "SSE" };

const chat = connect("", { transport: remembered() });
const wire = new Wire(chat);
const drawer = new Drawer(chat);
const message = /** @type {HTMLTextAreaElement} */ (part("message"));

const sessions = new Sessions(chat, {
  onDeleted: (id) => id === thread.sessionId && go("#/"),
  onTitle: (id, title) => id === thread.sessionId && entitle(title || "New chat"),
});
const thread = new Thread(chat, wire, {
  onSession: (id) => {
    history.replaceState(null, "", `#/s/${id}`);
    sessions.select(id);
  },
  onTitle: entitle,
  onChange: () => {
    showBusy();
    void sessions.refresh();
  },
});
const compare = new Compare(part("compare"));

/** @param {string} hash */
function go(hash) {
  if (location.hash === hash) route();
  else location.hash = hash;
}

function route() {
  const isCompare = location.hash === "#compare";
  const id = /^#\/s\/([\w-]{1,64})$/.exec(location.hash)?.[1] ?? null;
  part("chat").hidden = isCompare;
  part("compare").hidden = !isCompare;
  document.body.classList.toggle("comparing", isCompare);
  part("to-compare").toggleAttribute("aria-current", isCompare);
  sessions.select(isCompare ? null : id);
  showSidebar(false);
  if (isCompare) {
    entitle("Compare transports");
    return compare.show();
  }
  compare.stop();
  void thread.open(id).then(() => id === null || entitle(part("title").textContent ?? ""));
  if (!matchMedia("(pointer: coarse)").matches) message.focus();
}

/** @param {string} title */
function entitle(title) {
  if (location.hash === "#compare" && title !== "Compare transports") return;
  part("title").textContent = title;
  document.title = title === "New chat" ? "chatserver" : `${title} · chatserver`;
}

function showBusy() {
  const isLosingFocus = [part("send"), part("stop")].includes(/** @type {HTMLElement} */ (document.activeElement));
  part("send").hidden = thread.isBusy;
  part("stop").hidden = !thread.isBusy;
  /** @type {HTMLButtonElement} */ (part("cut")).disabled = !thread.isBusy;
  document.body.classList.toggle("busy", thread.isBusy);
  if (isLosingFocus) (thread.isBusy ? part("stop") : message).focus();
}

/** @param {boolean} isShown on screens that have no room for it beside the chat */
function showSidebar(isShown) {
  document.body.classList.toggle("with-sidebar", isShown);
  part("shade").hidden = !isShown;
  part("open-sidebar").setAttribute("aria-expanded", String(isShown));
  if (isShown) part("new").focus();
  else if (part("sidebar").contains(document.activeElement) && matchMedia("(max-width: 56rem)").matches) part("open-sidebar").focus();
}

/** @returns {Transport} */
function remembered() {
  const kept = keep("transport");
  return kept === "ws" || kept === "sse" ? kept : "auto";
}

/** Browser storage, where there is any. @param {string} name @param {string} [value] */
function keep(name, value) {
  try {
    if (value !== undefined) localStorage.setItem(`chatserver.${name}`, value);
    return localStorage.getItem(`chatserver.${name}`);
  } catch {
    return null;
  }
}

/** @param {string} transport */
function choose(transport) {
  chat.transport = /** @type {Transport} */ (transport);
  keep("transport", transport);
  for (const input of part("transport").querySelectorAll("input")) input.checked = input.value === transport;
  showState();
}

/** @param {{ delayMs?: number }} [detail] */
function showState({ delayMs } = {}) {
  const { state, via } = chat;
  const pill = part("state");
  pill.dataset.state = state;
  pill.dataset.via = via;
  const text = state === "waiting" && delayMs ? `waiting ${duration(delayMs)}` : state;
  const label = pill.querySelector("span");
  if (label) label.textContent = state === "open" || state === "connecting" ? `${text} · ${NAMES[via]}` : text;
}

function cut() {
  if (!thread.isBusy) return;
  chat.cut();
  announce("The connection is cut; the answer goes on");
}

async function submit() {
  const text = message.value.trim();
  if (!text || thread.isBusy) return;
  message.value = "";
  fit();
  await thread.send(text);
}

/** As high as its text. */
function fit() {
  message.style.height = "auto";
  message.style.height = `${message.scrollHeight}px`;
}

/** @param {string[]} texts */
function suggest(texts) {
  part("suggestions").replaceChildren(...texts.map((text) =>
    el("li", {}, el("button", { type: "button", onclick: () => {
      void thread.send(text);
      message.focus();
    } }, text))));
}

async function learn() {
  try {
    const { is_demo: isDemo } = await (await chat.request("/readyz")).json();
    part("demo").hidden = !isDemo;
    compare.isDemo = isDemo;
    suggest(isDemo ? DEMO_SUGGESTIONS : SUGGESTIONS);
  } catch {
    suggest(SUGGESTIONS);
  }
}

part("composer").addEventListener("submit", (event) => {
  event.preventDefault();
  void submit();
});
message.addEventListener("input", fit);
message.addEventListener("keydown", (event) => {
  if (event.key === "Enter" && !event.shiftKey && !event.isComposing) {
    event.preventDefault();
    void submit();
  } else if (event.key === "ArrowUp" && !message.value) {
    event.preventDefault();
    thread.editLast();
  }
});
part("stop").addEventListener("click", () => void thread.stop());
part("cut").addEventListener("click", cut);
part("skip").addEventListener("click", (event) => {
  event.preventDefault();
  message.focus();
});
part("new").addEventListener("click", () => location.hash === "#/" && message.focus());
part("transport").addEventListener("change", (event) => choose(/** @type {HTMLInputElement} */ (event.target).value));
part("open-sidebar").addEventListener("click", () => showSidebar(true));
part("close-sidebar").addEventListener("click", () => showSidebar(false));
part("shade").addEventListener("click", () => showSidebar(false));
part("messages").addEventListener("click", (event) => {
  const button = event.target instanceof Element ? event.target.closest(".copy-code") : null;
  const text = button?.closest(".code")?.querySelector("code")?.textContent;
  if (button && text != null) void copy(text).then((isDone) => {
    button.classList.toggle("copied", isDone);
    announce(isDone ? "Code copied" : "Copying is not allowed here");
    setTimeout(() => button.classList.remove("copied"), 1500);
  });
});
chat.on("state", (_, detail) => showState(detail));
window.addEventListener("hashchange", route);
document.addEventListener("visibilitychange", () => {
  if (document.hidden) return;
  void sessions.refresh();
  void thread.refresh();
});

listen({
  stop: () => (document.body.classList.contains("with-sidebar") ? showSidebar(false) : void thread.stop()),
  focus: () => message.focus(),
  "new": () => go("#/"),
  next: () => beside(1),
  previous: () => beside(-1),
  transport: () => choose({ auto: "sse", sse: "ws", ws: "auto" }[chat.transport]),
  cut,
  wire: () => drawer.toggle(),
  compare: () => go("#compare"),
});

/** @param {number} by */
function beside(by) {
  const id = sessions.beside(by);
  if (id) go(`#/s/${id}`);
}

choose(chat.transport);
void learn();
void sessions.refresh();
route();
