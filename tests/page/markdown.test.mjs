/** The Markdown of the page, without a page: what it makes of text, whole and as it grows, and what it never makes. */

import assert from "node:assert/strict";
import { test } from "node:test";

import { Markdown, parse } from "../../clients/web/page/markdown.js";
import { PAYLOADS } from "./payloads.mjs";
import { sample } from "./sample.mjs";

/** A tree in the notation of HTML, short: no attributes but links'. */
const show = (tree) => {
  if (typeof tree === "string") return tree.replaceAll("<", "&lt;");
  const link = tree.attrs?.href ? ` ${tree.attrs.href}` : "";
  return `<${tree.tag}${link}>${tree.children.map(show).join("")}</${tree.tag}>`;
};
const html = (text) => parse(text).map(show).join("").replace(/<\/(?:br|hr)>/g, "");
const every = function* (trees) {
  for (const tree of trees) {
    yield tree;
    if (typeof tree !== "string") yield* every(tree.children);
  }
};

for (const [name, text, tree] of [
  ["emphasis", "a **b *c* d** ~~e~~ `f*g*`", "<p>a <strong>b <em>c</em> d</strong> <del>e</del> <code>f*g*</code></p>"],
  ["both at once", "***a*** *b**c**d*", "<p><em><strong>a</strong></em> <em>b<strong>c</strong>d</em></p>"],
  ["no emphasis within words or sums", "snake_case_name 2 * 3 * 4", "<p>snake_case_name 2 * 3 * 4</p>"],
  ["escapes and entities", "\\*a\\* &lt;b&gt; &#65; &copy; &nope;", "<p>*a* &lt;b> A © &nope;</p>"],
  ["links", '[a](https://b.c "t") <https://d.e>', "<p><a https://b.c/>a</a> <a https://d.e/>https://d.e</a></p>"],
  ["addresses", "(https://a.b/c_(d)), www.e.f.", "<p>(<a https://a.b/c_(d)>https://a.b/c_(d)</a>), <a https://www.e.f/>www.e.f</a>.</p>"],
  ["images are links", "![a](https://b.c/d.png)", "<p><a https://b.c/d.png>a</a></p>"],
  ["hard breaks", "a  \nb\\\nc\nd", "<p>a<br>b<br>c\nd</p>"],
  ["headings", "# A #\n### B\n#C", "<h1>A</h1><h3>B</h3><p>#C</p>"],
  ["rules", "a\n\n---\n***", "<p>a</p><hr><hr>"],
  ["nested lists", "- a\n  - b\n    1. c\n- d", "<ul><li>a<ul><li>b<ol><li>c</li></ol></li></ul></li><li>d</li></ul>"],
  ["lists as models indent them", "1. a\n    - b\n2. c", "<ol><li>a<ul><li>b</li></ul></li><li>c</li></ol>"],
  ["loose lists", "- a\n\n- b", "<ul><li><p>a</p></li><li><p>b</p></li></ul>"],
  ["a year is no list", "It was in\n1986. That was", "<p>It was in\n1986. That was</p>"],
  ["tasks", "- [x] a\n- [ ] b", "<ul><li><span></span>a</li><li><span></span>b</li></ul>"],
  ["quotes", "> a\n> - b\n\nc", "<blockquote><p>a</p><ul><li>b</li></ul></blockquote><p>c</p>"],
  ["tables", "a | b\n--|:-:\n1 | x\\|y\n2", "<div><table><thead><tr><th>a</th><th>b</th></tr></thead><tbody><tr><td>1</td><td>x|y</td></tr><tr><td>2</td><td></td></tr></tbody></table></div>"],
  ["formulas stay as they were typed", "a \\(e^{i\\pi}\\) \\[x_1*y_1\\] $$a*b*c$$ $x_1*y_1*z$", "<p>a <code>\\(e^{i\\pi}\\)</code> <code>\\[x_1*y_1\\]</code> <code>$$a*b*c$$</code> <code>$x_1*y_1*z$</code></p>"],
  ["formulas of several lines", "so\n\\[\na\n+ b\\\\\n\\]\n$$ a\n- b\n$$\nc", "<p>so</p><pre>\\[\na\n+ b\\\\\n\\]</pre><pre>$$ a\n- b\n$$</pre><p>c</p>"],
  ["money is no formula", "$5 and $10, \\$5, $*a* $2*3 \\(", "<p>$5 and $10, $5, $<em>a</em> $2*3 (</p>"],
  ["HTML is text", "<b>a</b>\n<br>c", "<p>&lt;b>a&lt;/b>\n<br>c</p>"],
]) {
  test(name, () => assert.equal(html(text), tree));
}

test("code keeps its spaces, and is coloured line by line", () => {
  const [block] = parse("```python\ndef f():\n\treturn '''a\n  b''' # c\n```\nend");
  assert.equal(block.attrs.class, "code");
  const code = block.children[1].children[0];
  assert.equal([...every([code])].filter((tree) => typeof tree === "string").join(""), "def f():\n\treturn '''a\n  b''' # c");
  const looks = [...every([code])].map((tree) => tree.attrs?.class).filter((look) => look && look !== "line");
  assert.deepEqual(looks, ["keyword", "call", "keyword", "string", "string", "comment"]);
});

const WORDS = [
  "a", "word", " ", "  ", "\n", "\n\n", "\r\n", "# ", "## ", "- ", "* ", "1. ", "2) ", "> ", "  - ", "    ", "\t", "```", "```js\n",
  "~~~\n", "**", "*", "_", "__", "~~", "`", "``", "[", "]", "(", ")", "![", "](https://a.b/c)", "https://d.e/f", "<", ">", "&amp;",
  "&#60;", "|", "| a | b |\n", "|---|---|\n", "---\n", "\\", "- [x] ", "\"", "'", "const x = 1;", "/*", "*/", "é😀", "www.g.h", ".", "#",
  "\\(", "\\)", "\\[", "\\]", "$", "$$", "\\[\n", "$$\n",
];
/** A generator of numbers that are the same in each run. */
const numbers = (seed) => () => ((seed = (seed * 1103515245 + 12345) & 0x7fffffff) / 0x7fffffff);

test("text that came bit by bit is what it would be at once", () => {
  const random = numbers(7);
  for (let round = 0; round < 3000; round++) {
    const parts = Array.from({ length: 1 + Math.floor(random() * 30) }, () => WORDS[Math.floor(random() * WORDS.length)]);
    const markdown = new Markdown();
    for (const part of parts) {
      markdown.append(part);
      markdown.blocks();
    }
    assert.deepEqual(markdown.blocks(false), parse(parts.join("")), JSON.stringify(parts.join("")));
  }
});

test("a closed block is the same object for ever", () => {
  const markdown = new Markdown();
  markdown.append("# A\n\n- b\n- c\n\nd\n\n");
  const before = markdown.blocks();
  markdown.append("e **f");
  const now = markdown.blocks();
  assert.equal(now[0], before[0]);
  assert.equal(now[1], before[1]);
  assert.ok(markdown.closed >= 2);
});

test("what is begun is shown as if it were ended", () => {
  const shown = (text) => {
    const markdown = new Markdown();
    markdown.append(text);
    return markdown.blocks().map(show).join("");
  };
  assert.equal(shown("a **b"), "<p>a <strong>b</strong></p>");
  assert.equal(shown("a `b"), "<p>a <code>b</code></p>");
  assert.equal(shown("a [b](https://c"), "<p>a b</p>");
  assert.equal(shown("| a | b"), "<div><table><thead><tr><th>a</th><th>b</th></tr></thead></table></div>");
  assert.equal(shown("``"), "<p></p>");
});

const SAFE_TAGS = new Set("a blockquote br button code del div em h1 h2 h3 h4 h5 h6 hr li ol p pre span strong table tbody td th thead tr ul".split(" "));

test(`none of ${PAYLOADS.length} payloads becomes more than text and a link to the web`, () => {
  assert.ok(PAYLOADS.length >= 300);
  assert.equal(new Set(PAYLOADS).size, PAYLOADS.length);
  for (const payload of PAYLOADS) {
    const grown = new Markdown();
    for (const char of payload) {
      grown.append(char);
      check(grown.blocks(), payload);
    }
    check(parse(payload), payload);
  }
});

function check(trees, payload) {
  for (const tree of every(trees)) {
    if (typeof tree === "string") continue;
    assert.ok(SAFE_TAGS.has(tree.tag), payload);
    for (const [name, value] of Object.entries(tree.attrs ?? {})) {
      assert.ok(["class", "href", "start", "type", "role", "aria-label", "tabindex"].includes(name), payload);
      if (name === "href") assert.match(value, /^(?:https?:\/\/[^@\s]+|mailto:[^\s]+)$/, payload);
      else assert.match(value, /^[\w -]*$/, payload);
    }
  }
}

/** Milliseconds of the processor since `begin`: a busy machine adds none. */
const spentMs = (begin) => { const { user, system } = process.cpuUsage(begin); return (user + system) / 1000; };

test("an 8 KB answer in 2,000 tokens is read in less than 100 ms", () => {
  const text = sample();
  const size = Math.ceil(text.length / 2000);
  let best = Infinity;
  for (let round = 0; round < 5; round++) {
    const markdown = new Markdown();
    const begin = process.cpuUsage();
    for (let at = 0; at < text.length; at += size) {
      markdown.append(text.slice(at, at + size));
      markdown.blocks();
    }
    best = Math.min(best, spentMs(begin));
  }
  assert.ok(best < 100, `${best} ms`);
  console.log(`${text.length} characters, token by token: ${best.toFixed(1)} ms`);
});

test("no text takes more than a moment", () => {
  const times = (text, count) => text.repeat(count);
  for (const text of [
    times("[", 20000), times("![", 20000), times("*a ", 20000), times("**a ", 20000), times("*a* ", 20000), times("_a*b_c*", 10000), times("`", 20000),
    times("` `` ``` ", 5000), times("](", 20000), times("[a](", 10000), times("<", 20000), times("<https://", 5000), times("&", 20000),
    times("> ", 10000), times("- ", 10000), times("1. ", 10000), times("| ", 20000), times("|-", 20000), times("http://", 10000), times("\\", 30000),
    times("- - - x", 5000), times("~~a ", 10000), `${times("*", 20000)}a${times("*", 20000)}`, times("(", 20000), `[a](${times("(", 10000)}`,
    times("  ".repeat(20) + "- a\n", 2000), times(" ", 50000) + "a", "# " + times("#", 30000) + "a", times("- a\n\n", 5000), times("_ ", 20000), times("\\(", 20000), times("$", 30000),
    times("$a_ ", 20000), times("\\[ a\n", 10000), times("$$ a\n\n", 5000), `[a](${times("\\a", 5000)}`,
  ]) {
    for (const isOpen of [true, false]) {
      let blocks, took = Infinity;
      for (let round = 0; round < 3 && took > 500; round++) { // What is compiled or collected meanwhile is slow once; what is quadratic, always.
        const markdown = new Markdown();
        markdown.append(text);
        const begin = process.cpuUsage();
        blocks = markdown.blocks(isOpen);
        took = spentMs(begin);
      }
      assert.ok(took < 2000, `${JSON.stringify(text.slice(0, 20))} took ${took} ms`);
      assert.ok(depth(blocks) < 80, JSON.stringify(text.slice(0, 20)));
    }
  }
});

const depth = (trees) => Math.max(0, ...trees.map((tree) => (typeof tree === "string" ? 0 : 1 + depth(tree.children))));
