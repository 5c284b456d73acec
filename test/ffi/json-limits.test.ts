/** Depth and size of consumer JSON, measured without recursion. */
import { describe, expect, test } from "bun:test";
import { assert as assertProperty, jsonValue, nat, property } from "fast-check";
import { bracketDepth, nestsAtMost } from "../../ffi/json-limits.ts";

const depthOf = (value: unknown): number =>
  typeof value === "object" && value !== null ? 1 + Math.max(0, ...Object.values(value).map(depthOf)) : 0;

describe("depth", () => {
  test("agrees with the recursive definition", () => {
    // A failure prints its seed.
    assertProperty(
      property(jsonValue({ maxDepth: 6 }), nat(8), (value, limit) => {
        expect(nestsAtMost(value, limit)).toBe(depthOf(value) <= limit);
        expect(bracketDepth(JSON.stringify(value))).toBe(depthOf(value));
      }),
    );
  });

  test("takes a million levels without a deep stack", () => {
    let value: unknown = 1;
    for (let level = 0; level < 1_000_000; level += 1) value = [value];
    expect(nestsAtMost(value, 64)).toBe(false);
    expect(bracketDepth("[".repeat(1_000_000))).toBe(1_000_000);
  });

  test("brackets in strings do not count, unclosed ones do", () => {
    expect(bracketDepth('{"a": "[[[[", "b\\"[": [1]}')).toBe(2);
    expect(bracketDepth("][")).toBe(0);
    expect(bracketDepth("[[")).toBe(2);
  });
});
