/** The tree of a session's messages: which branch is shown, which versions there are, whatever of it is known. */

import assert from "node:assert/strict";
import { test } from "node:test";

import { Branches } from "../../clients/web/page/branches.js";

/** `a<r` is a message `a` behind `r`; without a parent it is a first one. */
const messages = (text) => text.split(" ").map((each) => {
  const [message_id, parent_id = null] = each.split("<");
  return { message_id, parent_id };
});
const branches = (text) => {
  const made = new Branches();
  made.load(messages(text));
  made.leaf = made.newest;
  return made;
};
const path = (of) => of.path.map((each) => each.message_id).join(" ");

test("the branch of the newest message is shown", () => {
  assert.equal(path(branches("q a<q r<a b<r c<r d<a")), "q a d");
  assert.equal(path(new Branches()), "");
});

test("a version brings what followed it last", () => {
  const made = branches("q a<q r<a b<r a2<q r2<a c<r2 x<b");
  assert.equal(path(made), "q a r b x");
  assert.deepEqual(made.versions("a"), ["a", "a2"]);
  assert.deepEqual(made.versions("r"), ["r", "r2"]);
  assert.deepEqual(made.versions("x"), ["x"]);
  made.show("a2");
  assert.equal(path(made), "q a2");
  made.show("r2");
  assert.equal(path(made), "q a r2 c");
  made.show("a");
  assert.equal(path(made), "q a r b x");
});

test("first messages are versions of each other", () => {
  const made = branches("q a<q p b<p");
  assert.deepEqual(made.versions("p"), ["q", "p"]);
});

test("of what is not all known nothing is counted", () => {
  const made = new Branches();
  made.isWhole = false;
  made.load(messages("b<r x<b y<b"));
  made.leaf = made.newest;
  assert.equal(path(made), "b y");
  assert.deepEqual(made.versions("b"), ["b"]); // Its siblings may be on an older page.
  assert.deepEqual(made.versions("y"), ["x", "y"]);
  made.load(messages("q a<q r<a c<r"), true);
  made.isWhole = true;
  assert.equal(path(made), "q a r b y");
  assert.deepEqual(made.versions("b"), ["c", "b"]); // In the order in which they were made.
});

test("what comes again replaces what is known, in its place", () => {
  const made = branches("q a<q");
  made.load([{ ...messages("a<q")[0], content: "whole" }, ...messages("r<a")]);
  assert.equal(made.get("a").content, "whole");
  assert.equal(made.newest, "r");
  assert.deepEqual(made.versions("a"), ["a"]);
});
