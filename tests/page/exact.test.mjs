/** Numbers stay as they were written, whatever JavaScript makes of them; all else is as `JSON` has it. */

import assert from "node:assert/strict";
import { test } from "node:test";

import { Exact, mistakeIn, parse, stringify } from "../../clients/web/page/exact.js";

const ROUNDED = ["9007199254740993", "-9007199254740993", "18446744073709551616", "1.0", "-0", "1e5", "1E-7", "0.10", "1e400", "1".repeat(400)];

test("a number is written as it was read", () => {
  for (const number of [...ROUNDED, "0", "-7", "0.5", "1e+21"]) {
    for (const text of [number, `[${number},"${number}"]`, `{"n":${number},"m":{"n":[${number}]}}`]) {
      assert.equal(stringify(parse(text)), text);
    }
  }
  assert.equal(stringify(parse('{"a": [1.0, {}]}'), 2), '{\n  "a": [\n    1.0,\n    {}\n  ]\n}');
});

test("another field can change beside it", () => {
  assert.equal(stringify({ ...parse('{"n":9007199254740993,"ident":"a"}'), ident: "b" }), '{"n":9007199254740993,"ident":"b"}');
});

test("only a number that JavaScript would write otherwise is no plain number", () => {
  assert.deepEqual(parse('{"seq":7,"price":9.5,"text":"1.0 and \\"2.0\\", \\\\"}'), { seq: 7, price: 9.5, text: '1.0 and "2.0", \\' });
  const { progress } = parse('{"progress":3.0}');
  assert.ok(progress instanceof Exact && progress > 2 && progress / 2 === 1.5);
  assert.equal(new Intl.NumberFormat("en").format(progress), "3");
  assert.deepEqual([String(progress), JSON.stringify({ progress })], ["3.0", '{"progress":3}']);
});

test("texts are no numbers", () => {
  for (const text of ['"1.0"', '"\\\\"', '{"1.0":"a\\"1.0"}', `"${"9".repeat(3_000_000)}"`, '{"a\\"":1.0,"b":"\\\\\\"1.0"}']) {
    assert.equal(stringify(parse(text)), text);
  }
});

test("what is no JSON is refused as JSON refuses it", () => {
  for (const wrong of ["", "{", '{"n": 007}', "1.", ".5", "1.0.0", "[1.0,]", "NaN"]) {
    assert.throws(() => parse(wrong), SyntaxError);
    assert.equal(mistakeIn(wrong), "This is no JSON.");
  }
  assert.equal(stringify({ a: undefined, b: [undefined] }), '{"b":[null]}');
});

test("a number that no server takes is named", () => {
  assert.equal(mistakeIn('{"a": "1e999", "n": -1e400}'), "The number -1e400 is too large to be sent.");
  assert.equal(mistakeIn('{"a": "1e999", "n": 9007199254740993}'), "");
});
