/** Canonical JSON has one spelling per value. */
import { expect, test } from "bun:test";
import * as fc from "fast-check";
import { canonicalJson, type CanonicalValue } from "../../src/core/canonical-json.ts";

test("keys are sorted at every depth, nothing is added", () => {
  expect(canonicalJson({ b: [1, { z: null, a: "é\n" }], a: true, é: 0.5, skipped: undefined })).toBe(
    '{"a":true,"b":[1,{"a":"é\\n","z":null}],"é":0.5}',
  );
});

test("what JSON cannot say is a bug of the caller", () => {
  expect(() => canonicalJson(Number.NaN)).toThrow("finite");
  let deep: CanonicalValue = 1;
  for (let depth = 0; depth < 100; depth += 1) deep = [deep];
  expect(() => canonicalJson(deep)).toThrow("nests too deep");
});

test("property: it parses back, and the order in which keys were set does not matter", () => {
  fc.assert(
    fc.property(fc.dictionary(fc.string(), fc.jsonValue()), (object) => {
      const value = object as { [key: string]: CanonicalValue };
      const text = canonicalJson(value);
      expect(canonicalJson(JSON.parse(text) as CanonicalValue)).toBe(text);
      const reversed = Object.fromEntries(Object.entries(value).toReversed());
      expect(canonicalJson(reversed)).toBe(text);
    }),
  );
});
