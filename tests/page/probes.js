/** What a test asks of the page, from inside it. An expression: `Driver.probe` calls its members. */
({
  /** What can be used or seen, and has no name for those who cannot see it. */
  nameless() {
    const hasName = (each) =>
      each.getAttribute("aria-label") || each.textContent.trim() || each.labels?.[0]?.textContent.trim();
    return [...document.querySelectorAll("button, a[href], input, textarea, summary, [role=img]")]
      .filter((each) => each.checkVisibility() && !hasName(each))
      .map((each) => each.outerHTML);
  },

  /** Texts whose contrast is under 4.5 to 1. */
  faint() {
    const canvas = document.createElement("canvas").getContext("2d", { willReadFrequently: true });
    const rgba = (color) => {
      canvas.clearRect(0, 0, 1, 1);
      canvas.fillStyle = color;
      canvas.fillRect(0, 0, 1, 1);
      return [...canvas.getImageData(0, 0, 1, 1).data];
    };
    const linear = (part) => (part <= 0.04045 ? part / 12.92 : ((part + 0.055) / 1.055) ** 2.4);
    const luminance = ([r, g, b]) => 0.2126 * linear(r / 255) + 0.7152 * linear(g / 255) + 0.0722 * linear(b / 255);
    const behind = (each) => {
      if (!each) return [255, 255, 255];
      const [r, g, b, alpha] = rgba(getComputedStyle(each).backgroundColor);
      if (alpha > 250) return [r, g, b];
      const under = behind(each.parentElement);
      return [r, g, b].map((part, i) => (part * alpha + under[i] * (255 - alpha)) / 255);
    };
    const isText = (node) => node.nodeType === Node.TEXT_NODE && node.data.trim();
    return [...document.querySelectorAll("body *")]
      .filter((each) => each.checkVisibility({ opacityProperty: true, visibilityProperty: true }))
      .filter((each) => !each.closest("svg, :disabled, .unseen") && [...each.childNodes].some(isText))
      .map((each) => {
        const [a, b] = [luminance(rgba(getComputedStyle(each).color)), luminance(behind(each))].sort((x, y) => x - y);
        return [(b + 0.05) / (a + 0.05), each.className || each.tagName, each.textContent.slice(0, 30)];
      })
      .filter(([ratio]) => ratio < 4.5);
  },

  /** What a finger may miss: under 44 px in width or height. A link within text is let be. */
  small() {
    const covers = (each) => each.closest("label") ?? each;
    return [...document.querySelectorAll("button, a[href], input, textarea, summary")]
      .filter((each) => each.checkVisibility({ opacityProperty: true, visibilityProperty: true }) && !each.closest(".prose p, [inert], .skip"))
      .map((each) => [each.outerHTML.slice(0, 120), covers(each).getBoundingClientRect()])
      .filter(([, box]) => box.width < 43.9 || box.height < 43.9)
      .map(([html, { width, height }]) => `${Math.round(width)} x ${Math.round(height)}: ${html}`);
  },

  /** What is wrong with how one sees that this has the focus: no ring, or one that an ancestor cuts off; else "". */
  ring() {
    const focused = document.activeElement;
    const name = focused.outerHTML.slice(0, 120);
    const hasRing = (each) => parseFloat(getComputedStyle(each).outlineWidth) >= 2 && getComputedStyle(each).outlineStyle !== "none";
    const ringed = [focused, focused.nextElementSibling].find((each) => each && hasRing(each));
    if (!ringed && focused.id !== "message") return `no ring: ${name}`; // The message has a caret, and the border of its box.
    const { outlineWidth, outlineOffset } = getComputedStyle(ringed ?? focused);
    const around = ringed ? parseFloat(outlineWidth) + parseFloat(outlineOffset) - 0.5 : 0;
    const box = (ringed ?? focused).getBoundingClientRect();
    const isOut = (x, y, width, height) =>
      box.left - around < x || box.top - around < y || box.right + around > x + width || box.bottom + around > y + height;
    if (isOut(0, 0, innerWidth, innerHeight)) return `out of view: ${name}`;
    for (let each = (ringed ?? focused).parentElement; each && each !== document.body; each = each.parentElement) {
      if (getComputedStyle(each).overflow === "visible") continue;
      const { left, top } = each.getBoundingClientRect();
      if (isOut(left + each.clientLeft, top + each.clientTop, each.clientWidth, each.clientHeight)) return `cut off by ${each.className || each.id}: ${name}`;
    }
    return "";
  },

  /** Takes the marks of `step` away. */
  unmark() {
    for (const each of document.querySelectorAll("[data-reached]")) delete each.dataset.reached;
  },

  /** Marks what has the focus: what is wrong with how that is seen, and what can be used and was not marked yet. */
  step() {
    const wrong = document.activeElement === document.body ? "" : this.ring();
    document.activeElement.dataset.reached = "";
    const isChosen = (each) => each.type !== "radio" || each.checked;
    const left = [...document.querySelectorAll("button, a[href], input, textarea, summary, [tabindex='0']")]
      .filter((each) => each.checkVisibility({ visibilityProperty: true }) && !each.disabled && !each.closest("[inert]"))
      .filter((each) => isChosen(each) && each.tabIndex >= 0 && !("reached" in each.dataset))
      .map((each) => each.outerHTML.slice(0, 120));
    return [wrong, left];
  },

  /** Where the first of each selector is. @param {string[]} selectors */
  boxes(selectors) {
    return selectors.map((each) => document.querySelector(each).getBoundingClientRect().toJSON());
  },

  /** Whether one has to scroll sideways. */
  isTooWide() {
    return [document.documentElement, document.querySelector("main")].some((each) => each.scrollWidth > innerWidth);
  },

  moving() {
    return document.getAnimations().filter((each) => each.playState === "running").length;
  },

  /** Elements and attributes of the conversation that no answer can need, but for the form of a call that waits. */
  foreign() {
    const tags = "script img iframe object embed link style base meta form video audio input math".split(" ");
    const isBad = ({ name, value }) =>
      name.startsWith("on") || ["style", "src", "ping"].includes(name) || /^\s*(javascript|data|vbscript):/i.test(value);
    return [...document.querySelectorAll("#messages *")]
      .filter((each) =>
        (tags.includes(each.localName) && !each.closest(".ask")) || [...each.attributes].some(isBad)
        || (each.localName === "a" && !/^(https?|mailto):/.test(each.protocol)))
      .map((each) => each.outerHTML);
  },

  /** Draw each text, character by character, and touch what became of it. @param {string[]} texts */
  async draw(texts) {
    const { Markdown } = await import("./web/page/markdown.js");
    const { patch } = await import("./web/page/render.js");
    for (const text of texts) {
      const [markdown, box] = [new Markdown(), document.createElement("div")];
      document.getElementById("messages").append(box);
      let before = [];
      for (const char of text) {
        markdown.append(char);
        const now = markdown.blocks();
        patch(box, before, now);
        before = now;
      }
      patch(box, before, markdown.blocks(false));
      for (const each of box.querySelectorAll("*")) {
        for (const type of ["mouseover", "focus", "pointerdown"]) each.dispatchEvent(new Event(type, { bubbles: true }));
      }
    }
  },

  /** Begin an answer that is told by the test. What is answered to its calls is in `answered`; `refusal` refuses that. */
  async begin() {
    const { AnswerView } = await import("./web/page/answer.js");
    const { Run } = await import("./web/chatserver.js");
    Object.assign(window, { answered: [], refusal: null, run: new Run({ options: {} }, {}, "run") });
    const onAnswer = async (...answer) => {
      if (window.refusal) throw window.refusal;
      window.answered.push(answer);
    };
    const view = new AnswerView({ onRetry() {}, onDrawn() {}, onAnswer });
    document.getElementById("welcome").hidden = true;
    document.getElementById("messages").replaceChildren(view.element);
    void (async (run) => {
      for await (const event of run) view.apply(event, run.parts);
    })(window.run);
  },

  /** Let these events come, and be drawn. */
  async tell(events) {
    for (const event of events) window.run.take({ run_id: "run", seq: window.run.cursor + 1, ...event });
    await new Promise((resolve) => requestAnimationFrame(() => setTimeout(resolve)));
  },

  /** How many nodes of the page are added, removed or changed for a text, each token drawn. */
  async changes({ text, tokens }) {
    const { Markdown } = await import("./web/page/markdown.js");
    const { patch } = await import("./web/page/render.js");
    const size = Math.ceil(text.length / tokens);
    const [markdown, box] = [new Markdown(), document.createElement("div")];
    document.getElementById("messages").append(box);
    const observer = new MutationObserver(() => {});
    observer.observe(box, { subtree: true, childList: true, characterData: true, attributes: true });
    let before = [];
    for (let at = 0; at < text.length; at += size) {
      markdown.append(text.slice(at, at + size));
      const now = markdown.blocks();
      patch(box, before, now);
      before = now;
    }
    const sizeOf = (nodes) => [...nodes].reduce((sum, each) => sum + 1 + (each.querySelectorAll?.("*").length ?? 0), 0);
    return observer.takeRecords().reduce((sum, each) => sum + (sizeOf(each.addedNodes) + sizeOf(each.removedNodes) || 1), 0);
  },

  /** Where a script that runs would be seen, and what the policy had to stop. */
  raiseAlarm() {
    window.pwned = [];
    window.pwn = (what) => window.pwned.push(what);
    window.stopped = [];
    document.addEventListener("securitypolicyviolation", (event) =>
      window.stopped.push(`${event.violatedDirective} ${event.blockedURI} ${event.sample}`));
  },

  async alarms() {
    await new Promise((resolve) => requestAnimationFrame(() => setTimeout(resolve)));
    return [...window.pwned, ...window.stopped];
  },
})
