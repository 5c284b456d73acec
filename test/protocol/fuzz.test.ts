/** The doors under fire: mutated control messages, data frames and payloads end in a value or a Fault, never in anything else. */
import { describe, expect, test } from "bun:test";
import { Fault } from "../../src/core/fault.ts";
import { MIB } from "../../src/core/units.ts";
import { decodeFrame, FRAME_KIND, openFrame, sealFrame } from "../../src/protocol/frames.ts";
import {
  decodeCoordinatorMessage,
  decodeProviderMessage,
  encodeMessage,
  type Decoded,
} from "../../src/protocol/messages.ts";
import { decodeEvents, decodeTerminal, encodeEvents, encodeTerminal } from "../../src/protocol/payloads.ts";
import { AesGcmFrameCipher } from "../../src/trust/frame-cipher.ts";
import {
  createDice,
  flipBit,
  fuzzSeed,
  MUTATIONS,
  mutateText,
  residentBytes,
  spliceBytes,
  Tally,
  truncateBytes,
  type Dice,
  type Mutation,
} from "../support/fuzz.ts";
import { ATTEMPT_ID, COORDINATOR_SAMPLES, PROVIDER_SAMPLES } from "./_samples.ts";

const ROUNDS = 10_000;
const GROWTH_BYTES_MAX = 48 * MIB;
const OTHER_ID = "fedcba98-7654-4210-bedc-ba9876543210";
const seed = fuzzSeed();

/** Only Faults of the expected code may come out of a door. */
const outcomeOf = (codes: readonly string[], run: () => string): string => {
  try {
    return run();
  } catch (thrown) {
    if (thrown instanceof Fault && codes.includes(thrown.code)) return thrown.code;
    throw thrown;
  }
};

const flat = (run: (round: number) => void): void => {
  for (let round = 0; round < ROUNDS / 4; round += 1) run(round);
  const before = residentBytes();
  for (let round = ROUNDS / 4; round < ROUNDS; round += 1) run(round);
  expect(residentBytes() - before).toBeLessThan(GROWTH_BYTES_MAX);
};

describe(`seed ${seed}`, () => {
  const controls: readonly [string, readonly string[], (text: string) => Decoded<object>][] = [
    ["control messages to the coordinator", PROVIDER_SAMPLES.map(encodeMessage), decodeProviderMessage],
    ["control messages to the provider", COORDINATOR_SAMPLES.map(encodeMessage), decodeCoordinatorMessage],
  ];
  test.each(controls)("%s", (title, samples, decode) => {
    const dice = createDice(seed);
    const tally = new Tally();
    flat((round) => {
      const kind = MUTATIONS[round % MUTATIONS.length]!;
      const text = mutateText(dice, kind, dice.pick(samples), dice.pick(samples));
      const outcome = outcomeOf(["protocol_error"], () => {
        const decoded = decode(text);
        if (!decoded.ok) return "unsupported";
        // What passed once passes again unchanged: the door leaves nothing half-checked.
        expect(decode(JSON.stringify(decoded.message))).toEqual({
          ok: true,
          message: JSON.parse(JSON.stringify(decoded.message)) as object,
        });
        return "accepted";
      });
      tally.add(kind, outcome);
    });
    tally.print(title, seed);
    for (const kind of MUTATIONS) expect(tally.count(kind, "protocol_error")).toBeGreaterThan(0);
    // A cut message is never JSON again, and few giants fit anywhere; the other classes leave many messages acceptable.
    for (const kind of ["flip", "splice", "retype"]) expect(tally.count(kind, "accepted")).toBeGreaterThan(0);
    expect(tally.total("unsupported")).toBeGreaterThan(0);
  });

  test("data frames", () => {
    const dice = createDice(seed);
    const tally = new Tally();
    const keyOf = (fill: number): Uint8Array => new Uint8Array(32).fill(fill);
    const seal = (input: { key: number; id: string; sequence: number; bytes: number }): Uint8Array => {
      const cipher = new AesGcmFrameCipher({ key: keyOf(input.key), role: "seal", firstSequence: input.sequence });
      return sealFrame(cipher, FRAME_KIND.chunk, input.id, new Uint8Array(input.bytes).fill(120));
    };
    flat((round) => {
      const kind = MUTATIONS[round % MUTATIONS.length]!;
      const sequence = dice.below(1000);
      const frame = seal({ key: 1, id: ATTEMPT_ID, sequence, bytes: dice.below(400) });
      const other = seal({
        key: dice.below(2) + 1,
        id: dice.pick([ATTEMPT_ID, OTHER_ID]),
        // Another one: a (key, sequence) pair seals once, so that no second frame of this number exists to splice with.
        sequence: (sequence + 1 + dice.below(999)) % 1000,
        bytes: dice.below(400),
      });
      const mutated = mutateFrame(dice, kind, frame, other);
      const opener = new AesGcmFrameCipher({ key: keyOf(1), role: "open", firstSequence: sequence });
      const open = (): string => {
        openFrame(opener, decodeFrame(mutated));
        return "accepted";
      };
      const outcome = outcomeOf(["protocol_error", "encryption_failed"], open);
      tally.add(kind, outcome);
      // Whatever is not byte for byte what was sealed must not open.
      expect(outcome === "accepted").toBe(Buffer.compare(mutated, frame) === 0);
      const fresh = new AesGcmFrameCipher({ key: keyOf(1), role: "open", firstSequence: sequence });
      if (round % 10 !== 0) return;
      openFrame(fresh, decodeFrame(frame));
      tally.add("unchanged", "accepted");
    });
    tally.print("data frames", seed);
    for (const kind of MUTATIONS) {
      const refused = tally.count(kind, "protocol_error") + tally.count(kind, "encryption_failed");
      expect(refused).toBeGreaterThan(ROUNDS / MUTATIONS.length / 2);
    }
    expect(tally.total("protocol_error")).toBeGreaterThan(0);
    expect(tally.total("encryption_failed")).toBeGreaterThan(0);
    expect(tally.count("unchanged", "accepted")).toBe(ROUNDS / 10);
  });

  test("opened payloads", () => {
    const dice = createDice(seed);
    const tally = new Tally();
    const events = new TextDecoder().decode(
      encodeEvents([
        { type: "text", text: "Hello" },
        { type: "reasoning", text: "Because" },
        { type: "tool_call", index: 0, id: "call_1", name: "weather", arguments: '{"city":"Bonn"}' },
      ]),
    );
    const terminal = new TextDecoder().decode(
      encodeTerminal({
        finishReason: "stop",
        usage: { promptTokens: 1, completionTokens: 2, reasoningTokens: 0, cachedTokens: 0 },
        chunks: 3,
        timings: { queueMs: 1, prefillMs: 2, decodeMs: 3 },
      }),
    );
    flat((round) => {
      const kind = MUTATIONS[round % MUTATIONS.length]!;
      const [text, decode] = dice.below(2) === 0 ? [events, decodeEvents] : [terminal, decodeTerminal];
      const bytes = new TextEncoder().encode(mutateText(dice, kind, text, dice.pick([events, terminal])));
      tally.add(
        kind,
        outcomeOf(["protocol_error"], () => {
          decode(bytes);
          return "accepted";
        }),
      );
    });
    tally.print("opened payloads", seed);
    for (const kind of MUTATIONS) expect(tally.count(kind, "protocol_error")).toBeGreaterThan(0);
    expect(tally.total("accepted")).toBeGreaterThan(0);
  });
});

const mutateFrame = (dice: Dice, kind: Mutation, frame: Uint8Array, other: Uint8Array): Uint8Array => {
  const copy = Uint8Array.from(frame);
  switch (kind) {
    case "flip":
      return flipBit(dice, frame);
    case "truncate":
      return truncateBytes(dice, frame);
    case "splice":
      // Half at any byte, half exactly between header and body: the splice an attacker would try.
      return dice.below(2) === 0
        ? spliceBytes(dice, frame, other)
        : Buffer.concat([frame.subarray(0, 22), other.subarray(22)]);
    case "retype":
      copy[dice.below(2)] = dice.below(6);
      return copy;
    case "huge":
      if (dice.below(2) === 0) return Buffer.concat([frame, new Uint8Array(dice.below(200_000))]);
      copy.fill(0xff, 18, 22);
      return copy;
  }
};
