/** 10,000 broken chat bodies: each is taken or refused with a Fault of the door, quickly, and nothing else ever happens. */
import { expect, test } from "bun:test";
import { Fault } from "../../../src/core/fault.ts";
import { decodeCanonicalChat, decodeChatRequest, encodeCanonicalChat } from "../../../src/dialects/chat/request.ts";
import {
  createDice,
  flipBit,
  fuzzSeed,
  MUTATIONS,
  residentBytes,
  spliceBytes,
  Tally,
  truncateBytes,
  type Dice,
  type Mutation,
} from "../../support/fuzz.ts";

const BODIES_PER_CLASS = 2_000;
/** Far above what any of these small bodies takes, far below what a consumer would notice. */
const BODY_MS_MAX = 500;

const TOOL_CALL = { id: "call_1", type: "function", function: { name: "weather", arguments: '{"city":"Ulm"}' } };
const SCHEMA = { type: "object", properties: { city: { type: "string", maxLength: 80 } }, required: ["city"] };
const CORPUS = [
  { model: "darkbloom-demo", messages: [{ role: "user", content: "What is the capital of France?" }] },
  {
    model: "darkbloom-demo",
    messages: [
      { role: "system", content: "Be brief. 😀 é" },
      {
        role: "user",
        content: [
          { type: "text", text: "a" },
          { type: "text", text: "b" },
        ],
      },
    ],
    stream: true,
    stream_options: { include_usage: true },
    temperature: 0.7,
    top_p: 0.9,
    top_k: 40,
    seed: 42,
    stop: ["\n\n", "END"],
    max_tokens: 128,
    n: 1,
    user: "someone",
  },
  {
    model: "darkbloom-demo",
    messages: [
      { role: "user", content: "Weather in Ulm?" },
      { role: "assistant", content: null, tool_calls: [TOOL_CALL] },
      { role: "tool", tool_call_id: "call_1", content: "12 °C" },
    ],
    tools: [{ type: "function", function: { name: "weather", description: "d", parameters: SCHEMA } }],
    tool_choice: "auto",
    max_completion_tokens: 64,
    logit_bias: {},
    metadata: { a: "b" },
  },
];
/** Padded, so that some truncations stay valid. */
const ENCODED = CORPUS.map((body) => new TextEncoder().encode(`${JSON.stringify(body, null, 1)}${" ".repeat(40)}`));

type Holder = Record<string, unknown>;

/** Every place in a JSON value that can be replaced. */
const placesOf = (value: unknown, found: { holder: Holder; key: string }[] = []): { holder: Holder; key: string }[] => {
  if (typeof value !== "object" || value === null) return found;
  for (const key of Object.keys(value)) {
    found.push({ holder: value as Holder, key });
    placesOf((value as Holder)[key], found);
  }
  return found;
};

/** Replaces one value by source text, so that numbers can be written that no JSON encoder writes. */
const replaceOne = (dice: Dice, body: Uint8Array, replacements: readonly string[]): Uint8Array => {
  const value = JSON.parse(new TextDecoder().decode(body)) as unknown;
  const place = dice.pick(placesOf(value));
  place.holder[place.key] = "@@here@@";
  const replacement = dice.pick(replacements);
  return new TextEncoder().encode(JSON.stringify(value).replace('"@@here@@"', () => replacement));
};

const OTHER_TYPES = 'null|true|false|0|-1|""|"text"|[]|{}|[null]|[{"type":"text"}]|{"type":1}|[[[]]]'.split("|");
const GIANTS = [
  ..."1e400 -1e400 1e308 9007199254740993 -9223372036854775809 0.1e-320 4294967296".split(" "),
  `1${"0".repeat(400)}`,
  `"${"x".repeat(70_000)}"`,
  `[${"{},".repeat(20_000)}{}]`,
  `${"[".repeat(1_000)}${"]".repeat(1_000)}`,
];

/** On bytes, not text, so that broken UTF-8 reaches the door. */
const mutate = (dice: Dice, kind: Mutation, body: Uint8Array): Uint8Array => {
  switch (kind) {
    case "flip":
      return flipBit(dice, body);
    case "truncate":
      return truncateBytes(dice, body);
    case "splice": {
      const other = dice.pick(ENCODED);
      const at = dice.below(other.length);
      return Buffer.concat([spliceBytes(dice, body, other.slice(at, at + 40)), body.slice(dice.below(body.length))]);
    }
    case "retype":
      return replaceOne(dice, body, OTHER_TYPES);
    case "huge":
      return replaceOne(dice, body, GIANTS);
  }
};

test("10,000 mutated bodies", () => {
  const seed = fuzzSeed();
  const dice = createDice(seed);
  const tally = new Tally();
  const warmBytes = residentBytes();
  for (const kind of MUTATIONS)
    for (let count = 0; count < BODIES_PER_CLASS; count += 1) {
      const body = mutate(dice, kind, dice.pick(ENCODED));
      const startedMs = performance.now();
      try {
        const request = decodeChatRequest(body);
        tally.add(kind, "accepted");
        expect(decodeCanonicalChat(encodeCanonicalChat(request))).toEqual(request);
      } catch (thrown) {
        if (!(thrown instanceof Fault))
          throw new Error(`seed ${seed}, ${kind} ${count}: not a Fault`, { cause: thrown });
        tally.add(kind, "rejected");
        expect([400, 415]).toContain(thrown.status);
        expect(thrown.message.length).toBeLessThan(300);
      }
      expect(performance.now() - startedMs).toBeLessThan(BODY_MS_MAX);
    }
  tally.print("chat request bodies", seed);
  for (const kind of MUTATIONS) {
    expect(tally.count(kind, "accepted")).toBeGreaterThan(0);
    expect(tally.count(kind, "rejected")).toBeGreaterThan(0);
  }
  expect(residentBytes() - warmBytes).toBeLessThan(200 * 1024 * 1024);
}, 60_000);
