/** What frames hold: events, terminals and the parts of a request. */
import { describe, expect, test } from "bun:test";
import * as fc from "fast-check";
import type { CompletionEvent } from "../../src/core/completion.ts";
import { Fault } from "../../src/core/fault.ts";
import { FRAME_EVENTS_MAX, REQUEST_PART_BYTES_MAX } from "../../src/core/limits.ts";
import {
  decodeEvents,
  decodeTerminal,
  encodeEvents,
  encodeTerminal,
  RequestAssembler,
  splitRequest,
  type WireTerminal,
} from "../../src/protocol/payloads.ts";

const bytesOf = (value: unknown): Uint8Array => new TextEncoder().encode(JSON.stringify(value));
const wellFormed = fc.string({ unit: "grapheme" }).filter((text) => text.isWellFormed());
const anyEvent: fc.Arbitrary<CompletionEvent> = fc.oneof(
  fc.record({ type: fc.constant("text" as const), text: wellFormed }),
  fc.record({ type: fc.constant("reasoning" as const), text: wellFormed }),
  fc.record(
    {
      type: fc.constant("tool_call" as const),
      index: fc.nat(1023),
      id: wellFormed,
      name: wellFormed,
      arguments: wellFormed,
    },
    { requiredKeys: ["type", "index"] },
  ),
);

describe("events", () => {
  test("any list survives the wire", () => {
    fc.assert(
      fc.property(fc.array(anyEvent, { maxLength: 50 }), (events) => {
        expect(decodeEvents(encodeEvents(events))).toEqual(events);
      }),
    );
  });

  test.each([
    ["another shape", { type: "text", text: "x" }],
    ["an unknown type", [{ type: "image", text: "x" }]],
    ["a missing text", [{ type: "text" }]],
    ["a text that is none", [{ type: "text", text: 7 }]],
    ["a negative index", [{ type: "tool_call", index: -1 }]],
    ["a huge index", [{ type: "tool_call", index: 1e9 }]],
    ["a null id", [{ type: "tool_call", index: 0, id: null }]],
    ["too many", Array.from({ length: FRAME_EVENTS_MAX + 1 }, () => ({ type: "text", text: "" }))],
  ])("%s is a protocol error", (_name, value) => {
    expect(() => decodeEvents(bytesOf(value))).toThrow(expect.objectContaining({ code: "protocol_error" }));
  });

  /** A second event takes the list past the short way for one text event, to the schema. */
  const bySchema = (value: unknown): unknown => attempt([value, { type: "text", text: "" }])?.slice(0, 1) ?? null;
  const attempt = (value: readonly unknown[]): readonly CompletionEvent[] | null => {
    try {
      return decodeEvents(bytesOf(value));
    } catch (thrown) {
      if (thrown instanceof Fault && thrown.code === "protocol_error") return null;
      throw thrown;
    }
  };
  const nearlyEvent = fc.oneof(
    anyEvent,
    fc.jsonValue(),
    fc.record(
      {
        type: fc.oneof(fc.constantFrom("text", "reasoning", "tool_call", "Text", "constructor"), fc.jsonValue()),
        text: fc.oneof(fc.string({ unit: "binary" }), fc.jsonValue()),
        extra: fc.jsonValue(),
        ["__proto__"]: fc.constant({ type: "text", text: "inherited" }),
      },
      { requiredKeys: [] },
    ),
  );

  test("one event is taken, refused and stripped just as the schema does it", () => {
    let taken = 0;
    fc.assert(
      fc.property(nearlyEvent, (value) => {
        const alone = attempt([value]);
        if (alone !== null) taken += 1;
        expect(alone).toEqual(bySchema(value) as typeof alone);
      }),
      { numRuns: 2_000 },
    );
    expect(taken).toBeGreaterThan(100);
  });

  test.each(["text", "reasoning"])("a %s of 8 Mi characters is the longest there is", (type) => {
    const longest = "x".repeat(8 * 1024 * 1024);
    for (const text of [longest, `${longest}x`])
      expect(attempt([{ type, text }])).toEqual(bySchema({ type, text }) as CompletionEvent[] | null);
    expect(attempt([{ type, text: `${longest}x` }])).toBeNull();
  });

  test("a refusal holds nothing of the completion", () => {
    const secret = "the answer that must not leak";
    for (const bytes of [
      bytesOf([{ type: secret, text: secret }]),
      bytesOf(secret).slice(0, -1),
      Uint8Array.of(0xff),
    ]) {
      let fault: unknown;
      try {
        decodeEvents(bytes);
      } catch (thrown) {
        fault = thrown;
      }
      if (!(fault instanceof Fault)) throw new Error("no fault");
      expect(fault.message).not.toContain("answer");
      expect(fault.cause).toBeUndefined();
    }
  });
});

describe("a terminal", () => {
  const terminal: WireTerminal = {
    finishReason: "tool_calls",
    usage: { promptTokens: 12, completionTokens: 34, reasoningTokens: 5, cachedTokens: 6 },
    chunks: 7,
    timings: { queueMs: 0.5, prefillMs: 12.25, decodeMs: 99 },
  };

  test("survives the wire in snake case", () => {
    const bytes = encodeTerminal(terminal);
    expect(decodeTerminal(bytes)).toEqual(terminal);
    expect(JSON.parse(new TextDecoder().decode(bytes))).toEqual({
      finish_reason: "tool_calls",
      usage: { prompt_tokens: 12, completion_tokens: 34, reasoning_tokens: 5, cached_tokens: 6 },
      chunks: 7,
      timings: { queue_ms: 0.5, prefill_ms: 12.25, decode_ms: 99 },
    });
  });

  test.each([
    ["finish_reason", "because"],
    ["chunks", -1],
    ["chunks", 1.5],
    ["usage", { prompt_tokens: 1 }],
    ["timings", null],
  ])("with %s %p is a protocol error", (key, value) => {
    const wire = { ...(JSON.parse(new TextDecoder().decode(encodeTerminal(terminal))) as object), [key]: value };
    expect(() => decodeTerminal(bytesOf(wire))).toThrow(expect.objectContaining({ code: "protocol_error" }));
  });
});

describe("a request", () => {
  const body = (size: number): Uint8Array => Uint8Array.from({ length: size }, (_, index) => (index * 31) % 251);

  test.each([1, REQUEST_PART_BYTES_MAX - 1, REQUEST_PART_BYTES_MAX, REQUEST_PART_BYTES_MAX + 1, 3_000_000])(
    "of %d bytes is split and joined",
    (size) => {
      const whole = body(size);
      const parts = splitRequest(whole);
      expect(parts.length).toBe(Math.ceil(size / REQUEST_PART_BYTES_MAX));
      const assembler = new RequestAssembler({ bytes: size, parts: parts.length });
      for (const part of parts) {
        expect(assembler.done).toBe(false);
        assembler.add(part);
      }
      expect(assembler.done).toBe(true);
      expect(Buffer.compare(assembler.body(), whole)).toBe(0);
    },
  );

  test.each([
    ["more bytes than declared", { bytes: 4, parts: 2 }, [3, 2]],
    ["fewer bytes than declared", { bytes: 6, parts: 2 }, [3, 2]],
    ["more parts than declared", { bytes: 3, parts: 1 }, [3, 1]],
    ["an empty part", { bytes: 3, parts: 2 }, [0, 3]],
    ["a part that is too large", { bytes: 3_000_000, parts: 3 }, [REQUEST_PART_BYTES_MAX + 1]],
  ])("with %s is a protocol error", (_name, declared, sizes) => {
    const assembler = new RequestAssembler(declared);
    expect(() => {
      for (const size of sizes) assembler.add(body(size));
    }).toThrow(expect.objectContaining({ code: "protocol_error" }));
  });

  test("is not read before it is whole", () => {
    expect(() => new RequestAssembler({ bytes: 1, parts: 1 }).body()).toThrow("assertion failed");
  });
});
