/** Tool schemas over which upstream's sampler would not return: each of these stopped the whole step loop for more than 5 s. */
import { beforeAll, describe, expect, test } from "bun:test";
import { ChatTemplates } from "../../ffi/chat.ts";
import { Model } from "../../ffi/model.ts";
import { demoNative, NATIVE_DEADLINE_MS } from "../support/demo-model.ts";
import { faultOf } from "../support/fault-of.ts";
import { DEMO_MODEL } from "../support/native.ts";

let chat: ChatTemplates;
beforeAll(async () => {
  chat = ChatTemplates.open(Model.open(await demoNative(), DEMO_MODEL));
}, NATIVE_DEADLINE_MS);

const property = (schema: unknown): unknown => ({ type: "object", properties: { a: schema }, required: ["a"] });
const pattern = (text: string): unknown => property({ type: "string", pattern: text });
const range = (length: number): number[] => Array.from({ length }, (_, index) => index);

const grammarOf = (parameters: unknown) =>
  chat.apply({
    messages: [{ role: "user", content: "a" }],
    tools: [{ type: "function", function: { name: "f", parameters } }],
  }).grammar;

const node = { $ref: "#/$defs/node" };
const recursive = {
  ...(property(node) as object),
  $defs: { node: { oneOf: range(2).map((minItems) => ({ type: "array", items: node, minItems })) } },
};
const doubling = {
  ...(property({ $ref: "#/$defs/d22" }) as object),
  $defs: Object.fromEntries(
    range(23).map((depth) => [
      `d${depth}`,
      depth === 0 ? { type: "string" } : { anyOf: range(2).map(() => ({ $ref: `#/$defs/d${depth - 1}` })) },
    ]),
  ),
};

describe("no grammar shapes the call, but the request is taken", () => {
  const cases: Record<string, unknown> = {
    "an integer bound of 17 digits": property({ type: "integer", minimum: 10 ** 16 }),
    "the largest 64-bit integer": property({ type: "integer", maximum: 2 ** 63 }),
    "bounds that contradict each other": property({ type: "string", minLength: 5, maxLength: 3 }),
    "counts that contradict each other": property({ type: "array", items: {}, minItems: 5, maxItems: 3 }),
    "a backward repetition": pattern("^a{5,3}$"),
    "nested repetitions": pattern("^(((a{0,12}){0,12}){0,12}){0,12}$"),
    "many optional parts": pattern(`^${".?".repeat(2_000)}$`),
    "many repetitions": pattern(`^${".*".repeat(200)}$`),
    "three ranges": pattern(`^${".{0,1000}".repeat(3)}$`),
    "alternatives of a schema that holds itself": recursive,
    "alternatives that double at every level": doubling,
    "more values than can be compared": property({ enum: range(2_047).map(String) }),
  };
  test.each(Object.entries(cases))("%s", (_name, parameters) => expect(grammarOf(parameters)).toBeNull());
});

describe("a grammar shapes the call", () => {
  const cases: Record<string, unknown> = {
    "the largest exact integer": property({ type: "integer", minimum: 0, maximum: Number.MAX_SAFE_INTEGER }),
    "a date": pattern("^\\d{4}-\\d{2}-\\d{2}$"),
    "an e-mail address": pattern("^[^@]+@[^@]+\\.[^@]+$"),
    "a property named like a keyword": property({ type: "object", properties: { pattern: { type: "string" } } }),
    references: {
      ...(property({ anyOf: [{ $ref: "#/$defs/city" }, { type: "null" }] }) as object),
      $defs: { city: property({ type: "string" }) },
    },
    "a list of 1,000 values": property({ enum: range(1_000).map(String) }),
    "200 properties": { type: "object", properties: Object.fromEntries(range(200).map((key) => [`p${key}`, {}])) },
  };
  test.each(Object.entries(cases))("%s", (_name, parameters) => expect(grammarOf(parameters)).not.toBeNull());
});

test("a list over which upstream would already be slow to make a grammar is refused", () => {
  const types = (length: number): unknown => property({ type: range(length).map(() => "string") });
  expect(faultOf(() => grammarOf(types(3_000)))).toMatchObject({ code: "bad_request", reason: "too_complex" });
  expect(grammarOf(types(100))).not.toBeNull();
});
