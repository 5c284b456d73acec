/** Depth and size of consumer JSON, measured without recursion. */
import { describe, expect, test } from "bun:test";
import { assert as assertProperty, jsonValue, nat, property } from "fast-check";
import { checkMessages, nestsAtMost, shapeOf, TEXT_VALUES_MAX } from "../../ffi/json-limits.ts";
import { faultOf } from "../support/fault-of.ts";

const depthOf = (value: unknown): number =>
  typeof value === "object" && value !== null ? 1 + Math.max(0, ...Object.values(value).map(depthOf)) : 0;

describe("depth", () => {
  test("agrees with the recursive definition", () => {
    // A failure prints its seed.
    assertProperty(
      property(jsonValue({ maxDepth: 6 }), nat(8), (value, limit) => {
        expect(nestsAtMost(value, limit)).toBe(depthOf(value) <= limit);
        expect(shapeOf(JSON.stringify(value)).depth).toBe(depthOf(value));
      }),
    );
  });

  test("takes a million levels without a deep stack", () => {
    let value: unknown = 1;
    for (let level = 0; level < 1_000_000; level += 1) value = [value];
    expect(nestsAtMost(value, 64)).toBe(false);
    expect(shapeOf("[".repeat(1_000_000)).depth).toBe(1_000_000);
  });

  test("brackets in strings do not count, unclosed ones do", () => {
    expect(shapeOf('{"a": "[[[[", "b\\"[": [1]}').depth).toBe(2);
    expect(shapeOf("][").depth).toBe(0);
    expect(shapeOf("[[").depth).toBe(2);
  });
});

test("values in the text of tool arguments and results are counted over all messages", () => {
  expect(shapeOf('{"a": [1, "b, {", {}]}').values).toBe(6);
  const list = `[${"1,".repeat(TEXT_VALUES_MAX / 2)}1]`;
  const call = { role: "assistant", tool_calls: [{ function: { name: "f", arguments: list } }] };
  const result = { role: "tool", content: list };
  checkMessages([call]);
  expect(faultOf(() => checkMessages([call, result]))).toMatchObject({ code: "bad_request", reason: "too_complex" });
});
