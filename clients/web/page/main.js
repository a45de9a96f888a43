/**
 * The page, put together.
 *
 *     address ──▶ sessions, thread or compare;   chat ──frames──▶ wire ──▶ meters, drawer
 */

import { connect } from "../chatserver.js";
import { limitAttachments } from "./attachments.js";
import { Compare } from "./compare.js";
import { Composer, limitMessages } from "./composer.js";
import { Door } from "./door.js";
import { announce, copy, duration, el, part } from "./dom.js";
import { parse, stringify } from "./exact.js";
import { keep, kept } from "./kept.js";
import { Sessions } from "./sessions.js";
import { OWN_TOOLS } from "./own_tools.js";
import { listen } from "./shortcuts.js";
import { Sidebar } from "./sidebar.js";
import { Thread } from "./thread.js";
import { Drawer, Wire } from "./wire.js";

/** @import { Transport } from "../chatserver.js" */

const DEMO_SUGGESTIONS = [
  "What time is it in Tokyo, and what is 17 * 23?", "Think about rivers.", "Count to 500", "Fail with 429",
  "Book a table for 4 at 19:30", "Work for 10 seconds", "What is my screen size?",
];
const SUGGESTIONS = ["Explain Server-Sent Events and WebSocket in a table.", "Write a binary search in Python, with a test.", "What can you do for me?"];
const NAMES = { ws: "WS", sse: "SSE" };
/** @type {Transport[]} */ const TRANSPORTS = ["auto", "sse", "ws"];

const chat = connect("", { transport: TRANSPORTS.find((each) => each === kept("local", "transport")) ?? "auto", tools: OWN_TOOLS, json: { parse, stringify } });
const wire = new Wire(chat);
const drawer = new Drawer(chat);
const sidebar = new Sidebar();
/** Other pages of this browser: what one does, the others show. */
const others = new BroadcastChannel("chatserver");
const news = () => others.postMessage("news");

const door = new Door(chat, () => {
  void sessions.refresh();
  thread.signedIn();
});
const onSignedOut = () => door.shut();
const composer = new Composer({
  onSend: (text, attachments) => void thread.send(text, attachments),
  onEditLast: () => thread.editLast(),
  isBusy: () => thread.isBusy,
});
const sessions = new Sessions(chat, {
  onDeleted: (id) => id === thread.sessionId && go("#/"),
  onTitle: (id, title) => id === thread.sessionId && entitle(title || "New chat"),
  onNews: news,
  onSignedOut,
});
const thread = new Thread(chat, wire, {
  onSession: (id) => {
    history.replaceState(null, "", `#/s/${id}`);
    composer.name(id);
    sessions.select(id);
  },
  onTitle: entitle,
  onTaken: () => composer.taken(),
  onRefused: (text, attachments, why) => composer.giveBack(text, attachments, why),
  onChange: () => {
    showBusy();
    void sessions.refresh();
  },
  onNews: news,
  onSignedOut,
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
  sidebar.show(false);
  if (isCompare) {
    entitle("Compare transports");
    return compare.show();
  }
  compare.stop();
  void thread.open(id).then(() => id === null || entitle(part("title").textContent ?? ""));
  composer.open(id);
  if (!matchMedia("(pointer: coarse)").matches) composer.focus();
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
  if (!thread.isBusy) composer.free();
  if (isLosingFocus) thread.isBusy ? part("stop").focus() : composer.focus();
}

/** @param {Transport} transport */
function choose(transport) {
  chat.transport = transport;
  keep("local", "transport", transport);
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
  thread.reading.showState();
}

function cut() {
  if (!thread.isBusy) return;
  chat.cut();
  announce("The connection is cut; the answer goes on");
}

/** @param {string[]} texts */
function suggest(texts) {
  part("suggestions").replaceChildren(...texts.map((text) =>
    el("li", {}, el("button", { type: "button", onclick: () => {
      void thread.send(text);
      composer.focus();
    } }, text))));
}

async function learn() {
  try {
    const { is_demo: isDemo, login_url: loginUrl, max_message_bytes: bytes, max_inline_bytes: inlineBytes } = await (await chat.request("/readyz")).json();
    part("demo").hidden = !isDemo;
    compare.isDemo = isDemo;
    if (isDemo) thread.tools = Object.keys(OWN_TOOLS); // Another model may know no tools at all.
    door.way = loginUrl;
    limitMessages(bytes);
    limitAttachments(inlineBytes);
    suggest(isDemo ? DEMO_SUGGESTIONS : SUGGESTIONS);
  } catch {
    suggest(SUGGESTIONS);
  }
}

function refresh() {
  void sessions.refresh();
  void thread.refresh();
}

part("stop").addEventListener("click", () => void thread.reading.stop());
part("cut").addEventListener("click", cut);
part("skip").addEventListener("click", (event) => {
  event.preventDefault();
  if (part("chat").hidden) compare.answer.focus();
  else composer.focus();
});
part("new").addEventListener("click", () => location.hash === "#/" && composer.focus());
part("transport").addEventListener("change", (event) => choose(/** @type {any} */ (event.target).value));
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
document.addEventListener("visibilitychange", () => document.hidden || refresh());
others.addEventListener("message", () => document.hidden || refresh());

listen({
  stop: () => (sidebar.isShown ? sidebar.show(false) : void thread.reading.stop()),
  focus: () => composer.focus(),
  "new": () => go("#/"),
  next: () => beside(1),
  previous: () => beside(-1),
  transport: () => choose({ auto: /** @type {const} */ ("sse"), sse: /** @type {const} */ ("ws"), ws: /** @type {const} */ ("auto") }[chat.transport]),
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
